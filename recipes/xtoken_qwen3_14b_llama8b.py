"""Qwen3-14B into Llama-3.1-8B-Instruct on conversations, by P-KL, with the loss on the assistant's turns.

Each side reads a conversation in its own chat template; what the assistant says is aligned, and nothing else is learned
from, neither from the text nor from the teacher.

    xtoken import model=meta-llama/Llama-3.1-8B-Instruct out=nemo/llama-8b
    xtoken import model=Qwen/Qwen3-14B out=nemo/qwen3-14b
    nemo llm distill --recipe xtoken_qwen3_14b_llama8b data.text.paths='["hf:allenai/tulu-3-sft-mixture"]' \\
        resume.restore_config.path=nemo/llama-8b teacher.path=nemo/qwen3-14b

A base model has no chat template: ``data.text.chat_template=FILE`` gives it one.  ``teacher.learned=true`` trains W;
``teacher.loss=prefix_kl`` is this package's own loss, the default elsewhere: docs/learning.md#defaults.

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
    Estimated, not measured (docs/recipes.md): 40 GiB of a GPU and 8 h on 1 node, 52 GiB and 31 min on 16.
"""

from typing import Optional

import nemo_run as run
from nemo.collections import llm

from nemo_xtoken.recipes.common import Layout, adamw, bf16_trainer, checkpoints, lay_out, of_one_architecture
from nemo_xtoken.recipes.xtoken import xtoken

__all__ = ["xtoken_qwen3_14b_llama8b"]

#: By number of nodes.  On one the optimizer's states are spread over few GPUs, which tensor parallelism makes up for.
LAYOUTS = {1: Layout(tensor=4), 2: Layout(tensor=2)}


def xtoken_qwen3_14b_llama8b(nodes: Optional[int] = None) -> run.Partial:
    """The recipe, for so many nodes of 8 GPUs (default: the job's); everything in it can be overridden."""
    nodes, layout = lay_out(nodes, LAYOUTS)
    recipe = of_one_architecture(xtoken(), run.Config(llm.Llama31Config8B, seq_length=4096))
    recipe.teacher.loss, recipe.teacher.learned, recipe.teacher.chunks.temperature = "p_kl", False, 1.0
    text, data = recipe.data.text, recipe.data
    text.format, text.messages_key = "chat", "messages"
    text.student_length, text.teacher_length, text.held_out, text.workers = 4096, 4608, 1000, 16
    data.micro_batch_size, data.global_batch_size = layout.micro_batch, 128
    recipe.trainer = bf16_trainer(nodes, layout, steps=2500, validate_every=250)
    recipe.optim = adamw(lr=5e-6, min_lr=5e-7, warmup_steps=75, beta2=0.95, weight_decay=0.1)
    recipe.log = checkpoints("xtoken_qwen3_14b_llama8b", every=250)
    return recipe
