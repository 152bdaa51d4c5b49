"""The canonical form of a token: the bytes it stands for, or the role it plays.

Two tokens of two tokenizers match when their bytes are equal, or their roles.  How a token is *spelled* in a file
(``Ġthe``, ``▁the``, ``<0xE4>``, a base64 rank) depends on the family of the tokenizer; no other module sees it.
"""

import re

__all__ = ["ROLE_OF_TEXT", "byte_level_bytes", "byte_of_fallback", "piece_bytes", "role_of_special", "visible"]


def _byte_level_alphabet() -> dict[int, int]:
    """Code point of each character of the byte-level BPE alphabet (GPT-2) -> code point of the byte it stands for.

    Printable Latin-1 characters stand for themselves; the other 68 bytes, in order, for U+0100 and up.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = sorted(set(range(256)) - set(printable))
    return {b: b for b in printable} | {0x100 + i: b for i, b in enumerate(rest)}


_ALPHABET = _byte_level_alphabet()
_FALLBACK = re.compile(r"<0x([0-9A-Fa-f]{2})>")

_TEXTS_OF_ROLE = {
    "bos": "<s> <bos> <BOS> [BOS] <|begin_of_text|> <|startoftext|> <|bos|> <｜begin▁of▁sentence｜>",
    "eos": "</s> <eos> <EOS> [EOS] <|end_of_text|> <|endoftext|> <|eos|> <|return|> <｜end▁of▁sentence｜>",
    "eot": "<|eot_id|> <|im_end|> <end_of_turn> <|end|> <|eot|> <|end_of_turn|>",
    "pad": "<pad> <PAD> [PAD] <|pad|> <|finetune_right_pad_id|> <｜▁pad▁｜>",
    "unk": "<unk> <UNK> [UNK] <|unk|>",
    "turn": "<|im_start|> <start_of_turn> <|start_header_id|> <|start|> <|start_of_turn|>",
    "message": "<|end_header_id|> <|message|> <|im_sep|>",
    "user": "<|user|> [INST] <｜User｜>",
    "assistant": "<|assistant|> [/INST] <｜Assistant｜>",
    "system": "<|system|> [SYSTEM_PROMPT]",
    "tool": "<|tool|> <|tool_response|> [TOOL_RESULTS]",
    "mask": "<mask> [MASK] <|mask|>",
    "fim_prefix": "<|fim_prefix|> <fim_prefix> [PREFIX] <｜fim▁begin｜>",
    "fim_middle": "<|fim_middle|> <fim_middle> [MIDDLE] <｜fim▁end｜>",
    "fim_suffix": "<|fim_suffix|> <fim_suffix> [SUFFIX] <｜fim▁hole｜>",
}
#: Spellings in common use.  What a tokenizer itself declares (bos, eos, pad, unk) takes precedence over this table.
ROLE_OF_TEXT: dict[str, str] = {text: role for role, texts in _TEXTS_OF_ROLE.items() for text in texts.split()}


def role_of_special(text: str) -> str:
    """The role of a special token by its spelling; ``special:<text>`` where the table does not know it."""
    return ROLE_OF_TEXT.get(text, f"special:{text}")


def byte_level_bytes(token: str) -> bytes:
    """Bytes of a token written in the byte-level BPE alphabet; characters outside it stand for their UTF-8."""
    try:
        return token.translate(_ALPHABET).encode("latin-1")
    except UnicodeEncodeError:
        return b"".join(bytes([_ALPHABET[ord(c)]]) if ord(c) in _ALPHABET else c.encode() for c in token)


def byte_of_fallback(token: str) -> bytes | None:
    """The byte of a byte-fallback token ``<0xHH>``; None for any other token."""
    match = _FALLBACK.fullmatch(token)
    return bytes.fromhex(match[1]) if match else None


def piece_bytes(token: str) -> bytes:
    """Bytes of a SentencePiece piece: ``▁`` is a space.  (A byte-fallback token is `byte_of_fallback`'s.)"""
    return token.replace("▁", " ").encode("utf-8", "surrogatepass")


def visible(data: bytes) -> str:
    """Bytes as readable text: UTF-8 where it is valid, else ``\\xHH``; control characters escaped."""
    out = []
    for c in data.decode("utf-8", "surrogateescape"):
        if 0xDC80 <= ord(c) <= 0xDCFF:
            out.append(f"\\x{ord(c) - 0xDC00:02X}")
        elif c in "\n\r\t":
            out.append({"\n": "\\n", "\r": "\\r", "\t": "\\t"}[c])
        elif ord(c) < 0x20 or 0x7F <= ord(c) < 0xA0:
            out.append(f"\\x{ord(c):02X}")
        else:
            out.append(c)
    return "".join(out)
