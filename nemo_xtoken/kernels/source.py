"""The Triton kernels.  A program has one row and BLOCK of its columns; row sums leave as one part a block.

Rows are contiguous and ``width`` apart; offsets are 64 bits wide, since a tile may have more than 2**31 values.
Nothing is read or written beyond ``width``, so that it need not be a multiple of BLOCK.
"""

import triton
import triton.language as tl

__all__ = [
    "at_least",
    "compare_columns",
    "divergence_terms",
    "gather_columns",
    "logit_gradient",
    "row_products",
    "softmax_probabilities",
    "softmax_statistics",
]


@triton.jit
def softmax_statistics(z, maxima, sums, valid, width, TEMPERATURE: tl.constexpr, BLOCK: tl.constexpr):
    """Of each block its largest logit m and the sum of ``exp(z - m)``, ``[n, blocks]``; -inf and 0 in padding."""
    row, block = tl.program_id(0).to(tl.int64), tl.program_id(1)
    at = block * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(z + row * width + at, mask=at < valid, other=float("-inf"))
    if TEMPERATURE != 1:
        x = x / TEMPERATURE
    largest = tl.max(x, axis=0)
    from_there = x - tl.where(largest == float("-inf"), 0, largest)
    out = row * tl.num_programs(1) + block
    tl.store(maxima + out, largest)
    tl.store(sums + out, tl.sum(tl.exp(from_there), axis=0))


@triton.jit
def softmax_probabilities(z, largest, factors, p, valid, width, TEMPERATURE: tl.constexpr, BLOCK: tl.constexpr):
    """``exp(z - largest) * factor``, with a largest logit and a factor a row."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(z + row * width + at, mask=at < valid, other=float("-inf"))
    if TEMPERATURE != 1:
        x = x / TEMPERATURE
    tl.store(p + row * width + at, tl.exp(x - tl.load(largest + row)) * tl.load(factors + row), mask=at < width)


@triton.jit(do_not_specialize=["rows"])  # another number in every tile
def gather_columns(
    x, in_place, slots, table, constants, out, rows, x_width, shared, width, CONSTANT: tl.constexpr, BLOCK: tl.constexpr
):
    """x's own columns where they are in place, plus a row of the table ``[.., rows]``, or a constant a row."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    own = tl.load(in_place + at, mask=at < shared, other=0) != 0
    value = tl.load(x + row * x_width + at, mask=own, other=0)
    slot = tl.load(slots + at, mask=at < width, other=-1).to(tl.int64)
    value += tl.load(table + slot * rows + row, mask=slot >= 0, other=0)
    if CONSTANT:
        value = tl.where(slot == -2, tl.load(constants + row), value)
    tl.store(out + row * width + at, value, mask=at < width)


@triton.jit
def at_least(x, bound: tl.constexpr):
    """The larger of both; not a number where x is not."""
    return tl.where(x < bound, bound, x)


@triton.jit
def divergence_terms(p, q, DIRECTION: tl.constexpr, SMALLEST: tl.constexpr):
    """``losses.directions``: what each column adds, and its derivative with respect to q."""
    if DIRECTION == "forward":
        ratio = p / at_least(q, SMALLEST)
        term = p * tl.log(at_least(ratio, SMALLEST))
        slope = -ratio
    elif DIRECTION == "reverse":
        difference = tl.log(at_least(q, SMALLEST)) - tl.log(at_least(p, SMALLEST))
        term = q * difference
        slope = difference + 1
    else:
        middle = tl.log(at_least((p + q) / 2, SMALLEST))
        slope = (tl.log(at_least(q, SMALLEST)) - middle) / 2
        term = p * (tl.log(at_least(p, SMALLEST)) - middle) / 2 + q * slope
    return term, slope


@triton.jit
def compare_columns(
    p, q, mask, coefficients, totals, outside, slopes, width,
    DIRECTION: tl.constexpr, MASKED: tl.constexpr, SLOPE: tl.constexpr, SMALLEST: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """What each column adds, summed over a block, and its derivative with respect to q, in q's place."""
    row, block = tl.program_id(0).to(tl.int64), tl.program_id(1)
    at = block * BLOCK + tl.arange(0, BLOCK)
    teacher = tl.load(p + row * width + at, mask=at < width, other=0)
    student = tl.load(q + row * width + at, mask=at < width, other=0)
    out = row * tl.num_programs(1) + block
    if MASKED:
        inside = tl.load(mask + at, mask=at < width, other=0) != 0
        tl.store(outside + out, tl.sum(tl.where(inside, 0, teacher), axis=0))
        teacher = tl.where(inside, teacher, 0)
    term, slope = divergence_terms(teacher, student, DIRECTION, SMALLEST)
    tl.store(totals + out, tl.sum(term, axis=0))
    if SLOPE:
        tl.store(slopes + row * width + at, slope * tl.load(coefficients + row), mask=at < width)


@triton.jit
def row_products(p, values, source, sums, width, BY_LOGARITHM: tl.constexpr, BLOCK: tl.constexpr):
    """``sum_v p * values`` of a block, or ``sum_v values`` where they are with respect to log p; 0 without a source."""
    row, block = tl.program_id(0).to(tl.int64), tl.program_id(1)
    at = block * BLOCK + tl.arange(0, BLOCK)
    origin = tl.load(source + row)
    there = at < tl.where(origin >= 0, width, 0)
    h = tl.load(values + origin * width + at, mask=there, other=0)
    if not BY_LOGARITHM:
        h = h * tl.load(p + row * width + at, mask=there, other=0)
    tl.store(sums + row * tl.num_programs(1) + block, tl.sum(h, axis=0))


@triton.jit
def logit_gradient(
    p, values, source, inner, by_label, labels, dz, width,
    VALUES: tl.constexpr, BY_LOGARITHM: tl.constexpr, MORE: tl.constexpr, TEMPERATURE: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """``(h - p * (by_label + inner) + onehot(label) * by_label) / temperature``, h being ``p * values``.

    With MORE it is ``h / temperature``, added to what is there.
    """
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    here = dz + row * width + at
    probability = tl.load(p + row * width + at, mask=at < width, other=0)
    by_probability = tl.zeros_like(probability)
    out = tl.zeros_like(probability)
    if VALUES:
        origin = tl.load(source + row)
        value = tl.load(values + origin * width + at, mask=at < tl.where(origin >= 0, width, 0), other=0)
        if BY_LOGARITHM:
            out += value
        else:
            by_probability += value
    if not MORE:
        factor = tl.load(by_label + row)
        by_probability -= factor + tl.load(inner + row)
        out += tl.where(at == tl.load(labels + row), factor, 0)
    out += probability * by_probability
    if TEMPERATURE != 1:
        out = out / TEMPERATURE
    if MORE:
        out += tl.load(here, mask=at < width, other=0)
    tl.store(here, out, mask=at < width)
