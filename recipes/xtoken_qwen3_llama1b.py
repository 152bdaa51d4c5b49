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
    Estimated, not measured (docs/recipes.md): 42 GiB of a GPU and 6.0 days on 1 node, 31 GiB and 9 h on 16.
"""

from typing import Optional

import nemo_run as run
from nemo.collections import llm

from nemo_xtoken.recipes.common import Layout, adamw, bf16_trainer, checkpoints, lay_out, of_one_architecture
from nemo_xtoken.recipes.xtoken import xtoken

__all__ = ["xtoken_qwen3_llama1b"]

#: By number of nodes.  Everything fits a GPU, so each is a replica; 128 of them get 6 of the 768 samples each.
LAYOUTS = {1: Layout(micro_batch=4), 16: Layout(micro_batch=2)}


def xtoken_qwen3_llama1b(nodes: Optional[int] = None) -> run.Partial:
    """The recipe, for so many nodes of 8 GPUs (default: the job's); everything in it can be overridden."""
    nodes, layout = lay_out(nodes, LAYOUTS)
    recipe = of_one_architecture(xtoken(), run.Config(llm.Llama32Config1B, seq_length=4096))
    recipe.teacher.loss, recipe.teacher.learned, recipe.teacher.chunks.temperature = "p_kl", False, 1.0
    text, data = recipe.data.text, recipe.data
    text.student_length, text.teacher_length, text.held_out, text.workers = 4096, 4608, 2000, 16
    data.micro_batch_size, data.global_batch_size = layout.micro_batch, 768
    recipe.trainer = bf16_trainer(nodes, layout, steps=30_000, validate_every=1000)
    recipe.optim = adamw(lr=5e-5, min_lr=5e-6, warmup_steps=4000, beta2=0.98, weight_decay=0.1)
    recipe.log = checkpoints("xtoken_qwen3_llama1b", every=500)
    return recipe
