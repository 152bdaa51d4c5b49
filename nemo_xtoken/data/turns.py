"""Conversations -> ids on both sides and chunks of what the assistant says."""

from dataclasses import dataclass

import numpy as np

from nemo_xtoken.alignment.aligner import Aligner
from nemo_xtoken.alignment.cache import AlignedDocument
from nemo_xtoken.data.chat import messages_of
from nemo_xtoken.data.templates import ChatTemplate, Rendered

__all__ = ["ConversationAligner"]


@dataclass(frozen=True)
class ConversationAligner:
    """Each side renders a conversation with its own template; turn by turn, the assistant's words are aligned.

    Everything else of either side (system prompt, questions, markers) is context: its ids are stored as ``~id``, it
    has no labels and no chunks.  The token that ends a turn is a chunk where it plays the same role on both sides, and
    a label of each side in any case.  A turn that the teacher's template leaves out is a label of the student's alone.
    """

    student: ChatTemplate
    teacher: ChatTemplate
    aligner: Aligner

    def __call__(self, documents: list[tuple[bytes, str]]) -> list[AlignedDocument]:
        conversations = [messages_of(text) for _, text in documents]
        out = []
        sides = zip(documents, self.student(conversations), self.teacher(conversations), strict=True)
        for (digest, _), student, teacher in sides:
            parts = [np.empty((0, 4), np.int32)]
            for number in sorted(student.turns.keys() & teacher.turns.keys()):
                (s, s_end), (t, t_end) = student.turns[number], teacher.turns[number]
                chunks = self.aligner.align(student.ids[s:s_end], teacher.ids[t:t_end])
                parts.append((chunks + np.array([s, s, t, t], np.int32)).astype(np.int32))
            out.append(AlignedDocument(digest, _learned(student), _learned(teacher), np.concatenate(parts)))
        return out


def _learned(side: Rendered) -> np.ndarray:
    """The ids of a side, ``~id`` outside of the assistant's turns."""
    ids = ~side.ids
    for start, end in side.turns.values():
        ids[start:end] = side.ids[start:end]
    return ids
