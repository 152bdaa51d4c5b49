"""Every pair of tokenizers builds, aligns and is audited: the sweep of ``benchmarks/``, and that it would tell."""

import importlib
import itertools

import numpy as np
import pytest
from real_tokenizers import real
from tokenizer_zoo import NAMES, zoo

from nemo_xtoken.alignment import Aligner

sweep = importlib.import_module("sweep")

#: The tokenizers of the field, each beside one of another kind, so that a ring has each of them on both sides.
FIELD = ("llama3", "qwen3", "mistral_v1", "phi4mini", "gemma3", "gpt2", "mistral_tekken", "smollm2", "deepseek_v3")
FIELD += ("mistral_v3", "gptoss", "llama2", "cl100k")


@pytest.mark.parametrize(("student", "teacher"), list(itertools.permutations(NAMES, 2)))
def test_small_tokenizers_of_every_family(student, teacher):
    texts, chunks, single, problems = sweep.aligned(zoo()[student], zoo()[teacher])
    assert problems == []
    assert texts >= 4 * len(sweep.TEXTS)
    assert chunks >= single > 0


def ring(step):
    """Pairs with each of the field once on either side; all pairs take minutes: ``benchmarks/sweep.py``."""
    return [(FIELD[i], FIELD[(i + step) % len(FIELD)]) for i in range(len(FIELD))]


@pytest.mark.slow
@pytest.mark.parametrize(("student", "teacher"), ring(1))
def test_real_pairs_build_align_and_are_audited(student, teacher):
    result = sweep.measure(real(student), real(teacher))
    assert result.problems == ()
    assert 0.1 * real(student).size < result.exact <= result.reached <= result.teacher_size
    assert result.loss in ("p_kl", "h_kl")


@pytest.mark.slow
@pytest.mark.parametrize(("student", "teacher"), ring(5))
def test_real_pairs_align(student, teacher):
    _, chunks, _, problems = sweep.aligned(real(student), real(teacher))
    assert problems == []
    assert chunks > 1000


def changed(chunks: np.ndarray, how: str) -> np.ndarray:
    """What a worse aligner would give."""
    chunks = chunks.copy()
    if how == "one missing":
        return np.delete(chunks, len(chunks) // 2, axis=0)
    if how == "two in one":
        chunks[3, 1::2] = chunks[4, 1::2]
        return np.delete(chunks, 4, axis=0)
    if how == "one for another":
        chunks[3:5, 2:] = chunks[3:5, 2:][::-1]
    elif how == "off by one":
        chunks[-1, 1] -= 1
    else:
        chunks[:, 2:] += 1
    return chunks


@pytest.mark.parametrize("how", ["one missing", "two in one", "one for another", "off by one", "shifted"])
@pytest.mark.parametrize(("student", "teacher"), [("llama", "qwen"), ("sp_bpe", "llama"), ("llama", "sp_unigram")])
def test_the_sweep_tells_what_is_wrong(student, teacher, how):
    s, t = zoo()[student], zoo()[teacher]
    for name, s_ids, t_ids, ends in sweep.cases(s, t):
        chunks = Aligner(s, t).align(s_ids, t_ids)
        assert sweep.problems_of(s, t, s_ids, t_ids, chunks, ends) == [], name
        if name in sweep.TEXTS:
            assert sweep.problems_of(s, t, s_ids, t_ids, changed(chunks, how), ends), name
