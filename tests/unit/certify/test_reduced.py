"""A pair cut down to some tokens: every relation and every loss as on the whole pair."""

import numpy as np
import pytest
import torch
from tokenizer_zoo import TEXT, zoo

from nemo_xtoken.certify.cases import build_cases
from nemo_xtoken.certify.certify_config import CertifyConfig
from nemo_xtoken.certify.measure import measure
from nemo_xtoken.certify.problem import Problem
from nemo_xtoken.certify.reduced import Pair, reduce_pair
from nemo_xtoken.certify.spellings import Spellings
from nemo_xtoken.certify.variants import variants_for
from nemo_xtoken.parallel.common_set import CommonSet
from nemo_xtoken.projection.build import RULES, ProjectionRule, build_projection

PAIRS = [("llama", "qwen"), ("sp_bpe", "llama"), ("sp_bpe", "sp_unigram")]


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("NEMO_XTOKEN_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


def whole(student, teacher):
    s, t = zoo()[student], zoo()[teacher]
    return Pair.whole(s, t, {name: build_projection(s, t, ProjectionRule.named(name)) for name in RULES})


def in_old_ids(common, ids):
    return set(zip(ids[0][common.student].tolist(), ids[1][common.teacher].tolist(), strict=True))


@pytest.mark.parametrize(("student", "teacher"), PAIRS)
def test_relations_are_those_of_the_whole_pair(student, teacher):
    rng = np.random.default_rng(0)
    pair = whole(student, teacher)
    cut = reduce_pair(pair, rng.integers(0, pair.student.size, 30), rng.integers(0, pair.teacher.size, 30))
    assert cut.student.size < 0.7 * pair.student.size  # most numerals stay: each is told from others by kept digits
    kept = [set(ids.tolist()) for ids in cut.ids]
    for vocabulary, old, ids in zip((cut.student, cut.teacher), (pair.student, pair.teacher), cut.ids, strict=True):
        assert vocabulary.token_bytes == [old.token_bytes[i] for i in ids]
        assert {ids[i] for i in vocabulary.id_of_bytes.values()} <= set(old.id_of_bytes.values())
        assert {role: ids[i] for role, i in vocabulary.id_of_role.items()}.items() <= old.id_of_role.items()
    strict, cut_strict = (CommonSet.strict(p.student, p.teacher) for p in (pair, cut))
    for name, matrix in pair.matrices.items():
        small = cut.matrices[name]
        for new, row in enumerate(cut.ids[0]):
            entries = {int(cut.ids[1][t]): w for t, w in zip(small.ids[new], small.weights[new], strict=True) if t >= 0}
            assert entries == {int(t): w for t, w in zip(matrix.ids[row], matrix.weights[row], strict=True) if t >= 0}
        assert (small.reached == matrix.reached[cut.ids[1]]).all()
        assert small.empty_rows.any() == matrix.empty_rows.any()
        assert small.reached.all() == matrix.reached.all()
        for common, cut_common in ((strict, cut_strict), (strict.widened(matrix), cut_strict.widened(small))):
            pairs = zip(common.student.tolist(), common.teacher.tolist(), strict=True)
            wanted = {(s, t) for s, t in pairs if s in kept[0] or t in kept[1]}
            assert in_old_ids(cut_common, cut.ids) == wanted


@pytest.mark.parametrize(("student", "teacher"), PAIRS[:2])
def test_losses_are_those_on_the_whole_pair(student, teacher):
    """Tokens that were cut off have no probability: with or without them, values and gradients are equal."""
    pair = whole(student, teacher)
    spellings = Spellings(pair.student, pair.teacher)
    cases = build_cases(spellings, TEXT, CertifyConfig(chunks=2, near=4, floor=20))
    small = Problem.reduced(cases, pair)
    large = Problem.over(cases, pair)
    for logits, part, ids in ((large.student, small.student, 0), (large.teacher, small.teacher, 1)):
        logits.fill_(-2000)
        logits[:, torch.from_numpy(small.pair.ids[ids])] = part
    for variant in variants_for("all", pair.student, pair.teacher):
        if variant.loss in ("nrl_gold", "nrl_h_kl"):
            continue  # what it compares depends on the number of tokens without a partner
        values, gradient = measure(small, variant)
        at_large, large_gradient = measure(large, variant)
        torch.testing.assert_close(at_large, values, rtol=1e-9, atol=1e-12)
        kept = large_gradient[:, torch.from_numpy(small.pair.ids[0])]
        assert large_gradient.abs().sum() == pytest.approx(kept.abs().sum())
        if variant.loss in ("p_kl", "strict_1to1"):  # in the others equal probabilities have the sign of their rounding
            torch.testing.assert_close(kept, gradient, rtol=1e-9, atol=1e-12)
