"""A checkpoint in Hugging Face's format: configuration, safetensors files, and a folder that is whole or absent."""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nemo_xtoken.errors import InputError, shortened
from nemo_xtoken.files import atomic_path
from nemo_xtoken.hub import hub_folder, is_hub_name
from nemo_xtoken.leftovers import temporary_name, tidy
from nemo_xtoken.weights.dtypes import FLOATS, widest
from nemo_xtoken.weights.language_model import language_config
from nemo_xtoken.weights.safetensors_file import SafetensorsFile
from nemo_xtoken.weights.tokenizer_files import TOKENIZER_FILES

__all__ = ["INDEX", "WEIGHTS", "ModelFolder", "check_out", "new_folder", "read_config", "read_json", "write_json"]

INDEX = "model.safetensors.index.json"
WEIGHTS = "model.safetensors"
MOST_JSON = 100_000_000  # bytes; the index of the largest models has a few MB
_UNSAFE = ("pytorch_model*.bin", "*.pth", "*.gguf")


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file; {} if there is no file.

    Raises:
        InputError: the file cannot be read, or does not hold a JSON object.
    """
    try:
        with open(path, "rb") as file:
            text = file.read(MOST_JSON + 1)
        if len(text) > MOST_JSON:
            raise ValueError(f"more than {MOST_JSON:,} bytes")
        content = json.loads(text.decode("utf-8-sig"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} cannot be read ({error})", "a JSON object", "copy the file again") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: a {type(content).__name__}", "a JSON object", "copy the file again")
    return content


def read_config(source: str) -> tuple[dict[str, Any], Path]:
    """What the ``config.json`` of a folder or hub name says, and where it is.

    Raises:
        InputError: it cannot be read, or is not to be had.
    """
    folder = Path(source)
    if not folder.is_dir():
        folder = hub_folder(source, ["config.json"], "configuration", "a Hugging Face model")
    return read_json(folder / "config.json"), folder / "config.json"


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Writes it as transformers does: two spaces, sorted."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n", "utf-8")


class ModelFolder:
    """A model in Hugging Face's format.  Only headers are read; weights are safetensors, never pickles.

    Args:
        source: a folder with ``config.json`` and ``*.safetensors``, or the name of a model on the Hugging Face hub, the
            files of which are taken from the cache or downloaded.

    Attributes:
        name: as given.
        path: the folder.
        config: what ``config.json`` says.
        files: the safetensors files by name.
        where: tensor -> name of the file that has it.

    Raises:
        InputError: there is no such model, or files of it are missing.
    """

    def __init__(self, source: str | Path) -> None:
        self.name = str(source)
        self.path = _locate(self.name)
        self.config = read_json(self.path / "config.json")
        if not self.config.get("model_type"):
            raise InputError(
                f"{self.path} has no config.json with a model_type",
                "a checkpoint as transformers saves it: config.json, *.safetensors, tokenizer files",
                "name the folder that holds these files",
            )
        self.files = {name: SafetensorsFile(self.path / name) for name in self._file_names()}
        self.where = {tensor: name for name, file in self.files.items() for tensor in file.tensors}

    @property
    def text_config(self) -> dict[str, Any]:
        """The part of the configuration that describes the language model."""
        return language_config(self.config)

    @property
    def dtype(self) -> str | None:
        """The narrowest type that holds all its weights, as torch calls it; None where none or another is needed."""
        return FLOATS.get(widest(self.tensor(name)[0] for name in self.where) or "")

    def tensor(self, name: str) -> tuple[str, tuple[int, ...]]:
        """``(dtype, shape)`` of a tensor."""
        return self.files[self.where[name]].tensors[name]

    def _file_names(self) -> list[str]:
        if not (self.path / INDEX).is_file():
            if (self.path / WEIGHTS).is_file():
                return [WEIGHTS]
            pickles = sorted(p.name for pattern in _UNSAFE for p in self.path.glob(pattern))
            raise InputError(
                f"no safetensors in {self.path}" + (f", but {', '.join(pickles[:3])}" if pickles else ""),
                f"{WEIGHTS}, or {INDEX} and the files it names",
                "save the model again with transformers: model.save_pretrained(folder)",
            )
        index = read_json(self.path / INDEX).get("weight_map")
        found = list(index.values()) if isinstance(index, dict) else []
        if wrong := [name for name in found if not isinstance(name, str)]:
            raise InputError(
                f"{self.path / INDEX} names {shortened(repr(wrong[0]))}", "names of files", "download the index again"
            )
        names = sorted(set(found))
        outside = [n for n in names if Path(n).name != n or "\0" in n]
        missing = [n for n in names if n not in outside and not os.path.isfile(self.path / n)]
        if missing or outside or not names:
            raise InputError(
                f"{self.path / INDEX} names {', '.join((missing or outside)[:3]) or 'no files'}"
                + (f" ({len(missing)} of {len(names)} files missing)" if missing else ""),
                "files that lie beside it",
                "download the missing files",
            )
        return names


def _locate(name: str) -> Path:
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    expected = "a folder with config.json and *.safetensors, or the name of a model on the Hugging Face hub"
    if path.exists() or not is_hub_name(name):
        raise InputError(f"{name} is not a folder", expected, "check the path")
    return hub_folder(name, ["*.safetensors", "*.json", *TOKENIZER_FILES], "model", expected)


def check_out(out: Path, overwrite: bool) -> None:
    """
    Raises:
        InputError: there is something at ``out`` that must not be replaced.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    checkpoint = out.is_dir() and any((out / part).exists() for part in ("config.json", "weights"))
    if not overwrite or not checkpoint:
        raise InputError(
            f"{out} exists" + ("" if checkpoint else ", and is not a checkpoint"),
            "a folder that does not exist yet",
            "name another with out=FOLDER" + ("; --overwrite replaces a checkpoint" if checkpoint else ""),
        )


@contextlib.contextmanager
def new_folder(out: Path, overwrite: bool = False) -> Iterator[Path]:
    """Yields an empty folder beside ``out``; on success it is renamed to ``out``, on error removed.

    What killed processes left beside ``out`` is removed first; a model that one of them had set aside is put back.
    A symbolic link at ``out`` stays, and the folder that it points to is made or replaced.

    Raises:
        InputError: see `check_out`.
    """
    out = Path(os.path.realpath(out)) if out.is_symlink() else out
    if out.parent.is_dir():
        tidy(out.parent)
    check_out(out, overwrite)
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.parent / temporary_name(out.name)
    temporary.mkdir(mode=0o700)
    try:
        yield temporary
        temporary.chmod(0o777 & ~_umask())
        if out.exists():
            old = out.parent / temporary_name(out.name, "old")
            old.mkdir(mode=0o700)
            out.rename(old / out.name)
            temporary.rename(out)
            shutil.rmtree(old)
        else:
            temporary.rename(out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask
