"""How far a training is, as every loop tells it: steps with their means, evaluations on held-out text between them."""

import logging
import resource
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

import torch

from nemo_xtoken.progress import Phase
from nemo_xtoken.run.teaching import THE_TEACHER
from nemo_xtoken.training.stopped import StoppedRun
from nemo_xtoken.training.watching.samples import Continuation

__all__ = ["TrainingProgress", "step_values"]

logger = logging.getLogger(__name__)

#: After so many without one a step is worth a line in a log, however few steps there were.
SECONDS = 60.0


class TrainingProgress:
    """The phases of a training: a context around the loop, which calls it on every rank; the first tells.

    The line of the last step has the evaluation behind it as well.

    Args:
        title: what is trained, in a few words.
        steps: of the whole run.
        every: steps between two lines in a log.
        shown: on the first rank.
        tracker: told the values as well, on the first rank.
    """

    def __init__(self, title: str, steps: int, every: int, shown: bool, tracker: Any = None) -> None:
        self._tracker = tracker if shown else None
        self._loading = Phase("loading models", shown=shown, announced=False)
        self._steps = Phase(title, steps, "steps", shown=shown, announced=False)
        self._held_out = Phase("held-out text", unit="batches", shown=shown, announced=False)
        self._every = max(every, 1)
        self._tokens, self._since, self._said = 0.0, 0.0, 0.0
        self._held_out_ce = ""
        self._values: dict[str, str] = {}
        self._waits = False  # the line of the last step, for the evaluation

    def __enter__(self) -> "TrainingProgress":
        """Models are built and loaded."""
        if not self._steps.shown:
            logger.info("%s begins", self._steps.title)  # for the log of this rank
        self._steps.begin()
        self._loading.begin()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._tracker is not None:
            self._tracker.close()
        if kind is None and self._loading.running:
            self._steps.note("was done before")
        self._tell_last()
        for phase in (self._held_out, self._steps, self._loading):
            if kind is None:
                phase.end()
            else:
                phase.fail()
        if kind is not None and issubclass(kind, SystemExit | KeyboardInterrupt) and self._steps.shown:
            done = f"stopped at step {self._steps.done:,}; the same command goes on from the last checkpoint"
            logger.info("%s: %s", self._steps.title, error if isinstance(error, StoppedRun) else done)

    def begin(self, step: int) -> None:
        """Training begins, or goes on after a step."""
        self._loading.end()
        self._steps.begin(step)
        self._tokens, self._since, self._said = 0.0, time.monotonic(), time.monotonic()
        if self._tracker is not None:
            self._tracker.begin(step)
        if step:
            self._steps.note(f"goes on after step {step:,}")

    def step(self, record: Mapping[str, float], rate: float | None) -> None:
        """A step has ended.

        Args:
            record: see ``training.step.step_record``.
            rate: the learning rate; None: not known.
        """
        number = int(record["step"])
        self._tokens += record["tokens"]
        now = time.monotonic()
        speed = self._tokens / max(now - self._since, 1e-9)
        self._waits = number == self._steps.total
        line = number % self._every == 0 or now - self._said > SECONDS
        self._values = step_values(record, speed, rate, self._held_out_ce) | {"memory": f"{_gib_used():.1f} GiB"}
        self._steps.at(number, self._values, line and not self._waits)
        if self._tracker is not None:
            more = {"tokens/s": speed, "memory_gib": _gib_used()} | ({} if rate is None else {"lr": rate})
            self._tracker.add(number, {**{k: v for k, v in record.items() if k != "step"}, **more})
        if line:
            self._tokens, self._since, self._said = 0.0, now, now

    def evaluate(self) -> None:
        """An evaluation on held-out text begins."""
        self._held_out.begin()

    def evaluated(self, means: Mapping[str, float]) -> None:
        """It has ended.

        Args:
            means: see ``training.loss_terms.held_out_means``; nothing: there was no text.
        """
        self._since += self._held_out.seconds  # which were no training
        self._held_out.end()
        if means and self._tracker is not None:
            self._tracker.add(self._steps.done, means)
        if means:
            self._held_out_ce = f"{means['held_out_ce']:.3f}"
            said = [f"accuracy {means['held_out_accuracy']:.1%}"]
            said += [f"{name} {value}" for name, value in _distances(means, "held_out_kd", "KD").items()]
            if self._waits:
                self._tell_last({"held-out": f"{self._held_out_ce} ({', '.join(said)})"})
            else:
                more = ", ".join([f"held-out CE {self._held_out_ce}", *said])
                self._steps.note(f"after step {self._steps.done:,}: {more}")
            self._values["held-out"] = self._held_out_ce
            self._steps.at(self._steps.done, self._values)
            self._said = time.monotonic()

    def _tell_last(self, more: Mapping[str, str] | None = None) -> None:
        """The line of the last step, unless it has been told."""
        if self._waits:
            self._waits = False
            self._steps.at(self._steps.done, {**self._values, **(more or {})}, line=True)

    def said(self, samples: Sequence[Continuation]) -> None:
        """What the student makes of beginnings of held-out texts after this step."""
        for one in samples:
            self._steps.note(one.short)
        if samples and self._tracker is not None:
            self._tracker.write("samples", "\n\n".join(one.long for one in samples), self._steps.done)

    def stopped_early(self, step: int, why: str) -> None:
        """The run ends by itself, or has done so before."""
        self._steps.note(f"stopped early after step {step:,} of {self._steps.total:,}: {why}")

    def was_stopped_early(self, step: int, why: str) -> None:
        """The same of a run that is started again."""
        self._loading.end()
        self._steps.begin(step)
        self.stopped_early(step, why)


def _distances(record: Mapping[str, float], key: str, label: str) -> dict[str, str]:
    """The distillation loss of each teacher by its name, after the weighted sum where there are several.

    Args:
        record: with ``KEY`` and ``KEY/NAME``.
    """
    names = [name.partition("/")[2] for name in record if name.startswith(f"{key}/")]
    values = {label: f"{record[key]:.3f}"} if key in record and len(names) != 1 else {}
    for name in names:
        alone = len(names) == 1 and name == THE_TEACHER
        values[label if alone else f"{label} {name}"] = f"{record[f'{key}/{name}']:.3f}"
    return values


def _gib_used() -> float:
    """The most that this process has had: of a GPU's memory where it has one, else of the machine's."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def step_values(record: Mapping[str, float], speed: float, rate: float | None, held_out: str = "") -> dict[str, str]:
    """What a person sees of a step, the most important first.

    Args:
        record: see ``training.step.step_record``.
        speed: the student's tokens a second.
        rate: the learning rate; None: not known.
        held_out: the cross-entropy of the last evaluation; "": there was none.
    """
    values = {"CE": f"{record['ce']:.3f}"} | _distances(record, "kd", "KD")
    if held_out:
        values["held-out"] = held_out
    if "scale" in record:
        values["scale"] = f"{record['scale']:.3g}"
    values["tokens/s"] = f"{speed:,.0f}"
    if rate is not None:
        values["lr"] = f"{rate:.2e}"
    return values
