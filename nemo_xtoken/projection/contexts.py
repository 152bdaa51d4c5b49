"""How a token is written by the other tokenizer where it stands in a text, not alone.

Pre-tokenizers look at what follows: GPT-style ones give the last of several blanks to the word after them, some take a
full stop and a line break together.  So a token that does not end in a letter is looked at as it is followed by a word,
a letter, a digit, a full stop and a line break, wherever its own tokenizer then writes it.  Of these a token of blanks
takes the first that it can have: blanks before a line break, which hardly any text has, would join all indentations.
A token that ends in a digit is looked at before each digit, and where only some can follow it, or where they matter,
before each two; with the piece after it in the first case, which says what it is followed by.
Words are cut at their ends by every tokenizer; a token that ends in a letter is taken alone.
"""

from collections import Counter
from collections.abc import Iterator, Sequence

from nemo_xtoken.vocab.vocabulary import Vocabulary

__all__ = ["depends_on_context", "encoded_inside", "spellings_in_context"]

#: What may come after a token.
FOLLOWERS = (" a", "a", "1", ".", "\n")
#: The same for a numeral, and for one whose spelling depends on them.
DIGITS = tuple("0123456789")
NUMERALS = tuple(f"{n:02}" for n in range(100))
#: Texts that are encoded in one call.
BLOCK = 65_536


def depends_on_context(data: bytes | None) -> str | None:
    """The token's text, if what follows may change how it is written; else None."""
    if not data:
        return None
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:  # a fragment of a character: no text has it alone
        return None
    return None if text[-1].isalpha() else text


def spellings_in_context(
    own: Vocabulary, other: Vocabulary, texts: dict[int, str]
) -> Iterator[tuple[int, list[list[int]]]]:
    """Each of ``own``'s tokens with its different spellings by ``other``.

    Args:
        texts: the tokens and their texts.

    Yields:
        a token and its spellings, one at least: pieces up to and with the one that covers the token's end, which may be
        longer than the token.  Tokens that their own tokenizer writes in no context are left out.
    """
    found = _found(own, other, texts, FOLLOWERS)
    numerals = {token: text for token, text in texts.items() if text[-1] in DIGITS}
    follow = Counter(token for token, digit in _written(own, numerals, DIGITS))
    some = {token: text for token, text in numerals.items() if 0 < follow[token] < len(DIGITS)}
    every = {token: text for token, text in numerals.items() if follow[token] == len(DIGITS)}

    def look(tokens: dict[int, str], followers: Sequence[str], beyond: int) -> None:
        for token, spellings in _found(own, other, tokens, followers, beyond).items():
            known = found.setdefault(token, [])
            known += [pieces for pieces in spellings if pieces not in known]

    look(every, DIGITS, 0)
    look({token: text for token, text in every.items() if len(found[token]) > 1}, NUMERALS, 0)
    look(some, DIGITS + NUMERALS, 1)
    yield from found.items()


def _written(own: Vocabulary, texts: dict[int, str], followers: Sequence[str]) -> Iterator[tuple[int, str]]:
    """The tokens, each with the followers before which its own tokenizer writes it."""
    cases = [(token, text, follower) for token, text in texts.items() for follower in followers]
    for start in range(0, len(cases), BLOCK):
        block = cases[start : start + BLOCK]
        for case, ids in zip(block, encoded_inside(own, [text + follower for _, text, follower in block]), strict=True):
            if ids[:1] == [case[0]]:
                yield case[0], case[2]


def _found(
    own: Vocabulary, other: Vocabulary, texts: dict[int, str], followers: Sequence[str], beyond: int = 0
) -> dict[int, list[list[int]]]:
    """The different spellings; ``beyond``: the bytes after the token that are covered as well."""
    cases = list(_written(own, texts, followers))
    encoded = encoded_inside(other, [texts[token] + follower for token, follower in cases])
    found: dict[int, list[list[int]]] = {}
    for (token, follower), ids in zip(cases, encoded, strict=True):
        text = texts[token]
        pieces = _covering((text + follower).encode(), len(text.encode()) + beyond, ids, other)
        known = found.get(token, [])
        if pieces and pieces not in known and (not known or text.strip()):
            found.setdefault(token, []).append(pieces)
    return found


def encoded_inside(vocabulary: Vocabulary, texts: list[str]) -> list[list[int]]:
    """The texts as they are written in the middle of a text; [] where that cannot be told."""
    ids = vocabulary.encode("a")
    if vocabulary.decode_bytes(ids) == b"a":
        return [encoded.tolist() for encoded in vocabulary.encode_batch(texts)]
    # SentencePiece puts a blank before a text: it comes before a line break here
    lead = vocabulary.encode("\n").tolist()
    found = [encoded.tolist() for encoded in vocabulary.encode_batch(["\n" + text for text in texts])]
    return [encoded[len(lead) :] if encoded[: len(lead)] == lead else [] for encoded in found]


def _covering(data: bytes, length: int, ids: Sequence[int], vocabulary: Vocabulary) -> list[int]:
    """The leading tokens that cover the first ``length`` bytes; [] where they are other bytes."""
    at, pieces = 0, []
    for token in ids:
        if at >= length:
            break
        part = vocabulary.token_bytes[token] or b""
        if not part or data[at : at + len(part)] != part:
            return []
        pieces.append(token)
        at += len(part)
    return pieces if at >= length else []
