"""Model inputs from a batch, for either side; documents packed into one sequence do not attend to each other.

Torch attention gets a mask.  Transformer Engine's gets the sequence lengths instead (``thd`` layout), which costs no
memory for a mask and skips the work across documents.
"""

from typing import Any

import torch
from torch import Tensor

__all__ = ["document_mask", "model_inputs", "schedule_shape", "uses_packed_attention"]


def uses_packed_attention() -> bool:
    """Whether attention takes sequence lengths (Transformer Engine on a GPU) rather than a mask."""
    from nemo.collections.llm.gpt.model.base import HAVE_TE

    from nemo_xtoken.plugin.cpu_runtime import is_enabled

    return bool(HAVE_TE) and not is_enabled()


def document_mask(documents: Tensor) -> Tensor:
    """bool ``[b, 1, T, T]``, True where attention is not allowed: the future, and other documents.

    Args:
        documents: int ``[b, T]``, the document of each position.
    """
    length = documents.shape[1]
    future = torch.ones(length, length, dtype=torch.bool, device=documents.device).triu(1)
    return (future | (documents[:, :, None] != documents[:, None, :])).unsqueeze(1)


def model_inputs(batch: dict[str, Any], side: str) -> dict[str, Any]:
    """Keyword arguments of a Megatron GPT model for the ``side`` ("student" or "teacher") of a batch."""
    tokens, positions = batch[f"{side}_tokens"], batch[f"{side}_positions"]
    documents = batch[f"{side}_documents"]
    if not uses_packed_attention():
        return {"input_ids": tokens, "position_ids": positions, "attention_mask": document_mask(documents)}
    from megatron.core.packed_seq_params import PackedSeqParams

    starts = (positions == 0) & (documents >= 0)
    starts[:, 0] = True
    starts[:, 1:] |= documents[:, 1:] != documents[:, :-1]
    first = torch.nonzero(starts.reshape(-1)).squeeze(1)
    bounds = torch.cat([first, first.new_tensor([tokens.numel()])]).to(torch.int32)
    longest = int((bounds[1:] - bounds[:-1]).max())
    packed = PackedSeqParams(
        qkv_format="thd", cu_seqlens_q=bounds, cu_seqlens_kv=bounds, max_seqlen_q=longest, max_seqlen_kv=longest
    )
    return {
        "input_ids": tokens.reshape(1, -1),
        "position_ids": positions.reshape(1, -1),
        "attention_mask": None,
        "packed_seq_params": packed,
    }


def schedule_shape(micro_batch_size: int, length: int) -> tuple[int, int]:
    """``(micro-batch size, sequence length)`` that Megatron's schedule sees: ``thd`` is one long sequence."""
    return (1, micro_batch_size * length) if uses_packed_attention() else (micro_batch_size, length)
