"""How far a training is, as every loop tells it: steps with their means, evaluations on held-out text between them."""

import logging
import time
from collections.abc import Mapping
from types import TracebackType

from nemo_xtoken.progress import Phase
from nemo_xtoken.run.records import teacher_names

__all__ = ["TrainingProgress", "step_values"]

logger = logging.getLogger(__name__)


class TrainingProgress:
    """The phases of a training: a context around the loop, which calls it on every rank; the first tells.

    Args:
        title: what is trained, in a few words.
        steps: of the whole run.
        every: steps between two lines in a log.
        shown: on the first rank.
    """

    def __init__(self, title: str, steps: int, every: int, shown: bool) -> None:
        self._loading = Phase("loading models", shown=shown, announced=False)
        self._steps = Phase(title, steps, "steps", shown=shown, announced=False)
        self._held_out = Phase("held-out text", unit="batches", shown=shown, announced=False)
        self._every = max(every, 1)
        self._tokens, self._since = 0.0, 0.0
        self._held_out_ce = ""
        self._values: dict[str, str] = {}

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
        if kind is None and self._loading.running:
            self._steps.note("was done before")
        for phase in (self._held_out, self._steps, self._loading):
            if kind is None:
                phase.end()
            else:
                phase.fail()
        if kind is not None and issubclass(kind, SystemExit | KeyboardInterrupt) and self._steps.shown:
            done = f"stopped at step {self._steps.done:,}"
            logger.info("%s: %s; the same command goes on from the last checkpoint", self._steps.title, done)

    def begin(self, step: int) -> None:
        """Training begins, or goes on after a step."""
        self._loading.end()
        self._steps.begin(step)
        self._tokens, self._since = 0.0, time.monotonic()
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
        line = number % self._every == 0 or number == self._steps.total
        self._values = step_values(record, speed, rate, self._held_out_ce)
        self._steps.at(number, self._values, line)
        if line:
            self._tokens, self._since = 0.0, now

    def evaluate(self) -> None:
        """An evaluation on held-out text begins."""
        self._held_out.begin()

    def evaluated(self, means: Mapping[str, float]) -> None:
        """It has ended.

        Args:
            means: ``held_out_ce, held_out_accuracy``; nothing: there was no text.
        """
        self._since += self._held_out.seconds  # which were no training
        self._held_out.end()
        if means:
            self._held_out_ce = f"{means['held_out_ce']:.3f}"
            accuracy = f"accuracy {means['held_out_accuracy']:.1%}"
            self._values["held-out"] = self._held_out_ce
            self._steps.at(self._steps.done, self._values)
            self._steps.note(f"after step {self._steps.done:,}: held-out CE {self._held_out_ce}, {accuracy}")


def step_values(record: Mapping[str, float], speed: float, rate: float | None, held_out: str = "") -> dict[str, str]:
    """What a person sees of a step, the most important first.

    Args:
        record: see ``training.step.step_record``.
        speed: the student's tokens a second.
        rate: the learning rate; None: not known.
        held_out: the cross-entropy of the last evaluation; "": there was none.
    """
    names = teacher_names([record])
    values = {"CE": f"{record['ce']:.3f}"}
    if "kd" in record:
        values["KD"] = f"{record['kd']:.3f}"
    if held_out:
        values["held-out"] = held_out
    if len(names) > 1:
        values |= {f"KD {name}": f"{record[f'kd/{name}']:.3f}" for name in names}
    if "scale" in record:
        values["scale"] = f"{record['scale']:.3g}"
    values["tokens/s"] = f"{speed:,.0f}"
    if rate is not None:
        values["lr"] = f"{rate:.2e}"
    return values
