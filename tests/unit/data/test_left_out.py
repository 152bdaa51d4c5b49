"""Conversations whose answers touch the template's blanks, and those that are refused: nothing is lost untold."""

import json
import logging

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fakes import GreedyEncoder, align_texts

from nemo_xtoken.alignment.aligner import Aligner
from nemo_xtoken.data import DataConfig, Tokenization, prepare_pairs
from nemo_xtoken.data.batch import IGNORED
from nemo_xtoken.data.conversation.chat import conversation_text
from nemo_xtoken.data.part import prepare_part
from nemo_xtoken.data.sources import Reading
from nemo_xtoken.data.templates import ChatTemplate
from nemo_xtoken.data.turns import ConversationAligner
from nemo_xtoken.errors import InputError
from nemo_xtoken.vocab import Vocabulary

BLANK = "{{ bos_token }}{% for m in messages %}{{ m.role + ': ' + m.content + eos_token }}{% endfor %}"
LINE = "{{ bos_token }}{% for m in messages %}{{ m.role + '\n' + m.content + eos_token }}{% endfor %}"
TWO_BLANKS = BLANK.replace("': '", "':  '")
BRACKET = "{% for m in messages %}{{ '[' + m.role + '](' + m.content + eos_token }}{% endfor %}"
STRICT = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}{{ m.role + '\n' + m.content + eos_token }}{% endfor %}"
)


def side(name, words, template, ends="</s>"):
    """All single bytes, some words, BOS and EOS; with a chat template."""
    tokens = [None, None, *(bytes([b]) for b in range(256)), *(w.encode() for w in words)]
    return Vocabulary(
        name=name,
        behaviour=repr(words),
        token_bytes=tokens,
        roles={0: "bos", 1: "eos" if ends == "</s>" else "eot"},
        encoder=GreedyEncoder({t: i for i, t in enumerate(tokens) if t is not None}),
        bos_id=0,
        eos_id=1,
        special_texts={0: "<s>", 1: ends},
        chat_template=template,
    )


def one(student, teacher, answer="Yes"):
    """The document of one question and one answer, and its chunks as texts."""
    align = ConversationAligner(ChatTemplate(student), ChatTemplate(teacher), Aligner(student, teacher))
    text = conversation_text([{"role": "user", "content": "q"}, {"role": "assistant", "content": answer}], "here")
    (found,) = align_texts(align, [text])
    sides = (student, found.student_ids, 0), (teacher, found.teacher_ids, 2)
    chunks = [
        tuple([v.display(int(i)) for i in np.where(ids < 0, ~ids, ids)[c[at] : c[at + 1]]] for v, ids, at in sides)
        for c in found.chunks.tolist()
    ]
    labels = [v.decode_bytes(ids[ids >= 0]) for v, ids, _ in sides]
    return chunks, labels


