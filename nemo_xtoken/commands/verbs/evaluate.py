"""``xtoken evaluate``: a student's scores on the paper's tasks beside the paper's table, and those of a run."""

import dataclasses
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemo_xtoken.commands.verb import Option, UsageError, Verb
from nemo_xtoken.commands.verbs.import_model import TRUST
from nemo_xtoken.errors import InputError
from nemo_xtoken.limits import LONGEST_SEQUENCE, MOST_STEPS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nemo_xtoken.evaluate.benchmark_columns import Column
    from nemo_xtoken.evaluate.task_settings import Settings

__all__ = ["VERB"]

#: More than a model has positions for, or any task has questions.
MOST_SHOTS, MOST_QUESTIONS = 10_000, 10_000_000


def _say(stage: str) -> None:
    if os.environ.get("RANK", "0") == "0":  # torchrun starts several, which all say the same
        print(stage, file=sys.stderr, flush=True)


def _run(arguments: Mapping[str, Any]) -> int:
    from nemo_xtoken.evaluate.benchmark_columns import check_tasks, read_columns
    from nemo_xtoken.evaluate.task_settings import Settings

    what = [name for name in ("model", "run", "fetch") if arguments[name]]
    if len(what) != 1:
        raise UsageError(f"{' and '.join(f'{w}=' for w in what) or 'nothing'} is given: one of model=, run= and fetch=")
    _check_words(arguments, what[0])
    columns = read_columns(arguments["tasks"])
    check_tasks(columns)
    names = ("shots", "limit", "chat", "dtype", "max_length", "data", "batch_size", "device")
    settings = Settings(**{name: arguments[name] for name in names})
    if what == ["fetch"]:
        return _fetch(columns, Path(arguments["fetch"]))
    if what == ["run"]:
        return _evaluate_run(arguments, columns, settings)
    return _evaluate_model(arguments, columns, settings)


#: Arguments that are for one of model=, run= and fetch= alone.
ONLY = {
    **dict.fromkeys(("step", "every", "watch", "until", "submit", "keep", "trust"), ("run",)),
    **dict.fromkeys(("out", "beside"), ("model",)),
}


def _check_words(arguments: Mapping[str, Any], what: str) -> None:
    defaults = {option.name: option.default for option in VERB.options}
    for name, value in arguments.items():
        if value != defaults[name] and what not in ONLY.get(name, (what,)):
            raise UsageError(f"{name}= goes with {ONLY[name][0]}=, not with {what}=")
    if what == "run" and os.environ.get("WORLD_SIZE", "1") != "1":
        raise UsageError("run= is for one process: export a checkpoint (xtoken export), and evaluate model= in several")
    if arguments["step"] is not None and arguments["watch"]:
        raise UsageError("step= names one checkpoint, watch=true waits for more: leave one out")


def _fetch(columns: "Sequence[Column]", folder: Path) -> int:
    from nemo_xtoken.evaluate.harness import quiet, sources_of
    from nemo_xtoken.evaluate.local_data import fetch

    sources = sources_of(columns)
    with quiet():
        from datasets import load_dataset

        written = fetch(
            sources, folder, load_dataset, lambda source: _say(f"fetching {source.path} {source.subset or ''}")
        )
    print(f"{written} files written; evaluate with data={folder}")
    return 0


def _evaluate_model(arguments: Mapping[str, Any], columns: "Sequence[Column]", settings: "Settings") -> int:
    from rich.console import Console

    from nemo_xtoken.evaluate.results import read_scores
    from nemo_xtoken.evaluate.scored_model import default_out, evaluate_model
    from nemo_xtoken.evaluate.table import as_json, scores_table

    beside = {}
    for name in filter(None, (arguments["beside"] or "").split(",")):
        found = read_scores(Path(name))
        if found is None:
            raise InputError(f"no file {name}", "one that `xtoken evaluate` wrote", "correct beside=")
        beside[found.model if found.model not in beside else name] = found
    model = arguments["model"]
    out = Path(arguments["out"]) if arguments["out"] else default_out(model, settings)
    scores = evaluate_model(model, columns, settings, out, arguments["again"], say=_say)
    if os.environ.get("RANK", "0") != "0":
        return 0
    if arguments["json"]:
        print(json.dumps(as_json(scores, beside), indent=2))
        return 0
    console = Console()
    console.print(scores_table(scores, columns, beside))
    console.print(f"numbers  {out}", soft_wrap=True, highlight=False)
    return 0


