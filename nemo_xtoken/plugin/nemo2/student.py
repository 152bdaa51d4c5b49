"""A student that starts from a checkpoint: its tokenizer comes from there, and its architecture must be the same."""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Optional

import nemo.lightning as nl

from nemo_xtoken.data.config import DataConfig
from nemo_xtoken.errors import InputError
from nemo_xtoken.plugin.nemo2.checkpoints.safe_context import context_file
from nemo_xtoken.plugin.nemo2.context import load_from_context, load_tokenizer
from nemo_xtoken.plugin.nemo2.teacher import TeacherConfig
from nemo_xtoken.plugin.nemo2.tokenizer import XTokenTokenizer
from nemo_xtoken.run.run_checks import left_to_the_user, not_set
from nemo_xtoken.run.spec import START, differences, plain_config
from nemo_xtoken.training.teacher_settings import teachers_by_argument

__all__ = [
    "check_architecture",
    "check_given",
    "check_resumed_tokenizer",
    "fused_rope",
    "starting_tokenizer",
    "tokenizer",
]


def tokenizer(source: Optional[str] = None) -> Optional[XTokenTokenizer]:
    """The student's tokenizer, for a recipe.

    Args:
        source: a folder or hub name; None: the tokenizer of the checkpoint that the student starts from.
    """
    return None if source is None else XTokenTokenizer(source)


def fused_rope() -> bool:
    """Whether Transformer Engine or the CPU runtime has the fused rotary embedding, for a recipe's configuration.

    NeMo's Llama configurations ask for it, and cannot be made without it.
    """
    from megatron.core.models.common.embeddings import rope_utils

    return bool(rope_utils.fused_apply_rotary_pos_emb or rope_utils.fused_apply_rotary_pos_emb_thd)


def check_given(
    resume: Optional[nl.AutoResume],
    text: DataConfig,
    teacher: Optional[TeacherConfig],
    teachers: Optional[Mapping[str, Optional[TeacherConfig]]],
) -> None:
    """Names all missing settings that a recipe leaves to the user, at once.

    Args:
        resume: with a ``restore_config`` where the student starts from a checkpoint.
        text: of the run.
        teacher, teachers: as `named_teachers` takes them; None, None for a run that needs none.

    Raises:
        InputError: no path for the student, or several paths that are not set.
    """
    start = getattr(resume, "restore_config", None)
    paths = {
        f"{where}.path": ("a teacher", config.path) for where, config in teachers_by_argument(teacher, teachers).items()
    }
    if start is not None:
        paths = {START: ("the student", start.path), **paths}
    missing = left_to_the_user(paths, text)
    if START in missing or len(missing) > 1:
        raise not_set(
            missing,
            "folders of NeMo 2 checkpoints, and files of text",
            "`xtoken import model=HF_FOLDER_OR_NAME out=FOLDER` makes a checkpoint, of the student as of a teacher",
        )


def starting_tokenizer(resume: Optional[nl.AutoResume], trust: bool = False) -> XTokenTokenizer:
    """The tokenizer of the checkpoint that the student starts from.

    Args:
        trust: code that the checkpoint names may run.

    Raises:
        InputError: the student starts from no checkpoint, or from one without a tokenizer.
    """
    path = _start(resume)
    if path is None:
        raise InputError(
            "no tokenizer for the student",
            "its folder or hub name, or a checkpoint that the student starts from",
            f"set model.tokenizer.source=FOLDER, or {START}=PATH",
        )
    if not path.is_dir():
        raise InputError(f"no folder {path}", "the folder of a NeMo 2 checkpoint", f"fix {START}")
    return load_tokenizer(path, "model.tokenizer.source", f"fix {START}, or set model.tokenizer.source=FOLDER", trust)


def check_architecture(config: Any, resume: Optional[nl.AutoResume], trust: bool = False) -> None:
    """A checkpoint of another architecture either does not load, or loads and computes something else.

    Args:
        config: of the student.
        resume: with the checkpoint that it starts from; one without a ``context`` is not checked.
        trust: code that the checkpoint names may run.

    Raises:
        InputError: the two differ.
    """
    path = _start(resume)
    if path is None or not (path / "context").is_dir():
        return
    theirs = load_from_context(path, "model.config", f"fix {START}, or import the model again", trust)
    problem = differences(plain_config(config), plain_config(theirs), str(path))
    if problem is not None:
        raise problem


def check_resumed_tokenizer(tokenizer: XTokenTokenizer, checkpoint: Optional[Path], trust: bool = False) -> None:
    """A run goes on with the tokenizer that it began with: its rows and its data are of that one.

    Args:
        tokenizer: of the run now.
        checkpoint: what it goes on from; None, or one without a ``context``, is not checked.
        trust: code that the checkpoint names may run.

    Raises:
        InputError: the checkpoint's is another.
    """
    if checkpoint is None or not context_file(checkpoint).is_file():
        return
    theirs = load_tokenizer(checkpoint, "model.tokenizer.source", "start a new run (log.name=NAME)", trust).vocabulary
    now = tokenizer.vocabulary
    if now.digest != theirs.digest:
        raise InputError(
            f"the student's tokenizer {now.name} ({now.size:,} tokens, digest {now.digest[:12]}) is not the one that "
            f"{checkpoint} was trained with ({theirs.size:,} tokens, digest {theirs.digest[:12]}, in {theirs.name})",
            "to resume, the tokenizer that the run began with",
            f"set model.tokenizer.source={shlex.quote(theirs.name)}, or start a new run in another folder "
            "(log.name=NAME)",
        )


def _start(resume: Optional[nl.AutoResume]) -> Optional[Path]:
    """The checkpoint that a new student starts from; None: none, or NeMo's own cache has it (``nemo://..``)."""
    path = getattr(getattr(resume, "restore_config", None), "path", None)
    return None if not path or "://" in str(path) else Path(path)
