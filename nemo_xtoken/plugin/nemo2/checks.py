"""Checks of a run, before data is read, anything is written or a model is built."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nemo.lightning as nl

from nemo_xtoken.errors import InputError
from nemo_xtoken.plugin.nemo2.checkpoints.intact import check_checkpoint
from nemo_xtoken.plugin.nemo2.data import DistillationData
from nemo_xtoken.plugin.nemo2.tokenizer import XTokenTokenizer
from nemo_xtoken.run import run_checks
from nemo_xtoken.run.layout import ParallelSizes, check_rows
from nemo_xtoken.run.lora.lora_settings import unmerged
from nemo_xtoken.run.spec import START, ModelSpec, RunSpec, plain_config
from nemo_xtoken.run.unsupported import TRAINER
from nemo_xtoken.run.values import RANGES, check_range
from nemo_xtoken.training.inputs import engine_version
from nemo_xtoken.training.lora.adapted import has_adapters
from nemo_xtoken.training.teacher_checks import check_losses, teacher_spec
from nemo_xtoken.training.teacher_settings import NamedTeacher

__all__ = ["check_run", "run_spec"]

EMBEDDING = "embedding.word_embeddings.weight"


def check_run(
    model: Any,
    data: DistillationData,
    trainer: nl.Trainer,
    teachers: Sequence[NamedTeacher],
    resume: nl.AutoResume | None,
    trust: bool = False,
) -> None:
    """Checks layout, models, checkpoints and W against each other.  Reads headers, and W where the user names a file.
    The first rank compares checkpoints with their checksums, which reads all of them.

    Args:
        trust: code in the checkpoint that the student starts from may run.

    Raises:
        InputError: the first error found.
    """
    _check_trainer(trainer)
    run = run_spec(model, data, trainer, teachers, starts=getattr(resume, "restore_config", None) is not None)
    run_checks.check_run(run)
    if (start := getattr(getattr(resume, "restore_config", None), "path", None)) is not None and "://" not in start:
        _check_checkpoint("student", Path(start), model.tokenizer, START, trust, trainer.is_global_zero)
    for teacher in teachers:
        path = teacher.config.checkpoint(teacher.where)
        where, own = f"{teacher.where}.path", teacher.config.trust
        _check_checkpoint(teacher.label, path, teacher.tokenizer, where, own, trainer.is_global_zero)
    check_losses(teachers, model.tokenizer.vocabulary, run.student.sizes.context)


def run_spec(
    model: Any, data: DistillationData, trainer: nl.Trainer, teachers: Sequence[NamedTeacher], starts: bool = True
) -> RunSpec:
    """The run that NeMo's objects describe.

    Args:
        starts: whether the student starts from a model.

    Raises:
        InputError: a teacher's configuration that cannot be read.
    """
    strategy = trainer.strategy
    own, default = data.text.lengths
    student = ModelSpec(
        "student",
        "trainer.strategy",
        ParallelSizes.of(strategy),
        own,
        "data.text.student_length",
        plain_config(model.config),
        ids=model.tokenizer.vocab_size,
        rows_name="model.config.vocab_size",
    )
    return RunSpec(
        student,
        tuple(
            teacher_spec(teacher, plain_config(teacher.config.load_config(teacher.where)), strategy, default)
            for teacher in teachers
        ),
        trainer.world_size,
        data.micro_batch_size,
        data.global_batch_size,
        trainer.max_steps,
        bool(strategy.sequence_parallel),
        strategy.virtual_pipeline_model_parallel_size,
        trainer=_of_trainer(trainer),
        engine=engine_version(),
        lora=getattr(model, "lora", None),
        starts=starts,
    )


def _of_trainer(trainer: nl.Trainer) -> dict[str, Any]:
    """What `unsupported.TRAINER` asks for, from the objects that the settings became."""
    strategy = trainer.strategy
    holders = {
        "trainer.strategy": {"fsdp": getattr(strategy, "_fsdp", None)},
        "trainer.strategy.ddp": vars(strategy.ddp_config) if strategy.ddp_config is not None else {},
        "trainer.plugins": vars(getattr(trainer.precision_plugin, "dtype_config", object)),
    }
    return {name: holders[name.rpartition(".")[0]].get(name.rpartition(".")[2]) for name in TRAINER}


def _check_trainer(trainer: nl.Trainer) -> None:
    strategy = trainer.strategy
    if not isinstance(strategy, nl.MegatronStrategy):
        raise InputError(
            f"trainer.strategy is {type(strategy).__name__}",
            "a MegatronStrategy",
            "set trainer.strategy to nemo.lightning.MegatronStrategy",
        )
    check_range("trainer.max_steps", trainer.max_steps, RANGES["trainer.max_steps"])


def _check_checkpoint(
    side: str, path: Path, tokenizer: XTokenTokenizer, where: str, trust: bool, compare: bool
) -> None:
    """It must be as it was written, and its embedding have a row for each id: NeMo fills missing rows in silence."""
    from megatron.core import dist_checkpointing

    try:
        check_checkpoint(path, trust, compare)
        found = dist_checkpointing.load_tensors_metadata(str(path / "weights"))
    except InputError:
        raise
    except Exception as error:  # the loader raises different types for foreign folders
        raise InputError(
            f"no checkpoint that can be read in {path} ({type(error).__name__}: {error})",
            "a folder with `weights` and `context`, as NeMo 2 saves them",
            f"fix {where}; `xtoken import model=MODEL out=FOLDER` makes one",
        ) from error
    if has_adapters(found):
        raise unmerged(where, path)
    for name, tensor in found.items():
        if name.endswith(EMBEDDING) and not name.startswith("optimizer"):
            check_rows(side, int(tensor.global_shape[0]), tokenizer.vocab_size, where, tensor=1, fix=f"fix {where}")
