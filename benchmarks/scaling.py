"""What a step costs on a cluster, and what part of it is the loss: FLOPs, bytes and memory of a rank, on paper.

Every term of the loss is written out in nemo_xtoken/run/estimates/loss_time.py and held against counters of real runs
by tests/unit/benchmarks/test_scaling.py: FLOPs of the matrix products exactly, bytes of the collectives exactly.  What
a GPU makes of them is a roofline with the efficiencies of `Gpu`: assumptions, to be replaced by measurements.

examples:
  python benchmarks/scaling.py
  python benchmarks/scaling.py --markdown > table.md
"""

import sys
from dataclasses import dataclass, replace
from typing import Any

from bench import Parser, markdown, show_table, write_json

from nemo_xtoken.run.estimates.loss_time import BF16, FP32, GIB, LossSizes
from nemo_xtoken.run.estimates.memory import Recompute, TeacherSizes, Training, memory_of
from nemo_xtoken.run.estimates.model_sizes import Model
from nemo_xtoken.run.estimates.step_time import Gpu, loss_sizes, step_time
from nemo_xtoken.run.layout import ParallelSizes

__all__ = ["Gpu", "Job", "Layout", "LossSizes", "estimate", "jobs", "row"]

LLAMA_1B = Model("Llama-3.2-1B", 16, 2048, 8192, 32, 8, 64, 128256, tied=True)
LLAMA_8B = Model("Llama-3.1-8B", 32, 4096, 14336, 32, 8, 128, 128256)
QWEN_4B = Model("Qwen3-4B", 36, 2560, 9728, 32, 8, 128, 151669, tied=True, qk_norm=True)
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


def training(job: Job) -> Training:
    """The run as the package's own estimates take it."""
    layout = job.layout
    sizes = ParallelSizes(layout.tp, layout.pp, layout.cp, layout.ep if job.student.experts > 1 else 1, layout.tp)
    own = ParallelSizes(layout.tp, layout.pp, layout.cp, layout.ep, layout.tp)
    return Training(
        student=job.student,
        sizes=sizes,
        teachers=(TeacherSizes(job.teacher, own, layout.ep > 1, round(job.length * job.teacher_tokens)),),
        processes=layout.gpus,
        micro_batch=layout.micro_batch,
        global_batch=job.batch,
        length=job.length,
        recompute=Recompute("full", "uniform", 1),
        sequence_parallel=layout.tp > 1,
    )


def estimate(job: Job, gpu: Gpu) -> dict[str, Any]:
    """Seconds of a step and GiB of a rank of the last pipeline stage, by part."""
    run = training(job)
    loss = loss_sizes(run, 0, job.teacher_tokens, job.chunks)
    seconds = step_time(run, gpu, job.teacher_tokens, job.chunks)
    step, micro_batches = sum(seconds.values()), run.micro_batches
    memory = memory_of(run, run.sizes.pipeline - 1)
    plain = loss.positions * BF16 + FP32 * (
        5 * loss.rows * loss.student_columns + 6 * loss.chunks * loss.teacher_columns
    )
    parts = {name: seconds[name] / step for name in ("products", "elements", "wire")}
    return {
        "step": step,
        "student": seconds["student"] / step,
        "teacher": seconds["teachers"] / step,
        "loss": sum(parts.values()),
        "loss_parts": parts,
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


def main(arguments: list[str]) -> None:
    """Prints the table."""
    parser = Parser(__doc__)
    parser.add_argument("--markdown", action="store_true", help="print Markdown")
    parser.add_output()
    given = parser.parse_args(arguments)
    gpu = Gpu()
    rows = [row(job, gpu) for job in jobs()]
    if given.markdown:
        print(markdown(HEADINGS, rows))
    else:
        show_table("A step, on paper", HEADINGS, rows, words=(0, 2))
    write_json(given.json, {"estimates": [estimate(job, gpu) for job in jobs()]})


if __name__ == "__main__":
    main(sys.argv[1:])
