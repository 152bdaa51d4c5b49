"""What a check found: one line of the table, and what to do about it."""

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from nemo_xtoken.errors import InputError

__all__ = [
    "GREEN",
    "LEFT_OUT",
    "RED",
    "YELLOW",
    "Finding",
    "Report",
    "green",
    "guarded",
    "left_out",
    "red",
    "rounded",
    "yellow",
]

GREEN, YELLOW, RED, LEFT_OUT = "green", "yellow", "red", "left out"
_ORDER = (LEFT_OUT, GREEN, YELLOW, RED)
_LARGE = ((1e12, " trillion"), (1e9, " billion"), (1e6, " million"))


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        check: what was looked at.
        status: green; yellow: it runs, and perhaps not as meant; red: it fails; or left out.
        found, expected, fix: as in `InputError`; of a green one ``found`` alone.
    """

    check: str
    status: str
    found: str
    expected: str = ""
    fix: str = ""


@dataclass
class Report:
    """All that was found, and the figures it rests on.

    Attributes:
        findings: in the order of the checks.
        figures: plain values: memory by part in bytes, tokens, steps, seconds, ..
    """

    findings: list[Finding] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)

    @property
    def status(self) -> str:
        """The worst of them."""
        return max((f.status for f in self.findings), key=_ORDER.index, default=GREEN)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {"status": self.status, "checks": [asdict(f) for f in self.findings], "figures": self.figures}


def rounded(value: float, digits: int = 3) -> str:
    """A number as people write it, never with an exponent: 0.83, 840, 313,000, 94.4 billion."""
    value = float(f"{value:.{digits - 1}e}")
    size, word = next(((size, word) for size, word in _LARGE if value >= size), (1.0, ""))
    shown = f"{value / size:,.6f}"
    return shown.rstrip("0").rstrip(".") + word


def green(check: str, found: str) -> Finding:
    """All well."""
    return Finding(check, GREEN, found)


def yellow(check: str, found: str, expected: str, fix: str) -> Finding:
    """It runs, and perhaps not as meant."""
    return Finding(check, YELLOW, found, expected, fix)


def red(check: str, error: InputError) -> Finding:
    """The run would say this, later."""
    return Finding(check, RED, error.found, error.expected, error.fix)


def left_out(check: str, why: str, fix: str = "") -> Finding:
    """Not looked at."""
    return Finding(check, LEFT_OUT, why, "", fix)


def guarded(check: str, findings: Iterable[Finding]) -> Iterator[Finding]:
    """The findings; wrong input ends them with a red one, a missing package with one that says what was skipped."""
    try:
        yield from findings
    except InputError as error:
        yield red(check, error)
    except OSError as error:
        yield red(check, InputError(str(error), "files that can be read, folders that can be written", "see the path"))
    except ImportError as error:
        name = (error.name or str(error)).split(".")[0]
        yield left_out(check, f"needs the package {name}, which is not installed", f"pip install {name}")
