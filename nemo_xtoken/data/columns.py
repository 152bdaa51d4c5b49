"""What a column of a data set must hold, and how its values become the text of a document.

A column is named as it is in the data, or by the way to it: ``data.text`` is the value ``text`` in the column ``data``.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import pyarrow as pa

from nemo_xtoken.data.conversation.chat import conversation_text
from nemo_xtoken.errors import InputError

__all__ = ["TOOLS", "Column", "MessagesColumn", "TextColumn"]

TOOLS = "tools"  # the column of a conversation's tools, as data sets have it


class Column:
    """A column by its name.

    Attributes:
        setting, content: what names it, and what it holds, for error messages.
        without: what is said of rows that hold no document.
    """

    setting: ClassVar[str]
    content: ClassVar[str]
    without: ClassVar[str]

    def __init__(self, name: str) -> None:
        self.name = name

    def text(self, value: Any, place: str, more: Any = None) -> str:
        """A value as the text of a document; "" for an empty one.

        Args:
            more: the value of the column `beside` in the same row.

        Raises:
            InputError: the value has another type.
        """
        raise NotImplementedError

    def of_row(self, row: Mapping[str, Any], place: str) -> str:
        """The text of a row's document.

        Raises:
            InputError: the row has no such column, or a value of another type.
        """
        return self.text(self.value_in(row, place), place)

    def beside(self, place: str, names: Sequence[str]) -> str | None:
        """Another column of the same rows that `text` has a use for, of a table whose columns have these names.

        Raises:
            InputError: it is asked for by name and not there.
        """
        return None

    def check_type(self, place: str, kind: pa.DataType) -> None:
        """Raises InputError for a type whose values are no documents.  A column of nulls alone is one of empty ones."""
        raise NotImplementedError

    def check(self, place: str, schema: pa.Schema) -> tuple[str, ...]:
        """The way to the column: its name, or that of a structure and what is in it.

        Raises:
            InputError: there is no such column, or it is there twice, or has another type.
        """
        for way in self._ways():
            if way[0] not in schema.names:
                continue
            self._check_once(place, schema.names, way[0])
            kind = schema.field(way[0]).type
            for step in way[1:]:
                if not pa.types.is_struct(kind):
                    break
                fields = [kind.field(i) for i in range(kind.num_fields)]
                self._check_once(place, [field.name for field in fields], step)
                kind = next((field.type for field in fields if field.name == step), None)
                if kind is None:
                    break
            else:
                self.check_type(f"column {self.name!r} of {place}", kind)
                return way
        raise self._missing(place, _names(schema))

    def value_in(self, row: Mapping[str, Any], place: str) -> Any:
        """The value in a row; None where a structure on the way to it is null.

        Raises:
            InputError: the row has no such column.
        """
        if self.name in row:
            return row[self.name]
        for way in self._ways():
            found: Any = row
            for step in way:
                if found is None:
                    return None
                if not isinstance(found, Mapping) or step not in found:
                    break
                found = found[step]
            else:
                return found
        raise self._missing(place, list(row))

    def place_in(self, names: Sequence[str], place: str) -> int:
        """The number of the column of a table whose columns have these names.

        Raises:
            InputError: none has, or several.
        """
        self._check_once(place, names, self.name)
        if self.name not in names:
            raise self._missing(place, list(names))
        return names.index(self.name)

    def _ways(self) -> list[tuple[str, ...]]:
        """What the name may mean, the literal one first."""
        steps = self.name.split(".")
        return [(".".join(steps[:n]), *steps[n:]) for n in range(len(steps), 0, -1)]

    def _check_once(self, place: str, names: Sequence[str], name: str) -> None:
        if names.count(name) > 1:
            raise InputError(
                f"{place} has {names.count(name)} columns {name!r}", "one of that name", "rename or drop the others"
            )

    def _missing(self, place: str, columns: list[Any]) -> InputError:
        return InputError(
            f"{place} has no column {self.name!r}",
            f"a column with the {self.content}; there are: {', '.join(map(str, columns)) or 'none'}",
            f"set {self.setting} to the column that holds the {self.content} (A.B: what is called B in the column A)",
        )


class TextColumn(Column):
    """A column of strings; null is an empty text."""

    setting, content, without = "text_key", "text", "empty"

    def check_type(self, place: str, kind: pa.DataType) -> None:
        """See `Column`."""
        if pa.types.is_dictionary(kind):
            kind = kind.value_type
        strings = pa.types.is_string(kind) or pa.types.is_large_string(kind) or "string_view" in str(kind)
        if not (strings or pa.types.is_null(kind)):
            raise self._no_text(place, str(kind))

    def text(self, value: Any, place: str, more: Any = None) -> str:
        """See `Column`."""
        if value is None:
            return ""
        if not isinstance(value, str):
            raise self._no_text(f"{self.name!r} on {place}", f"a {type(value).__name__}")
        try:
            if not value.isascii():
                value.encode()
        except UnicodeEncodeError as error:  # "\ud800" alone
            raise InputError(
                f"{place} is not UTF-8: half a surrogate pair at character {error.start} of its text",
                "text in UTF-8",
                "correct the row",
            ) from error
        return value

    def _no_text(self, place: str, kind: str) -> InputError:
        return InputError(f"{place} is {kind}", "text (a string)", "set text_key to the column that holds the text")


class MessagesColumn(Column):
    """A column of conversations: lists of messages; beside it one of the tools that they may call.

    Attributes:
        tools: its name; a data set need not have it, unless it has another name than usual.
    """

    setting, content, without = "messages_key", "conversations", "without words of the assistant"

    def __init__(self, name: str, tools: str = TOOLS) -> None:
        super().__init__(name)
        self.tools = tools

    def of_row(self, row: Mapping[str, Any], place: str) -> str:
        """See `Column`."""
        return self.text(self.value_in(row, place), place, row.get(self.tools))

    def beside(self, place: str, names: Sequence[str]) -> str | None:
        """See `Column`."""
        if self.tools in names:
            return self.tools
        if self.tools == TOOLS:
            return None
        raise InputError(
            f"{place} has no column {self.tools!r}",
            f"a column with the tools; there are: {', '.join(names)}",
            "correct tools_key, or leave it out",
        )

    def check_type(self, place: str, kind: pa.DataType) -> None:
        """See `Column`."""
        lists = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
        messages = lists and (pa.types.is_struct(kind.value_type) or pa.types.is_null(kind.value_type))
        if not (messages or pa.types.is_null(kind)):
            raise InputError(
                f"{place} is {kind}",
                "lists of messages (role and content)",
                'set messages_key to the column that holds the conversations, or format="text"',
            )

    def text(self, value: Any, place: str, more: Any = None) -> str:
        """See `Column`."""
        return conversation_text(value, place, more)


def _names(schema: pa.Schema) -> list[str]:
    """The columns, and what is in those that are structures."""
    names = []
    for field in schema:
        names.append(field.name)
        if pa.types.is_struct(field.type):
            names += [f"{field.name}.{field.type.field(i).name}" for i in range(field.type.num_fields)]
    return names
