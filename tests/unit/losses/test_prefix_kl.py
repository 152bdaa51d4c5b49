"""Prefix-exact P-KL against a reference written from its definition: strings, loops, float64 autograd."""

import itertools

import numpy as np
import pytest
import torch
import torch.distributed as dist
from harness import WEIGHTS, close, compare, compare_ranks, gradcheck, ours
from hypothesis import given, settings
from hypothesis import strategies as st
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
from nemo_xtoken.vocab.vocabulary import Vocabulary

IGNORED = -100


class Greedy:
    """Takes the longest token that the text goes on with."""

    def __init__(self, tokens):
        self.ids = {token: i for i, token in enumerate(tokens) if token is not None}

    def ids_of(self, data):
        found = []
        while data:
            end = max((n for n in range(1, len(data) + 1) if data[:n] in self.ids), default=0)
            if not end:
                return []
            found.append(self.ids[data[:end]])
            data = data[end:]
        return found

    def encode_batch(self, texts):
        return [np.array(self.ids_of(text.encode()), np.int32) for text in texts]


def vocabulary(name, words, roles=()):
    tokens = [w.encode() for w in words] + [None] * len(roles)
    named = {len(words) + i: f"special:{role}" for i, role in enumerate(roles)}
    return Vocabulary(name=name, behaviour=repr(tokens), token_bytes=tokens, roles=named, encoder=Greedy(tokens))


def random_words(rng, number, longest):
    words = {"a", "b", "c"}
    while len(words) < number:
        words.add("".join(rng.choice(list("abc"), size=int(rng.integers(2, longest + 1)))))
    return sorted(words, key=lambda w: (len(w), w))


