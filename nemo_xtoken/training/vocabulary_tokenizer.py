"""A tokenizer made of a Vocabulary, as every adapter has it: any that nemo_xtoken.vocab can read, sized by its ids."""

from nemo_xtoken.vocab.loading import load_vocabulary
from nemo_xtoken.vocab.vocabulary import Vocabulary

__all__ = ["VocabularyTokenizer"]


class VocabularyTokenizer:
    """The tokenizer of a student or teacher.

    Args:
        source: a folder or file with a tokenizer, or a hub name.

    Raises:
        InputError: the tokenizer cannot be read.
    """

    def __init__(self, source: str) -> None:
        self.source = source
        self.vocabulary: Vocabulary = load_vocabulary(source)

    @property
    def vocab_size(self) -> int:
        """V: the largest id + 1; ids may have gaps."""
        return self.vocabulary.size
