"""CSD and BPM against references written from their definitions: strings, loops, float64 autograd."""

import math

import numpy as np
import pytest
import torch
import torch.distributed as dist
from harness import WEIGHTS, compare, compare_ranks, gradcheck, ours
from hypothesis import given, settings
from hypothesis import strategies as st
from random_texts import IGNORED, Greedy, Texts
from ranks import run_ranks

from nemo_xtoken.losses.bpm import BytePrefixKL
from nemo_xtoken.losses.chunks import to_device
from nemo_xtoken.losses.csd import CommonSupport, Completions
from nemo_xtoken.losses.pair import VocabularyPair
from nemo_xtoken.projection.prefixes import MAX_PIECES

BETA = 0.7
#: Special tokens of the student and of the teacher: with one of its own a side has a class REST.
ROLES = {"both": (("one",), ("two",)), "student": (("one",), ()), "equal": (("one",), ("one",))}


def make(problem, name):
    pair = VocabularyPair(problem.student, problem.teacher, classes=problem.classes)
    if name == "bpm":
        return lambda shard: BytePrefixKL(pair.byte_prefixes, shard)
    completions = Completions(pair.classes, (pair.student.byte_length, pair.teacher.byte_length))
    return lambda shard: CommonSupport(pair.strict, completions, shard, BETA)


def kl(p, q):
    return sum((a * (a / b).log() if float(a) > 0 else 0 * b) for a, b in zip(p, q, strict=True))


def csd(problem, p_s, p_t, xs, ys):
    sides = problem.student, problem.teacher
    pairs = []
    if len(xs) == len(ys) == 1:
        for s, data in enumerate(sides[0].token_bytes):
            for t, other in enumerate(sides[1].token_bytes):
                same_role = data is None and other is None and sides[0].roles[s] == sides[1].roles[t]
                if same_role or (data is not None and data == other):
                    pairs.append((p_s[0][s], p_t[0][t]))
    elif min(len(xs), len(ys)) > 1:
        pairs.append((said(p_s, xs), said(p_t, ys)))
    else:
        one = int(len(ys) == 1)
        (single, several), path = ((p_s, p_t), ys) if one == 0 else ((p_t, p_s), xs)
        for token, data in enumerate(sides[one].token_bytes):
            pieces = Greedy(sides[1 - one].token_bytes).ids_of(data or b"")
            observed = token == (xs, ys)[one][0]
            if pieces[:-1] == path[:-1] and (observed or len(pieces) <= MAX_PIECES):
                both = single[0][token], said(several, pieces)
                pairs.append(both if one == 0 else both[::-1])
    q, p = ([*x, 1 - sum(x)] for x in zip(*pairs, strict=True))
    if len(xs) == len(ys) == 1 and len(pairs) == len(sides[0].token_bytes):  # the student cannot say anything else
        whole = sum(p[:-1])
        return whole * kl([x / whole for x in p[:-1]], q[:-1])
    return kl(p, q) * (1 if len(xs) == len(ys) == 1 else BETA)


def said(p, path):
    return torch.stack([row[token] for row, token in zip(p, path, strict=True)]).prod()


def bpm(problem, p_s, p_t, xs, ys):
    student, teacher = (
        [data if data is not None else v.roles[i] for i, data in enumerate(v.token_bytes)]
        for v in (problem.student, problem.teacher)
    )

    def longest(data):
        found = [s for s, x in enumerate(student) if x == data or (bytes in map(type, (x, data)) and begins(data, x))]
        return max(found, key=lambda s: len(student[s]), default=None)

    total, at = 0.0, 0
    for i, x in enumerate(xs):
        end = at + len(student[x])
        starts = np.cumsum([0, *(len(teacher[y]) for y in ys)]).tolist()
        j = max(k for k in range(len(ys)) if starts[k] <= at)
        prefix = teacher[ys[j]][: at - starts[j]]
        pool = [t for t, y in enumerate(teacher) if not prefix or (begins(y, prefix) and len(y) > len(prefix))]
        norm = sum(p_t[j][t] for t in pool)
        put = {t: longest(teacher[t][len(prefix) :]) for t in pool}
        target = {}
        for t, s in put.items():
            target[s] = target.get(s, 0) + p_t[j][t] / norm
        last = max(k for k in range(len(ys)) if starts[k] < end)
        if last > j:
            rest = b"".join(teacher[y] for y in ys)[starts[last] : end]
            value = torch.stack([p_t[k][ys[k]] for k in range(j, last)]).prod() / norm
            value = value * sum(p_t[last][t] for t, y in enumerate(teacher) if begins(y, rest))
            target[put[ys[j]]] = target[put[ys[j]]] - value
            target[x] = target.get(x, 0) + value
        residual = target.pop(None, torch.zeros((), dtype=torch.float64))
        p, q = list(target.values()), [p_s[i][s] for s in target]
        if prefix or len(target) < len(student):
            p, q = [*p, residual], [*q, 1 - sum(q)]
        else:
            p = [y / (1 - residual) for y in p]
        total = total + kl(p, q) * (1 if len(p) > len(target) else 1 - residual)
        at = end
    return total


def begins(data, prefix):
    return isinstance(data, bytes) and isinstance(prefix, bytes) and data[: len(prefix)] == prefix


