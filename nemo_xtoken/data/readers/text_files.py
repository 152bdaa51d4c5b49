"""Text files: a document is the file, a paragraph or a line."""

from collections.abc import Iterator

from nemo_xtoken.data.readers.stored_files import Row, decoded, read_lines, read_whole
from nemo_xtoken.errors import InputError

__all__ = ["read_text"]


def read_text(path: str, text_split: str) -> Iterator[Row]:
    """A text file: whole, or its paragraphs (blank lines between them), or its lines.  A byte-order mark is dropped."""
    if text_split == "file":
        yield decoded(path, read_whole(path))
        return
    paragraph: list[str] = []
    refused: InputError | None = None
    for _, line in read_lines(path):
        if text_split == "line":
            yield line if isinstance(line, InputError) else line.rstrip("\r\n")
        elif isinstance(line, InputError):
            refused = refused or line
        elif line.strip():
            paragraph.append(line)
        elif paragraph or refused:
            yield refused or "".join(paragraph)
            paragraph, refused = [], None
    if paragraph or refused:
        yield refused or "".join(paragraph)
