"""Conditioning at boundaries: models that agree on texts, drawn from finite sets, by brute force."""

import functools

import numpy as np
import pytest
import torch
from test_agreeing_texts import TEXTS, made
from tokenizer_zoo import zoo

from nemo_xtoken.certify.said_texts import SaidTexts
from nemo_xtoken.errors import InputError
from nemo_xtoken.losses.boundaries import unpacked
from nemo_xtoken.losses.choosing import check_loss
from nemo_xtoken.losses.pair import VocabularyPair
from nemo_xtoken.losses.prefix_kl import PrefixKL
from nemo_xtoken.losses.registry import DivergenceOptions, make_divergence
from nemo_xtoken.parallel.vocabulary_shard import VocabularyShard
from nemo_xtoken.projection.prefixes import PrefixClasses
from nemo_xtoken.vocab.neighbours import Neighbours

KEPT_WITH = "test_agreeing_texts.py"  # in one process, which has its pairs
#: Context, and what is said after it.  At the end of a chunk of the first text the others go on as one side cannot.
AFTER = {
    "a digit": ("In", [" 2 x", " 2.", " 201 BC", " 23"]),
    "a full stop": ("He said", [". Then", ".\nThen", ".\n\nX", ".", " so."]),
    "Chinese": ("他", ["我 x", "我们", "我们可以", "我。", "你"]),
}


@functools.cache
def sides(names):
    if names == ("smollm2", "qwen3"):
        student, teacher, classes = made(names)
    else:
        student, teacher = (zoo()[name] for name in names)
        classes = PrefixClasses.of(student, teacher)
    return student, teacher, classes, (Neighbours(student), Neighbours(teacher))


def measured(names, case, boundary):
    student, teacher, classes, following = sides(names)
    context, said = case
    texts = SaidTexts(student, teacher, context, {text: 1 / (2 + i) for i, text in enumerate(said)})
    return texts.measure(lambda shard: PrefixKL(classes, shard, following=following if boundary else None))


@pytest.mark.parametrize("kind", [*TEXTS, *(f"after {kind}" for kind in AFTER)])
def test_zero_and_still_at_every_chunk(kind):
    case = AFTER[kind.removeprefix("after ")] if kind.startswith("after") else TEXTS[kind]
    values, gradient = measured(("smollm2", "qwen3"), case, True)
    assert len(values) > 1
    assert values.abs().max() < 1e-12
    assert gradient.abs().max() < 1e-12


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        (("smollm2", "qwen3"), "a full stop"),
        (("smollm2", "qwen3"), "Chinese"),
        (("llama", "qwen"), "a digit"),
    ],
)
def test_what_a_boundary_costs_without(names, kind):
    values, gradient = measured(names, AFTER[kind], False)
    assert values.max() > 0.05
    assert gradient.abs().max() > 0.05
    values, gradient = measured(names, AFTER[kind], True)
    assert values.abs().max() < 1e-12
    assert gradient.abs().max() < 1e-12


def test_other_tokenizers_are_refused():
    student, teacher = zoo()["llama"], zoo()["sp_unigram"]
    with pytest.raises(InputError, match="byte-pair"):
        check_loss("prefix_kl", student, teacher, DivergenceOptions(boundary=True))
    with pytest.raises(InputError, match="boundary"):
        check_loss("alm", student, zoo()["qwen"], DivergenceOptions(boundary=True))


def test_a_registered_loss_has_the_option():
    pair = VocabularyPair(zoo()["llama"], zoo()["qwen"])
    shard = VocabularyShard(pair.student.size, pair.student.size)
    made = make_divergence("prefix_kl", pair, shard, DivergenceOptions(boundary=True))
    assert "put_aside" in made.metric_names
    assert "put_aside" not in make_divergence("prefix_kl", pair, shard).metric_names


def test_bits_are_columns():
    closed = np.random.default_rng(0).random((3, 21)) < 0.5
    bits = torch.from_numpy(np.packbits(closed, axis=1, bitorder="little"))
    assert unpacked(bits, 21).numpy().tolist() == (~closed).tolist()
