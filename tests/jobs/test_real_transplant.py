"""A real model with another tokenizer, before any training."""

import numpy as np
import pytest
import torch
from real_tokenizers import ASSETS

from nemo_xtoken.weights.transplant import transplant

TEXT = (
    "Natalia sold clips to 48 of her friends in April, and then she sold half as many clips in May. How many clips did "
    "Natalia sell altogether in April and May? Natalia sold 48/2 = 24 clips in May, so she sold 48 + 24 = 72 clips."
)


def bits_per_byte(folder):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = torch.tensor([[tokenizer.bos_token_id, *tokenizer(TEXT, add_special_tokens=False).input_ids]])
    with torch.no_grad():
        scores = model(ids).logits[0, :-1].log_softmax(-1)
    return -scores.gather(1, ids[0, 1:, None]).sum().item() / np.log(2) / len(TEXT.encode())


def test_a_real_model_still_stammers(tmp_path):
    source, tokenizer = ASSETS / "models" / "smollm2-135m-instruct", ASSETS / "tokenizers" / "llama3"
    if not source.is_dir() or not tokenizer.is_dir():
        pytest.skip(f"no {source} or {tokenizer}")
    done = transplant(source, tokenizer, tmp_path / "out")
    assert (done.rows, done.old_rows) == (128256, 49152)
    assert done.exact > 39000
    before, after = bits_per_byte(source), bits_per_byte(tmp_path / "out")
    assert before < 1.5
    assert before < after < 3  # random embeddings have more than eight
