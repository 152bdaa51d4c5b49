"""The teacher of a run: which checkpoint, which tokenizer, which W and loss; and the frozen model made of it."""

import copy
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional

import torch
from nemo.collections import llm
from nemo.lightning import io

from nemo_xtoken.errors import InputError
from nemo_xtoken.losses.base import ChunkLossConfig
from nemo_xtoken.losses.registry import DivergenceOptions
from nemo_xtoken.plugin.nemo2.inputs import model_inputs, schedule_shape
from nemo_xtoken.plugin.nemo2.tokenizer import XTokenTokenizer
from nemo_xtoken.projection.build import ProjectionRule
from nemo_xtoken.teachers.colocated import ColocatedTeacher

__all__ = ["TeacherConfig", "build_teacher"]

logger = logging.getLogger(__name__)

SHARED_WITH_STUDENT = (
    "tensor_model_parallel_size",
    "pipeline_model_parallel_size",
    "context_parallel_size",
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
        loss: how the distributions of a chunk are compared: ``p_kl``, ``h_kl``, ``gold``, ``uld``, ``same_tokenizer``,
            or ``auto``, which takes the one that the coverage audit recommends.
        options: settings of that loss.
        chunks: how a chunk of several tokens becomes one term, and the temperature.
    """

    path: Optional[str] = None
    tokenizer: Optional[str] = None
    config: Optional[llm.GPTConfig] = None
    projection: Optional[str] = None
    rule: ProjectionRule = field(default_factory=ProjectionRule)
    loss: str = "p_kl"
    options: DivergenceOptions = field(default_factory=DivergenceOptions)
    chunks: ChunkLossConfig = field(default_factory=ChunkLossConfig)

    def checkpoint(self) -> Path:
        """The checkpoint's folder.

        Raises:
            InputError: none is given, or there is none.
        """
        if self.path is None:
            raise InputError(
                "no teacher: teacher.path is not set",
                "the folder of a NeMo 2 checkpoint",
                "set teacher.path=..; `nemo llm import` makes one from a Hugging Face model; "
                "or train without a teacher by objective.scale=0",
            )
        path = Path(self.path)
        if not (path / "weights").is_dir():
            raise InputError(
                f"no checkpoint in {path}",
                "a folder with `weights` and `context`, as NeMo 2 saves them",
                "fix teacher.path; `nemo llm import` makes one from a Hugging Face model",
            )
        return path

    def load_tokenizer(self) -> XTokenTokenizer:
        """The teacher's tokenizer, given or from its checkpoint."""
        if self.tokenizer is not None:
            return XTokenTokenizer(self.tokenizer)
        found = self._context("model.tokenizer")
        if isinstance(found, XTokenTokenizer):
            return found
        name = getattr(getattr(found, "tokenizer", None), "name_or_path", None)
        if name:
            return XTokenTokenizer(name)
        raise InputError(
            f"a tokenizer of type {type(found).__name__} in {self.path}",
            "a Hugging Face tokenizer",
            "name the tokenizer's folder with teacher.tokenizer=..",
        )

    def load_config(self) -> llm.GPTConfig:
        """The teacher's architecture, given or from its checkpoint."""
        return copy.deepcopy(self.config) if self.config is not None else self._context("model.config")

    def _context(self, what: str) -> Any:
        path = self.checkpoint() / "context"
        try:
            return io.load_context(path, subpath=what)
        except InputError:
            raise
        except Exception as error:  # a context is code that runs: it may raise anything
            raise InputError(
                f"{what} cannot be loaded from {path} ({type(error).__name__}: {error})",
                "what NeMo 2 saves beside the weights",
                "set teacher.tokenizer=.. and teacher.config=.., or import the checkpoint again",
            ) from error


def build_teacher(
    teacher: TeacherConfig, tokenizer: XTokenTokenizer, student_config: llm.GPTConfig, trainer: object
) -> ColocatedTeacher:
    """Loads this rank's part of the teacher, frozen, in evaluation mode, in the student's precision and layout.

    Raises:
        InputError: no checkpoint.
    """
    from nemo.collections.llm.gpt.model.base import torch_dtype_from_mcore_config
    from nemo.collections.llm.modelopt.distill.utils import teacher_provider

    path, config = teacher.checkpoint(), teacher.load_config()
    for name in SHARED_WITH_STUDENT:
        setattr(config, name, getattr(student_config, name))
    module = teacher_provider(config, str(path), tokenizer, trainer)
    dtype = torch_dtype_from_mcore_config(student_config)
    module = module.to(device=torch.cuda.current_device(), dtype=dtype).requires_grad_(False).eval()
    return ColocatedTeacher(module, tokenizer.vocab_size, lambda batch: model_inputs(batch, "teacher"), schedule_shape)
