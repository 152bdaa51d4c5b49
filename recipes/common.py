"""What the recipes of real models share: how a run lies on its GPUs, precision, optimizer, checkpoints, the start.

Each recipe is one file that says what it trains on what; these are the parts that would read the same in all of them.
"""

import os
from collections.abc import Mapping
from inspect import signature
from typing import Optional, Union

import nemo.lightning as nl
import nemo_run as run
import torch
from megatron.core.distributed import DistributedDataParallelConfig
from megatron.core.optimizer import OptimizerConfig
from nemo.lightning.pytorch.optim import CosineAnnealingScheduler

from nemo_xtoken.launch.precision import choose_precision, processor_flags
from nemo_xtoken.launch.ranks import job_nodes
from nemo_xtoken.plugin.nemo2 import student
from nemo_xtoken.plugin.nemo2.model import DistillationModel
from nemo_xtoken.run.node_layouts import Layout, choose_layout

__all__ = [
    "GPUS",
    "Layout",
    "adamw",
    "bf16_trainer",
    "checkpoints",
    "from_checkpoint",
    "imported_student",
    "lay_out",
    "mixed_precision",
    "of_one_architecture",
    "plain_adamw",
    "plain_trainer",
    "saving",
]

GPUS = 8  # on a node


def lay_out(nodes: Optional[int], layouts: Mapping[int, Layout]) -> tuple[int, Layout]:
    """The number of nodes of a run, and its layout.

    Args:
        nodes: of 8 GPUs; None: those of the job that ``srun`` or ``torchrun`` started this process in, else 1.
        layouts: by number of nodes, see `choose_layout`.
    """
    nodes = job_nodes(os.environ) if nodes is None else nodes
    return nodes, choose_layout(nodes, layouts)


def of_one_architecture(recipe: run.Partial, config: run.Config) -> run.Partial:
    """The recipe ``xtoken`` for a student of this architecture, from a checkpoint at ``resume.restore_config.path``.

    So all that it needs can be checked and planned without the model.  ``student=MODEL`` takes another.

    Args:
        recipe: changed.
        config: see `imported_student`.
    """
    del recipe.student, recipe.export
    recipe.model, recipe.resume = imported_student(config), from_checkpoint()
    return recipe


def imported_student(config: run.Config) -> run.Config:
    """A student that starts from a checkpoint (`from_checkpoint`), whose tokenizer it has unless another is named.

    Args:
        config: one of NeMo's for the architecture of the checkpoint, its layers Transformer Engine's where it is found.
    """
    config.apply_rope_fusion = run.Config(student.fused_rope)
    return run.Config(DistillationModel, config=config, tokenizer=run.Config(student.tokenizer))


def from_checkpoint() -> run.Config:
    """The student's weights: those of the run's newest checkpoint, at first those at ``restore_config.path``."""
    return run.Config(
        nl.AutoResume,
        restore_config=run.Config(nl.RestoreConfig, path=None),
        resume_if_exists=True,
        resume_ignore_no_checkpoint=True,
    )


def saving() -> dict[str, bool]:
    """How NeMo's strategy writes checkpoints: at once, the optimizer so that any other layout can go on from it.

    NeMo 2.7's own default lets the number of data-parallel ranks change alone; 2.6 has no argument, and writes this.
    """
    whole = "ckpt_optim_fully_reshardable"
    return {"ckpt_async_save": False} | ({whole: True} if whole in signature(nl.MegatronStrategy).parameters else {})


