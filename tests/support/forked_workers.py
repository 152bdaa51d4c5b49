"""Runs tests in processes forked from one that has imported and collected everything, a file at a time.

pytest-xdist starts its processes anew: each imports NeMo and transformers, collects every file, and reads the large
tokenizers that tests share.  Here that is done once, and the processes share its memory.  What a test reports goes
through a pipe to the first process, which shows it as if the test had run there.

Files that share what takes long to make run in one process, one after the other: they name the first of them as their
module's ``KEPT_WITH``.
"""

import contextlib
import gc
import io
import os
import signal
import sys
import tempfile
import traceback
import warnings
from collections import deque
from multiprocessing import Pipe, connection
from typing import Any, NoReturn

import pytest

__all__ = ["ForkedWorkers"]


class _Worker:
    """A process that runs tests: our end of its pipe, the tests that it has taken and not begun, the one that runs."""

    def __init__(self, number: int, pipe: Any, pid: int) -> None:
        self.number, self.pipe, self.pid = number, pipe, pid
        self.handle = os.pidfd_open(pid)  # what its tests leave behind may hold the pipe
        self.taken: deque[int] = deque()
        self.running: int | None = None


class ForkedWorkers:
    """A plugin of pytest.

    Args:
        config: pytest's.
        count: of the processes.
    """

    def __init__(self, config: pytest.Config, count: int) -> None:
        self._config, self._count = config, count
        self._files: deque[list[int]] = deque()  # numbers of tests
        self._workers: list[_Worker] = []

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool | None:
        """In place of pytest's own, which still tells what went wrong in a collection."""
        if self._config.option.collectonly or session.testsfailed:
            return None
        if (terminal := self._config.pluginmanager.getplugin("terminalreporter")) is not None:
            terminal.showfspath = False  # files alternate
        files: dict[Any, list[int]] = {}
        for number, item in enumerate(session.items):
            path = item.path
            files.setdefault(path.with_name(getattr(item.module, "KEPT_WITH", path.name)), []).append(number)
        self._files = deque(files.values())
        self._config._tmp_path_factory.getbasetemp()  # type: ignore[attr-defined]
        gc.collect()
        gc.freeze()  # nobody looks through it again, and it stays shared
        try:
            for number in range(self._count):
                self._start(session, number)
            while self._workers:
                ready = connection.wait([part for w in self._workers for part in (w.pipe, w.handle)])
                for worker in list(self._workers):
                    if worker.pipe in ready:
                        self._hear(session, worker)
                    elif worker.handle in ready:
                        self._ended(session, worker)
        finally:
            for worker in self._workers:
                os.kill(worker.pid, signal.SIGKILL)
                os.waitpid(worker.pid, 0)
        if session.shouldfail:
            raise session.Failed(session.shouldfail)
        if session.shouldstop:
            raise session.Interrupted(session.shouldstop)
        return True

    def _start(self, session: pytest.Session, number: int) -> None:
        ours, theirs = Pipe()
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if pid == 0:
            for pipe in (ours, *(worker.pipe for worker in self._workers)):  # so that it sees the end of this process
                pipe.close()
            _work(session, theirs, number)
        theirs.close()
        self._workers.append(_Worker(number, ours, pid))

    def _hear(self, session: pytest.Session, worker: _Worker) -> None:
        try:
            kind, said = worker.pipe.recv()
        except (EOFError, ConnectionResetError):
            self._ended(session, worker)
            return
        hook = self._config.hook
        if kind == "next":
            more = self._files and not session.shouldfail and not session.shouldstop
            worker.taken.extend(tests := self._files.popleft() if more else [])
            worker.pipe.send(tests)
        elif kind == "begin":
            worker.running = worker.taken.popleft()
            item = session.items[worker.running]
            hook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
        elif kind == "report":
            report = hook.pytest_report_from_serializable(config=self._config, data=said)
            hook.pytest_runtest_logreport(report=report)
        elif kind == "end" and worker.running is not None:
            item, worker.running = session.items[worker.running], None
            hook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
        elif kind == "warning":
            text, category, file, line, more = said
            message = warnings.WarningMessage(text, type(category, (Warning,), {}), file, line)
            hook.pytest_warning_recorded.call_historic(kwargs={"warning_message": message, **more})

    def _ended(self, session: pytest.Session, worker: _Worker) -> None:
        """If its process was not through, the test that it was in has failed, and another process goes on behind it."""
        self._workers.remove(worker)
        worker.pipe.close()
        os.close(worker.handle)
        status = os.waitstatus_to_exitcode(os.waitpid(worker.pid, 0)[1])
        if session.shouldfail or session.shouldstop:
            return
        if worker.running is None and not worker.taken:
            if status:
                raise RuntimeError(f"process {worker.number} of the tests ended with status {status}")
            return
        item = session.items[worker.taken.popleft() if worker.running is None else worker.running]
        said = f"process {worker.number} ended with status {status} here"
        report = pytest.TestReport(item.nodeid, item.location, {}, "failed", said, "call")
        self._config.hook.pytest_runtest_logreport(report=report)
        if worker.taken:
            self._files.appendleft(list(worker.taken))
        self._start(session, worker.number)


