"""What the student makes of beginnings of held-out texts: which beginnings, and how it is shown and kept."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemo_xtoken.data.batch import IGNORED, Batch
from nemo_xtoken.files import atomic_path
from nemo_xtoken.training.watching.sample_settings import SampleConfig
from nemo_xtoken.vocab.vocabulary import Vocabulary

__all__ = ["Continuation", "Prompt", "SampleBook", "find_prompts"]

#: Samples of the held-out set that are looked through for beginnings; and a conversation's may be so much longer.
LOOKED_AT, LONGER = 64, 8
#: Characters of a side on the terminal.
SHOWN = 48
_HEADING = re.compile(r"^## after step ([\d,]+)$", re.MULTILINE)


@dataclass(frozen=True)
class Prompt:
    """
    Attributes:
        ids: of the beginning.
        following: how the text goes on.
    """

    ids: tuple[int, ...]
    following: tuple[int, ...]


@dataclass(frozen=True)
class Continuation:
    """
    Attributes:
        beginning, said, text: of the held-out text; what the student says then; how the text goes on.
    """

    beginning: str
    said: str
    text: str

    @classmethod
    def of(cls, prompt: Prompt, said: Sequence[int], vocabulary: Vocabulary) -> "Continuation":
        """In words."""
        return cls(*(_words(ids, vocabulary) for ids in (prompt.ids, said, prompt.following)))

    @property
    def short(self) -> str:
        """In a line."""
        beginning, said = (" ".join(text.split()) for text in (self.beginning, self.said))
        left = beginning if len(beginning) <= SHOWN else f"..{beginning[-SHOWN:]}"
        right = said if len(said) <= SHOWN else f"{said[:SHOWN]}.."
        return f"after {left!r} it says {right!r}"

    @property
    def long(self) -> str:
        """With line breaks."""
        return f"beginning: {self.beginning}\nstudent:   {self.said}\ntext:      {self.text}"


def find_prompts(samples: Any, config: SampleConfig) -> list[Prompt]:
    """Beginnings of held-out texts, of different samples where there are enough; the same in every process.

    A conversation's is all that the student does not learn before the first answer.

    Args:
        samples: a data set of batches of one sample.
    """
    if not config.count:
        return []
    found: list[list[Prompt]] = []
    for number in range(min(len(samples), LOOKED_AT)):
        found.append(_prompts(samples[number], config))
        if sum(map(bool, found)) >= config.count:
            break
    rounds = [[prompts[n] for prompts in found if len(prompts) > n] for n in range(max(map(len, found), default=0))]
    return [prompt for one in rounds for prompt in one][: config.count]


def _prompts(sample: Batch, config: SampleConfig) -> list[Prompt]:
    side, found = sample.student, []
    for _, first, size, token in side.pieces.tolist():
        ids = side.tokens[0, first : first + size].tolist()
        learned = (side.labels[0, first : first + size] != IGNORED).nonzero().flatten().tolist()
        if token or not learned:
            continue
        end = learned[0] + 1 if learned[0] else min(config.prompt_tokens, size // 2)
        if 0 < end <= LONGER * config.prompt_tokens and end < size:
            found.append(Prompt(tuple(ids[:end]), tuple(ids[end : end + config.new_tokens])))
    return found


def _words(ids: Sequence[int], vocabulary: Vocabulary) -> str:
    """Text, with the spelling of special tokens."""
    parts = [
        vocabulary.token_bytes[i] or vocabulary.display(i).encode() if i < vocabulary.size else b"<no token>"
        for i in ids
    ]
    return b"".join(parts).decode(errors="replace")


class SampleBook:
    """The file of a run's continuations, for people; on the first rank.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def begin(self, step: int) -> None:
        """Drops what a run that goes on after a step has written of later ones."""
        if not self.path.is_file():
            return
        text = self.path.read_text("utf-8", errors="replace")
        later = next((m.start() for m in _HEADING.finditer(text) if not step or _number(m) > step), None)
        if later is not None:
            with atomic_path(self.path) as temporary:
                temporary.write_text(text[:later], "utf-8")

    def add(self, step: int, samples: Sequence[Continuation]) -> None:
        """What the student says after a step; once."""
        there = self.path.read_text("utf-8", errors="replace") if self.path.is_file() else ""
        if not samples or any(_number(match) == step for match in _HEADING.finditer(there)):
            return
        blocks = "".join(f"\n{_indented(one.long)}\n" for one in samples)
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(f"## after step {step:,}\n{blocks}\n")


def _number(heading: re.Match[str]) -> int:
    return int(heading[1].replace(",", ""))


def _indented(text: str) -> str:
    """As a block of code; no line of it can be a heading."""
    return "\n".join(f"    {line}" for line in text.splitlines())
