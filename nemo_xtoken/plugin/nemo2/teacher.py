"""The teachers of a run: which checkpoint, tokenizer, W, loss and weight; and the frozen models made of them."""

import contextlib
import copy
import dataclasses
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Optional

import torch
from nemo.collections import llm

from nemo_xtoken.data.config import TeacherSide
from nemo_xtoken.errors import InputError
from nemo_xtoken.losses.base import ChunkLossConfig
from nemo_xtoken.losses.registry import DivergenceOptions
from nemo_xtoken.plugin.nemo2.context import load_from_context, load_tokenizer
from nemo_xtoken.plugin.nemo2.inputs import model_inputs, prepare_config, schedule_shape
from nemo_xtoken.plugin.nemo2.tokenizer import XTokenTokenizer
from nemo_xtoken.projection.build import ProjectionRule
from nemo_xtoken.teachers.colocated import ColocatedTeacher
from nemo_xtoken.teachers.groups import ParallelSizes, TeacherGroups
from nemo_xtoken.teachers.own_layout import OwnLayoutTeacher

__all__ = ["NamedTeacher", "TeacherConfig", "build_teacher", "named_teachers", "one_model_each", "teachers_by_argument"]

logger = logging.getLogger(__name__)

#: The name of the teacher that the argument ``teacher`` configures.
ALONE = "teacher"
SHARED_WITH_STUDENT = (
    "sequence_parallel",
    "pipeline_dtype",
    "params_dtype",
    "bf16",
    "fp16",
    "autocast_dtype",
)


@dataclass
class TeacherConfig:
    """A frozen teacher in the student's processes, and how the student learns from it.

    Attributes:
        path: folder of a NeMo 2 checkpoint (the one that holds ``weights`` and ``context``).
        tokenizer: folder or hub name of its tokenizer; by default the one its checkpoint was trained with.
        config: its architecture; by default the checkpoint's own.
        projection: a W file made by ``xtoken build``; by default W is built from ``rule`` and cached.
        rule: how W is built.
        loss: how the distributions of a chunk are compared: ``p_kl``, ``prefix_kl``, ``h_kl``, ``gold``, ``uld``,
            ``strict_1to1``, ``same_tokenizer``, or ``auto``, which takes the one that the coverage audit recommends.
        options: settings of that loss.
        chunks: how a chunk of several tokens becomes one term, and the temperature.
        weight: alpha, the factor of its distillation term; the weights of several teachers need not sum to 1.
        length: T_T, input positions of a sample on its side; by default ``data.text.teacher_length``.
        tensor_model_parallel_size, pipeline_model_parallel_size, context_parallel_size, expert_model_parallel_size: its
            layout over the run's processes; by default the student's.  In one of its own, its copies divide the
            micro-batches of a step among them.
        learned: W is trained with the student (``p_kl``): its entries stay where they are, their weights move.  The run
            ends with a W file that any other can start from as its ``projection``.
        learned_lr: W's learning rate at the peak of the schedule, which it follows in proportion to the student's.
    """

    path: Optional[str] = None
    tokenizer: Optional[str] = None
    config: Optional[llm.GPTConfig] = None
    projection: Optional[str] = None
    rule: ProjectionRule = field(default_factory=ProjectionRule)
    loss: str = "p_kl"
    options: DivergenceOptions = field(default_factory=DivergenceOptions)
    chunks: ChunkLossConfig = field(default_factory=ChunkLossConfig)
    weight: float = 1.0
    length: Optional[int] = None
    tensor_model_parallel_size: Optional[int] = None
    pipeline_model_parallel_size: Optional[int] = None
    context_parallel_size: Optional[int] = None
    expert_model_parallel_size: Optional[int] = None
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

    def checkpoint(self, where: str = "teacher") -> Path:
        """The checkpoint's folder.

        Args:
            where: what this configuration is called on the command line.

        Raises:
            InputError: none is given, or there is none.
        """
        if self.path is None:
            raise InputError(
                f"no teacher: {where}.path is not set",
                "the folder of a NeMo 2 checkpoint",
                f"set {where}.path=..; `nemo llm import` makes one from a Hugging Face model; "
                "or train without a teacher by objective.scale=0",
            )
        path = Path(self.path)
        if not (path / "weights").is_dir():
            raise InputError(
                f"no checkpoint in {path}",
                "a folder with `weights` and `context`, as NeMo 2 saves them",
                f"fix {where}.path; `nemo llm import` makes one from a Hugging Face model",
            )
        return path

    def load_tokenizer(self, where: str = "teacher") -> XTokenTokenizer:
        """The teacher's tokenizer, given or from its checkpoint."""
        if self.tokenizer is not None:
            return XTokenTokenizer(self.tokenizer)
        return load_tokenizer(self.checkpoint(where), f"{where}.tokenizer", self._fix(where))

    def load_config(self, where: str = "teacher") -> llm.GPTConfig:
        """The teacher's architecture, given or from its checkpoint."""
        if self.config is not None:
            return copy.deepcopy(self.config)
        return load_from_context(self.checkpoint(where), "model.config", self._fix(where))

    @staticmethod
    def _fix(where: str) -> str:
        return f"set {where}.tokenizer=.. and {where}.config=.., or import the checkpoint again"


