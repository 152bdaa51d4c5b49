"""Qwen3-4B into Llama-3.2-1B by ULD, a baseline of the paper.

ULD sorts both distributions and compares them rank by rank, whatever the tokens are.  The paper: 36.77 on average over
its five tasks, as much as continued pre-training alone (36.63).  It is here to be compared with.

    xtoken import model=meta-llama/Llama-3.2-1B out=nemo/llama-1b
    xtoken import model=Qwen/Qwen3-4B out=nemo/qwen3-4b
    nemo llm distill --recipe xtoken_uld_qwen3_llama1b data.text.paths='["climbmix/*.parquet"]' \\
        resume.restore_config.path=nemo/llama-1b teacher.path=nemo/qwen3-4b

Settings, data
    As in ``xtoken_qwen3_llama1b``, whose text says which are the paper's (arXiv 2605.21699), which the nearest public
    configuration's and which ours.
    Ours also: only the 4096 largest values of a side are compared one by one (``teacher.options.sorted_cap``).

GPUs
    1, 2, 8 or 16 nodes of 8 H100 (80 GB): as many as the job has, or ``--recipe "xtoken_uld_qwen3_llama1b(nodes=8)"``.
    Estimated, not measured (docs/recipes.md): 38 GiB of a GPU and 6.5 days on 1 node, 27 GiB and 10 h on 16.
"""

from typing import Optional

import nemo_run as run
from nemo.collections import llm

from nemo_xtoken.data.config import DataConfig
from nemo_xtoken.losses.base import ChunkLossConfig
from nemo_xtoken.losses.registry import DivergenceOptions
from nemo_xtoken.objective.scale import ObjectiveConfig
from nemo_xtoken.plugin.nemo2.data import DistillationData
from nemo_xtoken.plugin.nemo2.distill import distill
from nemo_xtoken.plugin.nemo2.teacher import TeacherConfig
from nemo_xtoken.recipes.common import (
    Layout,
    adamw,
    bf16_trainer,
    checkpoints,
    from_checkpoint,
    imported_student,
    lay_out,
)

__all__ = ["xtoken_uld_qwen3_llama1b"]

#: By number of nodes.  Everything fits a GPU, so each is a replica; 128 of them get 6 of the 768 samples each.
LAYOUTS = {1: Layout(micro_batch=4), 16: Layout(micro_batch=2)}


def xtoken_uld_qwen3_llama1b(nodes: Optional[int] = None) -> run.Partial:
    """The recipe, for so many nodes of 8 GPUs (default: the job's); everything in it can be overridden."""
    nodes, layout = lay_out(nodes, LAYOUTS)
    return run.Partial(
        distill,
        model=imported_student(run.Config(llm.Llama32Config1B, seq_length=4096)),
        teacher=run.Config(
            TeacherConfig,
            loss="uld",
            options=run.Config(DivergenceOptions),
            chunks=run.Config(ChunkLossConfig, temperature=1.0),
        ),
        data=run.Config(
            DistillationData,
            text=run.Config(
                DataConfig, paths=[], student_length=4096, teacher_length=4608, held_out=2000, workers=16
            ),
            micro_batch_size=layout.micro_batch,
            global_batch_size=768,
            loader_workers=2,
        ),
        objective=run.Config(ObjectiveConfig, scale="dynamic"),
        trainer=bf16_trainer(nodes, layout, steps=30_000, validate_every=1000),
        optim=adamw(lr=5e-5, min_lr=5e-6, warmup_steps=4000, beta2=0.98, weight_decay=0.1),
        log=checkpoints("xtoken_uld_qwen3_llama1b", every=500),
        resume=from_checkpoint(),
    )  # fmt: skip
