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
    Estimated, not measured (docs/recipes.md): 42 GiB of a GPU and 6.2 days on 1 node, 31 GiB and 9 h on 16.
"""

from typing import Optional

import nemo_run as run

from nemo_xtoken.recipes.xtoken_qwen3_llama1b import LAYOUTS, xtoken_qwen3_llama1b

__all__ = ["LAYOUTS", "xtoken_uld_qwen3_llama1b"]


def xtoken_uld_qwen3_llama1b(nodes: Optional[int] = None) -> run.Partial:
    """The recipe, for so many nodes of 8 GPUs (default: the job's); everything in it can be overridden."""
    recipe = xtoken_qwen3_llama1b(nodes)
    recipe.teacher.loss = "uld"
    del recipe.teacher.learned, recipe.teacher.rule  # there is no W
    recipe.log.name = "xtoken_uld_qwen3_llama1b"
    return recipe
