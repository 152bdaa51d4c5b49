"""Conversations against transformers' own rendering and masks, and against byte offsets counted one by one."""

import itertools
import json
import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from fakes import align_texts
from real_tokenizers import ASSETS, real
from tokenizer_zoo import write_folder

from nemo_xtoken.alignment.aligner import Aligner
from nemo_xtoken.data import DataConfig, Tokenization, prepare_pairs
from nemo_xtoken.data.batch import IGNORED
from nemo_xtoken.data.conversation.chat import Message, conversation_text, messages_of
from nemo_xtoken.data.sources import Reading, resolve_sources
from nemo_xtoken.data.templates import ChatTemplate
from nemo_xtoken.data.turns import ConversationAligner
from nemo_xtoken.errors import InputError
from nemo_xtoken.vocab import load_vocabulary

# {% generation %} tells transformers what the assistant says; we have to find it ourselves.
HEADERS = (
    "{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' }}"
    "{% if m.role == 'assistant' %}{% generation %}{{ m.content | trim + '<|eot_id|>' }}{% endgeneration %}"
    "{% else %}{{ m.content | trim + '<|eot_id|>' }}{% endif %}{% endfor %}"
)
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
    "{% if m.role == 'assistant' %}{% generation %}{{ m.content + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ m.content + '<|im_end|>' }}{% endif %}{{ '\n' }}{% endfor %}"
)
INST = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'assistant' %}"
    "{% generation %}{{ m.content + eos_token }}{% endgeneration %}"
    "{% else %}{{ '[INST] ' + m.content + ' [/INST]\n' }}{% endif %}{% endfor %}"
)
TEMPLATES = {"llama": HEADERS, "qwen": CHATML, "sp_bpe": INST}

CONVERSATIONS = [
    [("user", "Hi"), ("assistant", "Hello, 1987!")],
    [
        ("system", "Be short."),
        ("user", "2 + 3?"),
        ("assistant", "5"),
        ("user", "Fluß? 今天\n"),
        ("assistant", "été. 你好 🙂"),
    ],
    [
        ("user", "def f():"),
        ("assistant", "def f():\n    return 42\n\n\nnaïve"),
        ("user", "user"),
        ("assistant", "assistant"),
    ],
    [("assistant", "The quick brown fox 123"), ("user", "jumps over")],
]


def messages(conversation):
    return messages_of(conversation_text([{"role": r, "content": c} for r, c in conversation], "here"))


def as_dicts(conversation):
    return [{"role": m.role, "content": m.text} for m in messages(conversation)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("tokenizers")
    for name, template in TEMPLATES.items():
        write_folder(name, root / name)
        (root / name / "chat_template.jinja").write_text(template)
    return root


def hugging_face(folder):
    from transformers import PreTrainedTokenizerFast

    eos = json.loads((folder / "tokenizer_config.json").read_text())["eos_token"]
    eos = eos["content"] if isinstance(eos, dict) else eos
    return PreTrainedTokenizerFast.from_pretrained(folder, trust_remote_code=False, eos_token=eos)


@pytest.mark.parametrize("name", TEMPLATES)
def test_ids_and_turns_are_those_of_transformers(folders, name):
    theirs, ours = hugging_face(folders / name), ChatTemplate(load_vocabulary(folders / name))
    found = ours([messages(c) for c in CONVERSATIONS])
    assert all(
        len(one.turns) == sum(r == "assistant" for r, _ in c) for one, c in zip(found, CONVERSATIONS, strict=True)
    )
    for one, conversation in zip(found, CONVERSATIONS, strict=True):
        wanted = theirs.apply_chat_template(
            as_dicts(conversation), tokenize=True, return_dict=True, return_assistant_tokens_mask=True
        )
        assert one.ids.tolist() == wanted["input_ids"]
        mask = np.zeros(len(one.ids), int)
        for start, end in one.turns.values():
            mask[start:end] = 1
        assert mask.tolist() == wanted["assistant_masks"]
        assert ours.render(messages(conversation)) == theirs.apply_chat_template(as_dicts(conversation), tokenize=False)


EVERY_TURN_BY_TWO = (  # a turn ends with two special tokens
    "{% for m in messages %}{{ '<|im_start|>' + m.role + ' ' + m.content }}"
    "{% if m.role == 'assistant' %}{{ '<|endoftext|><|im_end|>' }}{% endif %}{% endfor %}"
)
QUESTION_ENDS = "{% for m in messages %}{% if m.role == 'user' %}{{ 'Human: ' + m.content + '<|im_end|>' }}" + (
    "{% else %}{{ 'Bot: ' + m.content + '\n\n' }}{% endif %}{% endfor %}"
)
OTHER_AT_THE_END = (  # as gpt-oss ends turns: the last of a conversation by another token
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content }}"
    "{{ '<|endoftext|>' if loop.last and m.role == 'assistant' else '<|im_end|>' }}{% endfor %}"
)
ONLY_AT_THE_END = (
    "{% for m in messages %}{{ m.role + ': ' + m.content }}{% if loop.last %}{{ eos_token }}{% else %}{{ '\n' }}"
    "{% endif %}{% endfor %}"
)
TALK = [("user", "2 + 3?"), ("assistant", "5"), ("user", "next question"), ("assistant", "an answer")]


