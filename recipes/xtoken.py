"""Any model into any other, from two names to a student in Hugging Face's format.

    nemo llm distill --recipe xtoken \\
        student=HuggingFaceTB/SmolLM2-135M teacher=google/gemma-3-270m data.text.paths='["texts/*.jsonl"]'

``student`` and ``teacher`` are folders in Hugging Face's format, hub names, or NeMo 2 checkpoints.  Architecture,
tokenizer, rotary embedding and attention come from there.  The command

1. imports both models (once: the checkpoints are cached),
2. chooses how they lie on the GPUs that are here, and the micro-batch, by the memory they need on paper (it says so),
3. trains the student on text and on what the teacher says about it, by prefix-exact P-KL with a dynamic scale,
4. writes the student to ``runs/xtoken/student``, in Hugging Face's format, in the type of the original's weights.

The same command goes on where it was stopped.  Everything can be changed:

    .. teachers.phi=microsoft/Phi-4-mini-instruct teachers.phi.weight=0.3     one more teacher
    .. teacher.loss=p_kl objective.scale=1 teacher.chunks.temperature=2
    .. trainer.max_steps=5000 data.global_batch_size=256 optim.config.lr=3e-4
    .. trainer.strategy.tensor_model_parallel_size=2 data.micro_batch_size=4  not what would be chosen
    .. export=false log.name=mine

Settings, all ours: prefix_kl, dynamic scale and temperature 1 are what docs/learning.md leaves as defaults; a learning
rate of 1e-4 suits models of a few billion parameters (3e-4 below a billion, 5e-5 for large ones); 2000 steps of 64
samples of 2048 tokens are 260 million tokens.  It takes all GPUs of the machine (``trainer.devices=1``: one).  On CPU
cores it runs as well, with fewer and shorter samples: docs/first_run.md.
"""

import nemo.lightning as nl
import nemo_run as run

from nemo_xtoken.data.config import DataConfig
from nemo_xtoken.losses.base import ChunkLossConfig
from nemo_xtoken.losses.options import DEFAULT_LOSS, DivergenceOptions
from nemo_xtoken.objective.scale import ObjectiveConfig
from nemo_xtoken.plugin.nemo2.data import DistillationData
from nemo_xtoken.plugin.nemo2.distill import distill
from nemo_xtoken.plugin.nemo2.teacher import TeacherConfig
from nemo_xtoken.projection.build import ProjectionRule
from nemo_xtoken.recipes.common import checkpoints, plain_adamw, plain_trainer

__all__ = ["xtoken"]


def xtoken() -> run.Partial:
    """The recipe; ``student``, ``teacher`` and ``data.text.paths`` are the user's, everything can be overridden."""
    return run.Partial(
        distill,
        model=None,
        student=None,
        teacher=run.Config(
            TeacherConfig,
            loss=DEFAULT_LOSS,
            options=run.Config(DivergenceOptions),
            chunks=run.Config(ChunkLossConfig),
            rule=run.Config(ProjectionRule),
        ),
        data=run.Config(
            DistillationData,
            text=run.Config(
                DataConfig, paths=[], student_length=2048, teacher_length=2560, held_out=0.01, workers=2
            ),
            global_batch_size=64,
            loader_workers=2,
        ),
        objective=run.Config(ObjectiveConfig, scale="dynamic"),
        trainer=plain_trainer(steps=2000, validate_every=200, devices="auto"),
        optim=plain_adamw(lr=1e-4, min_lr=1e-5, weight_decay=0.1),
        log=checkpoints("xtoken", every=200),
        resume=run.Config(nl.AutoResume, resume_if_exists=True, resume_ignore_no_checkpoint=True),
        export=True,
    )  # fmt: skip
