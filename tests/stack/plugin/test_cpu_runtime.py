"""CPU mode changes what it says, and takes all of it back; and it works with PyTorch's CUDA build and no GPU."""

import os
import subprocess
import sys

import pytest
from launcher import launch, start

pytestmark = pytest.mark.usefixtures("nemo")


def _there_and_back():
    import logging

    import lightning.pytorch as pl
    import lightning.pytorch.accelerators.cuda as lightning_cuda
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
    places += [torch.accelerator, lightning_cuda, transformer_block, Timers, logging.getLogger(rng.__name__)]

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
        type(pl.Trainer(accelerator="auto", logger=False, barebones=True).accelerator).__name__,
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
    assert on == ["cpu"] * 4 + ["torch.cuda.FloatTensor", "CPUAccelerator"]


def test_importing_it_changes_nothing(tmp_path):
    """Also not to a torch that is imported after it."""
    code = (
        "import torch; before = dict(vars(torch.cuda)); import nemo_xtoken.training.cpu.runtime as r; "
        "after = dict(vars(torch.cuda)); assert all(after[k] is v for k, v in before.items()); "
        "assert not r.is_enabled(); import sys; assert 'nemo' not in sys.modules and 'megatron' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def _adam_of_a_cuda_build():
    """A step of CPU mode's Adam where PyTorch says that it was built for CUDA and there is no driver."""
    import torch

    from nemo_xtoken.training.cpu import runtime as cpu_runtime

    def no_driver(*_):
        raise RuntimeError("Found no NVIDIA driver on your system.")

    assert os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] == "1"  # Lightning's
    torch.cuda._is_compiled = lambda: True
    torch._C._accelerator_getAccelerator = lambda: torch.device("cuda")
    torch._C._accelerator_getStream = torch._C._accelerator_getDeviceIndex = no_driver
    assert torch.accelerator.current_accelerator().type == "cuda"
    cpu_runtime.enable()
    parameter = torch.nn.Parameter(torch.ones(3))
    parameter.grad = torch.ones(3)
    cpu_runtime._FusedAdam([parameter], lr=0.5).step()
    seen = [torch.cuda.is_available(), torch.accelerator.is_available(), torch.cuda.device_count()]
    cpu_runtime.disable()
    assert torch.accelerator.current_accelerator().type == "cuda"
    return parameter.tolist(), seen


@pytest.mark.skipif("__import__('torch').cuda.is_available()", reason="a GPU is there")
def test_it_trains_with_a_cuda_build_and_no_driver(tmp_path):
    [(values, seen)] = launch(_adam_of_a_cuda_build, folder=tmp_path)
    assert values == pytest.approx([0.5] * 3)
    assert seen == [False, False, 1]


def _import_with_a_toolkit(toolkit, guarded):
    """Imports the module that compiles, as a PyTorch of a CUDA build does beside a toolkit."""
    import importlib
    import sys

    import torch
    from torch.utils import cpp_extension

    from nemo_xtoken.training.cpu import megatron_import

    torch.version.cuda, cpp_extension.CUDA_HOME = "13.0", toolkit
    if not os.environ["TORCH_CUDA_ARCH_LIST"]:
        del os.environ["TORCH_CUDA_ARCH_LIST"]
    guards = [finder for finder in sys.meta_path if isinstance(finder, megatron_import._Finder)]
    assert len(guards) == 1  # importing nemo_xtoken has put it there
    if not guarded:
        sys.meta_path.remove(guards[0])
    before = cpp_extension.load_inline
    del sys.modules["megatron.core.inference.unified_memory"]
    memory = importlib.import_module("megatron.core.inference.unified_memory")
    assert cpp_extension.load_inline is before
    return memory.has_unified_memory, memory.__spec__.name, memory.create_unified_mempool.__module__


@pytest.mark.skipif("__import__('torch').cuda.is_available()", reason="a GPU is there")
def test_megatron_is_imported_with_a_cuda_build_and_a_toolkit_and_no_gpu(tmp_path):
    """Megatron-core compiles while it is imported, which fails there; with this package it is not even tried.

    In forks of this process, which has imported it before.
    """
    ended = {}
    for who in ("Megatron", "ours"):
        environment = {"TORCH_EXTENSIONS_DIR": str(tmp_path / f"built by {who}"), "TORCH_CUDA_ARCH_LIST": ""}
        [ended[who]] = start(
            _import_with_a_toolkit, str(tmp_path), who == "ours", folder=tmp_path / f"logs of {who}", env=environment
        )
    # else there is nothing left to guard against
    assert "IndexError: list index out of range" in ended["Megatron"].log
    name = "megatron.core.inference.unified_memory"
    assert ended["ours"].result == (False, name, name), ended["ours"].log
    # what it would have compiled
    assert [path.parts[-3] for path in tmp_path.rglob("*.cpp")] in ([], ["built by Megatron"])
