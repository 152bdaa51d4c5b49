"""The Triton kernels that find the largest logits of a row, and compare two sides by theirs.

A program has one row of one side, or one chunk.  Of equal logits the one of the smaller column goes first, so that the
choice is the same in every layout.  Nothing is sorted to find them: the k-th is found digit by digit.
"""

import triton
import triton.language as tl

from nemo_xtoken.kernels.source import at_least

__all__ = ["is_largest", "largest_of_rows", "partners_of_largest", "restricted_reverse", "sorted_distance"]

BINS = tl.constexpr(256)


@triton.jit
def _key(x, BITS: tl.constexpr):
    """An unsigned number in the order of x; both zeros are equal."""
    x = tl.where(x == 0, 0.0, x)
    if BITS == 32:
        bits = x.to(tl.uint32, bitcast=True)
        key = tl.where((bits >> 31) != 0, bits ^ 0xFFFFFFFF, bits ^ 0x80000000)
    else:
        bits = x.to(tl.uint64, bitcast=True)
        key = tl.where((bits >> 63) != 0, bits ^ 0xFFFFFFFFFFFFFFFF, bits ^ 0x8000000000000000)
    return key


@triton.jit(do_not_specialize=["keep", "room"])
def largest_of_rows(
    z, norms, first, mask, limits, last, starts, values, columns, left, keep, valid, width, room, blocks,
    TEMPERATURE: tl.constexpr, SEARCH: tl.constexpr, BITS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Of the row of a chunk the ``keep`` largest logits in columns of the mask, see ``pair_kernels.Largest``.

    Without SEARCH there are not more than that.
    """
    k = tl.program_id(0).to(tl.int64)
    row = tl.load(first + k)
    norm = tl.load(norms + row)
    lane = tl.arange(0, BLOCK)
    number = z.dtype.element_ty
    ties = keep
    prefix = _key(tl.zeros([1], number), BITS) * 0
    if SEARCH:
        bins = tl.arange(0, BINS)
        for digit in tl.static_range(BITS // 8):
            counts = tl.zeros([BINS], tl.int32)
            for begin in range(0, valid, BLOCK):
                at = begin + lane
                there = tl.load(mask + at, mask=at < valid, other=0) != 0
                key = _key(tl.load(z + row * width + at, mask=there, other=0), BITS)
                if digit > 0:
                    there = there & ((key >> (BITS - 8 * digit)) == prefix)
                counts += tl.histogram(((key >> (BITS - 8 - 8 * digit)) & 255).to(tl.int32), BINS, mask=there)
            from_there = tl.sum(counts, axis=0) - tl.cumsum(counts, axis=0) + counts
            found = tl.max(tl.where(from_there >= ties, bins, 0), axis=0)
            ties -= tl.sum(tl.where(bins > found, counts, 0), axis=0)
            prefix = prefix * 256 + found.to(prefix.dtype)
    count = tl.zeros([1], tl.int32)
    tied = tl.zeros([1], tl.int32)
    limit = tl.full([BLOCK], float("-inf"), number)
    final = tl.full([BLOCK], -1, tl.int32)
    total = tl.zeros([BLOCK], number)
    for begin in range(0, valid, BLOCK):
        at = begin + lane
        there = tl.load(mask + at, mask=at < valid, other=0) != 0
        x = tl.load(z + row * width + at, mask=there, other=float("-inf"))
        kept = there
        if SEARCH:
            key = _key(x, BITS)
            equal = there & (key == prefix)
            kept = there & (key > prefix) | equal & (tied + tl.cumsum(equal.to(tl.int32), axis=0) <= ties)
            tied += tl.sum(equal.to(tl.int32), axis=0)
            limit = tl.where(equal, x, limit)
            final = tl.where(equal & kept, at, final)
        else:
            final = tl.where(kept, at, final)
        tl.store(starts + k * blocks + begin // BLOCK + tl.arange(0, 1), count)
        place = count + tl.cumsum(kept.to(tl.int32), axis=0) - 1
        tl.store(values + k * room + place, x, mask=kept)
        tl.store(columns + k * room + place, at, mask=kept)
        count += tl.sum(kept.to(tl.int32), axis=0)
        total += tl.where(there & (kept == 0), tl.exp(x / TEMPERATURE - norm), 0)
    for begin in range(0, room, BLOCK):
        at = begin + lane
        beyond = (at >= count) & (at < room)
        tl.store(values + k * room + at, tl.full([BLOCK], float("-inf"), number), mask=beyond)
        tl.store(columns + k * room + at, tl.full([BLOCK], -1, tl.int32), mask=beyond)
    tl.store(limits + k, tl.max(limit, axis=0))
    tl.store(last + k, tl.max(final, axis=0))
    tl.store(left + k, tl.sum(total, axis=0))


@triton.jit
def is_largest(z, at, limit, last):
    """Whether logits are among the largest of their row, of those that take part."""
    return (z > limit) | ((z == limit) & (at <= last))


@triton.jit(do_not_specialize=["chunks", "ranked_s", "ranked_t", "room", "own"])
def sorted_distance(
    ranked_s, ranked_t, order, norms_s, norms_t, first_s, first_t, left_s, left_t, terms, slopes,
    chunks, width_s, width_t, span, count, room, own,
    TEMPERATURE: tl.constexpr, BEYOND: tl.constexpr, TAILS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The L1 distance of two sides' sorted probabilities, see `losses.sorted_l1`.

    ``terms [5, chunks]``: the sum of q times its slope, the slope beyond the largest, room for another kernel, the
    distance, the most by which an exact one can be larger.  ``slopes``: at this rank's largest, the difference from the
    slope beyond.
    """
    k = tl.program_id(0).to(tl.int64)
    norm_s, norm_t = tl.load(norms_s + tl.load(first_s + k)), tl.load(norms_t + tl.load(first_t + k))
    lane = tl.arange(0, BLOCK)
    number = ranked_s.dtype.element_ty
    tail, missing, beyond = 0.0, 0.0, 0.0
    if TAILS:
        tail, other = tl.load(left_s + k), tl.load(left_t + k)
        missing = tail + other
        if BEYOND:
            beyond = tail - other
            missing -= tl.abs(beyond)
    slope = tl.zeros([1], number) + beyond
    slope = tl.where(slope > 0, 1.0, tl.where(slope < 0, -1.0, slope))  # not a number where it is none
    distance, inner = tl.zeros([BLOCK], number), tl.zeros([BLOCK], number)
    for begin in range(0, span, BLOCK):
        at = begin + lane
        within = at < count
        a = tl.load(ranked_s + k * width_s + at, mask=within & (at < width_s), other=float("-inf"))
        b = tl.load(ranked_t + k * width_t + at, mask=within & (at < width_t), other=float("-inf"))
        a, b = tl.exp(a / TEMPERATURE - norm_s), tl.exp(b / TEMPERATURE - norm_t)
        sign = tl.where(a > b, 1.0, tl.where(a < b, -1.0, a - b))
        distance += tl.abs(a - b)
        inner += sign * a
        entry = tl.load(order + k * width_s + at, mask=at < width_s, other=-1) - own
        here = (entry >= 0) & (entry < room)
        tl.store(slopes + k * room + entry, tl.where(within, sign - slope, 0), mask=here)
    one = tl.arange(0, 1)
    tl.store(terms + k + one, tl.sum(inner, axis=0) + slope * tail)
    tl.store(terms + chunks + k + one, slope)
    tl.store(terms + 3 * chunks + k + one, tl.sum(distance, axis=0) + tl.abs(slope * beyond))
    tl.store(terms + 4 * chunks + k + one, slope * 0 + missing)


@triton.jit(do_not_specialize=["chosen"])
def partners_of_largest(
    z, norms, first, tokens, partner, out, chosen, start, valid, width, TEMPERATURE: tl.constexpr, BLOCK: tl.constexpr
):
    """Probabilities of the partners of chosen tokens, 0 where another rank has them, ``[chunks, chosen]``."""
    k = tl.program_id(0).to(tl.int64)
    row = tl.load(first + k)
    norm = tl.load(norms + row)
    for begin in range(0, chosen, BLOCK):
        at = begin + tl.arange(0, BLOCK)
        token = tl.load(tokens + k * chosen + at, mask=at < chosen, other=-1).to(tl.int64)
        column = tl.load(partner + token, mask=token >= 0, other=-1) - start
        here = (token >= 0) & (column >= 0) & (column < valid)
        x = tl.load(z + row * width + column, mask=here, other=float("-inf"))
        tl.store(out + k * chosen + at, tl.exp(x / TEMPERATURE - norm), mask=at < chosen)


@triton.jit(do_not_specialize=["chunks", "chosen", "room", "own"])
def restricted_reverse(
    chosen_z, partners, order, norms, first, sums, slopes, chunks, chosen, width, room, own,
    TEMPERATURE: tl.constexpr, ORDERED: tl.constexpr, SMALLEST: tl.constexpr, LEAST: tl.constexpr,
    FAR: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The reverse KL of both sides given the chosen tokens, ``sums [4, chunks]`` as of ``compare_pairs``; the slope at
    this rank's, for which ``order`` is asked with ORDERED."""
    k = tl.program_id(0).to(tl.int64)
    norm = tl.load(norms + tl.load(first + k))
    lane = tl.arange(0, BLOCK)
    number = chosen_z.dtype.element_ty
    all_s, all_t, total = tl.zeros([BLOCK], number), tl.zeros([BLOCK], number), tl.zeros([BLOCK], number)
    for begin in range(0, chosen, BLOCK):
        at = begin + lane
        x = tl.load(chosen_z + k * width + at, mask=at < chosen, other=float("-inf"))
        all_s += tl.exp(x / TEMPERATURE - norm)
        all_t += tl.load(partners + k * chosen + at, mask=at < chosen, other=0)
    mass_s, mass_t = tl.sum(all_s, axis=0), tl.sum(all_t, axis=0)
    inside_s, inside_t = at_least(mass_s, LEAST), at_least(mass_t, LEAST)
    for begin in range(0, chosen, BLOCK):
        at = begin + lane
        x = tl.load(chosen_z + k * width + at, mask=at < chosen, other=float("-inf"))
        s = tl.exp(x / TEMPERATURE - norm) / inside_s
        t = tl.load(partners + k * chosen + at, mask=at < chosen, other=0) / inside_t
        total += s * (tl.log(at_least(s, SMALLEST)) - tl.log(at_least(t, SMALLEST)))
    divergence = tl.sum(total, axis=0)
    divisor = at_least(inside_s, FAR)
    for begin in range(0, width, BLOCK):
        at = begin + lane
        x = tl.load(chosen_z + k * width + at, mask=at < chosen, other=float("-inf"))
        s = tl.exp(x / TEMPERATURE - norm) / inside_s
        t = tl.load(partners + k * chosen + at, mask=at < chosen, other=0) / inside_t
        slope = (tl.log(at_least(s, SMALLEST)) - tl.log(at_least(t, SMALLEST)) - divergence) / divisor
        entry = at.to(tl.int64)
        if ORDERED:
            entry = tl.load(order + k * width + at, mask=at < width, other=-1) - own
        here = (at < width) & (entry >= 0) & (entry < room)
        tl.store(slopes + k * room + entry, tl.where(at < chosen, slope, 0), mask=here)
    tl.store(sums + k, divergence)
    tl.store(sums + chunks + k, divergence * 0)
    tl.store(sums + 2 * chunks + k, 1 - mass_t)
    tl.store(sums + 3 * chunks + k, 1 - mass_s)
