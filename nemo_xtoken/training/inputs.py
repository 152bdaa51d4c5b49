"""Model inputs from a batch, for either side; documents packed into one sequence do not attend to each other.

Torch attention gets a mask.  Transformer Engine's gets the sequence lengths instead (``thd`` layout), which costs no
memory for a mask and skips the work across documents.

Under context parallelism a rank gets only its own rows: with a mask two parts of every sample, as Megatron slices them;
with sequence lengths two parts of every document, which is padded for it (see ``parallel.context_parallel``).
"""

from typing import Any

import torch
from torch import Tensor

from nemo_xtoken.data.batch import Inputs
from nemo_xtoken.errors import InputError
from nemo_xtoken.parallel.context_parallel import ContextLayout
from nemo_xtoken.parallel.vocabulary_shard import group_size

__all__ = [
    "context_layout",
    "document_mask",
    "model_inputs",
    "prepare_config",
    "schedule_shape",
    "uses_packed_attention",
]


def uses_packed_attention() -> bool:
    """Whether attention takes sequence lengths (Transformer Engine on a GPU) rather than a mask."""
    from megatron.core.extensions.transformer_engine import HAVE_TE

    from nemo_xtoken.training.cpu.runtime import is_enabled

    return bool(HAVE_TE) and not is_enabled()


def context_layout(inputs: Inputs) -> ContextLayout:
    """Which positions of a micro-batch each context-parallel rank holds."""
    from megatron.core import parallel_state

    tokens = inputs.tokens
    group = parallel_state.get_context_parallel_group(check_initialized=False)
    if group_size(group) > 1 and uses_packed_attention():
        tensor_ranks = parallel_state.get_tensor_model_parallel_world_size()
        return ContextLayout.by_document(_starts(inputs), tokens.numel(), group, tensor_ranks)
    return ContextLayout.zigzag(tokens.shape[0], tokens.shape[1], group, tokens.device)


def document_mask(documents: Tensor, rows: Tensor | None = None) -> Tensor:
    """bool ``[b, 1, n, T]``, True where attention is not allowed: the future, and other documents.

    Args:
        documents: int ``[b, T]``, the document of each position.
        rows: int64 ``[n]``, the positions that attend; default all.
    """
    positions = torch.arange(documents.shape[1], device=documents.device)
    rows = positions if rows is None else rows
    future = positions[None, :] > rows[:, None]
    return (future | (documents[:, rows, None] != documents[:, None, :])).unsqueeze(1)


def _starts(inputs: Inputs) -> Tensor:
    """int64, the flat positions where documents, and the padding of samples, begin."""
    documents = inputs.documents
    starts = (inputs.positions == 0) & (documents >= 0)
    starts[:, 0] = True
    starts[:, 1:] |= documents[:, 1:] != documents[:, :-1]
    return torch.nonzero(starts.reshape(-1)).squeeze(1)


def model_inputs(inputs: Inputs, layout: ContextLayout) -> dict[str, Any]:
    """Keyword arguments of a Megatron GPT model for this rank.

    Args:
        layout: the `context_layout` of the inputs.
    """
    tokens, positions = inputs.tokens, inputs.positions
    whole = group_size(layout.group) == 1
    if not uses_packed_attention():
        rows = None
        if not whole:
            rows = layout.local[: layout.local.numel() // tokens.shape[0]]  # the same of every sample
            tokens, positions = tokens[:, rows], positions[:, rows]
        mask = document_mask(inputs.documents, rows)
        return {"input_ids": tokens, "position_ids": positions, "attention_mask": mask}
    from megatron.core.packed_seq_params import PackedSeqParams

    if whole:
        bounds = torch.nn.functional.pad(_starts(inputs), (0, 1), value=tokens.numel())
        tokens, positions = tokens.reshape(1, -1), positions.reshape(1, -1)
    else:
        assert layout.bounds is not None
        bounds = layout.bounds
        tokens, positions = (layout.take(x.reshape(-1))[None] for x in (tokens, positions))
    longest = int((bounds[1:] - bounds[:-1]).max())
    bounds = bounds.to(torch.int32)
    packed = PackedSeqParams(
        qkv_format="thd", cu_seqlens_q=bounds, cu_seqlens_kv=bounds, max_seqlen_q=longest, max_seqlen_kv=longest
    )
    if not whole:  # padding is a part of its document, at the end, where nothing sees it
        packed.cu_seqlens_q_padded = packed.cu_seqlens_kv_padded = bounds
    return {"input_ids": tokens, "position_ids": positions, "attention_mask": None, "packed_seq_params": packed}


def prepare_config(config: Any) -> None:
    """Sets what follows from the form of the inputs in a model's configuration.

    With sequence lengths the padding for context parallelism differs between micro-batches, and so does the length of
    what pipeline stages send on and ranks send to experts.

    Raises:
        InputError: experts with a dispatcher that needs equal lengths.
    """
    if config.context_parallel_size == 1 or not uses_packed_attention():
        return
    if config.num_moe_experts and config.moe_token_dispatcher_type == "allgather":
        raise InputError(
            f"moe_token_dispatcher_type=allgather with context_parallel_size={config.context_parallel_size}",
            "a dispatcher that takes sequences of different lengths",
            "set moe_token_dispatcher_type=alltoall in the model's config",
        )
    config.variable_seq_lengths = True


def schedule_shape(micro_batch_size: int, length: int) -> tuple[int, int]:
    """``(micro-batch size, sequence length)`` that Megatron's schedule sees: ``thd`` is one long sequence."""
    return (1, micro_batch_size * length) if uses_packed_attention() else (micro_batch_size, length)
