"""The teachers of a run as NeMo 2 has them: checkpoints of its own, and the frozen models made of them."""

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Optional

import nemo.lightning as nl
import torch
from nemo.collections import llm

from nemo_xtoken.errors import InputError
from nemo_xtoken.plugin.nemo2.context import load_from_context, load_tokenizer
from nemo_xtoken.plugin.nemo2.tokenizer import XTokenTokenizer
from nemo_xtoken.run.lora.lora_settings import unmerged
from nemo_xtoken.teachers.contract import TeacherHost
from nemo_xtoken.teachers.output_rows import MegatronRows
from nemo_xtoken.training.alone.teacher_world import TeacherPlan, precision_of, teacher_world
from nemo_xtoken.training.cpu import runtime as cpu_runtime
from nemo_xtoken.training.hosting.teacher_host import teacher_host
from nemo_xtoken.training.lora.adapted import has_adapters
from nemo_xtoken.training.teacher_settings import THE_TEACHER, NamedTeacher, TeacherSettings

__all__ = ["TeacherConfig", "host_teacher", "hosted_teacher"]


@dataclass
class TeacherConfig(TeacherSettings):
    """A teacher whose checkpoint is NeMo 2's; see `TeacherSettings` for all that is not said here.

    Attributes:
        path: folder of a NeMo 2 checkpoint (the one that holds ``weights`` and ``context``).
        config: its architecture; by default the checkpoint's own.
        trust: run code that the checkpoint brings; without it only what is on a list of NeMo's classes is made of it.
    """

    config: Optional[llm.GPTConfig] = None
    trust: bool = False

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
                f"set {where}.path=PATH; `xtoken import model=MODEL out=FOLDER` makes one; "
                "or train without a teacher by objective.scale=0",
            )
        path = Path(self.path)
        if not (path / "weights").is_dir():
            raise InputError(
                f"no checkpoint in {path}",
                "a folder with `weights` and `context`, as NeMo 2 saves them",
                f"fix {where}.path; `xtoken import model=MODEL out=FOLDER` makes one",
            )
        return path

    def load_tokenizer(self, where: str = "teacher") -> XTokenTokenizer:
        """The teacher's tokenizer, given or from its checkpoint."""
        if self.tokenizer is not None:
            return XTokenTokenizer(self.tokenizer)
        return load_tokenizer(self.checkpoint(where), f"{where}.tokenizer", self._fix(where), self.trust)

    def load_config(self, where: str = "teacher") -> llm.GPTConfig:
        """The teacher's architecture, given or from its checkpoint."""
        if self.config is not None:
            return copy.deepcopy(self.config)
        return load_from_context(self.checkpoint(where), "model.config", self._fix(where), self.trust)

    def model(self, where: str = "teacher") -> tuple[str, ...]:
        """What tells its model from others."""
        return str(self.checkpoint(where).resolve()), repr(self.config)

    def weight_files(self, where: str = "teacher") -> Iterable[Path]:
        """The files of its weights."""
        return (file for file in (self.checkpoint(where) / "weights").rglob("*") if file.is_file())

    @staticmethod
    def _fix(where: str) -> str:
        return f"set {where}.tokenizer=FOLDER and {where}.config=CONFIG, or import the checkpoint again"


def host_teacher(teacher: NamedTeacher, student_config: llm.GPTConfig, trainer: object) -> TeacherHost:
    """What a run of NeMo 2 gives to the source of a teacher; its model is loaded when the source asks for it.

    Raises:
        InputError: no checkpoint.
    """
    from nemo.collections.llm.gpt.model.base import torch_dtype_from_mcore_config
    from nemo.collections.llm.modelopt.distill.utils import teacher_provider

    path, config = teacher.config.checkpoint(teacher.where), teacher.config.load_config(teacher.where)

    weights, tied = path / "weights", bool(config.share_embeddings_and_output_weights)

    def load() -> Any:
        from megatron.core import dist_checkpointing

        if has_adapters(dist_checkpointing.load_tensors_metadata(str(weights))):
            raise unmerged(f"{teacher.where}.path", path)
        return teacher_provider(config, str(path), teacher.tokenizer, trainer)

    return teacher_host(
        teacher,
        config,
        student_config,
        torch_dtype_from_mcore_config(student_config),
        load,
        lambda: MegatronRows(weights, tied),
    )


@contextmanager
def hosted_teacher(plan: TeacherPlan) -> Iterator[TeacherHost]:
    """What the source ``colocated`` needs to load this teacher; its process groups are gone afterwards.

    Raises:
        InputError: no checkpoint, or processes that are no whole number of copies.
    """
    if not torch.cuda.is_available():
        cpu_runtime.enable()  # before NeMo's configurations are made: they would ask for Transformer Engine
    precision = precision_of(plan)
    config = TeacherConfig(**plan.settings())
    named = NamedTeacher(THE_TEACHER, config, config.load_tokenizer(plan.where), config.loss)
    trainer = SimpleNamespace(strategy=nl.MegatronStrategy(ckpt_async_save=False))
    with teacher_world(plan.sizes):
        yield host_teacher(named, precision, trainer)
