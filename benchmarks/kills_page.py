"""What the documents say of kills at any moment, from ``benchmarks/kills.json``; without arguments writes it there.

The file is of a campaign with ``NEMO_XTOKEN_KILL_JSON``, see tests/jobs/test_killed_anywhere.py.

examples:
  python benchmarks/kills_page.py
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench import Parser
from blocks import fill

__all__ = ["DOCUMENTS", "RESULTS", "WORD", "made"]

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "kills.json"
#: Where blocks of this word are filled in.
WORD = "kills"
DOCUMENTS = (ROOT / "docs" / "architecture.md",)
#: What must not be, in words.
FAULTS = {
    "different": "results were different",
    "failed": "starts failed",
    "orphans": "processes went on running",
    "stray": "unfinished files were left",
}


def made(results: Mapping[str, Any]) -> dict[str, str]:
    """Every block by its name.

    Args:
        results: what the file has.
    """
    kinds = results["kinds"]
    total = {name: sum(one[name] for one in kinds.values()) for name in ("runs", "kills", "compared", *FAULTS)}
    days = sorted({one["machine"]["date"][:10] for one in kinds.values()})
    faults = ", ".join(f"{total[name]} {said}" for name, said in FAULTS.items())
    text = (
        f"The last one that is kept ({' to '.join(sorted({days[0], days[-1]}))}, `benchmarks/kills.json`): "
        f"{total['kills']} kills in {total['runs']} runs of {len(kinds)} kinds of work,\n{total['compared']} results "
        f"compared with those of undisturbed runs; {faults}.\n"
    )
    return {"campaign": text}


def main(arguments: list[str]) -> None:
    """Fills the documents."""
    Parser(__doc__).parse_args(arguments)
    fill(DOCUMENTS, WORD, made(json.loads(RESULTS.read_text("utf-8"))))


if __name__ == "__main__":
    main(sys.argv[1:])
