"""The hidden states and the weight that are taken from a Megatron model are those that its logits are made of."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from launcher import launch

pytestmark = pytest.mark.usefixtures("nemo")

V, T, B = 101, 12, 2


class _Tokenizer:
    vocab_size = V


def _model(tied, tp=1, sequence_parallel=False, seed=3):
    """A small model in this rank's tensor-parallel group."""
    import torch.distributed as dist
    from megatron.core import parallel_state
    from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed
    from nemo.collections import llm

    from nemo_xtoken.training.cpu import runtime as cpu_runtime

    torch.set_num_threads(1)
    cpu_runtime.enable()
    dist.init_process_group("gloo")
    parallel_state.initialize_model_parallel(tp)
    model_parallel_cuda_manual_seed(seed)
    config = llm.LlamaConfig(
        num_layers=2,
        hidden_size=32,
        ffn_hidden_size=48,
        num_attention_heads=4,
        num_query_groups=2,
        seq_length=T,
        gradient_accumulation_fusion=False,
        apply_rope_fusion=False,
        share_embeddings_and_output_weights=tied,
        make_vocab_size_divisible_by=16,
        tensor_model_parallel_size=tp,
        sequence_parallel=sequence_parallel,
        init_method_std=0.2,
        use_cpu_initialization=True,
        pipeline_dtype=torch.float32,
    )
    return config.configure_model(_Tokenizer())


def _batch():
    tokens = torch.randint(0, V, (B, T), generator=torch.Generator().manual_seed(1))
    positions = torch.arange(T).expand(B, T)
    return tokens, positions, torch.ones(T, T, dtype=torch.bool).triu(1)[None, None]


def _tapped(tied, tp, sequence_parallel):
    from nemo_xtoken.teachers.output import HiddenStateTap

    model = _model(tied, tp, sequence_parallel)
    logits = model(*_batch())  # [b, T, V/tp]
    weigh = torch.randn(logits.shape, generator=torch.Generator().manual_seed(2))
    (logits * weigh).sum().backward()
    expected = {n: p.grad.clone() for n, p in model.named_parameters()}
    model.zero_grad()

    tap = HiddenStateTap(model.output_layer, sequence_parallel)
    with pytest.raises(RuntimeError, match="no forward pass"):
        tap.pop()
    made = model(*_batch())
    assert made.shape[1] == (tp if sequence_parallel else 1)  # logits of one position (of each rank), for nothing
    hidden, weight = tap.pop()
    with pytest.raises(RuntimeError, match="no forward pass"):
        tap.pop()
    assert hidden.shape == (B * T, 32)
    assert weight.shape[0] == logits.shape[-1]
    assert (weight is model.shared_embedding_or_output_weight()) if tied else (weight is model.output_layer.weight)
    found = (hidden @ weight.t()).view(logits.shape)
    torch.testing.assert_close(found, logits.detach(), rtol=1e-5, atol=1e-6)
    if tp == 1:
        (found * weigh).sum().backward()
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(
                parameter.grad, expected[name], rtol=1e-4, atol=1e-5, msg=lambda m, name=name: f"{name}: {m}"
            )
    return hidden.detach().numpy()


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_the_tap_takes_what_logits_are_made_of(tied, tmp_path):
    launch(_tapped, tied, 1, False, folder=tmp_path / "one")
    for sequence_parallel in (False, True):
        first, second = launch(
            _tapped, tied, 2, sequence_parallel, ranks=2, folder=tmp_path / f"two{sequence_parallel}"
        )
        assert (first == second).all()  # whole and the same on both, also where each computed a part


def _colocated():
    from nemo_xtoken.data.batch import Inputs
    from nemo_xtoken.errors import InputError
    from nemo_xtoken.parallel.context_parallel import ContextLayout
    from nemo_xtoken.parallel.ownership import Ownership
    from nemo_xtoken.teachers.colocated import ColocatedTeacher

    model = _model(tied=False).requires_grad_(False).eval()
    tokens, positions, mask = _batch()
    sides = [Inputs(tokens + i, positions, positions, torch.tensor([70 + i, 80 + i])) for i in range(3)]
    expected = [model(side.tokens, positions, mask) for side in sides]
    form = SimpleNamespace(
        context_layout=lambda side: ContextLayout.zigzag(*side.tokens.shape, None),
        model_inputs=lambda side, _: {"input_ids": side.tokens, "position_ids": positions, "attention_mask": mask},
        schedule_shape=lambda size, length: (size, length),
    )
    teacher = ColocatedTeacher(model, V, form)
    from megatron.core.num_microbatches_calculator import init_num_microbatches_calculator

    init_num_microbatches_calculator(0, None, 6, 2, 1)
    shuffled = np.random.default_rng(0).permutation(V)
    [head] = teacher.lay_out(dataclasses.replace(Ownership.even(V, None), order=shuffled))
    for states, logits in zip(teacher.states(sides), expected, strict=True):
        found = head.logits(states.hidden)
        assert torch.isinf(found[:, V:]).all()  # padding
        found = found[:, head.columns_of(torch.arange(V))]
        torch.testing.assert_close(found[:, :V], logits.view(-1, logits.shape[-1])[:, :V], rtol=1e-5, atol=1e-6)
        assert not states.hidden.requires_grad
    with torch.no_grad():
        model.embedding.word_embeddings.weight[int(sides[1].tokens[1, 0])] = float("nan")
    bad = sorted(
        int(i)
        for side in sides[:2]
        for i, row in zip(side.samples, side.tokens, strict=True)
        if (row == sides[1].tokens[1, 0]).any()
    )
    with pytest.raises(InputError) as found:
        teacher.states(sides)
    return bad, found.value.found


def test_a_colocated_teacher_gives_each_micro_batch_its_output(tmp_path):
    [(bad, message)] = launch(_colocated, folder=tmp_path)
    assert 81 in bad
    assert any(f"sample {i}" in message for i in bad), (bad, message)
