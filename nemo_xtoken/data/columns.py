"""What a column of a data set must hold, and how its values become the text of a document."""

from typing import Any, Protocol

import pyarrow as pa

from nemo_xtoken.data.chat import conversation_text
from nemo_xtoken.errors import InputError

__all__ = ["Column", "MessagesColumn", "TextColumn"]


class Column(Protocol):
    """A column by its name."""

    name: str

    def check(self, place: str, schema: pa.Schema) -> None:
        """Raises InputError if the schema lacks the column, or has it with another type."""
        ...

    def text(self, value: Any, place: str) -> str:
        """A value as the text of a document; "" for an empty one.

        Raises:
            InputError: the value has another type.
        """
        ...

    def missing(self, place: str, columns: list[Any]) -> InputError:
        """The error about data without this column."""
        ...


class TextColumn:
    """A column of strings; null is an empty text."""

    def __init__(self, name: str) -> None:
        self.name = name

    def check(self, place: str, schema: pa.Schema) -> None:
        """See `Column`."""
        if self.name not in schema.names:
            raise self.missing(place, schema.names)
        kind = schema.field(self.name).type
        if pa.types.is_dictionary(kind):
            kind = kind.value_type
        if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or "string_view" in str(kind)):
            raise self._no_text(f"column {self.name!r} of {place}", str(kind))

    def text(self, value: Any, place: str) -> str:
        """See `Column`."""
        if value is None:
            return ""
        if not isinstance(value, str):
            raise self._no_text(f"{self.name!r} on {place}", f"a {type(value).__name__}")
        try:
            value.encode()
        except UnicodeEncodeError as error:  # "\ud800" alone
            raise InputError(
                f"{place} is not UTF-8: half a surrogate pair at character {error.start} of its text",
                "text in UTF-8",
                "correct the row",
            ) from error
        return value

    def missing(self, place: str, columns: list[Any]) -> InputError:
        """See `Column`."""
        return _missing(place, self.name, columns, "a column with the text", "text_key", "text")

    def _no_text(self, place: str, kind: str) -> InputError:
        return InputError(f"{place} is {kind}", "text (a string)", "set text_key to the column that holds the text")


class MessagesColumn:
    """A column of conversations: lists of messages."""

    def __init__(self, name: str) -> None:
        self.name = name

    def check(self, place: str, schema: pa.Schema) -> None:
        """See `Column`."""
        if self.name not in schema.names:
            raise self.missing(place, schema.names)
        kind = schema.field(self.name).type
        lists = pa.types.is_list(kind) or pa.types.is_large_list(kind)
        if not (lists and pa.types.is_struct(kind.value_type)):
            raise InputError(
                f"column {self.name!r} of {place} is {kind}",
                "lists of messages (role and content)",
                'set messages_key to the column that holds the conversations, or format="text"',
            )

    def text(self, value: Any, place: str) -> str:
        """See `Column`."""
        return conversation_text(value, place)

    def missing(self, place: str, columns: list[Any]) -> InputError:
        """See `Column`."""
        return _missing(place, self.name, columns, "a column with the messages", "messages_key", "conversations")


def _missing(place: str, name: str, columns: list[Any], expected: str, setting: str, content: str) -> InputError:
    return InputError(
        f"{place} has no column {name!r}",
        f"{expected}; there are: {', '.join(map(str, columns)) or 'none'}",
        f"set {setting} to the column that holds the {content}",
    )
