"""What a step costs on a cluster, and what part of it is the loss: FLOPs, bytes and memory of a rank, on paper.

Every term of the loss is written out below and held against counters of real runs by tests/benchmarks/test_scaling.py:
FLOPs of the matrix products exactly, bytes of the collectives exactly.  What a GPU makes of them is a roofline with the
efficiencies of `Gpu`: assumptions, to be replaced by measurements.

examples:
  python benchmarks/scaling.py
  python benchmarks/scaling.py --markdown > table.md
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from bench import Parser, wide_console, write_json

BF16, FP32 = 2, 4
GIB, MIB = 2**30, 2**20
#: Full reads or writes of a tile of [n, V/tp] float32 in the torch path, on either side.
STUDENT_PASSES, TEACHER_PASSES = 14, 16
#: Entries that a rank sends for a chunk, mean over the ranks, Llama-3 -> Qwen3 (tests/parallel/test_ownership.py).
CROSSING = {1: 0.0, 2: 1476.0, 4: 909.0, 8: 870.6}
MULTI_ENTRIES = 42_158


@dataclass(frozen=True)
class Gpu:
    """An H100: peak numbers, and the part of them that is assumed to be reached."""

    flops: float = 989e12 * 0.45
    memory_bytes: float = 3.35e12 * 0.7
    nvlink_bytes: float = 450e9 * 0.6
    capacity: float = 80 * GIB


@dataclass(frozen=True)
class Model:
    """Sizes of a decoder; ``active`` of ``experts`` feed-forward blocks work on a token (dense: 1 of 1)."""

    name: str
    layers: int
    hidden: int
    ffn: int
    heads: int
    groups: int
    head_size: int
    vocabulary: int
    tied: bool = False
    experts: int = 1
    active: int = 1

    def body(self, blocks: int) -> float:
        """Parameters of the layers with so many feed-forward blocks each."""
        attention = 2 * self.hidden * self.head_size * (self.heads + self.groups)
        return self.layers * (attention + blocks * 3 * self.hidden * self.ffn)

    @property
    def parameters(self) -> float:
        """All of them."""
        return self.body(self.experts) + (1 if self.tied else 2) * self.vocabulary * self.hidden

    def forward_flops(self, tokens: float, length: int) -> float:
        """Of the layers, without the output layer; attention over half the sequence on average."""
        attention = 2 * self.layers * self.heads * self.head_size * length
        return tokens * (2 * self.body(self.active) + attention)


LLAMA_1B = Model("Llama-3.2-1B", 16, 2048, 8192, 32, 8, 64, 128256, tied=True)
LLAMA_8B = Model("Llama-3.1-8B", 32, 4096, 14336, 32, 8, 128, 128256)
QWEN_4B = Model("Qwen3-4B", 36, 2560, 9728, 32, 8, 128, 151669, tied=True)
QWEN_14B = Model("Qwen3-14B", 40, 5120, 17408, 40, 8, 128, 151669)
QWEN_32B = Model("Qwen3-32B", 64, 5120, 25600, 64, 8, 128, 151669)
QWEN_30B_A3B = Model("Qwen3-30B-A3B", 48, 2048, 768, 32, 4, 128, 151669, experts=128, active=8)


@dataclass(frozen=True)
class Layout:
    """How a job lies on its GPUs; what is left is data parallel."""

    gpus: int
    tp: int = 1
    pp: int = 1
    cp: int = 1
    ep: int = 1
    micro_batch: int = 1

    @property
    def dp(self) -> int:
        """Data-parallel ranks."""
        return self.gpus // (self.tp * self.pp * self.cp)


@dataclass(frozen=True)
class Job:
    """A run: length in student tokens, global batch in samples."""

    student: Model
    teacher: Model
    layout: Layout
    length: int = 4096
    batch: int = 768
    teacher_tokens: float = 1.05  # for a student token: Qwen3 cuts digits
    chunks: float = 0.95


@dataclass(frozen=True)
class LossSizes:
    """One micro-batch of the loss on one rank, on the last pipeline stage.

    Attributes:
        rows, teacher_rows: labelled student rows; teacher rows that chunks cover.
        chunks: chunks.
        student_columns, teacher_columns: columns of either output layer on the rank.
        tp: tensor-parallel ranks.
        crossing: entries that the rank sends for a chunk, forward.
        positions: rows of the hidden states, labelled or not.
        tiles: tiles of the pass.
        returning: entries that it sends for a chunk on the way back; the same in the mean over the ranks.
    """

    rows: float
    teacher_rows: float
    chunks: float
    positions: float
    student_hidden: int
    teacher_hidden: int
    student_columns: float
    teacher_columns: float
    tp: int
    crossing: float
    tiles: float = 1.0
    returning: float | None = None

    @property
    def flops(self) -> float:
        """Matrix products: logits, gradient by hidden states and by weight; the teacher's logits.  Each once."""
        student = 3 * self.rows * self.student_hidden * self.student_columns
        return 2 * (student + self.teacher_rows * self.teacher_hidden * self.teacher_columns)

    @property
    def touched(self) -> float:
        """Bytes read and written by what is done element by element."""
        student = STUDENT_PASSES * self.rows * self.student_columns
        return FP32 * (student + TEACHER_PASSES * self.teacher_rows * self.teacher_columns)

    @property
    def exchanged(self) -> float:
        """Bytes of the all-to-alls that the rank hands over: there and back."""
        returning = self.crossing if self.returning is None else self.returning
        return FP32 * self.chunks * (self.crossing + returning)

    @property
    def gathered(self) -> float:
        """Bytes that the rank hands to all-gathers: two numbers a row of either side."""
        return 2 * FP32 * (self.rows + self.teacher_rows) if self.tp > 1 else 0.0

    @property
    def reduced(self) -> float:
        """Bytes that the rank hands to all-reduces: six numbers a chunk, and the gradient by the hidden states."""
        return FP32 * (6 * self.chunks + self.positions * self.student_hidden) if self.tp > 1 else 0.0

    @property
    def wire(self) -> float:
        """Bytes that leave the rank; an all-reduce of a ring sends each twice."""
        share = (self.tp - 1) / self.tp
        return self.exchanged + (self.tp - 1) * self.gathered + 2 * share * self.reduced

    @property
    def dense_wire(self) -> float:
        """Bytes of the exchange if ``V_T`` columns of every chunk were reduced over the ranks and gathered back."""
        return 2 * FP32 * self.chunks * self.teacher_columns * (self.tp - 1)


