"""Which files and data sets a list of paths, globs, folders and names stands for."""

import glob
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

from nemo_xtoken.data.columns import TOOLS, Column, MessagesColumn, TextColumn
from nemo_xtoken.data.conversation.parts import LEARN, learned_kinds
from nemo_xtoken.data.indexed import INDEX, read_indexed
from nemo_xtoken.data.readers.csv_files import read_csv
from nemo_xtoken.data.readers.json_files import read_json, read_jsonl
from nemo_xtoken.data.readers.stored_files import COMPRESSIONS, Row
from nemo_xtoken.data.readers.tables import read_arrow, read_dataset, read_parquet
from nemo_xtoken.data.readers.text_files import read_text
from nemo_xtoken.data.skipped import Skipped
from nemo_xtoken.errors import InputError
from nemo_xtoken.files import digest_of

__all__ = [
    "FILE_FORMATS",
    "FORMATS",
    "HUB_PREFIX",
    "ON_ERROR",
    "FileFormat",
    "Reading",
    "Source",
    "check_settings_used",
    "resolve_sources",
    "unread_files",
]

HUB_PREFIX = "hf:"
FORMATS = ("text", "chat")
_SAMPLE = 16384  # bytes
TEXT_SPLITS = ("file", "paragraph", "line")
ON_ERROR = ("refuse", "skip")
#: Files beside data that describe it, or a model: named explicitly they are read as any other.
_DESCRIPTIONS = frozenset(
    (
        *("config.json", "dataset_dict.json", "dataset_info.json", "dataset_infos.json", "generation_config.json"),
        *("license.txt", "package.json", "readme.txt", "requirements.txt", "special_tokens_map.json", "state.json"),
        *("tokenizer.json", "tokenizer_config.json"),
    )
)


@dataclass(frozen=True)
class Reading:
    """What the documents of a data set are.

    Attributes:
        format: "text", or "chat": conversations, of which the assistant's turns are learned.
        text_key: the column that holds the text; .txt files need none.
        messages_key: for "chat" the column that holds the messages.
        tools_key: for "chat" the column that holds the tools that they may call, where there is one.
        learn: for "chat" what of the assistant's messages is learned; see `learned_kinds`.
        text_split: what a document is in a .txt file: "file", "paragraph" (blank lines between) or "line".
        split: which split of a Hugging Face data set.
        indexed_tokenizer: the tokenizer that made the ids of indexed data sets (.idx and .bin).
        on_error: at a row that is no document, such as a line that is not JSON or a message with a picture: "refuse"
            the data, or "skip" the row and count it.

    Raises:
        InputError: an unknown format, text_split, on_error, or kind of what is learned.
    """

    format: str = "text"
    text_key: str = "text"
    messages_key: str = "messages"
    tools_key: str = TOOLS
    learn: str = LEARN
    text_split: str = "file"
    split: str = "train"
    indexed_tokenizer: str | None = None
    on_error: str = "refuse"

    def __post_init__(self) -> None:
        for name, value, known in (
            ("format", self.format, FORMATS),
            ("text_split", self.text_split, TEXT_SPLITS),
            ("on_error", self.on_error, ON_ERROR),
        ):
            if value not in known:
                raise InputError(f"{name}={value!r}", f"one of {', '.join(known)}", f"correct {name}")
        learned_kinds(self.learn)

    @property
    def column(self) -> Column:
        """The column that is read, of data that has columns."""
        return MessagesColumn(self.messages_key, self.tools_key) if self.format == "chat" else TextColumn(self.text_key)


_TEXT = Reading()


@dataclass(frozen=True)
class FileFormat:
    """A format of data files.

    Attributes:
        extensions: of its files, in lower case.
        read: path, `Reading` -> the texts of the file's rows, in order, "" for an empty one, None for none (a blank
            line); for a row that is no document the InputError that says why, with its place (file and line, row or
            byte).  It raises InputError where the file cannot be read on.
        columns: whether a document is a column of a row; conversations need columns.
        compressed: whether ``read`` also reads ``.gz``, ``.bz2``, ``.zst`` and ``.xz``.
        lines: a row is a line, which is numbered from 1; otherwise rows are numbered from 0.
        settings: of `Reading` that it has for itself; the column's name goes with ``columns``.
    """

    extensions: tuple[str, ...]
    read: Callable[[str, Reading], Iterator[Row]]
    columns: bool = True
    compressed: bool = False
    lines: bool = False
    settings: tuple[str, ...] = ()


