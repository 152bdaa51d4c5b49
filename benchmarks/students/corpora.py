"""The texts: pieces of a kind, cut where paragraphs and sentences end, and the folds that are held out."""

import json
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from nemo_xtoken.files import digest_of

__all__ = ["KINDS", "Texts", "missing_files"]

#: One piece of so many is held out of training; which ones depends on the seed.
FOLDS = 10
_PARAGRAPH = re.compile(r"(?<=\n\n)")
_SENTENCE = re.compile(r"(?<=\n\n)|(?<=[.!?] )|(?<=[。！？\n])")


@dataclass(frozen=True)
class Kind:
    """A kind of text.

    Attributes:
        file: of the assets.
        unit: what is never cut.
        without: a file whose lines are left out: what a translation has left in English.
    """

    file: str
    unit: re.Pattern[str] = _SENTENCE
    without: str | None = None


def _handbook(language: str) -> Kind:
    return Kind(f"data/handbook/{language}.txt", without="data/handbook/en-US.txt")


KINDS = {
    "documentation": Kind("data/python_docs/python_docs.txt", _PARAGRAPH),
    "speeches": Kind("data/sotu/sotu.txt"),
    "code": Kind("data/code/python_stdlib.txt", _PARAGRAPH),
    "mathematics": Kind("data/gsm8k/test.jsonl"),
    "prose": Kind("data/moby_dick/moby_dick.txt"),
    "handbook": Kind("data/handbook/en-US.txt"),
    "french": _handbook("fr-FR"),
    "italian": _handbook("it-IT"),
    "chinese": _handbook("zh-CN"),
    "japanese": _handbook("ja-JP"),
}


def missing_files(assets: Path, kinds: list[str]) -> list[str]:
    """Files of these kinds that are not there."""
    return sorted({KINDS[kind].file for kind in kinds if not (assets / KINDS[kind].file).is_file()})


class Texts:
    """Pieces of texts, the same on every machine.

    Args:
        assets: the folder of the files.
    """

    def __init__(self, assets: Path) -> None:
        self.assets = assets
        self._pieces: dict[tuple[str, int], list[str]] = {}

    def pieces(self, kind: str, most: int) -> list[str]:
        """All pieces of a kind, from half of ``most`` to ``most`` bytes; in an order that says nothing."""
        key = kind, most
        if key not in self._pieces:
            found = dict.fromkeys(self._cut(KINDS[kind], most))
            self._pieces[key] = sorted(found, key=digest_of)
        return self._pieces[key]

    def held_out(self, kind: str, most: int, size: int, seed: int | None) -> list[str]:
        """The first pieces until they have ``size`` bytes: of a seed's fold, or, of what no run trains on, of all."""
        taken, left = [], size
        for piece in self.pieces(kind, most):
            if left <= 0:
                break
            if seed is None or _in_fold(piece, seed):
                taken.append(piece)
                left -= len(piece.encode())
        return taken

    def to_train_on(self, kind: str, most: int, seed: int) -> Callable[[int], str]:
        """The piece of a step, from 0 on: all that are not held out, in the seed's order, and again in another."""
        rest = [piece for piece in self.pieces(kind, most) if not _in_fold(piece, seed)]

        def at(step: int) -> str:
            order = list(range(len(rest)))
            random.Random(f"{seed} {step // len(rest)}").shuffle(order)
            return rest[order[step % len(rest)]]

        return at

    def _cut(self, kind: Kind, most: int) -> Iterator[str]:
        path = self.assets / kind.file
        text = path.read_text("utf-8")
        if path.suffix == ".jsonl":
            for line in text.splitlines():
                row = json.loads(line)
                yield f"Question: {row['question']}\nAnswer: {row['answer']}"
            return
        if kind.without is not None:
            known = {line for line in (self.assets / kind.without).read_text("utf-8").splitlines() if len(line) > 20}
            text = "\n".join(line for line in text.splitlines() if line not in known)
        piece, size = list[str](), 0
        for unit in [*kind.unit.split(text), None]:
            length = 0 if unit is None else len(unit.encode())
            if unit is None or size + length > most:
                whole = "".join(piece).strip()
                if most // 2 <= len(whole.encode()) <= most:
                    yield whole
                piece, size = [], 0
            if unit is not None and length <= most:
                piece.append(unit)
                size += length


def _in_fold(piece: str, seed: int) -> bool:
    return int(digest_of(str(seed), piece)[:8], 16) % FOLDS == 0
