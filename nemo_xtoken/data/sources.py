"""Which files and data sets a list of paths, globs, folders and names stands for."""

import glob
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from nemo_xtoken.data import file_readers as readers
from nemo_xtoken.data.columns import Column, MessagesColumn, TextColumn
from nemo_xtoken.data.indexed import INDEX, read_indexed
from nemo_xtoken.errors import InputError

__all__ = ["FILE_FORMATS", "FORMATS", "HUB_PREFIX", "FileFormat", "Reading", "Source", "resolve_sources"]

HUB_PREFIX = "hf:"
FORMATS = ("text", "chat")
TEXT_SPLITS = ("file", "paragraph", "line")
_COMPRESSED = (".gz", ".bz2", ".zst")


@dataclass(frozen=True)
class Reading:
    """What the documents of a data set are.

    Attributes:
        format: "text", or "chat": conversations, of which the assistant's turns are learned.
        text_key: the column that holds the text; .txt files need none.
        messages_key: for "chat" the column that holds the messages.
        text_split: what a document is in a .txt file: "file", "paragraph" (blank lines between) or "line".
        split: which split of a Hugging Face data set.
        indexed_tokenizer: the tokenizer that made the ids of indexed data sets (.idx and .bin).

    Raises:
        InputError: an unknown format or text_split.
    """

    format: str = "text"
    text_key: str = "text"
    messages_key: str = "messages"
    text_split: str = "file"
    split: str = "train"
    indexed_tokenizer: str | None = None

    def __post_init__(self) -> None:
        for name, value, known in (("format", self.format, FORMATS), ("text_split", self.text_split, TEXT_SPLITS)):
            if value not in known:
                raise InputError(f"{name}={value!r}", f"one of {', '.join(known)}", f"correct {name}")

    @property
    def column(self) -> Column:
        """The column that is read, of data that has columns."""
        return MessagesColumn(self.messages_key) if self.format == "chat" else TextColumn(self.text_key)


_TEXT = Reading()


@dataclass(frozen=True)
class FileFormat:
    """A format of data files.

    Attributes:
        extensions: of its files, in lower case.
        read: path, `Reading` -> the texts of the file's documents, in order; raises InputError with the place (file and
            line, row or byte) of what it cannot read.
        columns: whether a document is a column of a row; conversations need columns.
        compressed: whether ``read`` also reads ``.gz``, ``.bz2`` and ``.zst``.
    """

    extensions: tuple[str, ...]
    read: Callable[[str, Reading], Iterator[str]]
    columns: bool = True
    compressed: bool = False


#: The formats of files by name.  To add one: a function that reads it, and a row here (docs/adding.md).
FILE_FORMATS: dict[str, FileFormat] = {
    "text": FileFormat((".txt",), lambda path, r: readers.read_text(path, r.text_split), False, True),
    "jsonl": FileFormat((".jsonl", ".ndjson"), lambda path, r: readers.read_jsonl(path, r.column), compressed=True),
    "parquet": FileFormat((".parquet",), lambda path, r: readers.read_parquet(path, r.column)),
    "arrow": FileFormat((".arrow",), lambda path, r: readers.read_arrow(path, r.column)),
    "indexed": FileFormat((INDEX,), lambda path, r: read_indexed(path, r.indexed_tokenizer or ""), columns=False),
}


def _known() -> str:
    """The extensions, for error messages."""
    plain = [e for f in FILE_FORMATS.values() for e in f.extensions]
    packed = [e for f in FILE_FORMATS.values() if f.compressed for e in f.extensions]
    return f"{', '.join(plain)} (of {', '.join(packed)} also {', '.join(_COMPRESSED)}; {INDEX} with .bin)"


