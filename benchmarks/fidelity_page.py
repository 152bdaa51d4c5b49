"""What docs/method.md says of the losses' gradients where a tokenizer alone is swapped, and the claims of it.

The claims were written down before the measurement, ``benchmarks/fidelity.py``, which fills the page.
"""

import json
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import markdown
from blocks import fill

__all__ = ["CLAIMS", "DOCUMENTS", "KINDS", "LOSSES", "REST", "RESULTS", "WORD", "YARDSTICK", "fill_document", "made"]

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "fidelity.json"
#: Where blocks of this word are filled in.
WORD = "fidelity"
DOCUMENTS = (ROOT / "docs" / "method.md",)

#: Kinds of chunk by their text, and, of all others, by their numbers of tokens.
KINDS = ("1:1", "1:n", "n:1", "n:m", "indentation", "numerals", "CJK")
YARDSTICK = "yardstick"
LOSSES = (
    YARDSTICK, "prefix_kl", "prefix_kl, boundary", "p_kl", "h_kl", "gold", "uld", "csd", "bpm", "alm", "strict_1to1",
)  # fmt: skip
#: The length of the gradient without noise, beside that of the reference.
REST = "length at rest"
#: Of a kind with fewer chunks nothing is claimed.
ENOUGH = 10

Angles = Mapping[str, Mapping[str, Mapping[str, Any]]]


@dataclass(frozen=True)
class Claim:
    """A sentence, and what has to be so for it to hold.

    Attributes:
        holds: of angles by loss and set of positions, and the kinds with enough chunks.
    """

    text: str
    holds: Callable[[Angles, list[str]], bool]


def _degrees(found: Angles, loss: str, kind: str, what: str = "degrees") -> float:
    """A loss that says nothing of a kind is as far as one that points anywhere."""
    value = found[loss][kind][what]
    return 90.0 if value is None else float(value)


def _best(found: Angles, kind: str, what: str = "degrees", margin: float = 0.0) -> bool:
    others = [_degrees(found, name, kind, what) for name in found if name not in (YARDSTICK, "prefix_kl")]
    return _degrees(found, "prefix_kl", kind, what) <= min(others) + margin


def _texts(found: Angles) -> list[str]:
    return [name for name in found["prefix_kl"] if name.startswith("all of ")]


CLAIMS = (
    Claim(
        "`prefix_kl` has the smallest angle of all losses over all chunks of each text",
        lambda found, kinds: all(_best(found, name) for name in _texts(found)),
    ),
    Claim(
        "in every kind of chunk but 1:1 `prefix_kl` has the smallest angle, or is within 2 degrees of it",
        lambda found, kinds: all(_best(found, kind, margin=2) for kind in kinds if kind != "1:1"),
    ),
    Claim(
        "in chunks 1:1 `prefix_kl`, `p_kl`, `h_kl`, `gold` and `csd` are within 5 degrees of each other",
        lambda found, kinds: (
            max(a := [_degrees(found, x, "1:1") for x in ("prefix_kl", "p_kl", "h_kl", "gold", "csd")]) - min(a) <= 5
        ),
    ),
    Claim(
        "over all chunks `prefix_kl` is nearer without conditioned boundaries than with them",
        lambda found, kinds: _degrees(found, "prefix_kl", "all") < _degrees(found, "prefix_kl, boundary", "all"),
    ),
    Claim(
        "over all chunks `uld`, `alm` and `strict_1to1` are at least 10 degrees further than `prefix_kl`",
        lambda found, kinds: (
            min(_degrees(found, x, "all") for x in ("uld", "alm", "strict_1to1"))
            >= _degrees(found, "prefix_kl", "all") + 10
        ),
    ),
    Claim(
        "of what the noise changes, `prefix_kl` has the smallest angle over all chunks",
        lambda found, kinds: _best(found, "all", "changed"),
    ),
)


def _cell(row: Mapping[str, Any], what: str) -> str:
    value, spread = row[what], row["spread"] if what == "degrees" else None
    return "" if value is None else f"{value:.0f}" if spread is None else f"{value:.0f} ± {spread:.0f}"


def made(results: Mapping[str, Any]) -> dict[str, str]:
    """Every block by its name.

    Args:
        results: what the file has.
    """
    found, shape, counts = results["angles"], results["shape"], results["counts"]
    kinds = [kind for kind in KINDS if counts[kind][0]]
    texts = _texts(found)
    head = (
        f"Degrees, of {counts['all'][0]:,} chunks in {shape['pieces']} pieces of text, measured "
        f"{results['machine']['date'][:10]}, those of a kind in brackets; plus or minus the standard deviation over "
        f"other draws of chunks. The noise, {shape['noise']:g} times a matrix's root mean square, means a KL of "
        f"{shape['KL']:.2f} nats a chunk. "
        "Empty: not compared."
    )

    def table(columns: Mapping[str, str], what: str) -> str:
        rows = [
            (f"`{loss}`" if loss != YARDSTICK else YARDSTICK, *(_cell(row[name], what) for name in columns))
            for loss, row in found.items()
        ]
        return markdown(["loss", *columns.values()], rows)

    by_kind = {kind: f"{kind} ({counts[kind][0]})" for kind in kinds} | {"all": "all"}
    by_text = {name: name for name in texts}
    enough = [kind for kind in kinds if counts[kind][0] >= ENOUGH]
    claims = "\n".join(
        textwrap.fill(
            f"- {claim.text}: {'yes' if claim.holds(found, enough) else '**no**'}.", 120, subsequent_indent="  "
        )
        for claim in CLAIMS
    )
    order = sorted((loss for loss in found if loss != YARDSTICK), key=lambda loss: _degrees(found, loss, "all"))
    nearest = {kind: min(order, key=lambda loss: _degrees(found, loss, kind)) for kind in enough}
    own = [kind for kind, loss in nearest.items() if loss.startswith("prefix_kl")]
    first, second = ((loss, _degrees(found, loss, "all")) for loss in order[:2])
    said = (
        f"Over all chunks `{first[0]}` is the nearest ({first[1]:.0f} degrees), then `{second[0]}` ({second[1]:.0f}); "
        f"`prefix_kl` ({_degrees(found, 'prefix_kl', 'all'):.0f}) is number {order.index('prefix_kl') + 1} of "
        f"{len(order)}, and of the kinds with at least {ENOUGH} chunks nearest in {', '.join(own) or 'none'}. The "
        f"furthest is `{order[-1]}` ({_degrees(found, order[-1], 'all'):.0f}; 90 is no direction at all)."
    )
    parts = (
        textwrap.fill(head, 120),
        table(by_kind, "degrees"),
        "By text:",
        table(by_text, "degrees"),
        textwrap.fill(said, 120),
        "Claimed before it was measured:",
        claims,
    )
    return {"angles": "\n\n".join(part.strip() for part in parts) + "\n"}


def fill_document() -> None:
    """Writes the block."""
    fill(DOCUMENTS, WORD, made(json.loads(RESULTS.read_text("utf-8"))))
