"""Pieces of work that do not depend on each other, in processes that are forked from this one."""

import contextlib
import gc
import logging
import multiprocessing
import queue
import signal
import sys
from collections.abc import Callable, Iterator
from logging.handlers import QueueHandler
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

from nemo_xtoken.sharing.forked_children import end_with_this_process, without_tokenizers_threads

__all__ = ["beside", "side_by_side"]

T = TypeVar("T")


def side_by_side(
    work: Callable[[int], T], count: int, workers: int, begun: Callable[[int, int], None] | None = None
) -> Iterator[tuple[int, T]]:
    """Yields each number below ``count`` and ``work`` of it, as they are done.

    Processes are forked, so that of the work its results alone are pickled.  What one of them leaves undone, since
    ``work`` raises there or the process is killed, is done here in the end: an error is raised where its cause can be
    seen.  Close the generator to end the processes early.

    Args:
        workers: processes; fewer than two, and systems other than Linux, do the work in this one.
        begun: told each number when it is begun, and how many are done.
    """
    waiting, undone = list(range(count))[::-1], list[int]()
    done, processes, busy = 0, list[BaseProcess](), dict[Connection, int]()

    def give(worker: Connection) -> None:
        if waiting:
            if begun is not None:
                begun(waiting[-1], done)
            busy[worker] = waiting.pop()
            try:
                worker.send(busy[worker])
            except OSError:  # it has been killed
                undone.append(busy.pop(worker))

    try:
        if workers > 1 and sys.platform == "linux":
            for _ in range(min(workers, count)):
                try:
                    process, worker = _forked(work)
                except OSError:  # as many as there may be: the work is done by fewer, or here
                    break
                processes.append(process)
                give(worker)
        while busy:
            ready = wait(list(busy))
            for worker in [each for each in busy if each in ready]:
                number, found = busy.pop(worker), _answer(worker)
                if not found:
                    undone.append(number)
                done += bool(found)
                if found is not None:
                    give(worker)
                for result in found or ():
                    yield number, result
    finally:
        for process in processes:
            process.kill()
        for process in processes:
            process.join()
    for number in sorted(undone) + waiting[::-1]:
        if begun is not None:
            begun(number, done)
        yield number, work(number)
        done += 1


@contextlib.contextmanager
def beside(work: Callable[[], T], workers: int) -> Iterator[Callable[[], T]]:
    """Has ``work`` done by a forked process meanwhile, as `side_by_side` does with several pieces.

    Args:
        workers: processes that there may be; fewer than two, and systems other than Linux, do it in this one.

    Yields:
        what gives the result, when it is there.
    """
    if workers < 2 or sys.platform != "linux":
        yield work
        return
    try:
        process, worker = _forked(lambda _: work())
    except OSError:  # no more processes
        yield work
        return

    def result() -> T:
        found = _answer(worker)
        return found[0] if found else work()

    try:
        with contextlib.suppress(OSError):  # it has been killed, as its answer will say
            worker.send(0)
        yield result
    finally:
        process.kill()
        process.join()


def _forked(work: Callable[[int], Any]) -> tuple[BaseProcess, Connection]:
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(work, theirs), daemon=True)
    with end_with_this_process(), without_tokenizers_threads():
        process.start()
    theirs.close()  # or the end of the process could not be seen
    return process, ours


def _answer(worker: Connection) -> tuple[Any, ...] | None:
    """A result, () where the work has raised, None where the process has ended."""
    try:
        found, said = worker.recv()
    except (EOFError, OSError):
        return None
    for record in said:
        logging.getLogger(record.name).handle(record)
    result: tuple[Any, ...] = found
    return result


class _Said(QueueHandler):
    """Keeps messages for the parent, which alone owns the terminal."""

    def __init__(self) -> None:
        super().__init__(queue.SimpleQueue())
        self.records = list[logging.LogRecord]()

    def enqueue(self, record: logging.LogRecord) -> None:
        self.records.append(record)


def _serve(work: Callable[[int], Any], parent: Connection) -> None:
    # an interruption of a whole process group is for the parent, which ends this one
    for number, action in ((signal.SIGINT, signal.SIG_IGN), (signal.SIGTERM, signal.SIG_DFL)):
        signal.signal(number, action)
    gc.freeze()  # a collection would touch, and so copy, all that is shared with the parent
    if (torch := sys.modules.get("torch")) is not None:
        torch.set_num_threads(1)  # each has a core, and the threads of the parent's pools are not here
    said, logger = _Said(), logging.getLogger("nemo_xtoken")
    logger.handlers, logger.propagate = [said], False
    while True:
        piece = parent.recv()
        said.records.clear()
        try:
            parent.send(((work(piece),), said.records))
        except BaseException:  # the parent does it again, and shows why
            parent.send(((), ()))
