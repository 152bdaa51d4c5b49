"""Blocks of documents that are made from files of results.

A block stands between ``<!-- WORD: NAME -->`` and ``<!-- end of NAME -->``; the word says which results.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from nemo_xtoken.files import atomic_path

__all__ = ["fill", "filled", "out_of_date"]


def filled(text: str, word: str, made: Mapping[str, str]) -> str:
    """A document with its blocks as they are now.

    Args:
        made: every block of the word by its name.
    """
    block = re.compile(rf"(<!-- {word}: (\w+) -->\n)(.*?)(<!-- end of \2 -->)", re.DOTALL)
    return block.sub(lambda match: f"{match[1]}{made[match[2]]}{match[4]}", text)


def fill(documents: Iterable[Path], word: str, made: Mapping[str, str]) -> None:
    """Writes the blocks."""
    for document in documents:
        text = filled(document.read_text("utf-8"), word, made)
        with atomic_path(document) as temporary:
            temporary.write_text(text, "utf-8")


def out_of_date(documents: Iterable[Path], word: str, made: Mapping[str, str]) -> list[str]:
    """The documents with a block that is another now, and the blocks that no document has."""
    texts = {document.name: document.read_text("utf-8") for document in documents}
    there = {name for text in texts.values() for name in re.findall(rf"<!-- {word}: (\w+) -->", text)}
    others = [name for name, text in texts.items() if filled(text, word, made) != text]
    return [*others, *sorted(made.keys() - there)]