def bf16_trainer(nodes: int, layout: Layout, steps: int, validate_every: int) -> run.Config:
    """NeMo's trainer: bfloat16 with gradients added up in float32, and communication behind computation."""
    return run.Config(
        nl.Trainer,
        accelerator="auto",
        devices=GPUS,
        num_nodes=nodes,
        max_steps=steps,
        val_check_interval=validate_every,
        limit_val_batches=1.0,
        num_sanity_val_steps=0,
        log_every_n_steps=10,
        logger=False,
        use_distributed_sampler=False,
        strategy=run.Config(
            nl.MegatronStrategy,
            **layout.strategy,
            pipeline_dtype=torch.bfloat16,
            gradient_as_bucket_view=True,
            **saving(),
            progress_interval=10,
            ddp=run.Config(
                DistributedDataParallelConfig,
                grad_reduce_in_fp32=True,
                overlap_grad_reduce=True,
                overlap_param_gather=True,
                check_for_nan_in_grad=True,
            ),
        ),
        plugins=run.Config(
            nl.MegatronMixedPrecision,
            precision="bf16-mixed",
            params_dtype=torch.bfloat16,
            pipeline_dtype=torch.bfloat16,
            autocast_enabled=False,
            grad_reduce_in_fp32=True,
        ),
    )


def plain_trainer(steps: int, validate_every: int, devices: Union[int, str] = 1) -> run.Config:
    """NeMo's trainer for any machine, with the precision that suits it.

    Args:
        steps, validate_every: of training, and from one validation to the next.
        devices: processes; ``auto``: one for each GPU that is there (for a run of any pair).
    """
    return run.Config(
        nl.Trainer,
        accelerator="auto",
        devices=devices,
        num_nodes=1,
        max_steps=steps,
        val_check_interval=validate_every,
        limit_val_batches=1.0,
        num_sanity_val_steps=0,
        log_every_n_steps=10,
        logger=False,
        use_distributed_sampler=False,
        strategy=run.Config(nl.MegatronStrategy, **saving(), progress_interval=10),
        plugins=run.Config(mixed_precision),
    )


def plain_adamw(lr: float, min_lr: float, weight_decay: float) -> run.Config:
    """AdamW beside `plain_trainer`, which says the precision; 100 steps of warm-up, then a cosine to the last step."""
    return run.Config(
        nl.MegatronOptimizerModule,
        config=run.Config(
            OptimizerConfig,
            optimizer="adam",
            lr=lr,
            weight_decay=weight_decay,
            adam_beta2=0.98,
            clip_grad=1.0,
            use_distributed_optimizer=True,
        ),
        lr_scheduler=run.Config(CosineAnnealingScheduler, warmup_steps=100, constant_steps=0, min_lr=min_lr),
    )


def adamw(lr: float, min_lr: float, warmup_steps: int, beta2: float, weight_decay: float) -> run.Config:
    """AdamW whose states are spread over the data-parallel ranks; a linear warm-up, then a cosine to the last step."""
    return run.Config(
        nl.MegatronOptimizerModule,
        config=run.Config(
            OptimizerConfig,
            optimizer="adam",
            lr=lr,
            weight_decay=weight_decay,
            adam_beta1=0.9,
            adam_beta2=beta2,
            clip_grad=1.0,
            bf16=True,
            params_dtype=torch.bfloat16,
            use_distributed_optimizer=True,
        ),
        lr_scheduler=run.Config(
            CosineAnnealingScheduler, warmup_steps=warmup_steps, constant_steps=0, min_lr=min_lr
        ),
    )  # fmt: skip


def checkpoints(name: str, every: int) -> run.Config:
    """The folder ``runs/NAME``, and a checkpoint every so many steps, of which the newest stays."""
    return run.Config(
        nl.NeMoLogger,
        log_dir="runs",
        name=name,
        use_datetime_version=False,
        ckpt=run.Config(
            nl.ModelCheckpoint,
            every_n_train_steps=every,
            save_last=True,
            save_top_k=1,
            monitor="step",
            mode="max",
        ),
    )


def mixed_precision(precision: Optional[str] = None) -> nl.MegatronMixedPrecision:
    """NeMo's precision plugin.

    Args:
        precision: ``bf16-mixed`` or ``32``; by default the first with a GPU and on a processor that multiplies bfloat16
            (``launch.precision``), else the second.
    """
    if precision is None:
        precision = choose_precision(torch.cuda.is_available(), processor_flags()).value
    if precision == "32":
        return nl.MegatronMixedPrecision(precision="32")
    return nl.MegatronMixedPrecision(
        precision=precision, params_dtype=torch.bfloat16, pipeline_dtype=torch.bfloat16, autocast_enabled=False
    )
