"""Scores of one model on disk: a JSON file, rewritten when a column has ended, so that no column is run twice."""

import contextlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nemo_xtoken.errors import InputError
from nemo_xtoken.evaluate.benchmark_columns import PAPER_COLUMNS
from nemo_xtoken.evaluate.task_settings import Settings
from nemo_xtoken.files import atomic_path, digest_of
from nemo_xtoken.sharing.file_lock import file_lock

__all__ = ["Scores", "average", "fresh", "identity_of", "read_scores"]

FORMAT = 1
_PARTS = ("config.json", "*.safetensors", "tokenizer*", "vocab*", "merges.txt", "*.model")


@dataclass
class Scores:
    """What a file holds.

    Attributes:
        model: as it was named.
        identity: tells it from another that had the same name.
        settings: those that decide about scores.
        harness: version of lm_eval.
        columns: by key, in the order of their runs: see `Harness.run`.
    """

    model: str
    identity: str
    settings: dict[str, Any]
    harness: str
    columns: dict[str, dict[str, Any]] = field(default_factory=dict)

    def same_run(self, other: "Scores") -> str:
        """What differs, for a message; "" where the scores of both may stand in one file."""
        for name, one, two in (
            ("the model", self.identity, other.identity),
            ("lm_eval", self.harness, other.harness),
            *(
                (key, self.settings.get(key), other.settings.get(key))
                for key in sorted({*self.settings, *other.settings})
            ),
        ):
            if one != two:
                return f"{name} ({one} there)" if name != "the model" else "the model, which has changed since"
        return ""

    def as_json(self) -> dict[str, Any]:
        """The content of the file."""
        return {
            "format": FORMAT,
            "model": self.model,
            "identity": self.identity,
            "harness": self.harness,
            "settings": self.settings,
            "columns": self.columns,
            "average": average(self.columns),
        }

    def add(self, path: Path, key: str, found: dict[str, Any]) -> None:
        """Adds a column to the file, and to these scores what other processes have added to it meanwhile."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as stack:
            with contextlib.suppress(OSError, NotImplementedError):  # a file system without locks
                stack.enter_context(file_lock(path.with_name(f".{path.name}.lock")))
            with contextlib.suppress(InputError):
                there = read_scores(path)
                if there is not None and not there.same_run(self):
                    self.columns |= there.columns
            self.columns[key] = found
            self.save(path)

    def save(self, path: Path) -> None:
        """Writes the file; it is whole or as it was."""
        with atomic_path(path) as temporary:
            temporary.write_text(json.dumps(self.as_json(), indent=2) + "\n")


def average(columns: Mapping[str, Mapping[str, Any]]) -> float | None:
    """The mean of the paper's five columns; None where one is missing."""
    found = [columns[c.key]["score"] for c in PAPER_COLUMNS if c.key in columns]
    return sum(found) / len(found) if len(found) == len(PAPER_COLUMNS) else None


def read_scores(path: Path) -> Scores | None:
    """The scores in a file; None where there is none.

    Raises:
        InputError: a file of another kind.
    """
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_text())
        if content["format"] != FORMAT:
            raise ValueError(f"format {content['format']}")
        keys = ("model", "identity", "settings", "harness", "columns")
        scores = Scores(**{key: content[key] for key in keys})
        for column in scores.columns.values():
            float(column["score"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path} holds no scores ({type(error).__name__}: {error})",
            "a file that `xtoken evaluate` wrote",
            "name another file, or remove this one",
        ) from error
    return scores


def fresh(model: str, identity: str, settings: Settings, harness: str) -> Scores:
    """Of a model before its first column."""
    return Scores(model, identity, settings.decisive, harness)


def identity_of(model: str) -> str:
    """Tells a model from another in the same place: names, sizes and times of its files; of a hub's model the name, and
    of a download from there name and commit, since each node may have downloaded it by itself."""
    folder = Path(model).expanduser()
    if not folder.is_dir():
        return digest_of(model)[:16]
    repository = folder.parent.parent.name
    if folder.parent.name == "snapshots" and repository.startswith("models--"):
        return digest_of(repository, folder.name)[:16]
    files = sorted({f for pattern in _PARTS for f in folder.glob(pattern) if f.is_file()})
    return digest_of(*(f"{f.name} {f.stat().st_size} {f.stat().st_mtime_ns}" for f in files))[:16]
