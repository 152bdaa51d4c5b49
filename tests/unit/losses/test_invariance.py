"""Any layout of ranks, micro-batches, packing and tiles gives the losses, counts and gradients of one process.

Real gloo groups: TP 1, 2, 4 x CP 1, 2, with every loss of the registry, and two teachers in one pass.  Data-parallel
ranks do not meet in the loss: to it they are micro-batches, whose sums add up.
"""

import functools
import itertools
from dataclasses import dataclass

import numpy as np
import pytest
import torch
import torch.distributed as dist
from cases import Problem, match_labels, match_spellings, random_classes
from harness import WEIGHTS, student_shard
from random_texts import vocabulary
from ranks import run_ranks

from nemo_xtoken.losses.alm import ChunkLikelihood
from nemo_xtoken.losses.base import ChunkLossConfig, ModelOutput, TeacherSignal
from nemo_xtoken.losses.bpm import BytePrefixKL
from nemo_xtoken.losses.chunks import MERGES
from nemo_xtoken.losses.csd import CommonSupport, Completions
from nemo_xtoken.losses.gold import Gold
from nemo_xtoken.losses.h_kl import HybridKL
from nemo_xtoken.losses.nrl import NrlGold, NrlHybridKL, nrl_exact_pairs, nrl_relaxed_pairs
from nemo_xtoken.losses.p_kl import ProjectedKL
from nemo_xtoken.losses.prefix_kl import HaveClasses, PrefixKL
from nemo_xtoken.losses.registry import LOSSES
from nemo_xtoken.losses.same_tokenizer import SameTokenizerKL
from nemo_xtoken.losses.sorted_l1 import UniversalLogitDistance
from nemo_xtoken.losses.strict_1to1 import ExactPairs, StrictOneToOne
from nemo_xtoken.objective.shares import Held, share, sum_over
from nemo_xtoken.objective.terms import cross_tokenizer_loss
from nemo_xtoken.parallel.context_parallel import ContextLayout
from nemo_xtoken.parallel.exchange import VocabularyExchange
from nemo_xtoken.parallel.head import OutputHead
from nemo_xtoken.parallel.ownership import reorder_rows
from nemo_xtoken.parallel.vocabulary_shard import VocabularyShard
from nemo_xtoken.projection.byte_prefixes import BytePrefixes

RELATIVE = 1e-5
RANKS = 8
SAMPLES, T_S, T_T, V = 4, 16, 20, 29
TENSOR, CONTEXT, MICRO = (1, 2, 4), (1, 2), (1, 2, 4)
TILES = (7, 100)


class Anything:
    """Some tokens can follow some two."""

    def key(self, before, last):
        return before

    def possible(self, before, last):
        return np.random.default_rng([last, 0 if before is None else before + 1]).random(V) < 0.95


KINDS = {
    "p_kl": lambda p, s: ProjectedKL(VocabularyExchange.co_sharded(p.matrix, s)),
    "prefix_kl": lambda p, s: PrefixKL(p.classes, s),
    "prefix_kl with boundaries": lambda p, s: PrefixKL(p.classes, s, following=(Anything(), Anything())),
    "h_kl": lambda p, s: HybridKL(nrl_exact_pairs(p.matrix), p.matrix, s),
    "gold": lambda p, s: Gold(nrl_exact_pairs(p.matrix), s),
    "uld": lambda p, s: UniversalLogitDistance(s, p.v_t),
    "strict_1to1": lambda p, s: StrictOneToOne(nrl_exact_pairs(p.matrix), s, 4),
    "csd": lambda p, s: CommonSupport(nrl_exact_pairs(p.matrix), Completions(p.classes, p.lengths), s, 0.6),
    "bpm": lambda p, s: BytePrefixKL(BytePrefixes(*p.written), s),
    "alm": lambda p, s: ChunkLikelihood(s, p.v_t, 3.0),
    "same_tokenizer": lambda p, s: SameTokenizerKL(s, p.v_t),
    "nrl_gold": lambda p, s: NrlGold(nrl_exact_pairs(p.matrix), s),
    "nrl_h_kl": lambda p, s: NrlHybridKL(nrl_relaxed_pairs(p.matrix), s),
}
#: Of the losses that score some chunks alone.
SELECTIONS = {
    "prefix_kl": lambda p: HaveClasses(p.classes),
    "prefix_kl with boundaries": lambda p: HaveClasses(p.classes),
    "strict_1to1": lambda p: ExactPairs(nrl_exact_pairs(p.matrix)),
}


