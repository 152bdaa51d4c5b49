"""A small teacher into a student with another tokenizer, whole, in minutes, on any machine.

The real thing at toy size: real text, NeMo's trainer, Megatron's schedules and checkpoints, P-KL over two vocabularies.
The student reads 201 as one token, the teacher as 2, 0, 1.  Three runs, each resumable by the same command:

1. the teacher, on cross-entropy (once; it is cached, and left out when ``teacher.path`` names one of yours),
2. the student on cross-entropy alone,
3. the student from the same start, through the same batches, on cross-entropy and P-KL.

Then a table and a figure compare them.

    nemo llm distill --recipe xtoken_tiny
    nemo llm distill --recipe xtoken_tiny trainer.max_steps=20 log.name=short
    nemo llm distill --recipe xtoken_tiny teacher.chunks.merge=mean objective.scale=0.5 log.name=mean
    nemo llm distill --recipe xtoken_tiny teacher.loss=h_kl log.name=h_kl
    nemo llm distill --recipe xtoken_tiny data.text.paths='["my/*.txt"]' log.name=mine
    nemo llm distill --recipe xtoken_tiny teacher.path=PATH teacher.tokenizer=FOLDER model.tokenizer.source=FOLDER
    nemo llm distill --recipe xtoken_tiny teachers.second.path=PATH teachers.second.loss=h_kl teachers.second.weight=0.5

Needs no GPU: 2 CPU cores, 2 GB of memory, 3 minutes the first time.  Other settings need another ``log.name``.
"""

import sys
from pathlib import Path
from typing import Optional

import fiddle as fdl
import nemo.lightning as nl
import nemo_run as run
import torch
from megatron.core.optimizer import OptimizerConfig
from nemo.collections import llm
from nemo.lightning import OptimizerModule
from nemo.lightning.pytorch.optim import CosineAnnealingScheduler

from nemo_xtoken.data.config import DataConfig
from nemo_xtoken.evaluate.evaluation_config import EvaluationConfig
from nemo_xtoken.files import digest_of
from nemo_xtoken.losses.base import ChunkLossConfig
from nemo_xtoken.losses.registry import DivergenceOptions
from nemo_xtoken.objective.scale import ObjectiveConfig
from nemo_xtoken.plugin.nemo2.checkpoint_folders import finished_checkpoint
from nemo_xtoken.plugin.nemo2.data import DistillationData
from nemo_xtoken.plugin.nemo2.distill import default_log, rebuilt, run_folder, train_one
from nemo_xtoken.plugin.nemo2.model import DistillationModel
from nemo_xtoken.plugin.nemo2.teacher import TeacherConfig
from nemo_xtoken.plugin.nemo2.tokenizer import XTokenTokenizer
from nemo_xtoken.progress import Parts, say
from nemo_xtoken.projection.build import ProjectionRule
from nemo_xtoken.recipes import tiny_text
from nemo_xtoken.recipes.common import checkpoints, saving
from nemo_xtoken.recipes.tiny_models import (
    CE_ONLY,
    STEPS,
    STUDENT,
    STUDENT_LENGTH,
    TAUGHT,
    TEACHER,
    TEACHER_LENGTH,
    TEACHER_STEPS,
)
from nemo_xtoken.report.summary import report_runs
from nemo_xtoken.training.teacher_settings import named_teachers
from nemo_xtoken.training.watching.early_stopping import StopConfig
from nemo_xtoken.training.watching.sample_settings import SampleConfig
from nemo_xtoken.weights.checkpoint_names import finished_checkpoints

__all__ = ["distill_tiny", "xtoken_tiny"]


def xtoken_tiny() -> run.Partial:
    """The recipe; everything in it can be overridden on the command line."""
    return run.Partial(
        distill_tiny,
        model=run.Config(
            DistillationModel,
            config=llama(seq_length=STUDENT_LENGTH, **STUDENT),
            tokenizer=run.Config(XTokenTokenizer, source=run.Config(tiny_text.student_tokenizer)),
        ),
        teacher=run.Config(
            TeacherConfig,
            loss="p_kl",
            options=run.Config(DivergenceOptions),
            chunks=run.Config(ChunkLossConfig),
            rule=run.Config(ProjectionRule),
        ),
        data=run.Config(
            DistillationData,
            text=run.Config(
                DataConfig,
                paths=[run.Config(tiny_text.text_file)],
                student_length=STUDENT_LENGTH,
                teacher_length=TEACHER_LENGTH,
                held_out=0.05,
                workers=2,
            ),
            micro_batch_size=8,
            global_batch_size=8,
        ),
        objective=run.Config(ObjectiveConfig, scale="dynamic"),
        trainer=run.Config(
            nl.Trainer,
            accelerator="auto",
            devices=1,
            num_nodes=1,
            max_steps=STEPS,
            val_check_interval=30,
            limit_val_batches=1.0,
            num_sanity_val_steps=0,
            log_every_n_steps=200,
            logger=False,
            use_distributed_sampler=False,
            strategy=run.Config(nl.MegatronStrategy, **saving(), progress_interval=20),
            plugins=run.Config(nl.MegatronMixedPrecision, precision="32"),
        ),
        optim=run.Config(
            nl.MegatronOptimizerModule,
            config=run.Config(
                OptimizerConfig, optimizer="adam", lr=3e-3, weight_decay=0.1, adam_beta2=0.98, clip_grad=1.0,
                use_distributed_optimizer=True, params_dtype=torch.float32,
            ),
            lr_scheduler=run.Config(CosineAnnealingScheduler, warmup_steps=20, constant_steps=0, min_lr=3e-4),
        ),
        log=checkpoints("xtoken_tiny", every=60),
        resume=run.Config(nl.AutoResume, resume_if_exists=True, resume_ignore_no_checkpoint=True),
        teacher_steps=TEACHER_STEPS,
    )  # fmt: skip


