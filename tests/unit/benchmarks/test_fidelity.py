"""The angles of gradients where a tokenizer alone is swapped: how they are taken, and that the page has the file's."""

import copy
import json
import math

import fidelity
import fidelity_page
import pytest
import torch
from blocks import out_of_date
from tokenizer_zoo import TEXT, write_folder, zoo
from toy_models import write_model
from transformers import AutoModelForCausalLM

from nemo_xtoken.losses.pair import VocabularyPair
from nemo_xtoken.projection import build_projection
from nemo_xtoken.weights.transplant import transplant

RESULTS = json.loads(fidelity_page.RESULTS.read_text("utf-8"))
KINDS, LOSSES = fidelity_page.KINDS, fidelity_page.LOSSES


def test_the_page_has_the_table():
    stale = out_of_date(fidelity_page.DOCUMENTS, fidelity_page.WORD, fidelity_page.made(RESULTS))
    assert stale == [], "python benchmarks/fidelity.py --page"


def test_what_the_page_says_beside_the_table_is_so():
    found, page = RESULTS["angles"], " ".join(fidelity_page.DOCUMENTS[0].read_text("utf-8").split())
    order = sorted(LOSSES[1:], key=lambda loss: found[loss]["all"]["degrees"])
    assert order[:2] == ["bpm", "p_kl"]
    assert order[-2:] == ["alm", "uld"]
    assert found["alm"]["all"]["degrees"] > found[order[-3]]["all"]["degrees"] + 5
    assert "`bpm` and `p_kl` are nearer, `alm` and `uld` clearly further" in page
    assert "on prose alone `prefix_kl` with conditioned boundaries is nearest" in page
    texts = (f"all of {text}" for text in fidelity.TEXTS)
    nearest = {name: min(LOSSES[1:], key=lambda loss, name=name: found[loss][name]["degrees"]) for name in texts}
    assert [name for name, loss in nearest.items() if loss.startswith("prefix_kl")] == ["all of prose"]
    assert nearest["all of prose"] == "prefix_kl, boundary"
    for name, row in found["bpm"].items():
        assert row["changed"] == pytest.approx(found["yardstick"][name]["changed"], abs=0.1), name
    assert f"with one noise, on {RESULTS['counts']['all'][0]} chunks" in page
    counts = RESULTS["counts"]
    assert counts["n:1"][0] == 0  # none of several to one
    assert 0 < sum(counts[kind][1] - counts[kind][0] for kind in KINDS) < counts["all"][0] / 20  # few of several


def test_the_file_has_all_losses_of_all_kinds():
    counts, found = RESULTS["counts"], RESULTS["angles"]
    assert list(found) == list(LOSSES)
    assert counts["all"] == [sum(counts[kind][i] for kind in KINDS) for i in range(3)]
    sets = {kind for kind in (*KINDS, "all") if counts[kind][0]} | {f"all of {text}" for text in fidelity.TEXTS}
    for loss, rows in found.items():
        assert set(rows) == sets, loss
        for name, row in rows.items():
            assert (row["degrees"] is None) == (row["length"] == 0), (loss, name)


def test_claims_can_fail():
    """Of the same angles everywhere each that asks for a distance fails; with another loss the nearest, the others."""
    sets = (*KINDS, "all", "all of prose")
    found = {loss: {name: {"degrees": 40.0, "changed": 40.0} for name in sets} for loss in LOSSES}
    same = [claim.holds(found, list(KINDS)) for claim in fidelity_page.CLAIMS]
    assert same == [True, True, True, False, False, True]
    nearer = copy.deepcopy(found)
    nearer["gold"] = {name: {"degrees": 10.0, "changed": 10.0} for name in sets}
    nearer["prefix_kl"]["all"] = {"degrees": 20.0, "changed": 40.0}
    other = [claim.holds(nearer, list(KINDS)) for claim in fidelity_page.CLAIMS]
    assert other == [False, False, False, True, True, False]


@pytest.mark.parametrize(
    ("text", "sizes", "kind"),
    [
        (" cat", (1, 1), "1:1"),
        (" undermined", (1, 3), "1:n"),
        (" undermined", (2, 1), "n:1"),
        (" undermined", (2, 3), "n:m"),
        ("\n    return", (2, 2), "indentation"),
        ("\n\n", (1, 1), "indentation"),
        (" 201", (1, 4), "numerals"),
        ("我们", (1, 2), "CJK"),
        ("한국", (1, 1), "CJK"),
        (b"\xe6\x88", (1, 1), "CJK"),
        (" café", (1, 2), "1:n"),
    ],
)
def test_kinds(text, sizes, kind):
    data = text if isinstance(text, bytes) else text.encode()
    assert fidelity.kind_of(data, *sizes) == kind


def test_the_reference_is_the_kl_and_its_gradient():
    """By autograd in float64."""
    taught, states, embeddings = (torch.randn(n, 6, dtype=torch.float64) for n in (5, 5, 11))
    values, gradient = fidelity.exact(taught, states, embeddings)
    free = states.clone().requires_grad_()
    p, q = (torch.softmax(x @ embeddings.T, 1) for x in (taught, free))
    kl = (p * (p / q).log()).sum(1)
    torch.testing.assert_close(values, kl.detach())
    torch.testing.assert_close(gradient, torch.autograd.grad(kl.sum(), free)[0])


