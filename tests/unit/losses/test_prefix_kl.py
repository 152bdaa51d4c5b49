"""Prefix-exact P-KL against a reference written from its definition: strings, loops, float64 autograd."""

import itertools
import math

import numpy as np
import pytest
import torch
import torch.distributed as dist
from harness import WEIGHTS, close, compare, compare_ranks, gradcheck, ours
from hypothesis import given, settings
from hypothesis import strategies as st
from random_texts import IGNORED, Greedy, vocabulary
from random_texts import Texts as RandomTexts
from ranks import run_ranks

from nemo_xtoken.certify.agreement import Agreement, Continuation
from nemo_xtoken.errors import InputError
from nemo_xtoken.losses.base import ChunkLossConfig, ModelOutput, TeacherSignal
from nemo_xtoken.losses.pair import VocabularyPair
from nemo_xtoken.losses.prefix_kl import PrefixKL
from nemo_xtoken.losses.registry import chunk_selection, make_divergence
from nemo_xtoken.objective.terms import cross_tokenizer_loss
from nemo_xtoken.parallel.head import FreeLogits
from nemo_xtoken.parallel.vocabulary_shard import VocabularyShard
from nemo_xtoken.projection.prefixes import MAX_PIECES, PrefixClasses


class RandomFollowing:
    """Most tokens can follow, others by chance; those that do in the texts always can."""

    def __init__(self, size, rng, labels):
        self.allowed = rng.random((size, size)) < 0.95
        before, after = labels[:, :-1].flatten(), labels[:, 1:].flatten()
        self.allowed[before[after >= 0], after[after >= 0]] = True

    def key(self, before, last):
        return before is not None and before % 2 == 0

    def possible(self, before, last):
        return self.allowed[last] | self.key(before, last)


class Texts(RandomTexts):
    def __init__(self, seed=0, *args, boundary=False, **settings):
        super().__init__(seed, *args, **settings)
        rng = np.random.default_rng(seed)
        self.following = None
        if boundary:
            self.following = tuple(
                RandomFollowing(size, rng, self.batch[f"{side}_labels"].numpy())
                for size, side in ((self.v_s, "student"), (self.v_t, "teacher"))
            )

    def make(self, shard):
        return PrefixKL(self.classes, shard, following=self.following)


def spellings(own, other):
    """Each token's spellings by the other side: alone, or as it is followed by something where it ends in a blank."""
    greedy = Greedy(own.token_bytes), Greedy(other.token_bytes)
    found = {}
    for i, data in enumerate(own.token_bytes):
        if not data:
            continue
        for follower in (b" a", b"a") if data.endswith(b" ") else ():
            theirs, covered = [], 0
            for piece in greedy[1].ids_of(data + follower):
                if covered < len(data):
                    theirs.append(piece)
                covered += len(other.token_bytes[piece])
            if greedy[0].ids_of(data + follower)[0] == i and (data.strip() or i not in found):
                found.setdefault(i, []).append(theirs)
        if i not in found:
            found[i] = [greedy[1].ids_of(data)]
    return found


def connected(edges):
    """The sets of nodes that edges join, by walking from node to node."""
    joined = {}
    for a, b in edges:
        joined.setdefault(a, set()).add(b)
        joined.setdefault(b, set()).add(a)
    found, left = [], dict.fromkeys(joined)
    while left:
        component, waiting = set(), [next(iter(left))]
        while waiting:
            node = waiting.pop()
            if node in left:
                del left[node]
                component.add(node)
                waiting += joined[node]
        found.append(component)
    return found


def components(student, teacher):
    """The classes as sets: everything that first pieces join; and the tokens of no class."""
    edges = []
    for here, there, own, other in (("s", "t", student, teacher), ("t", "s", teacher, student)):
        edges += [((here, i), (there, w[0])) for i, ways in spellings(own, other).items() for w in ways]
    found = connected(edges)
    rest = {("s", i) for i in range(student.size)} | {("t", i) for i in range(teacher.size)}
    return found, rest.difference(*found)


def kl(p, q):
    return (torch.xlogy(p, p) - torch.xlogy(p, q)).sum()


def mass(p, component, side):
    ids = [i for where, i in component if where == side]
    return p[ids].sum() if ids else p.new_zeros(())


