"""What is in the data and is not learned from: how much of it, and why."""

from collections.abc import Iterable
from dataclasses import dataclass, field

__all__ = ["Skipped"]

_EXAMPLES = 3


@dataclass
class Skipped:
    """Counts of rows that are no document.

    Attributes:
        counts: by reason, as it is told: "empty", "refused".
        examples: of the refused rows the first few messages.
    """

    counts: dict[str, int] = field(default_factory=dict)
    examples: list[str] = field(default_factory=list)

    def add(self, reason: str, example: str = "") -> None:
        """One more."""
        self.counts[reason] = self.counts.get(reason, 0) + 1
        if example and len(self.examples) < _EXAMPLES:
            self.examples.append(example)

    @classmethod
    def sum(cls, parts: Iterable["Skipped"]) -> "Skipped":
        """All of them together."""
        total = cls()
        for part in parts:
            for reason, count in part.counts.items():
                total.counts[reason] = total.counts.get(reason, 0) + count
            total.examples += part.examples[: _EXAMPLES - len(total.examples)]
        return total

    def __str__(self) -> str:
        """ "" where nothing is."""
        if not self.counts:
            return ""
        counted = ", ".join(f"{count:,} {reason}" for reason, count in self.counts.items())
        return "\n  ".join([f"rows that are no document: {counted}", *self.examples])
