"""What the documents say of a tile of the loss, from ``benchmarks/loss_counts.json``; writes it there.

The file is what ``benchmarks/loss_counts.py`` writes.

examples:
  python benchmarks/loss_counts_page.py
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench import Parser, markdown
from blocks import fill
from loss_counts import HEADINGS, row

__all__ = ["DOCUMENTS", "RESULTS", "WORD", "made"]

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "loss_counts.json"
#: Where blocks of this word are filled in.
WORD = "counts"
DOCUMENTS = (ROOT / "benchmarks" / "REPORT.md",)


def made(results: Mapping[str, Any]) -> dict[str, str]:
    """Every block by its name.

    Args:
        results: what the file has.
    """
    table = markdown(HEADINGS, map(row, results["results"]))
    return {"tile": f"Counted {results['machine']['date'][:10]}.\n\n{table}\n"}


def main(arguments: list[str]) -> None:
    """Fills the documents."""
    Parser(__doc__).parse_args(arguments)
    fill(DOCUMENTS, WORD, made(json.loads(RESULTS.read_text("utf-8"))))


if __name__ == "__main__":
    main(sys.argv[1:])
