"""Lessons: each teacher of a run with its loss and its W, and what they say of a micro-batch, as the loss takes it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from nemo_xtoken.kernels.tile_kernels import TileKernels
from nemo_xtoken.losses.base import ChunkDivergence, ChunkLossConfig, ModelOutput, TeacherSignal
from nemo_xtoken.losses.pair import VocabularyPair
from nemo_xtoken.losses.registry import chunk_selection, loss_named, make_divergence
from nemo_xtoken.objective.shares import Held, share
from nemo_xtoken.parallel.context_parallel import ContextLayout
from nemo_xtoken.parallel.head import OutputHead
from nemo_xtoken.parallel.learned_entries import LearnedProjection
from nemo_xtoken.parallel.vocabulary_shard import VocabularyShard
from nemo_xtoken.projection.build import load_or_build
from nemo_xtoken.teachers.contract import Teacher, TeacherHost
from nemo_xtoken.teachers.output import HiddenStateTap, main_grad_of, output_head
from nemo_xtoken.teachers.teacher_sources import open_teacher
from nemo_xtoken.training.micro_batch import MicroBatch, in_step
from nemo_xtoken.training.teacher_settings import NamedTeacher, one_model_each
from nemo_xtoken.vocab.vocabulary import Vocabulary

__all__ = ["Lesson", "Teaching", "begin", "shared", "student_output"]


@dataclass(frozen=True)
class Lesson:
    """One teacher's part in the loss, on the last pipeline stage.

    Attributes:
        name: the teacher's, in metrics.
        source: which of the run's `Teacher` has the hidden states.
        head: that one's output layer in the order of the divergence.
        divergence: how distributions are compared.
        chunks: how a chunk becomes one term.
        learned: the logits of its W, where that is learned.
    """

    name: str
    source: int
    head: OutputHead
    divergence: ChunkDivergence
    chunks: ChunkLossConfig
    learned: LearnedProjection | None


@dataclass(frozen=True)
class Teaching:
    """All that teaches in a run, on this rank.

    Attributes:
        teachers: one for all lessons that have the same model and see the same tokens.
        sides: for each of them which of a batch's sides it reads.
        selections: for each lesson which chunks its loss scores; None: all.
        beginnings: for each lesson whether it scores beginnings of texts (``ChunkDivergence.takes_beginnings``).
        lessons: in the order of the batch's sides; none off the last pipeline stage.
    """

    teachers: tuple[Teacher, ...] = ()
    sides: tuple[int, ...] = ()
    selections: tuple[torch.nn.Module | None, ...] = ()
    beginnings: tuple[bool, ...] = ()
    lessons: tuple[Lesson, ...] = ()

    def begin_next(self) -> None:
        """Where the student's loss of a micro-batch is computed and its backward pass comes next; see ``Teacher``."""
        for teacher in self.teachers:
            teacher.begin_next()

    def check_given(self, step: int) -> None:
        """After a step: see ``Teacher.check_given``.

        Args:
            step: its number, for the message.

        Raises:
            InputError: states that are not numbers.
        """
        for teacher in self.teachers:
            with in_step(step):
                teacher.check_given()

    def close(self) -> None:
        """Closes the teachers, when the run ends or fails."""
        for teacher in self.teachers:
            teacher.close()


def begin(
    named: Sequence[NamedTeacher],
    host_of: Callable[[NamedTeacher], TeacherHost],
    student: Vocabulary,
    output_layer: Any | None,
    kernels: TileKernels,
) -> Teaching:
    """Opens the teachers and makes what the loss needs of them.

    Args:
        named: whose losses are resolved.
        host_of: what the training loop gives to the source of a teacher.
        output_layer: the student's, Megatron's vocabulary-parallel one; None on all but the last pipeline stage.
        kernels: what goes over the tiles.

    Collectives: those of ``Teacher.open`` and ``Teacher.lay_out``.
    """
    device = torch.cuda.current_device()
    pairs = [_pair(teacher, student) for teacher in named]
    selections = [chunk_selection(teacher.loss, pair) for teacher, pair in zip(named, pairs, strict=True)]
    first_with = one_model_each(named)
    sides = sorted(set(first_with))
    teachers = [open_teacher(host_of(named[n]), named[n].config.source) for n in sides]
    lessons: list[Lesson] = []
    if output_layer is None:
        for teacher in teachers:
            teacher.lay_out()  # one with a layout of its own wants everyone
    else:
        from megatron.core import parallel_state

        rows = int(output_layer.output_size_per_partition)  # the layer's own weight is None where it is tied
        shard = VocabularyShard.of_local_rows(student.size, rows, parallel_state.get_tensor_model_parallel_group())
        divergences = [
            make_divergence(one.loss, pair, shard, one.config.options, kernels)
            for one, pair in zip(named, pairs, strict=True)
        ]
        lessons = _make_lessons(named, teachers, [sides.index(n) for n in first_with], pairs, divergences)
    return Teaching(
        tuple(teachers),
        tuple(sides),
        tuple(None if one is None else one.to(device) for one in selections),
        tuple(loss_named(teacher.loss).takes_beginnings for teacher in named),
        tuple(lessons),
    )


