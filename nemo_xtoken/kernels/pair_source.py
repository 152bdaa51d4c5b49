"""The Triton kernels that take two tiles of logits to the student's gradient without keeping a probability.

A program has one row of one side and goes over its columns, or, for the gradient, one row and BLOCK of its columns.
Rows are contiguous; offsets are 64 bits wide.  What a column is made of, its bits in ``kinds`` say (see
``pair_kernels.ColumnPlan``).  Sums have a fixed order.
"""

import triton
import triton.language as tl

from nemo_xtoken.kernels.largest_source import is_largest
from nemo_xtoken.kernels.source import divergence_terms

__all__ = ["chunk_terms", "compare_pairs", "pair_gradient", "row_statistics", "spread_entries"]

STUDENT_OWN = tl.constexpr(1)
TEACHER_OWN = tl.constexpr(2)
STUDENT_TABLE = tl.constexpr(4)
TEACHER_TABLE = tl.constexpr(8)
STUDENT_REST = tl.constexpr(16)
TEACHER_REST = tl.constexpr(32)
STUDENT_ENTRIES = tl.constexpr(64)
STUDENT_LARGEST = tl.constexpr(128)


@triton.jit
def row_statistics(
    z, labels, norms, picked, log_p, start, valid, width, TEMPERATURE: tl.constexpr, BLOCK: tl.constexpr
):
    """Of each row the log-normaliser over its first ``valid`` columns, the logit of its label, 0 if elsewhere, and
    their difference."""
    row = tl.program_id(0).to(tl.int64)
    number = z.dtype.element_ty
    lane = tl.arange(0, BLOCK)
    largest, total = tl.full([BLOCK], float("-inf"), number), tl.zeros([BLOCK], number)
    for begin in range(0, valid, BLOCK):
        at = begin + lane
        x = tl.load(z + row * width + at, mask=at < valid, other=float("-inf")) / TEMPERATURE
        more = tl.maximum(largest, x)
        base = tl.where(more == float("-inf"), 0, more)
        total = total * tl.exp(largest - base) + tl.exp(x - base)
        largest = more
    whole = tl.max(largest, axis=0)
    base = tl.where(whole == float("-inf"), 0, whole)
    norm = base + tl.log(tl.sum(total * tl.exp(largest - base), axis=0))
    tl.store(norms + row, norm)
    label = tl.load(labels + row) - start
    here = (label >= 0) & (label < valid)
    own = tl.load(z + row * width + label, mask=here, other=0) / TEMPERATURE
    tl.store(picked + row, own)
    tl.store(log_p + row, own - norm)