def closed_before(problem, labels, i, rows, found):
    """The components of which a token cannot come after the tokens before these rows."""
    dead = set()
    for side, following, label, row, size in zip(
        "st", problem.following, labels, rows, (problem.v_s, problem.v_t), strict=True
    ):
        last, earlier = (label[i, row - back].item() if row >= back else -1 for back in (1, 2))
        if last >= 0:
            possible = following.possible(earlier if earlier >= 0 else None, last)
            dead |= {(side, t) for t in range(size) if not possible[t]}
    return [c for c in found if c & dead]


def given_open(p_s, p_t, found, rest, closed):
    """The divergence of the two distributions over what is open, times the teacher's mass of it."""
    kept = [c for c in found if c not in closed] + ([rest] if any(side == "s" for side, _ in rest) else [])
    p, q = (torch.stack([mass(x, c, side) for c in kept]) for x, side in ((p_t, "t"), (p_s, "s")))
    return p.sum() * kl(p / p.sum(), q / q.sum())


def at_first(p_s, p_t, found, rest):
    p = torch.stack([mass(p_t, c, "t") for c in found])
    q = torch.stack([mass(p_s, c, "s") for c in found])
    if any(side == "s" for side, _ in rest):
        p, q = torch.cat([p, mass(p_t, rest, "t").view(1)]), torch.cat([q, mass(p_s, rest, "s").view(1)])
        return kl(p, q)
    return p.sum() * kl(p / p.sum(), q)


def walk(ways, path):
    """(depth, token) where a spelling leaves the path, "rest" for all that goes on there; the path's end if never."""
    ways = ways[:MAX_PIECES]
    for depth, token in enumerate(path):
        if depth == len(ways):
            return depth, "rest"
        if ways[depth] != token:
            return depth, ways[depth]
    return len(path) - 1, path[-1]


def after_blanks(student, teacher, xs, ys):
    """Edges between the last tokens, where what is before them ends some blanks apart."""
    before = [b"".join(v.token_bytes[i] for i in ids[:-1]) for v, ids in ((student, xs), (teacher, ys))]
    sides = [("s", student, len(xs) - 1), ("t", teacher, len(ys) - 1)]
    if len(before[0]) > len(before[1]):
        sides, before = sides[::-1], before[::-1]
    (b_name, behind, b_depth), (a_name, ahead, a_depth) = sides
    between = before[1][len(before[0]) :]
    if not between or between.strip():
        return
    mates = {}
    for i, data in enumerate(behind.token_bytes):
        if data and data.startswith(between) and data != between:
            rest = data[len(between) :]
            mates[i] = ahead.token_bytes.index(rest) if rest in ahead.token_bytes else None
            if mates[i] is None:
                mates[i] = Greedy(ahead.token_bytes).ids_of(rest)[0]
    taken = {
        ahead.token_bytes.index(behind.token_bytes[i][len(between) :])
        for i in mates
        if behind.token_bytes[i][len(between) :] in ahead.token_bytes
    }
    pairs = list(mates.items())
    for t, data in enumerate(ahead.token_bytes):
        if data and t not in taken:
            first = Greedy(behind.token_bytes).ids_of(between + data)[0]
            if len(behind.token_bytes[first]) > len(between):
                pairs.append((first, t))
    for i, t in pairs:
        yield (b_name, b_depth, i), (a_name, a_depth, t)


def gone_on(sides, paths, merged, ways, edges):
    """Edges for texts in which a token's spelling ends on the other side's path, by what the tokenizer then writes."""
    listed = {node for edge in edges for node in edge}
    data = {side: v.token_bytes for side, v in zip("st", sides, strict=True)}
    for here, there in (("s", "t"), ("t", "s")):
        path = paths[there]
        for i in sorted(i for side, i in merged if side == here):
            leaves = i == paths[here][0] and len(paths[here]) > 1
            node = (here, 1, "rest") if leaves else (here, 0, i)
            for way in (way[:MAX_PIECES] for way in ways[here][i]):
                begin = len(way)
                shared = min(begin, len(path))
                if leaves and way[:shared] != path[:shared]:
                    ids = Greedy(data[here]).ids_of(b"".join(data[there][t] for t in way))
                    if ids[0] == i:
                        yield (here, *walk(ids, paths[here])), (there, *walk(way, path))
                if begin >= len(path) or way != path[:begin]:
                    continue
                for depth in range(begin, len(path)):
                    yield node, (there, depth, "rest")
                    before = data[here][i] + b"".join(data[there][t] for t in path[begin:depth])
                    for side, d, t in listed:
                        if (side, d) == (there, depth) and t not in ("rest", path[depth]):
                            ids = Greedy(data[here]).ids_of(before + data[there][t])
                            if ids[0] == i:
                                yield (here, *walk(ids, paths[here])) if leaves else node, (side, d, t)
                    if Greedy(data[here]).ids_of(before + data[there][path[depth]])[0] != i:
                        break


