"""Evaluating one model: what is still missing in its file of scores is run, column by column."""

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from nemo_xtoken.errors import InputError
from nemo_xtoken.evaluate.benchmark_columns import Column
from nemo_xtoken.evaluate.harness import Harness, harness_version
from nemo_xtoken.evaluate.results import Scores, fresh, identity_of, read_scores
from nemo_xtoken.evaluate.task_settings import Settings
from nemo_xtoken.weights.folder import ModelFolder

__all__ = ["default_out", "evaluate_model"]


def default_out(model: str, settings: Settings) -> Path:
    """The default file for scores: in the model's folder, or here for a hub's model; partial scores have their own."""
    name = "evaluation" + ("" if settings.limit is None else f"-limit{settings.limit:g}")
    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder / f"{name}.json"
    return Path(f"{name}-{re.sub(r'[^A-Za-z0-9._-]+', '-', model)}.json")


def check_out(out: Path) -> None:
    """
    Raises:
        InputError: scores cannot be written there; checked before they are computed.
    """
    place = next(p for p in (out.parent, *out.parent.parents) if p.exists())
    if out.is_dir() or not place.is_dir() or not os.access(place, os.W_OK):
        raise InputError(f"{out} cannot be written", "a file in a folder of yours", "name one with out=results.json")


def evaluate_model(
    model: str,
    columns: Sequence[Column],
    settings: Settings,
    out: Path | None = None,
    again: bool = False,
    identity: str | None = None,
    prepare: Callable[[], Path] | None = None,
    say: Callable[[str], None] = lambda stage: None,
) -> Scores:
    """Runs the columns that ``out`` does not have yet, and writes each as soon as it has ended.

    Where ``torchrun`` or ``accelerate launch`` started several processes, they share the questions and the first one
    writes; every one of them returns what was there before and its own (only the first one's are the scores).

    Args:
        model: a folder in Hugging Face's format, or a name on the hub.
        out: the file; `default_out` when None.
        again: run the columns also where the file has them, and replace a file of other settings.
        identity: of the model, where its files do not tell: `identity_of` when None.
        prepare: makes the model's folder, called only when there is something to run; then ``model`` is but its name.
        say: called with a line on what is being done.

    Raises:
        InputError: no model, no data, no task, no harness; a file that holds scores of another model or other settings.
    """
    out = out or default_out(model, settings)
    check_out(out)
    folder = None if prepare else ModelFolder(model).path
    scores = fresh(model, identity or identity_of(model), settings, harness_version())
    before = read_scores(out)
    if before is not None:
        difference = before.same_run(scores)
        if difference and not again:
            raise InputError(
                f"{out} has scores that differ in {difference}",
                "one model and the same settings in a file",
                "name another file with out=FILE, or replace it with --again",
            )
        if not difference:
            scores.columns = before.columns
    missing = [column for column in columns if again or column.key not in scores.columns]
    if not missing:
        return scores
    say(f"reading the data of {', '.join(column.title for column in missing)}")
    harness = Harness(missing, settings)
    folder = folder or (prepare() if prepare else None)
    say(f"loading {model}")
    harness.open(str(folder))
    for column in missing:
        say(f"running {column.title}")
        found = harness.run(column)
        if harness.first:
            scores.add(out, column.key, found)
    return scores
