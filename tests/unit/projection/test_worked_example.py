"""The numbers of the example "201" in docs/method.md, from W, the aligner and the loss's formula."""

from pathlib import Path

import numpy as np
import pytest
import torch
from real_tokenizers import real
from tokenizer_zoo import zoo

from nemo_xtoken.alignment import Aligner
from nemo_xtoken.projection.build import build_projection

METHOD = (Path(__file__).parents[3] / "docs" / "method.md").read_text("utf-8")
STUDENT = {"201": 0.10, "202": 0.05, "20": 0.10, "2": 0.05, "199": 0.40, "19": 0.20, "1": 0.10}
TEACHER = {"2": 0.80, "1": 0.17, "0": 0.02, "9": 0.01}
LATER = (0.9, 0.9)  # p_T(0 | 2), p_T(1 | 2 0)


@pytest.fixture(scope="module", params=["small", "Llama-3 and Qwen3"])
def pair(request):
    return (zoo()["llama"], zoo()["qwen"]) if request.param == "small" else (real("llama3"), real("qwen3"))


@pytest.fixture(scope="module")
def w(pair):
    """float64 [7, 4]: the rows and columns of the example; nothing of these rows lies elsewhere."""
    student, teacher = pair
    matrix = build_projection(student, teacher)
    columns = [teacher.id_of_bytes[t.encode()] for t in TEACHER]
    out = np.zeros((len(STUDENT), len(TEACHER)))
    for i, text in enumerate(STUDENT):
        s = student.id_of_bytes[text.encode()]
        for t, weight in zip(matrix.ids[s].tolist(), matrix.weights[s].tolist(), strict=True):
            if t >= 0:
                out[i, columns.index(t)] += weight
    np.testing.assert_allclose(out.sum(1), 1, atol=1e-6)
    return out


@pytest.fixture(scope="module")
def numbers(w):
    """What the document states: q, the divergence, the term, r and the gradients."""
    p_s, p_t = np.array(list(STUDENT.values())), np.array(list(TEACHER.values()))
    logits = torch.tensor(np.log(p_s), requires_grad=True)
    q = torch.softmax(logits, 0) @ torch.tensor(w)
    divergence = (torch.tensor(p_t) * (torch.tensor(p_t).log() - q.log())).sum()
    divergence.backward()
    q_ = q.detach().numpy()
    r = w @ (p_t / q_)
    np.testing.assert_allclose(p_s * ((p_s * r).sum() - r), logits.grad, atol=1e-12)
    common = {text: TEACHER[text] for text in STUDENT if text in TEACHER}  # single digits
    return {
        "q": q_,
        "divergence": divergence.item(),
        "m": LATER[0] * LATER[1],
        "r": r,
        "gradient": logits.grad.numpy(),
        "gold": np.array([p * sum(common.values()) - common.get(text, 0.0) for text, p in STUDENT.items()]),
    }


def lines(w, numbers):
    yield "    q          " + "   ".join(f"{t} {v:.4f}" for t, v in zip(TEACHER, numbers["q"], strict=True))
    yield f"    KL(p_T || q) = {numbers['divergence']:.4f}"
    term = numbers["m"] * numbers["divergence"]
    yield f"    term = {numbers['m']:.2f} * {numbers['divergence']:.4f} = {term:.4f}"
    for i, text in enumerate(STUDENT):
        entries = sorted(((-v, t) for t, v in zip(TEACHER, w[i].tolist(), strict=True) if v > 0))
        row = ", ".join(f"{t} {-v:.4f}" for v, t in entries)
        yield (
            f"| {text} | {STUDENT[text]:.2f} | {row} | {numbers['r'][i]:.3f} | {numbers['gradient'][i]:+.4f} "
            f"| {numbers['gold'][i]:+.4f} |"
        )


def test_the_numbers_of_the_document(w, numbers):
    missing = [line for line in lines(w, numbers) if line not in METHOD]
    assert missing == []


def test_what_the_document_says_of_them(numbers):
    by_token = dict(zip(STUDENT, numbers["gradient"], strict=True))
    assert by_token["201"] < 0 < numbers["gold"][0]  # P-KL pushes it up, GOLD down
    assert sum(numbers["gradient"]) == pytest.approx(0, abs=1e-12)
    assert numbers["divergence"] > 0


@pytest.mark.parametrize("method", ["spans", "dp"])
def test_201_is_one_chunk_of_one_and_three_tokens(pair, method):
    student, teacher = pair
    s, t = student.encode("It was 201 BC."), teacher.encode("It was 201 BC.")
    at = s.tolist().index(student.id_of_bytes[b"201"])
    chunks = {c[0]: c for c in Aligner(student, teacher, method).align(s, t).tolist()}
    _, end, first, last = chunks[at]
    assert end == at + 1
    assert [teacher.display(i) for i in t[first:last]] == ["2", "0", "1"]