def loss_sizes(job: Job) -> LossSizes:
    """The loss of a micro-batch of ``job`` on a rank of the last stage."""
    layout = job.layout
    tokens = layout.micro_batch * job.length / layout.cp
    return LossSizes(
        rows=tokens,
        teacher_rows=tokens * job.teacher_tokens,
        chunks=tokens * job.chunks,
        positions=tokens,
        student_hidden=job.student.hidden,
        teacher_hidden=job.teacher.hidden,
        student_columns=job.student.vocabulary / layout.tp,
        teacher_columns=job.teacher.vocabulary / layout.tp,
        tp=layout.tp,
        crossing=CROSSING[layout.tp],
    )


def estimate(job: Job, gpu: Gpu) -> dict[str, Any]:
    """Seconds of a step and GiB of a rank of the last pipeline stage, by part."""
    layout, student, teacher = job.layout, job.student, job.teacher
    loss = loss_sizes(job)
    micro_batches = job.batch / (layout.dp * layout.micro_batch)
    ranks = layout.tp * layout.pp
    tokens = layout.micro_batch * job.length / layout.cp
    bubble = 1 + (layout.pp - 1) / micro_batches
    student_time = 3 * student.forward_flops(tokens, job.length) / ranks / gpu.flops * bubble
    teacher_time = teacher.forward_flops(tokens * job.teacher_tokens, job.length) / ranks / gpu.flops * bubble
    loss_parts = {
        "products": loss.flops / gpu.flops,
        "elements": loss.touched / gpu.memory_bytes,
        "wire": loss.wire / gpu.nvlink_bytes,
    }
    loss_time = sum(loss_parts.values())  # nothing hidden behind anything
    parameters = student.parameters / ranks
    head = loss.teacher_columns * teacher.hidden * BF16
    held = teacher.body(1) + (teacher.experts - 1) / layout.ep * teacher.layers * 3 * teacher.hidden * teacher.ffn
    memory = {
        "student, gradients": parameters * (BF16 + FP32),
        "optimizer": parameters * 3 * FP32 / (layout.dp * layout.cp),
        "teacher": held / ranks * BF16 + head * (2 if teacher.tied and layout.pp == 1 else 1),
        "teacher's hidden states": micro_batches * tokens * job.teacher_tokens * teacher.hidden * BF16,
        "loss: tile": 1024 * MIB,
        "loss: gradients": FP32 * loss.student_columns * student.hidden + FP32 * loss.positions * student.hidden,
        "loss: W": MULTI_ENTRIES / layout.tp * 60 + 4 * (loss.student_columns + loss.teacher_columns),
        # with each layer's input kept and the rest made again
        "activations": layout.pp * student.layers / ranks * tokens * student.hidden * BF16
        + 34 * tokens * student.hidden,
    }
    step = micro_batches * (student_time + teacher_time + loss_time)
    plain = loss.positions * BF16 + FP32 * (
        5 * loss.rows * loss.student_columns + 6 * loss.chunks * loss.teacher_columns
    )
    return {
        "step": step,
        "student": student_time * micro_batches / step,
        "teacher": teacher_time * micro_batches / step,
        "loss": loss_time * micro_batches / step,
        "loss_parts": {name: value * micro_batches / step for name, value in loss_parts.items()},
        "dense_wire": loss.dense_wire / gpu.nvlink_bytes * micro_batches / step,
        "wire_bytes": loss.wire * micro_batches,
        "exchange_bytes": loss.exchanged * micro_batches,
        "dense_bytes": loss.dense_wire * micro_batches,
        "loss_flops": loss.flops * micro_batches,
        "tokens_per_second": job.batch * job.length / step,
        "memory": memory,
        "whole_logits": plain,
        "fits": sum(memory.values()) < 0.9 * gpu.capacity,
    }


