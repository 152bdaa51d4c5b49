"""A text in pieces has the ids of the whole, for tokenizers of every family and for real ones."""

import itertools
import unicodedata

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from real_tokenizers import real
from tokenizer_zoo import NAMES, TEXT, zoo

from nemo_xtoken.vocab import Vocabulary
from nemo_xtoken.vocab.seams import Piece, Seams, encode_pieces

#: Of each family: byte-level BPE, the same with tiktoken's newest words, the whole text as one word with and without a
#: space put in front of it.
REAL = ["llama3", "qwen3", "gptoss", "gemma3", "llama2"]

#: Kinds of text that tokenizers cut by other rules: runs of blanks, line ends of all systems, quotes, digits, scripts.
KINDS = {
    "prose": TEXT,
    "code": "def f(x):\n\n\n    return  x\n\tif a:\r\n\r\n  \n  b = 'it\\'s'\n" * 40,
    "crlf": "One line\r\nTwo lines\r\n\r\nThree 3 lines  \r\n" * 40,
    "blanks": "a   b\n   c  \n\n \n d\t\te\n" * 60 + " x" * 300,
    "digits": "\n".join(f"Row {n} 1234567{n}, 3.14 x" for n in range(120)),
    "apart": unicodedata.normalize("NFD", "Été à la plage\nnaïve café Ångström übel\n") * 40,
    "scripts": "你好，世界\n今天天气很好\nПривет, мир\nмир\n한국어 텍스트\nاللغة العربية\nहिन्दी पाठ\n" * 20,
    "table": "".join(f"{n},{n * 37},-{n}.5\n" for n in range(80)),
    "marks": "end.\nStart! \"Quote\"\n'Tis I'LL we've\n<|im_end|>\nA </s>\nB\n" * 40,
    "wide": "ｆｕｌｌ　ｗｉｄｔｈ\nﬁne ℌ ² ½\nﬂow x² y\n" * 40,
}


def assert_pieces(text: str, vocabularies: list[Vocabulary], size: int, least: int = 1) -> None:
    pieces = list(Seams(vocabularies).pieces(text, size))
    assert "".join(p.text for p in pieces) == text
    assert len(pieces) >= least, pieces[:2]
    assert pieces[0].first
    assert pieces[-1].last
    assert all(a.after == b.before != "" for a, b in itertools.pairwise(pieces))
    for vocabulary in vocabularies:
        np.testing.assert_array_equal(np.concatenate(encode_pieces(vocabulary, pieces)), vocabulary.encode(text))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", KINDS)
def test_every_family(name: str, kind: str) -> None:
    assert_pieces(KINDS[kind], [zoo()[name]], 60)


@settings(deadline=None, max_examples=200)
@given(
    st.lists(
        st.one_of(
            st.text(st.characters(exclude_categories=["Cs"]), max_size=5),
            st.sampled_from(
                ["\n", "\r\n", " ", "  ", "word", "Word", "é", "e\u0301", "12", "'s", "。", "字", "▁", "\t"]
            ),
        ),
        max_size=120,
    ).map("".join),
    st.sampled_from(NAMES),
    st.sampled_from(NAMES),
    st.integers(1, 40),
)
def test_any_text(text: str, a: str, b: str, size: int) -> None:
    assert_pieces(text, [zoo()[a], zoo()[b]], size)


@pytest.mark.parametrize("name", REAL)
def test_real_tokenizers(name: str) -> None:
    vocabulary = real(name)
    assert_pieces("".join(KINDS.values()), [vocabulary], 100, least=50)


@pytest.mark.parametrize(("a", "b"), [("llama3", "qwen3"), ("qwen3", "llama2"), ("gptoss", "gemma3")])
def test_pairs_of_real_tokenizers_share_seams(a: str, b: str) -> None:
    assert_pieces(TEXT, [real(a), real(b)], 200, least=5)


def test_a_text_without_seams_stays_whole() -> None:
    text = "0123456789" * 500
    assert list(Seams([zoo()["llama"]]).pieces(text, 100)) == [Piece(text)]


def test_a_vocabulary_whose_tokens_reach_across_has_no_seams_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a merge over the seam would be lost."""
    vocabulary = zoo()["llama"]
    tokens = [*vocabulary.token_bytes, b"\nabc", b"\n1", b"x y"]
    other = Vocabulary(
        name="across", behaviour="a", token_bytes=tokens, roles={}, encoder=vocabulary.__dict__["_encoder"]
    )
    assert Seams([vocabulary]).kinds == ["line", "row", "word"]
    assert Seams([vocabulary, other]).kinds == []


def test_a_tokenizer_that_looks_back_is_found_out() -> None:
    """Its words depend on what is in front of them, as no known tokenizer's do: places where it shows are refused."""

    class LooksBack:
        def encode_batch(self, texts):
            ids = []
            for text in texts:
                data = text.encode()
                ids.append(np.array([b + 256 * (data[max(0, i - 9) : i].count(b"X") > 0) for i, b in enumerate(data)]))
            return ids

    tokens = [bytes([b % 256]) for b in range(512)]
    vocabulary = Vocabulary(name="back", behaviour="b", token_bytes=tokens, roles={}, encoder=LooksBack())
    assert_pieces("word X\nword " * 50 + "plain words " * 50, [vocabulary], 60, least=3)


def test_a_piece_elsewhere_is_refused() -> None:
    joined = next(t.decode() for t in zoo()["llama"].token_bytes if t and len(t) == 2 and t[:1] == b"a")
    with pytest.raises(ValueError, match="not between seams"):
        encode_pieces(zoo()["llama"], [Piece(joined[1:], before="word")])
