"""Llama-3.2-1B on text alone: the continued pre-training that every distillation has to beat.

The same student, text and number of steps without a teacher: cross-entropy alone.  The paper: 36.63 on average over its
five tasks, and 33.96 before.

    xtoken import model=meta-llama/Llama-3.2-1B out=nemo/llama-1b
    nemo llm distill --recipe xtoken_ce_llama1b data.text.paths='["climbmix/*.parquet"]' \\
        resume.restore_config.path=nemo/llama-1b

Settings, data
    As in ``xtoken_qwen3_llama1b``, whose text says which are the paper's (arXiv 2605.21699), which the nearest public
    configuration's and which ours.

GPUs
    1, 2, 8 or 16 nodes of 8 H100 (80 GB): as many as the job has, or ``--recipe "xtoken_ce_llama1b(nodes=8)"``.
    Estimated, not measured (docs/recipes.md): 34 GiB of a GPU and 2.5 days on 1 node, 23 GiB and 4 h on 16.
"""

from typing import Optional

import nemo_run as run

from nemo_xtoken.recipes.xtoken_qwen3_llama1b import LAYOUTS, xtoken_qwen3_llama1b

__all__ = ["LAYOUTS", "xtoken_ce_llama1b"]


def xtoken_ce_llama1b(nodes: Optional[int] = None) -> run.Partial:
    """The recipe, for so many nodes of 8 GPUs (default: the job's); everything in it can be overridden."""
    recipe = xtoken_qwen3_llama1b(nodes)
    recipe.objective.scale = 0.0
    del recipe.teacher, recipe.data.text.teacher_length
    recipe.log.name = "xtoken_ce_llama1b"
    return recipe
