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
    Estimated, not measured (docs/recipes.md): 49 GiB of a GPU and 8.9 days on 1 node, 38 GiB and 13 h on 16.
"""

from typing import Optional

import nemo_run as run

from nemo_xtoken.losses.base import ChunkLossConfig
from nemo_xtoken.losses.registry import DivergenceOptions
from nemo_xtoken.plugin.nemo2.teacher import TeacherConfig
from nemo_xtoken.recipes.xtoken_phi4mini_llama1b import LAYOUTS, xtoken_phi4mini_llama1b

__all__ = ["LAYOUTS", "xtoken_phi4mini_llama3b_llama1b"]


def xtoken_phi4mini_llama3b_llama1b(nodes: Optional[int] = None) -> run.Partial:
    """The recipe, for so many nodes of 8 GPUs (default: the job's); everything in it can be overridden."""
    recipe = xtoken_phi4mini_llama1b(nodes)
    llama = run.Config(
        TeacherConfig,
        loss="same_tokenizer",
        weight=0.2,
        options=run.Config(DivergenceOptions),
        chunks=run.Config(ChunkLossConfig, temperature=1.0),
    )
    recipe.teacher.weight = 0.8
    recipe.teachers = {"phi": recipe.teacher, "llama": llama}
    del recipe.teacher
    recipe.objective.teacher_weights = "static"
    recipe.log.name = "xtoken_phi4mini_llama3b_llama1b"
    return recipe