def llama(**sizes: int) -> run.Config:
    """A Llama of some size that Megatron builds without Transformer Engine as well."""
    config = run.Config(llm.LlamaConfig, **sizes)
    config.apply_rope_fusion = config.gradient_accumulation_fusion = False
    return config


def distill_tiny(
    model: DistillationModel,
    teacher: TeacherConfig,
    data: DistillationData,
    trainer: nl.Trainer,
    objective: Optional[ObjectiveConfig] = None,
    optim: Optional[OptimizerModule] = None,
    log: Optional[nl.NeMoLogger] = None,
    resume: Optional[nl.AutoResume] = None,
    teachers: Optional[dict[str, TeacherConfig]] = None,
    evaluate: Optional[EvaluationConfig] = None,
    teacher_steps: int = TEACHER_STEPS,
    trust: bool = False,
    stop: Optional[StopConfig] = None,
    samples: Optional[SampleConfig] = None,
) -> Path:
    """Trains the teacher if there is none, the student without it, the student with it; then compares.

    Args:
        teacher_steps: how long the teacher trains.
        samples: off unless given: so small a model has little to say.  The other arguments are those of ``distill`` in
            ``nemo_xtoken.plugin.nemo2.distill``.

    Returns:
        the folder of the distilled student's run.
    """
    # In a log every line begins with the title of its training.
    parts = Parts(2 + (teacher.path is None), trainer.is_global_zero and sys.stderr.isatty())
    if teacher.path is None:
        parts.begin("training the teacher")
        teacher.tokenizer = teacher.tokenizer or tiny_text.teacher_tokenizer()
        teacher.path = str(train_teacher(teacher.tokenizer, data, trainer, optim, teacher_steps))
    log = log or default_log()
    sides = [t.side for t in named_teachers(teacher, teachers)]
    folder = run_folder(log)
    parts.begin(f"training the student, {CE_ONLY}")
    ce_only = train_one(
        rebuilt(model), rebuilt(data), rebuilt(trainer), None, ObjectiveConfig(scale=0.0), rebuilt(optim),
        rebuilt(log, name="ce_only", log_dir=str(folder)), rebuilt(resume), aligned_with=sides, title=CE_ONLY,
        trust=trust,
    )  # fmt: skip
    parts.begin(f"training the student, {TAUGHT}")
    train_one(
        model, data, trainer, teacher, objective, optim, log, resume, teachers, evaluate=evaluate, title=TAUGHT,
        trust=trust, stop=stop, samples=samples,
    )  # fmt: skip
    if trainer.is_global_zero:
        report_runs({CE_ONLY: ce_only, TAUGHT: folder}, folder)
    return folder


def train_teacher(
    tokenizer: str, data: DistillationData, trainer: nl.Trainer, optim: OptimizerModule, steps: int
) -> Path:
    """The checkpoint of a teacher trained on cross-entropy, in the cache; trained now if it is not there yet."""
    reader, length = XTokenTokenizer(tokenizer), data.text.lengths[1]
    key = digest_of(reader.vocabulary.digest, repr(data.text), repr((TEACHER, steps)))[:16]
    config = fdl.build(llama(seq_length=length, **TEACHER))
    ckpt = nl.ModelCheckpoint(every_n_train_steps=100, save_last=True, save_top_k=1, monitor="step", mode="max")
    log = nl.NeMoLogger(log_dir=str(tiny_text.folder()), name=f"run-{key}", use_datetime_version=False, ckpt=ckpt)
    if found := finished_checkpoint(run_folder(log) / "checkpoints", steps):
        say("the teacher: was trained before", trainer.is_global_zero)
        return found
    text = rebuilt(data, text=fdl.build(run.Config(DataConfig, **{**vars(data.text), "student_length": length})))
    folder = train_one(
        DistillationModel(config, reader), text, rebuilt(trainer, max_steps=steps, val_check_interval=steps), None,
        ObjectiveConfig(scale=0.0), rebuilt(optim), log,
        nl.AutoResume(resume_if_exists=True, resume_ignore_no_checkpoint=True), title="the teacher", shared=True,
    )  # fmt: skip
    return finished_checkpoints(folder)[0]