def of_leaves(p_s, p_t, xs, ys, found, sides, ways):
    """What a chunk adds to the divergence of its first tokens' classes, by its definition: all leaves of both sides."""
    own = next(c for c in found if ("s", xs[0]) in c)
    theirs = next(c for c in found if ("t", ys[0]) in c)
    merged = own | theirs
    paths, p = {"s": xs, "t": ys}, {"s": p_s, "t": p_t}
    edges = [(("s", len(xs) - 1, xs[-1]), ("t", len(ys) - 1, ys[-1]))]
    for here, there in (("s", "t"), ("t", "s")):
        for side, i in merged:
            if side == here and (len(paths[here]) == 1 or i != paths[here][0]):
                edges += [((here, 0, i), (there, *walk(w, paths[there]))) for w in ways[here][i]]
    edges += list(gone_on(sides, paths, merged, ways, edges))
    deep = [(side, depth, "rest") for side in "st" for depth in range(1, len(paths[side]))]
    if len(xs) > 1 and len(ys) > 1:
        edges += list(itertools.pairwise(deep))
        edges += list(after_blanks(*sides, xs, ys))
    edges = [e for e in edges if all(t != "rest" or d < len(paths[side]) for side, d, t in e)]
    groups = [g for g in connected(edges) if {side for side, _, _ in g} == {"s", "t"}]
    listed = {
        (side, d): {t for g in connected(edges) for s, e, t in g if (s, e) == (side, d)}
        for side in "st"
        for d in range(12)
    }
    level = [max(d for _, d, _ in g) for g in groups]
    masses = []
    for g in groups:
        mass = {"s": 0.0, "t": 0.0}
        for side, d, token in g:
            rows, path = p[side], paths[side]
            here = (
                1 - rows[d][sorted((listed[side, d] | {path[d]}) - {"rest"})].sum()
                if token == "rest"
                else rows[d][token]
            )
            mass[side] = mass[side] + math.prod(rows[e][path[e]] for e in range(d)) * here
        masses.append(mass)
    value = 0.0
    for depth in sorted(set(level)):
        ends = [m for m, x in zip(masses, level, strict=True) if x == depth]
        deeper = [m for m, x in zip(masses, level, strict=True) if x > depth]
        ends += [{side: sum(m[side] for m in deeper) for side in "st"}] if deeper else []
        t, s = (torch.stack([torch.as_tensor(m[side]) for m in ends]) for side in "ts")
        value = value + kl(t / t.sum(), s / s.sum())
    if own != theirs:
        parts = [[mass(p[side][0], c, side) for c in (own, theirs)] for side in "ts"]
        t, s = (torch.stack(x) for x in parts)
        value = value + kl(t.sum(), s.sum()) - kl(t, s)
    return value


