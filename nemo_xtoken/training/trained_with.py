"""What a run learns from, by which losses and in which precision, in its folder: one that goes on otherwise says so.

A loss may be changed midway on purpose, so it is not refused; but a run that is half of one and half of another is to
be known as such.  What a student is made of cannot change: a folder's checkpoint goes before what is given, which would
be left aside without a word.  That of data and tokenizers each adapter checks by itself.
"""

import json
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from nemo_xtoken.errors import InputError
from nemo_xtoken.files import atomic_path, file_digest
from nemo_xtoken.objective.scale import ObjectiveConfig
from nemo_xtoken.run.records import PRECISION, TRAINED_WITH, read_trained_with, settings_changed
from nemo_xtoken.teachers.fingerprint import weights_sample
from nemo_xtoken.training.teacher_settings import NamedTeacher
from nemo_xtoken.weights.folder import ModelFolder

__all__ = ["Origin", "check_origin", "go_on_with", "trained_with"]

logger = logging.getLogger(__name__)

#: What decides what a student learns from a teacher; not where or in which layout the teacher runs.
OF_OBJECTIVE = ("scale", "teacher_weights")
OF_TEACHER = ("weight", "fp8", "learned")
PARTS_OF_TEACHER = ("rule", "options", "chunks")
ORIGIN = "student.weights"


@dataclass(frozen=True)
class Origin:
    """What a run's student is made of.

    Attributes:
        path: for messages.
        files: of its weights, as the user has them; what is made of them may differ from time to time.
        layers: those that stay, as the user gave them; None: all.
    """

    path: str
    files: Callable[[], Iterable[Path]]
    layers: str | None = None

    @classmethod
    def of_folder(cls, model: str, layers: str | None = None) -> "Origin":
        """Of a model in Hugging Face's format: its folder, or a hub name."""

        def files() -> Iterable[Path]:
            folder = ModelFolder(model)
            return [folder.path / name for name in folder.files]

        return cls(model, files, layers)

    @cached_property
    def digest(self) -> str:
        """Of the contents of the files, see `weights_sample`, and of the layers.

        Raises:
            InputError: there is no file.
            OSError: one cannot be read.
        """
        return weights_sample(self.files())[:12] + (f" layers {self.layers}" if self.layers else "")


def check_origin(folder: Path, origin: Origin | None) -> None:
    """Whether a run that goes on in its folder began from this student.  Of folders that do not say nothing is known.

    Raises:
        InputError: it began from another one.
    """
    before = next((e["settings"][ORIGIN] for e in read_trained_with(folder) if ORIGIN in e["settings"]), None)
    if origin is None or before is None or before == origin.digest:
        return
    raise InputError(
        f"the run in {folder} began from another student than {origin.path}",
        "the weights and layers that it began from: it goes on with its own checkpoint",
        f"set log.name=NAME for a run in a folder of its own, or remove {folder}",
    )


def trained_with(
    objective: ObjectiveConfig,
    teachers: Iterable[NamedTeacher],
    origin: Origin | None = None,
    precision: str | None = None,
) -> dict[str, Any]:
    """The settings that make up what a student learns, as plain data by their names on the command line.

    A loss is the one that ``auto`` stands for.  A file of W and a teacher's checkpoint go by their content too.

    Args:
        origin: of the student; None: random weights.
        precision: of the training; None: it is not written down.

    Raises:
        InputError: a student or a teacher has no checkpoint.
        OSError: a file of W, of the student or of a teacher cannot be read.
    """
    found: dict[str, Any] = {} if origin is None else {ORIGIN: origin.digest}
    found |= {f"objective.{name}": getattr(objective, name) for name in OF_OBJECTIVE}
    if precision is not None:
        found[PRECISION] = precision.removesuffix("-true")  # Lightning's name for what is not mixed
    for teacher in teachers:
        config = teacher.config
        own = {"path": _place(config.path), "loss": teacher.loss, "projection": _file(config.projection)}
        if config.path is not None:  # a source of one's own may need none
            own["checkpoint"] = f"content {weights_sample(config.weight_files(teacher.where))[:12]}"
        own |= {name: getattr(config, name) for name in OF_TEACHER}
        for part in PARTS_OF_TEACHER:
            own |= {f"{part}.{name}": value for name, value in vars(getattr(config, part)).items()}
        found |= {f"{teacher.where}.{name}": value for name, value in own.items()}
    plain: dict[str, Any] = json.loads(json.dumps(found, default=str))
    return plain


def go_on_with(folder: Path, step: int, now: Mapping[str, Any]) -> None:
    """Writes down with what a run trains from here on, and warns where it was begun with something else.

    For the first rank alone, when training begins.  Of a folder from before there was such a file nothing is known, and
    nothing said.

    Args:
        folder: of the run.
        step: that the run goes on after; 0: it begins.
        now: see `trained_with`.

    Raises:
        OSError: the file cannot be written.
    """
    there = read_trained_with(folder)
    # As with the history: what came after the checkpoint has left nothing.
    entries = [entry for entry in there if entry["after"] < step]
    if entries and (changed := settings_changed(entries[-1]["settings"], now)):
        logger.warning("from step %s on with other settings than before: %s", f"{step + 1:,}", ", ".join(changed))
    if not entries or entries[-1]["settings"] != now:
        entries.append({"after": step, "settings": dict(now)})
    if entries != there:
        with atomic_path(folder / TRAINED_WITH) as temporary:
            temporary.write_text(json.dumps(entries, indent=1) + "\n")


def _place(path: str | None) -> str | None:
    """A folder or file by one name, however it is written; a hub name as it is."""
    return str(Path(path).resolve()) if path is not None and Path(path).exists() else path


def _file(path: str | None) -> str | None:
    """The same of a file, with a digest of its content: it may have been made again."""
    place = _place(path)
    return f"{place} (SHA-256 {file_digest(place)[:12]})" if place is not None and Path(place).is_file() else place
