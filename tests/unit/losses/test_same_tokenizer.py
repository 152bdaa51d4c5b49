"""The plain KL per position: against torch's own, and with output layers of different padding over ranks."""

import math

import numpy as np
import pytest
import torch
import torch.distributed as dist
from cases import Problem
from dense import DIRECTIONS
from harness import compare, compare_ranks, compared, gradcheck, logit_gradient, ours, reference
from hypothesis import given, settings
from hypothesis import strategies as st
from ranks import run_ranks
from tokenizer_zoo import zoo

from nemo_xtoken.errors import InputError
from nemo_xtoken.losses.choosing import resolve_loss
from nemo_xtoken.losses.chunks import MERGES
from nemo_xtoken.losses.pair import VocabularyPair
from nemo_xtoken.losses.same_tokenizer import SameTokenizerKL
from nemo_xtoken.objective import CrossTokenizerLoss, TextBatch
from nemo_xtoken.parallel.vocabulary_shard import VocabularyShard
from nemo_xtoken.vocab import Vocabulary

PADS = [(32, 32), (32, 48), (48, 32)]  # the student's and the teacher's


def make_of(direction="forward", size=29):
    return lambda shard: SameTokenizerKL(shard, size, direction)


def same_problem(pads, **kind):
    return Problem(seed=3, v_s=29, v_t=29, pad_s=pads[0], pad_t=pads[1], **kind)


@pytest.mark.parametrize("merge", MERGES)
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("pads", PADS)
def test_value_and_gradient_equal_the_dense_reference(merge, direction, pads):
    problem = same_problem(pads)
    dense = lambda p_s, p_t: DIRECTIONS[direction](p_t, p_s)  # noqa: E731
    for tau in (1.0, 2.5):
        got = ours(problem, make_of(direction), merge, tau)
        compare(got, reference(problem, dense, merge, tau), 1e-9)


def every_kind(group=None):
    return [
        ours(same_problem(pads), make_of(direction), merge, group=group)
        for pads in PADS
        for direction in ("forward", "js")
        for merge in ("mean", "chain_rule")
    ]


def on_rank():
    return every_kind(dist.group.WORLD)


@pytest.mark.parametrize("ranks", [2, 4])
def test_tensor_parallel_ranks_equal_one_process(ranks):
    results = run_ranks(ranks, on_rank)
    for i, want in enumerate(every_kind()):
        compare_ranks([result[i] for result in results], want, 1e-9)


def test_per_position_it_is_the_usual_kl_divergence():
    """Chunks of one token each: torch's kl_div of the two log-softmaxes, whatever the merge."""
    problem = same_problem((32, 48), b=2, t_s=9, t_t=9)
    problem.batch["teacher_labels"] = problem.batch["student_labels"].clone()
    problem.batch["chunks"] = torch.tensor([[i, t, 1, t, 1] for i in range(2) for t in range(8)])
    z_s = (problem.hidden_s @ problem.weight_s.T)[:, :8, :29]
    z_t = (problem.hidden_t @ problem.weight_t.T)[:, :8, :29]
    want = torch.nn.functional.kl_div(z_s.log_softmax(-1), z_t.log_softmax(-1), log_target=True, reduction="sum")
    for merge in MERGES:
        assert ours(problem, make_of(), merge)[1] == pytest.approx(float(want), rel=1e-10)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_gradcheck_of_the_hand_written_backward(direction):
    problem = Problem(seed=11, b=1, t_s=6, t_t=7, v_s=9, v_t=9, pad_s=10, pad_t=12, h=3)
    assert gradcheck(problem, make_of(direction, 9), "mean")


@given(seed=st.integers(0, 10_000), scale=st.floats(0.01, 30))
@settings(deadline=None, max_examples=60)
def test_never_negative_and_zero_at_agreement(seed, scale):
    random = torch.Generator().manual_seed(seed)
    z, other = scale * torch.randn(2, 3, 17, generator=random, dtype=torch.float64)
    shard = VocabularyShard(17, 17)
    for direction in DIRECTIONS:
        loss = SameTokenizerKL(shard, 17, direction)
        assert float(compared(loss, torch.softmax(z, 1), torch.softmax(other, 1))[0].min()) > -1e-12
        value, gradient = logit_gradient(loss, z, torch.softmax(z, 1), shard)
        assert float(value.abs().max()) < 1e-12
        assert float(gradient.abs().max()) < 1e-12


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_extreme_logits_stay_finite(direction):
    problem = same_problem((32, 48), dtype=torch.float32)
    problem.weight_s, problem.weight_t = problem.weight_s * 200, problem.weight_t * 200
    for merge in MERGES:
        for value in ours(problem, make_of(direction), merge)[:4]:
            assert np.isfinite(value).all()


MORE = [(29, 30), (29, 32), (29, 37), (30, 29), (32, 29)]  # tokens of the student and of the teacher


