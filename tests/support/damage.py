"""Files whose bytes change after they were written."""

import json
from pathlib import Path

__all__ = ["flip_first_bit"]


def flip_first_bit(path: Path, tensor: str) -> None:
    """In a safetensors file, the first bit of a tensor's data."""
    data = bytearray(path.read_bytes())
    begin = 8 + int.from_bytes(data[:8], "little")
    data[begin + json.loads(data[8:begin])[tensor]["data_offsets"][0]] ^= 1
    path.write_bytes(data)
