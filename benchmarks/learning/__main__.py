"""Which loss teaches what: trains students of one start on one text under every loss, and measures them.

Teachers: one whose tokenizer splits numerals into digits, one whose numerals are the student's, a weak one with the
student's own tokenizer.  Everything follows from seeds.  A study that was stopped goes on by the same command: what is
done is kept, and a training that was cut off goes on from its last checkpoint.

Every model's figures, settings and curves are kept as a file of benchmarks/learning/results, which docs/learning.md is
made from.  Writes into the folder of the study: table.md, results.json, learning.png.

examples:
  python -m benchmarks.learning --quick
  python -m benchmarks.learning
  python -m benchmarks.learning --arms ce digits/p_kl digits/prefix_kl --seeds 5
  python -m benchmarks.learning --quick --report
  python -m benchmarks.learning --quick --claims --seeds 4    # what docs/learning.md claims
  python -m benchmarks.learning --page                        # docs/learning.md and its picture, from what is kept
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from ..bench import Parser
from .arms import ARMS
from .claims import arms_of_claims
from .lengths import FULL, LENGTHS, QUICK
from .page import RESULTS, write_page
from .report import report
from .study import Study

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Does what is missing and reports; the exit status."""
    parser = Parser(__doc__)
    names = [arm.name for arm in ARMS]
    parser.add_argument("--quick", action="store_true", help="small and short: about ten minutes on two cores")
    parser.add_argument("--length", choices=list(LENGTHS), help="the same by name; smoke: only to see that it runs")
    which = f"some (default: all; with --quick those that matter most): {', '.join(names)}"
    parser.add_argument("--arms", nargs="+", choices=names, metavar="ARM", default=[], help=which)
    parser.add_argument("--claims", action="store_true", help="the arms that the claims of docs/learning.md compare")
    parser.add_argument("--all-arms", action="store_true", help="all of them with --quick, too")
    parser.add_argument("--seeds", type=int, help="students of each arm (default: 3)")
    parser.add_argument("--jobs", type=int, help="trainings at a time, a core each (default: one for each core)")
    parser.add_argument("--out", type=Path, default=Path("runs/learning"), help="default: %(default)s")
    parser.add_argument("--results", type=Path, default=RESULTS, help="what is kept (default: %(default)s)")
    parser.add_argument("--report", action="store_true", help="only report what is done")
    parser.add_argument("--page", action="store_true", help="only write docs/learning.md anew")
    given = parser.parse_args(arguments)
    os.environ.update(OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false", HF_HUB_OFFLINE="1")
    length = LENGTHS[given.length] if given.length else QUICK if given.quick else FULL
    if given.page:
        write_page(given.results)
        return 0
    study = Study(given.out, length, given.results)
    names = arms_of_claims() if given.claims else given.arms
    tasks = study.tasks(study.arms(names, given.all_arms), given.seeds or length.seeds)
    failed = []
    if not given.report:
        jobs = given.jobs or len(os.sched_getaffinity(0))
        print(f"{len(study.pending(tasks))} of {len(tasks)} students to train, {jobs} at a time, in {study.base}")
        failed = study.run(tasks, jobs)
    report(study, tasks)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
