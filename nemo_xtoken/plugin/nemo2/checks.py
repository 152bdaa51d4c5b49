"""What can be wrong with a run is found here, before data is read, anything is written or a model is built."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nemo.lightning as nl

from nemo_xtoken.errors import InputError
from nemo_xtoken.losses.registry import check_loss, loss_named
from nemo_xtoken.plugin.nemo2.data import DistillationData
from nemo_xtoken.plugin.nemo2.tokenizer import XTokenTokenizer
from nemo_xtoken.projection.matrix import ProjectionMatrix
from nemo_xtoken.run.layout import (
    ParallelSizes,
    check_divisible,
    check_length,
    check_processes,
    check_rows,
    check_virtual,
)
from nemo_xtoken.training.teacher_settings import NamedTeacher

__all__ = ["check_run"]

EMBEDDING = "embedding.word_embeddings.weight"


def check_run(
    model: Any,
    data: DistillationData,
    trainer: nl.Trainer,
    teachers: Sequence[NamedTeacher],
    resume: nl.AutoResume | None,
) -> None:
    """Checks layout, models, checkpoints and W against each other.  Reads headers, and W where the user names a file.

    Raises:
        InputError: the first thing that is wrong.
    """
    _check_trainer(trainer)
    strategy = trainer.strategy
    layout = ParallelSizes.of(strategy)
    check_processes("student", layout, trainer.world_size, "trainer.strategy")
    data.check_layout(trainer.world_size // layout.ranks)
    own, default = data.text.lengths
    sides = [
        ("student", model.config, model.tokenizer, own, "data.text.student_length", "model.config.vocab_size", layout)
    ]
    for teacher in teachers:
        length, where = teacher.config.length, f"{teacher.where}.length"
        if length is None:
            length, where = default, "data.text.teacher_length"
        config = teacher.config.load_config(teacher.where)
        sizes = teacher.config.sizes(ParallelSizes.of(strategy, experts=bool(config.num_moe_experts)))
        check_processes(teacher.label, sizes, trainer.world_size, teacher.where)
        sides.append((teacher.label, config, teacher.tokenizer, length, where, teacher.where, sizes))
    for side, config, tokenizer, length, where, rows, sizes in sides:
        check_divisible(
            side, config.num_attention_heads, config.num_query_groups, config.num_layers, config.num_moe_experts, sizes
        )
        check_length(side, length, where, sizes.context, sizes.tensor if strategy.sequence_parallel else 1)
        check_rows(side, config.vocab_size, tokenizer.vocab_size, rows, sizes.tensor)
    if (start := getattr(getattr(resume, "restore_config", None), "path", None)) is not None and "://" not in start:
        _check_checkpoint("student", Path(start), model.tokenizer, "resume.restore_config.path")
    student = model.tokenizer.vocabulary
    for teacher in teachers:
        config, other = teacher.config, teacher.tokenizer
        _check_checkpoint(teacher.label, config.checkpoint(teacher.where), other, f"{teacher.where}.path")
        loss = check_loss(config.loss, student, other.vocabulary, config.options, merge=config.chunks.merge)
        if not loss_named(loss).context_parallel and layout.context > 1:
            raise InputError(
                f"{teacher.where}.loss={loss} with trainer.strategy.context_parallel_size={layout.context}",
                "1: this loss looks at all positions of a micro-batch, which no rank has",
                "choose another loss: the others are the same in every layout",
            )
        if config.projection is not None:
            ProjectionMatrix.load(config.projection, student, other.vocabulary)


def _check_trainer(trainer: nl.Trainer) -> None:
    strategy = trainer.strategy
    if not isinstance(strategy, nl.MegatronStrategy):
        raise InputError(
            f"trainer.strategy is {type(strategy).__name__}",
            "a MegatronStrategy",
            "set trainer.strategy to nemo.lightning.MegatronStrategy",
        )
    if trainer.max_steps < 1:
        raise InputError(f"trainer.max_steps={trainer.max_steps}", "at least one step", "set trainer.max_steps=N")
    check_virtual(strategy.virtual_pipeline_model_parallel_size)


def _check_checkpoint(side: str, path: Path, tokenizer: XTokenTokenizer, where: str) -> None:
    """Its embedding must have a row for each id: NeMo fills up missing rows without a word."""
    from megatron.core import dist_checkpointing

    try:
        found = dist_checkpointing.load_tensors_metadata(str(path / "weights"))
    except Exception as error:  # whatever the format of the day raises for a folder that is none of its own
        raise InputError(
            f"no checkpoint that can be read in {path} ({type(error).__name__}: {error})",
            "a folder with `weights` and `context`, as NeMo 2 saves them",
            f"fix {where}; `xtoken import model=MODEL out=FOLDER` makes one",
        ) from error
    for name, tensor in found.items():
        if name.endswith(EMBEDDING) and not name.startswith("optimizer"):
            check_rows(side, int(tensor.global_shape[0]), tokenizer.vocab_size, where)