class _Reports:
    """The plugin of a worker: sends what it is told to the first process."""

    def __init__(self, config: pytest.Config, pipe: connection.Connection) -> None:
        self._config, self._pipe = config, pipe

    def pytest_runtest_logstart(self) -> None:
        self._pipe.send(("begin", None))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        data = self._config.hook.pytest_report_to_serializable(config=self._config, report=report)
        self._pipe.send(("report", data))

    def pytest_runtest_logfinish(self) -> None:
        self._pipe.send(("end", None))

    def pytest_warning_recorded(
        self, warning_message: warnings.WarningMessage, when: str, nodeid: str, location: Any
    ) -> None:
        seen = warning_message
        more = {"when": when, "nodeid": nodeid, "location": location}
        self._pipe.send(("warning", (str(seen.message), seen.category.__name__, seen.filename, seen.lineno, more)))


def _work(session: pytest.Session, pipe: connection.Connection, number: int) -> NoReturn:
    """Runs tests as long as there are any."""
    status = 1
    try:
        config = session.config
        os.environ.update(PYTEST_XDIST_WORKER=f"gw{number}")  # as pytest-xdist does
        _have_files_of_its_own(config, number)
        if (terminal := config.pluginmanager.getplugin("terminalreporter")) is not None:
            config.pluginmanager.unregister(terminal)
        config.pluginmanager.register(_Reports(config, pipe))
        tests = _next(pipe)
        while tests:
            for place, test in enumerate(tests):
                following = tests[place + 1 :] or _next(pipe)  # fixtures are kept for the test that follows
                after = session.items[following[0]] if following else None
                config.hook.pytest_runtest_protocol(item=session.items[test], nextitem=after)
                if session.shouldfail or session.shouldstop:
                    session._setupstate.teardown_exact(None)
                    following = []
                    break
            tests = following
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        if "ranks" in sys.modules:
            sys.modules["ranks"].end_all()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)  # nothing of the first process's runs here


def _next(pipe: connection.Connection) -> list[int]:
    pipe.send(("next", None))
    tests: list[int] = pipe.recv()
    return tests


def _have_files_of_its_own(config: pytest.Config, number: int) -> None:
    """Temporary folders, and what captures the output, which lies in files that forks share."""
    factory = config._tmp_path_factory  # type: ignore[attr-defined]
    factory._basetemp = factory.getbasetemp() / f"gw{number}"
    factory._basetemp.mkdir(exist_ok=True)
    capture: Any = config.pluginmanager.getplugin("capturemanager")
    captured = capture and capture._global_capturing
    for part in (captured.out, captured.err) if captured else ():
        with contextlib.suppress(AttributeError, io.UnsupportedOperation), tempfile.TemporaryFile() as file:
            os.dup2(file.fileno(), part.tmpfile.fileno())  # which loggers of what was imported have, and go on using
