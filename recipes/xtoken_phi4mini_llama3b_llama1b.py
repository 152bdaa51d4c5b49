"""Phi-4-mini and Llama-3.2-3B into Llama-3.2-1B: two teachers, one with another tokenizer.

The loss is 0.8 H-KL to Phi-4-mini plus 0.2 KL to Llama-3.2-3B, which has the student's tokenizer and needs neither
alignment nor W.  Both are read in one pass over the student's logits.  The paper's best: 40.48 on average over its five
tasks, with these static weights; its adaptive ones (``objective.teacher_weights=confidence``) come to 40.16 to 40.21.

    xtoken import model=meta-llama/Llama-3.2-1B out=nemo/llama-1b
    xtoken import model=microsoft/Phi-4-mini-instruct out=nemo/phi4-mini
    xtoken import model=meta-llama/Llama-3.2-3B out=nemo/llama-3b
    nemo llm distill --recipe xtoken_phi4mini_llama3b_llama1b data.text.paths='["climbmix/*.parquet"]' \\
        resume.restore_config.path=nemo/llama-1b teachers.phi.path=nemo/phi4-mini teachers.llama.path=nemo/llama-3b

Settings, data
    As in ``xtoken_qwen3_llama1b``, whose text says which are the paper's (arXiv 2605.21699), which the nearest public
    configuration's and which ours.
    The teachers' weights are the paper's.

GPUs
    1, 2, 8 or 16 nodes of 8 H100 (80 GB): as many as the job has, or
    ``--recipe "xtoken_phi4mini_llama3b_llama1b(nodes=8)"``.
    Estimated, not measured (docs/recipes.md): 44 GiB of a GPU and 9.7 days on 1 node, 33 GiB and 15 h on 16.
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
from nemo_xtoken.projection.build import ProjectionRule
from nemo_xtoken.recipes.common import (
    Layout,
    adamw,
    bf16_trainer,
    checkpoints,
    from_checkpoint,
    imported_student,
    lay_out,
)

__all__ = ["xtoken_phi4mini_llama3b_llama1b"]

#: By number of nodes.  Everything fits a GPU, so each is a replica; 128 of them get 6 of the 768 samples each.
LAYOUTS = {1: Layout(micro_batch=4), 16: Layout(micro_batch=2)}


def xtoken_phi4mini_llama3b_llama1b(nodes: Optional[int] = None) -> run.Partial:
    """The recipe, for so many nodes of 8 GPUs (default: the job's); everything in it can be overridden."""
    nodes, layout = lay_out(nodes, LAYOUTS)
    return run.Partial(
        distill,
        model=imported_student(run.Config(llm.Llama32Config1B, seq_length=4096)),
        teachers={
            "phi": run.Config(
                TeacherConfig,
                loss="h_kl",
                weight=0.8,
                options=run.Config(DivergenceOptions),
                chunks=run.Config(ChunkLossConfig, temperature=1.0),
                rule=run.Config(ProjectionRule),
            ),
            "llama": run.Config(
                TeacherConfig,
                loss="same_tokenizer",
                weight=0.2,
                options=run.Config(DivergenceOptions),
                chunks=run.Config(ChunkLossConfig, temperature=1.0),
            ),
        },
        data=run.Config(
            DistillationData,
            text=run.Config(
                DataConfig, paths=[], student_length=4096, teacher_length=4096, held_out=2000, workers=16
            ),
            micro_batch_size=layout.micro_batch,
            global_batch_size=768,
            loader_workers=2,
        ),
        objective=run.Config(ObjectiveConfig, scale="dynamic", teacher_weights="static"),
        trainer=bf16_trainer(nodes, layout, steps=30_000, validate_every=1000),
        optim=adamw(lr=5e-5, min_lr=5e-6, warmup_steps=4000, beta2=0.98, weight_decay=0.1),
        log=checkpoints("xtoken_phi4mini_llama3b_llama1b", every=500),
        resume=from_checkpoint(),
    )  # fmt: skip
