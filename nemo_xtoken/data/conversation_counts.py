"""What two chat templates make of the first conversations of a data set, for an audit."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from nemo_xtoken.alignment.aligned import text_digest
from nemo_xtoken.alignment.aligner import Aligner
from nemo_xtoken.data.conversation.parts import learned_kinds
from nemo_xtoken.data.documents import place_of
from nemo_xtoken.data.skipped import Skipped
from nemo_xtoken.data.sources import Reading, resolve_sources
from nemo_xtoken.data.templates import ChatTemplate
from nemo_xtoken.data.turns import ConversationAligner
from nemo_xtoken.data.workers import Text
from nemo_xtoken.vocab import Vocabulary
from nemo_xtoken.vocab.seams import Piece

__all__ = ["ConversationCounts", "count_conversations"]

_AT_ONCE = 200


@dataclass(frozen=True)
class ConversationCounts:
    """Of the conversations that were looked at.

    Attributes:
        conversations: how many, and ``left_out`` of them.
        labels, compared: tokens of the student that are learned, and those of them in a chunk.
        told: what is left out and why, a line each.
    """

    conversations: int
    left_out: int
    labels: int
    compared: int
    told: Sequence[str]

    def __str__(self) -> str:
        share = self.compared / max(self.labels, 1)
        lines = [
            f"{self.conversations:,} conversations, {self.left_out:,} of them left out",
            f"{self.labels:,} labels of the student, {share:.1%} of them compared with the teacher's",
        ]
        return "\n  ".join([*lines, *self.told])


def count_conversations(
    paths: Sequence[str],
    student: Vocabulary,
    teacher: Vocabulary,
    reading: Reading,
    most: int = 1000,
    template: str | None = None,
) -> ConversationCounts:
    """Renders and aligns the first ``most`` conversations.

    Args:
        template: the student's chat template; by default its tokenizer's.

    Raises:
        InputError: no conversations at the paths, or a tokenizer without a chat template.
    """
    learn = learned_kinds(reading.learn)
    templates = ChatTemplate(student, template, learn), ChatTemplate(teacher, learn=learn)
    align = ConversationAligner(*templates, Aligner(student, teacher))
    sources, skipped = resolve_sources(paths, reading), Skipped()
    texts = itertools.islice((text for source in sources for text in source.texts(skipped)), most)
    count = gone = labels = compared = 0
    lines: dict[str, tuple[int, bytes]] = {}
    while some := list(itertools.islice(texts, _AT_ONCE)):
        batch = align([Text(text_digest(text), Piece(text)) for text in some])
        count += len(batch)
        gone += int((batch.student_lengths == 0).sum())
        labels += int((batch.student_ids >= 0).sum())
        compared += int((batch.chunks[:, 1] - batch.chunks[:, 0]).sum())
        for sentence, number, digest in batch.told:
            before, first = lines.get(sentence, (0, digest))
            lines[sentence] = before + number, first
    told = [f"{n:,} {sentence} ({place_of(sources, first)})" for sentence, (n, first) in sorted(lines.items())]
    return ConversationCounts(count, gone, labels, compared, [*told, *([str(skipped)] if skipped.counts else [])])
