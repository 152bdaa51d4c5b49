"""What is told of documents beside their ids and chunks: sentences, and of how many documents each is true."""

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

__all__ = ["Told"]

_MOST = 40  # different sentences; what a template raises may have the row's words in it
_OTHERS = "left out, for other reasons"


class Told:
    """Counts by sentence, with a document of which it is true.

    Args:
        counts: sentence -> how many documents, and the digest of the first.
    """

    def __init__(self, counts: Mapping[str, tuple[int, bytes]] | None = None) -> None:
        self.counts = dict(counts or {})

    def __bool__(self) -> bool:
        return bool(self.counts)

    def __iter__(self) -> Iterator[tuple[str, int, bytes]]:
        return ((sentence, count, digest) for sentence, (count, digest) in sorted(self.counts.items()))

    def add(self, sentence: str, digest: bytes, count: int = 1) -> None:
        """That it is true of ``count`` more documents, among them one with this digest."""
        if sentence not in self.counts and len(self.counts) >= _MOST:
            sentence = _OTHERS
        before, first = self.counts.get(sentence, (0, digest))
        self.counts[sentence] = before + count, first

    def extend(self, other: "Told") -> None:
        """All that is told there."""
        for sentence, count, digest in other:
            self.add(sentence, digest, count)

    @classmethod
    def sum(cls, parts: Iterable["Told"]) -> "Told":
        """All of them together."""
        total = cls()
        for part in parts:
            total.extend(part)
        return total

    def header(self) -> dict[str, str]:
        """For the header of a file; nothing where nothing is told."""
        if not self.counts:
            return {}
        return {"told": json.dumps([[s, count, digest.hex()] for s, count, digest in self], ensure_ascii=False)}

    @classmethod
    def of(cls, header: Mapping[str, str]) -> "Told":
        """What is in the header of a file; nothing where that is not what `header` wrote."""
        try:
            rows: list[Any] = json.loads(header.get("told", "[]"))
            return cls({str(s): (int(count), bytes.fromhex(digest)) for s, count, digest in rows})
        except (ValueError, TypeError):
            return cls()