def dense(problem, tau=1.0):
    """(ce, kd, gradients of hidden states and of the weight), and how many chunks had leaves that were compared."""
    hidden = problem.hidden_s.double().flatten(0, 1).clone().requires_grad_()
    weight = problem.weight_s.double().clone().requires_grad_()
    shape = problem.hidden_s.shape
    z_s = (hidden @ weight.T)[:, : problem.v_s].reshape(shape[0], -1, problem.v_s)
    z_t = (problem.hidden_t.double() @ problem.weight_t.double().T)[..., : problem.v_t]
    labels = problem.batch["student_labels"], problem.batch["teacher_labels"]
    ce = torch.nn.functional.cross_entropy(
        z_s.flatten(0, 1), labels[0].flatten(), ignore_index=IGNORED, reduction="sum"
    )
    sides = problem.student, problem.teacher
    found, rest = components(*sides)
    ways = {"s": spellings(*sides), "t": spellings(*sides[::-1])}
    kd, count, put_aside = z_s.new_zeros(()), 0, []
    for i, a, n, c, m in problem.batch["chunks"].tolist():
        p_s, p_t = torch.softmax(z_s[i, a : a + n] / tau, 1), torch.softmax(z_t[i, c : c + m] / tau, 1)
        xs, ys = labels[0][i, a : a + n].tolist(), labels[1][i, c : c + m].tolist()
        own = [c for c in found if ("s", xs[0]) in c or ("t", ys[0]) in c]
        closed = closed_before(problem, labels, i, (a, c), found) if problem.following else []
        aside = any(x in closed for x in own)
        if problem.following:
            closed += own if aside else []
            kd = kd + tau**2 * given_open(p_s[0], p_t[0], found, rest, closed)
        else:
            kd = kd + tau**2 * at_first(p_s[0], p_t[0], found, rest)
        if aside:
            put_aside.append(n * m)
        elif n > 1 or m > 1 or not any({("s", xs[0]), ("t", ys[0])} <= g for g in found):
            kd = kd + tau**2 * of_leaves(p_s, p_t, xs, ys, found, sides, ways)
            count += 1
    (WEIGHTS[0] * ce + WEIGHTS[1] * kd).backward()
    return ce.item(), kd.item(), hidden.grad.numpy(), weight.grad.numpy(), count, put_aside


ROLES = {"both": (("one",), ("two",)), "teacher": ((), ("two",)), "student": (("one",), ()), "none": ((), ())}


@pytest.mark.parametrize(
    ("letters", "boundary"), [("abc", False), ("ab ", False), ("abc", True)], ids=["abc", "blanks", "boundary"]
)
@pytest.mark.parametrize("roles", ROLES)
@pytest.mark.parametrize("seed", range(4))
def test_equals_the_dense_reference(seed, roles, letters, boundary):
    problem = Texts(seed, ROLES[roles], letters=letters, boundary=boundary)
    for tau in (1.0, 2.5):
        want = dense(problem, tau)
        got = ours(problem, problem.make, "first", tau, tile_rows=5)
        compare(got, want, 1e-9)
        assert got[4]["by_leaves"] == want[4]
    assert want[4] > (0 if boundary else 2)


def test_every_kind_of_chunk_is_among_them():
    blanks = [Texts(seed, letters="ab ") for seed in range(4)]
    tables = [
        list(after_blanks(p.student, p.teacher, xs, ys))
        for p in blanks
        for i, a, n, c, m in p.batch["chunks"].tolist()
        if n > 1 and m > 1
        for xs in [p.batch["student_labels"][i, a : a + n].tolist()]
        for ys in [p.batch["teacher_labels"][i, c : c + m].tolist()]
    ]
    assert sum(map(bool, tables)) > 2
    kinds = {(min(n, 2), min(m, 2)) for seed in range(4) for _, _, n, _, m in Texts(seed).batch["chunks"].tolist()}
    assert kinds == {(1, 1), (1, 2), (2, 1), (2, 2)}
    assert any(
        m > MAX_PIECES or n > MAX_PIECES for s in range(4) for _, _, n, _, m in Texts(s).batch["chunks"].tolist()
    )


def test_classes_of_the_text_are_open_and_closed_at_boundaries():
    aside = [product for seed in range(3) for product in dense(Texts(seed, boundary=True))[5]]
    assert 1 < len(aside) < 9
    assert max(aside) > 1


def test_classes_are_what_equality_and_first_pieces_join():
    for seed in range(6):
        problem = Texts(seed)
        found, rest = components(problem.student, problem.teacher)
        for component in found:
            numbers = {
                int(getattr(problem.classes, {"s": "student", "t": "teacher"}[w]).classes[i]) for w, i in component
            }
            assert len(numbers) == 1
            assert numbers != {-1}
            pairs = [(i, j) for (a, i), (b, j) in itertools.product(component, component) if (a, b) == ("s", "t")]
            equal = [p for p in pairs if problem.student.token_bytes[p[0]] == problem.teacher.token_bytes[p[1]]]
            assert numbers.pop() in [t for _, t in equal or pairs]  # it has the name of a pair of equal tokens
        assert all(getattr(problem.classes, {"s": "student", "t": "teacher"}[w]).classes[i] == -1 for w, i in rest)


