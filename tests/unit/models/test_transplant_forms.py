"""Row by row, what a new tokenizer's embeddings are, for models and tokenizers of every form."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tokenizer_zoo import write_folder, zoo
from toy_models import KINDS, write_model

from nemo_xtoken.weights.transplant import transplant

#: Kind of model, its type, size of its files, new tokenizer, and multiple of which the rows are.
FORMS = {
    "untied": ("llama", torch.float32, "5GB", "qwen", 1),
    "tied": ("llama-tied", torch.float32, "5GB", "qwen", 1),
    "bfloat16 in shards": ("qwen2", torch.bfloat16, "50KB", "llama", 1),
    "float16": ("qwen3", torch.float16, "5GB", "llama", 1),
    "rows of a multiple": ("qwen3-tied", torch.float32, "5GB", "llama", 128),
    "a dummy space is new": ("qwen2-tied", torch.float32, "5GB", "sp_bpe", 1),
    "a dummy space is old": ("mistral", torch.float32, "5GB", "qwen", 1),
    "unigram is old": ("gemma3", torch.bfloat16, "5GB", "llama", 64),
    "NFC is new": ("llama-linear", torch.float32, "5GB", "qwen_nfc", 1),
}


def weights(folder):
    return {k: v.float() for file in sorted(Path(folder).glob("*.safetensors")) for k, v in load_file(file).items()}


def spelled(old, data):
    """The old tokens of a text, found one by one: None where it is no whole text, or the old side changes it."""
    for own in (data, data.removeprefix(b" ")):  # a tokenizer may put the space there by itself
        try:
            ids = old.encode(own.decode()).tolist()
        except UnicodeDecodeError:
            return None
        if ids and b"".join(old.token_bytes[i] or b"" for i in ids) == data:
            return ids
    return None


@pytest.mark.parametrize("form", FORMS)
def test_every_row(form, tmp_path):
    kind, dtype, shard, name, multiple = FORMS[form]
    old, new = zoo()[KINDS[kind][1]], zoo()[name]
    source = write_model(kind, tmp_path / "source", dtype, shard=shard, num_hidden_layers=1, **one_layer(kind))
    done = transplant(source, write_folder(name, tmp_path / "tokenizer"), tmp_path / "out", multiple_of=multiple)
    before, after = weights(source), weights(tmp_path / "out")
    tied = KINDS[kind][2].get("tie_word_embeddings", False)
    assert set(done.tensors) == {"model.embed_tokens.weight"} | (set() if tied else {"lm_head.weight"})
    assert after.keys() == before.keys()
    used = [i for i in range(old.size) if old.token_bytes[i] is not None or i in old.roles]
    tolerance = {torch.float32: 1e-6, torch.bfloat16: 2**-8, torch.float16: 2**-11}[dtype]
    for tensor in done.tensors:
        rows = after[tensor]
        assert rows.shape == (-(-new.size // multiple) * multiple, before[tensor].shape[1])
        mean, seen = before[tensor][used].mean(0), {"exact": 0, "pieces": 0}
        for i, data in enumerate(new.token_bytes):
            same = old.id_of_role.get(new.roles[i]) if i in new.roles else old.id_of_bytes.get(data)
            if same is not None:
                assert torch.equal(rows[i], before[tensor][same]), new.display(i)
                seen["exact"] += 1
            elif data and (pieces := spelled(old, data)):
                wanted = before[tensor][pieces].mean(0)
                torch.testing.assert_close(rows[i], wanted, rtol=tolerance, atol=tolerance, msg=new.display(i))
                seen["pieces"] += 1
            elif not data:
                torch.testing.assert_close(rows[i], mean, rtol=tolerance, atol=tolerance, msg=new.display(i))
        assert seen["exact"] > 200, seen
        assert seen["pieces"] > 1, seen
        torch.testing.assert_close(rows[new.size :], mean.expand_as(rows[new.size :]), rtol=tolerance, atol=tolerance)
    others = before.keys() - set(done.tensors)
    assert all(torch.equal(before[one], after[one]) for one in others)


def one_layer(kind):
    return {"layer_types": ["full_attention"]} if kind == "gemma3" else {}