#: The formats of files by name.  To add one: a function that reads it, and a row here (docs/adding.md).
FILE_FORMATS: dict[str, FileFormat] = {
    "text": FileFormat((".txt",), lambda path, r: read_text(path, r.text_split), False, True, settings=("text_split",)),
    "jsonl": FileFormat((".jsonl", ".ndjson"), lambda path, r: read_jsonl(path, r.column), compressed=True, lines=True),
    "json": FileFormat((".json",), lambda path, r: read_json(path, r.column), compressed=True),
    "csv": FileFormat((".csv",), lambda path, r: read_csv(path, r.column), compressed=True),
    "tsv": FileFormat((".tsv",), lambda path, r: read_csv(path, r.column, "\t"), compressed=True),
    "parquet": FileFormat((".parquet",), lambda path, r: read_parquet(path, r.column)),
    "arrow": FileFormat((".arrow",), lambda path, r: read_arrow(path, r.column)),
    "indexed": FileFormat(
        (INDEX,), lambda path, r: read_indexed(path, r.indexed_tokenizer or ""), False, settings=("indexed_tokenizer",)
    ),
}


def _known() -> str:
    """The extensions, for error messages."""
    plain = [e for f in FILE_FORMATS.values() for e in f.extensions]
    packed = [e for f in FILE_FORMATS.values() if f.compressed for e in f.extensions]
    return f"{', '.join(plain)} (of {', '.join(packed)} also {', '.join(COMPRESSIONS)}; {INDEX} with .bin)"


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
        """What changes when the documents do; None where that cannot be told (the hub).

        Of every file: path, size, time of its content and of its last change of any kind (which no program can set
        back: an edit that keeps the time of the content, as ``rsync -t`` and ``cp -p`` do, is seen), and, for file
        systems without the latter, a digest of its beginning, its middle and its end.
        """
        if self.kind == "hub":
            return None
        path = Path(self.name).resolve()
        files = [file for file in sorted(path.rglob("*")) if file.is_file()] if path.is_dir() else [path]
        files += [path.with_suffix(".bin")] if self.kind == "indexed" and path.with_suffix(".bin").is_file() else []
        reading = replace(self.reading, learn=LEARN)  # decides labels, not texts
        return repr((self.kind, reading, list(map(_state_of, files))))

    def texts(self, skipped: Skipped | None = None) -> Iterator[str]:
        """The documents in the order of the file, streamed.

        Args:
            skipped: here rows are counted that are no document.

        Raises:
            InputError: unreadable data, no such column, or a row that is no document, unless such are skipped
                (``on_error``); the message names file and line, row or byte.
        """
        return (text for _, text in self.numbered(skipped))

    def numbered(self, skipped: Skipped | None = None) -> Iterator[tuple[int, str]]:
        """`texts` with the numbers of their rows, which `place` makes readable."""
        skipped = Skipped() if skipped is None else skipped
        if self.kind in FILE_FORMATS:
            rows = FILE_FORMATS[self.kind].read(self.name, self.reading)
        else:
            rows = read_dataset(self.name, self.kind == "hub", self.reading.split, self.reading.column)
        for number, row in enumerate(rows):
            if isinstance(row, InputError):
                if self.reading.on_error == "refuse":
                    row.fix += ", or leave such rows out: on_error=skip"
                    raise row
                skipped.add("refused", f"{row.found} (expected: {row.expected})")
            elif row and not row.isspace():
                yield number, row
            elif row is not None:
                skipped.add(self.reading.column.without)

    def place(self, number: int) -> str:
        """A row for error messages.

        Args:
            number: as `numbered` has it.
        """
        if self.kind in FILE_FORMATS and FILE_FORMATS[self.kind].lines:
            return f"line {number + 1} of {self.name}"
        if self.kind == "text" and self.reading.text_split != "line":
            what = f"paragraph {number + 1} of " if self.reading.text_split == "paragraph" else ""
            return f"{what}{self.name}"
        return f"row {number} of {self.name}"


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
        for kind, name in _expand(os.fspath(path), []):
            try:
                name.encode()
            except UnicodeEncodeError:
                raise InputError(f"{name!r} is not UTF-8", "a path in UTF-8", "rename the file") from None
            if kind == "indexed" and reading.indexed_tokenizer is None:
                raise InputError(
                    f"{name} holds ids, not text", "the tokenizer that made them", "set indexed_tokenizer to it"
                )
            if kind in FILE_FORMATS and not FILE_FORMATS[kind].columns and reading.format == "chat":
                raise InputError(
                    f"{name} has no columns",
                    "conversations in .jsonl, .json, .parquet, .arrow or a data set, with a column of messages",
                    'correct paths, or set format="text"',
                )
            key = name if kind == "hub" else str(Path(name).resolve())
            sources.setdefault(key, Source(kind, name, reading))
    return list(sources.values())