def test_degrees_and_their_spread():
    one, other = torch.eye(4)[:2], torch.eye(4)[2:]
    assert fidelity.degrees(one, other) == pytest.approx(90)
    assert fidelity.degrees(one, 3 * one) == pytest.approx(0)
    assert fidelity.degrees(one, one + other) == pytest.approx(45)
    assert fidelity.degrees(one, torch.zeros_like(one)) is None
    assert fidelity.spread(one, torch.zeros_like(one)) is None
    alike = one.repeat(50, 1)
    assert fidelity.spread(alike, alike + other.repeat(50, 1)) == pytest.approx(0, abs=1e-6)
    halves = torch.cat([alike, other.repeat(50, 1)])  # half of the rows at 0, half at 90 degrees
    turned = torch.cat([alike, one.repeat(50, 1)])
    assert 1 < fidelity.spread(halves, turned) < 10
    assert fidelity.degrees(halves, turned) == pytest.approx(60)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A toy model and the same with another tokenizer: (layers, embeddings, vocabularies), the student's first."""
    folder = tmp_path_factory.mktemp("fidelity")
    write_model("qwen3-tied", folder / "old")
    transplant(folder / "old", write_folder("llama", folder / "tokenizer"), folder / "new")
    torch.manual_seed(0)
    loaded = [
        AutoModelForCausalLM.from_pretrained(folder / name, dtype=torch.float32).eval() for name in ("new", "old")
    ]
    names = zoo()["llama"], zoo()["qwen"]
    layers = [m.get_input_embeddings().weight.detach() for m in loaded]
    embeddings = [6 * e[: v.size] for e, v in zip(layers, names, strict=True)]  # random ones say little
    return loaded[1].base_model, embeddings, names


def _pieces(rest, moved, names, embeddings):
    return [("prose", fidelity.Piece(TEXT[:400], rest, moved, names, embeddings))]


def test_noise_is_on_a_copy_and_as_large_as_said(models):
    rest, _, _ = models
    before = copy.deepcopy(rest.state_dict())
    moved = fidelity.disturbed(rest, 0.1, 0)
    assert all(torch.equal(before[name], value) for name, value in rest.state_dict().items())
    for name, value in moved.state_dict().items():
        change = float((value - before[name]).norm() / before[name].norm())
        assert change == pytest.approx(0.1 if value.dim() == 2 and "layers" in name else 0, abs=0.01), name
    again = fidelity.disturbed(rest, 0.1, 0).state_dict()
    assert all(torch.equal(again[name], value) for name, value in moved.state_dict().items())


@pytest.mark.parametrize("loss", ["yardstick", "same_tokenizer", "p_kl", "prefix_kl", "gold"])
def test_one_tokenizer_on_both_sides_leaves_no_angle(models, loss):
    """Then each of these losses is the reference; without noise there is no gradient."""
    rest, (_, embeddings), (_, name) = models
    pieces = _pieces(rest, fidelity.disturbed(rest, 0.1, 0), (name, name), (embeddings, embeddings))
    pair = VocabularyPair(name, name, lambda: build_projection(name, name))
    lesson = None if loss == "yardstick" else fidelity.Lesson(pair, loss, (embeddings, embeddings))
    found = fidelity.angles(pieces, lesson)
    assert {"1:1", "all", "all of prose"} <= set(found)
    for row in found.values():
        assert row["degrees"] == pytest.approx(0, abs=0.1)
        assert row["changed"] == pytest.approx(0, abs=0.1)
        assert row["length"] == pytest.approx(1, rel=1e-3)
        assert row[fidelity_page.REST] == pytest.approx(0, abs=1e-3)


def test_the_student_has_the_disturbed_teachers_states_before_every_chunk(models):
    rest, embeddings, names = models
    moved = fidelity.disturbed(rest, 0.1, 0)
    [(_, piece)] = _pieces(rest, moved, names, embeddings)
    assert {tuple(size) for size in piece.sizes.tolist()} > {(1, 1), (1, 3)}
    for layers, states in zip((rest, moved), piece.student, strict=True):
        theirs = fidelity.states_of(layers, piece.batch.teacher_tokens[0], embeddings[1])
        torch.testing.assert_close(states[piece.rows], theirs[piece.batch.chunks[:, 3]])
    assert piece.kl.min() >= -1e-5
    assert piece.kl.mean() > 1e-3


@pytest.mark.parametrize("loss", [name for name in LOSSES if name != "yardstick"])
def test_every_loss_gives_an_angle(models, loss):
    rest, embeddings, names = models
    pieces = _pieces(rest, fidelity.disturbed(rest, 0.1, 0), names, embeddings)
    pair = VocabularyPair(*names, lambda: build_projection(*names))
    lesson = fidelity.Lesson(pair, loss, embeddings)
    cut_otherwise = pieces[0][1].sizes.sum(1) > 2
    assert bool(pieces[0][1].wanted(lesson)[1][cut_otherwise].any()) == (loss != "strict_1to1")
    row = fidelity.angles(pieces, lesson)["all"]
    assert 0 < row["degrees"] < 120
    assert math.isfinite(row["spread"])
    assert row["length"] > 0
