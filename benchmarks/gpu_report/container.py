"""The first hour in one of NVIDIA's images: each step with what is expected of it and what was found.

`make gpu` is about the losses alone; this is about the whole of a run: NeMo, Megatron, Transformer Engine and NCCL.  It
works in a folder of its own, with toy models and the text of xtoken_tiny; nothing is downloaded.  Steps that need two
GPUs are left out on one.  The exit status is 0 where every step gave what was expected.

  import     a checkpoint imported where no GPU is seen, then loaded as a teacher beside Transformer Engine
  demo       xtoken_tiny in float32; TF32 is off for all steps
  tests      the tests of kernels, losses and what ranks exchange
  losses     the report of `make gpu`
  layouts    the losses of two ranks against one rank's, which go on from one checkpoint: data parallelism, tensor and
             sequence, context over packed documents, a teacher in a layout of its own; in float32 and bfloat16
  memory     what NCCL's communicators take of a GPU
  cache      two jobs at once on one empty cache, with 1,024 files open at most
  stop       SIGTERM in a run, which then goes on with twice the ranks

examples:
  make gpu-container
  make gpu-container GPU_ARGUMENTS='--steps import layouts'
  PYTHONPATH=.:benchmarks python -m gpu_report.container --device cpu --short
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from bench import Parser, machine_line, markdown, write_json

from nemo_xtoken.files import atomic_path

from . import nemo_steps
from .nemo_steps import Room

__all__ = ["STEPS", "main"]


class Step(NamedTuple):
    """
    Attributes:
        expected: in words.
        run: gives what was found, in words, and whether it is that.
        gpus: that it needs.
    """

    expected: str
    run: Callable[[Room], tuple[str, bool]]
    gpus: int = 1


STEPS = {
    "import": Step("loads; the loss is a number at each step", nemo_steps.imported),
    "demo": Step(f"held-out cross-entropy {nemo_steps.DEMO} nats a token, to {nemo_steps.DEMO_OFF}", nemo_steps.demo),
    "tests": Step("all pass", nemo_steps.tests),
    "losses": Step("its own verdict has nothing wrong", nemo_steps.losses),
    "layouts": Step(
        f"one rank's losses: to {nemo_steps.OFF['32']} in float32, to {nemo_steps.OFF['bf16-mixed']} in bfloat16",
        nemo_steps.layouts,
        gpus=2,
    ),
    "memory": Step("0.3 to 0.5 GB of a GPU for each communicator over NVLink", nemo_steps.memory, gpus=2),
    "cache": Step("both end well; the text is prepared once", nemo_steps.cache),
    "stop": Step("the second goes on where the first stopped, no step twice", nemo_steps.stop, gpus=2),
}


def main(arguments: list[str]) -> int:
    """Runs the steps; the exit status."""
    parser = Parser(__doc__)
    parser.add_argument("--steps", nargs="+", choices=list(STEPS), default=list(STEPS), help="default: all")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="default: %(default)s")
    parser.add_argument("--short", action="store_true", help="fewer steps of training: only to see that it all runs")
    parser.add_argument("--out", type=Path, default=Path("gpu-report"), help="folder (default: %(default)s)")
    given = parser.parse_args(arguments)
    if problem := nemo_steps.missing(given.device):
        parser.error(problem)
    room = Room(given.out.resolve() / "container", given.device, given.short)
    results = []
    for name in given.steps:
        step, start = STEPS[name], time.monotonic()
        print(f"{name}: {step.expected} ..", flush=True)
        if step.gpus > room.gpus:
            found, good = f"left out: {room.gpus} GPU here, it needs {step.gpus}", None
        else:
            try:
                found, good = step.run(room)
            except Exception as error:  # a step that breaks is a finding; the others go on
                found, good = f"{type(error).__name__}: {error}", False
        word = {True: "as expected", False: "WRONG", None: ""}[good]
        results.append(
            {"step": name, "expected": step.expected, "found": found, "verdict": word, "s": time.monotonic() - start}
        )
        print(f"  {found} {word}", flush=True)
        _write(given.out, results)
    return 1 if any(row["verdict"] == "WRONG" for row in results) else 0


def _write(folder: Path, results: list[dict]) -> None:
    write_json(folder / "container.json", {"steps": results}, say=False)
    rows = [[r["step"], r["expected"], r["found"].replace("\n", " "), r["verdict"], f"{r['s']:.0f}"] for r in results]
    table = markdown(("step", "expected", "found", "", "s"), rows)
    with atomic_path(folder / "container.md") as temporary:
        temporary.write_text(f"# The first hour in the image\n\n{machine_line()}\n\n{table}\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
