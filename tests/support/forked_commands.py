"""Commands in forks of this process, which has loaded NeMo: as a shell starts them, without the imports of each.

`run_command` runs one from a test; `CommandServer` makes programs of them, for others to start: a script, torchrun.
For ``nemo`` the fixture ``command_line`` must have loaded the application.
"""

import contextlib
import json
import os
import runpy
import selectors
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from launcher import Ended, start

__all__ = ["CommandServer", "run_command", "run_forked"]

CLIENT = Path(__file__).with_name("command_client.py")


def run_command(folder: Path, *words: str, env: dict[str, str] | None = None, timeout: float = 400) -> tuple[int, str]:
    """``nemo ..`` or ``xtoken ..`` in ``folder``: (exit status, all that it printed)."""
    ended = run_forked(folder, _command, list(words), env=env, timeout=timeout)
    return ended.status, ended.log


def run_forked(
    folder: Path, function: Callable[..., Any], *args: Any, env: dict[str, str] | None = None, timeout: float = 400
) -> Ended:
    """``function(*args)`` in ``folder``, in a process that no launcher has started."""
    [ended] = start(_in_folder, folder, function, args, folder=folder / "commands", env=env, timeout=timeout)
    return ended


def _in_folder(folder: Path, function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    from nemo_xtoken.environment import without_launcher

    kept = without_launcher(os.environ)
    os.environ.clear()
    os.environ.update(kept)
    os.chdir(folder)
    return function(*args)


def _command(words: list[str]) -> None:
    """``nemo ..``, ``xtoken ..``, or a file of Python with its arguments."""
    sys.argv = words
    if words[0] == "nemo":
        from nemo_run.__main__ import app

        app()
    elif words[0] == "xtoken":
        from nemo_xtoken.commands.cli import main

        raise SystemExit(main(words[1:]))
    else:
        runpy.run_path(words[0], run_name="__main__")


class CommandServer:
    """A process forked from this one that runs commands in forks of itself, for programs that ask it to.

    Their folder, environment, standard streams, signals and exit status are the program's.  All end with it, and with
    this process.

    Args:
        folder: a new one, for the programs.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.folder = folder
        address = str(folder / "socket")
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(address)
        listener.listen(16)
        theirs, self._ours = socket.socketpair()
        sys.stdout.flush()
        sys.stderr.flush()
        self._pid = os.fork()
        if self._pid == 0:
            self._ours.close()
            _serve(listener, theirs)
        theirs.close()
        listener.close()

    def program(self, *first: str) -> Path:
        """A program that runs ``first`` with its own arguments behind it; named as ``first`` is."""
        path = self.folder / Path(first[0]).stem
        line = " ".join(
            f"'{word}'" for word in (sys.executable, "-SE", str(CLIENT), str(self.folder / "socket"), *first)
        )
        path.write_text(f'#!/bin/sh\nexec {line} "$@"\n')
        path.chmod(0o755)
        return path

    def end(self) -> None:
        """Ends the process and what runs in it."""
        with contextlib.suppress(OSError):  # it has ended by itself
            self._ours.shutdown(socket.SHUT_RDWR)  # closing is not enough: later forks of this process hold it as well
        self._ours.close()
        os.waitpid(self._pid, 0)


def _serve(listener: socket.socket, owner: socket.socket) -> None:
    """Until the owner ends: forks a command for each program that connects, and tells it how that ended."""
    waiting = selectors.DefaultSelector()
    waiting.register(listener, selectors.EVENT_READ)
    waiting.register(owner, selectors.EVENT_READ)
    running: dict[int, tuple[socket.socket, int]] = {}  # by the command's pidfd
    try:
        while True:
            for key, _ in waiting.select():
                if key.fileobj is owner:
                    return
                if key.fileobj is listener:
                    program = listener.accept()[0]
                    pid = _start(program, [listener, owner, *(other for other, _ in running.values())])
                    handle = os.pidfd_open(pid)
                    running[handle] = program, pid
                    waiting.register(handle, selectors.EVENT_READ)
                    waiting.register(program, selectors.EVENT_READ, data=pid)
                elif key.data is not None:  # the program has ended before its command
                    waiting.unregister(key.fileobj)
                    _kill(key.data)
                else:
                    program, pid = running.pop(key.fd)
                    waiting.unregister(key.fd)
                    os.close(key.fd)
                    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                    _kill(pid)
                    with contextlib.suppress(KeyError):
                        waiting.unregister(program)
                    with contextlib.suppress(OSError):
                        program.sendall(b"%d\n" % status)
                    program.close()
    except BaseException:
        traceback.print_exc()
    finally:
        for _, pid in running.values():
            _kill(pid)
        os._exit(0)


def _kill(group: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)


def _start(program: socket.socket, others: list[socket.socket]) -> int:
    """Forks the command that the program names; its process id."""
    size, streams, _, _ = socket.recv_fds(program, 8, 3)
    asked: dict[str, Any] = json.loads(_read(program, int.from_bytes(size, "little")))
    pid = os.fork()
    if pid == 0:
        for other in (program, *others):
            other.close()
        _become(asked, streams)
    for stream in streams:
        os.close(stream)
    program.sendall(b"%d\n" % pid)
    return pid


def _read(program: socket.socket, size: int) -> bytes:
    parts = []
    while size > 0 and (part := program.recv(min(size, 65536))):
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def _become(asked: dict[str, Any], streams: list[int]) -> None:
    """Runs a command in this fork, which ends with it."""
    code = 1
    try:
        os.setsid()
        kept = {sys.stdout.fileno(): streams[1], sys.stderr.fileno(): streams[2]}  # pytest's own, and who kept them
        for number, stream in {**kept, **dict(enumerate(streams))}.items():
            os.dup2(stream, number)
        sys.stdin = open(0, closefd=False)  # noqa: SIM115
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        os.environ.clear()
        os.environ.update(asked["environment"])
        os.chdir(asked["folder"])
        try:
            _command(asked["words"])
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(bool(end.code))
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # nothing of the parent's runs here