def jobs() -> list[Job]:
    """What is asked of it: one node to 64, small to large."""
    small = Job(LLAMA_1B, QWEN_4B, Layout(8))
    large = Job(LLAMA_8B, QWEN_32B, Layout(64, tp=8))
    return [
        small,
        *(replace(small, layout=Layout(n)) for n in (64, 128)),
        replace(small, layout=Layout(512), batch=1536),
        replace(small, layout=Layout(64, tp=2)),
        replace(small, layout=Layout(64, tp=8)),
        replace(small, teacher=QWEN_14B, layout=Layout(64, tp=4)),
        replace(small, teacher=QWEN_30B_A3B, layout=Layout(64, tp=2, ep=8)),
        replace(large, student=LLAMA_8B, teacher=QWEN_14B),
        large,
        replace(large, layout=Layout(512, tp=8)),
        replace(large, layout=Layout(512, tp=8, pp=2)),
        replace(large, layout=Layout(512, tp=8, cp=4), length=32768, batch=128),
    ]


HEADINGS = ("student <- teacher", "GPUs", "layout", "length", "step s", "student", "teacher", "loss: products",
            "elements", "wire", "dense wire", "exchange / dense MB", "rank GiB", "whole logits GiB")  # fmt: skip


def row(job: Job, gpu: Gpu) -> list[str]:
    """A line of the table."""
    e, layout = estimate(job, gpu), job.layout
    names = [
        f"{n}{v}" for n, v in (("tp", layout.tp), ("pp", layout.pp), ("cp", layout.cp), ("ep", layout.ep)) if v > 1
    ]
    return [
        f"{job.student.name} <- {job.teacher.name}",
        str(layout.gpus),
        " ".join([*names, f"dp{layout.dp}"]),
        f"{job.length:,}",
        f"{e['step']:.1f}",
        *(f"{share:.0%}" for share in (e["student"], e["teacher"], *list(e["loss_parts"].values())[:2])),
        f"{e['loss_parts']['wire']:.2%}",
        f"{e['dense_wire']:.1%}",
        f"{e['exchange_bytes'] / 1e6:,.0f} / {e['dense_bytes'] / 1e6:,.0f}",
        f"{sum(e['memory'].values()) / GIB:.0f}{'' if e['fits'] else ' !'}",
        f"{e['whole_logits'] / GIB:.1f}",
    ]


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """The table as Markdown."""
    lines = ["| " + " | ".join(HEADINGS) + " |", "|" + "---|" * len(HEADINGS)]
    return "\n".join([*lines, *("| " + " | ".join(line) + " |" for line in rows)])


def main(arguments: list[str]) -> None:
    """Prints the table."""
    parser = Parser(__doc__)
    parser.add_argument("--markdown", action="store_true", help="print Markdown")
    parser.add_output()
    given = parser.parse_args(arguments)
    gpu = Gpu()
    rows = [row(job, gpu) for job in jobs()]
    if given.markdown:
        print(markdown(rows))
    else:
        from rich.table import Table

        table = Table(title="A step, on paper", title_style="bold")
        for i, name in enumerate(HEADINGS):
            table.add_column(name, justify="left" if i in (0, 2) else "right")
        for line in rows:
            table.add_row(*line)
        wide_console().print(table)
    write_json(given.json, {"estimates": [estimate(job, gpu) for job in jobs()]})


if __name__ == "__main__":
    main(sys.argv[1:])
