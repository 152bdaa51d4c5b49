"""Losses from outside of the package: a class of a few lines, against dense float64 autograd; by name, on ranks."""

import sys
import textwrap

import pytest
import torch
import torch.distributed as dist
from cases import Problem
from dense import dense_w
from harness import compare, compare_ranks, gradcheck, ours, reference
from ranks import run_ranks
from tokenizer_zoo import zoo

from nemo_xtoken.certify.variants import variants_for
from nemo_xtoken.errors import InputError
from nemo_xtoken.losses.choosing import check_loss
from nemo_xtoken.losses.elementwise import ElementwiseDivergence
from nemo_xtoken.losses.options import DivergenceOptions
from nemo_xtoken.losses.registry import LOSSES, loss_named, register_loss
from nemo_xtoken.objective import CrossTokenizerLoss, TextBatch
from nemo_xtoken.parallel.exchange import VocabularyExchange


class Hellinger(ElementwiseDivergence):
    def terms(self, p_student, p_teacher):
        return (p_student.sqrt() - p_teacher.sqrt()).square() / 2


class Skewed(ElementwiseDivergence):
    """``KL(p || (p + q) / 2)``."""

    def terms(self, p_student, p_teacher):
        return p_teacher * (2 * p_teacher / (p_student + p_teacher)).log()


DENSE = {
    Hellinger: lambda p, q: ((q.sqrt() - p.sqrt()) ** 2).sum() / 2,
    Skewed: lambda p, q: (p * (2 * p / (p + q)).log()).sum(),
}
EVERY = pytest.mark.parametrize("loss", DENSE)
#: rows empty and tokens unreached; all rows full; W reaches everything
PROBLEMS = {
    "open": {"reach": 0.6},
    "no empty row": {"empty": 0.0, "reach": 0.6},
    "all reached": {"v_s": 60, "pad_s": 64},
}


def make_of(problem, loss):
    return lambda shard: loss(VocabularyExchange.co_sharded(problem.matrix, shard))


def dense_of(problem, loss):
    w = dense_w(problem.matrix, problem.v_s, problem.v_t)
    reached = w[:, :-1].sum(0) > 0

    def divergence(p_s, p_t):
        q = p_s @ w
        p = torch.cat([p_t[reached], p_t[~reached].sum().view(1)])
        q = torch.cat([q[:-1][reached], q[-1:]])
        least = torch.finfo(torch.float64).tiny * 2.0**24  # what counts as 0
        return DENSE[loss](p.clamp_min(least), q.clamp_min(least))

    return divergence


@EVERY
@pytest.mark.parametrize("case", PROBLEMS)
def test_value_and_gradient_equal_the_dense_reference(loss, case):
    problem = Problem(seed=3, **PROBLEMS[case])
    for merge, tau in (("chain_rule", 1.0), ("mean", 2.5), ("first", 1.0)):
        want = reference(problem, dense_of(problem, loss), merge, tau)
        compare(ours(problem, make_of(problem, loss), merge, tau), want, 1e-6)  # W is stored in float32


@EVERY
def test_gradcheck(loss):
    problem = Problem(seed=10, b=1, t_s=7, t_t=8, v_s=9, v_t=11, pad_s=10, pad_t=12, h=3, reach=0.7)
    assert gradcheck(problem, make_of(problem, loss), "chain_rule")


def on_rank(problem):
    return [ours(problem, make_of(problem, loss), "chain_rule", group=dist.group.WORLD) for loss in DENSE]


def test_tensor_parallel_ranks_equal_one_process():
    problem = Problem(seed=7, pad_s=24, pad_t=40, reach=0.7)
    results = run_ranks(2, on_rank, problem)
    for i, loss in enumerate(DENSE):
        compare_ranks([result[i] for result in results], ours(problem, make_of(problem, loss), "chain_rule"), 1e-9)


@EVERY
def test_extreme_logits_stay_finite(loss):
    problem = Problem(seed=4, dtype=torch.float32, reach=0.7)
    problem.weight_s, problem.weight_t = problem.weight_s * 200, problem.weight_t * 200
    for value in ours(problem, make_of(problem, loss), "chain_rule")[:4]:
        assert torch.isfinite(torch.as_tensor(value)).all()


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A file of the user's with a loss, and things that are none."""
    (tmp_path / "my_losses.py").write_text(
        textwrap.dedent(
            """
            from nemo_xtoken.losses.elementwise import ElementwiseDivergence

            class TotalVariation(ElementwiseDivergence):
                options = {"top_k": 3}

                def terms(self, p_student, p_teacher):
                    return (p_student - p_teacher).abs() / 2

            number = 3
            """
        )
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield "my_losses"
    sys.modules.pop("my_losses", None)


def losses_of(name):
    """The loss on some text, between two random models."""
    student, teacher = zoo()["llama"], zoo()["qwen"]
    batch = TextBatch.of(["In 201 BC 37 elephants crossed the Alps."], student, teacher)
    random = torch.Generator().manual_seed(0)
    normal = lambda *shape: torch.randn(*shape, generator=random)  # noqa: E731
    hidden = normal(*batch.student_tokens.shape, 5).requires_grad_()
    weights = normal(student.size, 5), normal(teacher.size, 4)
    loss = CrossTokenizerLoss(student, teacher, name)
    loss(batch, hidden, normal(*batch.teacher_tokens.shape, 4), *weights).backward()
    assert torch.isfinite(hidden.grad).all()
    return float(loss.terms.kd[0].total)


def test_a_class_that_python_can_import_is_a_loss(module):
    name = f"{module}:TotalVariation"
    loss = loss_named(name)
    assert issubclass(loss, ElementwiseDivergence)
    assert losses_of(name) > 0
    student, teacher = zoo()["llama"], zoo()["qwen"]
    assert check_loss(name, student, teacher, DivergenceOptions(top_k=4)) == name
    with pytest.raises(InputError, match=f"sorted_cap=4 with loss={name}"):
        check_loss(name, student, teacher, DivergenceOptions(sorted_cap=4))
    (variant,) = variants_for(name, student, teacher)
    assert (variant.loss, variant.rule) == (name, "paper")


def test_a_class_can_have_a_name(monkeypatch):
    monkeypatch.setattr("nemo_xtoken.losses.registry.LOSSES", dict(LOSSES))
    register_loss("hellinger", Hellinger)
    register_loss("hellinger", Hellinger)  # as where a module is read twice
    assert loss_named("hellinger") is Hellinger
    assert losses_of("hellinger") > 0
    for taken in ("p_kl", "auto", "a b"):
        with pytest.raises(InputError, match="a loss named"):
            register_loss(taken, Hellinger)
    with pytest.raises(InputError, match="a subclass of"):
        register_loss("number", 3)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("my_losses:Nothing", "cannot be imported .AttributeError"),
        ("nowhere_at_all:Loss", "cannot be imported .ModuleNotFoundError"),
        ("my_losses:number", "a subclass of"),
        (":Loss", "cannot be imported"),
        ("my_losses", "loss='my_losses'"),
    ],
)
def test_what_is_no_loss_is_refused(module, name, message):
    with pytest.raises(InputError, match=message) as error:
        loss_named(name)
    assert error.value.fix
