"""A tokenizer for NeMo made of a Vocabulary: any tokenizer that nemo_xtoken.vocab can read, sized by its largest id."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

from nemo.collections.common.tokenizers.tokenizer_spec import TokenizerSpec
from nemo.lightning import io
from nemo.lightning.io.artifact import DirOrStringArtifact

from nemo_xtoken.training.vocabulary_tokenizer import VocabularyTokenizer
from nemo_xtoken.weights.tokenizer_files import link_tokenizer

__all__ = ["XTokenTokenizer"]


class XTokenTokenizer(VocabularyTokenizer, TokenizerSpec):
    """The tokenizer of a student or teacher.  A local folder is copied into checkpoints, so that they are complete."""

    @property
    def unique_identifiers(self) -> dict[str, str]:
        """What tells two tokenizers apart."""
        return {"class": type(self).__name__, "digest": self.vocabulary.digest}

    @property
    def bos_id(self) -> int | None:
        """None if the tokenizer has none."""
        return self.vocabulary.bos_id

    @property
    def eos_id(self) -> int | None:
        """None if the tokenizer has none."""
        return self.vocabulary.eos_id

    eos = eod = eos_id
    bos = bos_id

    @property
    def pad_id(self) -> int | None:
        """None if the tokenizer has none."""
        return self.vocabulary.pad_id

    def text_to_ids(self, text: str) -> list[int]:
        """Ids without special tokens."""
        return [int(i) for i in self.vocabulary.encode(text)]

    def ids_to_text(self, ids: Sequence[int]) -> str:
        """Text without special tokens; bytes that are not text become U+FFFD."""
        return self.vocabulary.decode_bytes(ids).decode("utf-8", errors="replace")

    def text_to_tokens(self, text: str) -> list[str]:
        """Readable tokens."""
        return self.ids_to_tokens(self.text_to_ids(text))

    def ids_to_tokens(self, ids: Sequence[int]) -> list[str]:
        """Readable tokens."""
        return [self.vocabulary.display(i) for i in ids]

    def tokens_to_ids(self, tokens: Sequence[str]) -> list[int]:
        """Ids of tokens given by their text."""
        return [self.vocabulary.id_of_bytes[token.encode()] for token in tokens]

    def tokens_to_text(self, tokens: Sequence[str]) -> str:
        """The tokens' text, put together."""
        return self.ids_to_text(self.tokens_to_ids(tokens))


class TokenizerArtifact(DirOrStringArtifact):
    """Copies the tokenizer's files of a folder, not the weights beside them."""

    def dump(self, instance: object, value: str, absolute_dir: Path, relative_dir: Path) -> str:
        """The folder's place in the checkpoint."""
        if not Path(value).is_dir():
            return super().dump(instance, value, absolute_dir, relative_dir)
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary) / Path(value).resolve().name
            link_tokenizer(Path(value), folder)
            return super().dump(instance, str(folder), absolute_dir, relative_dir)


io.track_io(XTokenTokenizer, artifacts=[TokenizerArtifact("source")])
