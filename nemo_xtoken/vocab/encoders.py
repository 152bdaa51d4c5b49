"""Text -> ids through three libraries, with one behaviour: no special tokens added, none recognised in the text.

Each encoder keeps plain data (JSON, a model's bytes, ranks) and builds the library's object when it is first needed, so
that it can be pickled into worker processes and shared by forked ones.
"""

import json
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from nemo_xtoken.errors import InputError, shortened

__all__ = [
    "BytePairs",
    "Encoder",
    "RankEncoder",
    "SentencePieceEncoder",
    "TokenizersEncoder",
    "encoded",
    "library_reason",
]


_FALLBACK = re.compile("<0x[0-9A-F]{2}>")
_LONG = 20_000  # characters; `encode` also finds where each token lies in the text, which takes as long again


class BytePairs(NamedTuple):
    """A byte-pair encoding.

    Attributes:
        merges: (left, right, what they make), ids in the order in which they are looked for.
        symbols: the ids of what texts are cut into before anything is merged.
        whole: those that a word may be at once, without merges.
        cuts: the places in a text, in characters, at which it is cut before; 0 and its end do not count.
    """

    merges: Sequence[tuple[int, int, int]]
    symbols: frozenset[int]
    whole: frozenset[int]
    cuts: Callable[[str], Sequence[int]]


class Encoder(Protocol):
    """What a `Vocabulary` needs to turn texts into ids."""

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """int32 ids ``[T]`` of each text."""
        ...

    def byte_pairs(self) -> BytePairs | None:
        """The merges, where it is a byte-pair encoding whose merges are known."""
        ...


def library_reason(error: BaseException) -> str:
    """What a tokenizer library says went wrong, in one line.

    Raises:
        BaseException: ``error`` itself, where it is no such library's: bad input that was recognised, an interruption,
            a library that is not there.
    """
    # A panic in the libraries' Rust code is no Exception.
    panic = type(error).__name__ == "PanicException"
    others = (InputError, MemoryError, NotImplementedError, ModuleNotFoundError)
    if isinstance(error, others) or not (panic or isinstance(error, Exception)):
        raise error
    return " ".join(str(error).split())[:300] or type(error).__name__


def encoded(encoder: Encoder, texts: Sequence[str], name: str) -> list[np.ndarray]:
    """``encoder.encode_batch(texts)``.

    Args:
        name: of the tokenizer, for error messages.

    Raises:
        InputError: the library gives up, such as over a regular expression that takes exponential time on a text.
    """
    try:
        return encoder.encode_batch(texts)
    except BaseException as error:
        reason = library_reason(error)
        if len(texts) > 1:
            for text in texts:  # to say which; where each alone succeeds it was none of them
                encoded(encoder, [text], name)
        what = f"a text of {len(texts[0]):,} characters that begins with {shortened(texts[0][:61])!r}"
        raise InputError(
            f"the tokenizer {name} cannot encode {what if len(texts) == 1 else f'{len(texts):,} texts'}: {reason}",
            "a tokenizer that encodes any text",
            "look at the regular expressions in its file (`pre_tokenizer`, `normalizer`), or copy the original again; "
            "if they are as published, take the text out of the data",
        ) from error


class _Lazy:
    """Builds ``_build()`` once per process; the built object is never pickled."""

    _built: Any = None

    @property
    def _tool(self) -> Any:
        if self._built is None:
            self._built = self._build()
        return self._built

    def _build(self) -> Any:
        raise NotImplementedError

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k != "_built"}


