"""``xtoken prepare``: text tokenised and aligned once, in parts, so that training only reads."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemo_xtoken.commands.verb import PART_OPTIONS, Option, UsageError, Verb
from nemo_xtoken.errors import InputError
from nemo_xtoken.limits import MOST_WORKERS

if TYPE_CHECKING:
    from nemo_xtoken.data.config import DataConfig
    from nemo_xtoken.data.part import PartReport

__all__ = ["VERB"]

_OF_DATA = (
    "format",
    "text_key",
    "messages_key",
    "tools_key",
    "learn",
    "chat_template",
    "text_split",
    "split",
    "indexed_tokenizer",
    "on_error",
    "align",
)
_OF_THE_JOB = ("sbatch", "slurm", "part", "json", "rest")


def _run(arguments: Mapping[str, Any]) -> int:
    for word in arguments["rest"]:
        if not word.startswith("executor."):
            raise UsageError(f"'prepare' has no argument {word.partition('=')[0]!r}")
    if arguments["sbatch"]:
        return _write_script(arguments)
    if arguments["rest"]:
        raise UsageError(f"{arguments['rest'][0]} is for sbatch=FILE only")
    import os

    from nemo_xtoken.data.part import array_part, prepare_part
    from nemo_xtoken.launch.unfinished import stopped_by_signal
    from nemo_xtoken.vocab.loading import load_vocabulary

    part, parts = array_part(arguments["part"], arguments["parts"], os.environ)
    data = _data(arguments)
    student = load_vocabulary(arguments["student"])
    teachers = [load_vocabulary(name) for name in _names(arguments["teacher"], "teacher")]
    with stopped_by_signal():
        report = prepare_part(data, student, teachers, part, parts, verify=arguments["verify"])
    if arguments["json"]:
        print(json.dumps(report.as_dict()))
    else:
        _print(report, data)
    return 0


def _data(arguments: Mapping[str, Any]) -> "DataConfig":
    from nemo_xtoken.data.config import DataConfig
    from nemo_xtoken.data.sources import check_settings_used, resolve_sources
    from nemo_xtoken.sharing.forked_children import cores_here

    workers = arguments["workers"]
    if workers is None:
        cores = cores_here()
        workers = cores if cores > 1 else 0
    options = {name: arguments[name] for name in _OF_DATA if arguments[name] is not None}
    data = DataConfig(_names(arguments["paths"], "paths"), workers=workers, cache_dir=arguments["out"], **options)
    check_settings_used(resolve_sources(data.paths, data.reading))
    return data


def _names(text: str, name: str) -> list[str]:
    names = [part.strip() for part in text.split(",")]
    if not all(names):
        raise InputError(f"{name}={text!r}", "names with commas between them", "correct it")
    return names


def _print(report: "PartReport", data: "DataConfig") -> None:
    from nemo_xtoken.data.prepare import unread_lines
    from nemo_xtoken.data.skipped import Skipped

    where = f" (part {report.part} of {report.parts})" if report.parts > 1 else ""
    print(f"{report.documents:,} documents, {report.characters:,} characters in {report.files:,} files{where}")
    for line in unread_lines(report.unread):
        print(line)
    if report.skipped:
        print(Skipped(dict(report.skipped), list(report.examples)))
    for one in report.teachers:
        tokens = one.student_tokens + one.teacher_tokens
        print(f"{one.name}:")
        print(f"  tokens          {one.student_tokens:,} student, {one.teacher_tokens:,} teacher")
        print(f"  chunks          {one.chunks:,}, {one.scored_chunks:,} of them with a predictor on both sides")
        print(f"  labels in one   {one.student_coverage:.2%} student, {one.teacher_coverage:.2%} teacher")
        if one.without_chunks:
            print(f"  without a chunk {one.without_chunks:,} documents, learned by cross-entropy alone")
        if one.refused:
            print(f"  left out        {one.refused:,} documents, which a chat template cannot render")
        for line in one.told:
            print(f"  told            {line}")
        per_token = one.bytes / max(tokens, 1)
        print(f"  on disk         {one.bytes:,} bytes in {one.shards:,} files, {per_token:.1f} a token of either side")
        if one.new_tokens:
            speed = one.new_tokens / max(one.seconds, 1e-9)
            print(f"  new             {one.new_tokens:,} tokens in {one.seconds:.1f} s, {speed:,.0f} a second")
        else:
            print("  new             nothing: all of it was in the cache")
    print(f"train with: {training_words(data)}")


def training_words(data: "DataConfig") -> str:
    """The overrides with which a training reads what was prepared, as words for a shell."""
    import dataclasses
    import shlex

    words = [f"data.text.paths={json.dumps(data.paths, ensure_ascii=False)}"]
    defaults = {field.name: field.default for field in dataclasses.fields(data)}
    for name in (*_OF_DATA, "cache_dir"):
        if (value := getattr(data, name)) != defaults[name]:
            words.append(f"data.text.{name}={value}")
    return " ".join(map(shlex.quote, words))


def _write_script(arguments: Mapping[str, Any]) -> int:
    """A script for sbatch: an array with a task per part."""
    import dataclasses

    from nemo_xtoken.files import atomic_path
    from nemo_xtoken.launch.job import Job
    from nemo_xtoken.launch.sbatch import render, submit_lines
    from nemo_xtoken.launch.slurm_config import PREFIX, load_config

    parts = arguments["parts"]
    if not parts or parts < 1:
        raise InputError("sbatch= without parts=", "how many tasks share the work", "say parts=64, for example")
    _data(arguments)  # looks at the data on the login node, before anything is queued
    config = load_config(arguments["slurm"], arguments["rest"])
    limit = config.array or ""
    if limit and not limit.startswith("%"):
        raise InputError(f"{PREFIX}array={limit}", "%N: at most N tasks at once", "leave it out, or say array=%16")
    config = dataclasses.replace(config, array=f"0-{parts - 1}{limit}")
    given = {name: value for name, value in arguments.items() if name not in _OF_THE_JOB and value is not None}
    words = [f"{name}={value}" for name, value in given.items()]
    job = Job(config.job_name or "prepare", (config.xtoken, "prepare", *words))
    path = Path(arguments["sbatch"])
    script = render(config, job)
    config.log_folder.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        temporary.write_text(script, encoding="utf-8")
    path.chmod(path.stat().st_mode | 0o111)
    print(f"{path}: {job.name}, {parts} tasks; logs in {config.log_folder}\nsubmit with:")
    print("\n".join(f"  {line}" for line in submit_lines(config, path)))
    return 0


VERB = Verb(
    name="prepare",
    summary="tokenise and align a data set once, in parts over a Slurm array, so that training only reads",
    description=(
        "Writes every document's ids on both sides and its chunks into the cache, where training with the same "
        "tokenizers finds them. What is there already is not done again, so the same command goes on after a kill. "
        "In a Slurm array each task takes its own part of the files and writes files of its own; sbatch=FILE "
        "writes the script of such an array."
    ),
    options=(
        Option("student", "folder, file or hub name of the student's tokenizer", required=True),
        Option("teacher", "the teacher's; several with commas between them", required=True),
        Option(
            "paths",
            "files, globs, folders, hf:owner/name; several with commas between them",
            required=True,
        ),
        Option("format", "what the documents are", default="text", choices=("text", "chat")),
        Option("text_key", "the column that holds the text", default="text"),
        Option("messages_key", "for chat the column that holds the messages", default="messages"),
        Option("tools_key", "for chat the column that holds the tools, where there is one", default="tools"),
        Option(
            "learn",
            "for chat what of the assistant's messages is learned",
            default="answers,reasoning,calls",
        ),
        Option("chat_template", "a file with the student's chat template, where its tokenizer has none"),
        Option(
            "text_split", "what a document is in a .txt file", default="file", choices=("file", "paragraph", "line")
        ),
        Option("split", "which split of a Hugging Face data set", default="train"),
        Option("indexed_tokenizer", "the tokenizer that made an indexed data set (.bin and .idx)"),
        Option(
            "on_error",
            "at a row that is no document: refuse the data, or skip the row and count it",
            default="refuse",
            choices=("refuse", "skip"),
        ),
        Option("align", "exact spans, or the paper's dynamic programme", default="spans", choices=("spans", "dp")),
        Option("out", "the cache folder; the same as data.text.cache_dir in training; default $NEMO_XTOKEN_CACHE"),
        Option(
            "workers", "processes; default one for each core that this one may use", int, least=0, most=MOST_WORKERS
        ),
        Option("verify", "also compare all documents with their checksums, as training does", bool, False),
        *PART_OPTIONS,
        Option("sbatch", "write a script for Slurm to this file instead: an array of `parts` tasks", writes="file"),
        Option(
            "slurm", "for sbatch: the cluster's configuration, a YAML file or a name", default="cpu", goes_with="sbatch"
        ),
        Option("json", "print the counts as JSON", bool, False),
    ),
    examples=(
        (
            "prepare student=tok/llama3 teacher=tok/qwen3 paths='web/*.parquet' out=/shared/cache",
            "everything, on this machine",
        ),
        (
            "prepare student=tok/llama3 teacher=tok/qwen3,tok/phi4 paths=web out=/shared/cache parts=64 "
            "sbatch=prepare.sh executor.array=%16",
            "a script for an array of 64 tasks, at most 16 at once",
        ),
        (
            "prepare student=tok/llama3 teacher=tok/qwen3 paths=chat.jsonl format=chat part=0 parts=4",
            "the first quarter of a set of conversations",
        ),
    ),
    run=_run,
    rest="executor.KEY=VALUE changes the cluster's configuration for sbatch=.",
)
