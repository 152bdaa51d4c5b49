"""From a text to the chunks that a certificate looks at, and what a perfectly agreeing pair says at each."""

from dataclasses import dataclass

import numpy as np

from nemo_xtoken.alignment.aligner import Aligner
from nemo_xtoken.certify.agreement import Agreement, Continuation
from nemo_xtoken.certify.certify_config import CertifyConfig
from nemo_xtoken.certify.spellings import Spellings, spread
from nemo_xtoken.errors import InputError
from nemo_xtoken.projection.token_classes import class_of_bytes
from nemo_xtoken.vocab.vocabulary import Vocabulary

__all__ = ["KINDS", "Case", "build_cases"]

#: Kinds of chunks, with readable names: student tokens to teacher tokens.
KINDS = {
    "one_to_one": "1 to 1",
    "one_to_several": "1 to several",
    "several_to_one": "several to 1",
    "several_to_several": "several to several",
}
#: Of the mass that the right continuation leaves, what near ones take; the floor has the rest.
NEAR_SHARE = 13 / 14


@dataclass(frozen=True)
class Case:
    """One chunk.

    Attributes:
        text: its bytes as readable text.
        kind: one of `KINDS`.
        agreement: what both models say there.
    """

    text: str
    kind: str
    agreement: Agreement


def build_cases(spellings: Spellings, text: str, config: CertifyConfig) -> list[Case]:
    """The chunks of ``text`` that are looked at, at most ``config.chunks`` of each kind, with what is said at each.

    The right continuation is the chunk.  What competes with it, by the chunk's kind:

    - 1 to 1: tokens that both vocabularies have.  Both models give equal tokens equal mass.
    - 1 student token, several of the teacher: student tokens; the teacher is what follows from them.
    - several student tokens, 1 or more of the teacher: teacher tokens, of which the student's distribution follows,
      and for the floor student tokens as well.

    Raises:
        InputError: the text has no chunk that both sides write with the same bytes, or a tokenizer has no end of text.
    """
    student, teacher = spellings.sides
    ends = _ends(student, teacher)
    floors = {
        "one_to_one": spellings.continuations(0, spread(spellings.exact[0], config.floor)),
        "one_to_several": spellings.continuations(0, spread(spellings.usable(0), config.floor)),
    }
    mirrored = spellings.continuations(1, spread(spellings.usable(1), config.floor))
    floors["several_to_one"] = floors["several_to_several"] = mirrored + floors["one_to_several"]
    cases = []
    for kind, right in _chosen(spellings, text, config.chunks):
        near = _near(spellings, kind, right, config.near)
        weights = _weights(right, near, floors[kind], config.probability)
        data = student.decode_bytes(right.student)
        cases.append(Case(data.decode("utf-8", "backslashreplace"), kind, Agreement(right, weights, ends)))
    if not cases:
        raise InputError(
            f"a text of {len(text)} characters without a chunk that {student.name} and {teacher.name} both write",
            "a text in a script that both tokenizers know",
            "give another text",
        )
    return cases


def _ends(student: Vocabulary, teacher: Vocabulary) -> tuple[int, int]:
    """An end-of-text token of each side, of one role if there is such a role."""
    for role in ("eos", "eot", "pad"):
        if role in student.id_of_role and role in teacher.id_of_role:
            return student.id_of_role[role], teacher.id_of_role[role]
    ends = []
    for vocabulary in (student, teacher):
        if vocabulary.eos_id is None:
            raise InputError(
                f"the tokenizer {vocabulary.name} without an end of text", "an eos token", "name one in its config"
            )
        ends.append(vocabulary.eos_id)
    return ends[0], ends[1]


def _chosen(spellings: Spellings, text: str, most: int) -> list[tuple[str, Continuation]]:
    """Different chunks of each kind, in turn from the classes of tokens that they belong to, in the text's order."""
    student, teacher = spellings.sides
    ids = student.encode(text), teacher.encode(text)
    found: dict[str, dict[str, dict[Continuation, None]]] = {kind: {} for kind in KINDS}
    for s0, s1, t0, t1 in Aligner(student, teacher).align(*ids).tolist():
        chunk = Continuation(tuple(ids[0][s0:s1].tolist()), tuple(ids[1][t0:t1].tolist()))
        if spellings.agree(chunk):
            classes = found[_kind(chunk)]
            classes.setdefault(class_of_bytes(student.decode_bytes(chunk.student)), {}).setdefault(chunk)
    chosen = []
    for kind, classes in found.items():
        queues = [list(chunks) for chunks in classes.values()]
        turns = [queue[i] for i in range(max(map(len, queues), default=0)) for queue in queues if i < len(queue)]
        chosen += [(kind, chunk) for chunk in turns[:most]]
    return chosen


def _kind(chunk: Continuation) -> str:
    many = len(chunk.student) > 1, len(chunk.teacher) > 1
    return list(KINDS)[2 * many[0] + many[1]]


def _near(spellings: Spellings, kind: str, right: Continuation, number: int) -> list[Continuation]:
    data = spellings.sides[0].decode_bytes(right.student)
    side = 0 if kind in ("one_to_one", "one_to_several") else 1
    if kind == "one_to_one":
        tokens, alike = spellings.exact[0], spellings.begins_with(0, data[0])
    else:
        tokens, alike = spellings.usable(side), spellings.first[side] == right[1 - side][0]
    tokens = tokens.copy()
    if len(right[side]) == 1:
        tokens[right[side][0]] = False
    return spellings.continuations(side, spellings.near(side, data, tokens, alike, number))


def _weights(
    right: Continuation, near: list[Continuation], floor: list[Continuation], probability: float
) -> dict[Continuation, float]:
    """``probability`` on the right one; near ones in proportion to 1, 1/2, 1/3, ..; the floor evenly."""
    floor = [c for c in floor if c != right]
    share = (NEAR_SHARE if floor else 1.0) if near else 0.0
    falling = 1 / np.arange(1, len(near) + 1)
    weights = {right: probability}
    for part, shares in ((near, share * falling / falling.sum()), (floor, np.full(len(floor), 1 - share))):
        for continuation, weight in zip(part, shares / (1 if part is near else max(len(floor), 1)), strict=True):
            weights[continuation] = weights.get(continuation, 0.0) + (1 - probability) * float(weight)
    total = sum(weights.values())  # 1, unless there is nothing but the right one
    return {continuation: weight / total for continuation, weight in weights.items()}
