"""What a swap of tokenizers does around its training: the student that it starts from, the export, bits per byte.

Intermediate results are kept in the cache folder and made once; conversions are commands in processes of their own,
because each needs process groups that training must not see.
"""

import dataclasses
import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import rich
from rich.table import Table

from nemo_xtoken.alignment.cache import text_digest
from nemo_xtoken.data.config import DataConfig
from nemo_xtoken.data.sources import resolve_sources
from nemo_xtoken.environment import without_launcher
from nemo_xtoken.errors import InputError
from nemo_xtoken.evaluate.bits import take_bytes
from nemo_xtoken.evaluate.results import identity_of
from nemo_xtoken.files import atomic_path, cache_root, digest_of
from nemo_xtoken.leftovers import temporary_name, tidy
from nemo_xtoken.limits import MOST_BYTES
from nemo_xtoken.progress import Phase, say
from nemo_xtoken.report.summary import report_runs
from nemo_xtoken.run.run_checks import left_to_the_user, not_set
from nemo_xtoken.sharing.exclusive import exclusive
from nemo_xtoken.sharing.first_process import Launch, made_by_first
from nemo_xtoken.training.trained_with import Origin
from nemo_xtoken.vocab.loading import load_vocabulary
from nemo_xtoken.vocab.vocabulary import Vocabulary
from nemo_xtoken.weights.folder import ModelFolder
from nemo_xtoken.weights.pruning import prune
from nemo_xtoken.weights.transplant import transplant

__all__ = [
    "BITS",
    "CE_ONLY",
    "DISTILLED",
    "HELD_OUT",
    "Transplanted",
    "check_given",
    "export_student",
    "finish",
    "held_out_texts",
    "run_command",
    "transplanted",
]

logger = logging.getLogger(__name__)

#: In a run's folder: the text that was measured on, and what came of it.
HELD_OUT, BITS = "held_out.jsonl", "bits.json"
#: Its runs, for tables and progress.
CE_ONLY, DISTILLED = "cross-entropy only", "distilled"
#: What it starts from, likewise.
TRANSPLANTED, PRUNED = "transplanted", "pruned and transplanted"


@dataclass(frozen=True)
class Transplanted:
    """What a swap starts from, in the cache folder.

    Attributes:
        original: the model, a folder in Hugging Face's format.
        model: the same with the new tokenizer, and with fewer layers where that was asked for, untrained.
        folder: of both their conversions.
        dtype: of the original's weights.
        name: of ``model``, for tables.
        origin: what tells a run of this student from one of another.
    """

    original: Path
    model: Path
    folder: Path
    dtype: str | None
    name: str
    origin: Origin


def check_given(model: str | None, tokenizer: str | None, text: DataConfig) -> tuple[str, str]:
    """Model and tokenizer, where the user has named them and the text.

    Raises:
        InputError: the user has left something out.
    """
    given = {"model": ("the original", model), "tokenizer": ("the one it is to have", tokenizer)}
    missing = left_to_the_user(given, text)
    if missing:
        raise not_set(missing, "a model in Hugging Face's format, the tokenizer it is to have, and files of text")
    assert model is not None
    assert tokenizer is not None
    return model, tokenizer


def transplanted(
    model: str,
    tokenizer: str,
    layers: str | int | None = None,
    convert: Callable[[Transplanted], None] = lambda made: None,
) -> Transplanted:
    """The transplanted model, from the cache or made now: of many processes one does it.

    Args:
        layers: those that stay, see `chosen_layers` (a file of settings may have 12 as a number); the others are left
            out before the model gets the tokenizer.
        convert: makes what else a framework needs of it, where that is not there yet.

    Raises:
        InputError: see `prune`, `transplant` and ``convert``.
    """
    layers = None if layers is None else str(layers)
    source = ModelFolder(model)
    new = load_vocabulary(tokenizer)
    parts = [identity_of(str(source.path)), load_vocabulary(str(source.path)).digest, new.digest]
    key = digest_of(*parts, *([] if layers is None else [layers]))[:16]
    folder = cache_root() / "swap" / key
    name = TRANSPLANTED if layers is None else PRUNED
    origin = Origin.of_folder(model, layers)
    made = Transplanted(source.path, folder / "transplanted", folder, source.dtype, name, origin)

    def make() -> dict[str, Any]:
        with exclusive(folder, f"converting {model}", lambda who: say(f"waiting for {who}")):
            tidy(made.folder)
            if not made.model.exists():
                _make(source.path, tokenizer, layers, made)
            convert(made)
        return {}

    made_by_first(Launch.of(os.environ), folder / "jobs", key, f"converting {model}", make)
    return made


