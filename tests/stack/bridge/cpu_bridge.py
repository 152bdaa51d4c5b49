"""Megatron-Bridge on a CPU with gloo, for tests: what its import and its ``pretrain`` take for granted is stood in for.

Bridge imports Transformer Engine and Triton without asking; they are empty modules while it is imported, after
Megatron-core has found out that they are not there.  Everything that then runs is Bridge's own code.
"""

import contextlib
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
import types

import torch

STOOD_IN = ("transformer_engine", "triton")


class _Anything(type):
    """A class that has every attribute, each such a class."""

    def __getattr__(cls, name):
        if name.startswith("__"):
            raise AttributeError(name)
        value = _Anything(name, (_Nothing,), {})
        setattr(cls, name, value)
        return value


class _Nothing:
    def __init__(self, *_, **__):
        pass

    def __call__(self, *args, **_):  # a decorator
        return args[0] if args else self


class _Module(types.ModuleType):
    __version__ = "2.9.0"

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        value = _Anything(name, (_Nothing,), {})
        setattr(self, name, value)
        return value


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in STOOD_IN:
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec):
        return _Module(spec.name)

    def exec_module(self, module):
        pass


def import_bridge() -> bool:
    """Imports it; False where it is not installed."""
    try:
        if importlib.util.find_spec("megatron.bridge") is None:
            return False
    except ModuleNotFoundError:
        return False
    for name in (
        "megatron.core.models.gpt.gpt_model",
        "megatron.core.models.gpt.gpt_layer_specs",
        "megatron.core.extensions.transformer_engine",
    ):
        importlib.import_module(name)
    finder = _Finder()
    sys.meta_path.insert(0, finder)
    try:
        for name in ("training.pretrain", "training.model_load_save", "models.conversion.auto_bridge"):
            importlib.import_module(f"megatron.bridge.{name}")
        import nemo_xtoken.plugin.bridge.container
        import nemo_xtoken.plugin.bridge.distill_bridge
        import nemo_xtoken.training.cpu.layers  # noqa: F401
    finally:
        sys.meta_path.remove(finder)
        for name in [name for name in sys.modules if name.split(".")[0] in STOOD_IN]:
            del sys.modules[name]
    return True


class _Stream:
    def wait_stream(self, *_):
        pass

    def synchronize(self):
        pass


def pretend_cuda() -> None:
    """In this fork: the CPU runtime, and what Bridge asserts and asks of CUDA beside it."""
    import megatron.bridge.training.initialize as initialize

    from nemo_xtoken.training.cpu import layers as cpu_layers
    from nemo_xtoken.training.cpu import runtime as cpu_runtime

    cpu_runtime.enable()
    # Bridge tells by a layer's name how its weights are spread.
    cpu_layers.NormColumnParallelLinear.__name__ = "TELayerNormColumnParallelLinear"
    cpu_layers.Norm.__name__ = "RMSNorm"
    scatter = torch.distributed.scatter

    def scatter_contiguous(tensor, scatter_list=None, **kwargs):
        """Gloo takes memory as it lies, whatever the strides; NCCL does not."""
        return scatter(tensor, scatter_list and [part.contiguous() for part in scatter_list], **kwargs)

    torch.distributed.scatter = scatter_contiguous
    initialize.compile_helpers = lambda: None  # of Megatron's indexed data sets; the wheel has no makefile
    torch.cuda.is_available = lambda: True
    torch.cuda.set_device = lambda *_: None
    torch.cuda.Stream = torch.cuda.current_stream = lambda *_, **__: _Stream()
    torch.cuda.stream = lambda _: contextlib.nullcontext()
    for name in ("memory_allocated", "max_memory_allocated", "memory_reserved", "max_memory_reserved"):
        setattr(torch.cuda, name, lambda *_: 0)
    torch.cuda.memory_stats = lambda *_: {}


def without_kernels(provider):
    """A model provider whose layers are torch's."""
    from nemo_xtoken.training.cpu import layers as cpu_layers

    provider.transformer_layer_spec = cpu_layers.layer_spec
    provider.use_cpu_initialization = True
    for fusion in ("apply_rope_fusion", "gradient_accumulation_fusion", "masked_softmax_fusion", "persist_layer_norm"):
        setattr(provider, fusion, False)
    provider.bias_dropout_fusion = provider.bias_activation_fusion = False
    return provider
