"""How states are written as bytes: as they are, in bf16, in 8 bits with a scale for each token, or as samples."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from nemo_xtoken.errors import InputError
from nemo_xtoken.teachers.source_settings import FORMAT_BYTES

__all__ = ["StateFormat", "Stored", "format_for"]

#: The largest number of float8_e4m3fn.
LARGEST = 448.0
#: int64 ``[65536]``: for the bytes of two 8-bit numbers those of the same in float32.
_PAIRS = torch.arange(1 << 16).to(torch.uint16).view(torch.float8_e4m3fn).float().numpy().view(np.int64)


@dataclass(frozen=True)
class Stored:
    """States as they are stored.

    Attributes:
        values: ``[n, columns]``.
        scales: float32 ``[n]``, what each row is multiplied by; None: there are none.
    """

    values: Tensor
    scales: Tensor | None = None


@dataclass(frozen=True)
class StateFormat:
    """One way.

    Attributes:
        name: in settings and headers.
        dtype: of what is stored.
        kind: that type's name in safetensors files.
    """

    name: str
    dtype: torch.dtype
    kind: str

    @property
    def scaled(self) -> bool:
        """Whether each row has a scale."""
        return self.name == "fp8"

    @property
    def sampled(self) -> bool:
        """Whether it has samples of the next token, and no states."""
        return False

    def columns(self, hidden_size: int) -> int:
        """Numbers of a token."""
        return hidden_size

    def row_bytes(self, hidden_size: int) -> int:
        """Bytes of a token."""
        of_width, beside = FORMAT_BYTES[self.name]
        return of_width * hidden_size + beside

    def exact_for(self, dtype: torch.dtype) -> bool:
        """Whether states of this type come back bit by bit."""
        return not (self.scaled or self.sampled) and torch.promote_types(self.dtype, dtype) == self.dtype

    def encode(self, states: Tensor) -> Stored:
        """``states [n, H]`` of any float type, on the CPU."""
        if not self.scaled:
            return Stored(states.to("cpu", self.dtype))
        wide = states.to("cpu", torch.float32)
        scales = wide.abs().amax(dim=1) / LARGEST
        scales = torch.where(scales > 0, scales, torch.ones_like(scales))
        return Stored((wide / scales[:, None]).to(self.dtype), scales)

    def decode(self, stored: Stored, dtype: torch.dtype) -> Tensor:
        """``[n, H]`` of a type."""
        if stored.scales is None:
            return stored.values.to(dtype)
        return _widened(stored.values).mul_(stored.scales[:, None]).to(dtype)


class SampledFormat(StateFormat):
    """Sampled rows (`sampled_rows`): 3 bytes for each token id, 4 for the log-probability."""

    @property
    def sampled(self) -> bool:
        """See `StateFormat`."""
        return True

    def columns(self, hidden_size: int) -> int:
        """See `StateFormat`."""
        return self.row_bytes(hidden_size)

    def encode(self, states: Tensor) -> Stored:
        """``states`` float32 ``[n, SAMPLES + 2]``."""
        rows = states.to("cpu", torch.float32)
        ids = rows[:, :-1].to(torch.int32).unsqueeze(2).view(torch.uint8)[:, :, :3]  # the lowest bytes come first
        return Stored(torch.cat([ids.flatten(1), rows[:, -1:].contiguous().view(torch.uint8)], 1))

    def decode(self, stored: Stored, dtype: torch.dtype) -> Tensor:
        """Float32 ``[n, SAMPLES + 2]``, whatever the type that is asked for."""
        values = stored.values
        ids = values[:, :-4].unflatten(1, (-1, 3)).to(torch.int32)
        numbers = ids[:, :, 0] + (ids[:, :, 1] << 8) + (ids[:, :, 2] << 16)
        log_p = torch.from_numpy(values[:, -4:].numpy().copy().view(np.float32))
        return torch.cat([numbers.float(), log_p], 1)


def _widened(values: Tensor) -> Tensor:
    """float32, of 8-bit numbers ``[n, H]``: two at a time by a table, five times as fast as torch's conversion."""
    if values.shape[1] % 2:
        return values.float()
    pairs = values.contiguous().view(torch.uint8).numpy().view(np.uint16)
    return torch.from_numpy(_PAIRS.take(pairs, mode="clip").view(np.float32))


_FORMATS = {
    one.name: one
    for one in (
        SampledFormat("sampled", torch.uint8, "U8"),
        StateFormat("bf16", torch.bfloat16, "BF16"),
        StateFormat("fp32", torch.float32, "F32"),
        StateFormat("fp8", torch.float8_e4m3fn, "F8_E4M3"),
    )
}


def format_for(name: str | None, dtype: str) -> StateFormat:
    """The format of that name; None: the one that keeps states of this type as they are.

    Args:
        dtype: as torch names it, of the states: ``bfloat16``.

    Raises:
        InputError: there is none.
    """
    if name is None:
        name = {"bfloat16": "bf16", "float32": "fp32"}.get(dtype, "")
    if name not in _FORMATS:
        raise InputError(
            f"states of type {dtype}, in the format {name!r}",
            f"one of {', '.join(_FORMATS)}",
            "train in bf16 or float32, or set the cache's format",
        )
    return _FORMATS[name]