@pytest.mark.parametrize(
    ("student", "teacher", "answer", "chunks"),
    [
        # the same blank in front of the word, as one token on both sides
        (([" Yes"], BLANK), ([" Yes"], BLANK), "Yes", [([" Yes"], [" Yes"])]),
        # the teacher's blank is a token of the template: taken into the turn
        (([" Yes"], BLANK), (["Yes"], BLANK), "Yes", [([" Yes"], [" ", "Yes"])]),
        (([": Yes"], BLANK), ([" Yes"], BLANK), "Yes", [([": Yes"], [":", " Yes"])]),
        (([" 42"], BLANK), (["4"], BLANK), "42!", [([" 42"], [" ", "4", "2"]), (["!"], ["!"])]),
        (([" Y"], BLANK), (["Yes"], BLANK), "Yes", [([" Y", "e", "s"], [" ", "Yes"])]),
        (([":  Yes"], TWO_BLANKS), (["Yes"], TWO_BLANKS), "Yes", [([":  Yes"], [":", " ", " ", "Yes"])]),
        (([" Yes"], BLANK), (["Yes", " ("], BRACKET.replace("](", "] ")), "Yes", [([" Yes"], [" ", "Yes"])]),
        # the student's is: it is no word of the assistant's, and no label
        ((["Yes"], BLANK), ([" Yes"], BLANK), "Yes", []),
        # the teacher has none: two texts
        (([" Yes"], BLANK), (["Yes"], LINE), "Yes", []),
        (([" Yes"], BLANK), (["Yes"], LINE), "Yes, it is", [([c], [c]) for c in ", it is"]),
        (([" 今天"], BLANK), (["今天"], LINE), "今天 a", [([" "], [" "]), (["a"], ["a"])]),
        # the template's text ends with its own token on both sides
        ((["Yes"], BLANK), (["Yes"], LINE), "Yes", [(["Yes"], ["Yes"])]),
        (([" Yes"], LINE), (["Yes"], BLANK), "Yes", [(["Y", "e", "s"], ["Yes"])]),
    ],
)
def test_the_first_word_behind_a_blank_of_the_template(student, teacher, answer, chunks):
    found, said = one(side("student", *student), side("teacher", *teacher), answer)
    assert found == [*chunks, (["<eos>"], ["<eos>"])]
    assert [text.lstrip(b": ") for text in said] == [answer.encode()] * 2


ONE_WORD = ["Yes", "No", "Paris", "blue", "今天", "been", "seven", "Mars", "cats", "Maybe"] * 2


def write(path, answers):
    rows = [
        {"messages": [{"role": "user", "content": f"question {n}"}, {"role": "assistant", "content": word}]}
        for n, word in enumerate(answers)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_one_word_answers_stay_for_cross_entropy(tmp_path, caplog):
    """Of twenty such answers nineteen had left the data set, when the two sides end a turn by tokens of other roles."""
    student = side("student", [f" {word}" for word in ONE_WORD[:10]], BLANK)
    teacher = side("teacher", ONE_WORD[:10], LINE.replace("eos_token", "'<end>'"), ends="<end>")
    path = write(tmp_path / "a.jsonl", [*ONE_WORD, "Yes, it is"])
    config = DataConfig([str(path)], 64, format="chat", cache_dir=str(tmp_path / "cache"))
    with caplog.at_level(logging.INFO):
        data, _ = config.build(student, [Tokenization(teacher)])
    assert (data.report.documents, data.report.without_chunks, data.report.left_out) == (21, 20, {})
    assert "learned by cross-entropy alone: 20 documents without chunks" in caplog.text
    said = []
    for i in range(len(data)):
        labels = data[i].student.labels[0]
        ends = labels == student.eos_id
        assert int((labels != IGNORED).sum()) >= int(ends.sum())
        said += student.decode_bytes(labels[labels != IGNORED].tolist()).decode().split()
    assert sorted(said) == sorted([*ONE_WORD, "Yes,", "it", "is"])
    report = prepare_part(config, student, [teacher])
    assert report.teachers[0].without_chunks == 20
    assert 0 < report.teachers[0].student_coverage < 1


BAD = {
    "tool calls": ({"role": "assistant", "content": "x", "tool_calls": [{"f": 1}]}, "a call {'f': 1}"),
    "a role": ({"role": "narrator", "content": "x"}, "role 'narrator'"),
    "an image": ({"role": "user", "content": [{"type": "image"}]}, "content of type image"),
    "no message": ("hello", "a str"),
    "two users in a row": ({"role": "user", "content": "and?"}, "roles must alternate"),
    "a system message": ({"role": "system", "content": "Be short."}, "roles must alternate"),
}


def conversations(bad):
    good = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "Yes"}]
    other = [{"role": "user", "content": "p"}, {"role": "assistant", "content": "No"}]
    return [good, [good[0], bad, good[1]], other]


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.parquet"])
def test_a_conversation_that_is_none_is_named_by_file_and_row_and_refused_or_counted(name, kind, tmp_path, caplog):
    message, found = BAD[kind]
    rows = [{"messages": m} for m in conversations(message)]
    path = tmp_path / name
    if name == "a.jsonl":
        path.write_text("\n".join(json.dumps(row) for row in rows))
    elif name == "a.json":
        path.write_text(json.dumps(rows))
    elif isinstance(message, str) or kind == "an image":
        pytest.skip("no table can hold it")
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)
    student, teacher = side("student", ["Yes"], STRICT), side("teacher", ["Yes", "No"], LINE)
    options = {"format": "chat", "cache_dir": str(tmp_path / "cache")}
    place = f"line 2 of {path}" if name == "a.jsonl" else f"row 1 of {path}"
    refusing, skipping = (DataConfig([str(path)], 64, on_error=on_error, **options) for on_error in ("refuse", "skip"))
    by_template = "alternate" in found  # no fault of the data: it is left out in either case
    if not by_template:
        with pytest.raises(InputError, match=found) as error:
            refusing.build(student, [Tokenization(teacher)])
        assert place in error.value.found
        assert "on_error=skip" in error.value.fix
    for config in (refusing, refusing) if by_template else (skipping,):  # the second time from the cache
        caplog.clear()
        with caplog.at_level(logging.INFO):
            data, _ = config.build(student, [Tokenization(teacher)])
        assert data.report.documents == 2
        assert ("1 documents that a chat template cannot render" if by_template else "1 refused") in caplog.text
        why = "1 conversations left out, as the student's template cannot render them: roles must alternate"
        assert (f"{why} ({place})" in caplog.text) == by_template
    report = prepare_part(skipping, student, [teacher])
    assert len(report.teachers[0].told) == by_template
    assert (report.teachers[0].refused, report.skipped) == ((1, {}) if by_template else (0, {"refused": 1}))
    good = tmp_path / "good.jsonl"
    good.write_text("\n".join(json.dumps(row) for row in (rows[0], rows[2])))
    alone, _ = DataConfig([str(good)], 64, **options).build(student, [Tokenization(teacher)])
    assert data[0].student.labels.tolist() == alone[0].student.labels.tolist()


