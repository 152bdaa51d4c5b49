"""Conversations -> ids on both sides and chunks of what the assistant says."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from nemo_xtoken.alignment.aligned import AlignedBatch, AlignedDocument
from nemo_xtoken.alignment.aligner import Aligner
from nemo_xtoken.alignment.told import Told
from nemo_xtoken.data.conversation.chat import Message, messages_of
from nemo_xtoken.data.conversation.comparable import regions
from nemo_xtoken.data.conversation.parts import Part, mark, words_of
from nemo_xtoken.data.templates import ChatTemplate, NotRendered, Rendered
from nemo_xtoken.data.workers import Text
from nemo_xtoken.errors import InputError
from nemo_xtoken.vocab import Vocabulary
from nemo_xtoken.vocab.seams import Piece

__all__ = ["ConversationAligner", "is_refused"]

_NO_IDS = np.empty(0, np.int32)
_NO_CHUNKS = np.empty((0, 4), np.int32)
_LOOKED_AT = 8  # tokens at the beginning of a turn, in which the first word is found


@dataclass(frozen=True)
class ConversationAligner:
    """Each side renders a conversation with its own template; turn by turn, the assistant's words are aligned.

    Everything else of either side (system prompt, questions, markers) is context: its ids are stored as ``~id``, it
    has no labels and no chunks.  The token that ends a turn is a chunk where it plays the same role on both sides, and
    a label of each side in any case.  A turn that the teacher's template leaves out is a label of the student's alone.
    Of turns with reasoning or calls, which each template writes in its own form, that is aligned which both write
    (`nemo_xtoken.data.conversation.comparable`).

    The first word of a turn may be one token with a blank that the template has put in front of it.  Where the
    teacher's turn lacks that blank because it is a token of its own there, the blank is taken into the turn.  Otherwise
    the two first words are different texts, and no chunk: ``" Yes"`` of a student says nothing about ``"Yes"`` of a
    teacher, whose vocabulary has both.

    A conversation that a template cannot render becomes a document without ids (see `is_refused`); why, and what else
    the templates leave out, is told.
    """

    student: ChatTemplate
    teacher: ChatTemplate
    aligner: Aligner

    def __call__(self, texts: Sequence[Text]) -> AlignedBatch:
        conversations = [messages_of(text.piece.text) for text in texts]
        sides = self.student.attempt(conversations), self.teacher.attempt(conversations)
        out, told = [], Told()
        for (digest, _), messages, student, teacher in zip(texts, conversations, *sides, strict=True):
            if isinstance(student, InputError) or isinstance(teacher, InputError):
                for side, found in (("student", student), ("teacher", teacher)):
                    if isinstance(found, InputError):
                        reason = found.reason if isinstance(found, NotRendered) else found.found
                        told.add(f"left out, as the {side}'s template cannot render them: {reason}", digest)
                        break
                out.append(AlignedDocument(digest, _NO_IDS, _NO_IDS, _NO_CHUNKS))
                continue
            for side, rendered in (("student", student), ("teacher", teacher)):
                for what in rendered.left_out:
                    told.add(f"without {what}, which the {side}'s template does not write (all or some)", digest)
            if not student.turns:
                told.add("left out, as there is nothing to learn in what the student's template writes", digest)
                out.append(AlignedDocument(digest, _NO_IDS, _NO_IDS, _NO_CHUNKS))
                continue
            out.append(self._aligned(digest, messages, student, teacher))
        return AlignedBatch.of(out, told)

    def pieces(self, text: str) -> Iterable[Piece]:
        """A conversation is rendered as a whole."""
        return [Piece(text)]

    def settle(self, student_ids: np.ndarray, teacher_ids: np.ndarray) -> np.ndarray:
        """Never called: no conversation comes in pieces."""
        raise NotImplementedError

    def _aligned(
        self, digest: bytes, messages: Sequence[Message], student: Rendered, teacher: Rendered
    ) -> AlignedDocument:
        found = [_NO_CHUNKS]
        turns, before = dict(teacher.turns), 0
        parts = mark(messages)[1] if student.texts or teacher.texts else []
        for number in sorted(student.turns.keys() & teacher.turns.keys()):
            (s, s_end), (t, t_end) = student.turns[number], teacher.turns[number]
            if number in student.texts:
                chunks = self._of_parts(messages[number], number, parts, student, teacher)
            else:
                words = messages[number].text.encode()
                leads = (
                    _lead(self.student.vocabulary, student.ids[s:s_end], words),
                    _lead(self.teacher.vocabulary, teacher.ids[t:t_end], words),
                )
                t -= _of_lead(self.teacher.vocabulary, teacher.ids[before:t], *leads)
                turns[number] = t, t_end
                chunks = self.aligner.align(student.ids[s:s_end], teacher.ids[t:t_end])
            before = t_end
            found.append((chunks + np.array([s, s, t, t], np.int32)).astype(np.int32))
        ids = _learned(student), _learned(teacher._replace(turns=turns))
        return AlignedDocument(digest, *ids, _of_labels(np.concatenate(found), *ids))

    def _of_parts(
        self, message: Message, number: int, parts: Sequence[Part], student: Rendered, teacher: Rendered
    ) -> np.ndarray:
        """The chunks of a turn with reasoning or calls, counted from the beginnings of the turns."""
        one, other = student.texts[number], teacher.texts.get(number)
        (s, _), (t, _) = student.turns[number], teacher.turns[number]
        if one is None or other is None:  # a tokenizer that changes the text
            return _NO_CHUNKS
        found = [_NO_CHUNKS]
        for a, b, c, d in regions(one, other, parts, words_of(message.calls)):
            chunks = self.aligner.align(student.ids[s + a : s + b], teacher.ids[t + c : t + d])
            found.append((chunks + np.array([a, a, c, c], np.int32)).astype(np.int32))
        return np.concatenate(found)


def is_refused(student_lengths: np.ndarray, teacher_lengths: np.ndarray) -> np.ndarray:
    """bool ``[N]``: documents without ids on both sides, which a template cannot render."""
    return (student_lengths == 0) & (teacher_lengths == 0)


def _lead(vocabulary: Vocabulary, ids: np.ndarray, words: bytes) -> bytes | None:
    """The template's text in front of the assistant's words in the first tokens of a turn; None: they are not found."""
    start = vocabulary.decode_bytes(ids[:_LOOKED_AT])
    sure = min(len(words), _LOOKED_AT)  # bytes that agree
    for length in range(len(start) - sure + 1):
        if words.startswith(start[length : length + len(words)]):
            return start[:length]
    return None


def _of_lead(vocabulary: Vocabulary, ids: np.ndarray, student: bytes | None, teacher: bytes | None) -> int:
    """How many tokens in front of the teacher's turn are the rest of the student's lead.

    Args:
        ids: the teacher's context in front of the turn.
        student, teacher: what stands in front of the words on each side.
    """
    if student is None or teacher is None or len(student) <= len(teacher) or not student.endswith(teacher):
        return 0
    rest, count = student[: len(student) - len(teacher)], 0
    while rest and count < len(ids):
        data = vocabulary.token_bytes[int(ids[-1 - count])]
        if not data or not rest.endswith(data):
            return 0
        rest, count = rest[: -len(data)], count + 1
    return 0 if rest else count


def _learned(side: Rendered) -> np.ndarray:
    """The ids of a side, ``~id`` where they are no labels: outside of the assistant's turns, say."""
    ids = ~side.ids
    for start, end in side.turns.values():
        ids[start:end] = side.ids[start:end]
    ids[side.unlearned] = ~side.ids[side.unlearned]
    return ids


def _of_labels(chunks: np.ndarray, student_ids: np.ndarray, teacher_ids: np.ndarray) -> np.ndarray:
    """The chunks all of whose tokens are labels."""
    keep = np.ones(len(chunks), bool)
    for ids, at in ((student_ids, 0), (teacher_ids, 2)):
        no = np.concatenate([[0], np.cumsum(ids < 0)])
        keep &= no[chunks[:, at + 1]] == no[chunks[:, at]]
    return chunks[keep]
