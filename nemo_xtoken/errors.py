"""The one exception that bad input raises: what was found, what was expected, what to do about it."""

import difflib
from collections.abc import Iterable

__all__ = ["InputError", "nearest", "shortened"]


class InputError(ValueError):
    """Bad input, reported in one message that a user can act on.

    Args:
        found: what was found, with the path or value.
        expected: what would have been right.
        fix: what to do now (a command, an option, a file to look at).
    """

    def __init__(self, found: str, expected: str, fix: str) -> None:
        super().__init__(found, expected, fix)
        self.found, self.expected, self.fix = found, expected, fix

    def __str__(self) -> str:
        return f"{self.found}\n  expected: {self.expected}\n  to fix:   {self.fix}"


def nearest(word: str, names: Iterable[str], cutoff: float = 0.5) -> str:
    """A hint such as ``; did you mean 'build'?``, or nothing where no name comes close (1 is equality)."""
    close = difflib.get_close_matches(word, list(names), n=1, cutoff=cutoff)
    return f"; did you mean {close[0]!r}?" if close else ""


def shortened(text: str, most: int = 60) -> str:
    """A value as a message quotes it: at most so many characters, the end left out."""
    return text if len(text) <= most else text[: most - 3] + "..."