DENSE = {"csd": csd, "bpm": bpm}
EVERY = pytest.mark.parametrize("name", DENSE)


def dense(problem, name, tau=1.0):
    hidden = problem.hidden_s.double().flatten(0, 1).clone().requires_grad_()
    weight = problem.weight_s.double().clone().requires_grad_()
    z_s = (hidden @ weight.T)[:, : problem.v_s].reshape(*problem.hidden_s.shape[:2], -1)
    z_t = (problem.hidden_t.double() @ problem.weight_t.double().T)[..., : problem.v_t]
    labels = problem.batch["student_labels"], problem.batch["teacher_labels"]
    ce = torch.nn.functional.cross_entropy(
        z_s.flatten(0, 1), labels[0].flatten(), ignore_index=IGNORED, reduction="sum"
    )
    kd = 0.0
    for i, a, n, c, m in problem.batch["chunks"].tolist():
        rows = torch.softmax(z_s[i, a : a + n] / tau, 1), torch.softmax(z_t[i, c : c + m] / tau, 1)
        paths = labels[0][i, a : a + n].tolist(), labels[1][i, c : c + m].tolist()
        kd = kd + tau**2 * DENSE[name](problem, *rows, *paths)
    (WEIGHTS[0] * ce + WEIGHTS[1] * kd).backward()
    return ce.item(), kd.item(), hidden.grad.numpy(), weight.grad.numpy()


@EVERY
@pytest.mark.parametrize("roles", ROLES)
@pytest.mark.parametrize("seed", range(3))
def test_equals_the_dense_reference(name, seed, roles):
    problem = Texts(seed, ROLES[roles])
    for tau in (1.0, 2.5):
        compare(ours(problem, make(problem, name), "first", tau), dense(problem, name, tau), 1e-9)


def test_every_kind_of_chunk_is_among_them():
    shapes, crossing = set(), 0
    for seed in range(3):
        problem = Texts(seed, ROLES["both"])
        for i, a, n, c, m in problem.batch["chunks"].tolist():
            shapes.add((min(n, 2), min(m, 2)))
            first = problem.batch["student_labels"][i, a], problem.batch["teacher_labels"][i, c]
            lengths = [v.byte_length[x] for v, x in zip((problem.student, problem.teacher), first, strict=True)]
            crossing += lengths[0] > lengths[1]
    assert len(shapes) == 4
    assert crossing > 2


def every(problems, group=None):
    return [ours(p, make(p, name), "first", 1.3, group=group) for p in problems for name in DENSE]


def on_rank(problems):
    return every(problems, dist.group.WORLD)


@pytest.mark.parametrize("ranks", [2, 4])
def test_tensor_parallel_ranks_equal_one_process(ranks):
    problems = [Texts(seed, roles) for seed, roles in enumerate(ROLES.values())]
    results = run_ranks(ranks, on_rank, problems)
    for i, want in enumerate(every(problems)):
        compare_ranks([result[i] for result in results], want, 1e-9)


@EVERY
@pytest.mark.parametrize("roles", ["both", "student"])
def test_gradcheck_of_the_hand_written_backward(name, roles):
    problem = Texts(5, ROLES[roles], length=12, h=3, words=(8, 9))
    assert gradcheck(problem, make(problem, name), "first")


@EVERY
@given(seed=st.integers(0, 10_000), scale=st.floats(0.01, 40), roles=st.sampled_from(sorted(ROLES)))
@settings(deadline=None, max_examples=15)
def test_never_negative_and_finite(name, seed, scale, roles):
    for dtype, least in ((torch.float64, -1e-12), (torch.float32, -1e-5)):
        problem = Texts(seed, ROLES[roles], dtype=dtype)
        problem.weight_s, problem.weight_t = problem.weight_s * scale, problem.weight_t * scale
        chunks = problem.batch["chunks"]
        problem.batch["chunks"] = chunks[seed % len(chunks)][None]  # the loss of each chunk, not of their sum
        got = ours(problem, make(problem, name), "first")
        assert got[1] > least
        assert all(np.isfinite(x).all() for x in got[1:4])
        assert math.isfinite(got[0])


@EVERY
@pytest.mark.parametrize("tile_rows", [1, 3, 1000])
def test_tiles_change_nothing(name, tile_rows):
    problem = Texts(1, ROLES["both"])
    want = ours(problem, make(problem, name), "first")
    compare(ours(problem, make(problem, name), "first", tile_rows=tile_rows), want, 1e-9)


def test_arrays_of_a_plan_come_in_one_copy_as_they_were():
    """Each begins where kernels that are compiled for aligned pointers take it."""
    made = [{"a": np.arange(3), "b": {"c": np.zeros(0, int), "d": np.arange(5) > 2}, "n": 7}, None, {"a": np.ones(2)}]
    first, none, second = to_device(made, torch.device("cpu"))
    assert none is None
    assert first["n"] == 7
    for found, wanted in ((first["a"], [0, 1, 2]), (first["b"]["c"], []), (first["b"]["d"], [0, 0, 0, 1, 1])):
        assert found.tolist() == wanted
    assert second["a"].tolist() == [1, 1]
    places = [x.data_ptr() - first["a"].data_ptr() for x in (first["b"]["d"], second["a"])]
    assert [place % 16 for place in places] == [0, 0]
    assert to_device([None], torch.device("cpu")) == [None]
