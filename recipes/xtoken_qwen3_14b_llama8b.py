"""Qwen3-14B into Llama-3.1-8B-Instruct on conversations, by P-KL, with the loss on the assistant's turns.

Each side reads a conversation in its own chat template; what the assistant says is aligned, and nothing else is learned
from, neither from the text nor from the teacher.

    xtoken import model=meta-llama/Llama-3.1-8B-Instruct out=nemo/llama-8b
    xtoken import model=Qwen/Qwen3-14B out=nemo/qwen3-14b
    nemo llm distill --recipe xtoken_qwen3_14b_llama8b data.text.paths='["hf:allenai/tulu-3-sft-mixture"]' \\
        resume.restore_config.path=nemo/llama-8b teacher.path=nemo/qwen3-14b

A base model has no chat template: ``data.text.chat_template=FILE`` gives it one.  ``teacher.learned=true`` trains W;
``teacher.loss=prefix_kl`` is the loss that docs/learning.md found to cost less, on small models.

Settings
    The paper has no such run.  The nearest public configuration's, which made an 8B model of this data (arXiv
    2411.15124): AdamW 5e-6, batches of 128, at most 4096 tokens, 3% of the steps to warm up.
    Ours: conversations are packed into sequences of 4096 tokens, of which 2500 steps read 1.3 billion; a cosine to a
    tenth where that decay is linear; betas .9 and .95, weight decay .1 and clipping at 1, as in NeMo's own recipes; the
    teacher's sequences are an eighth longer; the layout.

Data
    Conversations: a column ``messages`` of role and content.  tulu-3-sft-mixture has 939,343 of them (ODC-BY).

GPUs
    1, 2, 8 or 16 nodes of 8 H100 (80 GB): as many as the job has, or ``--recipe "xtoken_qwen3_14b_llama8b(nodes=8)"``.
    Estimated, not measured (docs/recipes.md): 35 GiB of a GPU and 8 h on 1 node, 47 GiB and 32 min on 16.
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

__all__ = ["xtoken_qwen3_14b_llama8b"]

#: By number of nodes.  On one the optimizer's states are spread over few GPUs, which tensor parallelism makes up for.
LAYOUTS = {1: Layout(tensor=4), 2: Layout(tensor=2)}


def xtoken_qwen3_14b_llama8b(nodes: Optional[int] = None) -> run.Partial:
    """The recipe, for so many nodes of 8 GPUs (default: the job's); everything in it can be overridden."""
    nodes, layout = lay_out(nodes, LAYOUTS)
    return run.Partial(
        distill,
        model=imported_student(run.Config(llm.Llama31Config8B, seq_length=4096)),
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
                DataConfig, paths=[], format="chat", messages_key="messages", student_length=4096, teacher_length=4608,
                held_out=1000, workers=16,
            ),
            micro_batch_size=layout.micro_batch,
            global_batch_size=128,
            loader_workers=2,
        ),
        objective=run.Config(ObjectiveConfig, scale="dynamic"),
        trainer=bf16_trainer(nodes, layout, steps=2500, validate_every=250),
        optim=adamw(lr=5e-6, min_lr=5e-7, warmup_steps=75, beta2=0.95, weight_decay=0.1),
        log=checkpoints("xtoken_qwen3_14b_llama8b", every=250),
        resume=from_checkpoint(),
    )  # fmt: skip
