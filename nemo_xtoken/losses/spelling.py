"""Telling the tokens of a class apart where one side writes a chunk in one token and the other spells it in pieces.

The *whole* side has the distribution over its tokens at the chunk's first position; the *spelling* side has one
distribution per piece, each after the pieces of the text.  At depth d the tokens of the class whose first d-1 pieces
are those of the text are told apart by their next piece, and the two sides say how probable each is:

- the whole side by the mass of the tokens that go on with it,
- the spelling side by its next-token distribution after d-1 pieces.

What has no such token is one class REST: tokens that end there, and the spelling side's other tokens.  At depth 2 both
are taken within the prefix class as a whole, of which the first piece is one part.  Each depth adds the KL divergence
of the teacher's from the student's; where no token ends the spelling side is conditioned on the pieces that go on.
Where two models agree on strings all of them are 0.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from nemo_xtoken.kernels.tile_kernels import smallest
from nemo_xtoken.losses.base import LaterTerms
from nemo_xtoken.losses.chunks import ScoredRows
from nemo_xtoken.parallel.softmax import all_reduce_sum
from nemo_xtoken.projection.prefixes import MAX_PIECES, SpelledTokens

__all__ = ["Rows", "SpelledClasses", "compare_spellings"]


class Rows(NamedTuple):
    """One side of a tile.

    Attributes:
        p: ``[n, V/tp]`` probabilities of its rows, this rank's columns.
        scored: the rows, their labels and chunks.
    """

    p: Tensor
    scored: ScoredRows


class SpelledClasses(torch.nn.Module):
    """One side's tokens sorted by their class and then by their pieces.

    Args:
        spelled: the side.
        other_size: tokens of the other side.
        class_numbers: how many numbers classes have.
        columns: int64 ``[V]``, where each token lies in the output layer: its own id or its owned one.
        start, rows: of this rank's columns.
    """

    tokens: Tensor
    pieces: Tensor
    starts: Tensor
    place: Tensor
    class_of: Tensor
    columns: Tensor

    def __init__(
        self, spelled: SpelledTokens, other_size: int, class_numbers: int, columns: np.ndarray, start: int, rows: int
    ) -> None:
        super().__init__()
        inside = np.flatnonzero(spelled.classes >= 0)
        keys = [spelled.pieces[inside, depth] for depth in reversed(range(MAX_PIECES))]
        tokens = inside[np.lexsort((*keys, spelled.classes[inside]))]
        place = np.full(spelled.classes.size, -1, np.int64)
        place[tokens] = np.arange(tokens.size)
        self.other_size, self.start, self.rows = other_size, start, rows
        buffers = {
            "tokens": tokens,
            "pieces": spelled.pieces[tokens].astype(np.int64),
            "starts": np.searchsorted(spelled.classes[tokens], np.arange(class_numbers + 1)),
            "place": place,
            "class_of": spelled.classes.astype(np.int64),
            "columns": columns.astype(np.int64),
        }
        for name, value in buffers.items():
            self.register_buffer(name, torch.from_numpy(value), persistent=False)

    def take(self, p: Tensor, rows: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``(p[rows, tokens], 0 where another rank has the token; this rank's columns; whether it has them)``."""
        local = self.columns[tokens] - self.start
        mine = (local >= 0) & (local < self.rows)
        local = local.clamp(0, self.rows - 1)
        return torch.where(mine, p[rows, local], 0), local, mine

    def members(self, classes: Tensor) -> tuple[Tensor, Tensor]:
        """``(the number in classes [e], the place of a token in the sorted order [e])``, class after class."""
        count = self.starts[classes + 1] - self.starts[classes]
        number = torch.repeat_interleave(torch.arange(classes.numel(), device=classes.device), count)
        before = count.cumsum(0) - count
        places = self.starts[classes][number] + torch.arange(number.numel(), device=classes.device) - before[number]
        return number, places


class _Plan(NamedTuple):
    """The comparisons of some chunks: one for each chunk and depth, with its classes, the *leaves*.

    Attributes:
        whole, spelling: int64 ``[c]``, the first row of each chunk on either side.
        first: int64 ``[c]``, its first piece.
        member_chunk, member_token: int64 ``[e]``, the tokens of the chunks' classes on the whole side.
        pair_member, pair_leaf: int64 ``[q]``, which of them count in which leaf.
        leaf_comparison: int64 ``[l]``.
        leaf_piece: int64 ``[l]``, the next piece; the spelling side's size for REST.
        comparison_chunk, comparison_depth: int64 ``[j]``.
    """

    whole: Tensor
    spelling: Tensor
    first: Tensor
    member_chunk: Tensor
    member_token: Tensor
    pair_member: Tensor
    pair_leaf: Tensor
    leaf_comparison: Tensor
    leaf_piece: Tensor
    comparison_chunk: Tensor
    comparison_depth: Tensor


