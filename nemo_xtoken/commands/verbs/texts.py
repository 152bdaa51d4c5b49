"""Texts on a command line: themselves, from a file, or from standard input."""

import sys
from pathlib import Path

from nemo_xtoken.errors import InputError

__all__ = ["read_text"]


def read_text(source: str) -> str:
    """The text itself, that of a file for ``@file``, or that of standard input for ``-``.

    Raises:
        InputError: a file that cannot be read, or text that is not UTF-8.
    """
    if source != "-" and not source.startswith("@"):
        try:
            source.encode()
        except UnicodeEncodeError as error:
            found = f"text= is not UTF-8 (character {error.start})"
            raise InputError(found, "UTF-8 text", "correct it, or name a file: text=@FILE") from None
        return source
    where = "standard input" if source == "-" else source[1:]
    try:
        data = sys.stdin.buffer.read() if source == "-" else Path(where).read_bytes()
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{where} is not UTF-8 (byte {error.start})", "UTF-8 text", "convert it to UTF-8") from None
    except OSError as error:
        raise InputError(
            f"{where} cannot be read ({error.strerror})", "a text file after text=@", "fix the path"
        ) from None