@pytest.mark.parametrize(
    ("template", "learned"),
    [
        (EVERY_TURN_BY_TWO, ["5<|endoftext|><|im_end|>", "an answer<|endoftext|><|im_end|>"]),
        (QUESTION_ENDS, ["5\n\n", "an answer\n\n"]),
        (OTHER_AT_THE_END, ["5<|im_end|>", "an answer<|endoftext|>"]),
        (ONLY_AT_THE_END, ["5", "an answer<|im_end|>"]),
        (CHATML, ["5<|im_end|>", "an answer<|im_end|>"]),
        ("{% for m in messages %}{{ '[' + m.content + ']' }}{% endfor %}", ["5]", "an answer]"]),
        (
            "{% for m in messages %}{{ m.content + '<|im_start|>' }}{% endfor %}",
            ["5<|im_start|>", "an answer<|im_start|>"],
        ),
        ("{% for m in messages %}{{ '<|im_start|>' + m.content }}{% endfor %}", ["5", "an answer"]),
    ],
)
def test_a_turn_ends_with_what_the_template_writes_to_end_it(folders, template, learned):
    side = load_vocabulary(folders / "qwen")
    (found,) = ChatTemplate(side, template)([messages(TALK)])
    said = []
    for start, end in found.turns.values():
        ids = found.ids[start:end].tolist()
        said.append("".join(side.special_texts.get(i) or side.decode_bytes([i]).decode() for i in ids))
    assert [text.lstrip(" ") for text in said] == learned  # a word may have the blank before it in its first token


