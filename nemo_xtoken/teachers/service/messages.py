"""Messages between students and replicas: a small JSON header, and tensors as raw frames behind it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["MAX_HEADER", "PROTOCOL", "BadMessage", "Message", "raw", "tensor_of"]

#: Both sides must have this one.
PROTOCOL = 1
MAX_HEADER = 2**20
_DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32, "int32": torch.int32}


class BadMessage(ValueError):
    """What arrived is no message of this protocol, or larger than it may be."""


@dataclass(frozen=True)
class Message:
    """One message.

    Attributes:
        kind: what it is: ``hello``, ``welcome``, ``refused``, ``ask``, ``states``, ``failed``, ``ping``, ``pong``.
        values: of its header.
        frames: tensors as bytes, in the order that the kind says.
    """

    kind: str
    values: Mapping[str, Any] = field(default_factory=dict)
    frames: Sequence[Any] = ()

    def parts(self) -> list[Any]:
        """As ZeroMQ sends them."""
        header = json.dumps({"protocol": PROTOCOL, "kind": self.kind, **self.values}).encode()
        return [header, *self.frames]

    @classmethod
    def of(cls, parts: Sequence[Any], most_frames: int = 1) -> "Message":
        """What has arrived.

        Raises:
            BadMessage: it is none.
        """
        if not parts or len(parts) > 1 + most_frames or len(parts[0]) > MAX_HEADER:
            raise BadMessage(f"{len(parts)} parts, of which the first has {len(parts[0]) if parts else 0} bytes")
        try:
            values = json.loads(bytes(parts[0]))
            kind = values.pop("kind")
            protocol = values.pop("protocol")
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise BadMessage(f"a header that cannot be read ({type(error).__name__})") from error
        if not isinstance(kind, str):
            raise BadMessage("a kind that is no text")
        if protocol != PROTOCOL:
            raise BadMessage(f"protocol {protocol!r} where {PROTOCOL} is spoken")
        return cls(kind, values, list(parts[1:]))


def raw(tensor: Tensor) -> memoryview:
    """The bytes of a tensor on the CPU; not copied where it is contiguous."""
    content: np.ndarray = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy()
    return content.data


def tensor_of(frame: Any, dtype: str, shape: Sequence[int]) -> Tensor:
    """A frame as a tensor, over the same memory.

    Args:
        frame: as it arrived.
        dtype, shape: what it has to be.

    Raises:
        BadMessage: it has another size.
    """
    if dtype not in _DTYPES:
        raise BadMessage(f"a tensor of type {dtype!r}")
    wanted, size = _DTYPES[dtype], 1
    for n in shape:
        size *= n
    content = memoryview(frame).cast("B")
    if len(content) != size * wanted.itemsize:
        raise BadMessage(f"a frame of {len(content)} bytes for {list(shape)} of {dtype}")
    if not size:
        return torch.empty(tuple(shape), dtype=wanted)
    return torch.frombuffer(bytearray(content), dtype=wanted).view(tuple(shape))
