"""What is measured of a model: bits per byte of pieces of text, and what it goes on with."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from nemo_xtoken.losses.base import ModelOutput
from nemo_xtoken.objective.cross_tokenizer import with_spare_rows
from nemo_xtoken.objective.terms import cross_tokenizer_loss
from nemo_xtoken.objective.tiles import rows_within
from nemo_xtoken.parallel.head import OutputHead
from nemo_xtoken.parallel.vocabulary_shard import VocabularyShard
from nemo_xtoken.vocab.vocabulary import Vocabulary

from .models import states_of

__all__ = ["bits_per_byte", "continued", "head_of"]

#: Tokens that a model goes on for.
CONTINUED = 40


def head_of(model: Any, vocabulary: Vocabulary) -> OutputHead:
    """The output layer as the losses see it."""
    weight = with_spare_rows(model.get_output_embeddings().weight, vocabulary)
    return OutputHead(weight, VocabularyShard.of_local_rows(vocabulary.size, weight.shape[0], None))


def bits_per_byte(model: Any, vocabulary: Vocabulary, pieces: Sequence[str]) -> float:
    """Minus the base-2 logarithms of all tokens' probabilities over the bytes; each piece behind BOS (or EOS)."""
    nats, size = 0.0, 0
    head, device = head_of(model, vocabulary), model.device
    with torch.inference_mode():
        for piece, ids in zip(pieces, vocabulary.encode_batch(list(pieces)), strict=True):
            row = torch.from_numpy(np.concatenate([[_start(vocabulary)], ids]).astype(np.int64)).to(device)
            states = states_of(model, row[None, :-1])
            terms = cross_tokenizer_loss(
                ModelOutput(states.flatten(0, 1), head), row[None, 1:], tile_rows=rows_within(None, head, [])
            )
            nats += float(terms.ce.total)
            size += len(piece.encode())
    return nats / math.log(2) / size


def continued(model: Any, vocabulary: Vocabulary, prompt: str) -> str:
    """What the model finds most probable after ``prompt``, token by token."""
    ids = [_start(vocabulary), *vocabulary.encode(prompt).tolist()]
    tokens = torch.tensor([ids], device=model.device)
    with torch.inference_mode():
        out = model.generate(
            tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=CONTINUED, do_sample=False,
            eos_token_id=vocabulary.eos_id, pad_token_id=vocabulary.eos_id,
        )  # fmt: skip
    found = [token for token in out[0, len(ids) :].tolist() if token != vocabulary.eos_id]
    return vocabulary.decode_bytes(found).decode("utf-8", "replace")


def _start(vocabulary: Vocabulary) -> int:
    start = vocabulary.eos_id if vocabulary.bos_id is None else vocabulary.bos_id
    assert start is not None
    return start
