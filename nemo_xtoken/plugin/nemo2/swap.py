"""A model's tokenizer swapped, from Hugging Face's format to the same: transplant, import, distil, export, measure.

The student is the model itself with the new tokenizer, the teacher the model as it is.  Intermediate results are kept
in the cache folder and made once; imports and exports are commands in processes of their own, because each needs
process groups that training must not see.
"""

import dataclasses
import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Optional

import nemo.lightning as nl
import rich
from filelock import FileLock
from nemo.lightning import OptimizerModule
from rich.table import Table

from nemo_xtoken.alignment.cache import text_digest
from nemo_xtoken.data.config import DataConfig
from nemo_xtoken.data.sources import resolve_sources
from nemo_xtoken.environment import without_launcher
from nemo_xtoken.errors import InputError
from nemo_xtoken.evaluate.bits import take_bytes
from nemo_xtoken.evaluate.results import identity_of
from nemo_xtoken.files import atomic_path, cache_root, digest_of
from nemo_xtoken.objective.scale import ObjectiveConfig
from nemo_xtoken.plugin.nemo2.data import DistillationData
from nemo_xtoken.plugin.nemo2.distill import rebuilt, run_folder, train_one
from nemo_xtoken.plugin.nemo2.hf.exporting import load_config
from nemo_xtoken.plugin.nemo2.model import DistillationModel
from nemo_xtoken.plugin.nemo2.student import starting_tokenizer
from nemo_xtoken.plugin.nemo2.teacher import TeacherConfig
from nemo_xtoken.progress import Phase
from nemo_xtoken.report.summary import report_runs
from nemo_xtoken.training.teacher_settings import named_teachers
from nemo_xtoken.vocab.loading import load_vocabulary
from nemo_xtoken.vocab.vocabulary import Vocabulary
from nemo_xtoken.weights.dtypes import FLOATS
from nemo_xtoken.weights.folder import ModelFolder
from nemo_xtoken.weights.transplant import transplant

__all__ = ["BITS", "HELD_OUT", "Swap", "convert", "held_out_texts", "swap_tokenizer"]

logger = logging.getLogger(__name__)

#: In a run's folder: the text that was measured on, and what came of it.
HELD_OUT, BITS = "held_out.jsonl", "bits.json"
#: Its runs, for tables and progress.
ALONE, DISTILLED = "cross-entropy only", "distilled"


@dataclass(frozen=True)
class Swap:
    """What a swap starts from, in the cache folder.

    Attributes:
        original: the model, a folder in Hugging Face's format.
        transplanted: the same with the new tokenizer, untrained.
        student, teacher: the two as NeMo 2 checkpoints.
        dtype: of the original's weights.
    """

    original: Path
    transplanted: Path
    student: Path
    teacher: Path
    dtype: Optional[str]


