"""Runs a function on ranks with torchrun's environment, forked from this process, which has imported NeMo once.

Every rank is the leader of its own session, so that what it starts (loaders, checkpoint writers) ends with it.  What a
rank prints goes to a file, and the end of it into the message when something fails.
"""

import contextlib
import gc
import os
import pickle
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ports import free_port
from thread_writers import write_in_threads

__all__ = ["Ended", "fork_ranks", "launch", "log_to", "start"]


@dataclass
class Ended:
    """How a rank ended: exit status (negative: the signal), its result, its exception, what it printed."""

    status: int
    result: Any
    error: BaseException | None
    log: str


def launch(
    function: Callable[..., Any],
    *args: Any,
    ranks: int = 1,
    folder: Path,
    timeout: float = 300,
    env: dict[str, str] | None = None,
) -> list[Any]:
    """``[function(*args) on each rank]``; fails with the first failing rank's log."""
    ended = start(function, *args, ranks=ranks, folder=folder, timeout=timeout, env=env)
    for rank, end in sorted(enumerate(ended), key=lambda entry: entry[1].status == -99):  # who waited was not the first
        if end.status != 0:
            raise AssertionError(f"rank {rank} ended with status {end.status}:\n{end.log[-6000:]}")
    return [end.result for end in ended]


def start(
    function: Callable[..., Any],
    *args: Any,
    ranks: int = 1,
    folder: Path,
    timeout: float = 300,
    env: dict[str, str] | None = None,
    when: Callable[[list[int]], bool] | None = None,
) -> list[Ended]:
    """The same, and says how each rank ended.  When one fails the others get ten seconds to end by themselves.

    Args:
        folder: for logs and results.
        env: environment on top of torchrun's.
        when: called about every 10 ms with the ranks' process ids until it returns True: for signals.  Without it no
            rank starts processes to write a checkpoint: nothing can happen to them.
    """
    pids: list[int] = []
    status: dict[int, int] = {}
    try:
        pids += fork_ranks(function, *args, ranks=ranks, folder=folder, env=env, threads=when is None)
        end = time.monotonic() + timeout
        while len(status) < ranks and time.monotonic() < end:
            if when is not None and when(pids):
                when = None
            for pid in pids:
                if pid not in status:
                    done, code = os.waitpid(pid, os.WNOHANG)
                    if done:
                        status[pid] = os.waitstatus_to_exitcode(code)
                        if status[pid] != 0:
                            end = min(end, time.monotonic() + 10)
            time.sleep(0.01)
    finally:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
            if pid not in status:
                os.waitpid(pid, 0)
                status[pid] = -99  # took too long, or waited for one that had failed
    return [_ended(folder, rank, status[pid]) for rank, pid in enumerate(pids)]


def fork_ranks(
    function: Callable[..., Any],
    *args: Any,
    ranks: int,
    folder: Path,
    env: dict[str, str] | None = None,
    threads: bool = False,
) -> list[int]:
    """Starts the ranks, as `start` does, and returns at once: their process ids, leaders of sessions of their own.

    Args:
        threads: write checkpoints, instead of processes that each rank forks for each.
    """
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    sys.stdout.flush()
    sys.stderr.flush()
    pids: list[int] = []
    for rank in range(ranks):
        pid = os.fork()
        if pid == 0:
            _rank(rank, ranks, port, folder, env or {}, threads, function, args)
        pids.append(pid)
    return pids


def log_to(file: Path) -> None:
    """What this fork says from now on goes there: also what is said by pytest's own streams, and by who kept them."""
    log = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    for stream in {1, 2, sys.stdout.fileno(), sys.stderr.fileno()}:
        os.dup2(log, stream)


def _ended(folder: Path, rank: int, status: int) -> Ended:
    file = folder / f"result.{rank}"
    result, error = None, None
    if file.exists():
        result, error = pickle.loads(file.read_bytes())  # noqa: S301 (our own fork wrote it)
        file.unlink()
    return Ended(status, result, error, (folder / f"log.{rank}").read_text(errors="replace"))


def _rank(
    rank: int,
    ranks: int,
    port: int,
    folder: Path,
    env: dict[str, str],
    threads: bool,
    function: Callable[..., Any],
    args: Any,
) -> None:
    code = 1
    try:
        os.setsid()
        gc.set_threshold(10_000)  # a run leaves little garbage, and would look for it a hundred times
        log_to(folder / f"log.{rank}")
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        for name, value in {
            "RANK": rank,
            "LOCAL_RANK": rank,
            "WORLD_SIZE": ranks,
            "LOCAL_WORLD_SIZE": ranks,
            "GROUP_RANK": 0,
            "NODE_RANK": 0,
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
            "TORCHELASTIC_RUN_ID": "fork",
            "GLOO_SOCKET_IFNAME": "lo",
            **env,
        }.items():
            os.environ[name] = str(value)
        if threads:
            write_in_threads()
        outcome: tuple[Any, Any] = (None, None)
        try:
            outcome = (function(*args), None)
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(bool(end.code))
        except BaseException as error:
            traceback.print_exc()
            outcome = (None, error)
        temporary = folder / f"result.{rank}.part"
        try:
            temporary.write_bytes(pickle.dumps(outcome))
        except Exception:
            temporary.write_bytes(pickle.dumps((None, RuntimeError(repr(outcome[1])))))
        temporary.rename(folder / f"result.{rank}")
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # nothing of the parent's runs here
