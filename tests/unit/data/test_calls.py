"""Reasoning and calls of tools through two templates: what is a label, what a chunk, what is told."""

import json
import logging

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fakes import align_texts
from test_left_out import side

from nemo_xtoken.alignment.aligner import Aligner
from nemo_xtoken.data import DataConfig, Tokenization
from nemo_xtoken.data.conversation.chat import conversation_text, messages_of
from nemo_xtoken.data.conversation_counts import count_conversations
from nemo_xtoken.data.sources import Reading, resolve_sources
from nemo_xtoken.data.templates import ChatTemplate
from nemo_xtoken.data.turns import ConversationAligner
from nemo_xtoken.errors import InputError

HEAD = "{{ (tools | tojson) if tools }}{% for m in messages %}{{ m.role + '\n' }}"
TAIL = "{{ eos_token }}{% endfor %}{% if add_generation_prompt %}{{ 'assistant\n' }}{% endif %}"
THOUGHT = "{% if m.reasoning_content %}{{ '<think>' + m.reasoning_content + '</think>' }}{% endif %}{{ m.content }}"
#: Calls as Qwen3's, as Llama-3.1's, and as Qwen3.5's.
TAGGED = (
    '{% for c in m.tool_calls %}{{ \'<call>{"name": "\' + c.function.name + \'", "arguments": \' }}'
    "{{ c.function.arguments | tojson }}{{ '}</call>' }}{% endfor %}"
)
BARE = TAGGED.replace("<call>", "").replace("</call>", "").replace('"arguments"', '"parameters"')
XML = (
    "{% for c in m.tool_calls %}{{ '<f=' + c.function.name + '>' }}{% for k, v in c.function.arguments | items %}"
    "{{ '<p=' ~ k ~ '>\n' ~ v ~ '\n</p>' }}{% endfor %}{{ '</f>' }}{% endfor %}"
)
LATER = "{% if loop.last %}" + THOUGHT + "{% else %}{{ m.content }}{% endif %}"  # reasoning of the last turn alone
NO_TOOLS = "{% for m in messages %}{{ m.role + '\n' + m.content + eos_token }}{% endfor %}"


def call(**arguments):
    function = {"name": "weather", "arguments": arguments}
    return [{"type": "function", "id": "1", "function": function}]


TALK = [
    {"role": "user", "content": "q"},
    {"role": "assistant", "content": None, "tool_calls": call(city='Pa"ris', days=3)},
    {"role": "tool", "content": "7", "tool_call_id": "1"},
    {"role": "assistant", "content": "It is 7.", "reasoning_content": "7 then"},
]
TOOLS = [{"type": "function", "function": {"name": "weather"}}]


def aligned(student, teacher, talk=TALK, learn=("answers", "reasoning", "calls"), words=((), ())):
    sides = side("student", list(words[0]), student), side("teacher", list(words[1]), teacher)
    align = ConversationAligner(*(ChatTemplate(v, learn=learn) for v in sides), Aligner(*sides))
    (found,) = align_texts(align, [conversation_text(talk, "here", TOOLS)])
    chunks = []
    for c in found.chunks.tolist():
        texts = [
            "".join(v.display(int(i)) for i in ids[c[at] : c[at + 1]])
            for v, ids, at in ((sides[0], found.student_ids, 0), (sides[1], found.teacher_ids, 2))
        ]
        assert texts[0] == texts[1]
        chunks.append(texts[0])
    labels = ["".join(v.display(int(i)) for i in ids[ids >= 0]) for v, ids in zip(sides, found[1:3], strict=True)]
    return "".join(chunks), labels


SAME = '<call>{"name": "weather", "arguments": {"city": "Pa\\"ris", "days": 3}}</call><eos>'
ENDS = "<think>7 then</think>It is 7.<eos>"


def test_one_form_is_one_text():
    both, labels = aligned(HEAD + THOUGHT + TAGGED + TAIL, HEAD + THOUGHT + TAGGED + TAIL)
    assert both == SAME + ENDS
    assert labels == [SAME + ENDS] * 2


@pytest.mark.parametrize(
    ("student", "teacher", "compared"),
    [
        # the name; what ends it on both sides; from the arguments on, whose name is the template's; not how a call
        # begins, which one of the two decides by its first bracket, nor its end, which one of the two decides later
        (TAGGED, BARE, 'weather", "": {"city": "Pa\\"ris", "days": 3}}'),
        # what both models choose: the name, the names of arguments and their values, of which a quote is spelled
        # otherwise
        (TAGGED, XML, "weathercityParisdays3><eos>"),
        (XML, BARE, "weathercityParisdays3<eos>"),
    ],
)
def test_two_forms_have_what_both_models_choose_in_common(student, teacher, compared):
    both, labels = aligned(HEAD + THOUGHT + student + TAIL, HEAD + THOUGHT + teacher + TAIL)
    assert both == compared + ENDS
    assert labels[0].endswith(ENDS)
    assert "Pa" in labels[0].removesuffix(ENDS)


def test_a_token_over_the_edge_of_a_value_is_no_chunk():
    words = [' "Pa', "ris\\n<"], []
    talk = [TALK[0], {"role": "assistant", "content": "", "tool_calls": call(city="Paris")}]
    both, _ = aligned(HEAD + TAGGED + TAIL, HEAD + XML + TAIL, talk, words=words)
    assert both == "weathercityris><eos>"


