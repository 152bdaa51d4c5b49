"""Model inputs from a batch, for either side; documents packed into one sequence do not attend to each other.

Torch attention gets a mask.  Transformer Engine's gets the sequence lengths instead (``thd`` layout), which costs no
memory for a mask and skips the work across documents.

Under context parallelism a rank gets only its own rows: with a mask two parts of every sample, as Megatron slices them;
with sequence lengths two parts of every document, which is padded for it (see ``parallel.context_parallel``).
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from nemo_xtoken.data.batch import Inputs
from nemo_xtoken.errors import InputError
from nemo_xtoken.parallel.context_parallel import ContextLayout
from nemo_xtoken.parallel.vocabulary_shard import group_size
from nemo_xtoken.run.unsupported import CONFIG, Case, refused

__all__ = [
    "context_layout",
    "document_mask",
    "engine_version",
    "model_inputs",
    "prepare_config",
    "schedule_shape",
    "uses_packed_attention",
    "vary_lengths",
]


def uses_packed_attention() -> bool:
    """Whether attention takes sequence lengths (Transformer Engine on a GPU) rather than a mask."""
    from megatron.core.extensions.transformer_engine import HAVE_TE

    return bool(HAVE_TE) and not _on_cpu()


def _on_cpu() -> bool:
    from nemo_xtoken.training.cpu.runtime import is_enabled

    return is_enabled()


def engine_version() -> tuple[int, ...] | None:
    """Version of the Transformer Engine that attention runs in; None: it runs in torch's, with a mask."""
    from megatron.core.utils import get_te_version

    version = get_te_version() if uses_packed_attention() else None
    return None if version is None else tuple(version.release)


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
    # From it newer versions of Megatron tell Mamba's layers where documents begin; without it their state goes on.
    total = tokens.numel() * group_size(layout.group)
    for_mamba = {"total_tokens": total} if "total_tokens" in PackedSeqParams.__dataclass_fields__ else {}
    bounds = bounds.to(torch.int32)
    packed = PackedSeqParams(
        qkv_format="thd", cu_seqlens_q=bounds, cu_seqlens_kv=bounds, max_seqlen_q=longest, max_seqlen_kv=longest,
        **for_mamba,
    )  # fmt: skip
    if not whole:  # padding is a part of its document, at the end, where nothing sees it
        packed.cu_seqlens_q_padded = packed.cu_seqlens_kv_padded = bounds
    return {"input_ids": tokens, "position_ids": positions, "attention_mask": None, "packed_seq_params": packed}


def prepare_config(
    config: Any,
    label: str = "student",
    where: str = "model.config",
    student: bool = True,
    own: Mapping[str, Any] | None = None,
) -> None:
    """Sets what follows from the form of the inputs in a model's configuration, as it is when the model is built.

    With a mask, Megatron's fused softmax is switched off: where its kernels are installed the causal one is taken, and
    ignores the mask that keeps documents apart.  With sequence lengths the padding for context parallelism differs
    between micro-batches, and so does the length of what pipeline stages send on and ranks send to experts.

    On a CPU the gradients of linear layers in bfloat16 are added to their sums at once, as a GPU's extension does it.

    Args:
        label, where: what messages call the model and its configuration.
        student: whether it is trained.
        own: of a frozen teacher, its settings that `run.unsupported.TEACHER` names.

    Raises:
        InputError: a setting of `run.unsupported`, or experts with a dispatcher that needs equal lengths.
    """
    plain = {name: getattr(config, name, None) for name in CONFIG}
    case = Case(plain, {}, config.context_parallel_size, engine_version(), student, own or {})
    for _, error in refused(label, where, case):
        raise error
    if not uses_packed_attention():
        config.masked_softmax_fusion = False
        if _on_cpu():
            config.gradient_accumulation_fusion = bool(config.bf16)
        return
    if config.context_parallel_size > 1:
        vary_lengths(config, where)


def vary_lengths(config: Any, where: str) -> None:
    """Tells a configuration that sequences differ in length from micro-batch to micro-batch.

    Args:
        config: a model's; changed.
        where: what messages call it.

    Raises:
        InputError: experts with a dispatcher that needs equal lengths.
    """
    if config.num_moe_experts and config.moe_token_dispatcher_type == "allgather":
        sizes = f"context_parallel_size={config.context_parallel_size}"
        if config.context_parallel_size == 1:
            sizes = f"pipeline_model_parallel_size={config.pipeline_model_parallel_size}"
        raise InputError(
            f"{where}.moe_token_dispatcher_type=allgather with {sizes}",
            "a dispatcher that takes sequences of different lengths",
            f"set {where}.moe_token_dispatcher_type=alltoall",
        )
    if not config.num_moe_experts:  # Megatron refuses its own default by name, where there is nobody to send to as well
        config.moe_token_dispatcher_type = "alltoall"
    config.variable_seq_lengths = True


def schedule_shape(micro_batch_size: int, length: int) -> tuple[int, int]:
    """``(micro-batch size, sequence length)`` that Megatron's schedule sees: ``thd`` is one long sequence."""
    return (1, micro_batch_size * length) if uses_packed_attention() else (micro_batch_size, length)
