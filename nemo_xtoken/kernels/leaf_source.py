"""The Triton kernels that compare the leaves of chunks; see `losses.leaf_divergence` and, for the arrays, `LeafArrays`.

A program has a slot, a path, a leaf or a chunk, and goes over what belongs to it by BLOCK.  Sums have a fixed order.
"""

import triton
import triton.language as tl

from nemo_xtoken.kernels.source import at_least

__all__ = ["leaf_chunks", "leaf_entries", "leaf_masses", "leaf_paths", "leaf_slopes", "leaf_sums"]


@triton.jit(do_not_specialize=["student_slots"])
def leaf_masses(
    zs, zt, norms_s, norms_t, entry_row, entry_column, entry_start, masses, student_slots, width_s, width_t,
    TEMPERATURE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A slot's mass: the sum of its tokens' probabilities on this rank."""
    slot = tl.program_id(0)
    begin, end = tl.load(entry_start + slot), tl.load(entry_start + slot + 1)
    total = tl.zeros([BLOCK], zs.dtype.element_ty)
    for first in range(begin, end, BLOCK):
        at = first + tl.arange(0, BLOCK)
        there = at < end
        row, column = tl.load(entry_row + at, mask=there, other=0), tl.load(entry_column + at, mask=there, other=0)
        if slot < student_slots:
            x = tl.load(zs + row * width_s + column, mask=there, other=float("-inf"))
            norm = tl.load(norms_s + row, mask=there, other=0)
        else:
            x = tl.load(zt + row * width_t + column, mask=there, other=float("-inf"))
            norm = tl.load(norms_t + row, mask=there, other=0)
        total += tl.exp(x / TEMPERATURE - norm)
    tl.store(masses + slot, tl.sum(total, axis=0))


@triton.jit
def leaf_paths(
    masses, path_slot, path_first, group_start, group_stop, left, before, SMALLEST: tl.constexpr, BLOCK: tl.constexpr
):
    """What is left at a path beside its slots, and the logarithm of the probability of the paths before it."""
    path = tl.program_id(0)
    lane = tl.arange(0, BLOCK)
    listed = tl.zeros([BLOCK], masses.dtype.element_ty)
    end = tl.load(group_stop + path)
    for first in range(tl.load(group_start + path), end, BLOCK):
        listed += tl.load(masses + first + lane, mask=first + lane < end, other=0)
    own = tl.load(masses + tl.load(path_slot + path))
    tl.store(left + path, 1 - (own + tl.sum(listed, axis=0)))
    total = tl.zeros([BLOCK], tl.float64)
    for first in range(tl.load(path_first + path), path, BLOCK):
        earlier = first + lane < path
        slot = tl.load(path_slot + first + lane, mask=earlier, other=0)
        mass = tl.load(masses + slot, mask=earlier, other=1)
        total += tl.log(at_least(mass, SMALLEST)).to(tl.float64)
    tl.store(before + path, tl.sum(total, axis=0))


@triton.jit
def _reached(before, pair_from, pair_to, pair, there, like):
    """The probability with which pairs' slots are come to."""
    to = tl.load(before + tl.load(pair_to + pair, mask=there, other=0), mask=there, other=0)
    start = tl.load(before + tl.load(pair_from + pair, mask=there, other=0), mask=there, other=0)
    return tl.exp(to - start).to(like)


@triton.jit
def _pair_mass(masses, left, before, pair_whole, pair_from, pair_to, pair, there, all_slots, LEAST: tl.constexpr):
    """What pairs count in their leaves, 0 where there is none."""
    whole = tl.load(pair_whole + pair, mask=there, other=0)
    listed = there & (whole < all_slots)
    rest = there & (whole >= all_slots)
    mass = tl.load(masses + whole, mask=listed, other=0)
    mass += tl.where(rest, at_least(tl.load(left + whole - all_slots, mask=rest, other=0), LEAST), 0)
    return mass * _reached(before, pair_from, pair_to, pair, there, masses.dtype.element_ty)


@triton.jit(do_not_specialize=["all_slots"])
def leaf_sums(
    masses, left, before, leaf_pairs, leaf_start, pair_whole, pair_from, pair_to, sums, all_slots,
    LEAST: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The mass of a leaf."""
    leaf = tl.program_id(0)
    end = tl.load(leaf_start + leaf + 1)
    total = tl.zeros([BLOCK], masses.dtype.element_ty)
    for first in range(tl.load(leaf_start + leaf), end, BLOCK):
        at = first + tl.arange(0, BLOCK)
        there = at < end
        pair = tl.load(leaf_pairs + at, mask=there, other=0)
        total += _pair_mass(masses, left, before, pair_whole, pair_from, pair_to, pair, there, all_slots, LEAST)
    tl.store(sums + leaf, tl.sum(total, axis=0))


@triton.jit
def _two_classes(masses, slot_class, path_slot, group_start, group_stop, path, BLOCK: tl.constexpr):
    """The masses of both classes at a first path."""
    own = tl.load(path_slot + path)
    mass, kind = tl.load(masses + own), tl.load(slot_class + own)
    zero, one = tl.zeros([BLOCK], masses.dtype.element_ty), tl.zeros([BLOCK], masses.dtype.element_ty)
    end = tl.load(group_stop + path)
    for first in range(tl.load(group_start + path), end, BLOCK):
        at = first + tl.arange(0, BLOCK)
        other = tl.load(masses + at, mask=at < end, other=0)
        kinds = tl.load(slot_class + at, mask=at < end, other=-1)
        zero += tl.where(kinds == 0, other, 0)
        one += tl.where(kinds == 1, other, 0)
    return (
        tl.sum(zero, axis=0) + tl.where(kind == 0, mass, 0),
        tl.sum(one, axis=0) + tl.where(kind == 1, mass, 0),
    )


@triton.jit
def _ratio(p, q, SMALLEST: tl.constexpr):
    return at_least(p / at_least(q, SMALLEST), SMALLEST)


@triton.jit(do_not_specialize=["chunks", "leaves"])
def leaf_chunks(
    masses, sums, chunk_of, chunk_leaves, leaf_level, chunk_levels, chunk_path, path_slot, group_start, group_stop,
    slot_class, weights, values, by_leaf, by_class, chunks, leaves,
    SMALLEST: tl.constexpr, GRADIENT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """``values [2, k]``: a chunk's value, 0 without leaves, and whether it has any; the derivative with respect to its
    leaves and to its two first classes."""
    k = tl.program_id(0)
    c = tl.load(chunk_of + k)
    lane = tl.arange(0, BLOCK)
    number = masses.dtype.element_ty
    value = tl.zeros([BLOCK], number)
    together = tl.sum(value, axis=0)
    if c >= 0:
        begin, end = tl.load(chunk_leaves + c), tl.load(chunk_leaves + c + 1)
        for level in range(tl.load(chunk_levels + c)):
            all_s, all_t = tl.zeros([BLOCK], number), tl.zeros([BLOCK], number)
            for first in range(begin, end, BLOCK):
                at = first + lane
                mine = tl.load(leaf_level + at, mask=at < end, other=-1) == level
                all_s += tl.load(sums + at, mask=mine, other=0)
                all_t += tl.load(sums + leaves + at, mask=mine, other=0)
            whole_s, whole_t = tl.sum(all_s, axis=0), tl.sum(all_t, axis=0)
            log_s, log_t = tl.log(at_least(whole_s, SMALLEST)), tl.log(at_least(whole_t, SMALLEST))
            shares = tl.zeros([BLOCK], number)
            for first in range(begin, end, BLOCK):
                at = first + lane
                mine = tl.load(leaf_level + at, mask=at < end, other=-1) == level
                q, p = tl.load(sums + at, mask=mine, other=1), tl.load(sums + leaves + at, mask=mine, other=1)
                own_t = tl.log(at_least(p, SMALLEST)) - log_t
                share = tl.where(mine, tl.exp(own_t), 0)
                value += tl.where(mine, share * (own_t - (tl.log(at_least(q, SMALLEST)) - log_s)), 0)
                shares += share
            if GRADIENT:
                weight = tl.load(weights + k)
                by_whole = tl.where(whole_s >= SMALLEST, weight * tl.sum(shares, axis=0) / whole_s, 0)
                for first in range(begin, end, BLOCK):
                    at = first + lane
                    mine = tl.load(leaf_level + at, mask=at < end, other=-1) == level
                    q, p = tl.load(sums + at, mask=mine, other=1), tl.load(sums + leaves + at, mask=mine, other=1)
                    wanted = weight * tl.exp(tl.log(at_least(p, SMALLEST)) - log_t)
                    tl.store(by_leaf + at, by_whole - tl.where(q >= SMALLEST, wanted / q, 0), mask=mine)
        first_s, first_t = tl.load(chunk_path + c), tl.load(chunk_path + chunks + c)
        if tl.load(slot_class + tl.load(path_slot + first_s)) >= 0:
            q0, q1 = _two_classes(masses, slot_class, path_slot, group_start, group_stop, first_s, BLOCK)
            p0, p1 = _two_classes(masses, slot_class, path_slot, group_start, group_stop, first_t, BLOCK)
            both = _ratio(p0 + p1, q0 + q1, SMALLEST)
            zero, one = _ratio(p0, q0, SMALLEST), _ratio(p1, q1, SMALLEST)
            together = (p0 + p1) * tl.log(both) - (p0 * tl.log(zero) + p1 * tl.log(one))
            if GRADIENT:
                weight = tl.load(weights + k)
                both = tl.where(q0 + q1 >= SMALLEST, both, 0)
                tl.store(by_class + 2 * c, weight * (tl.where(q0 >= SMALLEST, zero, 0) - both))
                tl.store(by_class + 2 * c + 1, weight * (tl.where(q1 >= SMALLEST, one, 0) - both))
    tl.store(values + k, tl.sum(value, axis=0) + together)
    tl.store(values + tl.num_programs(0) + k, tl.where(c >= 0, 1, 0).to(number))


@triton.jit(do_not_specialize=["all_slots"])
def leaf_slopes(
    masses, left, before, by_leaf, by_class, slot_path, slot_class, path_slot, path_first, path_chunk, path_pairs,
    path_pairs_stop, pair_whole, pair_leaf, pair_from, pair_to, whole_pairs, whole_pairs_stop, slopes, all_slots,
    SMALLEST: tl.constexpr, LEAST: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The derivative with respect to a slot of the student."""
    slot = tl.program_id(0)
    path = tl.load(slot_path + slot)
    lane = tl.arange(0, BLOCK)
    number = masses.dtype.element_ty
    total = tl.zeros([BLOCK], number)
    end = tl.load(whole_pairs_stop + slot)
    for first in range(tl.load(whole_pairs + slot), end, BLOCK):
        pair = first + lane
        there = pair < end
        by = tl.load(by_leaf + tl.load(pair_leaf + pair, mask=there, other=0), mask=there, other=0)
        total += by * _reached(before, pair_from, pair_to, pair, there, number)
    if (path > tl.load(path_first + path)) & (tl.load(left + path) >= LEAST):  # the more in it, the less in REST
        end = tl.load(whole_pairs_stop + all_slots + path)
        for first in range(tl.load(whole_pairs + all_slots + path), end, BLOCK):
            pair = first + lane
            there = pair < end
            by = tl.load(by_leaf + tl.load(pair_leaf + pair, mask=there, other=0), mask=there, other=0)
            total -= by * _reached(before, pair_from, pair_to, pair, there, number)
    value = tl.sum(total, axis=0)
    if tl.load(path_slot + path) == slot:  # what lies behind it is come to by it
        behind = tl.zeros([BLOCK], tl.float64)
        end = tl.load(path_pairs_stop + path)
        for first in range(tl.load(path_pairs + path), end, BLOCK):
            pair = first + lane
            there = pair < end
            there = there & (tl.load(pair_from + pair, mask=there, other=0) <= path)
            there = there & (tl.load(pair_to + pair, mask=there, other=0) > path)
            by = tl.load(by_leaf + tl.load(pair_leaf + pair, mask=there, other=0), mask=there, other=0)
            mass = _pair_mass(masses, left, before, pair_whole, pair_from, pair_to, pair, there, all_slots, LEAST)
            behind += (by * mass).to(tl.float64)
        own = tl.load(masses + slot)
        value += tl.where(own >= SMALLEST, tl.sum(behind, axis=0).to(number) / own, 0)
    kind = tl.load(slot_class + slot)
    if kind >= 0:
        value += tl.load(by_class + 2 * tl.load(path_chunk + path) + kind)
    tl.store(slopes + slot, value)


@triton.jit
def leaf_entries(
    zs, norms_s, masses, slopes, path_slot, row_path, group_start, group_stop, entry_column, entry_slot, entry_start,
    by_entry, inner, width_s, TEMPERATURE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """At a row of the student: the derivative with respect to the logarithms of its tokens' probabilities, and their
    sum over all ranks."""
    row = tl.program_id(0).to(tl.int64)
    path = tl.load(row_path + row)
    if path < 0:
        tl.store(inner + row, 0.0)
        return
    own = tl.load(path_slot + path)
    lane = tl.arange(0, BLOCK)
    norm = tl.load(norms_s + row)
    start, stop = tl.load(group_start + path), tl.load(group_stop + path)
    total = tl.zeros([BLOCK], masses.dtype.element_ty)
    for first in range(start, stop, BLOCK):
        there = first + lane < stop
        slope = tl.load(slopes + first + lane, mask=there, other=0)
        total += slope * tl.load(masses + first + lane, mask=there, other=0)
    tl.store(inner + row, tl.sum(total, axis=0) + tl.load(slopes + own) * tl.load(masses + own))
    for part in tl.static_range(2):  # the path's own token, and all others
        begin, end = tl.load(entry_start + own), tl.load(entry_start + own + 1)
        if part == 1:
            begin, end = tl.load(entry_start + start), tl.load(entry_start + stop)
        for first in range(begin, end, BLOCK):
            at = first + lane
            there = at < end
            slope = tl.load(slopes + tl.load(entry_slot + at, mask=there, other=0), mask=there, other=0)
            column = tl.load(entry_column + at, mask=there, other=0)
            x = tl.load(zs + row * width_s + column, mask=there, other=float("-inf"))
            tl.store(by_entry + at, slope * tl.exp(x / TEMPERATURE - norm), mask=there)