@pytest.mark.parametrize("where", ["tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize(("left", "right"), [(False, True), (True, False), (True, True)])
def test_special_tokens_that_take_blanks_along(where, left, right, folders, tmp_path):
    """As Phi-3's markers: the line break that the template writes behind one is no token."""
    folder = write_folder("qwen", tmp_path / "q")
    flags = {"lstrip": left, "rstrip": right}
    spec = json.loads((folder / "tokenizer.json").read_text())
    config = json.loads((folder / "tokenizer_config.json").read_text())
    if where == "tokenizer.json":
        spec["added_tokens"] = [t | flags for t in spec["added_tokens"]]
        (folder / "tokenizer.json").write_text(json.dumps(spec))
    else:
        added = {str(t["id"]): {k: v for k, v in t.items() if k != "id"} | flags for t in spec["added_tokens"]}
        (folder / "tokenizer_config.json").write_text(json.dumps(config | {"added_tokens_decoder": added}))
    (folder / "chat_template.jinja").write_text(CHATML.replace("m.content +", "' ' + m.content + ' ' +"))
    theirs, ours = hugging_face(folder), ChatTemplate(load_vocabulary(folder))
    plain = ChatTemplate(load_vocabulary(folders / "qwen"), ours.source)
    assert ours.digest != plain.digest
    for conversation in CONVERSATIONS:
        (found,) = ours([messages(conversation)])
        assert found.ids.tolist() == theirs.apply_chat_template(as_dicts(conversation))
        assert len(found.ids) < len(plain([messages(conversation)])[0].ids)
        for number, (start, end) in found.turns.items():
            said = ours.vocabulary.decode_bytes(found.ids[start:end]).decode()
            assert said.strip(" ") == messages(conversation)[number].text


def slow_chunks(sides, renderings):
    """For tokenizers that keep the bytes: the finest common partition of each turn, place by place."""
    out = []
    for turn in sorted(renderings[0].turns):
        ends = []
        for side, rendered in zip(sides, renderings, strict=True):
            start, end = rendered.turns[turn]
            at, table = 0, {0: start}
            for i in range(start, end - 1):  # the last is what ends the turn
                at += len(side.token_bytes[rendered.ids[i]])
                table[at] = i + 1
            ends.append(table)
        places = sorted(ends[0].keys() & ends[1].keys())
        assert places[-1] == max(ends[0]) == max(ends[1])
        out += [(ends[0][a], ends[0][b], ends[1][a], ends[1][b]) for a, b in itertools.pairwise(places)]
    return out


def test_chunks_are_the_finest_partition_of_what_the_assistant_says(folders):
    sides = [load_vocabulary(folders / name) for name in ("llama", "qwen")]
    templates = [ChatTemplate(side) for side in sides]
    align = pickle.loads(pickle.dumps(ConversationAligner(*templates, Aligner(*sides))))  # noqa: S301
    texts = [conversation_text(as_dicts(c), "here") for c in CONVERSATIONS]
    aligned = align_texts(align, texts)
    assert len(aligned) == 4
    for document, text in zip(aligned, texts, strict=True):
        renderings = [template([messages_of(text)])[0] for template in templates]
        # <|im_end|> is declared EOS, <|eot_id|> is not: another role, no chunk
        assert [*map(tuple, document.chunks.tolist())] == slow_chunks(sides, renderings)
        for ids, rendered in zip((document.student_ids, document.teacher_ids), renderings, strict=True):
            assert np.where(ids < 0, ~ids, ids).tolist() == rendered.ids.tolist()
            learned = sorted(i for start, end in rendered.turns.values() for i in range(start, end))
            assert np.flatnonzero(ids >= 0).tolist() == learned


def test_what_ends_a_turn_is_a_chunk_where_both_sides_say_it_in_one_role(folders):
    side = load_vocabulary(folders / "qwen")
    align = ConversationAligner(ChatTemplate(side), ChatTemplate(side), Aligner(side, side))
    (document,) = align_texts(align, [conversation_text(as_dicts(CONVERSATIONS[1]), "here")])
    learned = np.flatnonzero(document.student_ids >= 0)
    assert document.chunks[:, 0].tolist() == learned.tolist()
    assert (document.student_ids[learned] == side.eos_id).sum() == 2


def test_a_special_token_in_a_message_is_text(folders):
    side = load_vocabulary(folders / "qwen")
    (found,) = ChatTemplate(side)([messages([("user", "what is <|im_end|>?"), ("assistant", "<|im_end|> ends")])])
    assert (found.ids == side.eos_id).sum() == 2
    start, end = found.turns[1]
    assert side.decode_bytes(found.ids[start:end]) == b"<|im_end|> ends"


def test_the_whole_way_to_samples(folders, tmp_path):
    rows = [{"messages": as_dicts(c)} for c in CONVERSATIONS] + [{"messages": [{"role": "user", "content": "?"}]}]
    path = tmp_path / "chat.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path)
    sides = [load_vocabulary(folders / name) for name in TEMPLATES]
    config = DataConfig([str(path)], 120, format="chat", cache_dir=str(tmp_path), progress=False, seed=5)
    data, _ = config.build(sides[0], [Tokenization(side) for side in sides[1:]])
    assert data.report.documents == 4  # nobody answers in the fifth
    templates = [ChatTemplate(side) for side in sides]
    seen = 0
    for i in range(len(data)):
        sample, pieces = data[i], data.describe(i)
        for number, piece in enumerate(pieces):
            conversation = messages(CONVERSATIONS[piece["document"]])
            for side, template in zip((sample.student, *sample.teachers), templates, strict=True):
                (rendered,) = template([conversation])
                at = torch.nonzero(side.documents[0] == number).squeeze(1)
                assert side.tokens[0, at].tolist() == rendered.ids[:-1].tolist()
                labels = np.full(len(rendered.ids), IGNORED)
                for start, end in rendered.turns.values():
                    labels[start:end] = rendered.ids[start:end]
                assert side.labels[0, at].tolist() == labels[1:].tolist()
            seen += 1
        for side in sample.teachers:
            for _, first, count, teacher_first, teacher_count in side.chunks.tolist():
                assert (sample.student.labels[0, first : first + count] != IGNORED).all()
                assert (side.labels[0, teacher_first : teacher_first + teacher_count] != IGNORED).all()
    assert seen == 4
    assert DataConfig([str(path)], 120, cache_dir=str(tmp_path)).reading != config.reading


def test_a_conversation_is_not_cut_where_a_sample_can_hold_it(folders, tmp_path):
    path = tmp_path / "chat.jsonl"
    path.write_text("".join(json.dumps({"conversations": [*as_dicts(c)]}) + "\n" for c in CONVERSATIONS * 5))
    student, teacher = load_vocabulary(folders / "llama"), load_vocabulary(folders / "qwen")
    config = DataConfig(
        [str(path)], 60, 40, format="chat", messages_key="conversations", cache_dir=str(tmp_path), progress=False
    )
    data, _ = config.build(student, [Tokenization(teacher)])
    (prepared,) = data.prepared
    for row in data._pieces.table.tolist():
        assert row[1] == 0  # no continuation
        assert row[3] == 0
        n, t = prepared.student_lengths[row[0]], prepared.teacher_lengths[row[0]]
        assert row[2] == n or n - 1 > 60 or t - 1 > 40
        assert row[2] - 1 <= 60
        assert row[4] - 1 <= 40
    kept = sum(len(data[i].teachers[0].chunks) for i in range(len(data)))
    assert kept == data.report.teachers[0].scored_chunks
    assert kept + data.report.teachers[0].skipped_chunks == prepared.scored.sum()
    assert data.report.teachers[0].skipped_chunks > 0


def test_another_template_is_another_cache(folders, tmp_path):
    path = tmp_path / "chat.jsonl"
    path.write_text(json.dumps({"messages": as_dicts(CONVERSATIONS[0])}))
    side = load_vocabulary(folders / "qwen")
    options = {"reading": Reading("chat"), "cache_dir": tmp_path, "progress": False}
    first, second = (prepare_pairs(path, side, [side], chat_template=t, **options)[0] for t in (None, CHATML + " "))
    assert first.pair_digest != second.pair_digest
    assert first.digest != second.digest


@pytest.mark.parametrize("name", ["llama3", "qwen3", "smollm2"])
def test_real_templates(name):
    side = real(name)
    if side.chat_template is None:
        pytest.skip(f"no chat template in {ASSETS}/tokenizers/{name}")
    theirs, ours = hugging_face(ASSETS / "tokenizers" / name), ChatTemplate(side)
    for conversation in CONVERSATIONS[:3]:
        (found,) = ours([messages(conversation)])
        assert found.ids.tolist() == theirs.apply_chat_template(as_dicts(conversation))
        said = [m.text for m in messages(conversation) if m.role == "assistant"]
        for text, (start, end) in zip(said, found.turns.values(), strict=True):
            assert side.decode_bytes(found.ids[start:end]).decode() == text
            assert found.ids[end - 1] in side.roles
            generated = ours.render(messages(conversation)).split(text)[0]
            assert generated  # the prompt


def test_real_llama_and_qwen_align():
    student, teacher = real("llama3"), real("qwen3")
    if student.chat_template is None or teacher.chat_template is None:
        pytest.skip(f"no chat templates in {ASSETS}/tokenizers")
    align = ConversationAligner(ChatTemplate(student), ChatTemplate(teacher), Aligner(student, teacher))
    for conversation in CONVERSATIONS[:3]:
        (document,) = align_texts(align, [conversation_text(as_dicts(conversation), "here")])
        said = "".join(m.text for m in messages(conversation) if m.role == "assistant")
        chunks = document.chunks.tolist()
        for side, ids, (start, end) in (
            (student, document.student_ids, (0, 1)),
            (teacher, document.teacher_ids, (2, 3)),
        ):
            aligned = b"".join(side.decode_bytes(ids[c[start] : c[end]]) for c in chunks)
            assert aligned.decode() == said


def test_forms_of_messages():
    plain = conversation_text([{"role": "user", "content": " a "}, {"role": "assistant", "content": "b\n"}], "p")
    assert messages_of(plain) == [Message("user", "a"), Message("assistant", "b")]
    for other in (
        [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b", "weight": None}],
        [{"from": "human", "value": "a", "id": 7}, {"from": "gpt", "value": "b", "weight": 1, "thinking": ""}],
        [
            {"role": "user", "content": [{"type": "text", "text": "a"}]},
            {"role": "model", "content": "b", "tool_calls": None},
        ],
    ):
        assert conversation_text(other, "p") == plain
    assert conversation_text(None, "p") == conversation_text([], "p") == ""
    assert conversation_text([{"role": "assistant", "content": " "}], "p") == ""


@pytest.mark.parametrize(
    ("value", "error"),
    [
        ("text", "a str"),
        ([["user", "a"]], "message 1 of p: a list"),
        ([{"role": "alien", "content": "a"}], "role 'alien'"),
        ([{"role": "user", "text": "a"}], "keys role, text"),
        ([{"role": "user", "content": 3}], "content of type int"),
        ([{"role": "user", "content": [{"type": "image"}]}], "content of type image"),
        ([{"role": "assistant", "content": "", "tool_calls": [{"name": "f"}]}], "message 1 of p: a call .*'name': 'f'"),
        ([{"role": "assistant", "tool_calls": [{"name": "f", "arguments": "{"}]}], "a call"),
        ([{"role": "assistant", "tool_calls": [{"name": "f", "arguments": [1]}]}], "a call"),
        ([{"role": "assistant", "content": "a", "thinking": "b", "reasoning": "c"}], "two different reasonings"),
        ([{"role": "user", "content": "a", "reasoning_content": "why"}], "reasoning_content='why'"),
        ([{"role": "user", "content": "7", "tool_call_id": "x"}], "tool_call_id='x'"),
        ([{"role": "assistant", "content": "a", "thinking": ["x"]}], "thinking="),
        ([{"role": "user", "content": "a", "name": "Ann"}], "name='Ann'"),
        ([{"role": "assistant", "content": "a", "weight": 0}], "weight=0"),
        ([{"role": "assistant", "content": "a", "refusal": "no"}], "refusal='no'"),
        ([{"from": "gpt", "value": "b", "thought": ["x"]}], "thought="),
        ([{"role": "assistant", "content": "\ud800"}], "surrogate"),
    ],
)
def test_messages_that_are_none(value, error):
    with pytest.raises(InputError, match=error):
        conversation_text(value, "p")


def test_templates_that_do_not_work(folders):
    side, turns = load_vocabulary(folders / "qwen"), messages(CONVERSATIONS[1])
    for source, error in (
        ("{% if", "not a Jinja template"),
        ("{{ raise_exception('no system role') }}", "refuses the conversation 'system: Be short.*no system role"),
        ("{% for m in messages %}{{ m.content.upper() }}{% endfor %}", "changes the messages"),
        ("{{ messages[0].__class__.__mro__ }}", "refuses"),
    ):
        with pytest.raises(InputError, match=error):
            ChatTemplate(side, source)([turns])
    with pytest.raises(InputError, match="has no chat template"):
        ChatTemplate(load_vocabulary(write_folder("llama", folders / "none")))


def test_settings_that_do_not_work(folders, tmp_path):
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "a.jsonl").write_text('{"messages": [{"role": "user", "content": "nobody answers"}]}')
    pq.write_table(pa.table({"messages": ["a"]}), tmp_path / "a.parquet")
    side = load_vocabulary(folders / "qwen")
    for name, options, error in (
        ("a.txt", {}, "has no columns"),
        ("a.jsonl", {}, "no document with any text"),
        ("a.jsonl", {"messages_key": "chat"}, "(?s)no column 'chat'.*there are: messages"),
        ("a.parquet", {}, "is string"),
        ("a.jsonl", {"format": "html"}, "format='html'"),
        ("a.jsonl", {"chat_template": "none.jinja"}, "none.jinja cannot be read"),
        ("a.txt", {"format": "text", "chat_template": "a.txt"}, "for text"),
    ):
        config = DataConfig([str(tmp_path / name)], **({"format": "chat"} | options), progress=False)
        with pytest.raises(InputError, match=error):
            config.build(side, [Tokenization(side)])
    assert not resolve_sources(tmp_path / "a.jsonl", Reading("chat"))[0].reading.column.text(None, "")


def test_templates_are_found_where_tokenizers_keep_them(folders, tmp_path):
    folder = write_folder("qwen", tmp_path / "q")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    assert load_vocabulary(folder).chat_template is None
    several = [{"name": "rag", "template": "r"}, {"name": "default", "template": "d"}]
    for value, found in (("t", "t"), (several, "d")):
        (folder / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": value}))
        assert load_vocabulary(folder).chat_template == found
    digest = load_vocabulary(folder).digest
    (folder / "chat_template.jinja").write_text("j")
    assert load_vocabulary(folder).chat_template == "j"
    assert load_vocabulary(folder).digest == digest
    assert load_vocabulary(hugging_face(folder)).chat_template == "j"
