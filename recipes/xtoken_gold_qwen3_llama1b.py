"""Qwen3-4B into Llama-3.2-1B by GOLD, a baseline of the paper.

GOLD compares the tokens of both vocabularies one by one, and of the others the sorted probabilities.  No numeral of
two or three digits is a token of both, and every step pushes their logits down: the paper finds 2.56 on GSM8k, under
the 5.69 of the untrained student, and 35.03 on average over its five tasks.  It is here to be compared with.

    xtoken import model=meta-llama/Llama-3.2-1B out=nemo/llama-1b
    xtoken import model=Qwen/Qwen3-4B out=nemo/qwen3-4b
    nemo llm distill --recipe xtoken_gold_qwen3_llama1b data.text.paths='["climbmix/*.parquet"]' \\
        resume.restore_config.path=nemo/llama-1b teacher.path=nemo/qwen3-4b

Settings, data
    As in ``xtoken_qwen3_llama1b``, whose text says which are the paper's (arXiv 2605.21699), which the nearest public
    configuration's and which ours.
    The KL over the common tokens is the published one, which can become negative, unlike
    ``teacher.options.partial_kl=rest``.

GPUs
    1, 2, 8 or 16 nodes of 8 H100 (80 GB): as many as the job has, or ``--recipe "xtoken_gold_qwen3_llama1b(nodes=8)"``.
    Estimated, not measured (docs/recipes.md): 42 GiB of a GPU and 6.3 days on 1 node, 31 GiB and 10 h on 16.
"""

from typing import Optional

import nemo_run as run

from nemo_xtoken.recipes.xtoken_qwen3_llama1b import LAYOUTS, xtoken_qwen3_llama1b

__all__ = ["LAYOUTS", "xtoken_gold_qwen3_llama1b"]


def xtoken_gold_qwen3_llama1b(nodes: Optional[int] = None) -> run.Partial:
    """The recipe, for so many nodes of 8 GPUs (default: the job's); everything in it can be overridden."""
    recipe = xtoken_qwen3_llama1b(nodes)
    recipe.teacher.loss, recipe.teacher.options.partial_kl = "gold", "paper"
    del recipe.teacher.learned  # of P-KL alone
    recipe.log.name = "xtoken_gold_qwen3_llama1b"
    return recipe
