"""prefix_kl between models that agree on texts: drawn from a finite set, written by real tokenizers, by brute force."""

import functools
import random

import pytest
from real_tokenizers import real
from tokenizer_zoo import zoo

from nemo_xtoken.certify.said_texts import SaidTexts
from nemo_xtoken.losses.prefix_kl import PrefixKL
from nemo_xtoken.projection.prefixes import PrefixClasses

#: Context, and what is said after it: the first is the right text.
TEXTS = {
    "indentation": (
        "x = 1\n",
        [
            "    return x",
            "    def f",
            "        return",
            "    if x",
            "  # c",
            "pass",
            "    undefined",
            "        x",
            "\tx",
        ],
    ),
    "numerals": (" It was", [" 201 BC", " 207 AD", " 21", " 2", " 20 x", " 1999.", "n't"]),
    "words": ("The", [" unhappily x", " counterrevolution", " counters", " unhappy", " un", " underwater", " cat"]),
    "a full stop": ("He said", [".\nThen", ". Then", ".\n\nX", "!", " so.", ".com"]),
    "Chinese": ("他说", ["我们可以使用", "我", "我们", "今天", "人工智能", "你好", "我的"]),
    "punctuation": ("print", ["(x)", "('a')", '("b")', "()", " (x)", ".x", "[0]", "(\n"]),
}
PAIRS = [("llama3", "gemma3"), ("smollm2", "qwen3"), ("llama3", "qwen3")]


@functools.cache
def made(names):
    student, teacher = map(real, names)
    return student, teacher, PrefixClasses.of(student, teacher)


@functools.cache
def small(names):
    student, teacher = (zoo()[name] for name in names)
    return student, teacher, PrefixClasses.of(student, teacher)


@pytest.fixture(params=PAIRS, ids="-".join)
def pair(request):
    return made(request.param)


@pytest.mark.parametrize("kind", TEXTS)
def test_zero_and_still_at_the_first_chunk(pair, kind):
    student, teacher, classes = pair
    context, texts = TEXTS[kind]
    said = SaidTexts(student, teacher, context, {text: 1 / (2 + i) for i, text in enumerate(texts)})
    said.rows = said.rows[:1]
    values, gradient = said.measure(lambda shard: PrefixKL(classes, shard))
    assert values.abs().max() < 1e-12, (said.texts[0], said.shape(0))
    assert gradient.abs().max() < 1e-12


def test_indentation_is_learned_at_each_of_its_tokens():
    """What GPT-style tokenizers write as blanks and a word with a blank, others as more blanks and a word."""
    student, teacher, classes = made(PAIRS[0])
    context, texts = TEXTS["indentation"]
    said = SaidTexts(student, teacher, context, {text: 1 / (2 + i) for i, text in enumerate(texts)})
    assert (said.texts[0], said.shape(0)) == ("    return", (2, 2))
    said.rows = said.rows[:1]
    other = said.z[0].clamp_min(-30)
    first, second = said.rows[0][0], said.rows[0][0] + 1
    word = {name: student.id_of_bytes[name.encode()] for name in ("   ", " return", " def", " if")}
    other[second, word[" return"]] -= 1
    other[second, word[" def"]] += 1
    values, gradient = said.measure(lambda shard: PrefixKL(classes, shard), student=other)
    assert values[0] > 0.05
    assert gradient[second, word[" return"]] < -0.1
    assert gradient[second, word[" def"]] > 0.1
    other = said.z[0].clamp_min(-30)
    other[first, word["   "]] -= 1
    values, gradient = said.measure(lambda shard: PrefixKL(classes, shard), student=other)
    assert values[0] > 0.05
    assert gradient[first, word["   "]] < -0.1


ZOO = [("sp_bpe", "qwen"), ("qwen", "sp_bpe"), ("tiktoken", "llama"), ("sp_bpe", "llama"), ("llama", "sp_bpe")]


@pytest.mark.parametrize("names", ZOO, ids="-".join)
def test_zero_at_numerals_that_byte_pairs_cut_anyhow(names):
    """``69`` as one token or two, and ``616`` as ``6`` and ``16``: what ends a spelling may go on in another way; so
    `` 3`` before ``.5`` where there is a token `` 3.1``, and ``46`` before ``0`` where the other side has ``460``."""
    student, teacher, classes = small(names)
    make = functools.cache(lambda shard: PrefixKL(classes, shard))
    rng = random.Random(1)
    shapes, off = set(), []
    for _ in range(60):
        numeral = lambda: str(rng.randrange(10 ** rng.randrange(1, 4)))  # noqa: E731
        texts = {f" {numeral()}{rng.choice([' + ', ' = ', '.'])}{numeral()}": rng.random() + 0.1 for _ in range(8)}
        said = SaidTexts(student, teacher, "the", texts)
        said.rows = said.rows[:1]
        values, gradient = said.measure(make)
        shapes.add(said.shape(0))
        if max(values.abs().max(), gradient.abs().max()) > 1e-12:
            off.append((said.texts[0], list(texts), float(values[0])))
    assert len(shapes) > 1 or names == ("tiktoken", "llama")
    assert not off


ROWS = {
    "words": ("the", [" quick brown fox", " quick lazy dog", " lazy dog", " fox jumps", " brown dog", " other places"]),
    "code": ("x\n", ["    return width", "    for i in", "\tif width", "    return x", "  x = width"]),
    "numerals": ("the", [" 201 miles", " 20 dog", " 37 miles", " 2 fox", " 201 fox"]),
}


@pytest.mark.parametrize("kind", ROWS)
@pytest.mark.parametrize("names", [("llama", "qwen"), ("qwen", "llama"), ("sp_bpe", "qwen")], ids="-".join)
def test_zero_at_each_chunk_of_a_text_that_merges_over_no_boundary(names, kind):
    student, teacher, classes = small(names)
    context, texts = ROWS[kind]
    said = SaidTexts(student, teacher, context, {text: 1 / (2 + i) for i, text in enumerate(texts)})
    assert len(said.rows) > 1
    values, gradient = said.measure(lambda shard: PrefixKL(classes, shard))
    assert values.abs().max() < 1e-12, list(zip(said.texts, said.rows, values.tolist(), strict=True))
    assert gradient.abs().max() < 1e-12
    other = said.z[0].clamp_min(-30)
    other[said.rows[0][0]] = other[said.rows[0][0]].roll(1)
    assert said.measure(lambda shard: PrefixKL(classes, shard), student=other)[0].max() > 0.1
