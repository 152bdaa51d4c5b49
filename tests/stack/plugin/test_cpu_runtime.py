"""CPU mode changes what it says, and takes all of it back."""

import pytest
from launcher import launch

pytestmark = pytest.mark.usefixtures("nemo")


def _there_and_back():
    import logging

    import megatron.core.dist_checkpointing.strategies.filesystem_async as writer
    import megatron.core.optimizer as optimizer
    import megatron.core.optimizer.distrib_optimizer as distrib
    import megatron.core.tensor_parallel.random as rng
    import nemo.lightning.io.pl as nemo_io
    import torch
    from megatron.core.models.common.embeddings import rope_utils
    from megatron.core.timers import Timers
    from megatron.core.transformer import transformer_block
    from nemo.collections.llm.gpt.model import base
    from torch._dynamo.eval_frame import _stance
    from torch.overrides import _len_torch_function_stack

    from nemo_xtoken.training.cpu import runtime as cpu_runtime

    places = [torch.cuda, rng, optimizer, distrib, distrib.DistributedOptimizer, nemo_io, writer, base, rope_utils]
    places += [transformer_block, Timers, logging.getLogger(rng.__name__)]

    def snapshot():
        return [dict(vars(place)) for place in places] + [_stance.stance, _len_torch_function_stack()]

    def differences(a, b):
        return [
            (str(place), name)
            for place, one, other in zip(places, a, b, strict=False)
            for name in one.keys() | other.keys()
            if one.get(name) is not other.get(name)
        ]

    before = snapshot()
    assert not cpu_runtime.is_enabled()
    with pytest.raises((AssertionError, RuntimeError)):
        torch.zeros(1).cuda()
    cpu_runtime.enable()
    changed = differences(before, snapshot())
    cpu_runtime.enable()
    assert differences(before, snapshot()) == changed
    assert cpu_runtime.is_enabled()
    on = [
        torch.zeros(1).cuda().device.type,
        torch.ones(2, device="cuda").device.type,
        torch.ones(2).to("cuda:0").device.type,
        torch.ones(2).pin_memory().device.type,
        torch.ones(2).type(),
    ]
    cpu_runtime.disable()
    after = snapshot()
    assert differences(before, after) == []
    assert before[-2:] == after[-2:]
    assert not cpu_runtime.is_enabled()
    with pytest.raises((AssertionError, RuntimeError)):
        torch.zeros(1).cuda()
    assert torch.ones(2).type() == "torch.FloatTensor"
    cpu_runtime.disable()
    cpu_runtime.enable()  # once more
    assert torch.zeros(1).cuda().device.type == "cpu"
    cpu_runtime.disable()
    assert differences(before, snapshot()) == []
    return len(changed), on


@pytest.mark.skipif("__import__('torch').cuda.is_available()", reason="a GPU is there")
def test_enable_and_disable(tmp_path):
    [(changed, on)] = launch(_there_and_back, folder=tmp_path)
    assert changed > 10
    assert on == ["cpu"] * 4 + ["torch.cuda.FloatTensor"]


def test_importing_it_changes_nothing(tmp_path):
    """Also not to a torch that is imported after it."""
    import subprocess
    import sys

    code = (
        "import torch; before = dict(vars(torch.cuda)); import nemo_xtoken.training.cpu.runtime as r; "
        "after = dict(vars(torch.cuda)); assert all(after[k] is v for k, v in before.items()); "
        "assert not r.is_enabled(); import sys; assert 'nemo' not in sys.modules and 'megatron' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
