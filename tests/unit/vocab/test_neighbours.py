"""Which token can follow which, against the tokenizers themselves: by encoding texts again."""

import random

import numpy as np
import pytest
from real_tokenizers import real
from tokenizer_zoo import TEXT, zoo

from nemo_xtoken.errors import InputError
from nemo_xtoken.vocab.neighbours import Neighbours

CODE = """def f(x):\n    if x:\n\t\treturn [1, 20, 3456]  # it's\n\n\n        y = "a.b"  ;  z=x.strip()
(1) 'll don't I'm ("we've").join
      \n  \t{}();\r\n-- ... !!! $12.50 1,234,567 12345678 aaaa    1 camelCaseHTMLParser/path/to --- 中文，日本語
naïve Ångström のテスト。
"""
KINDS = ["llama", "qwen", "sp_bpe", "tiktoken"]
REAL = ["smollm2"]


@pytest.fixture(scope="module", params=KINDS + REAL)
def known(request):
    vocabulary = zoo()[request.param] if request.param in KINDS else real(request.param)
    return vocabulary, Neighbours(vocabulary)


def test_what_stands_in_texts_can_follow(known):
    vocabulary, following = known
    ids = vocabulary.encode(CODE + TEXT[:3000] + CODE).tolist()
    lead = 1 if vocabulary.decode_bytes(ids)[:1] == b" " else 0  # a blank before the text is no token of it
    wrong = set()
    triples = sorted(set(zip(ids[lead:], ids[lead + 1 :], ids[lead + 2 :], strict=False)))
    for before, last, then in random.Random(1).sample(triples, min(300, len(triples))):
        for known_before in (before, None):
            if not following.possible(known_before, last)[then]:
                wrong.add((known_before, vocabulary.display(last), vocabulary.display(then)))
    # without the token before, of ").join" the stop would begin the word
    assert not {case for case in wrong if case[0] is not None}, wrong
    assert len(wrong) <= 3, wrong


def test_what_cannot_follow_is_written_otherwise(known):
    """Of random tokens after those of a text: they can follow if and only if the tokenizer writes the three so."""
    vocabulary, following = known
    rng = random.Random(0)
    ids = [i for i in vocabulary.encode("\n" + CODE + TEXT[:2000]).tolist() if vocabulary.token_bytes[i]]
    cases = []
    for at in rng.sample(range(2, len(ids)), 40):
        before, last = ids[at - 2], ids[at - 1]
        can = following.possible(before, last)
        for then in rng.sample(range(vocabulary.size), 60) + rng.sample(ids, 60):
            data = vocabulary.decode_bytes([before, last, then])
            if vocabulary.token_bytes[then] and not (vocabulary.token_bytes[then] or b"").isspace():
                try:
                    cases.append(((before, last, then), bool(can[then]), data.decode()))
                except UnicodeDecodeError:
                    continue
    start = vocabulary.encode("\n").tolist()
    written = vocabulary.encode_batch(["\n" + text for _, _, text in cases])
    compared, wrong = 0, []
    for (three, can, text), found in zip(cases, written, strict=True):
        found = found.tolist()
        if found[: len(start) + 1] == [*start, three[0]] and vocabulary.decode_bytes(found).endswith(text.encode()):
            compared += 1
            if can != (found[len(start) :] == list(three)):
                wrong.append((text, can, [vocabulary.display(i) for i in found]))
    assert compared > 500
    assert not wrong, wrong[:9]
    assert {can for _, can, _ in cases} == {True, False}


def test_special_tokens_are_apart_from_texts():
    vocabulary = zoo()["llama"]
    following = Neighbours(vocabulary)
    end = vocabulary.eos_id
    assert following.possible(None, end).all()
    words = vocabulary.encode("the quick brown fox")
    assert all(following.possible(None, int(i))[end] for i in words)
    assert following.possible(None, int(words[0])).dtype == np.bool_


@pytest.mark.parametrize("name", ["sp_unigram", "sp_model"])
def test_other_tokenizers_are_refused(name):
    with pytest.raises(InputError, match="byte-pair"):
        Neighbours(zoo()[name])
