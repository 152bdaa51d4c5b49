"""Trains one student and measures it.

In plain PyTorch with transformers' model and the product's public class, `CrossTokenizerLoss`: the losses, the pass
over tiles, alignment and the tools that make the student are those of the recipes; trainer and optimizer are not.
"""

import json
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nemo_xtoken import CrossTokenizerLoss
from nemo_xtoken.files import atomic_path, digest_of
from nemo_xtoken.losses.base import ModelOutput
from nemo_xtoken.losses.options import DivergenceOptions
from nemo_xtoken.objective.terms import cross_tokenizer_loss
from nemo_xtoken.objective.text_batch import TextBatch
from nemo_xtoken.objective.tiles import rows_within
from nemo_xtoken.vocab.loading import load_vocabulary

from . import models
from .corpora import Texts
from .measures import bits_per_byte, continued, head_of
from .plan import ARMS, SETTINGS, Arm, Length, Run, settings_of

__all__ = ["train"]

#: Points of a curve, about; each is the mean of as many steps.
POINTS = 80


class _Objective:
    """The loss of an arm: cross-entropy alone, or with what the teacher says.

    Args:
        stored: the teacher's hidden states.
        teacher_weight: of its output layer.
    """

    def __init__(
        self, arm: Arm, model: Any, student: Path, teacher: Path, stored: models.Stored, teacher_weight: Tensor | None
    ) -> None:
        self.model, self.stored, self.teacher_weight = model, stored, teacher_weight
        self.vocabularies = load_vocabulary(str(student)), load_vocabulary(str(teacher))
        self.loss = None
        if arm.loss is not None:
            self.loss = CrossTokenizerLoss(
                *self.vocabularies, loss=arm.loss, scale=arm.scale, ce_weight=arm.ce_weight,
                options=DivergenceOptions(boundary=True) if arm.boundary else None,
            )  # fmt: skip

    def __call__(self, texts: list[str]) -> tuple[Tensor, dict[str, float]]:
        """The value to call ``backward`` on, and what a curve has of it."""
        batch = TextBatch.of(texts, *self.vocabularies).to(self.model.device)
        hidden = models.states_of(self.model, batch.student_tokens)
        tokens = int((batch.student_labels >= 0).sum())
        size = sum(len(text.encode()) for text in texts)
        if self.loss is None:
            head = head_of(self.model, self.vocabularies[0])
            terms = cross_tokenizer_loss(
                ModelOutput(hidden.flatten(0, 1), head), batch.student_labels, (), 1 / tokens,
                tile_rows=rows_within(None, head, []),
            )  # fmt: skip
            return terms.objective, {"tokens": tokens, "bytes": size, "ce": float(terms.ce.total) / tokens}
        lengths = (batch.teacher_labels >= 0).sum(1).tolist()
        said = self.stored.states(texts, batch.teacher_tokens, lengths)
        weight = self.model.get_output_embeddings().weight
        scale = self.loss.scale
        value = self.loss(batch, hidden, said, weight, self.teacher_weight)
        ce, kd = self.loss.means
        return value, {"tokens": tokens, "bytes": size, "ce": ce, "kd": kd, "scale": scale}


def train(
    run: Run, rate: float, length: Length, texts: Texts, work: Path, device: str, say: Callable[[str], None]
) -> dict[str, Any]:
    """Trains a student, or goes on with it where it was stopped, and measures it.

    Args:
        rate: the learning rate.
        work: models that were made, the teachers' states, and the run's own checkpoint.

    Returns:
        everything of the run's file.
    """
    setting, arm = SETTINGS[run.setting], ARMS[run.arm]
    torch.manual_seed(0)
    folder = models.student_folder(setting, arm, texts.assets, work / "models")
    model = models.load(folder, device)
    vocabulary = load_vocabulary(str(folder))
    sizes = {kind: setting.piece.get(kind, length.piece) for kind in (*setting.trained, *setting.others)}
    tuning = run.rate is not None
    watch = {k: texts.held_out(k, sizes[k], length.watched, run.seed) for k in setting.trained}
    last = {k: texts.held_out(k, sizes[k], length.held_out, run.seed) for k in setting.trained}
    if not tuning:
        last |= {kind: texts.held_out(kind, sizes[kind], length.held_out, None) for kind in setting.others}

    def measure(pieces: Mapping[str, list[str]]) -> dict[str, float]:
        model.eval()
        return {kind: round(bits_per_byte(model, vocabulary, pieces[kind]), 5) for kind in pieces}

    found: dict[str, Any] = {"parameters": sum(p.numel() for p in model.parameters())}
    steps = length.tuning_steps if tuning else round(arm.steps_share * length.steps)
    if arm.trained:
        at = [texts.to_train_on(kind, sizes[kind], run.seed) for kind in setting.trained]
        watched = (lambda: {}) if tuning else (lambda: measure(watch))
        key = digest_of(json.dumps([settings_of(run, length), rate, str(models.precision(device))]))[:16]
        if arm.embeddings:
            models.freeze_all_but_embeddings(model)
        looks, rate = max(1, round(arm.steps_share * length.looks)), arm.rate_factor * rate
        found |= _steps(run, arm, model, folder, rate, steps, looks, at, texts, work, device, watched, say, key)
    else:
        found["looks"] = [{"step": 0, "bits": measure(watch)}]
    found["bits"] = measure(last)
    if not tuning:
        found["continued"] = {prompt: continued(model, vocabulary, prompt) for prompt in setting.prompts}
    return found