def compare_spellings(
    student: Rows,
    teacher: Rows,
    classes: tuple[SpelledClasses, SpelledClasses],
    coefficients: Tensor | None,
    group: torch.distributed.ProcessGroup | None,
) -> LaterTerms:
    """What the pieces add, over the chunks of a tile.

    Args:
        classes: the student's and the teacher's tokens.
        coefficients: ``[k]``, of the chunks in the objective; None: no gradient is wanted.

    Returns:
        what is added, with one row of metrics, 1 for the chunks whose pieces were compared.  Collectives: one
        all-reduce for the chunks that the teacher spells and one for those that the student spells, of a value for each
        token of their classes at most.
    """
    single = [side.scored.tokens == 1 for side in (student, teacher)]
    k = student.scored.first.numel()
    values = student.p.new_zeros(k)
    compared = torch.zeros_like(values)
    found: list[tuple[Tensor, ...]] = []
    for whole in (0, 1):
        chosen = torch.nonzero(single[whole] & ~single[1 - whole]).squeeze(1)
        sides = (student, teacher) if whole == 0 else (teacher, student)
        tables = classes if whole == 0 else (classes[1], classes[0])
        chosen, plan = _plan(sides[0].scored, sides[1].scored, tables[0], chosen)
        if plan is None:
            continue
        weights = None if coefficients is None else coefficients[chosen]
        added, of_entries, of_rows = _compare(plan, (sides[0].p, sides[1].p), tables, whole == 0, weights, group)
        values = values.index_add(0, chosen, added)
        compared[chosen] = 1
        found.append((*of_entries, *of_rows))
    no, nothing = chosen[:0], values[:0]
    rows, columns, slopes, inner_rows, inner = (
        torch.cat(parts) for parts in zip((no, no, nothing, no, nothing), *found, strict=True)
    )
    return LaterTerms(values, (rows, columns, slopes), (inner_rows, inner), compared.unsqueeze(0))


def _plan(
    whole: ScoredRows, spelling: ScoredRows, table: SpelledClasses, chosen: Tensor
) -> tuple[Tensor, _Plan | None]:
    """The chunks whose text is spelled as its token is, and their comparisons."""
    if not chosen.numel():
        return chosen, None
    depths = torch.arange(MAX_PIECES, device=chosen.device)
    length = spelling.tokens[chosen].clamp_max(MAX_PIECES)
    inside = depths < length.unsqueeze(1)
    at = (spelling.first[chosen].unsqueeze(1) + depths).clamp_max(spelling.labels.numel() - 1)
    text = torch.where(inside, spelling.labels[at], -1)
    token = whole.labels[whole.first[chosen]]
    place = table.place[token]
    regular = (place >= 0) & ((table.pieces[place.clamp_min(0)] == text) | ~inside).all(1)
    kept = torch.nonzero(regular).squeeze(1)
    if not kept.numel():
        return chosen[:0], None
    chosen, text, length, token = chosen[kept], text[kept], length[kept], token[kept]
    number, places = table.members(table.class_of[token])
    pieces = table.pieces[places]
    common = (pieces == text[number]).long().cumprod(1).sum(1).minimum(length[number])
    # a token takes part at depth 2, and as deep as it goes with the text and one step beyond
    count = (common + 1).minimum(length[number]).sub(1).clamp_min(1)
    pair = torch.repeat_interleave(torch.arange(number.numel(), device=chosen.device), count)
    depth = torch.arange(pair.numel(), device=chosen.device) - (count.cumsum(0) - count)[pair] + 2
    piece = pieces[pair].gather(1, depth.unsqueeze(1) - 1).squeeze(1)
    rest = (common[pair] < depth - 1) | (piece < 0)
    piece = torch.where(rest, table.other_size, piece)
    width = table.other_size + 1
    leaves, leaf = torch.unique((number[pair] * (MAX_PIECES + 1) + depth) * width + piece, return_inverse=True)
    comparisons, of_leaf = torch.unique(leaves // width, return_inverse=True)
    plan = _Plan(
        whole.first[chosen],
        spelling.first[chosen],
        text[:, 0],
        number,
        table.tokens[places],
        pair,
        leaf,
        of_leaf,
        leaves % width,
        comparisons // (MAX_PIECES + 1),
        comparisons % (MAX_PIECES + 1),
    )
    return chosen, plan


def _compare(
    plan: _Plan,
    p: tuple[Tensor, Tensor],
    tables: tuple[SpelledClasses, SpelledClasses],
    student_whole: bool,
    weights: Tensor | None,
    group: torch.distributed.ProcessGroup | None,
) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]:
    """The chunks' values ``[c]``, and ``entries`` and ``inner`` as :class:`LaterTerms` has them.

    Args:
        p, tables: of the whole and of the spelling side.
        weights: ``[c]``.
    """
    leaves, chunks = plan.leaf_piece.numel(), plan.whole.numel()
    rest = plan.leaf_piece == tables[0].other_size
    leaf_chunk = plan.comparison_chunk[plan.leaf_comparison]
    leaf_row = plan.spelling[leaf_chunk] + plan.comparison_depth[plan.leaf_comparison] - 1
    member_row = plan.whole[plan.member_chunk]
    mass, member_columns, member_mine = tables[0].take(p[0], member_row, plan.member_token)
    whole = mass.new_zeros(leaves).index_add_(0, plan.pair_leaf, mass[plan.pair_member])
    next_, next_columns, next_mine = tables[1].take(p[1], leaf_row, torch.where(rest, 0, plan.leaf_piece))
    next_ = torch.where(rest, 0, next_)
    first, first_columns, first_mine = tables[1].take(p[1], plan.spelling, plan.first)
    other_chunk, places = tables[1].members(tables[1].class_of[plan.first])
    others = tables[1].tokens[places]
    keep = torch.nonzero(others != plan.first[other_chunk]).squeeze(1)
    other_chunk, others = other_chunk[keep], others[keep]
    other_row = plan.spelling[other_chunk]
    other, other_columns, other_mine = tables[1].take(p[1], other_row, others)
    beside = other.new_zeros(chunks).index_add_(0, other_chunk, other)
    totals = all_reduce_sum(torch.cat([whole, next_, first, beside]), group)
    parts = totals.split([leaves, leaves, chunks, chunks])
    values, slopes = _divergence(plan, rest, *parts, student_whole=student_whole, weights=weights)
    none = (plan.whole[:0],) * 2
    if weights is None:
        return values, (*none, values[:0]), (none[0], values[:0])
    by_whole, by_next, by_first, by_beside = slopes
    if student_whole:
        by_member = mass.new_zeros(mass.numel()).index_add_(
            0, plan.pair_member, by_whole[plan.pair_leaf] * mass[plan.pair_member]
        )
        entries = _mine(member_mine, member_row, member_columns, by_member)
        inner = values.new_zeros(chunks).index_add_(0, leaf_chunk, by_whole * parts[0])
        return values, entries, (plan.whole, inner)
    found = [
        _mine(next_mine & ~rest, leaf_row, next_columns, by_next * next_),
        _mine(first_mine, plan.spelling, first_columns, by_first * first),
        _mine(other_mine, other_row, other_columns, by_beside[other_chunk] * other),
    ]
    rows, columns, slopes_ = (torch.cat(x) for x in zip(*found, strict=True))
    inner_rows = torch.cat([leaf_row, plan.spelling])
    inner = torch.cat([by_next * parts[1], by_first * parts[2] + by_beside * parts[3]])
    return values, (rows, columns, slopes_), (inner_rows, inner)