class TokenizersEncoder(_Lazy):
    """Hugging Face ``tokenizers``, from the JSON that `loading` made safe.

    Args:
        text: the tokenizer's JSON.
        tokenizer: the object that was read from it, where there is one already.
    """

    def __init__(self, text: str, tokenizer: Any = None) -> None:
        self.text = text
        self._built = None if tokenizer is None else self._prepared(tokenizer)

    def _build(self) -> Any:
        from tokenizers import Tokenizer

        return self._prepared(Tokenizer.from_str(self.text))

    @staticmethod
    def _prepared(tokenizer: Any) -> Any:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        tokenizer.encode_special_tokens = True  # "</s>" in a text is four characters, not the end of it
        tokenizer.post_processor = None  # it adds special tokens, and takes a tenth of the time to add none
        return tokenizer

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        tool = self._tool
        if len(texts) == 1 and len(texts[0]) < _LONG:  # no threads for one text
            return [np.array(tool.encode(texts[0], add_special_tokens=False).ids, dtype=np.int32)]
        fast = getattr(tool, "encode_batch_fast", tool.encode_batch)
        return [np.array(e.ids, dtype=np.int32) for e in fast(list(texts), add_special_tokens=False)]

    def byte_pairs(self) -> BytePairs | None:
        model = json.loads(self.text)["model"]
        if model.get("type") != "BPE":
            return None
        ids = model["vocab"]
        pairs = (m.split(" ", 1) if isinstance(m, str) else m for m in model["merges"])
        merges = [(ids[a], ids[b], ids[a + b]) for a, b in pairs]
        made = {m[2] for m in merges}
        symbols = frozenset(i for s, i in ids.items() if i not in made and (len(s) == 1 or _FALLBACK.fullmatch(s)))
        whole = frozenset(ids.values()) if model.get("ignore_merges") else frozenset()
        tool = self._tool

        def cuts(text: str) -> list[int]:
            if tool.normalizer is not None:
                text = tool.normalizer.normalize_str(text)
            if tool.pre_tokenizer is None:
                return []
            return [start for _, (start, _) in tool.pre_tokenizer.pre_tokenize_str(text)[1:]]

        return BytePairs(merges, symbols, whole, cuts)


class SentencePieceEncoder(_Lazy):
    """The ``sentencepiece`` package; control symbols are never produced from text.

    Args:
        model: the bytes of the ``.model`` file.
    """

    def __init__(self, model: bytes) -> None:
        self.model = model

    def _build(self) -> Any:
        from sentencepiece import SentencePieceProcessor

        return SentencePieceProcessor(model_proto=self.model)

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [np.array(ids, dtype=np.int32) for ids in self._tool.encode(list(texts), out_type=int)]

    def byte_pairs(self) -> BytePairs | None:
        return None


class RankEncoder(_Lazy):
    """tiktoken: byte pairs merged by rank inside the pieces of a regular expression.

    Args:
        ranks: rank of each token's bytes.
        pattern: the expression that cuts a text into pieces.
        offset: what is added to a rank to give the id (tekken puts its special tokens first).
    """

    def __init__(self, ranks: dict[bytes, int], pattern: str, offset: int = 0) -> None:
        self.ranks, self.pattern, self.offset = ranks, pattern, offset

    def _build(self) -> Any:
        try:
            import tiktoken
        except ImportError as e:
            raise InputError(
                "a tiktoken-style tokenizer, and no tiktoken package", "the package", "pip install tiktoken"
            ) from e
        return tiktoken.Encoding("nemo_xtoken", pat_str=self.pattern, mergeable_ranks=self.ranks, special_tokens={})

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        tool = self._tool
        return [np.array(tool.encode_ordinary(t), dtype=np.int32) + np.int32(self.offset) for t in texts]

    def byte_pairs(self) -> BytePairs | None:
        ids = {data: rank + self.offset for data, rank in self.ranks.items()}
        merges = [
            (ids[data[:cut]], ids[data[cut:]], ids[data])
            for data in sorted(self.ranks, key=self.ranks.__getitem__)
            for cut in range(1, len(data))
            if data[:cut] in ids and data[cut:] in ids
        ]
        symbols = frozenset(i for data, i in ids.items() if len(data) == 1)
        import regex

        pattern = regex.compile(self.pattern)

        def cuts(text: str) -> list[int]:
            return [found.start() for found in pattern.finditer(text)][1:]

        return BytePairs(merges, symbols, frozenset(ids.values()), cuts)
