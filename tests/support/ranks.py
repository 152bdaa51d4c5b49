"""Runs functions on several gloo ranks: processes forked from this one once for each number of ranks, and kept."""

import atexit
import importlib
import os
import pickle
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from multiprocessing import Pipe, connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

__all__ = ["end_all", "run_ranks"]


def run_ranks(ranks: int, function: Callable[..., Any], *args: Any, timeout: float = 300) -> list[Any]:
    """``[function(*args) on rank r for r in ranks]``; fails with the first rank's traceback if one fails.

    The function (of a module, by its name), arguments and results travel by pickle.  What one leaves behind in its
    process the next one meets.  After a failure the ranks are ended, and the next call gets new ones.

    Raises:
        AssertionError: a rank failed, died, or gave no answer within ``timeout`` seconds.
    """
    if ranks not in _pools or _pools[ranks].owner != os.getpid():
        _pools[ranks] = _Pool(ranks)
    try:
        return _pools[ranks].run(function, args, timeout)
    except BaseException:
        _pools.pop(ranks).end()
        raise


class _Pool:
    """Processes that wait for functions, in one process group.

    Attributes:
        owner: the process that made it; forks of that one cannot use it.
    """

    def __init__(self, ranks: int) -> None:
        self.owner = os.getpid()
        self.folder = tempfile.TemporaryDirectory(prefix="ranks-")  # the group's store, also for new groups
        self.pids: list[int] = []
        self.pipes: list[connection.Connection] = []
        sys.stdout.flush()
        sys.stderr.flush()
        for rank in range(ranks):
            ours, theirs = Pipe()
            pid = os.fork()
            if pid == 0:
                for pipe in (ours, *self.pipes):  # so that a rank sees the end of this process
                    pipe.close()
                _serve(rank, ranks, str(Path(self.folder.name) / "store"), theirs)
            theirs.close()
            self.pids.append(pid)
            self.pipes.append(ours)

    def run(self, function: Callable[..., Any], args: tuple[Any, ...], timeout: float) -> list[Any]:
        task = pickle.dumps((function, args))
        for pipe in self.pipes:
            pipe.send((sys.path, function.__module__, task))
        results: dict[int, Any] = {}
        end = time.monotonic() + timeout
        while len(results) < len(self.pipes):
            waiting = [pipe for rank, pipe in enumerate(self.pipes) if rank not in results]
            ready = connection.wait(waiting, max(0.0, end - time.monotonic()))
            if not ready:
                silent = sorted(set(range(len(self.pipes))) - set(results))
                raise AssertionError(f"rank {silent[0]} gave no answer in {timeout} s")
            for pipe in ready:
                rank = self.pipes.index(pipe)  # type: ignore[arg-type]
                try:
                    good, value = pickle.loads(pipe.recv_bytes())  # type: ignore[union-attr]  # noqa: S301 (our fork)
                except (EOFError, ConnectionResetError):
                    raise AssertionError(f"rank {rank} died") from None
                if not good:
                    raise AssertionError(f"rank {rank}:\n{value}")
                results[rank] = value
        return [results[rank] for rank in range(len(self.pipes))]

    def end(self) -> None:
        """Kills the ranks, which may wait for one another."""
        for pipe in self.pipes:
            pipe.close()
        for pid in self.pids:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        self.folder.cleanup()


_pools: dict[int, _Pool] = {}


@atexit.register
def end_all() -> None:
    """Ends the ranks of this process, which its end does as well."""
    for pool in _pools.values():
        if pool.owner == os.getpid():
            pool.end()


def _serve(rank: int, ranks: int, store: str, pipe: connection.Connection) -> None:
    try:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(ranks), GLOO_SOCKET_IFNAME="lo")
        torch.set_num_threads(1)
        dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=ranks)
        while True:
            path, module, task = pipe.recv()
            sys.path[:] = path
            try:
                importlib.import_module(module)
                function, args = pickle.loads(task)  # noqa: S301 (our parent)
                answer = True, function(*args)
            except Exception:
                answer = False, traceback.format_exc()
            pipe.send_bytes(pickle.dumps(answer))
    except (EOFError, ConnectionResetError, BrokenPipeError):
        pass  # the process that made us has ended
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(0)
