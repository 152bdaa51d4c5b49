"""What is measured, against W^T p in numpy, and what the losses are known to do."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tokenizer_zoo import TEXT, zoo

from nemo_xtoken.certify import measure as measure_module
from nemo_xtoken.certify.cases import build_cases
from nemo_xtoken.certify.certificate import ZERO, Finding
from nemo_xtoken.certify.certify_config import CertifyConfig
from nemo_xtoken.certify.measure import Descent, descend, measure
from nemo_xtoken.certify.problem import Problem
from nemo_xtoken.certify.reduced import Pair
from nemo_xtoken.certify.spellings import Spellings
from nemo_xtoken.certify.variants import EVERY, Variant, variants_for
from nemo_xtoken.errors import InputError
from nemo_xtoken.losses.base import ChunkLossConfig
from nemo_xtoken.losses.options import DivergenceOptions
from nemo_xtoken.losses.prefix_kl import PrefixKL
from nemo_xtoken.losses.registry import LOSSES
from nemo_xtoken.projection.build import RULES, ProjectionRule, build_projection

CONFIG = CertifyConfig(chunks=2, near=4, floor=30, steps=60)


@pytest.fixture(scope="module")
def problem(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NEMO_XTOKEN_CACHE", str(tmp_path_factory.mktemp("cache")))
        student, teacher = zoo()["llama"], zoo()["qwen"]
        matrices = {name: build_projection(student, teacher, ProjectionRule.named(name)) for name in RULES}
        cases = build_cases(Spellings(student, teacher), "201 elephants\n" + TEXT, CONFIG)
        return Problem.reduced(cases, Pair.whole(student, teacher, matrices))


def of_kind(problem, descent, kind):
    which = [i for i, case in enumerate(problem.cases) if case.kind == kind]
    assert which
    return Finding.of(descent, which)


def p_kl(rule, merge="first", **options):
    return Variant("p_kl", rule, ChunkLossConfig(merge), DivergenceOptions(**options))


def test_logits_are_what_is_said(problem):
    row = 0
    for case in problem.cases:
        for said in case.agreement.at_right(0):
            p = problem.student[row].exp()
            assert float(p.sum()) == pytest.approx(1, rel=1e-12)
            at = np.searchsorted(problem.pair.ids[0], list(said))
            assert p[at].tolist() == pytest.approx(list(said.values()), rel=1e-8)
            row += 1
    assert row == len(problem.student)
    right = [case.agreement.weights[case.agreement.right] for case in problem.cases]
    assert problem.probability(problem.student).tolist() == pytest.approx(right, rel=1e-8)


@pytest.mark.parametrize("rule", RULES)
def test_values_of_p_kl_are_those_of_its_formula(problem, rule):
    values, _ = measure(problem, p_kl(rule))
    matrix = problem.pair.matrices[rule]
    w = np.zeros((matrix.student_size, matrix.teacher_size + 1))
    rows, slots = np.nonzero(matrix.ids >= 0)
    w[rows, matrix.ids[rows, slots]] = matrix.weights[rows, slots]
    w[matrix.empty_rows, -1] = 1
    for value, (_, s, _, t, _) in zip(values.tolist(), problem.chunks.tolist(), strict=True):
        q = problem.student[s].exp().numpy() @ w
        p = problem.teacher[t].exp().numpy()
        p = np.append(np.where(matrix.reached, p, 0), p[~matrix.reached].sum())
        some = p > 0
        assert value == pytest.approx((p[some] * np.log(p[some] / q[some])).sum(), rel=1e-6, abs=1e-9)


def test_the_gradient_is_that_of_the_values(problem):
    variant = Variant("gold")
    values, gradient = measure(problem, variant)
    column = int(problem.student_labels[0, 0])
    for sign in (1, -1):
        moved = problem.student.clone()
        moved[0, column] += sign * 1e-6
        there = measure(replace(problem, student=moved), variant)[0]
        assert float((there - values)[0]) == pytest.approx(sign * 1e-6 * float(gradient[0, column]), rel=1e-3)
        assert there[1:].tolist() == values[1:].tolist()


def test_a_pass_that_was_run_before_finds_what_a_new_one_does(problem):
    z = torch.randn(problem.student.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for variant in variants_for(EVERY, problem.pair.student, problem.pair.teacher):
        used = measure_module._Loss(problem, variant)
        used.gradient(problem.student)
        new = measure_module._Loss(problem, variant)
        assert torch.equal(used.gradient(z), new.gradient(z))
        assert torch.equal(used.values(), new.values())


def test_each_case_is_measured_as_if_it_were_alone(problem):
    for variant in variants_for(EVERY, problem.pair.student, problem.pair.teacher):
        together, gradient = measure(problem, variant)
        rows = gradient.split(problem.chunks[:, 2].tolist())
        for case, value, its_rows in zip(problem.cases, together, rows, strict=True):
            [alone], its_gradient = measure(Problem.over([case], problem.pair), variant)
            torch.testing.assert_close(value, alone, rtol=1e-12, atol=1e-14)
            torch.testing.assert_close(its_rows, its_gradient, rtol=1e-9, atol=1e-12)


def test_a_descent_plans_its_chunks_once(problem, monkeypatch):
    """The plans depend on the chunks alone, and looking up spellings takes longer than a step."""
    planned = []
    plans = PrefixKL.plans
    monkeypatch.setattr(PrefixKL, "plans", lambda self, parts: planned.append(len(parts)) or plans(self, parts))
    descend(problem, Variant("prefix_kl"), CertifyConfig(steps=5))
    assert len(planned) == 1


@pytest.mark.parametrize("merge", ["first", "chain_rule"])
@pytest.mark.parametrize("direction", ["forward", "reverse", "js"])
def test_prefix_is_certified_where_the_teacher_spells_a_student_token(problem, merge, direction):
    descent = descend(problem, p_kl("prefix", merge, direction=direction), CONFIG)
    for kind in ("one_to_one", "one_to_several"):
        assert of_kind(problem, descent, kind).verdict == "certified"


def test_the_papers_weights_are_not(problem):
    found = of_kind(problem, descend(problem, p_kl("paper"), CONFIG), "one_to_several")
    # at least what the first piece lacks: log(1 / .9091)
    assert found.value > 0.09
    assert found.gradient > 1e-4
    assert not found.zero_there
    assert not found.still_there
    assert found.never_negative
    assert found.verdict == "kept"


def test_gold_loses_a_numeral_that_the_teacher_spells(problem):
    descent = descend(problem, Variant("gold"), CONFIG)
    (at,) = (i for i, case in enumerate(problem.cases) if case.text == "201")
    assert descent.probability[0, at] == pytest.approx(0.986)
    assert descent.probability[-1, at] < 0.05
    assert descent.instead[at][0] == "2"
    assert of_kind(problem, descent, "one_to_several").verdict == "lost"
    assert of_kind(problem, descent, "one_to_one").verdict == "certified"


def test_every_loss_is_certified_where_both_have_the_token(problem):
    student, teacher = problem.pair.student, problem.pair.teacher
    for variant in variants_for(EVERY, student, teacher):
        assert of_kind(problem, descend(problem, variant, CertifyConfig(steps=3)), "one_to_one").zero_there


def test_a_tokenizer_against_itself():
    llama = zoo()["llama"]
    matrices = {name: build_projection(llama, llama, ProjectionRule.named(name)) for name in RULES}
    cases = build_cases(Spellings(llama, llama), TEXT, CONFIG)
    assert {case.kind for case in cases} == {"one_to_one"}
    problem = Problem.reduced(cases, Pair.whole(llama, llama, matrices))
    (variant,) = variants_for("same_tokenizer", llama, llama)
    assert of_kind(problem, descend(problem, variant, CONFIG), "one_to_one").verdict == "certified"


def test_variants_cover_the_registry():
    llama, qwen = zoo()["llama"], zoo()["qwen"]
    assert {v.loss for v in variants_for(EVERY, llama, llama)} == set(LOSSES)
    assert {v.loss for v in variants_for(EVERY, llama, qwen)} == set(LOSSES) - {"same_tokenizer"}
    assert [v.loss for v in variants_for("gold, uld,gold", llama, qwen)] == ["gold", "gold", "uld"]
    assert {v.loss for v in variants_for("auto", llama, qwen)} == {"p_kl"}
    for variant in variants_for(EVERY, llama, qwen):
        assert (variant.rule is not None) == LOSSES[variant.loss].needs_matrix
    with pytest.raises(InputError, match="loss='p-kl'"):
        variants_for("p-kl", llama, qwen)
    with pytest.raises(InputError, match="same_tokenizer"):
        variants_for("same_tokenizer", llama, qwen)


def descent_of(values, probability, gradient, scored=True):
    one = np.array([[v] for v in values]), np.array([[p] for p in probability]), np.array([gradient])
    return Descent(Variant("gold"), np.arange(len(values)), *one, np.array([scored]), (("x", 0.5),))


@pytest.mark.parametrize(
    ("values", "probability", "gradient", "scored", "verdict"),
    [
        ([0, 0], [0.986, 0.986], 0, True, "certified"),
        ([ZERO / 2, 0], [0.986, 0.98], ZERO / 2, True, "certified"),
        ([0, 0], [0.986, 0.97], 0, True, "falling"),
        ([0, 0], [0.986, 0.4], 0, True, "lost"),
        ([0.1, 0], [0.986, 0.99], 0, True, "kept"),
        ([0, 0], [0.986, 0.986], 2 * ZERO, True, "kept"),
        ([0, -0.1], [0.986, 0.986], 0, True, "kept"),
        ([0, 0], [0.986, 0.986], 0, False, "not compared"),
    ],
)
def test_verdicts(values, probability, gradient, scored, verdict):
    assert Finding.of(descent_of(values, probability, gradient, scored), [0]).verdict == verdict
