"""The passes over a pair of tiles by Triton; see `PairKernels`."""

from collections.abc import Callable
from typing import Any

import torch
import triton
from torch import Tensor

from nemo_xtoken.kernels import largest_source, leaf_source, pair_source, slot_source
from nemo_xtoken.kernels.leaf_arrays import LeafArrays, PrefixArrays, SlotArrays, SupportArrays
from nemo_xtoken.kernels.pair_kernels import (
    ColumnPlan,
    Largest,
    PairGradient,
    PairKernels,
    PairRows,
    TileLogits,
)
from nemo_xtoken.kernels.tile_kernels import smallest

__all__ = ["TritonPairs"]

#: Chunks of a program that goes over chunks, and the entries of W that it takes at a time.
CHUNKS, ENTRIES = 32, 16
#: What a program on a slot, a path, a leaf or a chunk takes at a time.
LEAVES = 128
#: Values of two sides that a program compares at a time, sorted and chosen ones.
SORTED, CHOSEN = 1024, 64


class TritonPairs(PairKernels):
    """Kernels for a GPU.

    Args:
        block: columns that a program takes at a time, a power of 2.
    """

    def __init__(self, block: int = 4096) -> None:
        self.block = block

    def statistics(self, z: Tensor, labels: Tensor, start: int, valid: int, temperature: float) -> Tensor:
        out = z.new_empty((3, z.shape[0]))
        self.launch(
            pair_source.row_statistics, (z.shape[0],), z, labels, *out.unbind(), start, valid, z.shape[1],
            TEMPERATURE=temperature, BLOCK=self.block,
        )  # fmt: skip
        return out

    def spread(
        self,
        side: TileLogits,
        first: Tensor,
        columns: Tensor,
        weights: Tensor,
        starts: Tensor,
        temperature: float,
    ) -> Tensor:
        k, tokens = first.numel(), starts.numel() - 1
        table = side.z.new_empty((k, tokens))
        self.launch(
            pair_source.spread_entries, (tokens, triton.cdiv(k, CHUNKS)), side.z, side.norms, first, columns, weights,
            starts, table, k, side.z.shape[1], TEMPERATURE=temperature, ENTRIES=ENTRIES, BLOCK=CHUNKS, num_warps=4,
        )  # fmt: skip
        return table

    def compare(
        self,
        plan: ColumnPlan,
        sides: tuple[TileLogits, TileLogits],
        rows: tuple[PairRows, PairRows],
        tables: tuple[Tensor, Tensor | None],
        temperature: float,
    ) -> tuple[Tensor, Tensor]:
        (student, teacher), k = sides, rows[0].first.numel()
        sums, slopes = student.z.new_empty((4, k)), torch.empty_like(tables[0])
        self.launch(
            pair_source.compare_pairs, (k,), student.z, teacher.z, student.norms, teacher.norms,
            rows[0].first, rows[1].first, *_columns(plan, tables), sums, slopes, k, *_widths(tables),
            student.z.shape[1], teacher.z.shape[1], plan.kinds.numel(),
            **_constants(plan, tables, student.z, temperature), BLOCK=self.block,
        )  # fmt: skip
        return sums, slopes

    def chunk_terms(
        self,
        plan: ColumnPlan,
        sides: tuple[TileLogits, TileLogits],
        rows: tuple[PairRows, PairRows],
        sums: Tensor | None,
        weight: Tensor,
        chain_rule: bool,
        beside: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        z, k = sides[0].z, rows[0].first.numel()
        out = z.new_empty((7, k))
        values, by_chunk = out[:3], out[3:]
        self.launch(
            pair_source.chunk_terms, (triton.cdiv(k, CHUNKS),), rows[0].first, rows[0].tokens, rows[1].first,
            rows[1].tokens, sides[0].log_p, sides[1].log_p, out if sums is None else sums,
            out if beside is None else beside, weight, values, by_chunk, k,
            DIRECTION=plan.direction, SMALLEST=smallest(z), NEAREST=-torch.finfo(z.dtype).eps / 2, CHAIN=chain_rule,
            REST=plan.rest, COLUMNS=sums is not None, BESIDE=beside is not None, BLOCK=CHUNKS, num_warps=1,
        )  # fmt: skip
        return values, by_chunk

    def largest(
        self, side: TileLogits, first: Tensor, mask: Tensor, keep: int, room: int, temperature: float, search: bool
    ) -> Largest:
        k, blocks = first.numel(), triton.cdiv(side.z.shape[1], self.block)
        limits, left, values = side.z.new_empty(k), side.z.new_empty(k), side.z.new_empty((k, room))
        last, starts, columns = (first.new_empty(n, dtype=torch.int32) for n in ((k,), (k, blocks), (k, room)))
        self.launch(
            largest_source.largest_of_rows, (k,), side.z, side.norms, first, mask, limits, last, starts, values,
            columns, left, keep, side.valid, side.z.shape[1], room, blocks, TEMPERATURE=temperature, SEARCH=search,
            BITS=8 * side.z.itemsize, BLOCK=self.block,
        )  # fmt: skip
        return Largest(limits, last, starts, values, columns, left)

    def sorted_distance(
        self,
        sides: tuple[TileLogits, TileLogits],
        first: tuple[Tensor, Tensor],
        ranked: tuple[Tensor, Tensor],
        order: Tensor,
        left: tuple[Tensor, Tensor] | None,
        count: int,
        room: int,
        own: int,
        temperature: float,
        beyond: bool,
    ) -> tuple[Tensor, Tensor]:
        (a, b), k = ranked, first[0].numel()
        terms, slopes = a.new_empty((5, k)), a.new_empty((k, room))
        self.launch(
            largest_source.sorted_distance, (k,), a, b, order, sides[0].norms, sides[1].norms, *first,
            *((a, a) if left is None else left), terms, slopes, k, a.shape[1], b.shape[1],
            max(a.shape[1], b.shape[1]), count, room, own,
            TEMPERATURE=temperature, BEYOND=beyond, TAILS=left is not None, BLOCK=SORTED,
        )  # fmt: skip
        return terms, slopes

    def partners(
        self, teacher: TileLogits, first: Tensor, tokens: Tensor, partner: Tensor, temperature: float
    ) -> Tensor:
        out = teacher.z.new_empty(tokens.shape)
        self.launch(
            largest_source.partners_of_largest, (len(tokens),), teacher.z, teacher.norms, first, tokens, partner, out,
            tokens.shape[1], teacher.start, teacher.valid, teacher.z.shape[1],
            TEMPERATURE=temperature, BLOCK=CHOSEN, num_warps=1,
        )  # fmt: skip
        return out

    def restricted_reverse(
        self,
        student: TileLogits,
        first: Tensor,
        chosen: Tensor,
        partners: Tensor,
        order: Tensor | None,
        room: int,
        own: int,
        temperature: float,
    ) -> tuple[Tensor, Tensor]:
        k, limits = first.numel(), torch.finfo(chosen.dtype)
        sums, slopes = chosen.new_empty((4, k)), chosen.new_empty((k, room))
        self.launch(
            largest_source.restricted_reverse, (k,), chosen, partners, first if order is None else order,
            student.norms, first, sums, slopes, k, partners.shape[1], chosen.shape[1], room, own,
            TEMPERATURE=temperature, ORDERED=order is not None, SMALLEST=smallest(chosen),
            LEAST=limits.tiny * limits.eps, FAR=limits.tiny / limits.eps, BLOCK=CHOSEN, num_warps=1,
        )  # fmt: skip
        return sums, slopes

    def leaves(
        self,
        arrays: LeafArrays,
        sides: tuple[TileLogits, TileLogits],
        temperature: float,
        weights: Tensor | None,
        reduce: Callable[[Tensor], Tensor],
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        a, (student, teacher) = arrays, sides
        z, norms, widths = student.z, student.norms, (student.z.shape[1], teacher.z.shape[1])
        slots, paths, rows = a.slot_path.numel(), a.path_slot.numel(), a.row_path.numel()
        leaves, chunks, own_slots = a.leaf_level.numel(), a.chunk_levels.numel(), a.student_slots
        least, smallest_one = torch.finfo(z.dtype).eps / 2, smallest(z)
        masses, left, sums = z.new_empty(slots), z.new_empty(paths), z.new_empty(2 * leaves)
        before = z.new_empty(paths, dtype=torch.float64)
        values, by_leaf, by_class = z.new_empty((2, a.chunk_of.numel())), z.new_empty(leaves), z.new_empty(2 * chunks)
        run = lambda kernel, size, *given, **more: self.launch(  # noqa: E731
            kernel, (size,), *given, **more, BLOCK=LEAVES, num_warps=4
        )
        run(
            leaf_source.leaf_masses, slots, z, teacher.z, norms, teacher.norms, a.entry_row, a.entry_column,
            a.entry_start, masses, own_slots, *widths, TEMPERATURE=temperature,
        )  # fmt: skip
        reduce(masses)
        run(
            leaf_source.leaf_paths, paths, masses, a.path_slot, a.path_first, a.group_start, a.group_stop, left, before,
            SMALLEST=smallest_one,
        )  # fmt: skip
        pairs = a.pair_whole, a.pair_from, a.pair_to
        run(
            leaf_source.leaf_sums, 2 * leaves, masses, left, before, a.leaf_pairs, a.leaf_start, *pairs, sums, slots,
            LEAST=least,
        )  # fmt: skip
        run(
            leaf_source.leaf_chunks, a.chunk_of.numel(), masses, sums, a.chunk_of, a.chunk_leaves, a.leaf_level,
            a.chunk_levels, a.chunk_path, a.path_slot, a.group_start, a.group_stop, a.slot_class,
            masses if weights is None else weights, values, by_leaf, by_class, chunks, leaves,
            SMALLEST=smallest_one, GRADIENT=weights is not None,
        )  # fmt: skip
        if weights is None:
            return values, None, None
        slopes, inner, by_entry = z.new_empty(own_slots), z.new_empty(rows), z.new_empty(a.student_entries)
        run(
            leaf_source.leaf_slopes, own_slots, masses, left, before, by_leaf, by_class, a.slot_path, a.slot_class,
            a.path_slot, a.path_first, a.path_chunk, a.path_pairs, a.path_pairs_stop, a.pair_whole, a.pair_leaf,
            a.pair_from, a.pair_to, a.whole_pairs, a.whole_pairs_stop, slopes, slots,
            SMALLEST=smallest_one, LEAST=least,
        )  # fmt: skip
        run(
            leaf_source.leaf_entries, rows, z, norms, masses, slopes, a.path_slot, a.row_path, a.group_start,
            a.group_stop, a.entry_column, a.entry_slot, a.entry_start, by_entry, inner, widths[0],
            TEMPERATURE=temperature,
        )  # fmt: skip
        return values, by_entry, inner

    def slot_masses(self, slots: SlotArrays, sides: tuple[TileLogits, TileLogits], temperature: float) -> Tensor:
        (student, teacher), masses = sides, sides[0].z.new_empty(slots.slots)
        self.launch(
            leaf_source.leaf_masses, (slots.slots,), student.z, teacher.z, student.norms, teacher.norms,
            slots.entry_row, slots.entry_column, slots.entry_start, masses, slots.student_slots, student.z.shape[1],
            teacher.z.shape[1], TEMPERATURE=temperature, BLOCK=LEAVES, num_warps=4,
        )  # fmt: skip
        return masses

    def slot_entries(
        self, slots: SlotArrays, student: TileLogits, masses: Tensor, slopes: Tensor, temperature: float
    ) -> tuple[Tensor, Tensor]:
        z, rows = student.z, slots.row_path.numel()
        by_entry, inner = z.new_empty(slots.student_entries), z.new_empty(rows)
        self.launch(
            leaf_source.leaf_entries, (rows,), z, student.norms, masses, slopes, slots.path_slot, slots.row_path,
            slots.group_start, slots.group_stop, slots.entry_column, slots.entry_slot, slots.entry_start, by_entry,
            inner, z.shape[1], TEMPERATURE=temperature, BLOCK=LEAVES, num_warps=4,
        )  # fmt: skip
        return by_entry, inner

    def common_support(
        self, arrays: SupportArrays, masses: tuple[Tensor, Tensor], weight: Tensor | None, beta: float
    ) -> tuple[Tensor, Tensor]:
        own, count = masses[0], arrays.counts.numel()
        values, slopes = own.new_empty((4, count)), torch.empty_like(own)
        self.launch(
            slot_source.common_support, (count,), *masses, *arrays, own if weight is None else weight, values, slopes,
            count, BETA=beta, SMALLEST=smallest(own), LEAST=torch.finfo(own.dtype).eps / 2,
            GRADIENT=weight is not None, BLOCK=LEAVES, num_warps=4,
        )  # fmt: skip
        return values, slopes

    def prefixes(
        self, arrays: PrefixArrays, masses: tuple[Tensor, Tensor], sums: Tensor, weight: Tensor | None, rest: str
    ) -> tuple[Tensor, Tensor, Tensor]:
        inside, over = arrays
        own, k, count = masses[0], over.over.numel(), inside.cells.numel()
        values, terms, slopes = own.new_empty((1, count)), own.new_empty((5, k)), torch.empty_like(own)
        wanted = own if weight is None else weight
        constants = {"SMALLEST": smallest(own), "TINY": torch.finfo(torch.float64).tiny, "GRADIENT": weight is not None}
        self.launch(
            slot_source.prefixes_over, (k,), *masses, sums, *over, wanted, terms, slopes, k,
            REST=rest, **constants, BLOCK=CHOSEN, num_warps=1,
        )  # fmt: skip
        self.launch(
            slot_source.prefixes_inside, (count,), *masses, *inside, wanted, values, slopes,
            LEAST=torch.finfo(own.dtype).eps / 2, **constants, BLOCK=LEAVES, num_warps=4,
        )  # fmt: skip
        return values, terms, slopes

    def gradient(
        self,
        student: TileLogits,
        temperature: float,
        settings: Tensor,
        dz: Tensor,
        *,
        more: bool,
        softcap: bool = False,
        inner: Tensor | None = None,
        pair: PairGradient | None = None,
    ) -> None:
        z, norms = student.z, student.norms
        if pair is None:
            # nothing of these is looked at
            other, rows, widths = (norms, norms), (student.labels,) * 3, (0,) * 4
            by_chunk, slopes, k, entries, largest = norms, norms, 0, 0, None
            columns: tuple[Tensor, ...] = (norms,) * 9
            constants: dict[str, Any] = {"DIRECTION": "", "SMALLEST": 0.0, "TEMPERATURE": temperature}
            constants |= {"TABLE": False, "GATHERED": False}
        else:
            plan, by_chunk, slopes, largest = pair.plan, pair.by_chunk, pair.slopes, pair.largest
            other = pair.teacher.z, pair.teacher.norms
            rows = pair.rows[0].chunk, pair.rows[0].first, pair.rows[1].first
            columns = *_columns(plan, pair.tables), plan.row_slots, plan.row_starts, plan.weights, plan.by_row
            widths = *_widths(pair.tables), slopes.shape[1], other[0].shape[1]
            k, entries, constants = by_chunk.shape[1], plan.entries, _constants(plan, pair.tables, z, temperature)
        of_largest = (norms,) * 4 if largest is None else (*largest.of[:3], largest.slopes)
        room = of_largest[3].shape[-1]
        self.launch(
            pair_source.pair_gradient, (z.shape[0], triton.cdiv(z.shape[1], self.block)),
            z, other[0], norms, other[1], student.labels, *rows, norms if inner is None else inner, by_chunk,
            *columns, slopes, *of_largest, dz, settings, student.start, k, *widths[:3], student.valid, z.shape[1],
            widths[3], room, LARGEST=largest is not None and room > 0,
            TEACHER=pair is not None, **constants, ENTRIES=entries, INNER=inner is not None,
            SOFTCAP=softcap, MORE=more, BLOCK=self.block,
        )  # fmt: skip

    def launch(self, kernel: Any, grid: tuple[int, ...], *arguments: Any, num_warps: int = 8, **constants: Any) -> None:
        """Starts the programs of a grid, if there are any.

        Raises:
            ValueError: a tensor whose elements do not follow each other, as the kernels take them to.
        """
        if not all(x.is_contiguous() for x in arguments if isinstance(x, Tensor)):
            raise ValueError(f"{kernel.__name__} was given a tensor that is not contiguous")
        if all(grid):
            with torch.cuda.device_of(arguments[0]):
                kernel[grid](*arguments, **constants, num_warps=num_warps)


def _columns(plan: ColumnPlan, tables: tuple[Tensor, Tensor | None]) -> tuple[Tensor, ...]:
    table_s, table_t = tables
    return plan.kinds, plan.slots_s, plan.slots_t, table_s, table_s if table_t is None else table_t


def _widths(tables: tuple[Tensor, Tensor | None]) -> tuple[int, int]:
    return tables[0].shape[1], 0 if tables[1] is None else tables[1].shape[1]


def _constants(plan: ColumnPlan, tables: tuple[Tensor, Tensor | None], z: Tensor, temperature: float) -> dict[str, Any]:
    return {
        "DIRECTION": plan.direction,
        "SMALLEST": smallest(z),
        "TEMPERATURE": temperature,
        "TABLE": tables[0].shape[1] > 0,
        "GATHERED": tables[1] is not None and tables[1].shape[1] > 0,
    }
