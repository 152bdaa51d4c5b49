"""The Triton kernels that compare slots, sums of some tokens' probabilities; see `losses.slots`, `losses.csd` and
`losses.bpm`.

A program has a comparison or a chunk, and goes over its slots by BLOCK.  A slot is one comparison's alone, so that each
writes the derivatives with respect to its own.
"""

import triton
import triton.language as tl

from nemo_xtoken.kernels.source import at_least, divergence_terms

__all__ = ["common_support", "prefixes_inside", "prefixes_over"]


@triton.jit
def _term(p, q, SMALLEST: tl.constexpr):
    """What a class adds to the forward KL."""
    return p * (tl.log(at_least(p, SMALLEST)) - tl.log(at_least(q, SMALLEST)))


@triton.jit
def _by_class(p, q, SMALLEST: tl.constexpr):
    """Its derivative with respect to q."""
    return tl.where(q >= SMALLEST, -p / at_least(q, SMALLEST), 0)


@triton.jit
def _path(masses, begin, end, SMALLEST: tl.constexpr, BLOCK: tl.constexpr):
    """The product of slots."""
    total = tl.zeros([BLOCK], masses.dtype.element_ty)
    for first in range(begin, end, BLOCK):
        at = first + tl.arange(0, BLOCK)
        total += tl.log(at_least(tl.load(masses + at, mask=at < end, other=1), SMALLEST))
    return tl.exp(tl.sum(total, axis=0))


