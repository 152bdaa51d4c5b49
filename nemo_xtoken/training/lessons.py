"""What the teachers of a run say about a micro-batch, as the loss takes it; the same under every training loop."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nemo_xtoken.kernels.tile_kernels import TileKernels
from nemo_xtoken.losses.base import ChunkDivergence, ModelOutput, TeacherSignal
from nemo_xtoken.losses.pair import VocabularyPair
from nemo_xtoken.losses.registry import chunk_selection, make_divergence, resolve_loss
from nemo_xtoken.objective.shares import Held, share
from nemo_xtoken.parallel.head import OutputHead
from nemo_xtoken.parallel.learned_entries import LearnedProjection
from nemo_xtoken.parallel.vocabulary_shard import VocabularyShard
from nemo_xtoken.projection.build import load_or_build
from nemo_xtoken.teachers.colocated import ColocatedTeacher
from nemo_xtoken.teachers.output import HiddenStateTap, output_head
from nemo_xtoken.training.inputs import context_layout
from nemo_xtoken.training.teacher_settings import NamedTeacher, one_model_each
from nemo_xtoken.vocab.vocabulary import Vocabulary

__all__ = ["Lesson", "begin", "shared", "signals", "student_output"]


@dataclass(frozen=True)
class Lesson:
    """One teacher's part in the loss, on the last pipeline stage.

    Attributes:
        teacher: whose it is.
        source: number of the model, among the run's, that has the hidden states.
        head: the model's output layer in the order of the divergence.
        divergence: how distributions are compared.
        learned: the logits of its W, where that is learned.
    """

    teacher: NamedTeacher
    source: int
    head: OutputHead
    divergence: ChunkDivergence
    learned: LearnedProjection | None


def begin(
    teachers: Sequence[NamedTeacher],
    load: Callable[[NamedTeacher, int], ColocatedTeacher],
    student: Vocabulary,
    output_layer: Any | None,
    kernels: TileKernels,
) -> tuple[list[torch.nn.Module | None], list[ColocatedTeacher], list[Lesson]]:
    """Loads the teachers' models and makes what the loss needs of them.

    Args:
        load: this rank's part of a teacher's model, by the teacher and the number of its side in the batches.
        output_layer: the student's, Megatron's vocabulary-parallel one; None on all but the last pipeline stage.
        kernels: what goes over the tiles.

    Returns:
        which chunks of each teacher its loss scores (None: all); the models, one for teachers that share it; the
        lessons, none without an output layer.

    Collectives: those of loading, and of ``ColocatedTeacher.lay_out``.
    """
    losses = [resolve_loss(t.config.loss, student, t.tokenizer.vocabulary) for t in teachers]
    pairs = [_pair(teacher, student) for teacher in teachers]
    selections = [chunk_selection(loss, pair) for loss, pair in zip(losses, pairs, strict=True)]
    from megatron.core import parallel_state

    placed = [None if one is None else one.to(torch.cuda.current_device()) for one in selections]
    sources = one_model_each(teachers)
    numbers = sorted(set(sources))
    models = [load(teachers[n], n) for n in numbers]
    if output_layer is not None:
        places = [numbers.index(n) for n in sources]
        rows = int(output_layer.output_size_per_partition)  # the layer's own weight is None where it is tied
        shard = VocabularyShard.of_local_rows(student.size, rows, parallel_state.get_tensor_model_parallel_group())
        divergences = [
            make_divergence(loss, pair, shard, teacher.config.options, kernels)
            for loss, pair, teacher in zip(losses, pairs, teachers, strict=True)
        ]
        return placed, models, _make_lessons(teachers, models, places, pairs, divergences)
    for model in models:
        model.lay_out()  # one with a layout of its own wants everyone
    return placed, models, []


def _pair(teacher: NamedTeacher, student: Vocabulary) -> VocabularyPair:
    """With W, which is read or built where a loss takes it."""
    config, other = teacher.config, teacher.tokenizer.vocabulary
    return VocabularyPair(student, other, lambda: load_or_build(student, other, config.rule, config.projection))


def _make_lessons(
    teachers: Sequence[NamedTeacher],
    models: Sequence[ColocatedTeacher],
    sources: Sequence[int],
    pairs: Sequence[VocabularyPair],
    divergences: Sequence[ChunkDivergence],
) -> list[Lesson]:
    """Lays the teachers' output layers out as the divergences want them, and makes the learned entries of W.

    Args:
        sources: for each teacher the number of its model.
    """
    learned: list[LearnedProjection | None] = []
    for teacher, pair, divergence in zip(teachers, pairs, divergences, strict=True):
        learned.append(None)
        if teacher.config.learned:  # of a loss that learns W: the adapter has seen to it
            exchange: Any = divergence.exchange
            learned[-1] = LearnedProjection(exchange, pair.matrix)
    heads: dict[int, OutputHead] = {}
    for source, model in enumerate(models):
        taught = [number for number, n in enumerate(sources) if n == source]
        heads |= zip(taught, model.lay_out(*(divergences[n].ownership for n in taught)), strict=True)
    device = torch.cuda.current_device()
    return [
        Lesson(teacher, sources[n], heads[n], divergences[n].to(device), learned[n])
        for n, teacher in enumerate(teachers)
    ]


def student_output(tap: HiddenStateTap, vocabulary_size: int, config: Any) -> ModelOutput:
    """What the student's forward pass left at its output layer, on the last pipeline stage.

    Args:
        vocabulary_size: V_S.
        config: the student's.
    """
    from megatron.core import parallel_state

    hidden, weight = tap.pop()
    group = parallel_state.get_tensor_model_parallel_group()
    shard = VocabularyShard.of_local_rows(vocabulary_size, weight.shape[0], group)
    return ModelOutput(hidden, output_head(weight, shard, config))


def signals(lessons: Sequence[Lesson], batch: dict[str, Any], statistic: str | None) -> list[TeacherSignal]:
    """What the teachers say about a micro-batch.

    Args:
        batch: with its ``teacher_outputs``; empty without any teacher.
        statistic: see ``TeacherWeights.statistic``.
    """
    outputs = batch.get("teacher_outputs", ())
    return [
        TeacherSignal(
            ModelOutput(outputs[lesson.source].hidden, lesson.head),
            batch[f"teacher{number}_labels"],
            batch[f"teacher{number}_chunks"],
            lesson.divergence,
            lesson.teacher.config.chunks,
            None if lesson.learned is None else lesson.learned(),
            statistic=statistic,
        )
        for number, lesson in enumerate(lessons)
    ]


def shared(
    lessons: Sequence[Lesson],
    models: Sequence[ColocatedTeacher],
    batch: dict[str, Any],
    output: ModelOutput,
    statistic: str | None,
) -> tuple[ModelOutput, Tensor, list[TeacherSignal]]:
    """What this context-parallel rank scores of a micro-batch: student, its labels, teachers.

    Args:
        output: of the student, this rank's rows.
    """
    heard = signals(lessons, batch, statistic)
    layouts = [context_layout(batch, models[lesson.source].side) for lesson in lessons]
    student = Held(output, context_layout(batch, "student"))
    return share(student, batch["student_labels"], heard, layouts[: len(heard)])
