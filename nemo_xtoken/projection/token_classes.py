"""Classes of tokens by what they are made of: numerals, punctuation, words, code, ...

**The counting rule of the paper's Table 8** (arXiv 2605.21699: 13 one-digit, 100 two-digit, 1000 three-digit numerals
and 88 ASCII punctuation tokens of Llama-3) was found by counting in the real vocabularies.  It looks at a token as
byte-level BPE spells it in its file, with the leading spaces (``Ġ``) taken off: a numeral of n digits is n characters
for which ``str.isdigit`` holds, and punctuation is one character that is not alphanumeric.  In that spelling a
character is a *byte*, and bytes above 0x7F look like Latin-1 letters and signs.  So

- the 13 one-digit numerals are 0 to 9 and the bytes 0xB9, 0xB2, 0xB3, spelled ``¹ ² ³``;
- the 88 punctuation tokens are the 32 ASCII signs, the same 32 after a space, 23 bytes spelled like Latin-1 signs
  (``¡`` to ``÷``), and one of them after a space (0xD7, ``Ġ×``).

Here the rule is stated in bytes, so that it says the same for tokenizers of every family.  The bytes above 0x7F alone
are not text: the audit counts them in these classes as the paper does, and leaves them out when it chooses a
loss.
"""

from typing import NamedTuple

import numpy as np

from nemo_xtoken.vocab.vocabulary import Vocabulary

__all__ = ["CLASSES", "TokenClass", "class_of_bytes", "classify", "is_text"]


class TokenClass(NamedTuple):
    """A class of tokens.

    Attributes:
        name: in JSON.
        label: a readable name.
        critical: a student whose tokens of this class the teacher lacks is harmed by a loss that pushes them down.
    """

    name: str
    label: str
    critical: bool = False


CLASSES = (
    TokenClass("digits_1", "1-digit numerals", True),
    TokenClass("digits_2", "2-digit numerals", True),
    TokenClass("digits_3", "3-digit numerals", True),
    TokenClass("digits_4plus", "longer numerals", True),
    TokenClass("punctuation", "ASCII punctuation", True),
    TokenClass("alphabetic", "alphabetic (ASCII)"),
    TokenClass("multibyte", "multi-byte text"),
    TokenClass("code", "code and white space"),
    TokenClass("special", "special"),
    TokenClass("fragment", "byte fragments"),
    TokenClass("other", "other"),
)
_NUMBER = {c.name: i for i, c in enumerate(CLASSES)}

#: Bytes that byte-level BPE spells as themselves, read as Latin-1: ASCII and Latin-1 without blanks and controls.
_SPELLED = [b for b in range(256) if 0x21 <= b < 0x7F or (b >= 0xA1 and b != 0xAD)]
DIGITS = frozenset(b for b in _SPELLED if chr(b).isdigit())  # 0 to 9 and the superscripts
SIGNS = frozenset(b for b in _SPELLED if not chr(b).isalnum())  # 32 in ASCII, 23 beyond


def is_text(data: bytes) -> bool:
    """Whether the bytes are whole characters (valid UTF-8), not a fragment of one."""
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def class_of_bytes(data: bytes) -> str:
    """The name of the class of a token with these bytes; the module's text has the rule."""
    core = data.lstrip(b" ")
    if core and DIGITS.issuperset(core):
        return f"digits_{len(core)}" if len(core) <= 3 else "digits_4plus"
    if len(core) == 1 and core[0] in SIGNS:
        return "punctuation"
    if not data.isascii():
        return "multibyte" if is_text(data) else "fragment"
    text = core.decode("ascii")
    if text.replace("'", "").isalpha():
        return "alphabetic"
    if data and any(not c.isalnum() and (c.isprintable() or c.isspace()) for c in text or " "):
        return "code"  # runs of signs, identifiers with signs, indentation, line ends
    return "other"


def classify(vocabulary: Vocabulary) -> np.ndarray:
    """int8 ``[V]``: index into `CLASSES` of each token, -1 for ids without one."""
    out = np.full(vocabulary.size, -1, dtype=np.int8)
    for i, data in enumerate(vocabulary.token_bytes):
        if data is not None:
            out[i] = _NUMBER[class_of_bytes(data)]
        elif i in vocabulary.roles:
            out[i] = _NUMBER["special"]
    return out
