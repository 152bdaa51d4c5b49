"""The chunks of a text and what is said there, on tokenizers of every family."""

import pytest
from said_strings import assert_agree
from tokenizer_zoo import TEXT, zoo

from nemo_xtoken.certify.cases import build_cases
from nemo_xtoken.certify.certify_config import DEFAULT_TEXT, CertifyConfig
from nemo_xtoken.certify.spellings import Spellings
from nemo_xtoken.errors import InputError

CONFIG = CertifyConfig(chunks=3, near=5, floor=40)


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("NEMO_XTOKEN_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


def cases_of(student, teacher, text=TEXT, config=CONFIG):
    return build_cases(Spellings(zoo()[student], zoo()[teacher]), text, config)


@pytest.mark.parametrize(
    ("student", "teacher"),
    [("llama", "qwen"), ("qwen", "llama"), ("llama", "sp_bpe"), ("sp_unigram", "qwen"), ("tiktoken", "sp_model")],
)
def test_both_sides_say_the_same(student, teacher):
    cases = cases_of(student, teacher)
    sides = zoo()[student], zoo()[teacher]
    assert len({case.kind for case in cases}) >= 2
    for case in cases:
        said = assert_agree(case.agreement, lambda side, path: sides[side].decode_bytes(path))
        assert sum(said.values()) == pytest.approx(1, rel=1e-9)
        right = sides[0].decode_bytes(case.agreement.right.student)
        assert case.text == right.decode("utf-8", "backslashreplace")
        assert said[right] >= 0.986 - 1e-9
        assert all(path for continuation in case.agreement.weights for path in continuation)


def test_each_kind_has_the_company_that_its_name_says():
    pairs = ("llama", "qwen"), ("qwen", "llama")
    cases = {case.kind: case.agreement for pair in pairs for case in cases_of(*pair, DEFAULT_TEXT)}
    assert all(len(s) == len(t) == 1 for s, t in cases["one_to_one"].weights)
    assert all(len(s) == 1 for s, _ in cases["one_to_several"].weights)
    assert any(len(t) > 1 for _, t in cases["one_to_several"].weights)
    assert any(len(s) > 1 and len(t) == 1 for s, t in cases["several_to_one"].weights)


def test_a_numerals_competitors_are_numerals_and_its_own_beginning():
    llama, qwen = zoo()["llama"], zoo()["qwen"]
    (case,) = (c for c in cases_of("llama", "qwen", "201") if c.text == "201")
    weights = {llama.decode_bytes(c.student): w for c, w in case.agreement.weights.items()}
    assert weights[b"201"] == pytest.approx(0.986)
    above_floor = sorted((t for t, w in weights.items() if w > 1e-4 and t != b"201"), key=weights.get, reverse=True)
    assert all(t.startswith(b"20") for t in above_floor[:2])
    assert sum(t.startswith(b"20") for t in above_floor) == CONFIG.near
    assert sum(t.isdigit() and len(t) == 3 and t[:1] != b"2" for t in above_floor) == CONFIG.near
    (two,) = qwen.encode("2").tolist()
    assert case.agreement.next_token(1)[two] > 0.986


def test_chunks_are_taken_from_the_classes_in_turn():
    texts = [c.text for c in cases_of("llama", "qwen", "1 2 3 4 the , + 5 6 7") if c.kind == "one_to_one"]
    assert len(texts) == CONFIG.chunks
    assert sum(t.strip().isdigit() for t in texts) == 1


def test_the_same_cases_each_time():
    assert cases_of("llama", "qwen") == cases_of("llama", "qwen")


def test_a_text_without_chunks_is_refused():
    with pytest.raises(InputError, match="text of 0 characters"):
        cases_of("llama", "qwen", "")


@pytest.mark.parametrize("wrong", [{"probability": 1.0}, {"chunks": 0}, {"steps": 0}, {"rate": -1.0}, {"floor": 0}])
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        CertifyConfig(**wrong)
