"""Building W by the two passes of X-Token (arXiv 2605.21699, section 3): exact tokens, then pieces.

Pass 1 gives a student token whose canonical form (bytes, or role) is a teacher token's the weight 1 on it.  Pass 2
re-tokenizes the text of each other student token with the teacher's tokenizer and weighs the pieces by a decaying
sequence.  Nothing else puts mass anywhere, so the same tokenizers and rule give the same bytes.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError

from nemo_xtoken.errors import InputError
from nemo_xtoken.files import cache_root, digest_of
from nemo_xtoken.projection.matrix import FORMAT_VERSION, ProjectionMatrix
from nemo_xtoken.vocab.vocabulary import Vocabulary

__all__ = ["RULES", "ProjectionRule", "build_projection", "load_or_build", "spell_strings", "spell_tokens"]

logger = logging.getLogger(__name__)

#: The rules that have names, as what they change of the defaults.  "paper" is X-Token's: the paper speaks of at most 4
#: pieces, and its authors' own code keeps the first 4 of a longer token.  "prefix" puts all weight on the first piece,
#: so that `W^T p_S` is exactly the distribution of the first teacher token of what the student says.  "whole" leaves
#: the row of a token empty that 4 pieces do not spell to its end; files of W that are older than its name say "paper".
RULES: dict[str, dict[str, Any]] = {"paper": {}, "prefix": {"gamma": 0.0}, "whole": {"overflow": "empty"}}


@dataclass(frozen=True)
class ProjectionRule:
    """How the pieces of a student token that the teacher lacks share its row.

    Attributes:
        beta: weight of the first piece before the row is normalised.
        gamma: factor from one piece to the next; 0 leaves all weight on the first.
        max_pieces: most pieces a row may have.
        overflow: ``"truncate"`` keeps the first pieces of a longer token, ``"empty"`` leaves its row empty (beside each
            other: docs/learning.md#defaults).
    """

    beta: float = 0.9
    gamma: float = 0.1
    max_pieces: int = 4
    overflow: str = "truncate"

    def __post_init__(self) -> None:
        wrong = [
            f"{name}={value!r} ({rule})"
            for name, value, good, rule in (
                ("beta", self.beta, 0 < self.beta <= 1000, "above 0, up to 1000"),
                ("gamma", self.gamma, 0 <= self.gamma <= 1, "from 0 to 1"),
                ("max_pieces", self.max_pieces, 1 <= self.max_pieces <= 64, "from 1 to 64"),
                ("overflow", self.overflow, self.overflow in ("empty", "truncate"), "'empty' or 'truncate'"),
            )
            if not good
        ]
        if wrong:
            raise InputError(f"a rule for W with {', '.join(wrong)}", "values in those ranges", "change the rule")

    @classmethod
    def named(cls, name: str, **changes: Any) -> "ProjectionRule":
        """The rule of that name in `RULES`, with parameters changed where some are given.

        Raises:
            InputError: no such name, or a parameter out of its range.
        """
        if name not in RULES:
            raise InputError(f"a rule for W named {name!r}", f"one of {', '.join(RULES)}", "change the name")
        return cls(**(RULES[name] | changes))

    @property
    def width(self) -> int:
        """Most entries that a row can have."""
        return self.max_pieces if self.gamma > 0 else 1

    def weights(self, pieces: int) -> np.ndarray:
        """float64 ``[pieces]``, summing to 1: ``beta * gamma**i``, normalised."""
        raw = self.beta * np.power(self.gamma, np.arange(pieces))
        return raw / raw.sum()


def build_projection(student: Vocabulary, teacher: Vocabulary, rule: ProjectionRule | None = None) -> ProjectionMatrix:
    """Builds W ``[V_S, V_T]`` for a pair of tokenizers; about a second for 128k x 152k."""
    rule = rule or ProjectionRule()
    ids = np.full((student.size, rule.width), -1, dtype=np.int32)
    weights = np.zeros((student.size, rule.width), dtype=np.float32)
    kinds = dict.fromkeys(("exact", "multi", "truncated", "empty"), 0)

    rest: list[int] = []
    for s, token in enumerate(student.token_bytes):
        if token is None:
            role = student.roles.get(s)
            t = teacher.id_of_role.get(role) if role is not None else None
        else:
            t = teacher.id_of_bytes.get(token)
        if t is not None:
            ids[s, 0], weights[s, 0] = t, 1.0
            kinds["exact"] += 1
        elif token:
            rest.append(s)
        else:
            kinds["empty"] += 1  # a role the teacher lacks, a token without text, or a gap in the ids

    shares = {n: rule.weights(n).tolist() for n in range(1, rule.max_pieces + 1)}
    rows: list[int] = []
    slots: list[int] = []
    targets: list[int] = []
    values: list[float] = []
    for s, pieces in spell_tokens(student, teacher, rest):
        kind = "multi"
        if len(pieces) > rule.max_pieces:
            kind = "truncated" if rule.overflow == "truncate" else "empty"
            pieces = pieces[: rule.max_pieces] if kind == "truncated" else []
        kinds[kind if pieces else "empty"] += 1
        row: dict[int, float] = {}  # one entry per teacher token, also where a piece repeats ("111")
        for t, weight in zip(pieces, shares.get(len(pieces), ()), strict=True):
            row[t] = row.get(t, 0.0) + weight
        rows += [s] * len(row)
        slots += range(len(row))
        targets += row.keys()
        values += row.values()
    shared = np.array(values, dtype=np.float32)
    some = shared > 0  # where gamma is 0, or its power vanishes, the last pieces get nothing
    at = np.array(rows, dtype=np.int64)[some], np.array(slots, dtype=np.int64)[some]
    ids[at], weights[at] = np.array(targets, dtype=np.int32)[some], shared[some]

    matrix = ProjectionMatrix(
        ids=ids,
        weights=weights,
        teacher_size=teacher.size,
        student_digest=student.digest,
        teacher_digest=teacher.digest,
        rule=asdict(rule),
        coverage=kinds,
    )
    matrix.coverage["reached"] = int(matrix.reached.sum())
    return matrix


def spell_tokens(student: Vocabulary, teacher: Vocabulary, tokens: list[int]) -> Iterator[tuple[int, list[int]]]:
    """Yields each of these student tokens, which have bytes, with its teacher pieces, [] where nothing fits."""
    strings = [student.token_bytes[s] or b"" for s in tokens]
    for number, pieces in spell_strings(strings, teacher):
        yield tokens[number], pieces


def spell_strings(strings: Sequence[bytes], teacher: Vocabulary) -> Iterator[tuple[int, list[int]]]:
    """Yields the number of each of these strings with its teacher pieces, [] where nothing fits."""
    texts: list[str] = []
    whole: list[int] = []
    for number, data in enumerate(strings):
        try:
            texts.append(data.decode("utf-8"))
            whole.append(number)
        except UnicodeDecodeError:  # a fragment of a character: only bytes can be compared
            yield number, _longest_prefixes(data, teacher)
    unknown = teacher.id_of_role.get("unk")
    for number, encoded in zip(whole, teacher.encode_batch(texts), strict=True):
        pieces: list[int] = encoded.tolist()
        data = strings[number]
        if teacher.decode_bytes(pieces) == b" " + data:
            # SentencePiece puts a space before a text that starts a line; this token stands anywhere.
            alone = bool(pieces) and teacher.token_bytes[pieces[0]] == b" "
            pieces = pieces[1:] if alone else _longest_prefixes(data, teacher)
        if unknown is not None and unknown in pieces:
            pieces = []
        yield number, pieces


def _longest_prefixes(data: bytes, teacher: Vocabulary) -> list[int]:
    """Cuts ``data`` greedily into the longest teacher tokens; [] when some byte begins none."""
    pieces: list[int] = []
    start = 0
    while start < len(data):
        for end in range(len(data), start, -1):
            t = teacher.id_of_bytes.get(data[start:end])
            if t is not None:
                pieces.append(t)
                start = end
                break
        else:
            return []
    return pieces


def load_or_build(
    student: Vocabulary,
    teacher: Vocabulary,
    rule: ProjectionRule | None = None,
    path: str | Path | None = None,
    must_keep: bool = False,
) -> ProjectionMatrix:
    """The W of this pair: from ``path`` when given, else from the cache, where it is built at first use.

    The cache file is named by the digest of both tokenizers and the rule.  One that cannot be read is built anew; a
    file the user named is never replaced.

    Args:
        must_keep: one that cannot be kept in the cache is an error.

    Raises:
        InputError: ``path`` is not a W of this pair; the cache cannot be written.
    """
    if path is not None:
        return ProjectionMatrix.load(path, student, teacher)
    rule = rule or ProjectionRule()
    name = digest_of(student.digest, teacher.digest, repr(rule), str(FORMAT_VERSION))[:32]
    cached = cache_root() / "projection" / f"{name}.safetensors"
    if cached.is_file():
        try:
            return ProjectionMatrix.load(cached, student, teacher, checked=True)
        except InputError as error:
            logger.warning("building W again, the cached one cannot be used: %s", error.found)
    matrix = build_projection(student, teacher, rule)
    counts = ", ".join(f"{kind} {count:,}" for kind, count in matrix.coverage.items())
    try:
        matrix.save(cached)
        logger.info("W (%s) built and kept in %s", counts, cached)
    except (OSError, SafetensorError) as error:
        if must_keep:
            raise InputError(
                f"W cannot be kept in {cached} ({error})",
                "a cache that can be written",
                "set NEMO_XTOKEN_CACHE to a folder of yours, or out=FILE",
            ) from error
        # a place that can only be read serves those who only look
        logger.warning("W built, and not kept in the cache: %s", error)
    return matrix
