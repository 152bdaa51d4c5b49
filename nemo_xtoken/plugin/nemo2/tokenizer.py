"""A tokenizer for NeMo that knows its vocabulary: its size by the largest id, bytes and roles by nemo_xtoken.vocab."""

from nemo.collections.common.tokenizers.huggingface.auto_tokenizer import AutoTokenizer
from nemo.lightning import io

from nemo_xtoken.vocab.loading import load_vocabulary
from nemo_xtoken.vocab.vocabulary import Vocabulary

__all__ = ["XTokenTokenizer"]


class XTokenTokenizer(AutoTokenizer, io.IOMixin):
    """NeMo's Hugging Face tokenizer, sized by the largest id instead of the number of tokens (ids may have gaps).

    Args:
        path: a folder with a tokenizer in Hugging Face format, or a hub name.

    Raises:
        InputError: it cannot be read.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.vocabulary: Vocabulary = load_vocabulary(path)  # first: its errors say what is wrong
        super().__init__(pretrained_model_name=path)

    @property
    def vocab_size(self) -> int:
        """V: the largest id + 1."""
        return self.vocabulary.size