@dataclass(frozen=True)
class Source:
    """One file or one data set.

    Attributes:
        kind: a name in `FILE_FORMATS`, "saved" (a folder written by ``save_to_disk``) or "hub".
        name: the path, or the data set's name.
        reading: what its documents are.
    """

    kind: str
    name: str
    reading: Reading = _TEXT

    def state(self) -> str | None:
        """Path, size and time of everything that decides the documents; None where that cannot be told (the hub)."""
        if self.kind == "hub":
            return None
        path = Path(self.name).resolve()
        files = [file for file in sorted(path.rglob("*")) if file.is_file()] if path.is_dir() else [path]
        files += [path.with_suffix(".bin")] if self.kind == "indexed" and path.with_suffix(".bin").is_file() else []
        stats = [(str(file), status.st_size, status.st_mtime_ns) for file in files for status in (file.stat(),)]
        return repr((self.kind, self.reading, stats))

    def texts(self) -> Iterator[str]:
        """The documents in the order of the file, streamed; documents without text are skipped.

        Raises:
            InputError: unreadable data, no such column, or not UTF-8; the message names file and line, row or byte.
        """
        if self.kind in FILE_FORMATS:
            found = FILE_FORMATS[self.kind].read(self.name, self.reading)
        else:
            found = readers.read_dataset(self.name, self.kind == "hub", self.reading.split, self.reading.column)
        return (text for text in found if text and not text.isspace())


def resolve_sources(
    paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]], reading: Reading = _TEXT
) -> list[Source]:
    """Files, globs, folders of files, folders written by ``save_to_disk``, and ``hf:owner/name[:configuration]``.

    The order is that of ``paths``; a glob or a folder is sorted by name.  A file that is named twice is read once.

    Raises:
        InputError: nothing given, nothing found, an unknown file extension, or files without columns for "chat".
    """
    given = [paths] if isinstance(paths, (str, os.PathLike)) else list(paths)
    if not given:
        raise InputError("no data: the list of paths is empty", "at least one file, folder or data set", "set paths")
    sources: dict[str, Source] = {}
    for path in given:
        for kind, name in _expand(os.fspath(path)):
            if kind == "indexed" and reading.indexed_tokenizer is None:
                raise InputError(
                    f"{name} holds ids, not text", "the tokenizer that made them", "set indexed_tokenizer to it"
                )
            if kind in FILE_FORMATS and not FILE_FORMATS[kind].columns and reading.format == "chat":
                raise InputError(
                    f"{name} has no columns",
                    "conversations in .jsonl, .parquet, .arrow or a data set, with a column of messages",
                    'correct paths, or set format="text"',
                )
            key = name if kind == "hub" else str(Path(name).resolve())
            sources.setdefault(key, Source(kind, name, reading))
    return list(sources.values())


def _expand(path: str) -> Iterator[tuple[str, str]]:
    if path.startswith(HUB_PREFIX):
        yield "hub", path.removeprefix(HUB_PREFIX)
        return
    path = os.path.expanduser(path)
    if not os.path.exists(path) and os.path.isfile(path + INDEX):  # as NeMo and Megatron name it
        path += INDEX
    if os.path.exists(path):
        yield from _expand_one(path)
        return
    matches = sorted(glob.glob(path, recursive=True)) if glob.has_magic(path) else []
    if not path or not matches:
        raise InputError(
            f"no data at {path!r}" + (" (the glob matches nothing)" if path and glob.has_magic(path) else ""),
            "a file, a folder or a glob that exists",
            f"correct the path (looked from {os.getcwd()}); a data set of the hub is {HUB_PREFIX}owner/name",
        )
    for match in matches:
        yield from _expand_one(match)


def _expand_one(path: str) -> Iterator[tuple[str, str]]:
    if not os.path.isdir(path):
        if path.endswith(".bin") and os.path.isfile(path.removesuffix(".bin") + INDEX):
            path = path.removesuffix(".bin") + INDEX
        if (kind := _kind_of(path)) is None:
            raise InputError(
                f"the file extension of {path} is unknown",
                f"one of {_known()}",
                "rename or convert it, or narrow the glob that found it",
            )
        yield kind, path
    elif any(os.path.exists(os.path.join(path, mark)) for mark in ("dataset_dict.json", "state.json")):
        yield "saved", path
    else:
        found = [(kind, str(p)) for p in sorted(Path(path).rglob("*")) if p.is_file() and (kind := _kind_of(str(p)))]
        if not found:
            raise InputError(
                f"the folder {path} holds no data", f"files below it with one of {_known()}", "correct the path"
            )
        yield from found


def _kind_of(path: str) -> str | None:
    stem, extension = os.path.splitext(path.lower())
    packed = extension in _COMPRESSED
    if packed:
        extension = os.path.splitext(stem)[1]
    fitting = (name for name, f in FILE_FORMATS.items() if extension in f.extensions and (f.compressed or not packed))
    return next(fitting, None)
