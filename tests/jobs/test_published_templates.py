"""Chat templates that others publish: transformers' ids, and labels within what their own marks call the assistant's.

They are read from an installed ``trl`` (Apache-2.0), whose ``*_training.jinja`` mark what the assistant says, or from
``$XTOKEN_ASSETS/chat_templates``.  Nothing of them is in this repository.
"""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from made_conversations import TOOLS, conversations, with_calls
from real_tokenizers import ASSETS, real

from nemo_xtoken.data.conversation.chat import Call, Conversation, Message
from nemo_xtoken.data.templates import ChatTemplate
from nemo_xtoken.errors import InputError

#: Beginning of a template's name -> tokenizer; the others are tried with Qwen3's, for which their markers are text.
TOKENIZERS = {
    "llama3": "llama3", "gemma": "gemma3", "diffusion_gemma": "gemma3", "phi3": "phi4mini",
    "deepseek": "deepseek_v3", "gptoss": "gptoss", "cohere": "llama2", "lfm2": "smollm2",
}  # fmt: skip
PICTURES = ("llava_next", "idefics3", "smolvlm")  # these write only content that is given in parts
BLANKS = b" \t\n"


def found_templates():
    spec = importlib.util.find_spec("trl")
    folders = [Path(place) for place in (spec.submodule_search_locations or [] if spec else [])] + [ASSETS]
    files = {f.stem: f for folder in reversed(folders) for f in (folder / "chat_templates").glob("*.jinja")}
    return {name: file for name, file in sorted(files.items()) if not name.startswith(PICTURES)}


TEMPLATES = found_templates()
TALK = [
    Message("user", "What is 2 + 3?"), Message("assistant", "It is 5 (five)."), Message("user", "今天?"),
    Message("assistant", "Yes, été ¡"),
]  # fmt: skip


@pytest.fixture(scope="module")
def sides():
    from transformers import PreTrainedTokenizerFast

    found = {}

    def side(name):
        if name not in found:
            ours, folder = real(name), ASSETS / "tokenizers" / name
            eos = json.loads((folder / "tokenizer_config.json").read_text())["eos_token"]
            eos = eos["content"] if isinstance(eos, dict) else eos
            theirs = PreTrainedTokenizerFast.from_pretrained(folder, trust_remote_code=False, eos_token=eos)
            found[name] = ours, theirs
        return found[name]

    return side


@pytest.mark.skipif(not TEMPLATES, reason=f"neither trl nor {ASSETS}/chat_templates")
@pytest.mark.parametrize("name", TEMPLATES or ["none"])
def test_ids_and_labels(name, sides):
    source = TEMPLATES[name].read_text()
    ours, theirs = sides(next((t for start, t in TOKENIZERS.items() if name.startswith(start)), "qwen3"))
    rendering, marked, dated = ChatTemplate(ours, source), "generation %}" in source, "strftime_now" in source

    @settings(max_examples=4, deadline=None)
    @example(TALK)
    @given(conversations())
    def check(conversation):
        if any(text in m.text for m in conversation for text in ours.special_texts.values()):
            return  # transformers makes special tokens of them
        dicts = [{"role": m.role, "content": m.text} for m in conversation]
        try:
            (found,) = rendering([conversation])
        except InputError as error:
            assert conversation is not TALK
            if "refuses" in error.found:
                with pytest.raises(Exception, match=r"\S"):
                    theirs.apply_chat_template(dicts, chat_template=source, tokenize=False)
            return
        wanted = theirs.apply_chat_template(
            dicts, chat_template=source, return_dict=True, return_assistant_tokens_mask=marked
        )
        if dated:  # ours is rendered at a fixed date
            assert found.ids.tolist() == theirs.encode(rendering.render(conversation), add_special_tokens=False)
        else:
            assert found.ids.tolist() == wanted["input_ids"]
        assert sorted(found.turns) == [i for i, m in enumerate(conversation) if m.role == "assistant"]
        for number, (start, end) in found.turns.items():
            assert conversation[number].text in ours.decode_bytes(found.ids[start:end]).decode("utf-8", "replace")
        if marked and not dated:
            check_marks(ours, found, np.array(wanted["assistant_masks"]))

    check()