def every_problem(problems, group=None):
    return [ours(problem, problem.make, "first", tau, group=group) for problem in problems for tau in (1.0, 2.0)]


def on_rank(problems):
    return every_problem(problems, dist.group.WORLD)


@pytest.mark.parametrize("ranks", [2, 4])
def test_tensor_parallel_ranks_equal_one_process(ranks):
    problems = [Texts(0), Texts(1, ROLES["teacher"]), Texts(2, ROLES["none"]), Texts(3, boundary=True)]
    results = run_ranks(ranks, on_rank, problems)
    for i, want in enumerate(every_problem(problems)):
        compare_ranks([result[i] for result in results], want, 1e-9)


@pytest.mark.parametrize("tile_rows", [1, 3, 1000])
@pytest.mark.parametrize("boundary", [False, True])
def test_tiles_change_nothing(tile_rows, boundary):
    problem = Texts(1, boundary=boundary)
    want = ours(problem, problem.make, "first")
    for a, b in zip(ours(problem, problem.make, "first", tile_rows=tile_rows)[:4], want[:4], strict=True):
        close(a, b, 1e-12)


@pytest.mark.parametrize("boundary", [False, True])
@pytest.mark.parametrize("roles", ["both", "teacher"])
def test_gradcheck_of_the_hand_written_backward(roles, boundary):
    problem = Texts(5, ROLES[roles], length=12, h=3, boundary=boundary)
    assert gradcheck(problem, problem.make, "first")


def values_and_gradients(problem, z_s, z_t):
    """The value of each chunk and the gradient with respect to the student's logits, of free logits."""
    divergence = problem.make(VocabularyShard(problem.v_s, problem.v_s))
    order = divergence.ownership
    logits = torch.full((z_t.shape[0], order.shard.padded), -torch.inf, dtype=z_t.dtype)
    logits[:, : problem.v_t] = z_t[:, torch.from_numpy(order.order)]
    output = ModelOutput(logits, FreeLogits(order.shard, torch.from_numpy(order.owned)))
    z = z_s.clone().requires_grad_()
    student = ModelOutput(z, FreeLogits(VocabularyShard(problem.v_s, problem.v_s)))
    config = ChunkLossConfig("first")
    chunks = problem.batch["chunks"]
    signals = [
        TeacherSignal(output, problem.batch["teacher_labels"], part, divergence, config)
        for part in (chunks, *chunks.split(1))
    ]
    labels = problem.batch["student_labels"]
    terms = cross_tokenizer_loss(student, labels, signals[:1], ce_weight=0.0)
    (gradient,) = torch.autograd.grad(terms.objective, z)
    each = cross_tokenizer_loss(student, labels, signals[1:], ce_weight=0.0).kd
    return torch.stack([kd.total for kd in each]), gradient


@given(
    seed=st.integers(0, 10_000), scale=st.floats(0.01, 40), roles=st.sampled_from(sorted(ROLES)), boundary=st.booleans()
)
@settings(deadline=None, max_examples=60)
def test_never_negative(seed, scale, roles, boundary):
    problem = Texts(seed % 7, ROLES[roles], boundary=boundary)
    random = torch.Generator().manual_seed(seed)
    rows = [problem.batch[f"{side}_labels"].numel() for side in ("student", "teacher")]
    z = [
        scale * torch.randn(n, v, generator=random, dtype=torch.float64)
        for n, v in zip(rows, (problem.v_s, problem.v_t), strict=True)
    ]
    values, gradient = values_and_gradients(problem, *z)
    assert (values > -1e-9).all()
    assert torch.isfinite(values).all()
    assert torch.isfinite(gradient).all()


def test_extreme_logits_stay_finite():
    for seed, roles in enumerate(ROLES.values()):
        problem = Texts(seed, roles, dtype=torch.float32)
        problem.weight_s, problem.weight_t = problem.weight_s * 200, problem.weight_t * 200
        for value in ours(problem, problem.make, "first")[:4]:
            assert torch.isfinite(torch.as_tensor(value)).all()


