"""Real students: does a teacher with another tokenizer help a pretrained model, by which loss, after how many tokens?

Trains pretrained students of one start on the same text under every loss, and measures bits per byte on the kinds of
text that they were trained on and on others.  The same command goes on where it stopped: a run that has a result is not
made again, one that was cut off goes on from its last checkpoint.  What is to be found out was named before the runs
(claims.py).  Results: a small file for each run, in results/ beside this file; --report makes tables, figures and the
numbers in the documents from them.

Takes the assets from a folder: README.md beside this file says which they are and where they come from.

examples:
  python -m benchmarks.students --assets assets                       everything that is not done, in order
  python -m benchmarks.students --settings compression --arms ce prefix_kl gold --seeds 0 --length first
  python -m benchmarks.students --device cuda --length full           the same on a GPU
  python -m benchmarks.students --list
  python -m benchmarks.students --report
"""

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from ..bench import Parser
from .corpora import Texts
from .plan import ARMS, BASELINES, LENGTHS, SETTINGS, runs_of
from .study import Study

__all__ = ["main"]

#: What keeps glibc from giving large blocks back to the kernel after each step and fetching them again.
MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "17179869184", "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
RESULTS = Path(__file__).parent / "results"


def main(arguments: Sequence[str] | None = None) -> int:
    """Does what is missing; the exit status."""
    parser = Parser(__doc__)
    arms = [name for name in ARMS if name not in BASELINES]
    parser.add_argument("--settings", nargs="+", choices=list(SETTINGS), default=list(SETTINGS), metavar="SETTING")
    parser.add_argument("--arms", nargs="+", choices=arms, default=arms, metavar="ARM", help=", ".join(arms))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="SEED")
    parser.add_argument("--length", choices=list(LENGTHS), default="first", help="default: %(default)s")
    parser.add_argument("--device", default="cpu", help="as torch names it (default: %(default)s)")
    parser.add_argument(
        "--assets", type=Path, default=Path("~/.cache/xtoken-assets").expanduser(), help="default: %(default)s"
    )
    parser.add_argument("--work", type=Path, default=Path("runs/students"), help="models, states, checkpoints")
    parser.add_argument("--results", type=Path, default=RESULTS, help="default: beside this file")
    parser.add_argument("--minutes", type=float, help="begin no run after so many")
    parser.add_argument("--list", action="store_true", help="what is done and what is to do")
    parser.add_argument("--report", action="store_true", help="tables, figures and documents from the results")
    given = parser.parse_args(arguments)
    if given.report:
        from .report import report

        report(given.results)
        return 0
    study = Study(given.results, LENGTHS[given.length])
    runs = runs_of(given.settings, given.arms, given.seeds)
    if given.list:
        pending = set(study.pending(runs))
        print("\n".join(f"{'to do' if run in pending else 'done '} {run}" for run in runs))
        return 0
    began, texts = time.monotonic(), Texts(given.assets)
    for number, run in enumerate(study.pending(runs)):
        if given.minutes is not None and time.monotonic() - began > 60 * given.minutes:
            break
        _say(f"[{number + 1}/{len(study.pending(runs)) + number}] {run}")
        if not study.do(run, texts, given.work.resolve(), given.device, _say):
            _say("another process is at it")
    return 0


def _say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


if __name__ == "__main__":
    if sys.platform == "linux" and not MEMORY.items() <= os.environ.items():
        os.environ.update(MEMORY, HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
        os.execv(sys.executable, [sys.executable, "-m", "benchmarks.students", *sys.argv[1:]])
    sys.exit(main())
