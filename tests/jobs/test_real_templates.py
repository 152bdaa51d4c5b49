"""Any conversation: the ids are those of transformers' own rendering, and only what the assistant says is learned."""

import json
import unicodedata

import numpy as np
import pytest
from hypothesis import given, settings
from made_conversations import conversations
from real_tokenizers import ASSETS, real

from nemo_xtoken.data.templates import ChatTemplate

WITH_TEMPLATES = ("llama3", "qwen3", "phi4mini", "gemma3", "deepseek_v3", "smollm2")


@pytest.mark.parametrize("name", WITH_TEMPLATES)
def test_ids_are_those_of_transformers(name):
    from transformers import PreTrainedTokenizerFast

    side = real(name)
    folder = ASSETS / "tokenizers" / name
    config = json.loads((folder / "tokenizer_config.json").read_text())
    eos = config["eos_token"]
    theirs = PreTrainedTokenizerFast.from_pretrained(
        folder, trust_remote_code=False, eos_token=eos["content"] if isinstance(eos, dict) else eos
    )
    ours = ChatTemplate(side)

    @settings(max_examples=15, deadline=None)
    @given(conversations())
    def check(conversation):
        as_dicts = [{"role": m.role, "content": m.text} for m in conversation]
        (found,) = ours([conversation])
        rendered = theirs.apply_chat_template(as_dicts, tokenize=False)
        assert rendered == ours.render(conversation)
        if not any(text in m.text for m in conversation for text in side.special_texts.values()):
            assert found.ids.tolist() == theirs.encode(rendered, add_special_tokens=False)
        learned = np.zeros(len(found.ids), bool)
        for number, (start, end) in found.turns.items():
            assert conversation[number].role == "assistant"
            assert not learned[start:end].any()
            learned[start:end] = True
            said = unicodedata.normalize("NFC", side.decode_bytes(found.ids[start:end]).decode("utf-8", "replace"))
            assert unicodedata.normalize("NFC", conversation[number].text) in said
            assert found.ids[end - 1] in side.roles
            specials = [i for i in found.ids[start:end].tolist() if i in side.roles]
            # Phi writes EOS behind the conversation, that is behind the end of its last turn.
            assert len(specials) <= (2 if name == "phi4mini" and number == len(conversation) - 1 else 1)

    check()
