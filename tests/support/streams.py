"""CUDA streams that are none: on a CPU they say whether what runs on them would be a race on a GPU.

Work is done when it is called, and each operator is noted with the stream that it would be on.  An operator that reads
what another stream has written, or writes what another has read, without having been made to wait for that, is a race;
memory that goes back to its stream while another may still use it is another one.
"""

import contextlib
import weakref
from collections import Counter
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = ["FakeCuda", "Stream", "Watched"]

#: Operators for whose result the host waits on a GPU.
WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "unique", "_unique2", "item", "is_nonzero")


class Stream:
    """What a stream has been given, by number, and up to which of each stream's it has waited."""

    def __init__(self, name: str, cuda: "FakeCuda") -> None:
        self.name, self.given, self.seen, self._cuda = name, 0, Counter(), cuda

    def wait_stream(self, other: "Stream") -> None:
        self._cuda.calls.append(f"{self.name} waits for {other.name}")
        for name, number in {**other.seen, other.name: other.given}.items():
            self.seen[name] = max(self.seen[name], number)

    def synchronize(self) -> None:
        self._cuda.calls.append(f"the host waits for {self.name}")
        self._cuda.waits[self.name] += 1


class FakeCuda:
    """What ``SideStream`` takes for ``torch.cuda``.

    Attributes:
        calls: between streams, in order.
        waits: of the host, by the stream that it waits for.
    """

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.waits: Counter[str] = Counter()
        self.main = self._current = Stream("main", self)
        self.streams = {"main": self.main}

    def Stream(self) -> Stream:
        made = Stream(f"side{len(self.streams)}", self)
        self.streams[made.name] = made
        return made

    def current_stream(self) -> Stream:
        return self._current

    @contextlib.contextmanager
    def stream(self, stream: Stream) -> Any:
        before, self._current = self._current, stream
        try:
            yield
        finally:
            self._current = before


class Watched(TorchDispatchMode):
    """Inside, every operator is one of the current stream's.

    Attributes:
        races: what goes wrong on a GPU, in words.
        operators: how many each stream was given.
    """

    def __init__(self, cuda: FakeCuda) -> None:
        super().__init__()
        self.cuda, self.races, self.operators = cuda, list[str](), Counter[str]()
        self._written: dict[int, tuple[str, int]] = {}
        self._read: dict[int, dict[str, int]] = {}
        self._home: dict[int, str] = {}
        self._recorded: dict[int, set[str]] = {}
        self._known: dict[int, Any] = {}
        self._host: set[int] = set()

    def in_host_memory(self, tensor: torch.Tensor) -> torch.Tensor:
        """The same tensor, which a GPU's machine has in the host's memory, as it has what follows from such alone."""
        self._host.add(self._key(tensor))
        return tensor

    def record(self, tensor: torch.Tensor, stream: Stream) -> None:
        """``Tensor.record_stream``."""
        self._recorded.setdefault(self._key(tensor), set()).add(stream.name)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        stream, name = self.cuda.current_stream(), func._schema.name.partition("::")[2]
        reads, writes = [], []
        for argument, value in zip(func._schema.arguments, args, strict=False):
            (writes if _written(argument) else reads).extend(_tensors(value))
        named = {argument.name: argument for argument in func._schema.arguments}
        for key, value in kwargs.items():
            (writes if _written(named[key]) else reads).extend(_tensors(value))
        before = {self._key(tensor) for tensor in (*reads, *writes)}
        on_host = bool(before) and before <= self._host
        if name in WAITING and not on_host:
            self.cuda.waits[stream.name] += 1
        out = func(*args, **kwargs)
        if on_host:
            self._host.update(self._key(tensor) for tensor in _tensors(out))
        if func.is_view:
            return out
        stream.given += 1
        self.operators[stream.name] += 1
        for tensor in reads:
            self._reads(tensor, stream, name)
        for tensor in writes:
            self._writes(tensor, stream, name)
        for tensor in _tensors(out):
            if self._key(tensor) not in before:
                self._writes(tensor, stream, name)
        return out

    def _reads(self, tensor: torch.Tensor, stream: Stream, name: str) -> None:
        key = self._key(tensor)
        self._after(self._written.get(key), stream, f"{name} on {stream.name} reads what {{}} writes")
        self._read.setdefault(key, {})[stream.name] = stream.given

    def _writes(self, tensor: torch.Tensor, stream: Stream, name: str) -> None:
        key = self._key(tensor)
        self._after(self._written.get(key), stream, f"{name} on {stream.name} writes what {{}} writes")
        for reader in self._read.pop(key, {}).items():
            self._after(reader, stream, f"{name} on {stream.name} writes what {{}} reads")
        self._written[key] = stream.name, stream.given

    def _after(self, other: tuple[str, int] | None, stream: Stream, what: str) -> None:
        if other is not None and other[0] != stream.name and stream.seen[other[0]] < other[1]:
            self.races.append(what.format(other[0]))

    def _key(self, tensor: torch.Tensor) -> int:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._known:
            self._known[key] = weakref.finalize(storage, self._gone, key)
            self._home[key] = self.cuda.current_stream().name  # some memory is made by no operator
        return key

    def _gone(self, key: int) -> None:
        """Freed: whoever else has used it is to be on record, or through as far as its own stream knows."""
        home = self._home.pop(key, "main")
        used = self._read.pop(key, {})
        if (written := self._written.pop(key, None)) is not None:
            used[written[0]] = max(written[1], used.get(written[0], 0))
        recorded = self._recorded.pop(key, set())
        self._known.pop(key, None)
        self._host.discard(key)
        for name, number in used.items():
            through = self.cuda.streams[home].seen[name] >= number
            if name != home and name not in recorded and not through:
                self.races.append(f"memory of {home} is freed while {name} may use it")


def _tensors(value: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, torch.Tensor)]


def _written(argument: Any) -> bool:
    return argument.alias_info is not None and argument.alias_info.is_write