@dataclass(frozen=True)
class NamedTeacher:
    """One teacher of a run.

    Attributes:
        name: in metrics and messages; ``teacher`` for the one of the argument of that name.
        config: what it is.
        tokenizer: its tokenizer, loaded.
    """

    name: str
    config: TeacherConfig
    tokenizer: XTokenTokenizer

    @property
    def where(self) -> str:
        """What its configuration is called on the command line."""
        return _where(self.name)

    @property
    def label(self) -> str:
        """What messages call it."""
        return "teacher" if self.name == ALONE else f"teacher {self.name}"

    @property
    def side(self) -> TeacherSide:
        """What the data has to know of it."""
        return TeacherSide(self.tokenizer.vocabulary, self.config.length)


def _where(name: str) -> str:
    return ALONE if name == ALONE else f"teachers.{name}"


def teachers_by_argument(
    teacher: TeacherConfig | None, teachers: Mapping[str, TeacherConfig | None] | None
) -> dict[str, TeacherConfig]:
    """Those that are to teach, by what each is called on the command line; see `named_teachers`."""
    configs = {_where(name): config for name, config in (teachers or {}).items() if config is not None}
    if teacher is not None and (teacher.path is not None or not configs):
        configs = {ALONE: teacher, **configs}
    return configs


def named_teachers(
    teacher: TeacherConfig | None, teachers: Mapping[str, TeacherConfig | None] | None
) -> tuple[NamedTeacher, ...]:
    """The teachers of a run, their tokenizers loaded, in order: ``teacher``, then those of ``teachers``.

    Args:
        teacher: left out when it names no checkpoint and there are others.
        teachers: by name; one that is None (``teachers.NAME=None``) is left out.

    Raises:
        InputError: a name that is none, two teachers that differ in their weights alone, no checkpoint, or a tokenizer
            that cannot be read.
    """
    configs = {name: config for name, config in (teachers or {}).items() if config is not None}
    for name in configs:
        if name == ALONE or not re.fullmatch(r"[A-Za-z]\w*", name):
            raise InputError(
                f"a teacher named {name!r}",
                f"a name of letters, digits and _ that begins with a letter, and not {ALONE!r}",
                "rename it: teachers.NAME.path=..",
            )
    if teacher is not None and (teacher.path is not None or not configs):
        configs = {ALONE: teacher, **configs}
    seen: dict[str, str] = {}
    for name, config in configs.items():
        key = repr(dataclasses.replace(config, weight=1.0))
        if key in seen:
            raise InputError(
                f"{_where(name)} and {_where(seen[key])} are the same teacher with the same loss",
                "teachers that differ in more than their weights",
                f"leave one of them out, or set {_where(name)}.path=.. or {_where(name)}.loss=..",
            )
        seen[key] = name
    return tuple(NamedTeacher(n, config, config.load_tokenizer(_where(n))) for n, config in configs.items())


def one_model_each(teachers: Sequence[NamedTeacher]) -> list[int]:
    """For each teacher the number of the first that has the same model and sees the same tokens: it is loaded once."""
    keys = [
        (
            str(t.config.checkpoint(t.where).resolve()),
            repr(t.config.config),
            t.tokenizer.vocabulary.digest,
            t.config.length,
            t.config.tensor_model_parallel_size,
            t.config.pipeline_model_parallel_size,
            t.config.context_parallel_size,
            t.config.expert_model_parallel_size,
        )
        for t in teachers
    ]
    return [keys.index(key) for key in keys]


def build_teacher(
    teacher: NamedTeacher, number: int, student_config: llm.GPTConfig, trainer: object
) -> ColocatedTeacher:
    """Loads this rank's part of the teacher, frozen, in evaluation mode, in the student's precision and layout.

    Args:
        number: of its side in the batches.

    Raises:
        InputError: no checkpoint.
    """
    from nemo.collections.llm.gpt.model.base import torch_dtype_from_mcore_config
    from nemo.collections.llm.modelopt.distill.utils import teacher_provider

    path, config = teacher.config.checkpoint(teacher.where), teacher.config.load_config(teacher.where)
    for name in SHARED_WITH_STUDENT:
        setattr(config, name, getattr(student_config, name))
    students = ParallelSizes.of(student_config, experts=bool(config.num_moe_experts))
    sizes = teacher.config.sizes(students)
    config.tensor_model_parallel_size, config.pipeline_model_parallel_size = sizes.tensor, sizes.pipeline
    config.context_parallel_size, config.expert_model_parallel_size = sizes.context, sizes.expert
    config.expert_tensor_parallel_size = sizes.expert_tensor
    dtype = torch_dtype_from_mcore_config(student_config)
    if sizes != students:
        config.sequence_parallel = sizes.tensor > 1 and (config.sequence_parallel or sizes.expert > 1)
        config.pipeline_dtype = config.pipeline_dtype or dtype
    prepare_config(config)
    groups = TeacherGroups(sizes) if sizes != students else None
    with groups.active() if groups else contextlib.nullcontext():
        module = teacher_provider(config, str(path), teacher.tokenizer, trainer)
    module = module.to(device=torch.cuda.current_device(), dtype=dtype).requires_grad_(False).eval()
    side = f"teacher{number}"
    arguments = (
        module,
        teacher.tokenizer.vocab_size,
        lambda batch: model_inputs(batch, side),
        schedule_shape,
        side,
        teacher.label,
    )
    return ColocatedTeacher(*arguments) if groups is None else OwnLayoutTeacher(groups, *arguments)
