"""The teachers of a run, as every adapter configures them: checkpoint, tokenizer, W, loss, weight, layout."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional, TypeVar

from nemo_xtoken.data.config import Tokenization
from nemo_xtoken.errors import InputError
from nemo_xtoken.losses.base import ChunkLossConfig
from nemo_xtoken.losses.choosing import resolve_loss
from nemo_xtoken.losses.options import DEFAULT_LOSS, DivergenceOptions
from nemo_xtoken.objective.scale import ObjectiveConfig
from nemo_xtoken.projection.build import ProjectionRule
from nemo_xtoken.run.layout import ParallelSizes
from nemo_xtoken.run.teaching import THE_TEACHER, label_of, name_of, teaching, where_of
from nemo_xtoken.run.values import check_teacher
from nemo_xtoken.teachers.source_settings import CacheConfig, ServiceConfig
from nemo_xtoken.teachers.teacher_sources import check_source, source_named
from nemo_xtoken.training.vocabulary_tokenizer import VocabularyTokenizer
from nemo_xtoken.vocab.vocabulary import Vocabulary

__all__ = [
    "THE_TEACHER",
    "NamedTeacher",
    "TeacherSettings",
    "named_teachers",
    "one_model_each",
    "teachers_by_argument",
    "teachers_of_run",
]


@dataclass
class TeacherSettings:
    """A frozen teacher in the student's processes, and how the student learns from it.

    Attributes:
        path: its checkpoint.
        tokenizer: folder or hub name of its tokenizer; by default that of its checkpoint.
        projection: a W file made by ``xtoken build``; by default W is built from ``rule`` and cached.
        rule: how W is built.
        loss: how the distributions of a chunk are compared: ``prefix_kl`` (the default, by docs/learning.md#defaults),
            ``p_kl``, ``h_kl``, ``gold``, ``uld``, ``strict_1to1``, ``csd``, ``bpm``, ``alm``, ``same_tokenizer``,
            NeMo-RL's ``nrl_p_kl``, ``nrl_gold`` and ``nrl_h_kl``; ``auto``, which takes the one that the coverage
            audit recommends; or ``package.module:Class``, a loss of your own.
        options: settings of that loss.
        chunks: how a chunk of several tokens becomes one term, and the temperature.
        weight: alpha, the factor of its distillation term; the weights of several teachers need not sum to 1.
        length: T_T, input positions of a sample on its side; by default ``data.text.teacher_length``.
        tensor_model_parallel_size, pipeline_model_parallel_size, context_parallel_size, expert_model_parallel_size: its
            layout over the run's processes; by default the student's.  In one of its own, its copies divide the
            micro-batches of a step among them.
        fp8: its layers compute in FP8 by Transformer Engine, with scales of the tensors at hand; its weights stay as
            they are (in 8 bits only plain PyTorch has them, see docs/teachers.md), its output layer and the states that
            it gives are in the run's precision.  The positions of a micro-batch are to be a multiple of 8 on each
            tensor-parallel rank.  Elsewhere: its states are to be those of ``xtoken serve .. fp8=true``, or of ``xtoken
            cache .. fp8=true``.
        ahead: in the student's processes and layout its forward pass of the next micro-batch runs beside the student's
            backward pass, which takes more memory (docs/teachers.md#ahead).
        source: where its hidden states come from: ``colocated`` (in the student's processes and layout), ``own_layout``
            (in the same processes, in process groups of its own), ``cached`` (on disk: the folder ``cache.folder``),
            ``remote`` (in other processes, which ``xtoken serve`` starts), ``remote+cached`` (the same, kept on disk:
            a second epoch asks for nothing), or ``package.module:Class`` for a source of your own; by default the first
            of these, and the second where its layout differs.
        cache: of the states on disk.
        service: of the teacher in other processes.
        learned: W is trained with the student (``p_kl``): its entries stay where they are, their weights move.  The run
            ends with a W file that any other can start from as its ``projection``.
        learned_lr: W's learning rate at the peak of the schedule, which it follows in proportion to the student's.
    """

    path: Optional[str] = None
    tokenizer: Optional[str] = None
    projection: Optional[str] = None
    rule: ProjectionRule = field(default_factory=ProjectionRule)
    loss: str = DEFAULT_LOSS
    options: DivergenceOptions = field(default_factory=DivergenceOptions)
    chunks: ChunkLossConfig = field(default_factory=ChunkLossConfig)
    weight: float = 1.0
    length: Optional[int] = None
    tensor_model_parallel_size: Optional[int] = None
    pipeline_model_parallel_size: Optional[int] = None
    context_parallel_size: Optional[int] = None
    expert_model_parallel_size: Optional[int] = None
    fp8: bool = False
    ahead: bool = False
    source: Optional[str] = None
    cache: CacheConfig = field(default_factory=CacheConfig)
    service: ServiceConfig = field(default_factory=ServiceConfig)
    learned: bool = False
    learned_lr: float = 1e-2

    def sizes(self, student: ParallelSizes) -> ParallelSizes:
        """Its layout, where the student has this one."""
        return student.but(
            self.tensor_model_parallel_size,
            self.pipeline_model_parallel_size,
            self.context_parallel_size,
            self.expert_model_parallel_size,
        )

    def load_tokenizer(self, where: str = "teacher") -> VocabularyTokenizer:
        """Its tokenizer, given or from its checkpoint.

        Args:
            where: what this configuration is called on the command line.

        Raises:
            InputError: no checkpoint, or a tokenizer that cannot be read.
        """
        raise NotImplementedError

    def model(self, where: str = "teacher") -> tuple[str, ...]:
        """What tells its model from others.

        Raises:
            InputError: no checkpoint.
        """
        raise NotImplementedError

    def weight_files(self, where: str = "teacher") -> Iterable[Path]:
        """The files of its weights.

        Raises:
            InputError: no checkpoint.
        """
        raise NotImplementedError


Settings = TypeVar("Settings", bound=TeacherSettings)


@dataclass(frozen=True)
class NamedTeacher:
    """One teacher of a run.

    Attributes:
        name: in metrics and messages; ``teacher`` for the one of the argument of that name.
        config: what it is, as its adapter configures it.
        tokenizer: its tokenizer, loaded.
        loss: the loss's name; of a run's teachers one of ``losses.registry``, not ``auto``.
    """

    name: str
    config: Any
    tokenizer: VocabularyTokenizer
    loss: str

    @property
    def where(self) -> str:
        """What its configuration is called on the command line."""
        return THE_TEACHER if self.name == THE_TEACHER else where_of(self.name)

    @property
    def label(self) -> str:
        """What messages call it."""
        return label_of(self.where)

    @property
    def side(self) -> Tokenization:
        """What the data has to know of it."""
        return Tokenization(self.tokenizer.vocabulary, self.config.length)


def teachers_by_argument(
    teacher: Settings | None, teachers: Mapping[str, Settings | None] | None
) -> dict[str, Settings]:
    """Those that are to teach, by what each is called on the command line; see `named_teachers`."""
    return teaching(teacher, teachers, lambda config: config.path)


def teachers_of_run(
    objective: ObjectiveConfig,
    teacher: TeacherSettings | None,
    teachers: Mapping[str, TeacherSettings | None] | None,
    student: Vocabulary,
) -> tuple[NamedTeacher, ...]:
    """`named_teachers` with their losses resolved, where the objective needs any; none otherwise.

    Raises:
        InputError: as `named_teachers`; also if a teacher is required and missing, a loss or a source is unknown, or a
            source cannot do with a teacher's settings.
    """
    if not objective.needs_teacher:
        return ()
    named = named_teachers(teacher, teachers)
    if not named:
        raise InputError(
            f"no teacher for objective.scale={objective.scale}", "a teacher", "set teacher.path=PATH, or scale=0"
        )
    for one in named:
        check_source(one.config, one.config.source, one.where)
    named = tuple(
        dataclasses.replace(one, loss=resolve_loss(one.loss, student, one.tokenizer.vocabulary)) for one in named
    )
    for one in named:
        if one.config.source is not None:
            source_named(one.config.source).check_loss(one.config, one.where, one.loss, objective)
    return named


def named_teachers(
    teacher: TeacherSettings | None, teachers: Mapping[str, TeacherSettings | None] | None
) -> tuple[NamedTeacher, ...]:
    """The teachers, their tokenizers loaded, in order: ``teacher``, then those of ``teachers``.

    Args:
        teacher: left out when it names no checkpoint and there are others.
        teachers: by name; one that is None (``teachers.NAME=None``) is left out.

    Raises:
        InputError: a name that is none, two teachers that differ in their weights alone, no checkpoint, or a tokenizer
            that cannot be read.
    """
    configs = teachers_by_argument(teacher, teachers)
    seen: dict[str, str] = {}
    for where, config in configs.items():
        check_teacher(where, vars(config))
        key = repr(dataclasses.replace(config, weight=1.0))
        if key in seen:
            raise InputError(
                f"{where} and {seen[key]} are the same teacher with the same loss",
                "teachers that differ in more than their weights",
                f"leave one of them out, or set {where}.path=PATH or {where}.loss=LOSS",
            )
        seen[key] = where
    return tuple(
        NamedTeacher(name_of(w), config, config.load_tokenizer(w), config.loss) for w, config in configs.items()
    )


def one_model_each(teachers: Sequence[NamedTeacher]) -> list[int]:
    """For each teacher the number of the first that has the same model and sees the same tokens: it is loaded once."""
    keys = [
        (
            *t.config.model(t.where),
            t.tokenizer.vocabulary.digest,
            t.config.length,
            t.config.tensor_model_parallel_size,
            t.config.pipeline_model_parallel_size,
            t.config.context_parallel_size,
            t.config.expert_model_parallel_size,
            (t.config.fp8, t.config.ahead, t.config.source),
            repr((t.config.cache, t.config.service)),
        )
        for t in teachers
    ]
    return [keys.index(key) for key in keys]