def other_sizes(sizes, direction="forward", group=None):
    """Labels and chunks are of the tokens that both have."""
    problem = same_problem((32, 48))
    problem.v_s, problem.v_t = sizes
    return problem, lambda merge, tau=1.0: ours(problem, make_of(direction, sizes[1]), merge, tau, group=group)


def dense_of(direction, sizes):
    """The teacher's tokens that the student lacks are out of its softmax; those that it lacks have probability 0."""

    def divergence(p_s, p_t):
        own, alone = p_s[: min(sizes)], p_s[min(sizes) :].sum()
        if direction != "js":
            return DIRECTIONS[direction](p_t, own)
        return DIRECTIONS["js"](p_t, own) + alone * math.log(2) / 2

    return divergence


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("sizes", MORE)
def test_one_side_may_have_more_tokens_behind_the_others(sizes, direction):
    if direction == "reverse" and sizes[0] > sizes[1]:
        with pytest.raises(InputError, match="infinite"):
            SameTokenizerKL(VocabularyShard(sizes[0], 32), sizes[1], direction)
        return
    _, got = other_sizes(sizes, direction)
    dense, _ = other_sizes((sizes[0], min(sizes)), direction)
    for merge in MERGES:
        compare(got(merge, 1.7), reference(dense, dense_of(direction, sizes), merge, 1.7), 1e-9)


def more_on_rank():
    return [other_sizes(sizes, group=dist.group.WORLD)[1]("chain_rule") for sizes in MORE]


def test_more_tokens_over_ranks():
    results = run_ranks(2, more_on_rank)
    for i, sizes in enumerate(MORE):
        compare_ranks([result[i] for result in results], other_sizes(sizes)[1]("chain_rule"), 1e-9)


def with_more(side, texts, roles, **ids):
    """A vocabulary with more tokens behind the others; texts None: no text."""
    return Vocabulary(
        name="more",
        behaviour="more",
        token_bytes=[*side.token_bytes, *texts],
        roles=side.roles | {side.size + i: role for i, role in enumerate(roles) if role},
        encoder=side.__dict__["_encoder"],
        adds_bos=side.adds_bos,
        **({"bos_id": side.bos_id, "eos_id": side.eos_id, "pad_id": side.pad_id} | ids),
    )


@pytest.mark.parametrize(
    ("texts", "roles", "ids", "one"),
    [
        ([None], ["pad"], lambda n: {"pad_id": n}, True),
        ([None] * 3, ["special:<|a|>", None, "special:<|b|>"], lambda n: {}, True),  # with a gap between
        ([None] * 2, ["pad", "special:<|tool|>"], lambda n: {"pad_id": n}, True),
        ([None], ["eos"], lambda n: {"eos_id": n}, False),  # ends what it says by another token
        ([None], ["eot"], lambda n: {}, False),  # which the other has under another id
        ([b"<think>"], [None], lambda n: {}, False),  # a text that the other cuts
    ],
)
def test_what_may_be_more(texts, roles, ids, one):
    side = zoo()["llama"]
    more = with_more(side, texts, roles, **ids(side.size))
    for student, teacher in ((side, more), (more, side)):
        pair = VocabularyPair(student, teacher)
        if one:
            SameTokenizerKL.check(pair, {})
        else:
            with pytest.raises(InputError, match="tokens differ"):
                SameTokenizerKL.check(pair, {})
        assert (resolve_loss("auto", student, teacher) == "same_tokenizer") is one
    changed = with_more(side, [None], ["pad"])
    changed.token_bytes[300] = b"another"
    with pytest.raises(InputError, match="tokens differ"):
        SameTokenizerKL.check(VocabularyPair(side, changed), {})


@pytest.mark.parametrize("larger", ["student", "teacher"])
def test_a_text_of_two_models_of_which_one_has_a_padding_token_more(larger):
    side = zoo()["llama"]
    more = with_more(side, [None], ["pad"], pad_id=side.size)
    student, teacher = (more, side) if larger == "student" else (side, more)
    batch = TextBatch.of(["In 201 BC 37 elephants crossed the Alps."], student, teacher)
    random = torch.Generator().manual_seed(0)
    weight = torch.randn(more.size, 5, generator=random)
    hidden = torch.randn(*batch.student_tokens.shape, 5, generator=random).requires_grad_()
    weights = weight[: student.size], weight[: teacher.size]
    loss = CrossTokenizerLoss(student, teacher, "same_tokenizer")
    objective = loss(batch, hidden, hidden.detach(), *weights)
    (kd,) = loss.terms.kd
    assert kd.count == len(batch.chunks) > 20
    objective.backward()
    if larger == "teacher":  # the models are one, without that token
        assert float(kd.total.detach()) == pytest.approx(0, abs=1e-4)
    else:
        assert float(kd.total.detach()) > 0
    assert torch.isfinite(hidden.grad).all()
