"""The real NeMo 2.x stack on a CPU with gloo: what it takes, in one explicit call.

Importing this module changes nothing.  Call :func:`enable` once per process, in the thread that trains, before the
trainer runs; :func:`disable` takes everything back.  Trainer, strategy, Megatron's schedules, optimizer and distributed
checkpoints stay the stock code; tensors live on the CPU.  This is the only module that changes others, except for what
:mod:`~nemo_xtoken.training.cpu.megatron_import` does while Megatron is imported.

Holds for nemo-toolkit 2.6 to 2.7, megatron-core 0.15 (0.17 to 0.19 under Megatron-Bridge): TP, SP, PP, DP, CP,
distributed optimizer, fp32, bf16, torch_dist checkpoints (synchronous and asynchronous), resume.  Dropout is exact on
resume only if RNG states are saved too.
"""

import logging
import pickle
import tempfile
from types import SimpleNamespace
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

__all__ = ["disable", "enable", "is_enabled"]

_ABSENT = object()
_undo: list[tuple[Any, str | None, Any]] = []  # (object, attribute, old value), newest last


def _is_cuda(device: Any) -> bool:
    return isinstance(device, (str, torch.device)) and str(device).startswith("cuda")


#: Functions that name a device, or are asked for one, without a keyword.
_NAMING_DEVICES = {torch.Tensor.cuda, torch.Tensor.pin_memory, torch.Tensor.type, torch.Tensor.to}