def _evaluate_run(arguments: Mapping[str, Any], columns: "Sequence[Column]", settings: "Settings") -> int:
    import functools

    from rich.console import Console

    from nemo_xtoken.evaluate import suite as runs
    from nemo_xtoken.report.scores import evaluations_table
    from nemo_xtoken.run.records import read_evaluations

    run, command = Path(arguments["run"]), arguments["submit"]
    until, ended = _until(arguments["until"])
    runs.find_checkpoints(run)  # raises if it is not a run
    if command is None:
        from nemo_xtoken.evaluate.harness import check_harness

        check_harness()
        handle: Any = functools.partial(
            runs.evaluate_checkpoint,
            run,
            columns=columns,
            settings=settings,
            again=arguments["again"],
            keep=arguments["keep"],
            export=functools.partial(runs.export_checkpoint, trust=arguments["trust"]),
            say=_say,
        )
    else:
        words = [f"tasks={arguments['tasks']}", *settings.words()]
        words += [f"{name}=true" for name in ("again", "keep", "trust") if arguments[name]]
        handle = functools.partial(runs.submit, run, words=words, command=command, say=_say)
    refused: list[int] = []
    if arguments["watch"]:
        more = {} if ended is None else {"ended": ended}
        _say(f"watching {run / 'checkpoints'}")
        refused = runs.watch(run, handle, arguments["every"], until, say=_say, **more)
    else:
        for checkpoint in runs.chosen(runs.find_checkpoints(run), arguments["every"], arguments["step"]):
            handle(checkpoint)
    records = read_evaluations(run)
    if arguments["json"]:
        json.dump(records, sys.stdout, indent=2)
        print()
    elif records:
        Console().print(evaluations_table(records, f"Evaluation of {run}"))
    return 1 if refused else 0


def _until(text: str | None) -> tuple[int | None, Any]:
    """A number of steps to stop after, or what says that the run has ended; neither: never."""
    from nemo_xtoken.evaluate.suite import until_ended

    if text is None or text == "stdin":
        return None, until_ended(sys.stdin) if text else None
    if not text.isdecimal():
        raise UsageError(f"until={text!r}: a number of steps, or stdin, is expected")
    return int(text), None


VERB = Verb(
    name="evaluate",
    summary="score a student on the paper's tasks, beside the paper's table",
    description=(
        "Runs lm-evaluation-harness on a Hugging Face checkpoint: MMLU, GSM8k, MATH, Winogrande and HellaSwag with "
        "three examples before every question, as in the paper, and prints the paper's table with the student's row "
        "below it. A column is written to the file of scores as soon as it has ended and is not run again. Several "
        "GPUs share the questions of model= under `torchrun --nproc-per-node 8 -m nemo_xtoken evaluate ..`. With run= "
        "it evaluates the checkpoints of a training run, each once; with watch=true it waits for more, beside the "
        "training and outside of it, whatever its layout. Needs the extra `evaluate`; run= needs NeMo as well."
    ),
    options=(
        Option("model", "a folder in Hugging Face's format, or a hub name"),
        Option("run", "a training run's folder, in place of model="),
        Option(
            "fetch",
            "only write the tasks' data into this folder, for data= on a machine without network",
            writes="folder",
        ),
        Option("tasks", "of mmlu, gsm8k, math, winogrande, hellaswag, and any that lm_eval has", default="all"),
        Option("shots", "examples before every question", int, 3, least=0, most=MOST_SHOTS),
        Option(
            "limit",
            "only so many questions of every task and subject, or below 1 such a share: a trial",
            float,
            above=0,
            most=MOST_QUESTIONS,
        ),
        Option("batch_size", "a number, or auto: as many as fit on the GPU", default="auto"),
        Option("device", "cuda, cuda:1 or cpu; by default a GPU if there is one"),
        Option("data", "a folder of local task data; by default the hub, or its cache"),
        Option("out", "the file of scores; by default evaluation.json in the model's folder", writes="file", adds=True),
        Option("beside", "other files of scores, by commas, for rows beside the paper's"),
        Option("chat", "wrap prompts in the chat template", bool, default=False),
        Option("dtype", "of the weights: auto, float32, bfloat16 or float16", default="auto"),
        Option(
            "max_length",
            "tokens of a prompt and its answer; longer ones lose their beginning",
            int,
            8192,
            least=1,
            most=LONGEST_SEQUENCE,
        ),
        Option("step", "run=: only the checkpoint after so many steps", int, least=1, most=MOST_STEPS),
        Option("every", "run=: only those after a multiple of so many steps", int, 1, least=1, most=MOST_STEPS),
        Option("watch", "run=: wait for new checkpoints", bool, default=False),
        Option(
            "until",
            "watch: end after the checkpoint of so many steps; `stdin`: when standard input ends",
            goes_with="watch",
        ),
        Option("submit", "run=: give each to a command, such as 'sbatch --gpus=1 --wrap', instead of doing it here"),
        Option("keep", "run=: keep the exported models", bool, default=False),
        dataclasses.replace(TRUST, help=f"run=: {TRUST.help}"),
        Option("again", "run what the file has already, or replace a file of other settings", bool, default=False),
        Option("json", "print JSON", bool, default=False),
    ),
    examples=(
        ("evaluate model=student", "the five tasks, from the hub"),
        ("evaluate fetch=task-data", "on a machine with network; copy the folder"),
        ("evaluate model=student data=task-data tasks=mmlu,gsm8k beside=base/evaluation.json", "without network"),
        ("evaluate model=student limit=20 device=cpu", "a trial"),
        ("evaluate run=runs/mine watch=true every=1000", "beside a training run, in a job of its own"),
        ("evaluate run=runs/mine watch=true submit='sbatch --gpus=1 --time=2:00:00 --wrap'", "a job a checkpoint"),
    ),
    run=_run,
)