def check_marks(side, found, mask):
    """What is a label is marked; what is marked and none is template's text in front, or blanks behind."""
    for start, end in found.turns.values():
        for i in range(start, end):  # of the last character transformers marks the first token alone
            assert mask[i] or (side.token_bytes[int(found.ids[i])] or b"a")[0] & 0xC0 == 0x80
        behind = end
        while behind < len(mask) and mask[behind]:
            behind += 1
        assert not side.decode_bytes(found.ids[end:behind]).strip(BLANKS)


CALLED = Conversation(
    [
        Message("user", "Weather in Paris?"),
        Message("assistant", "", 'He asks.\nI "call".', (Call("weather", {"city": 'Paris "x"', "days": 3}),)),
        Message("tool", '{"t": 7}', name="weather"),
        Message("assistant", "It is 7 degrees.", "7 it is."),
    ],
    TOOLS,
)
THINKING = Conversation([Message("user", "2 + 3?"), Message("assistant", "<think>\nA sum.\n</think>\n\nIt is 5.")])
#: What their authors say: these know no tools.
KNOW_NO_CALLS = (
    *(
        "cohere",
        "gemma.",
        "gemma3.",
        "gemma_",
        "gemma3_",
        "lfm2.",
        "lfm2_training",
        "llama3.",
        "llama3_training",
        "phi3",
    ),
    *("qwen2_5_vl", "deepseek_r1", "lfm2_v2"),
)


@pytest.mark.skipif(not TEMPLATES, reason=f"neither trl nor {ASSETS}/chat_templates")
@pytest.mark.parametrize("name", [name for name in TEMPLATES if not name.endswith("_training")] or ["none"])
def test_reasoning_and_calls(name, sides):
    """Transformers' ids; what is labelled is what the template writes of the parts; what it leaves out is told."""
    source = TEMPLATES[name].read_text()
    ours, theirs = sides(next((t for start, t in TOKENIZERS.items() if name.startswith(start)), "qwen3"))
    rendering = ChatTemplate(ours, source)

    @settings(max_examples=4, deadline=None)
    @example(CALLED)
    @example(THINKING)
    @given(with_calls())
    def check(conversation):
        texts = [text for m in conversation for text in (m.text, m.reasoning, *(c.name for c in m.calls))]
        if any(special in text for text in texts for special in ours.special_texts.values()):
            return
        found = rendering.attempt([conversation])[0]
        if isinstance(found, InputError):
            if conversation is CALLED:
                assert f"{name}.".startswith(KNOW_NO_CALLS), found
            assert conversation is not THINKING, found
            return
        for arguments in (lambda call: call.arguments, lambda call: json.dumps(call.arguments, ensure_ascii=False)):
            dicts = [as_a_row(message, arguments) for message in conversation]
            options = {"chat_template": source, "tools": conversation.tools or None}
            try:
                wanted = theirs.apply_chat_template(dicts, **options)
                break
            except TypeError:  # arguments as JSON
                assert name.startswith("deepseek")
        if "strftime_now" in source:  # ours is rendered at a fixed date
            wanted = theirs.encode(rendering.render(conversation), add_special_tokens=False)
        assert found.ids.tolist() == wanted
        for number, (start, end) in found.turns.items():
            message, said = conversation[number], ours.decode_bytes(found.ids[start:end]).decode("utf-8", "replace")
            for call in message.calls:
                assert call.name in said
                assert all(key in said for key in call.arguments)
            answer = message.text.rpartition("</think>")[2].strip()
            if not found.left_out:
                assert answer in said
                assert message.reasoning.strip() in said

    check()


def as_a_row(message, arguments):
    row = {"role": message.role, "content": message.text}
    if message.reasoning:
        row |= {"reasoning_content": message.reasoning, "thinking": message.reasoning}
    if message.calls:
        row["tool_calls"] = [
            {"type": "function", "function": {"name": call.name, "arguments": arguments(call)}}
            for call in message.calls
        ]
    return row | ({"name": message.name} if message.name else {})