@triton.jit(do_not_specialize=["chunks"])
def spread_entries(
    z, norms, first, columns, weights, starts, table, chunks, width,
    TEMPERATURE: tl.constexpr, ENTRIES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """``table[k, d] = sum of weight * probability`` over the entries of token d, at the first row of BLOCK chunks."""
    token, distinct = tl.program_id(0), tl.num_programs(0)
    k = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    there = k < chunks
    row = tl.load(first + k, mask=there, other=0)
    norm = tl.load(norms + row, mask=there, other=0)
    total = tl.zeros([BLOCK], z.dtype.element_ty)
    end = tl.load(starts + token + 1)
    for begin in range(tl.load(starts + token), end, ENTRIES):
        entry = begin + tl.arange(0, ENTRIES)
        known = entry < end
        column = tl.load(columns + entry, mask=known, other=0)
        weight = tl.load(weights + entry, mask=known, other=0).to(total.dtype)
        mask = known[:, None] & there[None, :]
        x = tl.load(z + row[None, :] * width + column[:, None], mask=mask, other=float("-inf")) / TEMPERATURE
        total += tl.sum(weight[:, None] * tl.exp(x - norm[None, :]), axis=0)
    tl.store(table + k.to(tl.int64) * distinct + token, total, mask=there)


@triton.jit
def _pair(
    student, teacher, kind, at, slots_s, slots_t, table_s, table_t, k, distinct_s, distinct_t,
    TABLE: tl.constexpr, GATHERED: tl.constexpr,
):  # fmt: skip
    """``(p, q, the student's slot)``: what either side has in each column."""
    q = tl.where((kind & STUDENT_OWN) != 0, student, 0)
    p = tl.where((kind & TEACHER_OWN) != 0, teacher, 0)
    slot = tl.zeros_like(at).to(tl.int64)
    if TABLE:
        has = (kind & STUDENT_TABLE) != 0
        slot = tl.load(slots_s + at, mask=has, other=0).to(tl.int64)
        q += tl.load(table_s + k * distinct_s + slot, mask=has, other=0)
    if GATHERED:
        gathered = (kind & TEACHER_TABLE) != 0
        other = tl.load(slots_t + at, mask=gathered, other=0).to(tl.int64)
        p += tl.load(table_t + k * distinct_t + other, mask=gathered, other=0)
    return p, q, slot


@triton.jit(do_not_specialize=["chunks"])  # another number in every tile
def compare_pairs(
    zs, zt, norms_s, norms_t, first_s, first_t, kinds, slots_s, slots_t, table_s, table_t, sums, slopes,
    chunks, distinct_s, distinct_t, width_s, width_t, width,
    DIRECTION: tl.constexpr, SMALLEST: tl.constexpr, TEMPERATURE: tl.constexpr, TABLE: tl.constexpr,
    GATHERED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Of a chunk, ``sums [4, chunks]``: the divergence, the sum of q times its slope, and what p and q have in REST's
    columns; and the slopes where the student's table has a part, ``[chunks, distinct_s]``."""
    k = tl.program_id(0).to(tl.int64)
    row_s, row_t = tl.load(first_s + k), tl.load(first_t + k)
    norm_s, norm_t = tl.load(norms_s + row_s), tl.load(norms_t + row_t)
    lane = tl.arange(0, BLOCK)
    number = zs.dtype.element_ty
    total, inner = tl.zeros([BLOCK], number), tl.zeros([BLOCK], number)
    rest_t, rest_s = tl.zeros([BLOCK], number), tl.zeros([BLOCK], number)
    for begin in range(0, width, BLOCK):
        at = begin + lane
        kind = tl.load(kinds + at, mask=at < width, other=0)
        x = tl.load(zs + row_s * width_s + at, mask=at < width_s, other=float("-inf")) / TEMPERATURE
        student = tl.exp(x - norm_s)
        y = tl.load(zt + row_t * width_t + at, mask=at < width_t, other=float("-inf")) / TEMPERATURE
        teacher = tl.exp(y - norm_t)
        p, q, slot = _pair(
            student, teacher, kind, at, slots_s, slots_t, table_s, table_t, k, distinct_s, distinct_t, TABLE, GATHERED
        )
        term, slope = divergence_terms(p, q, DIRECTION, SMALLEST)
        total += term
        inner += q * slope
        rest_t += tl.where((kind & TEACHER_REST) != 0, teacher, 0)
        rest_s += tl.where((kind & STUDENT_REST) != 0, student, 0)
        if TABLE:
            tl.store(slopes + k * distinct_s + slot, slope, mask=(kind & STUDENT_TABLE) != 0)
    tl.store(sums + k, tl.sum(total, axis=0))
    tl.store(sums + chunks + k, tl.sum(inner, axis=0))
    tl.store(sums + 2 * chunks + k, tl.sum(rest_t, axis=0))
    tl.store(sums + 3 * chunks + k, tl.sum(rest_s, axis=0))


@triton.jit
def _expm1(x):
    """``exp(x) - 1`` for x < 0, to the last bits near 0 (W. Kahan): rounding errors of the two logarithms cancel."""
    u = tl.exp(x)
    near = tl.where((u == 1) | (u == 0), 0.5, u)
    return tl.where(u == 1, x, tl.where(u == 0, -1, (u - 1) * (x / tl.log(near))))


@triton.jit
def _later(log_p, first, tokens, there):
    """The log-probability of the tokens of chunks after their first."""
    total = tl.zeros(first.shape, log_p.dtype.element_ty)
    for number in range(1, tl.max(tokens, axis=0)):
        total += tl.load(log_p + first + number, mask=there & (number < tokens), other=0)
    return total


@triton.jit(do_not_specialize=["chunks"])
def chunk_terms(
    first_s, tokens_s, first_t, tokens_t, log_p_s, log_p_t, sums, beside, weight, values, by_chunk, chunks,
    DIRECTION: tl.constexpr, SMALLEST: tl.constexpr, NEAREST: tl.constexpr, CHAIN: tl.constexpr, REST: tl.constexpr,
    COLUMNS: tl.constexpr, BESIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """What each chunk adds, and what its rows' gradients take from it.

    ``values [3, chunks]``: the term, the teacher's and the student's mass in REST.  ``by_chunk [4, chunks]``: the
    coefficient of its divergence, of REST's slope (with it), of the sum over the vocabulary (with it), and the
    derivative with respect to the log-probability of each later label.

    With BESIDE there is more than columns, whose own value is put in its third row; without COLUMNS nothing else.
    """
    k = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    there = k < chunks
    none = tl.zeros([BLOCK], values.dtype.element_ty)
    divergence, inner, p, q = none, none, none, none
    if COLUMNS:
        divergence += tl.load(sums + k, mask=there, other=0)
        inner += tl.load(sums + chunks + k, mask=there, other=0)
        p += tl.load(sums + 2 * chunks + k, mask=there, other=0)
        q += tl.load(sums + 3 * chunks + k, mask=there, other=0)
    coefficient = tl.zeros_like(p) + tl.load(weight)
    rest_slope = tl.zeros_like(p)
    if REST == "compared":
        term, rest_slope = divergence_terms(p, q, DIRECTION, SMALLEST)
        divergence += term
        inner += q * rest_slope
    if REST == "conditioned":
        inside = tl.maximum(1 - p, 0)
        divergence -= tl.where(inside == 0, 0, inside * tl.log(tl.where(inside == 0, 1, inside)))
    if BESIDE:
        tl.store(beside + 2 * chunks + k, divergence, mask=there)
        inner += tl.load(beside + k, mask=there, other=0)
        rest_slope += tl.load(beside + chunks + k, mask=there, other=0)
        divergence += tl.load(beside + 3 * chunks + k, mask=there, other=0)
    by_later = tl.zeros_like(p)
    if CHAIN:
        n_s, n_t = tl.load(tokens_s + k, mask=there, other=0), tl.load(tokens_t + k, mask=there, other=0)
        later_s = _later(log_p_s, tl.load(first_s + k, mask=there, other=0), n_s, there)
        later_t = _later(log_p_t, tl.load(first_t + k, mask=there, other=0), n_t, there)
        log_s, log_t = tl.where(later_s > NEAREST, NEAREST, later_s), tl.where(later_t > NEAREST, NEAREST, later_t)
        m, other, student_other = tl.exp(log_t), -_expm1(log_t), -_expm1(log_s)
        bernoulli = m * (log_t - log_s) + other * (tl.log(other) - tl.log(student_other))
        both, some = n_t > 1, n_s > 1
        value = tl.where(both, bernoulli, -later_s)
        slope = tl.where(both, other * tl.exp(log_s) / student_other - m, -1)
        by_later = tl.where(some, coefficient * slope, 0)
        divergence = tl.exp(later_t) * divergence + tl.where(some, value, 0)
        coefficient = coefficient * tl.exp(later_t)
    tl.store(values + k, divergence, mask=there)
    tl.store(values + chunks + k, p, mask=there)
    tl.store(values + 2 * chunks + k, q, mask=there)
    tl.store(by_chunk + k, coefficient, mask=there)
    tl.store(by_chunk + chunks + k, coefficient * rest_slope, mask=there)
    tl.store(by_chunk + 2 * chunks + k, coefficient * inner, mask=there)
    tl.store(by_chunk + 3 * chunks + k, by_later, mask=there)


@triton.jit(do_not_specialize=["chunks"])
def pair_gradient(
    zs, zt, norms_s, norms_t, labels, chunk, first_s, first_t, more_inner, by_chunk,
    kinds, slots_s, slots_t, table_s, table_t, row_slots, row_starts, weights, by_row, slopes,
    limits, last, starts, by_largest, dz,
    settings, start, chunks, distinct_s, distinct_t, distinct, valid, width_s, width_t, room,
    TEACHER: tl.constexpr, DIRECTION: tl.constexpr, SMALLEST: tl.constexpr, TEMPERATURE: tl.constexpr,
    TABLE: tl.constexpr, GATHERED: tl.constexpr, ENTRIES: tl.constexpr, INNER: tl.constexpr, SOFTCAP: tl.constexpr,
    LARGEST: tl.constexpr, MORE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """``(h - p * (by_label + sum of h) + onehot(label) * by_label) / temperature`` times the logit's slope, with h the
    derivative with respect to log p; with MORE added to what is there.

    Columns in place take their slope from both tiles, others from the table of slopes; with LARGEST the largest of the
    row have one each, in order of their columns.  ``settings`` are the derivative
    with respect to each label's log-probability, the logits' scale and their bound.
    """
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    z = tl.load(zs + row * width_s + at, mask=at < valid, other=float("-inf"))
    probability = tl.exp(z / TEMPERATURE - tl.load(norms_s + row))
    by_label = tl.zeros([1], probability.dtype) + tl.load(settings)
    inner = tl.zeros([1], probability.dtype)
    if INNER:
        inner += tl.load(more_inner + row)
    value = tl.zeros_like(probability)
    if TEACHER:
        k = tl.load(chunk + row)
        if k >= 0:
            if tl.load(first_s + k) == row:
                inner += tl.load(by_chunk + 2 * chunks + k)
                kind = tl.load(kinds + at, mask=at < valid, other=0)
                if DIRECTION != "none":
                    other = tl.load(first_t + k)
                    y = tl.load(zt + other * width_t + at, mask=at < width_t, other=float("-inf")) / TEMPERATURE
                    p, q, _ = _pair(
                        probability, tl.exp(y - tl.load(norms_t + other)), kind, at, slots_s, slots_t, table_s, table_t,
                        k, distinct_s, distinct_t, TABLE, GATHERED,
                    )  # fmt: skip
                    _, slope = divergence_terms(p, q, DIRECTION, SMALLEST)
                    value = tl.where((kind & STUDENT_OWN) != 0, slope, 0)
                if TABLE:
                    has = (kind & STUDENT_ENTRIES) != 0
                    part = tl.load(row_slots + at, mask=has, other=0)
                    begin = tl.load(row_starts + part, mask=has, other=0)
                    end = tl.load(row_starts + part + 1, mask=has, other=0)
                    for number in tl.static_range(ENTRIES):
                        entry = begin + number
                        known = has & (entry < end)
                        token = tl.load(by_row + entry, mask=known, other=0)
                        weight = tl.load(weights + entry, mask=known, other=0).to(value.dtype)
                        value += weight * tl.load(slopes + k * distinct + token, mask=known, other=0)
                if LARGEST:
                    kept = (kind & STUDENT_LARGEST) != 0
                    kept = kept & is_largest(z, at, tl.load(limits + k), tl.load(last + k))
                    before = tl.load(starts + k * tl.num_programs(1) + tl.program_id(1))
                    place = before + tl.cumsum(kept.to(tl.int32), axis=0) - 1
                    value += tl.load(by_largest + k * room + place, mask=kept, other=0)
                value *= tl.load(by_chunk + k)
                value += tl.where((kind & STUDENT_REST) != 0, tl.load(by_chunk + chunks + k), 0)
            else:
                by_label += tl.load(by_chunk + 3 * chunks + k)
    out = probability * (value - (by_label + inner))
    out += tl.where(at == tl.load(labels + row) - start, by_label, 0)
    out = out / TEMPERATURE * tl.load(settings + 1)
    if SOFTCAP:
        ratio = z / tl.load(settings + 2)
        out = tl.where(at < valid, out * (1 - ratio * ratio), 0)
    here = dz + row * width_s + at
    if MORE:
        out += tl.load(here, mask=at < width_s, other=0)
    tl.store(here, out, mask=at < width_s)
