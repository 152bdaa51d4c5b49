"""Temporary files and folders: names that say whose they are, and the removal of those that a killed process left.

A name is ``.NAME.HOST-PID-SPACE-RANDOM.tmp``, beside NAME.  It is removed by the process that made it; after a kill by
the next one that writes into the folder: at once where the maker ran on this machine and runs no more, else after a
day.  Nobody so takes a file away from a process that writes it, on this machine or on another that shares the folder.

SPACE tells apart what bears one name and counts its processes by itself: containers of one machine (``docker run
--network host``), and machines whose containers have the same name.  That a number is free in this one says nothing
about another.
"""

import contextlib
import hashlib
import os
import re
import secrets
import shutil
import socket
import time
from pathlib import Path

__all__ = ["host_name", "is_running", "system_name", "temporary_name", "tidy"]

OLD = 86400.0  # seconds after which nobody writes to a temporary file any more
_NAME = re.compile(
    r"\.(?P<name>.+)\.(?P<host>[A-Za-z0-9_]+)-(?P<pid>\d+)(-(?P<space>\d+))?-[0-9a-f]{8}\.(?P<kind>tmp|old)"
)


def host_name() -> str:
    """This machine's name, of letters, digits and ``_``."""
    return re.sub(r"\W", "_", socket.gethostname(), flags=re.ASCII) or "host"


def system_name() -> str:
    """What tells this start of this machine, and this container in it, from all others, also of the same host name.

    A number stands for one process there.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text("utf-8").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return socket.gethostname()


def temporary_name(name: str, kind: str = "tmp") -> str:
    """A new name for what will be ``name``.

    Args:
        kind: "tmp"; "old" for what is set aside while another takes its place.
    """
    ending = f".{host_name()}-{os.getpid()}-{_space()}-{secrets.token_hex(4)}.{kind}"
    return f".{name.encode()[: 254 - len(ending)].decode(errors='ignore')}{ending}"  # a name has at most 255 bytes


def _space() -> int:
    """A number for `system_name`.  The kernel's own of a container is that of others on other machines."""
    return int.from_bytes(hashlib.sha256(system_name().encode()).digest()[:6], "big")


def is_running(pid: int) -> bool:
    """Whether there is such a process on this machine."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # another user's
        return True
    return True


def tidy(folder: Path) -> list[Path]:
    """Removes what killed processes left in a folder; what was set aside and not replaced gets its name back.

    Errors are passed over: it is no reason to fail.

    Returns:
        what was removed.
    """
    gone = []
    with contextlib.suppress(OSError):
        for entry in os.scandir(folder):
            found = _NAME.fullmatch(entry.name)
            if found is None:
                continue
            with contextlib.suppress(OSError):
                status = entry.stat(follow_symlinks=False)
                if status.st_uid != os.getuid() or not _is_left(found, status.st_mtime):
                    continue
                path = Path(entry.path)
                if found["kind"] == "old":
                    _put_back(path, folder / found["name"])
                if entry.is_dir(follow_symlinks=False):
                    shutil.rmtree(path)
                else:
                    path.unlink()
                gone.append(path)
    return gone


def _is_left(found: re.Match[str], modified: float) -> bool:
    here = found["host"] == host_name() and found["space"] in (None, str(_space()))  # None: an earlier version's
    ended = here and not is_running(int(found["pid"]))
    return ended or time.time() - modified > OLD


def _put_back(aside: Path, name: Path) -> None:
    """What was set aside to be replaced, where nothing has taken its place."""
    kept = aside / name.name
    if kept.exists() and not name.exists():
        kept.rename(name)
