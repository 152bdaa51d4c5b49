"""Tables with commas or tabs between their columns, whose first line has their names."""

import csv
from collections.abc import Iterator

from nemo_xtoken.data.columns import Column
from nemo_xtoken.data.readers.stored_files import Row, read_lines
from nemo_xtoken.errors import InputError

__all__ = ["read_csv"]

_MOST_CHARACTERS = 2**30  # of a value; the csv module's own limit is 131,072, which texts exceed


def read_csv(path: str, column: Column, delimiter: str = ",") -> Iterator[Row]:
    """A column of a CSV file in UTF-8: values may be quoted, and then hold line breaks; an empty value is no document.

    Raises:
        InputError: no line with the names of the columns, not the column in it or twice, or quotes that do not close.
    """
    csv.field_size_limit(max(csv.field_size_limit(), _MOST_CHARACTERS))
    lines = _Lines(path)
    rows = csv.reader(lines, delimiter=delimiter, strict=True)
    names: list[str] | None = None
    while True:
        first = lines.number + 1
        try:
            row = next(rows, None)
        except csv.Error as error:
            raise InputError(
                f"line {first} of {path} is not CSV: {error}",
                f"values with {delimiter!r} between them, in double quotes where they hold it, a quote or a line break",
                "write it again with a CSV library, or convert it to .jsonl or .parquet",
            ) from error
        if row is None:
            return
        place = f"line {first} of {path}"
        if names is None:
            if lines.refused is not None:
                raise lines.refused
            if row:
                names, at = row, column.place_in(row, place)
        elif lines.refused is not None:
            yield lines.refused
        elif not row:
            yield None
        elif len(row) != len(names):
            yield InputError(
                f"{place} has {len(row)} values", f"{len(names)}, as its first line has names", "correct it"
            )
        else:
            yield _text(column, row[at], place)
        lines.refused = None


def _text(column: Column, value: str, place: str) -> Row:
    try:
        return column.text(value, place)
    except InputError as error:
        return error


class _Lines:
    """The lines of a file, and the error about one that is not UTF-8, which the csv module sees as an empty one.

    Attributes:
        number: of the line that was given last.
        refused: the last error since it was set to None.
    """

    def __init__(self, path: str) -> None:
        self._lines = read_lines(path)
        self.number = 0
        self.refused: InputError | None = None

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        self.number, line = next(self._lines)
        if isinstance(line, InputError):
            self.refused = self.refused or line
            return "\n"
        return line
