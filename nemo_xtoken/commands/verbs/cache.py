"""``xtoken cache``: a teacher's states on disk, so that training has no teacher; and what is there."""

import importlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemo_xtoken.commands.verb import PART_OPTIONS, Option, UsageError, Verb
from nemo_xtoken.errors import InputError
from nemo_xtoken.limits import LARGEST_BATCH, LONGEST_SEQUENCE, MOST_RANKS
from nemo_xtoken.run.layout import ParallelSizes
from nemo_xtoken.teachers.source_settings import FORMATS

if TYPE_CHECKING:
    from nemo_xtoken.data.config import DataConfig

__all__ = ["MODEL", "VERB", "plan_of"]

PREFIX = "data."
#: Settings of the data that are arguments by themselves as well.
OWN = ("paths", "student_length", "teacher_length")


def _run(arguments: Mapping[str, Any]) -> int:
    if arguments["action"] == "inspect":
        return _inspect(arguments)
    if missing := [name for name in ("teacher", "paths") if not arguments[name]]:
        raise UsageError(f"'cache' needs {' and '.join(f'{name}=' for name in missing)}")
    from nemo_xtoken.launch.ranks import adopt_slurm_ranks
    from nemo_xtoken.launch.unfinished import stopped_by_signal

    environment = dict(os.environ)
    adopt_slurm_ranks(os.environ)
    from nemo_xtoken.data.part import array_part

    part, parts = array_part(arguments["part"], arguments["parts"], environment)
    text = data_config(arguments)
    with stopped_by_signal():
        report = _cache(arguments, text, part, parts)
    if os.environ.get("RANK", "0") == "0":
        if arguments["json"]:
            print(json.dumps(report.as_dict()))
        else:
            _print(report)
    return 0


def data_config(arguments: Mapping[str, Any]) -> "DataConfig":
    """The text, as the run that the states are for has it.

    Raises:
        UsageError: an argument that is none.
        InputError: a value that cannot be.
    """
    from nemo_xtoken.data.config import DataConfig
    from nemo_xtoken.run.values import made

    values: dict[str, Any] = {}
    for word in arguments["rest"]:
        name, _, value = word.partition("=")
        if not name.startswith(PREFIX):
            raise UsageError(f"'cache' has no argument {name!r}; settings of the data are {PREFIX}NAME=VALUE")
        short = name.removeprefix(PREFIX).removeprefix("text.")
        if short in values or (short in OWN and arguments[short] is not None):
            raise UsageError(f"{short} is given twice, the second time as {word}")
        values[short] = _value(value)
    values["paths"] = [part.strip() for part in arguments["paths"].split(",")]
    values |= {name: arguments[name] for name in OWN[1:] if arguments[name] is not None}
    values["progress"] = os.environ.get("RANK", "0") == "0" and values.get("progress", True)
    text = made("nemo_xtoken.data.config.DataConfig", values, "data")
    assert isinstance(text, DataConfig)
    return text


def _value(text: str) -> Any:
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def _text(arguments: Mapping[str, Any], text: "DataConfig") -> tuple[Any, Any, list[Any]]:
    """The text, checked; the student's vocabulary or None; and the tokenizations of the other teachers."""
    from nemo_xtoken.data.config import Tokenization
    from nemo_xtoken.vocab.loading import load_vocabulary

    text.check()
    student = None if arguments["student"] is None else load_vocabulary(arguments["student"])
    beside = []
    for word in (arguments["beside"] or "").split(",") if arguments["beside"] else []:
        name, _, length = word.partition(":")
        if length and not length.isdecimal():
            raise InputError(f"beside={word}", "TOKENIZER or TOKENIZER:LENGTH", "correct it")
        beside.append(Tokenization(load_vocabulary(name), int(length) if length else None))
    return text, student, beside


def _cache(arguments: Mapping[str, Any], text: "DataConfig", part: int, parts: int) -> Any:
    _, student, beside = _text(arguments, text)
    standalone = importlib.import_module("nemo_xtoken.plugin.standalone")  # loads torch and Megatron
    return standalone.cache_text(
        plan_of(arguments),
        text,
        student,
        beside,
        Path(arguments["out"]).expanduser(),
        arguments["format"],
        arguments["micro_batch_size"],
        part,
        parts,
    )


