"""Templates of every form that models are published with, any conversation: transformers' ids and assistant masks."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from made_conversations import conversations
from real_tokenizers import ASSETS
from tokenizer_zoo import write_folder

from nemo_xtoken.data.templates import ChatTemplate
from nemo_xtoken.vocab import load_vocabulary


def each(user, assistant, system="{{ m.content }}\n\n", before=""):
    """A template by what it writes for a message of each role; ``[..]`` is what the assistant says."""
    assistant = assistant.replace("[", "{% generation %}").replace("]", "{% endgeneration %}")
    return (
        f"{before}{{% for m in messages %}}{{% if m.role == 'system' %}}{system}{{% elif m.role == 'user' %}}{user}"
        f"{{% else %}}{assistant}{{% endif %}}{{% endfor %}}"
    ).replace("@", "{{ m.content }}")


#: Form -> tokenizer and template.  They are written for these tests, after the forms that people meet.
FORMS = {
    "Alpaca": ("gpt2", each("### Instruction:\n@\n\n", "### Response:\n[@{{ eos_token }}]\n\n")),
    "Vicuna": ("llama", each("USER: @ ", "ASSISTANT: [@<|end_of_text|>]", "@ ", "{{ bos_token }}")),
    "Human and Assistant": ("qwen", each("Human: @\n\n", "Assistant: [@\n\n]")),
    "question and answer": ("llama", each("Q: @\n", "A: [@\n]")),
    "a blank": ("qwen", each("user @\n", "bot [@<|endoftext|>]\n")),
    "ChatML": (
        "qwen",
        each(
            "<|im_start|>user\n@<|im_end|>\n",
            "<|im_start|>assistant\n[@<|im_end|>]\n",
            "<|im_start|>system\n@<|im_end|>\n",
        ),
    ),
    "headers": (
        "llama",
        each(
            "<|start_header_id|>user<|end_header_id|>\n\n@<|eot_id|>",
            "<|start_header_id|>assistant<|end_header_id|>\n\n[@<|eot_id|>]",
            "<|start_header_id|>system<|end_header_id|>\n\n@<|eot_id|>",
            "{{ bos_token }}",
        ),
    ),
    "INST": ("sp_bpe", each("[INST] @ [/INST]", " [@</s>]", "@\n", "<s>")),
    "INST without blanks": ("llama2", each("<s>(INST) @ (/INST)", "[@</s>]", "@\n")),
    "Zephyr": ("llama2", each("<|user|>\n@</s>\n", "<|assistant|>\n[@</s>]\n", "<|system|>\n@</s>\n")),
    "Falcon": ("gpt2", each("User: @\n", "Falcon: [@\n]", "System: @\n")),
    "tabs": ("qwen", each("u\t@\n", "a\t[@\n]")),
    "brackets": ("llama", each("(@)", "{[@}]".replace("{", "<").replace("}", ">"))),
    "quoted": ("qwen", each("(@) ", "'[@'\n]")),
    "nothing but EOS at the end": ("qwen", each("u: @\n", "[@{% if loop.last %}<|im_end|>{% endif %}]")),
    "line breaks on both sides": ("qwen", each("\n@\n", "[@\n]")),
    "a line break of the next message": ("llama", each("\n@\n", "[@]")),
    "no words of its own": ("llama", each("@<|eot_id|>", "[@<|eot_id|>]")),
}
REAL = ("gpt2", "llama2")


@pytest.fixture(scope="module")
def sides(tmp_path_factory):
    """Tokenizers by name, ours and transformers'; each is read once."""
    from transformers import PreTrainedTokenizerFast

    root, found = tmp_path_factory.mktemp("tokenizers"), {}

    def side(name):
        if name not in found:
            folder = ASSETS / "tokenizers" / name if name in REAL else write_folder(name, root / name)
            if not (folder / "tokenizer.json").is_file():
                pytest.skip(f"no tokenizer in {folder}")
            eos = json.loads((folder / "tokenizer_config.json").read_text())["eos_token"]
            eos = eos["content"] if isinstance(eos, dict) else eos
            theirs = PreTrainedTokenizerFast.from_pretrained(folder, trust_remote_code=False, eos_token=eos)
            found[name] = load_vocabulary(folder), theirs
        return found[name]

    return side


def spans(mask):
    """Where a mask is 1, as runs."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], mask, [0]])))
    return edges.reshape(-1, 2).tolist()


def completed(side, ids, end):
    """``end`` of what transformers marks, moved from the first token of the last character behind all of them."""
    while end < len(ids) and (side.token_bytes[int(ids[end])] or b"a")[0] & 0xC0 == 0x80:
        end += 1
    return end


@pytest.mark.parametrize("form", FORMS)
def test_ids_and_masks_are_those_of_transformers(form, sides):
    name, template = FORMS[form]
    ours, theirs = sides(name)
    rendering = ChatTemplate(ours, template)

    @settings(max_examples=12, deadline=None)
    @given(conversations())
    def check(conversation):
        if any(text in m.text for m in conversation for text in ours.special_texts.values()):
            return  # transformers makes special tokens of them
        (found,) = rendering([conversation])
        wanted = theirs.apply_chat_template(
            [{"role": m.role, "content": m.text} for m in conversation],
            chat_template=template,
            return_dict=True,
            return_assistant_tokens_mask=True,
        )
        assert found.ids.tolist() == wanted["input_ids"]
        mask = np.zeros(len(found.ids), int)
        for start, end in found.turns.values():
            mask[start:end] = 1
        assert spans(mask) == [[a, completed(ours, found.ids, b)] for a, b in spans(wanted["assistant_masks"])]

    check()


def test_the_forms_write_every_message():
    for form, (_, template) in FORMS.items():
        assert template.count("m.content") == 3, form
        assert template.count("generation %}") == 2, form
