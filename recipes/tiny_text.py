"""The text and the tokenizers of ``xtoken_tiny``, made at first use from what every machine with Python has.

Text: the interpreter's own documentation (what ``help('for')`` shows) and arithmetic from a fixed seed.  Tokenizers:
two byte-level BPEs trained on it.  The student's reads numerals of up to three digits as single tokens, as Llama-3's
does; the teacher's splits them into digits, as Qwen3's does.  Everything is kept in the cache folder.
"""

import json
import random
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from nemo_xtoken.files import atomic_path, cache_root, digest_of
from nemo_xtoken.progress import Phase
from nemo_xtoken.sharing.file_lock import file_lock

__all__ = ["documents", "make_tokenizer", "student_tokenizer", "teacher_tokenizer", "text_file"]

STUDENT_VOCABULARY, TEACHER_VOCABULARY = 3072, 1536
SEED = 2605
DOCUMENT_CHARACTERS = 1500
SUMS = 600  # documents of arithmetic, LINES lines each
LINES = 24
REPEATS = 60  # of all numerals in what the tokenizers read
# Words, numerals, signs and blanks, which no token crosses.
WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{DIGITS}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def folder() -> Path:
    """Where it all is; a change of this module or of Python's documentation makes another folder."""
    from pydoc_data.topics import topics

    version = digest_of(Path(__file__).read_bytes(), json.dumps(topics, sort_keys=True))[:16]
    return cache_root() / "tiny" / version


def documents() -> Iterator[str]:
    """Python's documentation cut between paragraphs, then pages of sums."""
    from pydoc_data.topics import topics

    for name in sorted(topics):
        page = ""
        for paragraph in topics[name].split("\n\n"):
            page += paragraph.rstrip() + "\n\n"
            if len(page) >= DOCUMENT_CHARACTERS:
                yield page
                page = ""
        if page.strip():
            yield page
    rng = random.Random(SEED)
    for _ in range(SUMS):
        lines = []
        for _ in range(LINES):
            a, b = rng.randrange(500), rng.randrange(500)
            lines.append(f"{a} + {b} = {a + b}" if rng.random() < 0.5 else f"{a + b} - {b} = {a}")
        yield "\n".join(lines) + "\n"


def text_file() -> str:
    """A JSON-lines file with the documents."""

    def write(path: Path) -> None:
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents()))

    return str(_once(folder() / "text.jsonl", write))


def student_tokenizer() -> str:
    """Folder of the tokenizer that reads 201 as one token."""
    return make_tokenizer(folder() / "student", documents(), "{1,3}", STUDENT_VOCABULARY, REPEATS)


def teacher_tokenizer() -> str:
    """Folder of the tokenizer that reads 201 as 2, 0, 1."""
    return make_tokenizer(folder() / "teacher", documents(), "", TEACHER_VOCABULARY, REPEATS)


def make_tokenizer(folder: Path, texts: Iterable[str], digits: str, size: int, repeats: int) -> str:
    """Trains a byte-level BPE, unless the folder has one.

    Args:
        folder: its own.
        texts: where its words are from; not read where there is nothing to do.
        digits: how many digits of a numeral may be one token, as a regular expression repeats them: ``{1,3}``; empty:
            one.
        size: tokens, with that of the end of a text.
        repeats: how often it reads all numerals below 1000 beside the texts, so that they become tokens where they may.

    Returns:
        the folder.
    """

    def write(path: Path) -> None:
        from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

        tokenizer = Tokenizer(models.BPE())
        words = pre_tokenizers.Split(Regex(WORDS.replace("{DIGITS}", digits)), "isolated")
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(False, use_regex=False)])
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=size,
            special_tokens=["<|end_of_text|>"],
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        with Phase(f"training a tokenizer of {size:,} tokens"):
            tokenizer.train_from_iterator([*texts, *[" ".join(map(str, range(1000)))] * repeats], trainer)
        path.write_text(tokenizer.to_str())

    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|end_of_text|>"}
    _once(folder / "tokenizer_config.json", lambda path: path.write_text(json.dumps(settings)))
    _once(folder / "tokenizer.json", write)
    return str(folder)


def _once(target: Path, write: Callable[[Path], object]) -> Path:
    """Writes a file unless it is there; of several processes one does it."""
    if not target.is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        with file_lock(f"{target}.lock"):
            if not target.is_file():
                with atomic_path(target) as temporary:
                    write(temporary)
    return target
