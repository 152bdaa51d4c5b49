"""Writing a model's weights as transformers does: one safetensors file, or several and an index."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

from nemo_xtoken.files import atomic_path
from nemo_xtoken.weights.folder import INDEX, WEIGHTS
from nemo_xtoken.weights.safetensors_file import Entry, write_safetensors

__all__ = ["adding_up", "save_weights"]

SHARD_BYTES = 5 * 10**9


def save_weights(
    folder: Path,
    entries: Mapping[str, Entry],
    shard_bytes: int = SHARD_BYTES,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Writes the tensors in their order.

    Args:
        shard_bytes: a file gets no more, unless a single tensor is larger.
        progress: called with (bytes written, bytes in all).
    """
    shards: list[dict[str, Entry]] = [{}]
    size = 0
    for name, entry in entries.items():
        if shards[-1] and size + entry.size > shard_bytes:
            shards.append({})
            size = 0
        shards[-1][name] = entry
        size += entry.size
    total = sum(entry.size for entry in entries.values())
    advance = adding_up(total, progress)
    count = len(shards)
    names = [WEIGHTS] if count == 1 else [f"model-{i + 1:05}-of-{count:05}.safetensors" for i in range(count)]
    for name, shard in zip(names, shards, strict=True):
        write_safetensors(folder / name, shard, {"format": "pt"}, advance)
    if count > 1:
        where = {tensor: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
        with atomic_path(folder / INDEX) as temporary:
            temporary.write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": where}, indent=2))


def adding_up(total: int, progress: Callable[[int, int], None] | None) -> Callable[[int], None]:
    """What is told of each so many bytes, and tells ``progress`` how many they are by then, and the total."""
    done = 0

    def advance(number: int) -> None:
        nonlocal done
        done += number
        if progress is not None:
            progress(done, total)

    return advance
