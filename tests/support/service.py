"""Replicas of a teacher beside a test's run, in processes forked from it, as ``xtoken serve`` runs them."""

import contextlib
import os
import signal
import sys
import time
import traceback
from pathlib import Path

import torch
from launcher import log_to
from ports import free_port

from nemo_xtoken.plugin.standalone import serve_teacher
from nemo_xtoken.run.layout import ParallelSizes

__all__ = ["Service"]


class Service:
    """A folder with replicas.

    Args:
        folder: of the service; logs of the replicas lie in it.
        teacher: the checkpoint.
        prepare: called in each process of a replica before it loads the teacher.
    """

    def __init__(self, folder, teacher, prepare=lambda: None):
        self.folder, self.teacher, self.prepare, self.pids = Path(folder), teacher, prepare, {}
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    def start(self, name, ranks=1, wait=True, prepare=lambda: None, **plan):
        """Forks the processes of a replica, in each of which ``prepare`` is called as well."""
        port = free_port()
        file = self.folder / f"replica-{name}.json"
        file.unlink(missing_ok=True)
        self.pids[name] = []
        for rank in range(ranks):
            pid = os.fork()
            if not pid:
                self._serve(name, rank, ranks, port, prepare, plan)
            self.pids[name].append(pid)
        end = time.monotonic() + 60
        while wait and not file.exists():
            assert time.monotonic() < end, (self.folder / f"{name}-0.log").read_text()
            time.sleep(0.02)

    def _serve(self, name, rank, ranks, port, prepare, plan):
        os.setsid()
        log_to(self.folder / f"{name}-{rank}.log")
        os.environ.update(
            RANK=str(rank),
            WORLD_SIZE=str(ranks),
            LOCAL_RANK=str(rank),
            LOCAL_WORLD_SIZE=str(ranks),
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT=str(port),
        )
        status = 1
        try:
            torch.set_num_threads(1)
            self.prepare()
            prepare()
            stop = []
            signal.signal(signal.SIGTERM, lambda *_: stop.append(1))
            sizes = ParallelSizes(tp := plan.pop("tp", 1), plan.pop("pp", 1), expert_tensor=tp)
            plan = {"path": self.teacher, "dtype": "fp32", "sizes": sizes, **plan}
            tokens = serve_teacher(plan, self.folder, name, 256, 8, 1, "127.0.0.1", lambda: bool(stop))
            print(f"{tokens} tokens")
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)

    def signal(self, name, number):
        """To all processes of a replica."""
        for pid in self.pids[name]:
            os.kill(pid, number)

    def end(self, name, seconds):
        """Waits until the processes of a replica have ended by themselves."""
        end = time.monotonic() + seconds
        for pid in self.pids.pop(name):
            while not os.waitpid(pid, os.WNOHANG)[0]:
                assert time.monotonic() < end, f"a process of {name} still runs after {seconds} s"
                time.sleep(0.05)

    def close(self):
        """Ends all of them; none is left."""
        for pid in (pid for pids in self.pids.values() for pid in pids):
            for number in (signal.SIGKILL, signal.SIGCONT):
                try:
                    os.kill(pid, number)
                except ProcessLookupError:
                    break
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)
