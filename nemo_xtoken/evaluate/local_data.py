"""The harness's tasks on local files: its own definitions, with another source of data.

A folder of data has a folder for every data set, named like the last part of its name on the hub, in it one for every
subset that the task asks for, and in that a file or several for every split:

    DATA/gsm8k/main/{train,test}.parquet            DATA/winogrande/winogrande_xl/{train,validation}.parquet
    DATA/hellaswag/{train,validation}.parquet       DATA/hendrycks_math/algebra/{train,test}.parquet   (7 subjects)
    DATA/mmlu/anatomy/{dev,test}.parquet            (57 subjects)

Parquet, JSON Lines (``.jsonl``) or a JSON list (``.json``), with the columns of the hub's data.  Files may be numbered
as on the hub (``test-00000-of-00002.parquet``) and lie in a folder ``data``: a clone of the hub's repository will do.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemo_xtoken.errors import InputError
from nemo_xtoken.files import atomic_path

__all__ = ["Source", "check_data", "fetch", "leaves", "load_splits", "write_tasks"]

SUFFIXES = (".parquet", ".jsonl", ".json")


@dataclass(frozen=True)
class Source:
    """What a task of the harness reads.

    Attributes:
        task: its name.
        definition: the harness's file.
        path, subset: of the data set on the hub.
        splits: that the task uses.
    """

    task: str
    definition: Path
    path: str
    subset: str | None
    splits: tuple[str, ...]

    def place(self, folder: Path) -> Path:
        """Where its files are written to."""
        return folder / self.path.rpartition("/")[2] / (self.subset or "")

    def files(self, folder: Path) -> dict[str, list[Path]]:
        """The files of every split below ``folder``.

        Raises:
            InputError: a split has none.
        """
        place = self.place(folder)
        places = [place, place / "data", place.parent] if self.subset else [place, place / "data"]
        found = {split: next(filter(None, (_files_of(split, p) for p in places)), []) for split in self.splits}
        if missing := [split for split, files in found.items() if not files]:
            raise InputError(
                f"no data of split {missing[0]!r} for task {self.task} in {place}",
                f"{place / missing[0]}.parquet (or .jsonl), as of {self.path} on the hub",
                f"with network: `xtoken evaluate fetch={folder}`; then copy the folder here",
            )
        return found


def _files_of(split: str, place: Path) -> list[Path]:
    """The files of a split, in their order; of one kind, the first of `SUFFIXES` that is there."""
    pattern = re.compile(rf"{re.escape(split)}(-\d+-of-\d+)?")
    for suffix in SUFFIXES:
        if files := sorted(f for f in place.glob(f"{split}*{suffix}") if pattern.fullmatch(f.stem)):
            return files
    return []


def leaves(name: str, index: Mapping[str, Any]) -> Iterator[Source]:
    """The tasks below a task, group or tag of the harness's index, with what they read.

    Raises:
        InputError: the index has no such name, or it is a task that no local file can be given to.
    """
    entry = index.get(name)
    if entry is None:
        raise InputError(f"no task {name!r} in lm_eval", "one that `lm_eval ls tasks` lists", "correct tasks=")
    config = entry.cfg or {}
    if entry.yaml_path is None:  # a tag
        members: Iterable[Any] = sorted(entry.tags)
    elif "group" in config:
        members = config.get("task") or ()
    else:
        if "dataset_path" not in config:
            raise InputError(
                f"task {name} has no data set by name: it is code of its own",
                "a task that is all configuration",
                "leave data= out for it",
            )
        few_shot = config.get("fewshot_config") or {}
        keys = ("training_split", "validation_split", "test_split", "fewshot_split")
        splits = dict.fromkeys([*(config.get(key) for key in keys), few_shot.get("split")])
        used = tuple(s for s in splits if s)
        yield Source(name, entry.yaml_path, config["dataset_path"], config.get("dataset_name"), used)
        return
    for member in members:
        inner = member if isinstance(member, str) else member.get("task") or member.get("group")
        if not isinstance(inner, str):
            raise InputError(
                f"group {name} defines tasks inside itself", "one of named tasks", "name its tasks one by one"
            )
        yield from leaves(inner, index)


def check_data(folder: Path) -> None:
    """
    Raises:
        InputError: no folder.
    """
    if not folder.is_dir():
        raise InputError(
            f"data={folder} is not a folder",
            "one with a folder for every data set",
            f"with network: `xtoken evaluate fetch={folder}`",
        )


def write_tasks(sources: Iterable[Source], data: Path, folder: Path) -> None:
    """Writes a definition for every source that includes the harness's own and reads local files.

    The harness lets definitions in a folder of ours replace its own of the same name.

    Raises:
        InputError: files are missing.
    """
    for source in sources:
        files = {split: [str(f.resolve()) for f in found] for split, found in source.files(data).items()}
        text = (
            f"include: {json.dumps(str(source.definition.resolve()))}\n"
            f"task: {json.dumps(source.task)}\n"
            f"custom_dataset: !function {__name__}.load_splits\n"
            f"dataset_kwargs: {json.dumps({'files': files})}\n"
        )
        (folder / f"{source.task}.yaml").write_text(text)


def load_splits(files: Mapping[str, list[str]], **_: Any) -> Any:
    """The data set in local files, as the harness wants it: called by it.

    Args:
        files: split -> its files.

    Raises:
        InputError: a file cannot be read.
    """
    from datasets import Dataset, DatasetDict, concatenate_datasets

    def read(file: str) -> Dataset:
        try:
            if file.endswith(".parquet"):
                from pyarrow import parquet

                return Dataset(parquet.read_table(file))
            text = Path(file).read_text("utf-8-sig")
            # Not `splitlines`, which also cuts at characters that a text in JSON may hold as they are, such as U+2028.
            rows = [json.loads(line) for line in text.split("\n") if line.strip()] if file.endswith("l") else None
            return Dataset.from_list(json.loads(text) if rows is None else rows)
        except Exception as error:  # each format has its own
            raise InputError(
                f"{file} cannot be read ({error})", "a table of the task's items", "copy it again"
            ) from error

    return DatasetDict({split: concatenate_datasets([read(f) for f in found]) for split, found in files.items()})


def fetch(
    sources: Iterable[Source],
    folder: Path,
    load: Callable[..., Any],
    progress: Callable[[Source], None] = lambda source: None,
) -> int:
    """Writes the data of tasks as Parquet files; those that are there already stay.

    Args:
        load: ``datasets.load_dataset``.
        progress: called with the name of what comes next.

    Returns:
        how many files were written.

    Raises:
        InputError: the hub does not give a data set.
    """
    written = 0
    for source in sources:
        place = source.place(folder)
        missing = [split for split in source.splits if not (place / f"{split}.parquet").is_file()]
        if not missing:
            continue
        progress(source)
        for split in missing:
            try:
                rows = load(source.path, source.subset, split=split)
            except Exception as error:  # of the network, the hub, the cache
                raise InputError(
                    f"{source.path} ({source.subset or 'no subset'}, {split}) cannot be fetched: "
                    + " ".join(str(error).split())[:300],
                    "a connection to the Hugging Face hub",
                    "run it on a machine with network (HTTPS_PROXY, HF_ENDPOINT), and copy the folder",
                ) from error
            with atomic_path(place / f"{split}.parquet") as temporary:
                rows.to_parquet(str(temporary))
            written += 1
    return written
