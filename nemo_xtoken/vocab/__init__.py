"""Tokens as bytes and roles, from any tokenizer."""

from nemo_xtoken.vocab.loading import load_vocabulary
from nemo_xtoken.vocab.vocabulary import Vocabulary

__all__ = ["Vocabulary", "load_vocabulary"]