@triton.jit(do_not_specialize=["comparisons"])  # another number in every tile
def common_support(
    masses_s, masses_t, begin_s, middle_s, begin_t, middle_t, counts, weight, values, slopes, comparisons,
    BETA: tl.constexpr, SMALLEST: tl.constexpr, LEAST: tl.constexpr, GRADIENT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """``values [4, comparisons]``: what a comparison adds, what the teacher and the student have on REST, 0; the
    derivative with respect to the student's slots."""
    c = tl.program_id(0)
    lane = tl.arange(0, BLOCK)
    number = values.dtype.element_ty
    begin, middle, count = tl.load(begin_s + c), tl.load(middle_s + c), tl.load(counts + c)
    theirs = tl.load(middle_t + c)
    before = _path(masses_s, begin, middle, SMALLEST, BLOCK)
    before_t = _path(masses_t, tl.load(begin_t + c), theirs, SMALLEST, BLOCK)
    all_s, all_t, total = tl.zeros([BLOCK], number), tl.zeros([BLOCK], number), tl.zeros([BLOCK], number)
    for first in range(0, count, BLOCK):
        at = first + lane
        q = tl.load(masses_s + middle + at, mask=at < count, other=0) * before
        p = tl.load(masses_t + theirs + at, mask=at < count, other=0) * before_t
        all_s += q
        all_t += p
        total += _term(p, q, SMALLEST)
    left = 1 - tl.sum(all_s, axis=0)
    rest_s, rest_t = at_least(left, LEAST), at_least(1 - tl.sum(all_t, axis=0), LEAST)
    tl.store(values + c, BETA * (tl.sum(total, axis=0) + _term(rest_t, rest_s, SMALLEST)))
    tl.store(values + comparisons + c, rest_t)
    tl.store(values + 2 * comparisons + c, rest_s)
    tl.store(values + 3 * comparisons + c, rest_s * 0)
    if GRADIENT:
        wanted = BETA * tl.load(weight)
        by_rest = tl.where(left >= LEAST, rest_t / rest_s, 0)  # the more in an outcome, the less in REST
        behind = tl.zeros([BLOCK], number)
        for first in range(0, count, BLOCK):
            at = first + lane
            q = tl.load(masses_s + middle + at, mask=at < count, other=0) * before
            p = tl.load(masses_t + theirs + at, mask=at < count, other=0) * before_t
            slope = wanted * (_by_class(p, q, SMALLEST) + by_rest)
            tl.store(slopes + middle + at, slope * before, mask=at < count)
            behind += slope * q
        by_path = tl.sum(behind, axis=0)
        for first in range(begin, middle, BLOCK):
            at = first + lane
            own = tl.load(masses_s + at, mask=at < middle, other=1)
            tl.store(slopes + at, tl.where(own >= SMALLEST, by_path / own, 0), mask=at < middle)


@triton.jit
def _moved(masses, begin, length, TINY: tl.constexpr, BLOCK: tl.constexpr):
    """The product of slots, 0 where there is none."""
    total = tl.zeros([BLOCK], tl.float64)
    for first in range(0, length, BLOCK):
        at = first + tl.arange(0, BLOCK)
        mass = tl.load(masses + begin + at, mask=at < length, other=1).to(tl.float64)
        total += tl.log(at_least(mass, TINY))
    product = tl.exp(tl.sum(total, axis=0)).to(masses.dtype.element_ty)
    return tl.where(length > 0, product, 0)


@triton.jit
def prefixes_inside(
    masses_s, masses_t, student, teacher, cells, into, out, chain, length, weight, values, slopes,
    SMALLEST: tl.constexpr, LEAST: tl.constexpr, TINY: tl.constexpr, GRADIENT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """What a comparison inside of a teacher's token adds, and the derivative with respect to the student's slots."""
    c = tl.program_id(0)
    lane = tl.arange(0, BLOCK)
    number = values.dtype.element_ty
    own, theirs, count = tl.load(student + c), tl.load(teacher + c), tl.load(cells + c)
    to, origin, crossing = tl.load(into + c), tl.load(out + c), tl.load(length + c)
    moved = _moved(masses_t, tl.load(chain + c), crossing, TINY, BLOCK)
    rest = tl.load(masses_t + theirs)
    all_s, all_t, total = tl.zeros([BLOCK], number), tl.zeros([BLOCK], number), tl.zeros([BLOCK], number)
    for first in range(0, count, BLOCK):
        at = first + lane
        all_t += tl.load(masses_t + theirs + 1 + at, mask=at < count, other=0)
        all_s += tl.load(masses_s + own + at, mask=at < count, other=0)
    whole = at_least(rest + tl.sum(all_t, axis=0), SMALLEST)
    left = 1 - tl.sum(all_s, axis=0)
    rest_s = at_least(left, LEAST)
    rest_t = at_least(rest - tl.where((crossing > 0) & (origin < 0), moved, 0), 0.0) / whole
    by_rest, wanted = rest_s * 0, rest_s * 0
    if GRADIENT:
        wanted += tl.load(weight)
        by_rest += tl.where(left >= LEAST, rest_t / rest_s, 0)
    for first in range(0, count, BLOCK):
        at = first + lane
        q = tl.load(masses_s + own + at, mask=at < count, other=0)
        p = tl.load(masses_t + theirs + 1 + at, mask=at < count, other=0)
        p += tl.where(at == to, moved, 0) - tl.where(at == origin, moved, 0)
        p = at_least(p, 0.0) / whole
        total += _term(p, q, SMALLEST)
        if GRADIENT:
            tl.store(slopes + own + at, wanted * (_by_class(p, q, SMALLEST) + by_rest), mask=at < count)
    tl.store(values + c, tl.sum(total, axis=0) + _term(rest_t, rest_s, SMALLEST))


@triton.jit(do_not_specialize=["chunks"])
def prefixes_over(
    masses_s, masses_t, sums, over, label, head, head_mass, token_mass, chain, length, weight, beside, slopes, chunks,
    REST: tl.constexpr, SMALLEST: tl.constexpr, TINY: tl.constexpr, GRADIENT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """What a chunk adds to its columns where the student's first token goes over an end of the teacher's: what both
    columns and REST are with what is moved, less what they are without.

    ``beside [5, chunks]``: see ``pair_kernels.Beside``.  ``sums``: of ``compare_pairs``, over all ranks.
    """
    k = tl.program_id(0)
    o = tl.load(over + k)
    p, q = tl.load(sums + 2 * chunks + k), tl.load(sums + 3 * chunks + k)
    value, by_rest = p * 0, p * 0
    if o >= 0:
        moved = _moved(masses_t, tl.load(chain + o), tl.load(length + o), TINY, BLOCK)
        from_slot, of_head, own, of_token = (
            tl.load(head + o),
            tl.load(head_mass + o),
            tl.load(label + o),
            tl.load(token_mass + o),
        )
        known, named = of_head >= 0, of_token >= 0
        mass = tl.load(masses_t + of_head, mask=known, other=0)
        q_head = tl.load(masses_s + from_slot, mask=known, other=0)
        was, slope_was = divergence_terms(mass, q_head, "forward", SMALLEST)
        now, slope_now = divergence_terms(at_least(mass - moved, 0.0), q_head, "forward", SMALLEST)
        value += tl.where(known, now - was, 0)
        p_rest = tl.where(known, p, at_least(p - moved, 0.0))
        # a token without a column is a class by itself here, and not of REST
        theirs = tl.load(masses_t + of_token, mask=named, other=0)
        q_token = tl.load(masses_s + own)
        before, slope_before = divergence_terms(theirs, q_token, "forward", SMALLEST)
        after, slope_after = divergence_terms(theirs + moved, q_token, "forward", SMALLEST)
        value += after - tl.where(named, before, 0)
        q_rest = tl.where(named, q, at_least(q - q_token, 0.0))
        rest_slope = p * 0
        if REST == "compared":
            without, slope_without = divergence_terms(p, q, "forward", SMALLEST)
            given, slope_given = divergence_terms(p_rest, q_rest, "forward", SMALLEST)
            value += given - without
            rest_slope += slope_given
            by_rest += slope_given - slope_without
        else:
            inside, still = at_least(1 - p, 0.0), at_least(1 - p_rest, 0.0)
            value += tl.where(inside == 0, 0, inside * tl.log(tl.where(inside == 0, 1, inside)))
            value -= tl.where(still == 0, 0, still * tl.log(tl.where(still == 0, 1, still)))
        if GRADIENT:
            wanted = tl.load(weight)
            tl.store(slopes + from_slot, wanted * (slope_now - slope_was), mask=known)
            tl.store(slopes + own, wanted * (slope_after - tl.where(named, slope_before, rest_slope)))
    tl.store(beside + k, q * by_rest)
    tl.store(beside + chunks + k, by_rest)
    tl.store(beside + 3 * chunks + k, value)
