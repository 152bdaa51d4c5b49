"""Losses by name: what comes out, what is refused, and what auto chooses."""

import ast
import logging
import re
from pathlib import Path

import pytest
import torch
from harness import compared
from tokenizer_zoo import zoo

import nemo_xtoken
from nemo_xtoken.errors import InputError
from nemo_xtoken.losses.alm import ChunkLikelihood
from nemo_xtoken.losses.bpm import BytePrefixKL
from nemo_xtoken.losses.choosing import check_loss, resolve_loss
from nemo_xtoken.losses.csd import CommonSupport, Completions
from nemo_xtoken.losses.directions import DIRECTIONS
from nemo_xtoken.losses.gold import Gold
from nemo_xtoken.losses.h_kl import HybridKL
from nemo_xtoken.losses.nrl import NrlGold, NrlHybridKL, NrlProjectedKL, nrl_exact_pairs, nrl_relaxed_pairs
from nemo_xtoken.losses.options import DEFAULT_LOSS, DIRECTION_CHOICES, PARTIAL_KL_CHOICES, RECOMMENDED, recommend
from nemo_xtoken.losses.p_kl import ProjectedKL
from nemo_xtoken.losses.pair import VocabularyPair
from nemo_xtoken.losses.partial_kl import PARTIAL_KLS
from nemo_xtoken.losses.prefix_kl import PrefixKL
from nemo_xtoken.losses.registry import LOSSES, DivergenceOptions, make_divergence
from nemo_xtoken.losses.same_tokenizer import SameTokenizerKL
from nemo_xtoken.losses.sorted_l1 import UniversalLogitDistance
from nemo_xtoken.losses.strict_1to1 import StrictOneToOne
from nemo_xtoken.losses.text_coverage import least_scored_sample
from nemo_xtoken.parallel.common_set import CommonSet
from nemo_xtoken.parallel.exchange import VocabularyExchange
from nemo_xtoken.parallel.vocabulary_shard import VocabularyShard
from nemo_xtoken.projection.audit import FINDINGS, audit_coverage
from nemo_xtoken.projection.build import build_projection
from nemo_xtoken.projection.byte_prefixes import BytePrefixes
from nemo_xtoken.projection.prefixes import PrefixClasses


def made(name, student="llama", teacher="qwen", options=None, matrix="build", **sizes):
    s, t = zoo()[student], zoo()[teacher]
    shard = VocabularyShard(sizes.get("v_s", s.size), sizes.get("v_s", s.size) + 7)
    matrix = build_projection(s, t) if matrix == "build" else matrix
    return make_divergence(name, VocabularyPair(s, t, matrix), shard, options), (shard, t.size)


def probabilities(sizes):
    shard, teacher_size = sizes
    random = torch.Generator().manual_seed(0)
    z = 3 * torch.randn(4, shard.padded, generator=random, dtype=torch.float64)
    z[:, shard.size :] = -torch.inf
    return torch.softmax(z, 1), torch.softmax(3 * torch.randn(4, teacher_size, generator=random, dtype=z.dtype), 1)


@pytest.mark.parametrize("name", LOSSES)
def test_every_name_gives_its_loss(name):
    teacher = "llama" if name == "same_tokenizer" else "qwen"
    loss, sizes = made(name, teacher=teacher)
    shard, teacher_size = sizes
    student_vocabulary, teacher_vocabulary = zoo()["llama"], zoo()[teacher]
    matrix = build_projection(student_vocabulary, teacher_vocabulary)
    strict = CommonSet.strict(student_vocabulary, teacher_vocabulary)
    classes = PrefixClasses.of(student_vocabulary, teacher_vocabulary)
    completions = Completions(classes, (student_vocabulary.byte_length, teacher_vocabulary.byte_length))
    want = {
        "p_kl": lambda: ProjectedKL(VocabularyExchange.co_sharded(matrix, shard)),
        "prefix_kl": lambda: PrefixKL(classes, shard),
        "h_kl": lambda: HybridKL(strict, matrix, shard, partial_kl="rest"),
        "gold": lambda: Gold(strict, shard, partial_kl="paper"),
        "uld": lambda: UniversalLogitDistance(shard, teacher_size),
        "strict_1to1": lambda: StrictOneToOne(strict, shard, 16),
        "csd": lambda: CommonSupport(strict, completions, shard),
        "bpm": lambda: BytePrefixKL(BytePrefixes(student_vocabulary, teacher_vocabulary), shard),
        "alm": lambda: ChunkLikelihood(shard, teacher_vocabulary.size, 100.0),
        "same_tokenizer": lambda: SameTokenizerKL(shard, teacher_size),
        "nrl_p_kl": lambda: NrlProjectedKL(VocabularyExchange.co_sharded(matrix, shard)),
        "nrl_gold": lambda: NrlGold(nrl_exact_pairs(matrix), shard),
        "nrl_h_kl": lambda: NrlHybridKL(nrl_relaxed_pairs(matrix), shard),
    }[name]()
    assert type(loss) is type(want)
    assert not list(loss.parameters())
    assert not loss.state_dict()  # nothing of it goes into a checkpoint
    if name == "nrl_p_kl":  # compares nothing before it has seen the micro-batch
        assert loss.top_k == want.top_k
        return
    p = probabilities(sizes)
    if name in ("csd", "bpm", "alm"):  # all is in the rows and their labels
        assert not compared(loss, *p)[0].any()
        return
    value, gradient = compared(loss, *p)
    want_value, want_gradient = compared(want, *p)
    along = name == "prefix_kl"  # has a metric of what the pieces add
    assert value.shape == (1 + len(loss.metric_names) - along, 4)
    assert torch.equal(value, want_value)
    assert torch.equal(gradient, want_gradient)
    assert (value[0] > 0).all()


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("p_kl", {"direction": "reverse"}),
        ("p_kl", {"direction": "js"}),
        ("h_kl", {"partial_kl": "paper"}),
        ("gold", {"partial_kl": "rest"}),
        ("h_kl", {"sorted_cap": 5}),
        ("gold", {"sorted_cap": 5}),
        ("uld", {"sorted_cap": 5}),
        ("same_tokenizer", {"direction": "reverse"}),
        ("p_kl", {"top_k": 5}),
        ("p_kl", {"top_k": 5, "direction": "reverse"}),
        ("h_kl", {"top_k": 5}),
        ("gold", {"top_k": 5, "partial_kl": "rest"}),
        ("strict_1to1", {"top_k": 5}),
        ("same_tokenizer", {"top_k": 5}),
    ],
)
def test_options_reach_their_loss(name, options):
    pair = ("llama", "llama") if name == "same_tokenizer" else ("llama", "sp_bpe")
    plain, sizes = made(name, *pair)
    changed, _ = made(name, *pair, options=DivergenceOptions(**options))
    p = probabilities(sizes)
    assert not torch.allclose(compared(plain, *p)[0], compared(changed, *p)[0], rtol=1e-6)