def test_data_of_which_nothing_can_be_rendered_is_refused_with_the_reason_from_a_worker_process(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"messages": conversations(BAD["two users in a row"][0])[1]}))
    v = side("student", ["Yes"], STRICT)
    with pytest.raises(InputError, match=r"(?s)none of 1 .*roles must alternate \(line 1 of .*a\.jsonl\)"):
        prepare_pairs(path, v, [v], reading=Reading("chat"), workers=1, cache_dir=tmp_path, progress=False)


def test_what_is_not_read_is_told_in_training_and_by_prepare(tmp_path, caplog):
    write(tmp_path / "data.jsonl", ["Yes"])
    with (tmp_path / "data.jsonl").open("a") as file:
        file.write(json.dumps({"messages": [{"role": "user", "content": "nobody answers"}]}))
    (tmp_path / "notes.md").write_text("x")
    (tmp_path / ".data.jsonl").write_text("x")
    v = side("student", [" Yes"], BLANK)
    config = DataConfig([str(tmp_path)], 64, format="chat", cache_dir=str(tmp_path / ".cache"))
    with caplog.at_level(logging.INFO):
        config.build(v, [Tokenization(v)])
    for line in (
        f"not read: 1 of an unknown format ({tmp_path / 'notes.md'})",
        f"not read: 1 hidden ({tmp_path / '.data.jsonl'})",
        "rows that are no document: 1 without words of the assistant",
    ):
        assert line in caplog.text
    report = prepare_part(config, v, [v])
    assert report.skipped == {"without words of the assistant": 1}
    assert {reason: len(files) for reason, files in report.unread.items()} == {
        "hidden": 1,
        "in a hidden folder": 1,
        "of an unknown format": 1,
    }
    json.dumps(report.as_dict())
