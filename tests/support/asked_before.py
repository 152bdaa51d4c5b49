"""What every run of the NeMo stack asks once in its process, and is told the same: asked before processes are forked.

Modules that are imported late, which optional packages are installed, whether a number is a collection: some 5% of what
a run of a toy costs.
"""

import importlib
from contextlib import suppress

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
    pl.Trainer(accelerator="cpu", logger=False, barebones=True)
    apply_to_collection([0, 0.0, True, "", None, b"", torch.zeros(1), torch.nn.Parameter(torch.zeros(1))], str, str)