@pytest.mark.parametrize("name", ["nrl_p_kl", "nrl_h_kl", "nrl_gold"])
def test_the_public_losses_have_their_own_merge_and_sizes(name):
    compat, (_, teacher_size) = made(name)
    assert made(name.removeprefix("nrl_"))[0].merges is None
    assert compat.merges == ("mean" if name == "nrl_p_kl" else "geometric_mean", "geometric_mean")
    if name == "nrl_p_kl":
        smaller, _ = made(name, options=DivergenceOptions(top_k=5))
        assert isinstance(compat, NrlProjectedKL)
        assert (compat.top_k, smaller.top_k) == (min(8192, teacher_size), 5)
    else:
        smaller, _ = made(name, options=DivergenceOptions(sorted_cap=1))
        assert isinstance(compat, NrlGold)
        assert compat.remainder.student.cap > 1
        assert smaller.remainder.student.cap == 1


def test_settings_that_the_public_losses_do_not_have_are_refused():
    student, teacher = zoo()["llama"], zoo()["qwen"]
    plain = DivergenceOptions()
    check_loss("nrl_p_kl", student, teacher, plain, merge="chain_rule")
    for name in ("nrl_p_kl", "nrl_gold", "nrl_h_kl", "prefix_kl"):
        with pytest.raises(InputError, match=f"merge='mean' with loss={name}"):
            check_loss(name, student, teacher, plain, merge="mean")
    for name, option in (
        ("nrl_gold", {"top_k": 5}),
        ("nrl_h_kl", {"top_k": 5}),
        ("nrl_p_kl", {"partial_kl": "rest"}),
        ("nrl_gold", {"partial_kl": "rest"}),
    ):
        with pytest.raises(InputError, match=f"with loss={name}"):
            check_loss(name, student, teacher, DivergenceOptions(**option))


@pytest.mark.parametrize("name", ["p_kl", "gold", "h_kl", "uld"])
def test_the_option_of_the_first_version_is_answered_with_the_name(name):
    """A file of then that has it switched off still loads."""
    student, teacher = zoo()["llama"], zoo()["qwen"]
    assert check_loss(name, student, teacher, DivergenceOptions(nrl_compat=False)) == name
    with pytest.raises(InputError, match=f"nrl_compat=True with loss={name}") as error:
        check_loss(name, student, teacher, DivergenceOptions(nrl_compat=True))
    fix = "leave nrl_compat out" if name == "uld" else f"set loss=nrl_{name} and leave nrl_compat out"
    assert error.value.fix == fix


def test_choices_have_one_table_each():
    assert list(DIRECTIONS) == list(DIRECTION_CHOICES)
    assert list(PARTIAL_KLS) == list(PARTIAL_KL_CHOICES)


def test_w_is_needed_by_some_only():
    for name, kind in LOSSES.items():
        if name == "same_tokenizer":
            continue
        if kind.needs_matrix:
            with pytest.raises(InputError, match="no W between"):
                made(name, matrix=None)
        else:
            made(name, matrix=None)


