"""Gradients of a model that is spread over ranks, put together, and compared with those of one process."""

import re
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["assert_same_gradients", "main_gradients", "merge_stages", "named_parameters"]


def named_parameters(module: Any) -> Iterator[tuple[str, Tensor]]:
    """``(name in the whole model, parameter)``: a stage numbers its layers from 0, a rank its experts.

    Args:
        module: this rank's part of a GPT model of Megatron's, unwrapped.
    """
    from megatron.core import parallel_state

    offset = module.decoder.layers[0].layer_number - 1
    experts = (module.config.num_moe_experts or 0) // parallel_state.get_expert_model_parallel_world_size()
    first = experts * parallel_state.get_expert_model_parallel_rank()
    for name, parameter in module.named_parameters():
        if module.share_embeddings_and_output_weights:  # the last stage has a copy under another name
            name = name.replace("output_layer.", "embedding.word_embeddings.")
        name = re.sub(r"layers\.(\d+)\.", lambda m: f"layers.{int(m[1]) + offset}.", name)
        yield re.sub(r"experts\.(\d+)\.", lambda m: f"experts.{int(m[1]) + first}.", name), parameter


def main_gradients(module: Any, vocabulary_size: int) -> dict[str, Any]:
    """A step's, by the parameters' names in the whole model, put together over the tensor-parallel group and cut to the
    vocabulary, as numpy arrays; as Megatron leaves them for the optimizer.  What is frozen has none.

    Args:
        module: see `named_parameters`.
        vocabulary_size: of the tokenizer; the rows beyond it must have no gradient.
    """
    return {
        name: _whole(name, parameter, parameter.main_grad, vocabulary_size).numpy().copy()
        for name, parameter in named_parameters(module)
        if parameter.requires_grad
    }


def _whole(name: str, parameter: Tensor, value: Tensor, size: int) -> Tensor:
    from megatron.core import parallel_state

    group = parallel_state.get_tensor_model_parallel_group()
    ranks = dist.get_world_size(group)
    if getattr(parameter, "tensor_model_parallel", False):
        parts = [torch.empty_like(value) for _ in range(ranks)]
        dist.all_gather(parts, value.contiguous(), group=group)
        if (
            "linear_fc1" in name and "linear_in" not in name
        ):  # each rank holds a part of the gate and one of the other half
            parts = [half for i in (0, 1) for half in [p.chunk(2)[i] for p in parts]]
        value = torch.cat(parts, dim=parameter.partition_dim)
    if "word_embeddings" in name or "output_layer" in name:
        assert value.shape[0] > size, "the test wants a padded vocabulary"
        assert not value[size:].any(), "a gradient for padding"
        value = value[:size]
    return value


def merge_stages(ranks: list[dict[str, Any]], step: int) -> dict[str, Any]:
    """The gradients of a step from all ranks; what several ranks have must be the same."""
    import numpy as np

    whole: dict[str, Any] = {}
    for rank in ranks:
        for name, value in rank["gradients"][step].items():
            if name in whole:
                np.testing.assert_allclose(value, whole[name], rtol=1e-4, atol=1e-7, err_msg=name)
            whole.setdefault(name, value)
    return whole


def assert_same_gradients(
    one: dict[str, Any], others: list[dict[str, Any]], steps: tuple[int, ...], relative: float
) -> None:
    """Gradients of one process are those of the ranks of another layout, each parameter's by its norm."""
    import numpy as np

    for step in steps:
        expected, found = one["gradients"][step], merge_stages(others, step)
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert np.linalg.norm(value) > 0, name
            off = np.linalg.norm(found[name] - value) / np.linalg.norm(value)
            assert off < relative, f"gradient of {name} at step {step}: {off:.1e}"
