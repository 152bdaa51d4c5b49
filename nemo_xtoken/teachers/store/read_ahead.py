"""A thread that reads what will be wanted while the student computes."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable

from torch import Tensor

__all__ = ["ReadAhead"]


class ReadAhead:
    """Readings in the order in which they are asked for, each once, on a thread of their own.

    It begins with the first of them and ends with `close`.  What it has read stays until it is forgotten: whoever asks
    bounds it.

    Args:
        pinned: results are put into memory from which a GPU copies by itself, on that thread.

    Attributes:
        lock: held by every reading; for whoever changes what they read with.
    """

    def __init__(self, pinned: bool = False) -> None:
        self.lock = threading.Lock()
        self._pinned = pinned
        self._change = threading.Condition()
        self._coming: OrderedDict[Hashable, Callable[[], Tensor]] = OrderedDict()
        self._found: dict[Hashable, Tensor | BaseException] = {}
        self._wanted: set[Hashable] = set()
        self._ended = False
        self._thread: threading.Thread | None = None

    def wants(self, key: Hashable) -> bool:
        """Whether it has been asked for, and not forgotten."""
        with self._change:
            return key in self._wanted

    def want(self, key: Hashable, reading: Callable[[], Tensor], at_once: bool = False) -> None:
        """Asks for a reading, unless it is asked for or there.

        Args:
            reading: called on the thread; what it raises, `get` raises.
            at_once: before those that wait.
        """
        with self._change:
            if key in self._wanted:
                return
            self._wanted.add(key)
            self._coming[key] = reading
            if at_once:
                self._coming.move_to_end(key, last=False)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="states ahead", daemon=True)
                self._thread.start()
            self._change.notify_all()

    def get(self, key: Hashable) -> Tensor:
        """The result of a reading that was asked for; waits for it."""
        with self._change:
            while key not in self._found:
                if self._ended or key not in self._wanted:
                    raise RuntimeError("states that nobody reads")
                self._change.wait()
            found = self._found[key]
        if isinstance(found, BaseException):
            raise found
        return found

    def forget(self, key: Hashable) -> None:
        """It is not needed any more."""
        with self._change:
            self._wanted.discard(key)
            self._coming.pop(key, None)
            self._found.pop(key, None)

    def close(self) -> None:
        """Ends the thread, after the reading that it is at."""
        with self._change:
            self._ended = True
            self._change.notify_all()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _run(self) -> None:
        while True:
            with self._change:
                while not self._coming and not self._ended:
                    self._change.wait()
                if self._ended:
                    return
                key, reading = self._coming.popitem(last=False)
            self._keep(key, self._read(reading))
            del key, reading  # else they live until the next

    def _read(self, reading: Callable[[], Tensor]) -> Tensor | BaseException:
        try:
            with self.lock:
                found = reading()
            return found.pin_memory() if self._pinned else found
        except BaseException as error:
            return error

    def _keep(self, key: Hashable, found: Tensor | BaseException) -> None:
        with self._change:
            if key in self._wanted:
                self._found[key] = found
            self._change.notify_all()
