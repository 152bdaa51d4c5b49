"""What a tile of the loss is made of: operations, waits for the device, and passes over its tensors, counted on a CPU.

On a GPU each operation is a launch, and a wait (a number that Python has to know) lets the launches run dry.  A pass is
one read or write of all of [rows, columns] of either side by what is not a matrix product.  From these follows how long
a tile takes on an H100 at the sizes of Llama-3.2-1B and Qwen3-4B, beside the products that any such loss has to make.

The texts hold numerals, so that the small tokenizers of xtoken_tiny have chunks of several tokens; all of them lie in
one tile.  Triton's kernels, which a GPU takes, run in Triton's interpreter here; a launch of one counts as an operation
that touches the tiles it is given.

examples:
  python benchmarks/loss_counts.py
  python benchmarks/loss_counts.py --losses p_kl prefix_kl --kernels triton --json counts.json
"""

import importlib.util
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from bench import Parser, load_pair, show_table, write_json
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from nemo_xtoken.kernels.choice import kernels_for
from nemo_xtoken.kernels.reference import TORCH
from nemo_xtoken.kernels.tile_kernels import TileKernels
from nemo_xtoken.objective.cross_tokenizer import CrossTokenizerLoss
from nemo_xtoken.objective.fused_pass import FusedPass
from nemo_xtoken.objective.text_batch import TextBatch
from nemo_xtoken.run.estimates.loss_time import FP32, rows_on_gpu
from nemo_xtoken.run.layout import owned_rows
from nemo_xtoken.vocab.vocabulary import Vocabulary

__all__ = ["LOSSES", "Counts", "counts_of", "seconds_on_h100"]

LOSSES = ("p_kl", "prefix_kl", "h_kl", "gold", "uld", "strict_1to1")
TEXTS = [
    f"In {year} it cost {7 * year} euros; {year * 3} of them, say {year % 90 + 10}, were paid."
    for year in range(190, 206, 4)
]
#: Operations whose result Python has to look at, or whose size follows from the data.
WAITS = (
    "_local_scalar_dense",
    "nonzero",
    "masked_select",
    "_unique2",
    "unique_dim",
    "unique_consecutive",
    "equal",
    "bincount",
)
PRODUCTS = ("mm", "addmm", "addmm_", "bmm")
NOTHING = ("promote_types", "empty", "empty_like", "new_empty", "empty_strided", "detach", "lift_fresh")

STUDENT, TEACHER = (128_256, 2048), (151_680, 2560)
POSITIONS, MEMORY, PRODUCTS_A_SECOND = 4096, 3.35e12 * 0.8, 650e12
LAUNCH, WAIT = 5e-6, 20e-6


class Counts(TorchDispatchMode):
    """Counts what runs while it is active.

    Args:
        student_columns, teacher_columns: which tensors are of a side.
    """

    def __init__(self, student_columns: int, teacher_columns: int) -> None:
        super().__init__()
        self.columns = {student_columns: "student", teacher_columns: "teacher"}
        self.operations: Counter[str] = Counter()
        self.waits: Counter[str] = Counter()
        self.touched: Counter[str] = Counter()
        self.active = False

    def __enter__(self) -> "Counts":
        self.active = True
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self.active = False
        super().__exit__(*error)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.name().removeprefix("aten::").partition(".")[0]
        if func.is_view or name in NOTHING:
            return out
        self.operations[name] += 1
        if name in WAITS or (name == "repeat_interleave" and (kwargs or {}).get("output_size") is None):
            self.waits[name] += 1
        if name == "index":  # single elements, or rows: read and written
            self.touch((out, out))
        elif name == "index_put_":
            self.touch(args[2])
        elif name not in PRODUCTS:
            self.touch((args, kwargs or {}, out))
        return out

    def touch(self, found: Any) -> None:
        """Counts the tensors of a side."""
        for tensor in _tensors(found):
            if tensor.ndim == 2 and tensor.shape[1] in self.columns:
                self.touched[self.columns[tensor.shape[1]]] += tensor.numel()


def _tensors(found: Any) -> Iterator[Tensor]:
    if isinstance(found, Tensor):
        yield found
    elif isinstance(found, dict):
        yield from _tensors(tuple(found.values()))
    elif isinstance(found, (tuple, list)):
        for one in found:
            yield from _tensors(one)


def _count_launches(kernels: TileKernels, mode: Counts) -> None:
    """Lets what Triton launches count as one operation each, whatever its interpreter does for it."""

    def counted(launch: Callable[..., None]) -> Callable[..., None]:
        def one(kernel: Any, *arguments: Any, **constants: Any) -> None:
            if mode.active:
                mode.operations[kernel.__name__] += 1
                mode.touch(arguments)
            with _disable_current_modes():
                launch(kernel, *arguments, **constants)

        return one

    for launcher in (kernels, kernels.pairs):
        launcher.launch = counted(launcher.launch)  # type: ignore[union-attr]


