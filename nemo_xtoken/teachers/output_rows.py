"""The output layer of a teacher that no process of the run has: its rows are read from the checkpoint."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from nemo_xtoken.errors import InputError
from nemo_xtoken.files import tensor_places
from nemo_xtoken.parallel.ownership import PIECE_BYTES, Ownership
from nemo_xtoken.weights.language_model import language_tensors

__all__ = ["MegatronRows", "OutputRows", "SafetensorsRows", "spread_output_rows"]

#: By the end of their names, in Megatron's checkpoints and in Hugging Face's.
OUTPUT, EMBEDDING = "output_layer.weight", "embedding.word_embeddings.weight"
HF_OUTPUT, HF_EMBEDDING = "lm_head.weight", "embed_tokens.weight"


class OutputRows(Protocol):
    """An output layer in a checkpoint; cheap to make, and the same on all ranks.

    Attributes:
        width: H.
        bounds: first row and end of each block that is read at once, in order.
    """

    width: int
    bounds: Sequence[tuple[int, int]]

    def read(self, block: int) -> Tensor:
        """``[end - first, H]`` of a block, on the CPU."""
        ...


class MegatronRows:
    """Of a checkpoint in torch's distributed format, as NeMo 2 and Megatron-Bridge write it.

    Args:
        folder: with ``.metadata``.
        tied: the output layer is the embedding.

    Raises:
        InputError: there is no such checkpoint, or no such layer in it.
    """

    def __init__(self, folder: Path, tied: bool) -> None:
        from torch.distributed.checkpoint.filesystem import FileSystemReader

        self._folder = folder
        wanted = EMBEDDING if tied else OUTPUT
        try:
            self._reader = FileSystemReader(folder)
            self._metadata = self._reader.read_metadata()
            found: dict[str, Any] = self._metadata.state_dict_metadata
            (self._name,) = (n for n in found if n.endswith(wanted) and not n.startswith("optimizer"))
            self._tensor: Any = found[self._name]
            _, self.width = map(int, self._tensor.size)
        except (OSError, ValueError, RuntimeError) as error:
            raise _no_layer(folder, wanted, error) from error
        self._chunks = sorted(self._tensor.chunks, key=lambda chunk: tuple(chunk.offsets))
        self.bounds: Sequence[tuple[int, int]] = [
            (int(c.offsets[0]), int(c.offsets[0] + c.sizes[0])) for c in self._chunks
        ]
        if any(int(chunk.offsets[1]) or int(chunk.sizes[1]) != self.width for chunk in self._chunks):
            raise _no_layer(folder, wanted, "its rows are cut")

    def read(self, block: int) -> Tensor:
        """See `OutputRows`: one of the tensors that the checkpoint has the layer in."""
        from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
        from torch.distributed.checkpoint.metadata import Metadata
        from torch.distributed.checkpoint.planner import LoadPlan
        from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list

        chunk = self._chunks[block]
        first, end = self.bounds[block]
        out = torch.empty(end - first, self.width, dtype=self._tensor.properties.dtype)

        class Planner(DefaultLoadPlanner):
            """Puts what is read into ``out``."""

            def resolve_tensor(self, item: Any) -> Tensor:
                part: Tensor = out
                for axis, (start, size) in enumerate(zip(item.dest_offsets, item.lengths, strict=True)):
                    part = part.narrow(axis, start, size)
                return part

            def commit_tensor(self, item: Any, tensor: Tensor) -> None:
                pass

        items = create_read_items_for_chunk_list(self._name, self._tensor, [chunk])
        metadata: Metadata = self._metadata
        self._reader.set_up_storage_reader(metadata, is_coordinator=True)
        self._reader.read_data(LoadPlan(items), Planner()).wait()
        return out


class SafetensorsRows:
    """Of files in Hugging Face's format; of a model of several kinds of input, its language model's.

    Args:
        files: ``*.safetensors`` of one model.
        tied: the output layer is the embedding.

    Raises:
        InputError: no file has such a layer.
    """

    def __init__(self, files: Sequence[Path], tied: bool) -> None:
        wanted = HF_EMBEDDING if tied else HF_OUTPUT
        try:
            places = [(f, n, place) for f in files for n, place in tensor_places(f)[0].items()]
            own = set(language_tensors(name for _, name, _ in places).values())
            found = [(f, n, place) for f, n, place in places if n in own and n.endswith(wanted)]
            ((self._file, self._name, place),) = found
            rows, self.width = place.shape
        except (OSError, ValueError) as error:
            raise _no_layer(files[0].parent if files else Path(), wanted, error) from error
        step = max(1, PIECE_BYTES // max(1, (place.end - place.begin) // max(1, rows)))
        self.bounds: Sequence[tuple[int, int]] = [(first, min(first + step, rows)) for first in range(0, rows, step)]

    def read(self, block: int) -> Tensor:
        """See `OutputRows`."""
        from safetensors import safe_open

        first, end = self.bounds[block]
        with safe_open(self._file, framework="pt") as file:
            out: Tensor = file.get_slice(self._name)[first:end]
        return out


def _no_layer(folder: Path, wanted: str, error: object) -> InputError:
    return InputError(
        f"no output layer {wanted!r} of the teacher in {folder} ({error})",
        "the checkpoint that its states were made by",
        "correct the path of the teacher",
    )


@torch.no_grad()
def spread_output_rows(
    source: OutputRows, ownerships: Sequence[Ownership], dtype: torch.dtype, device: Any, label: str
) -> list[Tensor]:
    """This rank's rows of a layer in each of some orders.

    The first of all processes reads the checkpoint, block by block.

    Args:
        source: the layer.
        ownerships: the orders that this rank wants; none: it only takes part.
        dtype, device: of the result.
        label: what messages call the teacher.

    Returns:
        ``[ownership.shard.rows, H]`` for each; padding rows are 0.  Collectives, over all processes: a broadcast of
        each block in pieces of 64 MiB.

    Raises:
        InputError: the layer has fewer rows than the vocabulary.
    """
    several = dist.is_initialized() and dist.get_world_size() > 1
    reads = not several or dist.get_rank() == 0
    shards = [ownership.shard for ownership in ownerships]
    rows = source.bounds[-1][1]
    for shard in shards:
        if rows < shard.size:
            raise InputError(
                f"an output layer of {rows} rows of the {label}, whose tokenizer has {shard.size} tokens",
                "at least one row for each token",
                "give the teacher the tokenizer that it was trained with",
            )
    wanted = [
        torch.from_numpy(ownership.order[shard.start : shard.start + shard.valid_rows]).to(device)
        for ownership, shard in zip(ownerships, shards, strict=True)
    ]
    out = [torch.zeros(shard.rows, source.width, dtype=dtype, device=device) for shard in shards]
    step = max(1, PIECE_BYTES // (source.width * dtype.itemsize))
    for number, (first, end) in enumerate(source.bounds):
        block = source.read(number) if reads else None
        for start in range(first, end, step):
            stop = min(start + step, end)
            if block is None:
                piece = torch.empty(stop - start, source.width, dtype=dtype, device=device)
            else:
                piece = block[start - first : stop - first].to(device, dtype).contiguous()
            if several:
                dist.broadcast(piece, src=0)
            for tokens, target in zip(wanted, out, strict=True):
                local = tokens - start
                mine = torch.nonzero((local >= 0) & (local < stop - start)).squeeze(1)
                target[mine] = piece[local[mine]]
    return out
