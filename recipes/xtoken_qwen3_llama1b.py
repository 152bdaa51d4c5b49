"""Qwen3-4B into Llama-3.2-1B by P-KL, over both whole vocabularies.

Llama reads 201 as one token, Qwen as 2, 0, 1: no numeral of two or three digits is a token of both, so that losses over
common tokens leave arithmetic out.  P-KL carries the student's probabilities into the teacher's vocabulary by W.

    xtoken import model=meta-llama/Llama-3.2-1B out=nemo/llama-1b
    xtoken import model=Qwen/Qwen3-4B out=nemo/qwen3-4b
    nemo llm distill --recipe xtoken_qwen3_llama1b data.text.paths='["climbmix/*.parquet"]' \\
        resume.restore_config.path=nemo/llama-1b teacher.path=nemo/qwen3-4b

W is fixed here (the paper: 38.37 on average over its five tasks); ``teacher.learned=true`` trains it along (38.85).

Settings
    The paper's (arXiv 2605.21699): the pair, the loss, 30,000 steps, temperature 1, ``CE + sg(CE / KD) * KD``.  Its KL
    is over the 8192 best tokens (``teacher.options.top_k=8192``), its ratio that of a micro-batch
    (``objective.scale=dynamic_per_microbatch``), here that of the step before.
    Not published, so the nearest public configuration's: AdamW 5e-5, betas .9 and .98, weight decay .1, clipping at 1,
    768 sequences of 4096 tokens, 4000 steps of warm-up, then a cosine.
    Ours: the cosine ends at a tenth; the teacher's sequences are an eighth longer, as it cuts numerals; the layout.

Data
    Text.  The paper's is Nemotron-ClimbMix (CC BY-NC 4.0): published as GPT-2 tokens with a script that turns them into
    text, and by others as text.  30,000 steps read 94 billion student tokens.

GPUs
    1, 2, 8 or 16 nodes of 8 H100 (80 GB): as many as the job has, or ``--recipe "xtoken_qwen3_llama1b(nodes=8)"``.
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

__all__ = ["xtoken_qwen3_llama1b"]

#: By number of nodes.  Everything fits a GPU, so each is a replica; 128 of them get 6 of the 768 samples each.
LAYOUTS = {1: Layout(micro_batch=4), 16: Layout(micro_batch=2)}


def xtoken_qwen3_llama1b(nodes: Optional[int] = None) -> run.Partial:
    """The recipe, for so many nodes of 8 GPUs (default: the job's); everything in it can be overridden."""
    nodes, layout = lay_out(nodes, LAYOUTS)
    return run.Partial(
        distill,
        model=imported_student(run.Config(llm.Llama32Config1B, seq_length=4096)),
        teacher=run.Config(
            TeacherConfig,
            loss="p_kl",
            learned=False,
            options=run.Config(DivergenceOptions),
            chunks=run.Config(ChunkLossConfig, temperature=1.0),
            rule=run.Config(ProjectionRule),
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
        log=checkpoints("xtoken_qwen3_llama1b", every=500),
        resume=from_checkpoint(),
    )  # fmt: skip
