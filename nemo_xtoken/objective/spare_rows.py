"""Models whose output layer has no row for the last ids of their tokenizer, as Gemma 3's small ones for pictures."""

import torch
from torch import Tensor

from nemo_xtoken.vocab.vocabulary import Vocabulary

__all__ = ["with_spare_rows"]


def with_spare_rows(x: Tensor, vocabulary: Vocabulary, dim: int = 0) -> Tensor:
    """An output layer, or logits, with an entry for every id where those that are missing stand for no text.

    What is added is the mean of the others, as an import into NeMo 2 adds it, and gets no gradient.  All else is as it
    was: with too few entries for the tokens of texts it is refused where it is used.

    Args:
        x: ``[V, H]``, or logits ``[.., V]`` with ``dim=-1``; of all ids, not of a part.
    """
    have = x.shape[dim]
    missing = vocabulary.token_bytes[have : vocabulary.size]
    if not have or not missing or any(of is not None for of in missing):
        return x
    mean = x.detach().mean(dim, keepdim=True, dtype=torch.promote_types(x.dtype, torch.float32)).to(x.dtype)
    return torch.cat([x, mean.repeat_interleave(len(missing), dim)], dim)
