"""What a tile of the loss is made of: operations, waits for the device, and passes over its tensors, counted on a CPU.

On a GPU each operation is a launch, and a wait (a number that Python has to know) lets the launches run dry.  A pass is
one read or write of all of [rows, columns] of either side, in float32, by what is not a matrix product.  From these
follows how long a tile takes on an H100 at the sizes of Llama-3.2-1B and Qwen3-4B, beside the products that any such
loss has to make.

Losses that sort are counted with a small cap on the values that are compared one by one, so that these tensors, and
those of the tokens that are sorted, are told from whole vocabularies; the estimates put the real sizes in.  A top-k
counts as what torch does on a GPU: a reading for each byte of a number, by which it finds the k-th, and one to collect;
so does the kernel that finds the largest logits.  Sorting 4,096 values of a row is one reading, as torch does it there.

The texts hold numerals, so that the small tokenizers of xtoken_tiny have chunks of several tokens; all of them lie in
one tile.  Of Triton's kernels, which a GPU takes, a launch counts as an operation that touches the tiles it is given;
those that compare probabilities run in Triton's interpreter, on whose results something may depend.

examples:
  python benchmarks/loss_counts.py
  python benchmarks/loss_counts.py --losses p_kl prefix_kl --kernels triton --json counts.json
  python benchmarks/loss_counts.py --student a --teacher b --sizes llama3 qwen3 --texts 1 --json loss_counts.json
"""

import importlib.util
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from bench import Parser, load_pair, show_table, write_json
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from nemo_xtoken.kernels.choice import kernels_for
from nemo_xtoken.kernels.reference import TORCH
from nemo_xtoken.kernels.tile_kernels import TileKernels
from nemo_xtoken.losses.options import DivergenceOptions
from nemo_xtoken.losses.pair import VocabularyPair
from nemo_xtoken.losses.registry import loss_named, make_divergence
from nemo_xtoken.objective.cross_tokenizer import CrossTokenizerLoss
from nemo_xtoken.objective.fused_pass import FusedPass
from nemo_xtoken.objective.text_batch import TextBatch
from nemo_xtoken.parallel.vocabulary_shard import VocabularyShard
from nemo_xtoken.projection import build_projection
from nemo_xtoken.run.estimates.loss_time import FP32, LossSizes, rows_on_gpu
from nemo_xtoken.run.estimates.loss_traffic import LossTraffic, traffic_of
from nemo_xtoken.run.layout import owned_rows
from nemo_xtoken.vocab import load_vocabulary
from nemo_xtoken.vocab.vocabulary import Vocabulary

__all__ = ["HEADINGS", "LOSSES", "PARTS", "Counts", "counts_of", "row", "seconds_on_h100", "traffic_by"]