def _make(original: Path, tokenizer: str, layers: str | None, made: Transplanted) -> None:
    """The student that is to be trained: first fewer layers, then the tokenizer, whose rows then are made once."""
    smaller, pruned = original, made.folder / temporary_name("pruned")
    try:
        if layers is not None:
            smaller = pruned
            with Phase(f"leaving layers of {original} out"):
                kept = prune(original, layers, smaller)
            say(f"layers {', '.join(map(str, kept.layers))} of {kept.of} stay")
        with Phase(f"giving {original} the tokenizer {tokenizer}"):
            transplant(smaller, tokenizer, made.model)
    finally:
        shutil.rmtree(pruned, ignore_errors=True)


def finish(
    made: Transplanted,
    runs: Mapping[str, Path],
    folder: Path,
    text: DataConfig,
    student: Vocabulary,
    size: int,
    device: str | None,
) -> None:
    """Reports the runs, exports their students, and measures bits per byte before and after.

    Args:
        runs: folders by `CE_ONLY` and `DISTILLED`.
        folder: of the swap.
        size: bytes of held-out text that are measured on; 0: nothing is measured.
        device: for that, as torch names it; None: a GPU where there is one.

    Raises:
        InputError: a student cannot be exported.
    """
    report_runs(dict(runs), folder)
    exported = {name: export_student(run, made.dtype) for name, run in runs.items()}
    models = {"original": made.original, made.name: made.model, **exported}
    measured = take_bytes(held_out_texts(text, student, load_vocabulary(str(made.original))), size)
    if measured:
        with atomic_path(folder / HELD_OUT) as temporary:
            temporary.write_text("".join(json.dumps({"text": text}) + "\n" for text in measured), "utf-8")
        _measure(models, folder, device)
    rich.get_console().print(f"student     {exported[DISTILLED]}", soft_wrap=True)


def held_out_texts(text: DataConfig, student: Vocabulary, teacher: Vocabulary) -> Iterator[str]:
    """The documents that are held out, as they were written; none of conversations, which models write differently.

    Args:
        text: prepared already, so that it costs no more than reading.
    """
    for part in text.parts().values() if text.sources else [text]:
        if part.format != "text":
            continue
        if part.held_out_paths:
            yield from chain.from_iterable(s.texts() for s in resolve_sources(part.held_out_paths, part.reading))
            continue
        _, held_out = dataclasses.replace(part, progress=False).prepare(student, [teacher])
        wanted = set() if held_out is None else set(held_out[0].digests.tolist())
        for source in resolve_sources(part.paths, part.reading) if wanted else ():
            for document in source.texts():
                digest = text_digest(document)
                if digest.rstrip(b"\0") in wanted:  # numpy drops zeros at the end
                    wanted.discard(digest.rstrip(b"\0"))  # a copy of it adds nothing
                    yield document


def export_student(run: Path, dtype: str | None = None, adapter: str | None = None) -> Path:
    """The student of a run in Hugging Face's format, in the run's folder.

    Args:
        dtype: of its weights; None: as the export chooses.
        adapter: write its LoRA adapters alone, which belong to this model; None: the whole student.

    Raises:
        InputError: the export failed.
    """
    out = run / "student"
    words = [f"run={run}", f"out={out}", "overwrite=true", *([f"dtype={dtype}"] if dtype else [])]
    words += [f"adapter={adapter}"] if adapter else []
    with Phase(f"exporting {run}"):
        run_command("export", *words)
    return out


def _measure(models: Mapping[str, Path], folder: Path, device: str | None) -> None:
    """Bits per byte of each model, as a table and as `BITS`.  The training is done: a failure is only reported."""
    found: dict[str, dict[str, Any]] = {}
    words = [f"text={folder / HELD_OUT}", f"bytes={MOST_BYTES}", "json=true", *([f"device={device}"] if device else [])]
    for name, path in models.items():
        try:
            with Phase(f"measuring bits per byte: {name}"):
                found[name] = json.loads(run_command("bits", f"model={path}", *words).splitlines()[-1])
        except InputError as error:
            logger.warning("%s", error)
            return
    with atomic_path(folder / BITS) as temporary:
        temporary.write_text(json.dumps(found, indent=2) + "\n", "utf-8")
    size = next(iter(found.values()))["size"]
    table = Table(title=f"Bits per byte of {size:,} bytes of held-out text")
    table.add_column("model", no_wrap=True)
    for heading in ("bits a byte", "bytes a token"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, bits in found.items():
        table.add_row(name, f"{bits['per_byte']:.3f}", f"{size / bits['tokens']:.2f}")
    rich.get_console().print(table)


def run_command(*words: str) -> str:
    """What ``xtoken WORDS`` prints, in a process of its own that knows of no other.

    Raises:
        InputError: the command failed.
    """
    line = [sys.executable, "-m", "nemo_xtoken", *words]
    done = subprocess.run(line, env=without_launcher(os.environ), capture_output=True, text=True)
    if done.returncode:
        raise InputError(
            f"xtoken {' '.join(words)}\n  ended with status {done.returncode}: {done.stderr[-2000:].strip()}",
            "the command to succeed",
            "read its output; the same command can be run by hand",
        )
    return done.stdout
