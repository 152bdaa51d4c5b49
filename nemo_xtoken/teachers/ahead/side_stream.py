"""Work beside the current CUDA stream: what waits for what, and which memory crosses.  No call waits on the host."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

__all__ = ["SideStream"]


class SideStream:
    """A stream of its own.  On a CPU there is none, and the same calls come in the same order.

    Args:
        cuda: what has ``Stream``, ``current_stream`` and ``stream``, as ``torch.cuda``; None: there are no streams.
    """

    def __init__(self, cuda: Any) -> None:
        self._cuda, self.stream = cuda, None if cuda is None else cuda.Stream()

    @classmethod
    def here(cls) -> "SideStream":
        """One on this rank's device."""
        on_gpu = torch.empty(0, device=torch.cuda.current_device()).is_cuda
        return cls(torch.cuda if on_gpu else None)

    @contextmanager
    def beside(self, given: Iterable[Tensor]) -> Iterator[None]:
        """Inside, work goes to this stream, after all that the current one has been given so far.

        Args:
            given: tensors of the current stream that the work reads: their memory is not reused before it is done.
        """
        if self.stream is None:
            yield
            return
        self.stream.wait_stream(self._cuda.current_stream())
        for tensor in given:
            tensor.record_stream(self.stream)
        with self._cuda.stream(self.stream):
            yield

    def join(self, taken: Iterable[Tensor] = ()) -> None:
        """What the current stream is given from here on comes after all that this one has been given.

        Args:
            taken: tensors of this stream that the current one reads.
        """
        if self.stream is None:
            return
        current = self._cuda.current_stream()
        current.wait_stream(self.stream)
        for tensor in taken:
            tensor.record_stream(current)
