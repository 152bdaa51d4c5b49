#!/bin/sh
# Puts the wheel beside this file into NVIDIA's image.  Nothing of theirs is upgraded: the wheel goes in without what it
# depends on, then the few things that are not there in any version, and this fails if a package that was there has changed.
set -eu
here=$(dirname "$0")
install() { if python -m pip --version >/dev/null 2>&1; then python -m pip "$@"; else uv pip "$@"; fi; }
install freeze | sort > "$here/before"
install install --no-cache-dir --no-deps "$here"/*.whl
xtoken env --missing > "$here/missing"
# For a teacher on other nodes.
grep -qiE '^pyzmq( @|==)' "$here/before" || echo 'pyzmq>=25' >> "$here/missing"
if [ -s "$here/missing" ]; then install install --no-cache-dir --no-deps --requirement "$here/missing"; fi
install freeze | sort > "$here/after"
changed=$(comm -23 "$here/before" "$here/after")
if [ -n "$changed" ]; then echo "error: changed by the installation: $changed" >&2; exit 1; fi
xtoken env