def _steps(
    run: Run, arm: Arm, model: Any, folder: Path, rate: float, steps: int, looks: int,
    at: list[Callable[[int], str]], texts: Texts, work: Path, device: str,
    watched: Callable[[], dict[str, float]], say: Callable[[str], None], key: str,
) -> dict[str, Any]:  # fmt: skip
    teacher_folder = texts.assets / SETTINGS[run.setting].teacher
    stored = models.Stored(
        work / "states" / teacher_folder.name,
        lambda: models.load(teacher_folder, device).eval(),
        models.precision(device),
    )
    teacher_weight = None
    if arm.loss is not None:
        teacher = models.load(teacher_folder, device)
        teacher_weight = teacher.get_output_embeddings().weight.detach()
        del teacher
    objective = _Objective(arm, model, folder, teacher_folder, stored, teacher_weight)
    trainer = models.Trainer(model, rate, steps)
    checkpoint = work / "runs" / run.setting / run.stem / key
    history, seen = _restored(checkpoint, trainer, objective)
    if history:
        say(f"goes on at step {len(history)}")
    every = max(1, steps // looks)
    model.train()
    for step in range(len(history), steps):
        began, cpu = time.perf_counter(), time.process_time()
        value, row = objective([piece(step) for piece in at])
        value.backward()
        row["norm"] = trainer.step(step)
        row |= {"seconds": time.perf_counter() - began, "cpu": time.process_time() - cpu}
        history.append(row)
        if step < 3 or (step + 1) % 20 == 0:
            say(f"step {step + 1}/{steps}: " + ", ".join(f"{key} {x:.4g}" for key, x in row.items()))
        if (step + 1) % every == 0 and step + 1 < steps:
            seen.append({"step": step + 1, "bits": watched()})
            model.train()
            trainer.save(checkpoint / f"{step + 1}.safetensors")
            _write(checkpoint / "history.json", {"step": step + 1, "history": history, "looks": seen})
            for old in checkpoint.glob("*.safetensors"):
                if old.stem != str(step + 1):
                    old.unlink()
    seen.append({"step": steps, "bits": watched()})
    return {
        "steps": steps,
        "tokens": sum(row["tokens"] for row in history),
        "bytes": sum(row["bytes"] for row in history),
        "seconds_a_step": round(statistics.median(row["seconds"] for row in history), 3),
        "cpu_seconds_a_step": round(statistics.median(row["cpu"] for row in history), 3),
        "looks": seen,
        "curve": _points(history),
    }


def _restored(folder: Path, trainer: models.Trainer, objective: _Objective) -> tuple[list[dict[str, float]], list[Any]]:
    """Steps and looks until the last checkpoint, which the trainer takes."""
    try:
        kept = json.loads((folder / "history.json").read_text("utf-8"))
    except FileNotFoundError:
        return [], []
    trainer.restore(folder / f"{kept['step']}.safetensors")
    history = kept["history"]
    if objective.loss is not None:
        objective.loss.go_on(history[-1]["ce"], history[-1]["kd"])
    return history, kept["looks"]


def _points(history: list[dict[str, float]]) -> list[dict[str, float]]:
    """Means over runs of steps."""
    many = max(1, -(-len(history) // POINTS))
    parts = [history[i : i + many] for i in range(0, len(history), many)]
    points = []
    for number, part in enumerate(parts):
        point: dict[str, float] = {"step": min((number + 1) * many, len(history))}
        for key in part[0]:
            total = sum(row[key] for row in part)
            point[key] = total if key in ("tokens", "bytes") else float(f"{total / len(part):.5g}")
        points.append(point)
    return points


def _write(file: Path, what: Any) -> None:
    with atomic_path(file) as temporary:
        temporary.write_text(json.dumps(what), "utf-8")