LOSSES = ("p_kl", "prefix_kl", "h_kl", "gold", "uld", "strict_1to1", "csd", "bpm")
TEXTS = [
    f"In {year} it cost {7 * year} euros; {year * 3} of them, say {year % 90 + 10}, were paid."
    for year in range(190, 206, 4)
]
#: What tensors are of: whole vocabularies, the tokens of either that are sorted, and the largest of these.
PARTS = ("student", "teacher", "student_sorted", "teacher_sorted", "largest")
CAP = 24  # values that are compared one by one
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
        columns: the parts of the loss by the columns of their tensors.
    """

    def __init__(self, columns: dict[int, str]) -> None:
        super().__init__()
        self.columns = columns
        self.operations: Counter[str] = Counter()
        self.waits: Counter[str] = Counter()
        self.touched: dict[str, float] = dict.fromkeys(PARTS, 0.0)
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
            self.touch((args, {key: x for key, x in (kwargs or {}).items() if key != "out"}, out))  # `out` is returned
        if name == "topk":  # which also writes what it has found in order
            self.touch((*[args[0]] * args[0].element_size(), out, out))
        return out

    def touch(self, found: Any) -> None:
        """Counts the tensors of the parts, in numbers of 4 bytes."""
        for tensor in _tensors(found):
            if tensor.ndim == 2 and tensor.shape[1] in self.columns:
                self.touched[self.columns[tensor.shape[1]]] += tensor.numel() * tensor.element_size() / FP32


def _tensors(found: Any) -> Iterator[Tensor]:
    if isinstance(found, Tensor):
        yield found
    elif isinstance(found, dict):
        yield from _tensors(tuple(found.values()))
    elif isinstance(found, (tuple, list)):
        for one in found:
            yield from _tensors(one)


def _count_launches(kernels: TileKernels, mode: Counts, run: bool) -> None:
    """Lets what Triton launches count as one operation each, whatever its interpreter does for it.

    Args:
        run: the kernels run.  Those that compare logits need not: what they make is looked at by kernels alone, or
            summed, and no operation depends on it.
    """

    def counted(launch: Callable[..., None]) -> Callable[..., None]:
        def one(kernel: Any, *arguments: Any, **constants: Any) -> None:
            if mode.active:
                mode.operations[kernel.__name__] += 1
                if not kernel.__name__.startswith("leaf_"):  # those look at single elements
                    mode.touch(arguments)
                if constants.get("SEARCH"):  # a reading for each byte finds the least, the last takes all
                    mode.touch([next(_tensors(arguments))] * (constants["BITS"] // 8))
            with _disable_current_modes():
                if run:
                    launch(kernel, *arguments, **constants)

        return one

    for launcher in (kernels, kernels.pairs):
        launcher.launch = counted(launcher.launch)  # type: ignore[union-attr]


@contextmanager
def _within_tiles(mode: Counts) -> Iterator[list[int]]:
    """Counts inside of tiles alone; yields the numbers of rows of the tiles."""
    original: Callable[..., None] = FusedPass._group
    rows: list[int] = []

    def group(self: FusedPass, which: Any, gradients: Any) -> None:
        rows.extend(self.rows.rows[tile.rows].numel() for tile in which)
        with mode:
            original(self, which, gradients)

    FusedPass._group = group  # type: ignore[method-assign]
    try:
        yield rows
    finally:
        FusedPass._group = original  # type: ignore[method-assign]


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
    sorting = {"sorted_cap": CAP} if "sorted_cap" in loss_named(loss).options else {}
    made = CrossTokenizerLoss(student, teacher, loss, options=DivergenceOptions(**sorting), kernels=kernels)
    pair = VocabularyPair(student, teacher, lambda: build_projection(student, teacher))
    columns = columns_of(loss, pair)
    mode = Counts({width: part for part, width in reversed(columns.items())})  # where all are sorted: vocabularies
    if kernels.pairs is not None:
        shard = VocabularyShard(student.size, student.size)
        paired = make_divergence(loss, pair, shard, DivergenceOptions(**sorting), kernels).column_pairs()
        _count_launches(kernels, mode, run=paired is None)
    with _within_tiles(mode) as rows:
        made(batch, hidden, normal(*batch.teacher_tokens.shape, 8), weight, teacher_weight).backward()
    count = {"student": sum(rows), "teacher": int(batch.chunks[:, 4].sum())}
    return {
        "loss": loss,
        "shares": shares_of(loss, pair),
        "kernels": kernels.name,
        "tiles": len(rows),
        "operations": sum(mode.operations.values()) / len(rows),
        "waits": sum(mode.waits.values()) / len(rows),
        **{
            f"{part}_passes": mode.touched[part] / (count.get(part, len(batch.chunks)) * width)
            for part, width in columns.items()
        },
        "most": dict(mode.operations.most_common(8)),
        "waiting": dict(mode.waits),
    }


def columns_of(loss: str, pair: VocabularyPair) -> dict[str, int]:
    """Columns of the tensors of each part, on one rank."""
    found = {"student": pair.student.size, "teacher": owned_rows(pair.teacher.size, 1)}
    kind = loss_named(loss)
    if "sorted_cap" not in kind.options:
        return found
    common = kind.common_sets(pair)
    if common:
        found["student_sorted"] = int(common[0].student_outside.sum())
        found["teacher_sorted"] = int(common[0].teacher_outside.sum())
    else:  # all; of the teacher's rows some are padding
        found["teacher_sorted"] = pair.teacher.size
    return found | {"largest": CAP}


def shares_of(loss: str, pair: VocabularyPair) -> list[float]:
    """Which share of the student's and of the teacher's tokens a loss sorts."""
    columns = columns_of(loss, pair)
    if "largest" in columns and "student_sorted" not in columns:  # all, which are counted with the vocabularies
        return [1.0, 1.0]
    return [columns.get(f"{side}_sorted", 0) / columns[side] for side in ("student", "teacher")]


def bytes_of(counts: dict[str, Any]) -> float:
    """What 4,096 positions read and write beside the products, at the sizes of Llama-3.2-1B and Qwen3-4B."""
    sizes = LossSizes(
        rows=POSITIONS,
        teacher_rows=1.05 * POSITIONS,
        chunks=0.95 * POSITIONS,
        positions=POSITIONS,
        student_hidden=STUDENT[1],
        teacher_hidden=TEACHER[1],
        student_columns=STUDENT[0],
        teacher_columns=TEACHER[0],
        tp=1,
        crossing=0.0,
        traffic=traffic_by(counts),
    )
    return sizes.touched


def traffic_by(counts: dict[str, Any]) -> LossTraffic:
    """The same as the estimates have it; passes are rounded to a tenth, shares to a thousandth."""
    passes = {part: round(counts.get(f"{part}_passes", 0.0), 1) for part in PARTS}
    student, teacher = (round(share, 3) for share in counts["shares"])
    return replace(traffic_of(counts["loss"]), **passes, sorted_shares=(student, teacher))


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


HEADINGS = (
    "loss",
    "kernels",
    "operations a tile",
    "waits",
    "passes, student",
    "passes, teacher",
    "of the sorted",
    "GB of 4,096",
    "ms of 4,096",
    "of products",
)


def row(result: dict[str, Any]) -> list[str]:
    """Its line in a table."""
    whole, products = seconds_on_h100(result)
    by = traffic_by(result)
    return [
        result["loss"],
        result["kernels"],
        *(f"{result[name]:.0f}" for name in ("operations", "waits")),
        *(f"{passes:.1f}" for passes in (by.student, by.teacher)),
        f"{by.student_sorted:.0f}, {by.teacher_sorted:.0f}" if by.teacher_sorted else "",
        f"{bytes_of(result) / 1e9:.0f}",
        f"{1000 * whole:.0f}",
        f"{whole / products:.1f}",
    ]


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
    parser.add_argument("--texts", type=int, default=len(TEXTS), help="how many (default: %(default)s)")
    parser.add_argument("--sizes", nargs=2, metavar="TOKENIZER", help="of which pair the shares that are sorted are")
    parser.add_output()
    given = parser.parse_args(arguments)
    pair = load_pair(given)
    results = []
    for name in given.kernels:
        for loss in given.losses:
            results.append(counts_of(loss, *pair, TEXTS[: given.texts], _kernels(name)))
            print(f"{loss} by {name} is counted", flush=True)
    if given.sizes:
        sizes = [load_vocabulary(name) for name in given.sizes]
        large = VocabularyPair(*sizes, partial(build_projection, *sizes))
        for result in results:
            result["shares"] = shares_of(result["loss"], large)
    show_table("The loss, counted", HEADINGS, map(row, results), words=(0, 1))
    write_json(given.json, {"results": results})


if __name__ == "__main__":
    main(sys.argv[1:])