class Numerals:
    """One side writes numerals of up to three digits in a token, the other digit by digit; ``packs`` says which."""

    def __init__(self, packs):
        digits = [str(d) for d in range(10)]
        packed = [*digits, *(f"{n:02}" for n in range(100)), *(f"{n:03}" for n in range(1000)), " "]
        sides = [vocabulary("packs", packed, ["end"]), vocabulary("splits", [*digits, " "], ["end"])]
        self.student, self.teacher = sides if packs == "student" else sides[::-1]
        self.v_s, self.v_t = self.student.size, self.teacher.size
        self.classes = PrefixClasses.of(self.student, self.teacher)
        words = ["201", "207", "210", "331", "20", "2", "3", " "]
        weights = np.array([0.6, 0.1, 0.05, 0.05, 0.1, 0.04, 0.02, 0.04])
        spell = [Greedy(v.token_bytes).ids_of for v in (self.student, self.teacher)]
        continuations = [Continuation(*(tuple(s(w.encode())) for s in spell)) for w in words]
        agreement = Agreement(continuations[0], dict(zip(continuations, weights, strict=True)), self.ends)
        self.z = [self._logits(agreement.at_right(side), v) for side, v in enumerate((self.v_s, self.v_t))]
        right = continuations[0]
        self.batch = {
            "student_labels": torch.tensor([right.student]),
            "teacher_labels": torch.tensor([right.teacher]),
            "chunks": torch.tensor([[0, 0, len(right.student), 0, len(right.teacher)]]),
        }

    @property
    def ends(self):
        return self.student.id_of_role["special:end"], self.teacher.id_of_role["special:end"]

    @staticmethod
    def _logits(rows, size):
        p = torch.zeros(len(rows), size, dtype=torch.float64)
        for row, said in zip(p, rows, strict=True):
            for token, x in said.items():
                row[token] = x
        return p.log().clamp_min(-200)

    following, make = None, Texts.make


@pytest.mark.parametrize("packs", ["student", "teacher"])
def test_zero_and_still_where_both_say_the_same(packs):
    problem = Numerals(packs)
    values, gradient = values_and_gradients(problem, *problem.z)
    assert values.abs().max() < 1e-12
    assert gradient.abs().max() < 1e-12


@pytest.mark.parametrize("packs", ["student", "teacher"])
def test_every_digit_is_taught(packs):
    """A student that has not made its mind up learns 201 from the whole of what the teacher says."""
    problem = Numerals(packs)
    z = torch.zeros_like(problem.z[0], requires_grad=True)
    optimizer = torch.optim.Adam([z], lr=0.2)
    for _ in range(150):
        values, z.grad = values_and_gradients(problem, z.detach(), problem.z[1])
        optimizer.step()
    assert values.item() < 1e-2
    log_p = torch.log_softmax(z, 1).gather(1, problem.batch["student_labels"].T).sum()
    assert log_p.exp().item() == pytest.approx(0.6, abs=0.02)


def test_by_name_and_the_chunks_it_takes():
    problem = Texts(0)
    shard = VocabularyShard(problem.v_s, problem.v_s + 2)
    pair = VocabularyPair(problem.student, problem.teacher)
    divergence = make_divergence("prefix_kl", pair, shard)
    assert isinstance(divergence, PrefixKL)
    labels, chunks = problem.batch["student_labels"].clone(), problem.batch["chunks"]
    labels[tuple(chunks[0, :2])] = int(np.flatnonzero(problem.classes.student.classes < 0)[0])
    mask = chunk_selection("prefix_kl", pair)(labels, problem.batch["teacher_labels"], chunks)
    assert mask.tolist() == [False, *(True,) * (len(chunks) - 1)]


def test_classes_of_other_vocabularies_are_refused():
    problem = Texts(0)
    with pytest.raises(InputError, match="prefix classes of"):
        PrefixKL(problem.classes, VocabularyShard(problem.v_s + 1, problem.v_s + 1))
    with pytest.raises(InputError, match="no token that"):
        PrefixClasses.of(vocabulary("x", ["a"]), vocabulary("y", ["b"]))