def _mine(mine: Tensor, rows: Tensor, columns: Tensor, slopes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    at = torch.nonzero(mine).squeeze(1)
    return rows[at], columns[at], slopes[at]


def _divergence(
    plan: _Plan,
    rest: Tensor,
    whole: Tensor,
    next_: Tensor,
    first: Tensor,
    beside: Tensor,
    *,
    student_whole: bool,
    weights: Tensor | None,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The values ``[c]``, and their derivatives with respect to the student's probabilities, times the weights.

    Args:
        whole: ``[l]``, mass of each leaf on the whole side.
        next_: ``[l]``, the spelling side's probability of its piece; 0 for REST.
        first: ``[c]``, of the first piece.
        beside: ``[c]``, of the other tokens of the class.
    """
    wanted = (student_whole, *(not student_whole,) * 3)
    with torch.enable_grad():
        whole, next_, first, beside = inputs = [
            x.detach().requires_grad_(w and weights is not None)
            for x, w in zip((whole, next_, first, beside), wanted, strict=True)
        ]
        number, count = plan.leaf_comparison, plan.comparison_chunk.numel()

        def summed(x: Tensor) -> Tensor:
            return x.new_zeros(count).index_add(0, number, x)

        chunk, second = plan.comparison_chunk, plan.comparison_depth == 2
        before = torch.where(second, first[chunk], 1)
        # nearer to 0 than the type can tell 1 from 1 - p; the mass of all other pieces
        left = (1 - summed(next_)).clamp_min(torch.finfo(whole.dtype).eps / 2)
        ended = torch.where(second, beside[chunk], 0) + before * left
        spelled = torch.where(rest, ended[number], before[number] * next_)
        student, teacher = (whole, spelled) if student_whole else (spelled, whole)
        t = teacher / summed(teacher).clamp_min(smallest(whole))[number]
        log_s = _log(student) - _log(summed(student))[number]
        terms = t * (_log(t) - log_s)
        values = terms.new_zeros(plan.whole.numel()).index_add(0, chunk[number], terms)
        if weights is None:
            return values, ()
        found = iter(torch.autograd.grad((values * weights).sum(), [x for x in inputs if x.requires_grad]))
    return values.detach(), tuple(next(found) if x.requires_grad else torch.zeros_like(x) for x in inputs)


def _log(x: Tensor) -> Tensor:
    return x.clamp_min(smallest(x)).log()
