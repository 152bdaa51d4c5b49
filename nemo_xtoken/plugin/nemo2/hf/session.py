"""NeMo's trainer for the time of a conversion: one process, on the CPU, whatever started it."""

import contextlib
from collections.abc import Iterator
from typing import Any

import nemo.lightning as nl
import torch
import torch.distributed as dist
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.trainer.states import TrainerFn
from megatron.core import parallel_state
from nemo.lightning import teardown

from nemo_xtoken.training.cpu import runtime as cpu_runtime

__all__ = ["prepare", "refuse_in_training", "trainer_for"]


class _OneProcess(LightningEnvironment):
    """Not Slurm's, not torchrun's: a conversion is one process also where a job has many."""

    def world_size(self) -> int:
        return 1

    def global_rank(self) -> int:
        return 0

    def local_rank(self) -> int:
        return 0

    def node_rank(self) -> int:
        return 0


def prepare() -> None:
    """Before NeMo's configurations are made: without a GPU they would ask for Transformer Engine."""
    if not torch.cuda.is_available():
        cpu_runtime.enable()


def refuse_in_training() -> None:
    """
    Raises:
        RuntimeError: this process has process groups: training has begun, and a conversion needs its own.
    """
    if dist.is_initialized():
        raise RuntimeError("a checkpoint is converted before or after training, or in a process of its own")


@contextlib.contextmanager
def trainer_for(model: Any, **strategy: Any) -> Iterator[nl.Trainer]:
    """A trainer with ``model``, built (weights not initialised); process groups are gone afterwards.

    Groups of one process are taken for what NeMo left: ``nemo llm export`` loads a model in another way first.

    Args:
        strategy: arguments of ``MegatronStrategy``.

    Raises:
        RuntimeError: this process is one of several that train.
    """
    prepare()
    if dist.is_initialized() and dist.get_world_size() == 1:
        parallel_state.destroy_model_parallel()
        dist.destroy_process_group()
    refuse_in_training()
    from nemo.lightning import _strategy_lib

    trainer = nl.Trainer(
        devices=1,
        num_nodes=1,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        plugins=[_OneProcess()],
        strategy=nl.MegatronStrategy(ckpt_async_save=False, **strategy),
    )
    try:
        trainer.state.fn = TrainerFn.FITTING  # NeMo saves a context then
        trainer.strategy.connect(model)
        model.trainer = trainer
        trainer.strategy.setup_environment()
        with _strategy_lib.megatron_cpu_init_context(model.config):
            model.configure_model()
        yield trainer
    finally:
        teardown(trainer, model)