@pytest.mark.parametrize("teacher", ["qwen", "sp_bpe", "llama"])
def test_the_default_takes_any_pair_and_needs_no_w(teacher):
    assert check_loss(DEFAULT_LOSS, zoo()["llama"], zoo()[teacher], DivergenceOptions()) == DEFAULT_LOSS
    loss, sizes = made(DEFAULT_LOSS, teacher=teacher, matrix=None)
    assert (compared(loss, *probabilities(sizes))[0][0] > 0).all()


@pytest.mark.parametrize("name", ["pkl", "", "P_KL", "kl"])
def test_an_unknown_name_is_answered_with_the_right_ones(name):
    with pytest.raises(
        InputError,
        match="auto, or one of p_kl, prefix_kl, h_kl, gold, uld, strict_1to1, csd, bpm, alm, same_tokenizer, nrl_p_kl",
    ):
        made(name)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("gold", {"direction": "reverse"}, "direction='reverse' with loss=gold"),
        ("p_kl", {"partial_kl": "rest"}, "partial_kl='rest' with loss=p_kl"),
        ("p_kl", {"sorted_cap": 7}, "sorted_cap=7 with loss=p_kl"),
        ("uld", {"top_k": 7}, "top_k=7 with loss=uld"),
        ("gold", {"top_k": 7}, "top_k=7 with partial_kl=paper"),
        ("h_kl", {"top_k": 7, "partial_kl": "paper"}, "top_k=7 with partial_kl=paper"),
    ],
)
def test_an_option_that_a_loss_does_not_have_is_refused(name, options, message):
    with pytest.raises(InputError, match=message):
        made(name, options=DivergenceOptions(**options))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"direction": "up"}, "direction='up'"),
        ({"partial_kl": "closed"}, "partial_kl='closed'"),
        ({"sorted_cap": 0}, "sorted_cap=0"),
        ({"top_k": 0}, "top_k=0"),
        ({"beta": -1.0}, "beta=-1"),
        ({"power": 0.5}, "power=0.5"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        DivergenceOptions(**options)


def test_vocabularies_of_other_models_are_refused():
    with pytest.raises(InputError, match="a student tokenizer of"):
        made("uld", v_s=100)
    with pytest.raises(InputError, match="whose tokens differ"):
        made("same_tokenizer")


@pytest.mark.parametrize(("student", "teacher"), [("llama", "qwen"), ("qwen", "llama"), ("llama", "llama")])
def test_auto_is_the_audits_choice_and_says_why(student, teacher, caplog):
    wanted, _, reason = recommend(audit_coverage(zoo()[student], zoo()[teacher]))
    with caplog.at_level(logging.INFO, logger="nemo_xtoken.losses.choosing"):
        assert resolve_loss("auto", zoo()[student], zoo()[teacher]) == wanted
    assert f"loss=auto is {wanted}" in caplog.text
    assert reason in caplog.text
    assert audit_coverage(zoo()[student], zoo()[teacher]).finding in LOSSES[wanted].suits
    with pytest.raises(InputError, match="loss='auto'"):  # is not a loss: it is resolved before
        made("auto", student, teacher)


def test_every_finding_of_the_audit_has_a_loss_that_suits_it():
    assert tuple(RECOMMENDED) == FINDINGS
    assert all(finding in LOSSES[found.loss].suits for finding, found in RECOMMENDED.items())
    assert all(loss.suits <= set(FINDINGS) for loss in LOSSES.values())


def test_auto_warns_where_it_compares_a_part_of_what_the_default_does(caplog):
    """By the samples: of llama's numerals qwen writes each digit, so that P-KL compares their first digits alone."""
    with caplog.at_level(logging.WARNING, logger="nemo_xtoken.losses.choosing"):
        resolve_loss("auto", zoo()["llama"], zoo()["qwen"])
    kind, scored = least_scored_sample(VocabularyPair(zoo()["llama"], zoo()["qwen"]), "p_kl")
    assert f"{scored.share('full'):.0%} of the student's tokens of sample {kind}" in caplog.text
    assert f"loss={DEFAULT_LOSS} does so at all" in caplog.text
    caplog.clear()
    resolve_loss("auto", zoo()["llama"], zoo()["llama"])
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_auto_chooses_every_kind_somewhere():
    pairs = [("llama", "qwen"), ("qwen", "llama"), ("llama", "llama")]
    assert [resolve_loss("auto", zoo()[a], zoo()[b]) for a, b in pairs] == ["p_kl", "h_kl", "same_tokenizer"]


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_is_in_the_documents_and_in_the_help(name):
    """Which name no loss in code: readers have to find all of them."""
    root = Path(nemo_xtoken.__file__).parents[1]
    assert f"`{name}`" in (root / "docs" / "method.md").read_text("utf-8")
    assert re.search(rf"\b{name}\b", (root / "README.md").read_text("utf-8"))
    source = (root / "nemo_xtoken" / "training" / "teacher_settings.py").read_text("utf-8")
    settings = next(node for node in ast.parse(source).body if getattr(node, "name", "") == "TeacherSettings")
    assert f"``{name}``" in ast.get_docstring(settings)
