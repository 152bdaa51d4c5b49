"""A pair of vocabularies cut down to some tokens, with every loss on these as it is on the whole pair.

A token without probability has the gradient 0 by its logit, so that it can be left out; but the losses pair tokens by
their bytes, by W, and by who wins where several want one partner.  So what is kept is closed under these relations: a
kept token has the partners and the row of W that it has in the whole pair, and is reached by W here if it is there.
(NeMo-RL's GOLD and H-KL compare as many unpaired tokens as the side with fewer has: here they compare fewer.)
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import numpy as np

from nemo_xtoken.certify.kept_classes import load_or_make
from nemo_xtoken.certify.side_by_side import beside
from nemo_xtoken.losses.pair import VocabularyPair
from nemo_xtoken.losses.registry import LOSSES
from nemo_xtoken.projection.byte_prefixes import BytePrefixes
from nemo_xtoken.projection.matrix import ProjectionMatrix
from nemo_xtoken.projection.prefixes import PrefixClasses
from nemo_xtoken.vocab.vocabulary import Vocabulary

__all__ = ["Pair", "reduce_pair"]


@dataclass(frozen=True)
class Pair:
    """Two vocabularies and their W by each rule.

    Attributes:
        student, teacher: the vocabularies.
        matrices: W by the name of its rule.
        classes: what prefix_kl compares.
        ids: for each side int64 ``[V]``, increasing, the id of each token in the vocabulary that it was cut from.
    """

    student: Vocabulary
    teacher: Vocabulary
    matrices: Mapping[str, ProjectionMatrix]
    classes: PrefixClasses
    ids: tuple[np.ndarray, np.ndarray]

    @classmethod
    def whole(cls, student: Vocabulary, teacher: Vocabulary, matrices: Mapping[str, ProjectionMatrix]) -> "Pair":
        """The pair as it is; its classes from the cache, if they are there."""
        classes = load_or_make(student, teacher)
        return cls(student, teacher, matrices, classes, (np.arange(student.size), np.arange(teacher.size)))


def reduce_pair(
    pair: Pair,
    student_ids: Iterable[int],
    teacher_ids: Iterable[int],
    chunks: Sequence[tuple[Sequence[int], Sequence[int]]] = (),
    workers: int = 0,
) -> Pair:
    """The pair of these tokens and what they are bound to.

    Args:
        pair: a whole one.
        chunks: student and teacher tokens of those that losses are to see.
        workers: processes that there may be.

    Returns:
        one with them and, for each kept token: the entries of its row of W, its pieces, the token that names its class,
        its partners in the common sets of the losses, the token that stands for it where several have equal bytes, and
        a student token by which W reaches it, the student tokens that are the longest to begin it, also where it stands
        in a chunk and the student is inside of it, and a teacher token that such a one begins; and for each kept piece,
        alone and behind a run of a chunk's tokens, a token that begins with it.
        Where W has them, also an empty row and a teacher token that it does not reach, and of either side a token
        of no prefix class: P-KL and prefix_kl have a class for these.
    """
    spelled = pair.classes.student, pair.classes.teacher
    student, teacher, matrices = pair.student, pair.teacher, pair.matrices
    prefixes = BytePrefixes(student, teacher)
    with beside(lambda: prefixes.names, workers) as found:
        partners = _partners(pair)
        begins = [side.tokens[_first_that_begins(side.pieces)] for side in spelled]
        follows = [_that_follow(spelled[side].pieces, [chunk[1 - side] for chunk in chunks]) for side in (0, 1)]
        begun_by = found()
    reached = {name: matrix.reached for name, matrix in matrices.items()}
    keep = np.zeros(student.size, dtype=bool), np.zeros(teacher.size, dtype=bool)
    keep[0][list(student_ids)] = True
    keep[1][list(teacher_ids)] = True
    for name, matrix in matrices.items():
        keep[0][np.flatnonzero(matrix.empty_rows)[:1]] = True
        keep[1][np.flatnonzero(~reached[name])[:1]] = True
    for mask, spellings in zip(keep, spelled, strict=True):
        mask[np.flatnonzero(spellings.classes < 0)[:1]] = True
    inside = _insides(pair, chunks)
    witness = {name: _first_reaching(matrix) for name, matrix in matrices.items()}
    done = np.zeros_like(keep[0]), np.zeros_like(keep[1])
    while any(new := [np.flatnonzero(mask & ~seen).tolist() for mask, seen in zip(keep, done, strict=True)]):
        for vocabulary, mask, seen, tokens in zip((student, teacher), keep, done, new, strict=True):
            seen |= mask
            mask[[_standing_for(vocabulary, token) for token in tokens]] = True
        for side in (0, 1):
            pieces = spelled[side].pieces[keep[side][spelled[side].tokens]]
            keep[1 - side][pieces[pieces >= 0]] = True
            named = spelled[side].classes[keep[side]]
            keep[1][named[named >= 0]] = True
            begun = follows[side] & keep[1 - side][spelled[side].pieces]
            keep[side][begins[side][begun]] = True
        texts = [teacher.token_bytes[token] or b"" for token in new[1]]
        begin = [prefixes.longest(text[len(at) :]) for at in inside for text in texts if text.startswith(at)]
        keep[0][[token for token in begin if token >= 0]] = True
        names = begun_by[keep[0]]
        keep[1][names[names >= 0]] = True
        keep[1][partners[keep[0][partners[:, 0]], 1]] = True
        keep[0][partners[keep[1][partners[:, 1]], 0]] = True
        for name, matrix in matrices.items():
            entries = matrix.ids[keep[0]]
            keep[1][entries[entries >= 0]] = True
            reaching = np.unique(matrix.ids[keep[0]])
            keep[0][witness[name][np.setdiff1d(np.flatnonzero(keep[1] & reached[name]), reaching)]] = True
    ids = np.flatnonzero(keep[0]), np.flatnonzero(keep[1])
    numbers = [np.cumsum(mask, dtype=np.int32) - 1 for mask in keep]
    cut = {name: _cut_matrix(matrix, ids, numbers[1]) for name, matrix in matrices.items()}
    sides = [spelled[side].cut(ids[side], numbers[side], numbers[1], numbers[1 - side]) for side in (0, 1)]
    overlaps = pair.classes.overlaps
    classes = PrefixClasses(sides[0], sides[1], None if overlaps is None else overlaps.cut(ids))
    return Pair(_cut_vocabulary(student, ids[0]), _cut_vocabulary(teacher, ids[1]), cut, classes, ids)


def _partners(pair: Pair) -> np.ndarray:
    """int64 ``[n, 2]``: the tokens that some loss pairs."""
    of_matrices = [VocabularyPair(pair.student, pair.teacher, m, pair.classes) for m in pair.matrices.values()]
    for one in of_matrices[1:]:
        one.strict = of_matrices[0].strict  # W has no part in it
    sets = [common for loss in LOSSES.values() for one in of_matrices for common in loss.common_sets(one)]
    numbered = np.unique(np.concatenate([common.student * pair.teacher.size + common.teacher for common in sets]))
    return np.stack(np.divmod(numbered, pair.teacher.size), axis=1)


def _that_follow(pieces: np.ndarray, paths: Iterable[Sequence[int]]) -> np.ndarray:
    """bool ``[r, MAX_PIECES]``: a spelling's pieces that are its first, or stand behind a run of a path's tokens."""
    found = np.zeros(pieces.shape, dtype=bool)
    found[:, 0] = True
    for tail in {tuple(path[start:]) for path in paths for start in range(len(path))}:
        run = tail[: pieces.shape[1] - 1]
        found[:, 1 : len(run) + 1] |= np.logical_and.accumulate(pieces[:, : len(run)] == run, axis=1)
    return found & (pieces >= 0)


def _insides(pair: Pair, chunks: Iterable[tuple[Sequence[int], Sequence[int]]]) -> set[bytes]:
    """What of a chunk the student may have said of a teacher's token: from an end of the teacher's to a later one of
    its own; with nothing."""
    found = {b""}
    for chunk in chunks:
        sides = zip((pair.student, pair.teacher), chunk, strict=True)
        own, theirs = ([0, *accumulate(len(v.token_bytes[i] or b"") for i in ids)] for v, ids in sides)
        text = pair.student.decode_bytes(chunk[0])
        found |= {text[start:end] for start in theirs for end in own if start < end}
    return found


def _first_that_begins(pieces: np.ndarray) -> np.ndarray:
    """int64 ``[r, MAX_PIECES]``: for each spelling and number of pieces the first that begins with the same ones."""
    order = np.lexsort((np.arange(len(pieces)), *reversed(pieces.T)))
    sorted_ = pieces[order]
    differs = np.ones_like(sorted_, dtype=bool)
    differs[1:] = np.logical_or.accumulate(sorted_[1:] != sorted_[:-1], axis=1)
    first = np.maximum.accumulate(np.where(differs, np.arange(len(order))[:, None], 0), axis=0)
    out = np.empty_like(first)
    out[order] = order[first]
    return out


def _first_reaching(matrix: ProjectionMatrix) -> np.ndarray:
    """int64 ``[V_T]``: the smallest student token whose row has each teacher token; 0 for those that none has."""
    rows, slots = np.nonzero(matrix.ids >= 0)
    tokens, first = np.unique(matrix.ids[rows, slots], return_index=True)
    out = np.zeros(matrix.teacher_size, dtype=np.int64)
    out[tokens] = rows[first]
    return out


def _standing_for(vocabulary: Vocabulary, token: int) -> int:
    """The token that the vocabulary produces for this one's bytes or role."""
    data = vocabulary.token_bytes[token]
    if data:
        return vocabulary.id_of_bytes[data]
    role = vocabulary.roles.get(token)
    return token if role is None else vocabulary.id_of_role[role]


