"""`Aligner`: two tokenizations of one text to chunks of tokens that cover the same bytes."""

import dataclasses
from typing import Any

import numpy as np

from nemo_xtoken.alignment import dp
from nemo_xtoken.alignment.aligned import offsets_of
from nemo_xtoken.alignment.equal_texts import SideTable, chunks_of_equal
from nemo_xtoken.alignment.regions import runs_of_part
from nemo_xtoken.alignment.spans import Side, cuts_of_runs, match_places, spans_between
from nemo_xtoken.errors import InputError
from nemo_xtoken.vocab.vocabulary import Vocabulary

__all__ = ["METHODS", "Aligner", "check_method"]

METHODS = ("spans", "dp")
VERSION = 2  # raise it when the same ids give other chunks: caches are keyed by it
MAX_DP_TOKENS = 8192  # a side, for method "dp": 64 MiB of back pointers
REGION_TOKENS = 512  # a side, for one table inside a differing region


@dataclasses.dataclass(frozen=True)
class _Tokens:
    """What the aligner needs of one vocabulary."""

    name: str
    table: SideTable

    def checked(self, ids: Any, side: str) -> np.ndarray:
        ids = np.asarray(ids)
        usable = ids.ndim == 1 and (not len(ids) or ids.dtype.kind in "iu")
        if not usable or (len(ids) and (ids.min() < 0 or ids.max() >= len(self.table.data))):
            what = f"{ids.min()} to {ids.max()}" if usable else f"{ids.dtype} of shape {ids.shape}"
            raise InputError(
                f"{side} token ids: {what}",
                f"one-dimensional integers from 0 to {len(self.table.data) - 1}, ids of {self.name}",
                "encode the text with this tokenizer",
            )
        return ids

    def text_of(self, ids: np.ndarray) -> bytes:
        return b"".join(map(self.table.data.__getitem__, ids.tolist()))

    def canonical(self, ids: np.ndarray) -> list[bytes | int | None]:
        """The tokens as `dp.align_tokens` takes them: bytes, role code, or None."""
        data = [self.table.data[i] for i in ids.tolist()]
        return [d or (r if r >= 0 else None) for d, r in zip(data, self.table.roles[ids].tolist(), strict=True)]


def check_method(method: str) -> None:
    """Raises InputError if there is no aligner of that name."""
    if method not in METHODS:
        raise InputError(f"aligner={method!r}", f"one of {', '.join(METHODS)}", "use 'spans' unless you compare")