@dataclass(frozen=True)
class Case:
    """One way to compute one batch; ``losses``: of the teachers, one or two."""

    losses: tuple[str, ...]
    tp: int = 1
    cp: int = 1
    micro: int = SAMPLES
    packed: bool = False
    tile: int = 5
    merge: str = "chain_rule"

    @property
    def plain(self):
        """The same batch in one process, at once."""
        return Case(self.losses, packed=self.packed, merge=self.merge)


def ways():
    """Every micro-batch packed and not; every tile with either."""
    return [
        (micro, packed, TILES[(i + packed) % len(TILES)])
        for (i, micro), packed in itertools.product(enumerate(MICRO), (False, True))
    ]


def cases():
    """Every layout with every loss; every way with every loss, and in every layout; every merge and loss."""
    layouts = list(itertools.product(TENSOR, CONTEXT))
    names = [*((name,) for name in KINDS), ("p_kl", "gold"), ("uld", "p_kl")]
    found = []
    for i, (tp, cp) in enumerate(layouts):
        for j, losses in enumerate(names):
            micro, packed, tile = ways()[(i + j) % len(ways())]
            found.append(Case(losses, tp, cp, micro, packed, tile, MERGES[(i + j // len(ways())) % len(MERGES)]))
    return found


@functools.cache
def problem_of(packed):
    """A batch in float32; packed: with documents that end inside of samples, elsewhere on either side."""
    problem = Problem(
        seed=5, b=SAMPLES, t_s=T_S, t_t=T_T, v_s=V, v_t=V, pad_s=32, pad_t=36, dtype=torch.float32, reach=0.8
    )
    match_labels(problem, nrl_exact_pairs(problem.matrix))
    problem.classes = random_classes(np.random.default_rng(2), V)
    assert match_spellings(problem, problem.classes) > 4
    problem.written = tuple(
        vocabulary(name, ["".join("abcdefghijkl"[i] for i in row if i >= 0) for row in side.pieces.tolist()])
        for name, side in (("s", problem.classes.student), ("t", problem.classes.teacher))
    )
    problem.lengths = tuple(v.byte_length for v in problem.written)
    problem.starts = None
    if packed:
        rng = np.random.default_rng(1)
        problem.starts = {}
        for side, length, first, count in (("student", T_S, 1, 2), ("teacher", T_T, 3, 4)):
            begins = rng.random((SAMPLES, length)) < 0.2
            begins[:, 0] = True
            problem.starts[side] = torch.from_numpy(np.flatnonzero(begins))
            ends = torch.from_numpy(np.roll(begins, -1, axis=1))
            problem.batch[f"{side}_labels"][ends] = -100
            chunks = problem.batch["chunks"]
            crosses = [bool(ends[i, a : a + n].any()) for i, a, n in chunks[:, [0, first, count]].tolist()]
            problem.batch["chunks"] = chunks[~torch.tensor(crosses)]
    return problem


def piece_of(problem, samples):
    """Labels, chunks, hidden states and document starts of some samples, a slice."""
    chunks = problem.batch["chunks"]
    chunks = chunks[(chunks[:, 0] >= samples.start) & (chunks[:, 0] < samples.stop)].clone()
    chunks[:, 0] -= samples.start
    sides = {}
    for side, hidden, length in (("student", problem.hidden_s, T_S), ("teacher", problem.hidden_t, T_T)):
        starts = None
        if problem.starts is not None:
            starts = problem.starts[side] - samples.start * length
            starts = starts[(starts >= 0) & (starts < (samples.stop - samples.start) * length)]
        sides[side] = (problem.batch[f"{side}_labels"][samples], hidden[samples].flatten(0, 1), starts)
    return chunks, sides


def layout_of(labels, starts, group):
    if starts is None or group is None:
        return ContextLayout.zigzag(*labels.shape, group)
    return ContextLayout.by_document(starts, labels.numel(), group)


def compute(case, tensor=None, context=None):
    """What this rank contributes: sums, counts, gradients of its samples' hidden states and of its output weight."""
    problem = problem_of(case.packed)
    shard = student_shard(problem, tensor)
    weight = problem.weight_s.chunk(case.tp)[shard.rank].clone().requires_grad_()
    signals = []
    for name in case.losses:
        divergence = KINDS[name](problem, shard)
        held = VocabularyShard(problem.v_t, problem.weight_t.shape[0], tensor)
        rows = reorder_rows(problem.weight_t.chunk(case.tp)[shard.rank], held, divergence.ownership)
        head = OutputHead(rows, divergence.ownership.shard, torch.from_numpy(divergence.ownership.owned))
        signals.append((divergence, head))
    totals, counts, busy, by_hidden = 0, 0, [], torch.zeros(SAMPLES * T_S, problem.hidden_s.shape[-1])
    for start in range(0, SAMPLES, case.micro):
        chunks, sides = piece_of(problem, slice(start, start + case.micro))
        labels, hidden, starts = sides["student"]
        layout = layout_of(labels, starts, context)
        local = layout.take(hidden, float("nan")).requires_grad_()  # nothing may come from padding
        t_labels, t_hidden, t_starts = sides["teacher"]
        t_layout = layout_of(t_labels, t_starts, context)
        teachers = [
            TeacherSignal(
                ModelOutput(t_layout.take(t_hidden, float("nan")), head),
                t_labels,
                chunks,
                divergence,
                ChunkLossConfig(case.merge, 1.5),
            )
            for divergence, head in signals
        ]
        teachers = [
            teacher.selected(SELECTIONS[name](problem), labels) if name in SELECTIONS else teacher
            for name, teacher in zip(case.losses, teachers, strict=True)
        ]
        scored = [len(teacher.chunks) for teacher in teachers]
        student = Held(ModelOutput(local, OutputHead(weight, shard)), layout)
        mine, mine_labels, teachers = share(student, labels, teachers, [t_layout] * len(teachers))
        terms = cross_tokenizer_loss(mine, mine_labels, teachers, WEIGHTS[0], [1.3, -0.4][: len(teachers)], case.tile)
        terms.objective.backward()
        sums = [terms.ce, *terms.kd]
        totals = totals + np.array([float(s.total) for s in sums])
        counts = counts + np.array([s.count for s in sums])
        busy.append(mine_labels.numel() + sum(t.labels.numel() for t in teachers))
        whole = sum_over(context, sums)
        assert [s.count for s in whole] == [int((labels != -100).sum()), *scored]
        real = layout.local >= 0
        by_hidden[layout.local[real] + start * T_S] = local.grad[real]
        assert not local.grad[~real].any()
    return {
        "totals": totals,
        "counts": counts,
        "hidden": by_hidden.numpy(),
        "weight": weight.grad.numpy(),
        "busy": busy,
    }


def groups_of(tp, cp, made):
    """``(tensor-parallel, context-parallel)`` groups of this rank, the tensor-parallel ranks next to each other.

    Args:
        made: groups by their members, which layouts share.
    """
    mine = [None, None]
    for number, (size, stride) in enumerate(((tp, 1), (cp, tp))):
        for first in range(tp * cp):
            members = tuple(first + i * stride for i in range(size))
            if size > 1 and first // stride % size == 0:
                if members not in made:
                    made[members] = dist.new_group(members)
                mine[number] = made[members] if dist.get_rank() in members else mine[number]
    return mine


def on_rank():
    torch.set_num_threads(1)
    made = {}
    groups = {(tp, cp): groups_of(tp, cp, made) for tp in TENSOR for cp in CONTEXT}
    results = []
    for case in cases():
        here = dist.get_rank() < case.tp * case.cp
        results.append(compute(case, *groups[case.tp, case.cp]) if here else None)
    return results


def off(found, expected):
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


@pytest.fixture(scope="module")
def results():
    return run_ranks(RANKS, on_rank, timeout=500)


def differences(case, found, want):
    """What differs between the ranks of a case and one process, relative; fails where they have to be equal."""
    for name in ("totals", "counts", "hidden"):  # the same on all tensor-parallel ranks
        for rank, result in enumerate(found):
            np.testing.assert_array_equal(result[name], found[rank - rank % case.tp][name], err_msg=name)
    once = found[:: case.tp]
    np.testing.assert_array_equal(sum(r["counts"] for r in once), want["counts"], err_msg="counts")
    whole = [sum(r["weight"] for r in found[t :: case.tp]) for t in range(case.tp)]
    return {
        "totals": np.abs(sum(r["totals"] for r in once) / want["totals"] - 1).max(),
        "hidden": off(sum(r["hidden"] for r in once), want["hidden"]),
        "weight": off(np.concatenate(whole), want["weight"]),
    }


def test_the_matrix(results):
    assert {name for name, loss in LOSSES.items() if loss.context_parallel} | {"prefix_kl with boundaries"} == set(
        KINDS
    )
    expected, worst, failed = {}, 0.0, []
    for number, case in enumerate(cases()):
        if case.plain not in expected:
            expected[case.plain] = compute(case.plain)
        try:
            found = differences(case, [r[number] for r in results[: case.tp * case.cp]], expected[case.plain])
        except AssertionError as error:
            failed.append(f"{case}: {error}")
            continue
        worst = max(worst, *found.values())
        if not max(found.values()) < RELATIVE:
            failed.append(f"{case}: {found}")
    assert not failed, f"{len(failed)} of {len(cases())} cases differ:\n" + "\n".join(failed)
    assert worst > 0


def test_the_matrix_is_whole():
    """Layouts, losses and ways meet pair by pair; packed batches have chunks that borders would cut."""
    found = cases()
    layouts = set(itertools.product(TENSOR, CONTEXT))
    assert {(c.micro, c.packed) for c in found} == set(itertools.product(MICRO, (False, True)))
    assert {(c.micro, c.tile) for c in found} == set(itertools.product(MICRO, TILES))
    assert {(c.packed, c.tile) for c in found} == set(itertools.product((False, True), TILES))
    for tp, cp in layouts:
        assert {(c.micro, c.packed, c.tile) for c in found if (c.tp, c.cp) == (tp, cp)} == set(ways())
    for way in ways():
        assert {c.merge for c in found if (c.micro, c.packed, c.tile) == way} == set(MERGES)
    for name in KINDS:
        having = [c for c in found if name in c.losses]
        assert {(c.tp, c.cp) for c in having} == layouts
        assert {(c.micro, c.packed, c.tile) for c in having} == set(ways())
        assert {c.merge for c in having} == set(MERGES)
    for packed in (False, True):
        problem = problem_of(packed)
        chunks = problem.batch["chunks"]
        quarter = T_S // 4
        crossing = chunks[:, 1] // quarter != (chunks[:, 1] + chunks[:, 2] - 1) // quarter
        assert packed or crossing.sum() > 1
        assert len(chunks) > 10
        assert (chunks[:, 2] > 1).sum() > 2


def test_the_work_is_shared(results):
    """Of a whole batch each of two context-parallel ranks has about half of the rows."""
    for number, case in enumerate(cases()):
        if case.cp == 2 and case.micro == 4 and len(case.losses) == 1:
            for a, b in zip(results[0][number]["busy"], results[case.tp][number]["busy"], strict=True):
                assert abs(a - b) <= 8, (case, a, b)  # a chunk on both sides