def _pair(teacher: NamedTeacher, student: Vocabulary) -> VocabularyPair:
    """With W, which is read or built where a loss takes it."""
    config, other = teacher.config, teacher.tokenizer.vocabulary
    return VocabularyPair(student, other, lambda: load_or_build(student, other, config.rule, config.projection))


def _make_lessons(
    named: Sequence[NamedTeacher],
    teachers: Sequence[Teacher],
    sources: Sequence[int],
    pairs: Sequence[VocabularyPair],
    divergences: Sequence[ChunkDivergence],
) -> list[Lesson]:
    """Lays the teachers' output layers out as the divergences want them, and makes the learned entries of W.

    Args:
        sources: for each of those named the number of its teacher.
    """
    learned: list[LearnedProjection | None] = []
    for one, pair, divergence in zip(named, pairs, divergences, strict=True):
        learned.append(None)
        if one.config.learned:  # of a loss that learns W: the adapter has seen to it
            exchange: Any = divergence.exchange
            learned[-1] = LearnedProjection(exchange, pair.matrix)
    heads: dict[int, OutputHead] = {}
    for source, teacher in enumerate(teachers):
        taught = [number for number, n in enumerate(sources) if n == source]
        heads |= zip(taught, teacher.lay_out(*(divergences[n].ownership for n in taught)), strict=True)
    device = torch.cuda.current_device()
    return [
        Lesson(one.name, sources[n], heads[n], divergences[n].to(device), one.config.chunks, learned[n])
        for n, one in enumerate(named)
    ]


def student_output(tap: HiddenStateTap, layout: ContextLayout, vocabulary_size: int, config: Any) -> Held:
    """What the student's forward pass left at its output layer, on the last pipeline stage.

    Args:
        layout: that it ran in.
        vocabulary_size: V_S.
        config: the student's.
    """
    from megatron.core import parallel_state

    hidden, weight = tap.pop()
    group = parallel_state.get_tensor_model_parallel_group()
    shard = VocabularyShard.of_local_rows(vocabulary_size, weight.shape[0], group)
    added, sums = main_grad_of(weight, hidden.dtype, config), not tap.sequence_parallel
    head = replace(output_head(weight, shard, config), main_grad=added, sums_hidden=sums)
    return Held(ModelOutput(hidden, head), layout)


def shared(
    lessons: Sequence[Lesson], micro_batch: MicroBatch, student: Held, statistic: str | None
) -> tuple[ModelOutput, Tensor, list[TeacherSignal]]:
    """What this context-parallel rank scores of a micro-batch: student, its labels, teachers.

    Args:
        student: this rank's rows.
        statistic: see ``TeacherWeights.statistic``.
    """
    signals, layouts, own = [], [], micro_batch.batch.student
    for lesson, side in zip(lessons, micro_batch.batch.teachers, strict=False):
        states = micro_batch.states[lesson.source]
        assert states is not None, "a lesson is on the last pipeline stage alone"
        layouts.append(states.layout)
        signals.append(
            TeacherSignal(
                ModelOutput(states.hidden, lesson.head),
                side.labels,
                side.chunks,
                lesson.divergence,
                lesson.chunks,
                None if lesson.learned is None else lesson.learned(),
                statistic=statistic,
            ).after((own.tokens, own.positions), (side.tokens, side.positions))
        )
    return share(student, own.labels, signals, layouts)