def plan_of(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a ``TeacherPlan``."""
    tensor, pipeline, context, expert = (arguments[n] for n in ("tensor", "pipeline", "context", "expert"))
    sizes = ParallelSizes(tensor, pipeline, context, expert, expert_tensor=tensor)
    plan = {"path": arguments["teacher"]} | {name: arguments[name] for name in ("tokenizer", "dtype")}
    plan |= {"sizes": sizes, "sequence_parallel": arguments["sequence_parallel"], "fp8": arguments["fp8"]}
    return plan | {"service": arguments.get("service")}


def _print(report: Any) -> None:
    print(f"{report.tokens:,} tokens in {report.folder}, {report.bytes_a_token:,} bytes each as {report.format}")
    if report.new_tokens:
        speed = report.new_tokens / max(report.seconds, 1e-9)
        print(f"  new             {report.new_tokens:,} tokens in {report.seconds:.1f} s, {speed:,.0f} a second")
    else:
        print("  new             nothing: all of it was there")
    print(f"train with: teacher.source=cached teacher.cache.folder={report.folder}")


def _inspect(arguments: Mapping[str, Any]) -> int:
    from nemo_xtoken.teachers.store.store_report import inspect_store

    folder = Path(arguments["out"]).expanduser()
    found = inspect_store(folder, arguments["verify"])
    covered = _coverage(arguments, folder, found.fingerprint.tokenizer) if arguments["paths"] else None
    if arguments["json"]:
        more = {} if covered is None else {"coverage": covered.as_dict()}
        print(json.dumps(found.as_dict() | more))
    else:
        print("\n".join([*found.lines(), *([] if covered is None else covered.lines())]))
    return 1 if found.damaged else 0


def _coverage(arguments: Mapping[str, Any], folder: Path, digest: str) -> Any:
    """How much of a text is there.

    Raises:
        UsageError: no teacher's tokenizer.
        InputError: another one than that of the states, or a text that cannot be read.
    """
    from nemo_xtoken.teachers.store.store_report import coverage_of
    from nemo_xtoken.vocab.loading import load_vocabulary

    if not arguments["tokenizer"]:
        raise UsageError("'cache inspect' with paths= needs tokenizer=, the teacher's")
    teacher = load_vocabulary(arguments["tokenizer"])
    if teacher.digest != digest:
        raise InputError(
            f"the tokenizer {teacher.name} ({teacher.digest[:12]}), and states by another ({digest[:12]})",
            "that of the teacher",
            "correct tokenizer=",
        )
    text, student, beside = _text(arguments, data_config(arguments))
    reading = importlib.import_module("nemo_xtoken.training.alone.caching")  # loads torch
    return coverage_of(folder, [one.pieces() for one in reading.readable_text(text, student, teacher, beside)])


#: What is said of the model of a teacher by itself.
MODEL = (
    Option("tokenizer", "its tokenizer; default that of the checkpoint"),
    Option("dtype", "the precision of the run", default="bf16", choices=("bf16", "fp32")),
    Option("fp8", "its layers compute in FP8 by Transformer Engine, as teacher.fp8 of the run", bool, False),
    Option("tensor", "tensor-parallel size of the teacher", int, 1, least=1, most=MOST_RANKS),
    Option("pipeline", "pipeline-parallel size", int, 1, least=1, most=MOST_RANKS),
    Option("context", "context-parallel size", int, 1, least=1, most=MOST_RANKS),
    Option("expert", "expert-parallel size", int, 1, least=1, most=MOST_RANKS),
    Option("sequence_parallel", "cut activations over the tensor-parallel ranks", bool, False),
)

VERB = Verb(
    name="cache",
    summary="keep a teacher's hidden states on disk, so that training needs no teacher (loads NeMo)",
    description=(
        "Runs a teacher over text and writes its last hidden states. With student= it reads what a run with this "
        "student, these lengths and this data reads, piece by piece; without, it reads all documents whole, for any "
        "student (then train with teacher.cache.context=document). States are found by the text's digest and the "
        "teacher's fingerprint: order, batches and layout of the run are free. What is there is not computed again, so "
        "the same command goes on after a kill, and makes a deleted file again. Start it by torchrun or srun for "
        "several processes; copies of the teacher share the work. In a Slurm array each task takes a part. "
        "`cache inspect out=FOLDER` says what is there, and with the text's arguments and tokenizer= how much of it."
    ),
    actions=("inspect",),
    options=(
        Option("teacher", "the teacher's checkpoint, as teacher.path of the run"),
        *MODEL,
        Option("service", "the folder of its `xtoken serve`: states come from there, and no model is loaded"),
        Option("student", "the student's tokenizer: cut documents as its run does; default: whole documents"),
        Option("paths", "files, globs, folders, hf:owner/name; several with commas between them"),
        Option("out", "the folder of the states", required=True),
        Option(
            "teacher_length",
            "positions of a sample on the teacher's side (data.text.teacher_length)",
            int,
            least=2,
            most=LONGEST_SEQUENCE,
        ),
        Option(
            "student_length",
            "the same on the student's side (data.text.student_length)",
            int,
            least=2,
            most=LONGEST_SEQUENCE,
        ),
        Option("beside", "tokenizers of the run's other teachers, TOKENIZER:LENGTH, with commas between them"),
        Option("micro_batch_size", "samples at a time", int, 1, least=1, most=LARGEST_BATCH),
        Option(
            "format",
            "how states are stored; default as they are: nothing is lost. sampled: random samples of the next token, "
            "for losses that are linear in the teacher's probabilities",
            choices=FORMATS,
        ),
        *PART_OPTIONS,
        Option("verify", "inspect: compare all states with their checksums", bool, False),
        Option("json", "print the counts as JSON", bool, False),
    ),
    examples=(
        (
            "cache teacher=nemo/qwen3-4b student=tok/llama3 paths=web teacher_length=4096 student_length=4096 "
            "out=/shared/states",
            "what a run with this data reads",
        ),
        ("cache teacher=nemo/qwen3-4b paths=web teacher_length=8192 out=/shared/states", "whole documents"),
        (
            "cache teacher=nemo/qwen3-32b service=runs/one/service paths=web teacher_length=8192 out=/shared/states",
            "by replicas that run already",
        ),
        ("cache inspect out=/shared/states", "what is there: tokens, bytes, teacher"),
        (
            "cache inspect out=/shared/states tokenizer=tok/qwen3 student=tok/llama3 paths=web teacher_length=4096 "
            "student_length=4096",
            "and how much of what a run reads",
        ),
    ),
    run=_run,
    rest="data.NAME=VALUE sets the data's other settings as in the run: data.seed=1, data.held_out=0.01, ..",
)