@pytest.mark.parametrize(
    ("learn", "learned"),
    [
        (["answers"], "</think>It is 7.<eos>"),
        (["reasoning"], "<think>7 then</think>"),
        (["calls"], SAME),
        (["reasoning", "calls"], SAME + "<think>7 then</think>"),
    ],
)
def test_the_choice_of_what_is_learned(learn, learned):
    template = HEAD + THOUGHT + TAGGED + TAIL
    both, labels = aligned(template, template, learn=learn)
    assert labels == [learned] * 2
    assert both == learned


def test_a_template_is_asked_in_its_own_form():
    as_json = TAGGED.replace("| tojson ", "+ ''")  # as DeepSeek's: it joins texts
    talk = [TALK[0], {"role": "assistant", "content": "", "tool_calls": call(city="Par\\nis", days=None)}]
    both, _ = aligned(HEAD + TAGGED + TAIL, HEAD + as_json + TAIL, talk)
    assert both == SAME.replace('Pa\\"ris", "days": 3', 'Par\\\\nis", "days": null')


def test_what_templates_leave_out_is_told_and_refuses_no_data(tmp_path, caplog, capsys):
    thoughts = [{**m, "reasoning_content": "so"} if m["role"] == "assistant" else m for m in TALK[::3] * 2]
    rows = [{"messages": TALK, "tools": TOOLS}, {"messages": thoughts}, {"messages": TALK[::3]}]
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    student, teacher = side("student", ["So"], NO_TOOLS), side("teacher", ["It"], HEAD + LATER + TAGGED + TAIL)
    config = DataConfig([str(path)], 256, format="chat", cache_dir=str(tmp_path / "cache"))
    for _ in range(2):  # the second time from the cache
        caplog.clear()
        with caplog.at_level(logging.INFO):
            data, _ = config.build(student, [Tokenization(teacher)])
        assert (data.report.documents, data.report.left_out) == (2, {"that a chat template cannot render": 1})
        for line in (
            "1 conversations left out, as the student's template cannot render them: it leaves out calls of tools "
            f"(line 1 of {path})",
            "2 conversations without reasoning, which the student's template does not write (all or some) (line 2 of",
            "1 conversations without reasoning, which the teacher's template does not write (all or some) (line 2 of",
        ):
            assert line in caplog.text
    said = [data[i].student.labels[data[i].student.labels >= 0].tolist() for i in range(len(data))]
    assert b"so" not in b"".join(student.decode_bytes(ids) for ids in said)


def test_tools_and_arguments_of_a_table_and_of_json(tmp_path):
    """A table gives each call the arguments of all; those that a call lacks are null there."""
    rows = [{"messages": TALK, "tools": TOOLS}, {"messages": [TALK[0], {**TALK[1], "tool_calls": call(town="b")}]}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    (tmp_path / "a.jsonl").write_text(
        "\n".join(json.dumps(row | {"tools": json.dumps(row.get("tools", []))}) for row in rows)
    )
    found = [
        [messages_of(text) for text in resolve_sources(tmp_path / name, Reading("chat"))[0].texts()]
        for name in ("a.parquet", "a.jsonl")
    ]
    assert found[0] == found[1]
    assert [c.tools for c in found[0]] == [c.tools for c in found[1]] == [TOOLS, []]
    assert [m.calls[0].arguments for c in found[0] for m in c if m.calls] == [
        {"city": 'Pa"ris', "days": 3},
        {"town": "b"},
    ]
    with pytest.raises(InputError, match="no column 'functions'"):
        list(resolve_sources(tmp_path / "a.parquet", Reading("chat", tools_key="functions"))[0].texts())


def test_settings_of_what_is_learned(tmp_path):
    for learn in ("", "answers,", "answer", "answers,answers"):
        with pytest.raises(InputError, match="learn="):
            Reading("chat", learn=learn)
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(InputError, match="learn=answers for data"):
        DataConfig([str(tmp_path / "a.txt")], learn="answers").check()


def test_an_audit_counts_conversations(tmp_path):
    rows = [{"messages": TALK, "tools": TOOLS}, {"messages": TALK[::3]}, {"messages": 3}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    sides = side("student", [], HEAD + THOUGHT + XML + TAIL), side("teacher", [], NO_TOOLS)
    found = count_conversations([str(tmp_path / "a.jsonl")], *sides, Reading("chat", on_error="skip"))
    assert (found.conversations, found.left_out) == (2, 1)
    assert (found.labels, found.compared) == (len("<think>7 then</think>It is 7.") + 1, len("It is 7.") + 1)
    why = "1 left out, as the teacher's template cannot render them: it leaves out calls of tools"
    assert f"{why} (line 1 of {tmp_path}" in str(found)
    assert "rows that are no document: 1 refused" in str(found)
    base = side("student", [], None)
    with pytest.raises(InputError, match="set chat_template"):
        count_conversations([str(tmp_path / "a.jsonl")], base, sides[1], Reading("chat", on_error="skip"))
    (tmp_path / "template.jinja").write_text(HEAD + THOUGHT + XML + TAIL)
    given = count_conversations(
        [str(tmp_path / "a.jsonl")], base, sides[1], Reading("chat", on_error="skip"),
        template=(tmp_path / "template.jinja").read_text(),
    )  # fmt: skip
    assert given == found