def _cut_vocabulary(vocabulary: Vocabulary, ids: np.ndarray) -> Vocabulary:
    number = {int(old): new for new, old in enumerate(ids)}
    named = [number.get(-1 if i is None else i) for i in (vocabulary.bos_id, vocabulary.eos_id, vocabulary.pad_id)]
    return Vocabulary(
        name=vocabulary.name,
        behaviour=f"{vocabulary.digest}, cut to {ids.tolist()}",
        token_bytes=[vocabulary.token_bytes[i] for i in ids],
        roles={number[i]: role for i, role in vocabulary.roles.items() if i in number},
        encoder=_NoEncoder(),
        bos_id=named[0],
        eos_id=named[1],
        pad_id=named[2],
        # those that another kept token stands for must not win here either
        fallback_ids=frozenset(new for old, new in number.items() if _standing_for(vocabulary, old) != old),
    )


def _cut_matrix(matrix: ProjectionMatrix, ids: tuple[np.ndarray, np.ndarray], number: np.ndarray) -> ProjectionMatrix:
    rows = matrix.ids[ids[0]]
    return replace(
        matrix,
        ids=np.where(rows >= 0, number[rows], -1).astype(np.int32),
        weights=matrix.weights[ids[0]],
        teacher_size=len(ids[1]),
    )


class _NoEncoder:
    """A cut vocabulary is for comparing tokens: it cannot write every text."""

    def encode_batch(self, texts: Iterable[str]) -> list[np.ndarray]:
        raise NotImplementedError("a cut vocabulary encodes nothing")

    def byte_pairs(self) -> None:
        """Not known."""
        return None