@contextmanager
def _within_tiles(mode: Counts) -> Iterator[list[int]]:
    """Counts inside of tiles alone; yields the numbers of rows of the tiles."""
    original: Callable[..., None] = FusedPass._tile
    rows: list[int] = []

    def tile(self: FusedPass, which: Any, gradients: Any) -> None:
        rows.append(self.rows.rows[which.rows].numel())
        with mode:
            original(self, which, gradients)

    FusedPass._tile = tile  # type: ignore[method-assign]
    try:
        yield rows
    finally:
        FusedPass._tile = original  # type: ignore[method-assign]


def counts_of(
    loss: str,
    student: Vocabulary,
    teacher: Vocabulary,
    texts: list[str] | None = None,
    kernels: TileKernels = TORCH,
) -> dict[str, Any]:
    """Operations, waits and passes of a tile of a loss, forward and backward.

    Args:
        kernels: Triton's are changed so as to count, and are of no other use afterwards.
    """
    random = torch.Generator().manual_seed(0)
    normal = lambda *shape: torch.randn(*shape, generator=random)  # noqa: E731
    batch = TextBatch.of(texts or TEXTS, student, teacher)
    weight, teacher_weight = normal(student.size, 8).requires_grad_(), normal(teacher.size, 8)
    hidden = normal(*batch.student_tokens.shape, 8).requires_grad_()
    made = CrossTokenizerLoss(student, teacher, loss, kernels=kernels)
    teacher_rows = owned_rows(teacher.size, 1)
    mode = Counts(student.size, teacher_rows)
    if kernels.pairs is not None:
        _count_launches(kernels, mode)
    with _within_tiles(mode) as rows:
        made(batch, hidden, normal(*batch.teacher_tokens.shape, 8), weight, teacher_weight).backward()
    taught = int(batch.chunks[:, 4].sum())
    return {
        "loss": loss,
        "kernels": kernels.name,
        "tiles": len(rows),
        "operations": sum(mode.operations.values()) / len(rows),
        "waits": sum(mode.waits.values()) / len(rows),
        "student_passes": mode.touched["student"] / (sum(rows) * student.size),
        "teacher_passes": mode.touched["teacher"] / (taught * teacher_rows),
        "most": dict(mode.operations.most_common(8)),
        "waiting": dict(mode.waits),
    }


def bytes_of(counts: dict[str, Any]) -> float:
    """What 4,096 positions read and write beside the products, at the sizes of Llama-3.2-1B and Qwen3-4B."""
    columns = counts["student_passes"] * STUDENT[0] + 1.05 * counts["teacher_passes"] * TEACHER[0]
    return float(FP32 * POSITIONS * columns)


def seconds_on_h100(counts: dict[str, Any]) -> tuple[float, float]:
    """``(the loss, its products)`` of 4,096 positions in bf16 with float32 logits, as a roofline; nothing overlaps."""
    (v_s, h_s), (v_t, h_t) = STUDENT, TEACHER
    tiles = -(-POSITIONS // rows_on_gpu(v_s, v_t))
    products = 2 * POSITIONS * (3 * v_s * h_s + 1.05 * v_t * h_t) / PRODUCTS_A_SECOND
    elements = bytes_of(counts) / MEMORY
    return products + elements + tiles * (counts["operations"] * LAUNCH + counts["waits"] * WAIT), products


def _kernels(name: str) -> TileKernels:
    """Those of that name, Triton's in its interpreter; where `make install` puts Triton beside a torch without it."""
    if name == "triton" and importlib.util.find_spec("triton") is None:
        sys.path.append(str(Path(sys.prefix) / "triton"))
    os.environ.setdefault("TRITON_INTERPRET", "1")
    return kernels_for(name, cuda=False)


def main(arguments: list[str]) -> None:
    """Prints the table."""
    parser = Parser(__doc__)
    parser.add_pair()
    parser.add_argument(
        "--losses", nargs="+", default=list(LOSSES), metavar="LOSS", help="which (default: %(default)s)"
    )
    parser.add_argument(
        "--kernels", nargs="+", default=["torch", "triton"], choices=("torch", "triton"), help="which (default: both)"
    )
    parser.add_output()
    given = parser.parse_args(arguments)
    pair = load_pair(given)
    results = [counts_of(loss, *pair, kernels=_kernels(name)) for name in given.kernels for loss in given.losses]
    lines = []
    for result in results:
        whole, products = seconds_on_h100(result)
        numbers = [f"{result[name]:.0f}" for name in ("operations", "waits")]
        numbers += [f"{result[name]:.1f}" for name in ("student_passes", "teacher_passes")]
        numbers.append(f"{bytes_of(result) / 1e9:.0f}")
        lines.append([result["loss"], result["kernels"], *numbers, f"{1000 * whole:.0f}", f"{whole / products:.1f}"])
    headings = (
        "loss",
        "kernels",
        "operations a tile",
        "waits",
        "passes, student",
        "passes, teacher",
        "GB of 4,096",
        "ms of 4,096 on H100",
        "of products",
    )
    show_table("The loss, counted", headings, lines, words=(0, 1))
    write_json(given.json, {"results": results})


if __name__ == "__main__":
    main(sys.argv[1:])
