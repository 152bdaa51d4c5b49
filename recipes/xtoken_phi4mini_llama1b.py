"""Phi-4-mini into Llama-3.2-1B by H-KL.

Both read 201 as one token, and all numerals of up to three digits, all ASCII punctuation and most words are tokens of
both: nothing that matters is left out of the common tokens.  There H-KL compares the two distributions as they are; it
adds the tokens that W pairs, and the sorted distance of the rest.  The paper: 39.18 on average over its five tasks.

    xtoken import model=meta-llama/Llama-3.2-1B out=nemo/llama-1b
    xtoken import model=microsoft/Phi-4-mini-instruct out=nemo/phi4-mini
    nemo llm distill --recipe xtoken_phi4mini_llama1b data.text.paths='["climbmix/*.parquet"]' \\
        resume.restore_config.path=nemo/llama-1b teacher.path=nemo/phi4-mini

Settings, data
    As in ``xtoken_qwen3_llama1b``, whose text says which are the paper's (arXiv 2605.21699), which the nearest public
    configuration's and which ours.
    Ours also: what lies outside of the common tokens is one class on each side, which keeps the KL from becoming
    negative; ``teacher.options.partial_kl=paper`` is the published form.

GPUs
    1, 2, 8 or 16 nodes of 8 H100 (80 GB): as many as the job has, or ``--recipe "xtoken_phi4mini_llama1b(nodes=8)"``.
    Estimated, not measured (docs/recipes.md): 42 GiB of a GPU and 6.3 days on 1 node, 31 GiB and 9 h on 16.
"""

from typing import Optional

import nemo_run as run

from nemo_xtoken.recipes.xtoken_qwen3_llama1b import LAYOUTS, xtoken_qwen3_llama1b

__all__ = ["LAYOUTS", "xtoken_phi4mini_llama1b"]


def xtoken_phi4mini_llama1b(nodes: Optional[int] = None) -> run.Partial:
    """The recipe, for so many nodes of 8 GPUs (default: the job's); everything in it can be overridden."""
    recipe = xtoken_qwen3_llama1b(nodes)
    recipe.teacher.loss = "h_kl"
    del recipe.teacher.learned  # of P-KL alone
    recipe.data.text.teacher_length = 4096
    recipe.log.name = "xtoken_phi4mini_llama1b"
    return recipe