class Aligner:
    """Aligns token ids of one text in the student's and the teacher's tokenization.  Can be pickled.

    ``method="spans"``: the finest partition in which each chunk covers the same bytes on both sides, O(T).  Where the
    two byte streams differ, the tokens between the nearest common cuts around the difference are aligned by X-Token's
    dynamic programme, and nothing else is.  A region with more than `REGION_TOKENS` tokens on both sides is first cut
    into pieces at equal shares of both, so time and memory stay linear; across these cuts nothing is matched.

    ``method="dp"``: X-Token's dynamic programme over the whole sequences, O(T_S * T_T), for comparison.
    """

    def __init__(self, student: Vocabulary, teacher: Vocabulary, method: str = "spans") -> None:
        check_method(method)
        self.student, self.teacher, self.method = student, teacher, method
        self._sides: tuple[_Tokens, _Tokens] | None = None

    @property
    def settings(self) -> str:
        """What decides the result beside the tokenizers and ids; goes into cache keys."""
        scores = f"equal={dp.EQUAL},unequal={dp.UNEQUAL},gap={dp.GAP},span={dp.MAX_SPAN}"
        limit = REGION_TOKENS if self.method == "spans" else MAX_DP_TOKENS
        return f"{self.method};version={VERSION};{scores};limit={limit}"

    def align(self, student_ids: Any, teacher_ids: Any) -> np.ndarray:
        """int32 ``[K, 4]``: student_start, student_end, teacher_start, teacher_end, half-open token indices.

        Strictly increasing on both sides, never empty on either; tokens in no chunk are gaps.  Tokens with equal roles
        at the same place are a 1-to-1 chunk, but not ``unk``, which says nothing about its text.

        Args:
            student_ids: integers ``[T_S]``.
            teacher_ids: integers ``[T_T]``.

        Raises:
            InputError: ids that the vocabulary does not have, or for ``method="dp"`` more than 8192 tokens on a side.
        """
        student, teacher = self._tokens()
        s_ids, t_ids = student.checked(student_ids, "student"), teacher.checked(teacher_ids, "teacher")
        if not len(s_ids) or not len(t_ids):
            return np.empty((0, 4), np.int32)
        if self.method == "dp":
            if max(len(s_ids), len(t_ids)) > MAX_DP_TOKENS:
                raise InputError(
                    f"aligner='dp' on {len(s_ids)} student and {len(t_ids)} teacher tokens",
                    f"at most {MAX_DP_TOKENS} on each side, since its table holds their product",
                    "use aligner='spans', or shorter texts",
                )
            chunks = dp.align_tokens(student.canonical(s_ids), teacher.canonical(t_ids))
            return np.array(chunks, np.int32).reshape(-1, 4)
        found = self._align_spans(student, teacher, s_ids, t_ids)
        assert found is not None
        return found

    def align_part(
        self, student_ids: np.ndarray, teacher_ids: np.ndarray, first: bool, last: bool
    ) -> np.ndarray | None:
        """The chunks of a part of a text, cut from it at a seam (`nemo_xtoken.vocab.seams`).

        Token numbers count from the beginning of the part; the parts' chunks one after the other are those of the text.

        Args:
            first, last: of the text's parts.

        Returns:
            None: they depend on another part, since the two sides differ near a seam.
        """
        lengths = np.array([len(student_ids)]), np.array([len(teacher_ids)])
        student, teacher = self._tokens()
        if self.method == "spans":
            chunks, _, differ = chunks_of_equal(
                student.table, teacher.table, student_ids, lengths[0], teacher_ids, lengths[1]
            )
            return self._align_spans(student, teacher, student_ids, teacher_ids, first, last) if differ[0] else chunks
        return self.align(student_ids, teacher_ids) if first and last else None

    def align_many(
        self,
        student_ids: np.ndarray,
        student_lengths: np.ndarray,
        teacher_ids: np.ndarray,
        teacher_lengths: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray]:
        """`align` of many documents, much faster than one by one where they are short.

        Args:
            student_ids, teacher_ids: integers, of all documents one after the other.
            student_lengths, teacher_lengths: int64 ``[n]``, how many of each.

        Returns:
            int32 ``[K, 4]``, the chunks of all documents, and int64 ``[n]``, how many of each.

        Raises:
            InputError: see `align`.
        """
        student, teacher = self._tokens()
        s_ids, t_ids = student.checked(student_ids, "student"), teacher.checked(teacher_ids, "teacher")
        n = len(student_lengths)
        found, counts = np.empty((0, 4), np.int32), np.zeros(n, np.int64)
        differ = np.ones(n, bool)
        if self.method == "spans" and n:
            found, counts, differ = chunks_of_equal(
                student.table, teacher.table, s_ids, student_lengths, t_ids, teacher_lengths
            )
        if not differ.any():
            return found, counts
        starts, at = (offsets_of(student_lengths), offsets_of(teacher_lengths)), offsets_of(counts)
        parts = [found[at[i] : at[i + 1]] for i in range(n)]
        for i in np.flatnonzero(differ).tolist():
            ids = (x[start[i] : start[i + 1]] for x, start in zip((s_ids, t_ids), starts, strict=True))
            parts[i] = self.align(*ids)
        return np.concatenate(parts), np.array([len(part) for part in parts], np.int64)

    def _align_spans(
        self,
        student: _Tokens,
        teacher: _Tokens,
        s_ids: np.ndarray,
        t_ids: np.ndarray,
        first: bool = True,
        last: bool = True,
    ) -> np.ndarray | None:
        s_side, t_side = Side.of(student.table.lengths[s_ids]), Side.of(teacher.table.lengths[t_ids])
        s_bytes, t_bytes = student.text_of(s_ids), teacher.text_of(t_ids)
        if s_bytes == t_bytes:
            runs = np.array([[0, 0, len(s_bytes)]], np.int64)[: len(s_bytes)]
        elif (found := runs_of_part(s_bytes, t_bytes, first, last)) is None:
            return None
        else:
            runs = found
        cuts = cuts_of_runs(s_side, t_side, runs)
        equal = (cuts[1:, 2] == cuts[:-1, 2]) & (cuts[1:, 2] >= 0)
        parts = [spans_between(s_side, t_side, cuts, equal)]
        settled = np.ones(len(cuts), bool)  # cuts that touch no differing region
        settled[:-1] &= equal
        settled[1:] &= equal
        s_codes, t_codes = student.table.roles[s_ids[s_side.silent]], teacher.table.roles[t_ids[t_side.silent]]
        parts.append(match_places(s_side, t_side, cuts[settled], s_codes, t_codes))
        if not equal.all():
            ranges = _regions(s_side, t_side, cuts, equal)
            parts.append(_align_regions(student, teacher, s_ids, t_ids, ranges))
        chunks = np.concatenate(parts)
        if len(chunks) > len(parts[0]):
            chunks = chunks[np.argsort(chunks[:, 0], kind="stable")]
        return chunks.astype(np.int32)

    def _tokens(self) -> tuple[_Tokens, _Tokens]:
        if self._sides is None:
            roles = {"unk": -1}  # an unknown token may stand for anything
            # A token of both sides has the student's id as its code; a teacher's own one has an id beyond those.
            known, new, n = self.student.id_of_bytes, self.teacher.id_of_bytes, self.student.size
            sides = []
            for v in (self.student, self.teacher):
                data = [b or b"" for b in v.token_bytes]
                own = [known[b] if b in known else n + new.get(b, 0) for b in data]
                role_codes = np.full(v.size, -1, np.int64)
                for i, role in v.roles.items():
                    role_codes[i] = roles.setdefault(role, len(roles))
                sides.append(_Tokens(v.name, SideTable(data, v.byte_length, np.array(own, np.int32), role_codes)))
            self._sides = (sides[0], sides[1])
        return self._sides

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_sides": None}


