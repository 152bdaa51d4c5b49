"""The text that all models of the study read, and the three tokenizers, made once from what every machine has."""

import itertools
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path

from nemo_xtoken.data.config import DataConfig
from nemo_xtoken.files import atomic_path, digest_of
from nemo_xtoken.recipes import tiny_text
from nemo_xtoken.vocab import load_vocabulary

from .arithmetic import SEED, draw
from .lengths import Length

__all__ = ["TOKENIZERS", "documents", "held_out", "positions", "prepare", "samples", "tokenizer", "training_text"]

EVERY = 20  # one page of text in so many is held out
LONGEST = 300  # characters of a held-out passage
REPEATS = 200  # of all numerals in what the tokenizers read
#: Name -> (how many digits a token may have, tokens, which half of the text its words are from; None: all).
TOKENIZERS = {
    "student": ("{1,3}", 2048, None),  # packs numerals, as Llama-3 does
    "digits": ("", 768, 1),  # splits them, as Qwen3 does
    "matching": ("{1,3}", 1792, 0),  # other words, the same numerals, as Phi-4-mini has them
}


def _pages() -> list[str]:
    """Python's documentation, without the arithmetic that follows there."""
    return list(tiny_text.documents())[: -tiny_text.SUMS]


def documents(length: Length, fits: Callable[[str], bool]) -> list[str]:
    """Of the training: text and arithmetic.  Each begins with a line break, as what is asked does.

    Args:
        fits: whether a document fits into a sample, whoever teaches: then every student sees the same samples.
    """
    rng = random.Random(SEED)
    pages = [text for number, text in enumerate(_pages()) if number % EVERY]
    passages = [found for text in pages for found in _filled(iter(text.strip().splitlines(keepends=True)), fits)]
    if length.passages:
        passages = rng.sample(passages, min(length.passages, len(passages)))
    lines = (draw(rng, length, test=False).line for _ in itertools.count())
    return [*passages, *itertools.islice(_filled(lines, fits), length.pages)]


def _filled(lines: Iterator[str], fits: Callable[[str], bool]) -> Iterator[str]:
    """Documents of as many lines as fit; a line that does not fit by itself is left out."""
    page = "\n"
    for line in lines:
        if fits(page + line):
            page += line
            continue
        if page != "\n":
            yield page
        page = "\n" + line if fits("\n" + line) else "\n"
    if page != "\n":
        yield page


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


def positions(teacher: str, length: Length) -> int:
    """Of a sample on a teacher's side: more than the student's positions need."""
    return length.teacher_length if teacher == "digits" else length.student_length * 5 // 4


def samples(folder: Path, length: Length, seed: int, student_length: int, pack: bool = False) -> DataConfig:
    """How samples are made of the training text.  A document each: same seed, same samples, whoever teaches.

    Args:
        pack: as many documents as there is room for instead, for models that need not be compared.
    """
    return DataConfig(
        paths=[str(training_text(folder))],
        student_length=student_length,
        teacher_length=max(length.teacher_length, student_length),
        seed=seed,
        pack=pack,
        cache_dir=str(folder / "prepared"),
        progress=False,
    )


def prepare(folder: Path, length: Length) -> str:
    """Writes text and tokenizers unless they are there.

    Returns:
        a digest of them all.
    """
    pages = [(number, text) for number, text in enumerate(_pages()) if number % EVERY]
    for name, (digits, size, half) in TOKENIZERS.items():
        read = (text for number, text in pages if half in (None, number % 2))
        tiny_text.make_tokenizer(Path(tokenizer(folder, name)), read, digits, size, REPEATS)
    content = "".join(json.dumps({"text": text}) + "\n" for text in documents(length, _fits(folder, length)))
    if not (file := training_text(folder)).is_file() or file.read_text() != content:
        with atomic_path(file) as temporary:
            temporary.write_text(content)
    tokenizers = [(Path(tokenizer(folder, name)) / "tokenizer.json").read_bytes() for name in TOKENIZERS]
    return digest_of(content, *tokenizers)


def _fits(folder: Path, length: Length) -> Callable[[str], bool]:
    """Whether a text and its end fit into a sample, on the student's side and on any teacher's."""
    student = load_vocabulary(tokenizer(folder, "student"))
    teachers = {name: load_vocabulary(tokenizer(folder, name)) for name in ("digits", "matching")}
    longest = [(student, length.student_length), *((v, positions(name, length)) for name, v in teachers.items())]
    return lambda text: all(len(vocabulary.encode(text)) < most for vocabulary, most in longest)