class _CudaToCpu(TorchFunctionMode):
    """Sends what names CUDA literally (device="cuda", .cuda(), .to("cuda"), pinned memory) to the CPU."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if not kwargs and func not in _NAMING_DEVICES:  # most calls, of which a step has thousands
            return func(*args)
        kwargs = kwargs or {}
        if func is torch.Tensor.cuda or func is torch.Tensor.pin_memory:
            return args[0]
        if func is torch.Tensor.type and len(args) == 1:  # mcore compares with 'torch.cuda.FloatTensor' and the like
            return func(*args).replace("torch.", "torch.cuda.", 1)
        if _is_cuda(kwargs.get("device")):
            kwargs = {**kwargs, "device": "cpu"}
        if kwargs.get("pin_memory"):
            kwargs = {**kwargs, "pin_memory": False}
        if func is torch.Tensor.to:
            args = tuple("cpu" if _is_cuda(a) else a for a in args)
        return func(*args, **kwargs)


class _FusedAdam(torch.optim.Adam):
    """Adam(W) with the state layout of Apex's and TE's FusedAdam: ``step`` is kept per param group, not per param.

    Without Apex and TE, Megatron-core takes torch's AdamW, whose layout its DistributedOptimizer cannot save or load.

    For a model in bfloat16, whose weights Megatron copies in float32 after this is made, a step is one pass over them:
    a sixth of the time.  A model in float32 has PyTorch's own order of operations, so that its runs repeat to the bit.
    """

    def __init__(self, params, adam_w_mode=True, **kwargs):
        params = list(params)
        every = [p for entry in params for p in (entry["params"] if isinstance(entry, dict) else [entry])]
        half = any(p.dtype == torch.bfloat16 for p in every)
        super().__init__(params, decoupled_weight_decay=adam_w_mode, fused=half or None, **kwargs)

    def __setstate__(self, state):  # Adam's own insists on a per-param step
        torch.optim.Optimizer.__setstate__(self, state)

    def step(self, closure=None):
        todo = [(group, p) for group in self.param_groups for p in group["params"] if p.grad is not None]
        for group, p in todo:
            state = self.state[p]
            if not state:
                state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(p), torch.zeros_like(p)
            state["step"] = torch.tensor(float(group.get("step", 0)))
        super().step(closure)
        for _, p in todo:
            del self.state[p]["step"]
        for group in self.param_groups:
            group["step"] = group.get("step", 0) + 1


class _FileQueue:
    """Holds one item in an unlinked temporary file: put by this process or a fork of it, got by this one."""

    def __init__(self) -> None:
        self.file = tempfile.TemporaryFile()  # noqa: SIM115 (it lives as long as the queue)

    def put(self, item: Any) -> None:
        pickle.dump(item, self.file)
        self.file.flush()

    def get_nowait(self) -> Any:
        self.file.seek(0)
        return pickle.load(self.file)  # noqa: S301 (nobody else can reach the file: it has no name)


def _of_many(collective):
    """A collective over a group that may have a single rank, which then has in place what it would get: gloo would copy
    all weights, and all gradients, in every step."""

    def called(output, given, *args, group=None, async_op=False, **kwargs):
        in_place = output.data_ptr() == given.data_ptr() and output.numel() == given.numel()
        if in_place and not async_op and torch.distributed.get_world_size(group) == 1:
            return None
        return collective(output, given, *args, group=group, async_op=async_op, **kwargs)

    return called


def _set(obj: Any, name: str, value: Any) -> None:
    _undo.append((obj, name, getattr(obj, name, _ABSENT)))
    setattr(obj, name, value)


def is_enabled() -> bool:
    """Whether CPU mode is on."""
    return bool(_undo)


def enable() -> None:
    """Turns CPU mode on; a second call does nothing."""
    if _undo:
        return
    import megatron.core.dist_checkpointing.strategies.filesystem_async as writer
    import megatron.core.dist_checkpointing.strategies.torch as reader
    import megatron.core.distributed.param_and_grad_buffer as buffers
    import megatron.core.fusions.fused_bias_swiglu as swiglu
    import megatron.core.optimizer as optimizer
    import megatron.core.optimizer.distrib_optimizer as distrib
    import megatron.core.tensor_parallel.layers as tensor_parallel
    import megatron.core.tensor_parallel.random as rng
    from megatron.core.extensions.transformer_engine import HAVE_TE
    from megatron.core.models.common.embeddings import rope_utils
    from megatron.core.timers import Timers
    from megatron.core.transformer import transformer_block
    from megatron.core.transformer.moe import moe_utils

    from nemo_xtoken.training.cpu import direct_gradients, kept_memory
    from nemo_xtoken.training.cpu import layers as cpu_layers
    from nemo_xtoken.training.cpu.extra_state import without_missing

    _set(torch.cuda, "current_device", lambda: torch.device("cpu"))  # these raise on a CPU build of torch
    _set(torch.cuda, "synchronize", lambda *a, **k: None)
    _set(torch.cuda, "Stream", lambda *a, **k: None)  # torch.cuda.stream(None) is a no-op context
    _set(torch.cuda, "device_count", lambda: 1)  # 0 makes NeMo skip the model-parallel RNG seeds
    # In PyTorch's CUDA builds a GPU is available where one is counted (Lightning asks for this way, which needs no
    # driver), and an accelerator is what the build is for: Adam would ask for its stream, and with that for a driver.
    _set(torch.cuda, "is_available", lambda: False)
    _set(torch.accelerator, "current_accelerator", lambda check_available=False: None)

    # Megatron's RNG tracker: one state per name, forked from and back to "the CUDA generator", here the CPU's.
    _set(torch.cuda, "manual_seed", lambda seed: torch.manual_seed(seed))
    for module, get, put in (
        (torch.cuda, "get_rng_state", "set_rng_state"),
        (rng, "_get_cuda_rng_state", "_set_cuda_rng_state"),
    ):
        _set(module, get, lambda *a, **k: torch.get_rng_state())
        _set(module, put, lambda state, *a, **k: torch.set_rng_state(state))
    _set(logging.getLogger(rng.__name__), "disabled", True)  # it warns, at every fork, that the CPU's state changed

    # NeMo's ProgressPrinter asks for Megatron's timers on global rank 0 only: with none running that is an all_gather
    # of nothing over WORLD.  NCCL does nothing, but gloo counts it, so rank 0's WORLD group gets out of step with the
    # others' and the next WORLD collective (the first checkpoint's) waits for ever.  No timers, no collective:
    all_timers = Timers.get_all_timers_string

    def get_all_timers_string(self, names=None, *args, **kwargs):
        return all_timers(self, names, *args, **kwargs) if (self._timers if names is None else names) else None

    _set(Timers, "get_all_timers_string", get_all_timers_string)

    if optimizer.USING_PYTORCH_OPTIMIZER:
        _set(optimizer, "USING_PYTORCH_OPTIMIZER", False)
        _set(optimizer, "Adam", _FusedAdam)
        _set(distrib, "HAVE_APEX_OR_TE", True)
        _set(distrib, "USING_APEX_OPTIMIZER", True)
    # mcore 0.15.3 forgot no_grad here, so dp_reshardable state does not load into fp32 parameters (on GPU neither).
    cls, load = distrib.DistributedOptimizer, "load_parameter_state_from_dp_reshardable"
    _set(cls, load, torch.no_grad()(getattr(cls, load)))

    # In the place of the CUDA extension, for what `training.inputs.prepare_config` asks for; else nobody calls them.
    names = "wgrad_gemm_accum_fp32", "wgrad_gemm_accum_fp16"
    fused = SimpleNamespace(**dict.fromkeys(names, direct_gradients.add_weight_gradient))
    _set(tensor_parallel, "fused_weight_gradient_mlp_cuda", fused)
    _set(tensor_parallel, "_grad_accum_fusion_available", True)
    _set(tensor_parallel, "F", SimpleNamespace(embedding=direct_gradients.embedding))  # it uses no other function

    _set(swiglu, "swiglu_back", cpu_layers.swiglu_back)
    for name in ("dist_all_gather_func", "dist_reduce_scatter_func"):
        if hasattr(buffers, name):
            _set(buffers, name, _of_many(getattr(buffers, name)))

    # For this queue every rank spawns a Manager that imports __main__ and torch (seconds, 300 MB), outliving a kill.
    names = "_get_write_results_queue", "get_write_results_queue"  # mcore 0.15's, 0.19's
    _set(writer, next(name for name in names if hasattr(writer, name)), _FileQueue)

    cls = reader.TorchDistLoadShardedStrategy  # layers of a GPU, and of older versions, have other extra states
    _set(cls, "load", without_missing(cls.load))

    _enable_nemo()
    if not HAVE_TE:
        _set(transformer_block, "LayerNormImpl", cpu_layers.Norm)  # the final norm
        if not hasattr(moe_utils, "te_general_gemm"):  # mcore 0.15.3's router asks whether it is None
            _set(moe_utils, "te_general_gemm", None)
        _set(rope_utils, "fused_apply_rotary_pos_emb", cpu_layers.rotary)  # configs that ask for the fused one raise

    torch.compiler.set_stance("force_eager")  # mcore's jit_fuser is torch.compile: 5 s and a C++ compiler per run
    for within in (kept_memory.Kept(), _CudaToCpu()):
        within.__enter__()
        _undo.append((within, None, None))


def _enable_nemo() -> None:
    """What NeMo 2 itself needs, where it is installed."""
    try:
        import lightning.pytorch.accelerators.cuda as lightning_cuda
        import nemo.lightning.io.pl as nemo_io
        from nemo.collections.llm.gpt.model import base
        from nemo.collections.llm.peft import lora
        from nemo.collections.llm.peft import utils as lora_utils
    except ModuleNotFoundError:  # under Megatron-Bridge
        return
    from nemo_xtoken.training.cpu import layers as cpu_layers

    _set(lightning_cuda, "num_cuda_devices", lambda: 0)  # else a trainer made from now on finds a GPU not in use
    _set(nemo_io, "_fix_tensors_device", lambda checkpoint: checkpoint)  # asserts that CUDA is initialised
    if not base.HAVE_TE:
        _set(base, "local_layer_spec", cpu_layers.layer_spec)  # what NeMo's default layer spec falls back to
        _set(lora_utils, "HAVE_TE", False)  # of megatron-core's classes some are None then
    if not lora.HAVE_TE:
        _set(lora, "te", SimpleNamespace(Linear=None))  # it asks of every layer whether it is one


def disable() -> None:
    """Takes back all that :func:`enable` changed (in the same thread, with no later mode still active)."""
    while _undo:
        obj, name, value = _undo.pop()
        if name is None:
            obj.__exit__(None, None, None)
            torch.compiler.set_stance("default")
        elif value is _ABSENT:
            delattr(obj, name)
        else:
            setattr(obj, name, value)
