"""What can be wrong with a run is found here, before data is read, anything is written or a model is built."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nemo.lightning as nl
from nemo.collections import llm

from nemo_xtoken.errors import InputError
from nemo_xtoken.losses.registry import check_loss
from nemo_xtoken.plugin.nemo2.data import DistillationData
from nemo_xtoken.plugin.nemo2.teacher import NamedTeacher
from nemo_xtoken.plugin.nemo2.tokenizer import XTokenTokenizer
from nemo_xtoken.projection.matrix import ProjectionMatrix
from nemo_xtoken.teachers.groups import ParallelSizes

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
    _check_processes("student", layout, trainer.world_size, "trainer.strategy")
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
        _check_processes(teacher.label, sizes, trainer.world_size, teacher.where)
        sides.append((teacher.label, config, teacher.tokenizer, length, where, teacher.where, sizes))
    for side, config, tokenizer, length, where, rows, sizes in sides:
        _check_divisible(side, config, sizes)
        _check_length(side, length, where, sizes.context, sizes.tensor if strategy.sequence_parallel else 1)
        _check_rows(side, config.vocab_size, tokenizer, rows)
    if (start := getattr(getattr(resume, "restore_config", None), "path", None)) is not None and "://" not in start:
        _check_checkpoint("student", Path(start), model.tokenizer, "resume.restore_config.path")
    student = model.tokenizer.vocabulary
    for teacher in teachers:
        config, other = teacher.config, teacher.tokenizer
        _check_checkpoint(teacher.label, config.checkpoint(teacher.where), other, f"{teacher.where}.path")
        check_loss(config.loss, student, other.vocabulary, config.options, merge=config.chunks.merge)
        if config.options.nrl_compat and layout.context > 1:
            raise InputError(
                f"{teacher.where}.options.nrl_compat with trainer.strategy.context_parallel_size={layout.context}",
                "1: the public loss chooses its classes by all positions of a micro-batch, which no rank has",
                "leave nrl_compat out: the other losses are the same in every layout",
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
        raise InputError(f"trainer.max_steps={trainer.max_steps}", "at least one step", "set trainer.max_steps=..")
    if (virtual := strategy.virtual_pipeline_model_parallel_size or 1) > 1:
        raise InputError(
            f"trainer.strategy.virtual_pipeline_model_parallel_size={virtual}",
            "1: distillation across tokenizers does not support more yet",
            "use tensor, pipeline, context and data parallelism",
        )


def _check_length(side: str, length: int, where: str, cp: int, sequence_ranks: int) -> None:
    """A context-parallel rank holds two equal parts of a sequence, and sequence parallelism cuts what it holds."""
    unit = cp * (math.lcm(2, sequence_ranks) if cp > 1 else sequence_ranks)
    if length % unit:
        raise InputError(
            f"a {side} sequence of {length} positions, context parallel over {cp} ranks, sequence parallel over "
            f"{sequence_ranks}",
            f"a multiple of {unit}",
            f"change {where}, trainer.strategy.context_parallel_size or trainer.strategy.sequence_parallel",
        )


def _check_processes(side: str, layout: ParallelSizes, processes: int, where: str) -> None:
    experts = layout.expert_tensor * layout.pipeline * layout.expert
    for kind, unit in (("tensor x pipeline x context", layout.ranks), ("expert tensor x pipeline x expert", experts)):
        if processes % unit:
            raise InputError(
                f"{processes} processes for the {side}'s {kind} parallel = {unit}",
                f"a multiple of {unit}",
                "start that many processes (torchrun --nproc-per-node, Slurm tasks) and set trainer.devices, or change "
                f"{where}.*_parallel_size",
            )


def _check_divisible(side: str, config: llm.GPTConfig, layout: ParallelSizes) -> None:
    groups = config.num_query_groups or config.num_attention_heads
    if layout.expert > 1 and not config.num_moe_experts:
        raise InputError(
            f"the {side} has no experts, expert_model_parallel_size is {layout.expert}",
            "1",
            "set expert_model_parallel_size of a teacher that has experts (teacher.expert_model_parallel_size=..)",
        )
    for what, number, size, name in (
        ("attention heads", config.num_attention_heads, layout.tensor, "tensor_model_parallel_size"),
        ("query groups", groups, layout.tensor, "tensor_model_parallel_size"),
        ("layers", config.num_layers, layout.pipeline, "pipeline_model_parallel_size"),
        ("experts", config.num_moe_experts or 0, layout.expert, "expert_model_parallel_size"),
    ):
        if number % size:
            raise InputError(
                f"the {side} has {number} {what}, {name} is {size}",
                f"a {name} that divides {number}",
                f"set {name} of trainer.strategy or of the teacher to a divisor",
            )


def _check_rows(side: str, rows: int | None, tokenizer: XTokenTokenizer, where: str) -> None:
    if rows is not None and rows < tokenizer.vocab_size:
        raise InputError(
            f"the {side}'s output layer has {rows} rows ({where}), its tokenizer {tokenizer.vocab_size} ids",
            "at least one row for each id",
            "give the tokenizer that the model was trained with; a new model sizes itself when "
            "model.config.vocab_size is not set",
        )


def _check_checkpoint(side: str, path: Path, tokenizer: XTokenTokenizer, where: str) -> None:
    """Its embedding must have a row for each id: NeMo fills up missing rows without a word."""
    from megatron.core import dist_checkpointing

    try:
        found = dist_checkpointing.load_tensors_metadata(str(path / "weights"))
    except Exception as error:  # whatever the format of the day raises for a folder that is none of its own
        raise InputError(
            f"no checkpoint that can be read in {path} ({type(error).__name__}: {error})",
            "a folder with `weights` and `context`, as NeMo 2 saves them",
            f"fix {where}; `nemo llm import` makes one from a Hugging Face model",
        ) from error
    for name, tensor in found.items():
        if name.endswith(EMBEDDING) and not name.startswith("optimizer"):
            _check_rows(side, int(tensor.global_shape[0]), tokenizer, where)
