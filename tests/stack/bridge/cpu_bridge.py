"""Megatron-Bridge on a CPU with gloo, for tests: what its import and its ``pretrain`` take for granted is stood in for.

Bridge imports Transformer Engine and Triton without asking; they are empty modules while it is imported, after
Megatron-core and ModelOpt have found out that they are not there.  Everything that then runs is Bridge's own code.
"""

import contextlib
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import inspect
import sys
import types
import typing

import torch
import typing_extensions

#: Of these, those that are not installed.
STOOD_IN = tuple(name for name in ("transformer_engine", "triton") if importlib.util.find_spec(name) is None)
#: Megatron-core 0.19 asserts this version of nvidia-resiliency-ext; the newest one for a CPU does not say its own.
RESILIENCY = "0.6.0"


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


def before_megatron() -> None:
    """What Megatron-core 0.19 asks for while it is imported, and what of Python 3.12 it uses where this is 3.11."""
    if not hasattr(typing, "override"):
        typing.override = typing_extensions.override
    with contextlib.suppress(ModuleNotFoundError):
        resiliency = importlib.import_module("nvidia_resiliency_ext")
        if not hasattr(resiliency, "__version__"):
            resiliency.__version__ = RESILIENCY


def _import_all() -> None:
    from cpu_recurrent import stood_in

    importlib.import_module("cpu_engine").take_their_place()
    with stood_in():
        for name in ("gated_delta_net", "mamba_mixer"):
            importlib.import_module(f"megatron.core.ssm.{name}")
    for name in (
        "megatron.core.models.gpt.gpt_model",
        "megatron.core.models.gpt.gpt_layer_specs",
        "megatron.core.extensions.transformer_engine",
        "modelopt.torch.distill.plugins.megatron",
        "modelopt.torch.opt.plugins",
    ):
        importlib.import_module(name)
    finder = _Finder()
    sys.meta_path.insert(0, finder)
    try:
        for name in ("training.pretrain", "training.model_load_save", "models.conversion.auto_bridge", "peft.lora"):
            importlib.import_module(f"megatron.bridge.{name}")
        import nemo_xtoken.plugin.bridge.container
        import nemo_xtoken.plugin.bridge.distill_bridge  # noqa: F401
    finally:
        sys.meta_path.remove(finder)
        for name in [name for name in sys.modules if name.split(".")[0] in STOOD_IN]:
            del sys.modules[name]


def import_bridge() -> bool:
    """Imports it; False where it is not installed."""
    try:
        if importlib.util.find_spec("megatron.bridge") is None:
            return False
    except ModuleNotFoundError:
        return False
    _import_all()
    return True


class _Stream:
    def wait_stream(self, *_):
        pass

    def synchronize(self):
        pass


def without_streams() -> None:
    """In this fork: CUDA's streams do nothing.  Megatron-core 0.19 asks for the current one."""
    torch.cuda.Stream = torch.cuda.current_stream = torch.cuda.default_stream = lambda *_, **__: _Stream()
    torch.cuda.stream = lambda _: contextlib.nullcontext()


def pretend_cuda() -> None:
    """In this fork: the CPU runtime, and what Bridge asserts and asks of CUDA beside it."""
    import megatron.bridge.training.initialize as initialize
    from megatron.core.ssm import mamba_mixer

    from nemo_xtoken.training.cpu import layers as cpu_layers
    from nemo_xtoken.training.cpu import runtime as cpu_runtime

    cpu_runtime.enable()
    cpu_layers.Norm.__name__ = "RMSNorm"  # Bridge tells by a layer's name how its weights are spread
    scatter = torch.distributed.scatter

    def scatter_contiguous(tensor, scatter_list=None, **kwargs):
        """Gloo takes memory as it lies, whatever the strides; NCCL does not."""
        return scatter(tensor, scatter_list and [part.contiguous() for part in scatter_list], **kwargs)

    torch.distributed.scatter = scatter_contiguous
    init = torch.distributed.init_process_group
    torch.distributed.init_process_group = lambda backend=None, **kwargs: init("gloo", **kwargs)
    number_experts()
    mamba_mixer._check_mamba_sequence_packing_support = lambda **_: (True, None)  # asks for a package's version
    initialize.compile_helpers = lambda: None  # of Megatron's indexed data sets; the wheel has no makefile
    torch.cuda.is_available = lambda: True
    torch.cuda.set_device = lambda *_: None
    torch.cuda.get_device_properties = lambda *_: types.SimpleNamespace(total_memory=80 << 30)
    without_streams()
    for name in ("memory_allocated", "max_memory_allocated", "memory_reserved", "max_memory_reserved"):
        setattr(torch.cuda, name, lambda *_: 0)
    torch.cuda.memory_stats = lambda *_: {}
    torch.Tensor.pin_memory = lambda tensor, *_: tensor


def number_experts():
    """In this fork: experts without grouped kernels, which are those that a CPU has, are counted over all ranks.

    Bridge up to 0.4 counts those of grouped kernels alone so.
    """
    from megatron.bridge.models.conversion import model_bridge

    known = model_bridge._megatron_local_name_to_global
    if "local_experts" in inspect.getsource(known):
        return

    def numbered(models, config, param_name, vp_stage=None):
        name = known(models, config, param_name, vp_stage)
        before, found, after = name.partition(".local_experts.")
        ranks = model_bridge._get_ep_group(models) if found else None
        if ranks is None or ranks.size() == 1:
            return name
        local, _, rest = after.partition(".")
        here = config.num_moe_experts // ranks.size()
        return f"{before}{found}{here * ranks.rank() + int(local)}.{rest}"

    model_bridge._megatron_local_name_to_global = numbered


def without_kernels(provider):
    """A model provider without what only a GPU's kernels do; its layers are Bridge's own, see ``cpu_engine``."""
    provider.use_cpu_initialization = True
    for fusion in (
        "apply_rope_fusion",
        "gradient_accumulation_fusion",
        "masked_softmax_fusion",
        "moe_grouped_gemm",
        "moe_permute_fusion",
        "moe_router_fusion",
        "moe_shared_expert_overlap",
        "persist_layer_norm",
    ):
        setattr(provider, fusion, False)
    if provider.num_moe_experts:
        provider.moe_token_dispatcher_type = "allgather"  # the others wait for CUDA's streams
    # Megatron's loss for the balance of experts is one of a micro-batch, and so of the layout.
    provider.moe_router_load_balancing_type = "none"
    provider.bias_dropout_fusion = provider.bias_activation_fusion = False
    return provider