def check_settings_used(sources: Sequence[Source]) -> None:
    """Whether each setting that is not the default is one that some of the data has a use for.

    Raises:
        InputError: one that would be ignored without a word.
    """
    used: set[str] = set()
    for source in sources:
        kind = FILE_FORMATS.get(source.kind)
        chat = source.reading.format == "chat"
        columns = {"messages_key", "tools_key", "learn"} if chat else {"text_key"}
        used |= columns if kind is None or kind.columns else set()
        used |= {"split"} if kind is None else set(kind.settings)
    for field in fields(Reading):
        values = {getattr(source.reading, field.name) for source in sources} - {field.default}
        if values and field.name not in ("format", "on_error") and field.name not in used:
            kinds = ", ".join(sorted({source.kind for source in sources}))
            raise InputError(
                f"{field.name}={values.pop()} for data of the kind {kinds}",
                f"data that has a {field.name.replace('_', ' ')}",
                f"leave {field.name} out, or correct the paths",
            )


def unread_files(paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> dict[str, list[str]]:
    """What `resolve_sources` passes over in folders: reason -> the files.

    Raises:
        InputError: see `resolve_sources`.
    """
    given = [paths] if isinstance(paths, (str, os.PathLike)) else list(paths)
    passed: list[tuple[str, str]] = []
    for path in given:
        for _ in _expand(os.fspath(path), passed):
            pass
    reasons: dict[str, list[str]] = {}
    for reason, name in dict.fromkeys(passed):
        reasons.setdefault(reason, []).append(name)
    return reasons


def _expand(path: str, passed: list[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """Kind and name of every source of a path; into ``passed`` go reason and name of files that are none."""
    if path.startswith(HUB_PREFIX):
        yield "hub", path.removeprefix(HUB_PREFIX)
        return
    path = os.path.expanduser(path)
    if not os.path.exists(path) and os.path.isfile(path + INDEX):  # as NeMo and Megatron name it
        path += INDEX
    if os.path.exists(path):
        yield from _expand_one(path, passed)
        return
    matches = sorted(glob.glob(path, recursive=True)) if glob.has_magic(path) else []
    if not path or not matches:
        raise InputError(
            f"no data at {path!r}" + (" (the glob matches nothing)" if path and glob.has_magic(path) else ""),
            "a file, a folder or a glob that exists",
            f"correct the path (looked from {os.getcwd()}); a data set of the hub is {HUB_PREFIX}owner/name",
        )
    for match in matches:
        yield from _expand_one(match, passed)


def _expand_one(path: str, passed: list[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    if not os.path.isdir(path):
        if path.endswith(".bin") and os.path.isfile(path.removesuffix(".bin") + INDEX):
            path = path.removesuffix(".bin") + INDEX
        if not os.path.isfile(path):
            raise InputError(
                f"{path} is a pipe, a socket or a device",
                "a file: data is read more than once",
                "write what comes out of it to a file",
            )
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
        found = list(_expand_folder(path, passed))
        if not found:
            raise InputError(
                f"the folder {path} holds no data", f"files below it with one of {_known()}", "correct the path"
            )
        yield from found


def _expand_folder(path: str, passed: list[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """The data files below a folder, sorted; links to folders are followed, hidden ones are not entered."""
    names, seen = [], set()
    for folder, folders, files in os.walk(path, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:  # a link to a folder above it
            folders.clear()
            continue
        seen.add(real)
        passed += [("in a hidden folder", os.path.join(folder, name)) for name in folders if _is_hidden(name)]
        folders[:] = [name for name in folders if not _is_hidden(name)]
        names += [os.path.join(folder, name) for name in files]
    for name in sorted(map(Path, names)):
        kind = _kind_of(name.name)
        if not name.is_file():
            reason = "not there (a link to nothing), or no file"
        elif _is_hidden(name.name):
            reason = "hidden"
        elif kind is None:
            if name.suffix == ".bin" and name.with_suffix(INDEX).is_file():
                continue  # read with its index
            reason = "of an unknown format"
        elif name.name.lower() in _DESCRIPTIONS:
            reason = "descriptions, not data"
        else:
            yield kind, str(name)
            continue
        passed.append((reason, str(name)))


def _is_hidden(name: str) -> bool:
    """As shells see it, and Spark, whose ``_SUCCESS`` and ``_temporary`` are no data."""
    return name.startswith((".", "_"))


def _kind_of(path: str) -> str | None:
    stem, extension = os.path.splitext(path.lower())
    packed = extension in COMPRESSIONS
    if packed:
        extension = os.path.splitext(stem)[1]
    fitting = (name for name, f in FILE_FORMATS.items() if extension in f.extensions and (f.compressed or not packed))
    return next(fitting, None)


def _state_of(file: Path) -> tuple[str, int, int, int, str]:
    with open(file, "rb") as content:
        status = os.fstat(content.fileno())
        seen = []
        for place in dict.fromkeys((0, status.st_size // 2, max(0, status.st_size - _SAMPLE))):
            content.seek(place)
            seen.append(content.read(_SAMPLE))
    return str(file), status.st_size, status.st_mtime_ns, status.st_ctime_ns, digest_of(*seen)
