"""A teacher by itself, by whichever framework is installed: for ``xtoken cache`` and ``xtoken serve``."""

import importlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Optional

from nemo_xtoken.data.config import DataConfig, Tokenization
from nemo_xtoken.environment import unloadable_nemo
from nemo_xtoken.errors import InputError
from nemo_xtoken.teachers.contract import TeacherHost
from nemo_xtoken.teachers.service.replica_server import Limits
from nemo_xtoken.teachers.service.service_folder import ServiceFolder
from nemo_xtoken.training.alone.caching import CacheReport, cache_states, readable_text
from nemo_xtoken.training.alone.serving import serve_states
from nemo_xtoken.training.alone.teacher_world import TeacherPlan
from nemo_xtoken.vocab.vocabulary import Vocabulary

__all__ = ["cache_text", "hosted_teacher", "serve_teacher"]


def hosted_teacher(plan: TeacherPlan) -> AbstractContextManager[TeacherHost]:
    """The teacher under NeMo 2, or else under Megatron-Bridge.

    Raises:
        InputError: neither is installed, or one cannot be loaded.
    """
    try:
        module = importlib.import_module("nemo_xtoken.plugin.nemo2.teacher")
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in ("nemo", "lightning"):
            raise
        try:
            module = importlib.import_module("nemo_xtoken.plugin.bridge.models")
            importlib.import_module("megatron.bridge")
        except ModuleNotFoundError as other:
            raise InputError(
                f"neither NeMo 2 nor Megatron-Bridge can be loaded here ({error}; {other})",
                "one of them, to run the teacher",
                "pip install 'nemo_xtoken[nemo]', or use an image that has one; `xtoken env` says what is there",
            ) from other
    except Exception as error:
        raise unloadable_nemo(error) from error
    hosted: AbstractContextManager[TeacherHost] = module.hosted_teacher(plan)
    return hosted


def cache_text(
    plan: Mapping[str, Any],
    text: DataConfig,
    student: Optional[Vocabulary],
    beside: Sequence[Tokenization],
    folder: Path,
    format_name: Optional[str],
    micro_batch: int,
    part: int = 0,
    parts: int = 1,
) -> CacheReport:
    """Computes the states of a text that a folder does not have yet.

    Args:
        plan: arguments of `TeacherPlan`.
        text, student, beside: see `readable_text`.
        folder, format_name, micro_batch, part, parts: see `cache_states`.

    Raises:
        InputError: see these, and `hosted_teacher`.
    """
    with hosted_teacher(TeacherPlan(**plan)) as host:
        sources = readable_text(text, student, host.settings.load_tokenizer().vocabulary, beside)
        return cache_states(host, sources, folder, format_name, micro_batch, part, parts)


def serve_teacher(
    plan: Mapping[str, Any],
    folder: Path,
    name: str,
    length: int,
    credit_rows: int,
    micro_batch: int,
    address: Optional[str],
    stopped: Callable[[], bool],
) -> int:
    """Answers students' requests until it is to stop; returns the positions that were computed.

    Args:
        plan: arguments of `TeacherPlan`.
        folder, name, micro_batch, address, stopped: see `serve_states`.
        length: positions of a row, at most.
        credit_rows: rows of this length that a student may have asked for and not got yet.

    Raises:
        InputError: see `serve_states` and `hosted_teacher`.
    """
    with hosted_teacher(TeacherPlan(**plan)) as host:
        limits = Limits(length, host.vocabulary_size, credit_rows * length)
        return serve_states(host, ServiceFolder(folder), name, limits, micro_batch, address, stopped)