def _regions(student: Side, teacher: Side, cuts: np.ndarray, equal: np.ndarray) -> np.ndarray:
    """int64 ``[R, 4]``, token ranges of the differing regions.

    Each includes the tokens without bytes at both its ends, except those that the region before it already took.
    """
    after_equal = np.concatenate([[True], equal[:-1]])[~equal]
    columns = []
    for side, at in ((student, cuts[:, 0]), (teacher, cuts[:, 1])):
        low, high = at[:-1][~equal], at[1:][~equal]
        columns += [np.where(after_equal, side.before(low), side.after(low)), side.after(high)]
    regions = np.stack(columns, axis=1)
    return regions[(regions[:, 1] > regions[:, 0]) & (regions[:, 3] > regions[:, 2])]


def _align_regions(
    student: _Tokens, teacher: _Tokens, s_ids: np.ndarray, t_ids: np.ndarray, regions: np.ndarray
) -> np.ndarray:
    """int64 ``[K, 4]`` chunks of the regions by the dynamic programme."""
    known: dict[tuple[bytes, bytes], list[tuple[int, int, int, int]]] = {}  # the same accents come again and again
    rows = []
    for a, b, c, d in regions.tolist():
        pieces = -(-max(b - a, d - c) // REGION_TOKENS) if min(b - a, d - c) > REGION_TOKENS else 1
        s_edges = [a + (b - a) * p // pieces for p in range(pieces + 1)]
        t_edges = [c + (d - c) * p // pieces for p in range(pieces + 1)]
        for p in range(pieces):
            s, t = s_ids[s_edges[p] : s_edges[p + 1]], t_ids[t_edges[p] : t_edges[p + 1]]
            key = (s.tobytes(), t.tobytes())
            if key not in known:
                known[key] = dp.align_tokens(student.canonical(s), teacher.canonical(t))
            x, y = s_edges[p], t_edges[p]
            rows += [(e + x, f + x, g + y, h + y) for e, f, g, h in known[key]]
    return np.array(rows, np.int64).reshape(-1, 4)
