"""Each loss and its gradients on the device, by each set of kernels, against float64 on the CPU."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from nemo_xtoken.kernels.reference import TORCH
from nemo_xtoken.kernels.tile_kernels import TileKernels

from .made_pair import made_pair
from .problem import Found, MicroBatch, pair_of

__all__ = ["values"]

#: Off by at most so much: of the value, and of the gradients' norms.  Hidden states, weights and the logits' gradient
#: are rounded to bfloat16 before a product; its sums are in float32.
MOST = {torch.float32: (1e-5, 1e-4), torch.bfloat16: (1e-5, 1e-2)}


def values(
    sizes: Sequence[int], positions: int, hidden: Sequence[int], device: str, kernels: Sequence[TileKernels]
) -> Iterator[dict[str, Any]]:
    """A row for each loss, type and set of kernels: how far it is off, and whether that is little enough."""
    student, teacher = made_pair(*sizes)
    for pair, names in ((pair_of(student, teacher), None), (pair_of(student, student), ["same_tokenizer"])):
        for dtype, (most_value, most_gradient) in MOST.items():
            batch = MicroBatch(pair, positions, hidden, dtype, device)
            for name in names or batch.losses():
                wanted = batch.loss(name, TORCH, torch.float64, "cpu")()
                for chosen in kernels:
                    off = _off(batch.loss(name, chosen)(), wanted)
                    good = off["value"] <= most_value and max(off["hidden"], off["weight"]) <= most_gradient
                    yield {"loss": name, "dtype": str(dtype)[6:], "kernels": chosen.name, **off, "good": good}


def _off(found: Found, wanted: Found) -> dict[str, float]:
    """Relative distances; not a number where the device's is none."""

    def relative(a: Tensor, b: Tensor) -> float:
        return float((a.cpu().double() - b).norm() / b.norm())

    return {part: relative(getattr(found, part), getattr(wanted, part)) for part in ("value", "hidden", "weight")}
