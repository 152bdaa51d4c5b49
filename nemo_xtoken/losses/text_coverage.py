"""How much of a text each loss scores: of the student's tokens, and of the bits that the teacher needs for it.

The two differ: what a teacher finds hard to guess, such as numerals and names, is often what tokenizers cut
differently.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass

import numpy as np
import torch

from nemo_xtoken.alignment.aligner import Aligner
from nemo_xtoken.losses.chunks import scored_chunks
from nemo_xtoken.losses.pair import VocabularyPair
from nemo_xtoken.losses.registry import chunk_selection, loss_named
from nemo_xtoken.losses.sample_texts import SAMPLES

__all__ = ["ENOUGH", "Parts", "TextCoverage", "least_scored_sample", "losses_on_text"]


#: Of a sample's tokens a loss scores so many in full, or a run with ``loss="auto"`` is warned.
ENOUGH = 0.95


@dataclass(frozen=True)
class Parts:
    """What a loss scores, in one unit.

    Attributes:
        full: where it compares the two sides' distributions.
        part: of chunks of several tokens of which it compares one position, or one mean, and at most the probability
            of what follows.
        none: without any signal from the teacher: of chunks that it leaves out, or of no chunk.
    """

    full: float
    part: float
    none: float

    @property
    def total(self) -> float:
        """Of the text."""
        return self.full + self.part + self.none

    def share(self, kind: str) -> float:
        """Of ``full``, ``part`` or ``none``; 0 for an empty text."""
        return float(asdict(self)[kind] / self.total) if self.total else 0.0


@dataclass(frozen=True)
class TextCoverage:
    """Of one loss on one text.

    Attributes:
        tokens: the student's tokens.
        bits: of the teacher, ``-log2`` of the probabilities of its tokens; None: no teacher was asked.
    """

    tokens: Parts
    bits: Parts | None = None


def losses_on_text(
    pair: VocabularyPair, names: Iterable[str], text: str, teacher_bits: np.ndarray | None = None
) -> dict[str, TextCoverage]:
    """What each of these losses scores of a text.

    The text stands in the middle of a document: its first token has a predictor on both sides.

    Args:
        pair: the vocabularies.
        names: of losses, not ``"auto"``.
        teacher_bits: float64 ``[T_T]``, of each of the teacher's tokens.
    """
    ids = [v.encode(text).astype(np.int64) for v in (pair.student, pair.teacher)]
    found = Aligner(pair.student, pair.teacher).align(*ids).astype(np.int64)
    sizes = found[:, 1] - found[:, 0], found[:, 3] - found[:, 2]
    columns = np.zeros(len(found), np.int64), found[:, 0], sizes[0], found[:, 2], sizes[1]
    chunks = torch.from_numpy(np.stack(columns, axis=1))
    labels = [torch.from_numpy(x).unsqueeze(0) for x in ids]
    bits = None if teacher_bits is None else np.concatenate([[0.0], np.cumsum(teacher_bits)])
    out = {}
    for name in names:
        selection = chunk_selection(name, pair)
        taken = chunks
        if selection is not None and len(found):
            taken = scored_chunks(selection, labels[0], labels[1], chunks)
        _, _, students, first, teachers = taken.numpy().T
        whole = (students == 1) & (teachers == 1) | loss_named(name).every_position

        def parts(of_chunk: np.ndarray, total: float, whole: np.ndarray = whole) -> Parts:
            full, some = of_chunk[whole].sum(), of_chunk.sum()
            return Parts(full.item(), (some - full).item(), max(total - some.item(), 0))  # -0.0: rounding

        out[name] = TextCoverage(
            parts(students, len(ids[0])),
            None if bits is None else parts(bits[first + teachers] - bits[first], bits[-1].item()),
        )
    return out


def least_scored_sample(pair: VocabularyPair, loss: str) -> tuple[str, Parts]:
    """The kind of sample text of whose tokens a loss scores the least in full, and what it scores of them.

    Args:
        loss: not ``"auto"``.
    """
    found = {kind: losses_on_text(pair, [loss], text)[loss].tokens for kind, text in SAMPLES.items()}
    worst = min(found, key=lambda kind: found[kind].share("full"))
    return worst, found[worst]
