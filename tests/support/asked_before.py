"""What every run of the NeMo stack asks once in its process, and is told the same: asked before processes are forked.

Modules that are imported late, which optional packages are installed, whether a number is a collection, which fields a
configuration has: some 10% of what a run of a toy costs.
"""

import collections.abc
import functools
import importlib
import inspect
import io
import pathlib
from contextlib import suppress
from typing import Any

__all__ = ["ask_before"]

_LATE = (
    "fsspec.implementations.cached",
    "nemo_xtoken.training.cpu.direct_gradients",
    "nemo_xtoken.training.cpu.extra_state",
    "nemo_xtoken.training.cpu.kept_memory",
    "nemo_xtoken.training.cpu.layers",
    "torch.distributed.algorithms.ddp_comm_hooks.post_localSGD_hook",
    "torch.profiler._cupti_monitor",
    "torch.utils.serialization",
)


def ask_before() -> None:
    """For forks of this process, which has imported NeMo."""
    import lightning.pytorch as pl
    import torch
    from lightning_utilities.core.apply_func import apply_to_collection

    for name in _LATE:
        with suppress(ImportError):  # of another version
            importlib.import_module(name)
    _keep_answers()
    pl.Trainer(accelerator="cpu", logger=False, barebones=True)
    apply_to_collection([0, 0.0, True, "", None, b"", torch.zeros(1), torch.nn.Parameter(torch.zeros(1))], str, str)
    with suppress(ImportError):  # of another version
        _ask_for_kinds()


def _keep_answers() -> None:
    """Of functions that look through all fields of a class, and through all installed packages, at each call."""
    for module, name in (
        ("fiddle._src.config", "_field_uses_default_factory"),
        ("lightning.fabric.utilities.registry", "entry_points"),
    ):
        with suppress(ImportError, AttributeError):  # of another version
            owner = importlib.import_module(module)
            answer = getattr(owner, name)
            if not hasattr(answer, "cache_info"):
                setattr(owner, name, functools.cache(answer))


def _ask_for_kinds() -> None:
    """Whether a class is of a kind, which Python looks for in each kind's subclasses, and remembers."""
    import torch
    from lightning.pytorch.trainer.connectors.logger_connector import result
    from megatron.core.dist_checkpointing import mapping
    from nemo.collections.llm import LlamaConfig
    from nemo.lightning import MegatronStrategy
    from torch.distributed._shard.sharded_tensor.api import ShardedTensor
    from torchmetrics import Metric

    from nemo_xtoken.data.dataset import DistillationDataset

    kinds: list[Any] = [getattr(collections.abc, name) for name in collections.abc.__all__]
    of_python = (bool, bytes, dict, float, int, list, set, str, tuple, collections.OrderedDict)
    of_functions = (type(len), type(ask_before), type(pathlib.Path().exists), inspect.Signature)
    of_torch = (torch.Tensor, torch.device, torch.dtype, ShardedTensor)
    of_stack = (mapping.ShardedTensor, mapping.ShardedObject, LlamaConfig, MegatronStrategy, DistillationDataset)
    of_results = [found for name in ("_Sync", "_Metadata") if (found := getattr(result, name, None))]
    for one in (*of_python, *of_functions, *of_torch, *of_stack, *of_results, type(None), io.BytesIO):
        for kind in (*kinds, Metric):
            issubclass(one, kind)
