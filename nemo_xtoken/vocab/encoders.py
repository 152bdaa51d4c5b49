"""Text -> ids through three libraries, with one behaviour: no special tokens added, none recognised in the text.

Each encoder keeps plain data (JSON, a model's bytes, ranks) and builds the library's object when it is first needed, so
that it can be pickled into worker processes and shared by forked ones.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from nemo_xtoken.errors import InputError

__all__ = ["Encoder", "RankEncoder", "SentencePieceEncoder", "TokenizersEncoder"]


class Encoder(Protocol):
    """What a `Vocabulary` needs to turn texts into ids."""

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """int32 ids ``[T]`` of each text."""
        ...


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
        return tokenizer

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        tool = self._tool
        if len(texts) == 1:  # no threads for one text
            return [np.array(tool.encode(texts[0], add_special_tokens=False).ids, dtype=np.int32)]
        fast = getattr(tool, "encode_batch_fast", tool.encode_batch)
        return [np.array(e.ids, dtype=np.int32) for e in fast(list(texts), add_special_tokens=False)]


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