def swap_tokenizer(
    data: DistillationData,
    trainer: nl.Trainer,
    log: nl.NeMoLogger,
    model: Optional[str] = None,
    tokenizer: Optional[str] = None,
    teacher: Optional[TeacherConfig] = None,
    objective: Optional[ObjectiveConfig] = None,
    optim: Optional[OptimizerModule] = None,
    resume: Optional[nl.AutoResume] = None,
    teachers: Optional[dict[str, TeacherConfig]] = None,
    ce_only: bool = False,
    measure_bytes: int = 200_000,
    measure_on: Optional[str] = None,
) -> Path:
    """Gives ``model`` the tokenizer of another and distils it from the original; the same command resumes it.

    Args:
        model: the original: a folder in Hugging Face's format, or a hub name.
        tokenizer: the new tokenizer: a folder, a tokenizer.json or a hub name.
        teacher: how the student learns; its ``path`` is the original unless one is given.
        ce_only: also train the transplanted model without a teacher, through the same batches, to compare.
        measure_bytes: bits per byte are measured on so much of the held-out text; 0: not at all.
        measure_on: the device for that, as torch names it; by default a GPU where there is one.
        data, trainer, log, objective, optim, resume, teachers: as for ``distill``.

    Returns:
        the run's folder: ``student`` in it is the result in Hugging Face's format, ``bits.json`` the measure before and
        after.

    Raises:
        InputError: model, tokenizer, text, layout or settings are wrong.
    """
    _check_given(model, tokenizer, data.text)
    assert model is not None
    assert tokenizer is not None
    made = convert(model, tokenizer)
    teacher = dataclasses.replace(teacher or TeacherConfig())
    teacher.path = teacher.path or str(made.teacher)
    resume = resume or nl.AutoResume(resume_if_exists=True, resume_ignore_no_checkpoint=True)
    if resume.restore_config is None:
        resume = rebuilt(resume, restore_config=nl.RestoreConfig(path=str(made.student)))
    folder = run_folder(log)
    runs = {}
    if ce_only:
        sides = [t.side for t in named_teachers(teacher, teachers)]
        runs[ALONE] = train_one(
            _student(resume, data), rebuilt(data), rebuilt(trainer), None, ObjectiveConfig(scale=0.0), rebuilt(optim),
            rebuilt(log, name="ce_only", log_dir=str(folder)), rebuilt(resume), aligned_with=sides, title=ALONE,
        )  # fmt: skip
    student = _student(resume, data)
    runs[DISTILLED] = train_one(
        student, data, trainer, teacher, objective, optim, log, resume, teachers, title=DISTILLED
    )
    if not trainer.is_global_zero:
        return folder
    report_runs(runs, folder)
    exported = {name: _export(run, made.dtype) for name, run in runs.items()}
    models = {"original": made.original, "transplanted": made.transplanted, **exported}
    texts = held_out_texts(data.text, student.tokenizer.vocabulary, load_vocabulary(str(made.original)))
    measured = take_bytes(texts, measure_bytes)
    if measured:
        with atomic_path(folder / HELD_OUT) as temporary:
            temporary.write_text("".join(json.dumps({"text": text}) + "\n" for text in measured), "utf-8")
        _measure(models, folder, measure_on)
    rich.get_console().print(f"student     {exported[DISTILLED]}", soft_wrap=True)
    return folder


def convert(model: str, tokenizer: str) -> Swap:
    """The transplanted model and both checkpoints, from the cache or made now: of many processes one does it.

    Raises:
        InputError: see `transplant` and `import_model`.
    """
    source = ModelFolder(model)
    new = load_vocabulary(tokenizer)
    key = digest_of(identity_of(str(source.path)), load_vocabulary(str(source.path)).digest, new.digest)[:16]
    folder = cache_root() / "swap" / key
    dtype = FLOATS.get(source.tensor(next(iter(source.where)))[0])
    made = Swap(source.path, folder / "transplanted", folder / "student", folder / "teacher", dtype)
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):
        if not made.transplanted.exists():
            with Phase(f"giving {model} the tokenizer {tokenizer}"):
                transplant(source.path, tokenizer, made.transplanted)
        for path, out in ((made.transplanted, made.student), (made.original, made.teacher)):
            if not out.exists():
                with Phase(f"importing {path}"):
                    _command("import", f"model={path}", f"out={out}")
    return made


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


def _check_given(model: str | None, tokenizer: str | None, text: DataConfig) -> None:
    missing = {
        "model": model is None,
        "tokenizer": tokenizer is None,
        "data.text.paths": not (text.paths or text.sources),
    }
    if any(missing.values()):
        names = [name for name, absent in missing.items() if absent]
        raise InputError(
            f"not set: {', '.join(names)}",
            "a model in Hugging Face's format, the tokenizer it is to have, and files of text",
            f"add {' '.join(f'{name}=PATH' for name in names)}",
        )


def _student(resume: nl.AutoResume, data: DistillationData) -> DistillationModel:
    """The architecture and the tokenizer of the checkpoint that it starts from."""
    config = load_config(resume.restore_config.path)
    config.seq_length = data.text.student_length
    return DistillationModel(config, starting_tokenizer(resume))


def _export(run: Path, dtype: str | None) -> Path:
    out = run / "student"
    words = [f"run={run}", f"out={out}", "overwrite=true", *([f"dtype={dtype}"] if dtype else [])]
    with Phase(f"exporting {run}"):
        _command("export", *words)
    return out


def _measure(models: Mapping[str, Path], folder: Path, device: str | None) -> None:
    """Bits per byte of each model, as a table and as `BITS`.  The training is done: a failure is only reported."""
    found: dict[str, dict[str, Any]] = {}
    words = [f"text={folder / HELD_OUT}", f"bytes={1 << 60}", "json=true", *([f"device={device}"] if device else [])]
    for name, path in models.items():
        try:
            with Phase(f"measuring bits per byte: {name}"):
                found[name] = json.loads(_command("bits", f"model={path}", *words).splitlines()[-1])
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


def _command(*words: str) -> str:
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
