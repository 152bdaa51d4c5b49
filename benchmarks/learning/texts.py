"""The text that all models of the study read, and the three tokenizers, made once from what every machine has."""

import json
import random
from pathlib import Path

from nemo_xtoken.files import atomic_path, digest_of
from nemo_xtoken.recipes import tiny_text

from .arithmetic import SEED, page
from .lengths import Length

__all__ = ["TOKENIZERS", "held_out", "prepare", "tokenizer", "training_text"]

EVERY = 20  # one page of text in so many is held out
LONGEST = 300  # characters of a held-out passage
#: Name -> (how many digits a token may have, tokens, which half of the text its words are from; None: all).
TOKENIZERS = {
    "student": ("{1,3}", 2048, None),  # packs numerals, as Llama-3 does
    "digits": ("", 768, 1),  # splits them, as Qwen3 does
    "matching": ("{1,3}", 1792, 0),  # other words, the same numerals, as Phi-4-mini has them
}


def _pages() -> list[str]:
    """Python's documentation, without the arithmetic that follows there."""
    return list(tiny_text.documents())[: -tiny_text.SUMS]


def documents(length: Length) -> list[str]:
    """Of the training: text and arithmetic.  Each begins with a line break, as what is asked does."""
    rng = random.Random(SEED)
    text = [f"\n{text.strip()}\n" for number, text in enumerate(_pages()) if number % EVERY]
    if length.text_pages:
        text = rng.sample(text, length.text_pages)
    return [*text, *(page(rng, length) for _ in range(length.pages))]


def held_out(count: int) -> list[str]:
    """Passages of text that no model has read."""
    rng, passages = random.Random(SEED), []
    for text in _pages()[::EVERY]:
        whole = [p.strip() for p in text.split("\n\n") if len(p.strip()) > LONGEST // 3]
        passages += [f"\n{p[:LONGEST]}" for p in whole]
    return rng.sample(passages, min(count, len(passages)))


def training_text(folder: Path) -> Path:
    """The file with the training documents."""
    return folder / "text.jsonl"


def tokenizer(folder: Path, name: str) -> str:
    """Folder of a tokenizer, one of `TOKENIZERS`."""
    return str(folder / "tokenizers" / name)


def prepare(folder: Path, length: Length) -> str:
    """Writes text and tokenizers unless they are there.

    Returns:
        a digest of them all.
    """
    texts, file = documents(length), training_text(folder)
    content = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    if not file.is_file() or file.read_text() != content:
        with atomic_path(file) as temporary:
            temporary.write_text(content)
    for name, settings in TOKENIZERS.items():
        target = Path(tokenizer(folder, name))
        if not (target / "tokenizer.json").is_file():
            _train_tokenizer(target, *settings)
    tokenizers = [(Path(tokenizer(folder, name)) / "tokenizer.json").read_bytes() for name in TOKENIZERS]
    return digest_of(content, *tokenizers)


def _train_tokenizer(target: Path, digits: str, size: int, half: int | None) -> None:
    """A byte-level BPE; numerals come often enough to become tokens where the pattern keeps their digits together."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    made = Tokenizer(models.BPE())
    words = pre_tokenizers.Split(Regex(tiny_text.WORDS.replace("{DIGITS}", digits)), "isolated")
    made.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(False, use_regex=False)])
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=["<|end_of_text|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    pages = [text for number, text in enumerate(_pages()) if number % EVERY and half in (None, number % 2)]
    made.train_from_iterator([*pages, *[" ".join(map(str, range(1000)))] * 200], trainer)
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|end_of_text|>"}
    for file, content in (("tokenizer_config.json", json.dumps(settings)), ("tokenizer.json", made.to_str())):
        with atomic_path(target / file) as temporary:
            temporary.write_text(content)
