"""What pictures share: their paths, and tokens as labels; characters that no font here has are shown as numbers."""

import functools
import unicodedata
from pathlib import Path

from nemo_xtoken.errors import InputError

__all__ = ["FAMILIES", "drawable", "families", "label", "picture_path", "width"]

#: Fonts in the order in which they are asked for a character; matplotlib brings the first two.
FAMILIES = (
    "DejaVu Sans Mono",
    "DejaVu Sans",
    "Noto Sans Mono CJK SC",
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "WenQuanYi Micro Hei",
    "Source Han Sans SC",
    "Microsoft YaHei",
    "PingFang SC",
    "Noto Sans Arabic",
    "Noto Sans Devanagari",
    "Noto Emoji",
    "Symbola",
)
_BLANKS = str.maketrans({" ": "·", "\n": "⏎", "\t": "⇥", "\r": "␍"})


@functools.cache
def families() -> list[str]:
    """Those of `FAMILIES` that this machine has."""
    from matplotlib.font_manager import fontManager

    there = set(fontManager.get_font_names())
    return [name for name in FAMILIES if name in there]


def drawable(text: str) -> bool:
    """Whether the fonts of this machine have every character."""
    return all(map(_has_glyph, text))


@functools.cache
def _has_glyph(character: str) -> bool:
    from matplotlib.font_manager import FontProperties, findfont, get_font

    paths = (findfont(FontProperties(family=name)) for name in families())
    return any(get_font(path).get_char_index(ord(character)) for path in paths)


def label(token: str, most: int = 24) -> str:
    """A token as `Vocabulary.display` gives it, for a picture; cut after ``most`` characters."""
    text = token.replace("\\n", "⏎").replace("\\t", "⇥").replace("\\r", "␍").translate(_BLANKS)
    shown = "".join(c if _has_glyph(c) else f"\\u{ord(c):04x}" if ord(c) < 0x10000 else f"\\U{ord(c):x}" for c in text)
    return shown if width(shown) <= most else shown[: most - 1] + "…"


def width(text: str) -> int:
    """Columns of a text in a font of fixed width."""
    return sum(0 if unicodedata.combining(c) else 1 + (unicodedata.east_asian_width(c) in "WF") for c in text)


def picture_path(name: str) -> Path:
    """The path of a picture that a user wants written.

    Raises:
        InputError: the name does not end in .png, or is that of a folder.
    """
    path = Path(name)
    if path.suffix.lower() != ".png" or path.is_dir():
        found = f"figure={name}" + (", a folder" if path.is_dir() else "")
        raise InputError(found, "the name of a .png file", "change the name")
    return path
