"""How much of a text each loss scores: the share of the student's tokens that it compares fully, in part, or not."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass

import numpy as np
import torch

from nemo_xtoken.alignment.aligner import Aligner
from nemo_xtoken.losses.chunks import scored_chunks
from nemo_xtoken.losses.pair import VocabularyPair
from nemo_xtoken.losses.registry import chunk_selection, loss_named

__all__ = ["TextCoverage", "losses_on_text"]


@dataclass(frozen=True)
class TextCoverage:
    """Of one loss on one text.

    Attributes:
        tokens: the student's.
        full: those at which it compares the two sides' distributions.
        part: those of chunks of several tokens of which it compares one position, or one mean, and at most the
            probability of what follows.
        none: those without any signal from the teacher: of chunks that it leaves out, or of no chunk.
    """

    tokens: int
    full: int
    part: int
    none: int

    def share(self, kind: str) -> float:
        """Of ``full``, ``part`` or ``none``; 0 for an empty text."""
        return float(asdict(self)[kind] / max(self.tokens, 1))


def losses_on_text(pair: VocabularyPair, names: Mapping[str, None] | list[str], text: str) -> dict[str, TextCoverage]:
    """What each of these losses scores of a text.

    The text stands in the middle of a document: its first token has a predictor on both sides.

    Args:
        pair: the vocabularies.
        names: of losses, not ``"auto"``.
    """
    ids = [v.encode(text).astype(np.int64) for v in (pair.student, pair.teacher)]
    found = Aligner(pair.student, pair.teacher).align(*ids).astype(np.int64)
    sizes = found[:, 1] - found[:, 0], found[:, 3] - found[:, 2]
    columns = np.zeros(len(found), np.int64), found[:, 0], sizes[0], found[:, 2], sizes[1]
    chunks = torch.from_numpy(np.stack(columns, axis=1))
    labels = [torch.from_numpy(x).unsqueeze(0) for x in ids]
    out = {}
    for name in names:
        selection = chunk_selection(name, pair)
        taken = chunks
        if selection is not None and len(found):
            taken = scored_chunks(selection, labels[0], labels[1], chunks)
        tokens = taken[:, 2]
        whole = (tokens == 1) & (taken[:, 4] == 1) | loss_named(name).every_position
        full, some = int(tokens[whole].sum()), int(tokens.sum())
        out[name] = TextCoverage(len(ids[0]), full, some - full, len(ids[0]) - some)
    return out
