"""What to run first on a GPU: are the kernels right, are the losses float64's, how long do they take, and of what.

It needs PyTorch and Triton, the package's own light needs and pytest, but none of NeMo, and no file of a model's: the
tokenizers are made, as large as Llama-3's and Qwen3's, unless others are named.  In this order:

  device   what it is; what products of bfloat16 and copies of memory reach on it
  tests    of every Triton kernel against torch's
  values   each loss and its gradients in float32 and bfloat16, by each set of kernels, against float64 on the CPU
  times    each loss at real sizes by each set of kernels, by torch's profiler: products, kernels, launches, waits,
           memory; beside plain torch, the products alone, and what was worked out for an H100 on paper

report.json and report.md are written after each part.  What --minutes do not suffice for is left out and said so.  The
exit status is 0 where nothing is wrong.

With --device cpu all of it runs small, to try the report itself; Triton's kernels are tested in its interpreter then.

examples:
  make gpu
  make gpu GPU_PYTHON=/opt/venv/bin/python GPU_ARGUMENTS='--losses p_kl prefix_kl --out somewhere'
  PYTHONPATH=.:benchmarks python -m gpu_report --device cpu
"""

import sys
import time
from pathlib import Path
from typing import Any

import torch
from bench import Parser, machine_line, write_json
from loss_counts import LOSSES, counts_of, seconds_on_h100

from nemo_xtoken.errors import InputError
from nemo_xtoken.files import atomic_path
from nemo_xtoken.kernels.choice import kernels_for
from nemo_xtoken.kernels.tile_kernels import TileKernels
from nemo_xtoken.vocab import load_vocabulary

from .device import Device
from .kernel_tests import kernel_tests
from .made_pair import SIZES, made_pair
from .page import page, verdict
from .problem import MicroBatch, pair_of
from .timing import references, timings
from .values import values

__all__ = ["main"]

PARTS = ("tests", "values", "times")
#: For each device: sizes of the vocabularies, positions, hidden sizes; of the values, and of the times.
VALUES = {"cuda": ((16_003, 19_001), 96, (64, 80)), "cpu": ((403, 501), 24, (8, 12))}
TIMES = {"cuda": (SIZES, 4096, (2048, 2560)), "cpu": ((403, 501), 48, (16, 24))}
SPEED = {"cuda": 8192, "cpu": 128}


class Report:
    """The figures so far, on disk after each part."""

    def __init__(self, folder: Path, device: Device, minutes: float) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.end = folder, time.monotonic() + 60 * minutes
        self.found: dict[str, Any] = {"machine line": machine_line(), "about": device.about(), "left out": []}

    def left(self) -> float:
        """Seconds before the end."""
        return self.end - time.monotonic()

    def take(self, name: str, rows: Any) -> None:
        """Rows one by one, as many as there is time for."""
        self.found[name] = []
        for row in rows:
            self.found[name].append(row)
            self.write()
            if self.left() < 0:
                self.found["left out"].append(f"{name} after {', '.join(str(v) for v in list(row.values())[:2])}")
                break

    def write(self) -> None:
        """Both files."""
        write_json(self.folder / "report.json", self.found, say=False)
        with atomic_path(self.folder / "report.md") as temporary:
            temporary.write_text(page(self.found))


def main(arguments: list[str]) -> int:
    """Measures and writes; the exit status."""
    parser = Parser(__doc__)
    parser.add_pair()
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="default: %(default)s")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="default: all")
    parser.add_argument("--losses", nargs="+", metavar="LOSS", help="that are timed (default: all)")
    parser.add_argument("--positions", type=int, help="that are timed (default: 4096; on a CPU 48)")
    parser.add_argument("--rounds", type=int, default=3, help="of which a time is the median (default: %(default)s)")
    parser.add_argument("--minutes", type=float, default=7.5, help="after which it ends (default: %(default)s)")
    parser.add_argument("--tests", default="", metavar="NAMES", help="of the kernels' tests, as pytest's -k")
    parser.add_argument("--out", type=Path, default=Path("gpu-report"), help="folder (default: %(default)s)")
    given = parser.parse_args(arguments)
    if given.device == "cuda" and not torch.cuda.is_available():
        parser.error(
            f"--device cuda: PyTorch {torch.__version__} finds no GPU, which takes a build of it for CUDA and a driver "
            "(see `nvidia-smi`); --device cpu tries the report itself"
        )
    if (given.student is None) != (given.teacher is None):
        parser.error("--student and --teacher: both or none")
    device = Device(given.device)
    try:
        sets = [kernels_for(name, device.cuda) for name in (("torch", "triton") if device.cuda else ("torch",))]
    except InputError as error:
        parser.error(str(error))
    report = Report(given.out, device, given.minutes)
    report.found["speed"] = device.speed(SPEED[device.name])
    steps = {"tests": _tests, "values": _values, "times": _times}
    for part in PARTS:
        if part in given.parts:
            print(f"{part} ..", flush=True)
            steps[part](report, given, device, sets) if report.left() > 0 else report.found["left out"].append(part)
        report.write()
    for line in verdict(report.found):
        print(line)
    print(f"saved in {given.out}")
    return 1 if any(line.startswith(("WRONG", "left out")) for line in verdict(report.found)) else 0


def _tests(report: Report, given: Any, device: Device, sets: list[TileKernels]) -> None:
    report.found["kernel tests"] = kernel_tests(device.cuda, min(report.left(), 240), given.tests)


def _values(report: Report, given: Any, device: Device, sets: list[TileKernels]) -> None:
    sizes, positions, hidden = VALUES[device.name]
    report.found["values of"] = f"vocabularies of {sizes[0]:,} and {sizes[1]:,}, {positions} positions, hidden {hidden}"
    report.take("values", values(sizes, positions, hidden, device.name, sets))


def _times(report: Report, given: Any, device: Device, sets: list[TileKernels]) -> None:
    sizes, positions, hidden = TIMES[device.name]
    positions = given.positions or positions
    if given.student:
        pair = pair_of(load_vocabulary(given.student), load_vocabulary(given.teacher))
    else:
        pair = pair_of(*made_pair(*sizes))
    small = made_pair(403, 501)
    report.found["expected"] = {loss: seconds_on_h100(counts_of(loss, *small))[0] for loss in LOSSES}
    batch = MicroBatch(pair, positions, hidden, torch.bfloat16, device.name)
    rows, taught = batch.rows
    report.found["timings of"] = (
        f"Vocabularies of {pair.student.size:,} and {pair.teacher.size:,}, hidden {hidden}, bfloat16; {rows:,} "
        f"labelled positions, {taught:,} of the teacher, {len(batch.batch.chunks):,} chunks; forward and backward"
    )
    report.found["references"] = references(batch, device, given.rounds)
    names = [name for name in batch.losses() if not given.losses or name in given.losses]
    report.take("timings", timings(batch, names, sets, device, given.rounds))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