class Texts:
    """Random models of two random vocabularies, and random texts as both write them, with the chunks of equal bytes."""

    def __init__(self, seed=0, roles=(("one",), ("two",)), dtype=torch.float64, length=24, h=6, words=(14, 17)):
        rng = np.random.default_rng(seed)
        self.student = vocabulary("s", random_words(rng, words[0], 4), roles[0])
        self.teacher = vocabulary("t", [*random_words(rng, words[1], 3), "cccccccccc"], roles[1])
        self.v_s, self.v_t = self.student.size, self.teacher.size
        samples = ["".join(rng.choice(list("abc"), size=length)), "ac" + "c" * 10 + "".join(rng.choice(list("abc"), 9))]
        sides = [[Greedy(v.token_bytes).ids_of(t.encode()) for t in samples] for v in (self.student, self.teacher)]
        chunks, lengths = [], [max(map(len, ids)) for ids in sides]
        for i, (s, t) in enumerate(zip(*sides, strict=True)):
            ends = [
                np.cumsum([len(v.token_bytes[x]) for x in ids]) for v, ids in ((self.student, s), (self.teacher, t))
            ]
            shared = [0, *np.intersect1d(*ends)]
            cuts = [[0, *(np.searchsorted(e, shared[1:]) + 1)] for e in ends]
            for (a, b), (c, d) in zip(itertools.pairwise(cuts[0]), itertools.pairwise(cuts[1]), strict=True):
                if a and c:  # the first token has no predictor
                    chunks.append((i, a - 1, b - a, c - 1, d - c))
        labels = [np.full((len(samples), n), IGNORED) for n in lengths]
        for table, ids in zip(labels, sides, strict=True):
            for row, x in zip(table, ids, strict=True):
                row[: len(x) - 1] = x[1:]
        self.batch = {
            "student_labels": torch.from_numpy(labels[0]),
            "teacher_labels": torch.from_numpy(labels[1]),
            "chunks": torch.tensor(chunks, dtype=torch.int64).reshape(-1, 5),
        }
        pad_s, pad_t = -(-self.v_s // 4) * 4 + 4, -(-self.v_t // 4) * 4 + 4
        normal = lambda *shape: torch.from_numpy(rng.normal(size=shape)).to(dtype)  # noqa: E731
        self.hidden_s, self.weight_s = normal(len(samples), lengths[0], h), normal(pad_s, h)
        self.hidden_t, self.weight_t = normal(len(samples), lengths[1], h + 2), normal(pad_t, h + 2)
        self.classes = PrefixClasses.of(self.student, self.teacher)

    def make(self, shard):
        return PrefixKL(self.classes, shard)


def components(student, teacher):
    """The classes as sets: everything that equality and first pieces join, by walking from token to token."""
    spell = Greedy(student.token_bytes), Greedy(teacher.token_bytes)
    joined = {("s", i): set() for i in range(student.size)} | {("t", i): set() for i in range(teacher.size)}
    for here, there, own, other in (("s", "t", student, spell[1]), ("t", "s", teacher, spell[0])):
        for i, data in enumerate(own.token_bytes):
            if data:
                first = (there, other.ids_of(data)[0])
                joined[here, i].add(first)
                joined[first].add((here, i))
    found, left = [], {node for node, others in joined.items() if others}
    while left:
        component, waiting = set(), [left.pop()]
        while waiting:
            node = waiting.pop()
            component.add(node)
            waiting += [n for n in joined[node] if n in left]
            left -= joined[node]
        found.append(component)
    rest = {node for node, others in joined.items() if not others}
    return found, rest


def kl(p, q):
    return (torch.xlogy(p, p) - torch.xlogy(p, q)).sum()


def mass(p, component, side):
    ids = [i for where, i in component if where == side]
    return p[ids].sum() if ids else p.new_zeros(())


def at_first(p_s, p_t, found, rest):
    p = torch.stack([mass(p_t, c, "t") for c in found])
    q = torch.stack([mass(p_s, c, "s") for c in found])
    if any(side == "s" for side, _ in rest):
        p, q = torch.cat([p, mass(p_t, rest, "t").view(1)]), torch.cat([q, mass(p_s, rest, "s").view(1)])
        return kl(p, q)
    return p.sum() * kl(p / p.sum(), q)


def of_pieces(whole, spelled, token, pieces, component, sides, spell, own):
    """Of depth 2 and on, (the whole side's, the spelling side's) distribution; ``whole [V]``, ``spelled [m, V']``."""
    here, there = sides
    members = {i: spell.ids_of(own.token_bytes[i]) for side, i in component if side == here}
    for depth in range(2, min(len(pieces), MAX_PIECES) + 1):
        before = list(pieces[: depth - 1])
        going = {}
        for i, spelling in members.items():
            if spelling[: depth - 1] == before and len(spelling) >= depth:
                going.setdefault(spelling[depth - 1], []).append(i)
        told = [i for ids in going.values() for i in ids]
        if depth == 2:
            others = [i for i in members if i not in told]
            beside = sum(
                (spelled[0][i] for side, i in component if side == there and i != pieces[0]), spelled.new_zeros(())
            )
            factor = spelled[0][pieces[0]]
        else:
            others = [i for i, spelling in members.items() if spelling == before]
            beside, factor = spelled.new_zeros(()), 1.0
        a = [whole[ids].sum() for ids in going.values()]
        b = [factor * spelled[depth - 1][t] for t in going]
        if others:
            a.append(whole[others].sum())
            b.append(beside + factor * (1 - sum(spelled[depth - 1][t] for t in going)))
        a, b = torch.stack(a), torch.stack(b)
        yield a / a.sum(), b / b.sum()


def dense(problem, tau=1.0):
    """(ce, kd, gradient by hidden, by weight), and how many chunks had pieces that were compared."""
    hidden = problem.hidden_s.double().flatten(0, 1).clone().requires_grad_()
    weight = problem.weight_s.double().clone().requires_grad_()
    shape = problem.hidden_s.shape
    z_s = (hidden @ weight.T)[:, : problem.v_s].reshape(shape[0], -1, problem.v_s)
    z_t = (problem.hidden_t.double() @ problem.weight_t.double().T)[..., : problem.v_t]
    labels = problem.batch["student_labels"], problem.batch["teacher_labels"]
    ce = torch.nn.functional.cross_entropy(
        z_s.flatten(0, 1), labels[0].flatten(), ignore_index=IGNORED, reduction="sum"
    )
    found, rest = components(problem.student, problem.teacher)
    spell = Greedy(problem.student.token_bytes), Greedy(problem.teacher.token_bytes)
    kd, count = z_s.new_zeros(()), 0
    for i, a, n, c, m in problem.batch["chunks"].tolist():
        p_s, p_t = torch.softmax(z_s[i, a : a + n] / tau, 1), torch.softmax(z_t[i, c : c + m] / tau, 1)
        xs, ys = labels[0][i, a : a + n].tolist(), labels[1][i, c : c + m].tolist()
        component = next(x for x in found if ("s", xs[0]) in x)
        if ("t", ys[0]) not in component:
            continue
        kd = kd + tau**2 * at_first(p_s[0], p_t[0], found, rest)
        if n == 1 and m > 1 and spell[1].ids_of(problem.student.token_bytes[xs[0]]) == ys:
            for s, t in of_pieces(p_s[0], p_t, xs[0], ys, component, "st", spell[1], problem.student):
                kd = kd + tau**2 * kl(t, s)
            count += 1
        if m == 1 and n > 1 and spell[0].ids_of(problem.teacher.token_bytes[ys[0]]) == xs:
            for t, s in of_pieces(p_t[0], p_s, ys[0], xs, component, "ts", spell[0], problem.teacher):
                kd = kd + tau**2 * kl(t, s)
            count += 1
    (WEIGHTS[0] * ce + WEIGHTS[1] * kd).backward()
    return ce.item(), kd.item(), hidden.grad.numpy(), weight.grad.numpy(), count


ROLES = {"both": (("one",), ("two",)), "teacher": ((), ("two",)), "student": (("one",), ()), "none": ((), ())}


@pytest.mark.parametrize("roles", ROLES)
@pytest.mark.parametrize("seed", range(4))
def test_equals_the_dense_reference(seed, roles):
    problem = Texts(seed, ROLES[roles])
    for tau in (1.0, 2.5):
        want = dense(problem, tau)
        got = ours(problem, problem.make, "first", tau, tile_rows=5)
        compare(got, want, 1e-9)
        assert got[4]["spelled"] == want[4]
    assert want[4] > 2


def test_every_kind_of_chunk_is_among_them():
    kinds = {(min(n, 2), min(m, 2)) for seed in range(4) for _, _, n, _, m in Texts(seed).batch["chunks"].tolist()}
    assert kinds == {(1, 1), (1, 2), (2, 1), (2, 2)}
    assert any(
        m > MAX_PIECES or n > MAX_PIECES for s in range(4) for _, _, n, _, m in Texts(s).batch["chunks"].tolist()
    )


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
            assert [numbers.pop()] == [t for _, t in equal]  # one pair of equal tokens, whose name it has
        assert all(getattr(problem.classes, {"s": "student", "t": "teacher"}[w]).classes[i] == -1 for w, i in rest)


def every_problem(problems, group=None):
    return [ours(problem, problem.make, "first", tau, group=group) for problem in problems for tau in (1.0, 2.0)]


def on_rank(problems):
    return every_problem(problems, dist.group.WORLD)


@pytest.mark.parametrize("ranks", [2, 4])
def test_tensor_parallel_ranks_equal_one_process(ranks):
    problems = [Texts(0), Texts(1, ROLES["teacher"]), Texts(2, ROLES["none"])]
    results = run_ranks(ranks, on_rank, problems)
    for i, want in enumerate(every_problem(problems)):
        compare_ranks([result[i] for result in results], want, 1e-9)


@pytest.mark.parametrize("tile_rows", [1, 3, 1000])
def test_tiles_change_nothing(tile_rows):
    problem = Texts(1)
    want = ours(problem, problem.make, "first")
    for a, b in zip(ours(problem, problem.make, "first", tile_rows=tile_rows)[:4], want[:4], strict=True):
        close(a, b, 1e-12)


@pytest.mark.parametrize("roles", ["both", "teacher"])
def test_gradcheck_of_the_hand_written_backward(roles):
    problem = Texts(5, ROLES[roles], length=12, h=3)
    assert gradcheck(problem, problem.make, "first")


def values_and_gradients(problem, z_s, z_t):
    """The value of each chunk and the gradient by the student's logits, of free logits."""
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


@given(seed=st.integers(0, 10_000), scale=st.floats(0.01, 40), roles=st.sampled_from(sorted(ROLES)))
@settings(deadline=None, max_examples=40)
def test_never_negative(seed, scale, roles):
    problem = Texts(seed % 7, ROLES[roles])
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

    make = Texts.make


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
    sample, row = chunks[0, :2]
    of_its_class = problem.classes.student.classes == problem.classes.student.classes[labels[sample, row]]
    labels[sample, row] = int(np.flatnonzero(~of_its_class)[0])  # as a word that is cut in two ways may have it
    arguments = labels, problem.batch["teacher_labels"], chunks
    mask = chunk_selection("prefix_kl", pair)(*arguments)
    assert mask.tolist() == [False, *(True,) * (len(chunks) - 1)]  # the longest token first: all others are alike


def test_classes_of_other_vocabularies_are_refused():
    problem = Texts(0)
    with pytest.raises(InputError, match="prefix classes of"):
        PrefixKL(problem.classes, VocabularyShard(problem.v_s + 1, problem.v_s + 1))
    with pytest.raises(InputError, match="no token that"):
        PrefixClasses.of(vocabulary("x", ["a"]), vocabulary("y", ["b"]))
