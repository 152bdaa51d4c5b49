"""Table 7 of the paper (arXiv 2605.21699): a BOS on one side makes a string-buffer aligner put all into one group.

Such an aligner collects decoded tokens on both sides and closes a group only when both texts are equal.  Once one side
begins with a text that the other lacks, they never are again.
"""

import numpy as np
import pytest
from real_tokenizers import real
from tokenizer_zoo import zoo

from nemo_xtoken.alignment import Aligner

TEXT = "It was 201 BC. In 1987 she walked 42 miles; nobody had asked her to. 今天天气很好。 x[-1] += 0x1F\n" * 3


def pair(kind):
    return (zoo()["llama"], zoo()["qwen"]) if kind == "small" else (real("llama3"), real("qwen3"))


def decoded(vocabulary, ids):
    """The text of each token; that of a special one is no empty text."""
    return [vocabulary.token_bytes[i] or vocabulary.display(i).encode() for i in ids.tolist()]


def string_buffer(left, right):
    """Groups ``[start, end, start, end]`` by accumulated text; what is left over at the end is the last group."""
    groups = []
    starts, at, texts = [0, 0], [0, 0], [b"", b""]
    while at[0] < len(left) or at[1] < len(right):
        side = 0 if (len(texts[0]) <= len(texts[1]) and at[0] < len(left)) or at[1] == len(right) else 1
        texts[side] += (left, right)[side][at[side]]
        at[side] += 1
        if texts[0] == texts[1]:
            groups.append([starts[0], at[0], starts[1], at[1]])
            starts, texts = list(at), [b"", b""]
    if starts != at:
        groups.append([starts[0], at[0], starts[1], at[1]])
    return groups


@pytest.mark.parametrize("method", ["spans", "dp"])
@pytest.mark.parametrize("kind", ["small", "Llama-3 and Qwen3"])
def test_a_bos_on_one_side_is_one_gap(kind, method):
    student, teacher = pair(kind)
    s_ids, t_ids = student.encode(TEXT), teacher.encode(TEXT)
    with_bos = np.r_[student.bos_id, s_ids]
    assert teacher.bos_id is None

    groups = string_buffer(decoded(student, s_ids), decoded(teacher, t_ids))
    assert string_buffer(decoded(student, with_bos), decoded(teacher, t_ids)) == [[0, len(with_bos), 0, len(t_ids)]]

    aligner = Aligner(student, teacher, method)
    chunks, shifted = aligner.align(s_ids, t_ids), aligner.align(with_bos, t_ids)
    assert shifted.tolist() == (chunks + np.array([1, 1, 0, 0])).tolist()
    assert len(chunks) > 60
    if method == "spans":  # where nothing is in the way, the buffer finds the same finest chunks
        assert chunks.tolist() == groups
        used = np.zeros(len(with_bos), bool)
        for start, end, _, _ in shifted.tolist():
            used[start:end] = True
        assert np.flatnonzero(~used).tolist() == [0]
        assert (shifted[:, 3] - shifted[:, 2]).sum() == len(t_ids)


@pytest.mark.parametrize("method", ["spans", "dp"])
def test_a_bos_on_both_sides_is_a_chunk_whatever_it_is_called(method):
    student, teacher = zoo()["llama"], zoo()["sp_unigram"]  # <|begin_of_text|> and <bos>
    s_ids, t_ids = np.r_[student.bos_id, student.encode(TEXT)], np.r_[teacher.bos_id, teacher.encode(TEXT)]
    assert Aligner(student, teacher, method).align(s_ids, t_ids)[0].tolist() == [0, 1, 0, 1]
