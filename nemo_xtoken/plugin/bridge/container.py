"""Bridge's configuration of a run, from this package's arguments.  Imports Bridge."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

import torch
from megatron.bridge.training.config import (
    CheckpointConfig,
    ConfigContainer,
    DatasetBuildContext,
    DatasetProvider,
    DistributedDataParallelConfig,
    DistributedInitConfig,
    LoggerConfig,
    OptimizerConfig,
    RNGConfig,
    SchedulerConfig,
    TrainingConfig,
)
from megatron.bridge.training.mixed_precision import MixedPrecisionConfig
from megatron.bridge.training.tokenizers.config import TokenizerConfig

from nemo_xtoken.errors import InputError
from nemo_xtoken.plugin.bridge.batches import HeldOutBatches, StepBatches
from nemo_xtoken.plugin.bridge.bridge_config import Data, Log, Optimizer, Trainer
from nemo_xtoken.plugin.bridge.models import BF16
from nemo_xtoken.training.learned_parameters import check_rates

__all__ = ["AlignedText", "make_container"]


@dataclass
class AlignedText(DatasetProvider):
    """Hands batches that are made elsewhere to Bridge's loop, which uses them unchanged.

    The batches are not part of Bridge's configuration: `with_batches` gives them.
    """

    def with_batches(self, train: StepBatches, held_out: Optional[HeldOutBatches]) -> "AlignedText":
        """Sets the batches."""
        self._batches = train, held_out
        return self

    def build_datasets(self, context: DatasetBuildContext) -> tuple[Any, Any, Any]:
        """Training, held-out, and no test batches."""
        return *self._batches, None


def make_container(
    provider: Any,
    data: Data,
    dataset: AlignedText,
    evaluation_steps: int,
    trainer: Trainer,
    optim: Optimizer,
    log: Log,
    folder: Path,
    start: str | None,
    resume: bool,
    ids: int,
    rate: float = 0.0,
) -> ConfigContainer:
    """The configuration for ``pretrain``.

    Args:
        provider: of the student, as ``models.prepare_student`` leaves it.
        evaluation_steps: global batches that are held out; 0: none.
        folder: of the run.
        start: folder of Bridge's checkpoints that a new run starts from; None: the provider has the weights.
        resume: continue from the newest checkpoint in the run's folder.
        ids: V_S.
        rate: of learned W; 0: none is learned.

    Raises:
        InputError: learned W, where this version of Bridge has no learning rate for single parameters.
    """
    half = trainer.plugins.precision == BF16
    dtype = torch.bfloat16 if half else torch.float32
    checkpoints = str(folder / "checkpoints")
    every: dict[str, Any] = {"eval_interval": trainer.val_check_interval, "eval_iters": evaluation_steps}
    container: dict[str, Any] = {}
    if any(field.name == "validation" for field in dataclasses.fields(ConfigContainer)):  # Bridge 0.4 moved them
        from megatron.bridge.training.config import ValidationConfig

        container["validation"], every = ValidationConfig(**every), {}
    if rate:
        container["optimizer_config_override_provider"] = _learned_rate(rate, optim)
    return ConfigContainer(
        model=provider,
        train=TrainingConfig(
            train_iters=trainer.max_steps,
            micro_batch_size=data.micro_batch_size,
            global_batch_size=data.global_batch_size,
            exit_signal_handler=True,  # on SIGTERM a checkpoint, then the end
            **every,
        ),
        optimizer=OptimizerConfig(
            optimizer="adam",
            lr=optim.config.lr,
            min_lr=optim.lr_scheduler.min_lr,
            weight_decay=optim.config.weight_decay,
            adam_beta1=optim.config.adam_beta1,
            adam_beta2=optim.config.adam_beta2,
            clip_grad=optim.config.clip_grad,
            use_distributed_optimizer=True,
            bf16=half,
            params_dtype=dtype,
        ),
        scheduler=SchedulerConfig(
            lr_decay_style="cosine",
            lr_warmup_iters=optim.lr_scheduler.warmup_steps,
            # A run that ends before its warm-up does stays on its way up, as under NeMo 2; Bridge wants a step more.
            lr_decay_iters=max(trainer.max_steps, optim.lr_scheduler.warmup_steps + 1),
            start_weight_decay=optim.config.weight_decay,
            end_weight_decay=optim.config.weight_decay,
            override_opt_param_scheduler=True,  # a run that continues with other settings uses those
        ),
        ddp=DistributedDataParallelConfig(
            use_distributed_optimizer=True,
            grad_reduce_in_fp32=True,
            overlap_grad_reduce=True,
            overlap_param_gather=True,
            average_in_collective=False,  # the sum is divided once, by all tokens
            check_for_nan_in_grad=True,
        ),
        mixed_precision=MixedPrecisionConfig(
            bf16=half,
            fp32=not half,
            params_dtype=dtype,
            pipeline_dtype=dtype,
            autocast_enabled=False,
            grad_reduce_in_fp32=True,
        ),
        dataset=dataset,
        # Bridge's filter would drop this package's warnings too.
        logger=LoggerConfig(log_interval=trainer.log_every_n_steps, filter_warnings=False),
        # One that has nothing but a size.  In some versions its own is one more than it is given.
        tokenizer=TokenizerConfig(tokenizer_type="NullTokenizer", vocab_size=ids - 1),
        checkpoint=CheckpointConfig(
            save=checkpoints,
            load=checkpoints if resume else None,
            save_interval=log.ckpt.every_n_train_steps,
            most_recent_k=log.ckpt.save_top_k,
            pretrained_checkpoint=start,
        ),
        rng=RNGConfig(seed=trainer.seed),
        dist=DistributedInitConfig(distributed_timeout_minutes=trainer.timeout_minutes),
        **container,
    )


def _learned_rate(rate: float, optim: Optimizer) -> Any:
    try:
        from nemo_xtoken.plugin.bridge.learned_rate import LearnedRate
    except ImportError as error:
        raise InputError(
            f"learned W with this version of Megatron-Bridge ({error})",
            "one in which parameters can have a learning rate of their own: 0.4 or newer",
            "take a newer image, or set learned=false",
        ) from None
    base, lowest = optim.config.lr, optim.lr_scheduler.min_lr
    check_rates(rate, base, lowest)
    return LearnedRate(rate, rate * lowest / base)
