"""What every adapter checks of its teachers before anything is built."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch.utils.data import Dataset

from nemo_xtoken.data.mixture import sources_of
from nemo_xtoken.losses.choosing import check_loss
from nemo_xtoken.projection.matrix import ProjectionMatrix
from nemo_xtoken.run.layout import ParallelSizes
from nemo_xtoken.run.spec import ModelSpec
from nemo_xtoken.run.unsupported import TEACHER
from nemo_xtoken.teachers.teacher_sources import has_model, source_named
from nemo_xtoken.training.teacher_settings import NamedTeacher
from nemo_xtoken.vocab.vocabulary import Vocabulary

__all__ = ["check_losses", "check_pieces", "teacher_spec"]


def teacher_spec(teacher: NamedTeacher, config: Mapping[str, Any], strategy: Any, length: int) -> ModelSpec:
    """The description of a teacher whose tokenizer is loaded.

    Args:
        config: its configuration by Megatron's names.
        strategy: the student's layout, with Megatron's names.
        length: positions of a sample where it has no length of its own.
    """
    own, source = teacher.config.length, teacher.config.source
    sizes = teacher.config.sizes(ParallelSizes.of(strategy, experts=bool(config.get("num_moe_experts"))))
    beside = has_model(source)
    if not beside:
        sizes = ParallelSizes()  # no process of this run has a part of its model
    return ModelSpec(
        teacher.label,
        teacher.where,
        sizes,
        length if own is None else own,
        "data.text.teacher_length" if own is None else f"{teacher.where}.length",
        config,
        ids=teacher.tokenizer.vocab_size,
        rows_name=teacher.where,
        own={name: getattr(teacher.config, name) for name in TEACHER} if beside else {},
    )


def check_pieces(teachers: Sequence[NamedTeacher], *samples: Dataset[Any] | None) -> None:
    """Whether sources without a model have the states of all that a run reads.

    Args:
        samples: the training data and the held-out text, whose sides are the teachers'.

    Raises:
        InputError: one has not.
    """
    for number, teacher in enumerate(teachers):
        if teacher.config.source is None:
            continue
        source = source_named(teacher.config.source)
        for one in (one for part in samples for one in sources_of(part)):
            source.check_pieces(teacher.config, teacher.where, one.teacher_pieces(number))


def check_losses(teachers: Sequence[NamedTeacher], student: Vocabulary, context: int) -> None:
    """Whether each loss can compare its pair with its options in this layout, and W is of the pair.

    Args:
        context: context-parallel size of the student.

    Raises:
        InputError: a loss cannot, or a file of W is damaged or belongs to another pair.
    """
    for teacher in teachers:
        config, other = teacher.config, teacher.tokenizer.vocabulary
        check_loss(teacher.loss, student, other, config.options, config.chunks.merge, context)
        if config.projection is not None:
            ProjectionMatrix.load(config.projection, student, other)
