"""Two tokenizers of any sizes, made in seconds and everywhere alike: no file of a model's has to be there.

Both are byte-level BPEs trained on words put together from syllables, as often as words of a language are.  As Llama-3
and Qwen3 do, they know most words in common and some alone; the student's reads numerals of up to three digits as one
token, the teacher's digit by digit.
"""

import random

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from nemo_xtoken.vocab.loading import load_vocabulary
from nemo_xtoken.vocab.vocabulary import Vocabulary

__all__ = ["SIZES", "made_pair", "made_text"]

#: Llama-3's and Qwen3's.
SIZES = 128_256, 151_669
SEED = 2605
#: Words that a vocabulary of one token takes to fill: some tokens are parts of words.
WORDS_A_TOKEN = 1.1
#: Of the words, those of one tokenizer alone.
OWN = 0.05
_WORDS = r" ?\p{L}+|\p{N}{DIGITS}| ?[^\s\p{L}\p{N}]+|\s+"


def _words(count: int) -> list[str]:
    rng = random.Random(SEED)
    syllables = [a + b + c for a in ("", *"bcdfghklmnprstvz") for b in "aeiou" for c in ("", *"lnrst")]
    found: dict[str, None] = {}
    while len(found) < count:
        found["".join(rng.choice(syllables) for _ in range(rng.randrange(1, 5)))] = None
    return list(found)


def _texts(words: list[str], rng: random.Random) -> list[str]:
    """Each word, the first ones most often."""
    text = [w for place, w in enumerate(words) for _ in range(1 + 400 // (place + 1))]
    rng.shuffle(text)
    numerals = [str(n) for n in range(1000)] * 3
    return [" ".join(text[at : at + 1000]) for at in range(0, len(text), 1000)] + [" ".join(numerals)]


def _tokenizer(words: list[str], digits: str, size: int) -> Vocabulary:
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(_WORDS.replace("DIGITS", digits)), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=size - 1, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(_texts(words, random.Random(SEED)), trainer)
    reserved = range(size - 1 - tokenizer.get_vocab_size())
    tokenizer.add_special_tokens(["<|end_of_text|>", *(f"<|reserved_{n}|>" for n in reserved)])
    return load_vocabulary(tokenizer)


def made_pair(student_size: int, teacher_size: int) -> tuple[Vocabulary, Vocabulary]:
    """The student's and the teacher's `Vocabulary`, of exactly these sizes."""
    most = int(WORDS_A_TOKEN * max(student_size, teacher_size))
    own = int(OWN * most)
    words = _words(most + own)
    return (
        _tokenizer(words[:most], "1,3", student_size),
        _tokenizer(words[: most - own] + words[most:], "1", teacher_size),
    )


def made_text(tokens: int, student_size: int, numerals: float = 0.1) -> str:
    """About so many of the student's tokens: words that get rarer, and a share of numerals of one to six digits."""
    rng = random.Random(SEED + 1)
    words = _words(int(WORDS_A_TOKEN * student_size))
    parts = []
    for _ in range(tokens):
        if rng.random() < numerals:
            parts.append(str(rng.randrange(10 ** rng.randrange(1, 7))))
        else:
            parts.append(words[int(len(words) * rng.random() ** 3)])
    return " ".join(parts)
