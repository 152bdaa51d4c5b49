"""What the form in which a teacher is stored does to whole trainings: the models of ``xtoken_tiny``, on the real stack.

Used by ``benchmarks/teachers.py --training``.  Imports NeMo; each training runs in a fork of the process that did.
"""

import json
import math
import multiprocessing
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fiddle as fdl
import nemo.lightning as nl

from nemo_xtoken.data.config import DataConfig, Tokenization
from nemo_xtoken.objective.scale import ObjectiveConfig
from nemo_xtoken.plugin.nemo2.distill import train_one
from nemo_xtoken.plugin.nemo2.teacher import TeacherConfig
from nemo_xtoken.plugin.standalone import cache_text
from nemo_xtoken.recipes import tiny_text
from nemo_xtoken.recipes.xtoken_tiny import train_teacher, xtoken_tiny
from nemo_xtoken.run.records import read_history
from nemo_xtoken.teachers.source_settings import CacheConfig
from nemo_xtoken.vocab import load_vocabulary

__all__ = ["BATCH", "trainings"]

FORMATS = ("fp32", "bf16", "fp8", "sampled")
LAST = 10  # steps, over which the final losses are means
EVERY = 4  # of the documents of the recipe one is read
BATCH = 8  # samples of a step


def trainings(folder: Path, steps: int, teacher_steps: int) -> Iterator[dict[str, Any]]:
    """The same student on the same batches, by a teacher beside it and by each form on disk.

    The loss is P-KL at scale 1, which samples allow; everything is in float32.  ``CE`` and ``KD`` are those of the last
    steps, in nats a token and a chunk; of samples the latter's value, unlike its gradient, is too large.

    Args:
        folder: for everything but the teacher, which stays in the cache.
        steps: of a student.
        teacher_steps: of the teacher, on cross-entropy alone.
    """
    run = _Trainings(folder.absolute(), steps, teacher_steps)
    teacher = _forked(folder / "teacher", run.teacher)
    size = run.held_out_bytes()
    for form in ("colocated", *FORMATS):
        cache: dict[str, Any] = (
            {} if form == "colocated" else _forked(folder / f"states-{form}", run.fill, teacher, form)
        )
        history = _forked(folder / f"log-{form}", run.student, teacher, form)
        trained = [record for record in history if "ce" in record][-LAST:]
        held_out = [record for record in history if "held_out_ce" in record][-1]
        ce, kd = (sum(record[name] for record in trained) / len(trained) for name in ("ce", "kd"))
        bits = held_out["held_out_ce"] * size["tokens"] / size["bytes"] / math.log(2)
        yield {
            "form": form,
            **cache,
            "CE": ce,
            "KD": kd,
            "held-out bits a byte": bits,
            "seconds a step": _middle(history),
        }


def _middle(history: list[dict[str, Any]]) -> float:
    seconds = sorted(record["seconds"] for record in history if "ce" in record)
    return seconds[len(seconds) // 2]


class _Trainings:
    """What each fork does."""

    def __init__(self, folder: Path, steps: int, teacher_steps: int) -> None:
        self.folder, self.steps, self.teacher_steps = folder, steps, teacher_steps
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / "text.jsonl"
        file.write_text("".join(json.dumps({"text": text}) + "\n" for text in [*tiny_text.documents()][::EVERY]))
        tiny_text.student_tokenizer()
        tiny_text.teacher_tokenizer()
        self.paths = [str(file)]

    def _parts(self, steps: int) -> Any:
        """The recipe with this text, evaluated at its end."""
        recipe = xtoken_tiny()
        recipe.data.text.paths, recipe.data.text.held_out, recipe.data.text.workers = self.paths, 0.1, 0
        recipe.data.micro_batch_size = recipe.data.global_batch_size = BATCH
        recipe.trainer.max_steps = recipe.trainer.val_check_interval = steps
        recipe.optim.lr_scheduler.warmup_steps = min(20, steps // 3)
        return recipe

    def _text(self) -> DataConfig:
        text = fdl.build(self._parts(self.steps).data.text)
        assert isinstance(text, DataConfig)
        return text

    def held_out_bytes(self) -> dict[str, int]:
        """Labelled tokens of the held-out text, and the bytes that they stand for."""
        student, teacher = (load_vocabulary(of()) for of in (tiny_text.student_tokenizer, tiny_text.teacher_tokenizer))
        _, held_out = self._text().build(student, [Tokenization(teacher)])
        assert held_out is not None
        labels = [token for i in range(len(held_out)) for token in held_out[i].student.labels.flatten().tolist()]
        own = [token for token in labels if token >= 0]
        return {"tokens": len(own), "bytes": sum(len(student.token_bytes[token] or b"") for token in own)}

    def teacher(self) -> str:
        """The checkpoint of the teacher."""
        data, trainer, optim = (
            fdl.build(part) for one in [self._parts(self.teacher_steps)] for part in (one.data, one.trainer, one.optim)
        )
        return str(train_teacher(tiny_text.teacher_tokenizer(), data, trainer, optim, self.teacher_steps))

    def fill(self, teacher: str, form: str) -> dict[str, Any]:
        """``xtoken cache`` in one form; what a token of it takes on the disk."""
        student = load_vocabulary(tiny_text.student_tokenizer())
        plan = {"path": teacher, "dtype": "fp32"}
        folder = self.folder / f"states-{form}" / "states"
        report = cache_text(plan, self._text(), student, (), folder, form, BATCH)
        size = sum(path.stat().st_size for path in folder.rglob("*.safetensors"))
        return {"bytes a token": size / report.tokens}

    def student(self, teacher: str, form: str) -> list[dict[str, Any]]:
        """The history of a training by one form."""
        source = {} if form == "colocated" else {"source": "cached"}
        cache = CacheConfig(str(self.folder / f"states-{form}" / "states")) if source else CacheConfig()
        recipe = self._parts(self.steps)
        run = nl.NeMoLogger(
            log_dir=str(self.folder), name=f"run-{form}", use_datetime_version=False,
            ckpt=nl.ModelCheckpoint(every_n_train_steps=self.steps + 1, save_last=False, save_top_k=0, monitor="step"),
        )  # fmt: skip
        train_one(
            fdl.build(recipe.model),
            fdl.build(recipe.data),
            fdl.build(recipe.trainer),
            TeacherConfig(path=teacher, loss="p_kl", cache=cache, **source),
            ObjectiveConfig(scale=1.0),
            fdl.build(recipe.optim),
            run,
            nl.AutoResume(resume_if_exists=False, resume_ignore_no_checkpoint=True),
        )
        return read_history(self.folder / f"run-{form}")


def _forked(folder: Path, work: Callable[..., Any], *arguments: Any) -> Any:
    """What ``work`` gives, of plain data, in a process of its own, whose words go to a file in ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    process = multiprocessing.get_context("fork").Process(target=_child, args=(folder, work, arguments))
    process.start()
    process.join()
    if process.exitcode:
        log = (folder / "log.txt").read_text("utf-8", "replace")
        raise RuntimeError(f"{work.__name__} ended with status {process.exitcode}:\n{log[-3000:]}")
    return json.loads((folder / "result.json").read_text("utf-8"))


def _child(folder: Path, work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    log = os.open(folder / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    for stream in (1, 2):
        os.dup2(log, stream)
    status = 1
    try:
        result = work(*arguments)
        (folder / "result.json").write_text(json.dumps(result), "utf-8")
        status = 0
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # NeMo's exit handlers are the parent's
