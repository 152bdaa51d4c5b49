"""Texts continued by a model in training, by the forward pass that it trains with.

Megatron's own inference engines are not taken: they know no context parallelism, switch sequence parallelism off in the
model that trains, want room for a cache of keys and values, and (0.15.3) time themselves by CUDA events, which a CPU
does not have.  A few dozen tokens of a few texts are as many forward passes of some hundred positions, in the layout of
the training, whatever it is, under NeMo 2 and Megatron-Bridge alike.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from nemo_xtoken.data.batch import Inputs
from nemo_xtoken.objective.shares import Held
from nemo_xtoken.objective.token_statistics import most_probable
from nemo_xtoken.parallel.context_parallel import move_rows
from nemo_xtoken.parallel.vocabulary_shard import group_size
from nemo_xtoken.teachers.colocated import random_numbers_kept
from nemo_xtoken.training.inputs import schedule_shape
from nemo_xtoken.training.watching.sample_settings import SampleConfig
from nemo_xtoken.training.watching.samples import Continuation, Prompt
from nemo_xtoken.vocab.vocabulary import Vocabulary

__all__ = ["Forward", "continued", "in_evaluation", "spoken"]

#: A model's forward pass: the stage's output, and on the last pipeline stage what this rank holds of it.
Forward = Callable[[Inputs], tuple[Tensor, Held | None]]
#: Texts are filled up to a multiple of so many positions, which every layout and 8-bit products can divide.
MULTIPLE = 64


def continued(
    module: torch.nn.Module, forward: Forward, prompts: Sequence[Sequence[int]], new_tokens: int, ends: Sequence[int]
) -> list[list[int]]:
    """What the model says after each of the beginnings, always the most probable token, up to one of ``ends``.

    Every rank calls it, with equal arguments.  Nothing of the training changes: see `in_evaluation`.

    Args:
        module: this rank's part of the model.
        forward: of it.
        prompts: token ids, none empty.
        new_tokens: at most.
        ends: ids that end a text.

    Returns:
        the new ids of each, the end left out; the same on the ranks of a model.  Collectives, each token: those of the
        forward pass, an all-gather over the tensor-parallel group, a broadcast over the pipeline-parallel one.
    """
    from megatron.core import parallel_state

    device = torch.cuda.current_device()
    lengths = [len(prompt) for prompt in prompts]
    unit = 2 * parallel_state.get_context_parallel_world_size() * parallel_state.get_tensor_model_parallel_world_size()
    size = math.lcm(MULTIPLE, unit)
    length = math.ceil((max(lengths) + new_tokens) / size) * size
    tokens = torch.zeros(len(prompts), length, dtype=torch.int64, device=device)
    for row, prompt in enumerate(prompts):
        tokens[row, : lengths[row]] = torch.tensor(prompt, device=device)
    inputs = Inputs(
        tokens,
        torch.arange(length, device=device).expand_as(tokens).contiguous(),
        torch.zeros_like(tokens, dtype=torch.int32),  # what stands behind is seen by nothing before it
        torch.arange(len(prompts), device=device),
    )
    rows = torch.arange(len(prompts), device=device)
    at = torch.tensor(lengths, device=device)
    with in_evaluation(module):
        for _ in range(new_tokens):  # all of them: ranks that share experts must not part
            tokens[rows, at] = _next(module, forward, inputs, rows * length + at - 1)
            at = at + 1
    said = [tokens[row, n : n + new_tokens].tolist() for row, n in enumerate(lengths)]
    return [ids[: next((n for n, one in enumerate(ids) if one in ends), new_tokens)] for ids in said]


def _next(module: torch.nn.Module, forward: Forward, inputs: Inputs, wanted: Tensor) -> Tensor:
    """int64 ``[n]``, on all stages, the most probable token after each of the flat positions ``[n]``."""
    from megatron.core import parallel_state
    from megatron.core.pipeline_parallel import get_forward_backward_func

    def step(data: Iterator[Inputs], _: Any) -> tuple[Tensor, Callable[..., Tensor]]:
        output, held = forward(next(data))
        return output, lambda _output, non_loss_data=True: _best(held, wanted)

    size, length = schedule_shape(*inputs.tokens.shape)
    found = get_forward_backward_func()(
        forward_step_func=step,
        data_iterator=iter([inputs]),
        model=[module],
        num_microbatches=1,
        seq_length=length,
        micro_batch_size=size,
        forward_only=True,
        collect_non_loss_data=True,
    )
    ids: Tensor = found[0] if found else torch.empty_like(wanted)
    if parallel_state.get_pipeline_model_parallel_world_size() > 1:
        last = parallel_state.get_pipeline_model_parallel_last_rank()
        dist.broadcast(ids, src=last, group=parallel_state.get_pipeline_model_parallel_group())
    return ids


def _best(held: Held | None, wanted: Tensor) -> Tensor:
    assert held is not None, "the last stage holds what it computed"
    layout, hidden = held.layout, held.output.hidden
    ranks = group_size(layout.group)
    if ranks > 1 or layout.bounds is not None:
        hidden = move_rows(hidden, layout, [wanted] * ranks)
    else:
        hidden = hidden.index_select(0, wanted)
    head = held.output.head
    return most_probable(head.logits(hidden), head.shard)


@contextmanager
def in_evaluation(module: torch.nn.Module) -> Iterator[None]:
    """Without gradients and dropout; afterwards modes and random numbers are those of before."""
    modes = {one: one.training for one in module.modules()}
    module.eval()
    try:
        with random_numbers_kept(), torch.no_grad():
            yield
    finally:
        for one, training in modes.items():
            one.training = training


def spoken(
    module: torch.nn.Module, forward: Forward, prompts: Sequence[Prompt], config: SampleConfig, vocabulary: Vocabulary
) -> list[Continuation]:
    """What a student says after beginnings of held-out texts: see `continued`.

    Args:
        module, forward: see `continued`.
        prompts: none for none.
        vocabulary: the student's.
    """
    if not prompts:
        return []
    ends = {vocabulary.eos_id, *(vocabulary.id_of_role.get(role) for role in ("eos", "eot"))}
    ids = continued(
        module, forward, [one.ids for one in prompts], config.new_tokens, [i for i in ends if i is not None]
    )
    return [Continuation.of(prompt, said, vocabulary) for prompt, said in zip(prompts, ids, strict=True)]
