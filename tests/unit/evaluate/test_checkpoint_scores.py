"""The checkpoints of a run: which are evaluated, once, and where the scores go."""

import dataclasses
import json
import os
import shutil
import sys
import threading
from pathlib import Path

import pytest
from filelock import FileLock

from nemo_xtoken.commands.cli import main
from nemo_xtoken.errors import InputError
from nemo_xtoken.evaluate import suite as runs
from nemo_xtoken.evaluate.benchmark_columns import read_columns
from nemo_xtoken.evaluate.evaluation_config import EvaluationConfig
from nemo_xtoken.evaluate.results import fresh, identity_of, read_scores
from nemo_xtoken.evaluate.task_settings import Settings
from nemo_xtoken.report.summary import report_runs
from nemo_xtoken.run.records import (
    add_evaluations,
    append_record,
    curve_records,
    read_evaluations,
    read_history,
)
from nemo_xtoken.weights.checkpoint_names import UNFINISHED, finished_checkpoints, steps_of


@pytest.fixture
def run(tmp_path):
    """A run's folder with checkpoints after 10, 20 and 30 steps, as NeMo names them, and one that is being written."""
    for name in ("step=9", "mine--step=19.00-epoch=0", "mine--step=19.00-epoch=0-last", "step_30", "step=39"):
        checkpoint(tmp_path, name)
    (tmp_path / "checkpoints" / f"step=39{UNFINISHED}").touch()
    return tmp_path


def checkpoint(run, name):
    (run / "checkpoints" / name / "weights").mkdir(parents=True)


def test_finished_checkpoints(run):
    found = runs.find_checkpoints(run)
    assert [c.steps for c in found] == [10, 20, 30]
    assert found[1].path.name == "mine--step=19.00-epoch=0-last"
    assert [c.path for c in reversed(found)] == [  # an export of the run takes the same one of each step
        next(path for path in finished_checkpoints(run) if steps_of(path) == steps) for steps in (30, 20, 10)
    ]
    assert [c.steps for c in runs.chosen(found)] == [30, 20, 10]
    assert [c.steps for c in runs.chosen(found, every=20)] == [20]
    assert [c.steps for c in runs.chosen(found, step=10)] == [10]
    with pytest.raises(InputError, match="no finished checkpoint after 40 steps") as error:
        runs.chosen(found, step=40)
    assert "10, 20, 30" in str(error.value)
    with pytest.raises(InputError, match="is not a folder"):
        runs.find_checkpoints(run / "no")


def test_a_checkpoint_that_is_removed_meanwhile_is_left_out(run, monkeypatch):
    """By the training beside: after it was listed, before its time is read."""
    is_dir = Path.is_dir

    def removed(path):
        there = is_dir(path)
        if path.parent.name == "step_30":
            shutil.rmtree(path, ignore_errors=True)
        return there

    monkeypatch.setattr(Path, "is_dir", removed)
    assert [c.steps for c in runs.find_checkpoints(run)] == [10, 20]


def test_a_checkpoint_is_evaluated_once(run, model, data):
    exported, said = [], []

    def export(source, out):
        exported.append(source.name)
        shutil.copytree(model, out)

    settings = Settings(data=str(data), device="cpu", limit=2)
    arguments = {"settings": settings, "export": export, "say": said.append}
    [first] = runs.chosen(runs.find_checkpoints(run), step=10)
    scores = runs.evaluate_checkpoint(run, first, read_columns("winogrande"), **arguments)
    folder = run / "evaluations" / "step=10"
    assert not (folder / "model").exists()
    assert json.loads((folder / "scores-limit2.json").read_text())["model"] == str(first.path)
    [record] = read_evaluations(run)
    assert record == {
        "step": 10,
        "column": "winogrande",
        "task": "winogrande",
        "metric": "acc,none",
        "score": scores.columns["winogrande"]["score"],
        "stderr": scores.columns["winogrande"]["stderr"],
        "samples": 2,
        "shots": 3,
        "limit": 2,
    }
    assert runs.evaluate_checkpoint(run, first, read_columns("winogrande"), **arguments) == scores
    assert exported == ["step=9"]
    assert len((run / "evaluations.jsonl").read_text().splitlines()) == 1
    runs.evaluate_checkpoint(run, first, read_columns("winogrande,hellaswag"), keep=True, **arguments)
    assert [r["column"] for r in read_evaluations(run)] == ["winogrande", "hellaswag"]
    assert len(exported) == 2
    assert (folder / "model" / "config.json").is_file()
    shutil.rmtree(folder / "model")
    os.utime(first.path / "weights", ns=(1, 1))  # another checkpoint of that name
    [first] = runs.chosen(runs.find_checkpoints(run), step=10)
    runs.evaluate_checkpoint(run, first, read_columns("winogrande"), **arguments)
    assert len(exported) == 3
    with FileLock(folder / ".lock"):
        assert runs.evaluate_checkpoint(run, first, read_columns("winogrande"), **arguments) is None
    assert "another process" in said[-1]


def test_watching_takes_new_checkpoints_as_they_come(run):
    seen = []

    def handle(found):
        seen.append(found.steps)
        if found.steps == 30:
            checkpoint(run, "step=49-last")
            raise InputError("a", "b", "c")

    waits = []

    def ended(seconds):
        waits.append(seconds)
        if len(waits) == 5:
            checkpoint(run, "step=54")
            checkpoint(run, "step=59")
        return len(waits) > 6

    assert runs.watch(run, handle, every=10, ended=ended, poll=0.5) == [30]
    assert seen == [30, 50, 20, 10, 60]
    assert 0.5 in waits


def test_watching_ends_with_the_last_checkpoint(run):
    seen = []
    runs.watch(run, lambda c: seen.append(c.steps), every=20, ended=lambda seconds: True, poll=0)
    assert seen == [20, 30]  # the last one, whatever its step
    seen.clear()
    runs.watch(run, lambda c: seen.append(c.steps), every=10, until=30, ended=lambda seconds: False, poll=0)
    assert seen == [30]


@pytest.mark.parametrize("end", [b"end\n", b""])
def test_the_end_of_a_pipe_ends_watching(end):
    inner, outer = os.pipe()
    with os.fdopen(inner) as stream:
        ended = runs.until_ended(stream)
        assert not ended(0.0)
        threading.Timer(0.2, lambda: (os.write(outer, end), os.close(outer))).start()
        assert ended(60.0)


def test_one_commit_of_the_hub_is_one_model_wherever_it_was_downloaded(tmp_path):
    """Each node of a job may have a hub's cache of its own, with times of its own."""

    def download(node, commit):
        folder = tmp_path / node / "hub" / "models--meta-llama--Llama-3.2-1B" / "snapshots" / commit
        folder.mkdir(parents=True)
        (folder / "model.safetensors").write_text("weights")
        os.utime(folder / "model.safetensors", ns=(len(list(tmp_path.iterdir())), 0))
        return identity_of(str(folder))

    assert download("one", "4e20") == download("two", "4e20") != download("two", "77aa")


@pytest.mark.parametrize("command", ["no-such-command --wrap", "'", " "])
def test_a_run_knows_at_its_beginning_that_it_cannot_submit(command):
    """As in a container, which has no sbatch."""
    EvaluationConfig(every=2, submit="sh -c").check_place()
    with pytest.raises(InputError, match="no such command here"):
        EvaluationConfig(every=2, submit=command).check_place()


def test_submitting_gives_a_command_to_a_command(run, tmp_path, capsys):
    taker = tmp_path / "take it.sh"
    taker.write_text('printf "%s\\n" "$#" "$@" >> "$(dirname "$0")/taken"; echo "job 7"\n')
    words = [f"run={run}", "every=20", "tasks=mmlu,gsm8k", "shots=5", "data=/a folder", "trust=true"]
    words.append(f"submit=sh '{taker}' --wrap")
    assert main(["evaluate", *words]) == 0
    count, first, command = (tmp_path / "taken").read_text().splitlines()
    assert (count, first) == ("2", "--wrap")
    import shlex

    assert shlex.split(command)[1:] == [
        "-m",
        "nemo_xtoken",
        "evaluate",
        f"run={run}",
        "step=20",
        "tasks=mmlu,gsm8k",
        "shots=5",
        "data=/a folder",
        "trust=true",
    ]
    assert shlex.split(command)[0] == sys.executable
    assert "step 20: job 7" in capsys.readouterr().err
    assert main(["evaluate", *words]) == 0  # has been submitted
    assert len((tmp_path / "taken").read_text().splitlines()) == 3
    for command in ("false", "no-such-command-here", "'"):
        assert main(["evaluate", f"run={run}", f"submit={command}"]) == 2
        assert "was not submitted by" in capsys.readouterr().err


def test_two_watchers_submit_a_checkpoint_once(run, tmp_path):
    """The second comes while the first one's command runs; that of another checkpoint does not wait."""
    taker = tmp_path / "take.sh"
    taker.write_text('echo x >> "$(dirname "$0")/taken"; sleep 1; echo "job 7"\n')
    (first, second, _), said = runs.find_checkpoints(run), []

    def watch(checkpoint):
        runs.submit(run, checkpoint, [], f"sh {taker}", said.append)

    watchers = [threading.Thread(target=watch, args=(checkpoint,)) for checkpoint in (first, first, second)]
    for watcher in watchers:
        watcher.start()
    for watcher in watchers:
        watcher.join(60)
    assert (tmp_path / "taken").read_text().split() == ["x", "x"]
    assert sorted(text for text in said if "job 7" in text) == ["step 10: job 7", "step 20: job 7"]
    runs.submit(run, dataclasses.replace(first, identity=first.identity[:-1]), [], f"sh {taker}", said.append)
    assert len((tmp_path / "taken").read_text().split()) == 3  # another checkpoint of that name


@pytest.mark.parametrize("trust", [False, True])
def test_code_of_a_checkpoint_runs_only_if_it_is_trusted(run, tmp_path, monkeypatch, trust):
    """The word reaches the process that exports; there it has the meaning that it has for `xtoken export`."""
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\nprintf "%s\\n" "$@" >> "$(dirname "$0")/words"\nexit 1\n')
    python.chmod(0o755)
    monkeypatch.setattr(runs.sys, "executable", str(python))
    monkeypatch.setattr("nemo_xtoken.evaluate.harness.check_harness", lambda: None)
    monkeypatch.setattr(runs, "evaluate_checkpoint", lambda run, one, export, **_: export(one.path, tmp_path / "out"))
    assert main(["evaluate", f"run={run}", "tasks=mmlu", "step=30", *["trust=true"] * trust]) == 2
    words = (tmp_path / "words").read_text().splitlines()
    assert "export" in words
    assert ("trust=true" in words) == trust


def test_an_export_that_fails(run, monkeypatch):
    monkeypatch.setattr(runs.sys, "executable", "false")
    with pytest.raises(InputError, match="cannot be exported") as error:
        runs.export_checkpoint(run / "checkpoints" / "step=9", run / "out")
    assert "try it by hand" in error.value.fix
    with pytest.raises(InputError) as error:
        runs.export_checkpoint(run / "checkpoints" / "gone", run / "out")
    assert "save_top_k=-1" in error.value.fix


def test_an_evaluation_that_fails_leaves_no_model(run, data, tmp_path):
    """Nor one of which the model cannot be loaded, again and again while a run goes on."""
    settings = Settings(data=str(data), device="cpu", limit=2)
    [first] = runs.chosen(runs.find_checkpoints(run), step=10)

    def export(source, out):
        out.mkdir()
        (out / "config.json").write_text("{}")

    arguments = {"settings": settings, "export": export, "columns": read_columns("winogrande")}
    folder = run / "evaluations" / "step=10" / "model"
    for keep in (False, True):
        with pytest.raises(InputError, match="with a model_type"):
            runs.evaluate_checkpoint(run, first, keep=keep, **arguments)
        assert folder.is_dir() == keep


def test_jobs_that_share_a_file_of_scores_lose_none(tmp_path):
    """As where each task of the harness is a job by itself: all of them have read the file before one has ended."""
    out, settings = tmp_path / "new" / "evaluation.json", Settings()
    jobs = {name: fresh("model", "1", settings, "0.4") for name in "abcd"}

    def run(name):
        for number in range(10):
            jobs[name].add(out, f"{name}{number}", {"score": float(number)})

    threads = [threading.Thread(target=run, args=name) for name in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(read_scores(out).columns) == {f"{name}{number}" for name in jobs for number in range(10)}
    jobs["a"].add(out, "b3", {"score": 7.0})  # again
    assert read_scores(out).columns["b3"] == {"score": 7.0}
    other = fresh("model", "2", settings, "0.4")
    other.add(out, "x", {"score": 1.0})  # of another model, as --again asks for
    assert set(read_scores(out).columns) == {"x"}
    out.write_text("cut sh")
    other.add(out, "y", {"score": 1.0})
    assert set(read_scores(out).columns) == {"x", "y"}


def test_a_trial_does_not_take_the_place_of_scores(tmp_path):
    def add(score, limit):
        found = {"task": "mmlu", "metric": "acc,none", "score": score, "stderr": None, "samples": 9, "shots": 3}
        add_evaluations(tmp_path, 5, {"mmlu": found}, limit)
        return [(r["score"], r["limit"]) for r in read_evaluations(tmp_path)]

    assert add(10.0, 5) == [(10.0, 5)]
    assert add(11.0, 20) == [(11.0, 20)]
    assert add(12.0, None) == [(12.0, None)]
    assert add(13.0, 20) == [(12.0, None)]
    assert add(14.0, None) == [(14.0, None)]
    lines = (tmp_path / "evaluations.jsonl").read_text()
    assert add(13.0, 20) == add(14.0, None) == [(14.0, None)]
    assert (tmp_path / "evaluations.jsonl").read_text() == lines


def test_a_line_cut_short_takes_no_other_along(tmp_path):
    found = {"task": "mmlu", "metric": "acc,none", "score": 1.0, "stderr": None, "samples": 9, "shots": 3}
    for name, add, read in (
        ("evaluations.jsonl", lambda n: add_evaluations(tmp_path, n, {"mmlu": found}, None), read_evaluations),
        ("history.jsonl", lambda n: append_record(tmp_path, {"step": n}), read_history),
    ):
        add(1)
        with open(tmp_path / name, "a") as file:
            file.write('{"step": 2, "col')  # a crash
        add(3)
        add(4)
        assert [record["step"] for record in read(tmp_path)] == [1, 3, 4]


def test_scores_are_in_the_report(tmp_path, monkeypatch):
    import io

    from rich.console import Console

    (tmp_path / "history.jsonl").write_text(json.dumps({"step": 1, "ce": 2.0, "tokens": 5, "seconds": 1.0}) + "\n")
    for step, score in ((2, 30.0), (1, 25.0), (2, 35.5)):
        found = {"task": "mmlu", "metric": "acc,none", "score": score, "stderr": 1.25, "samples": 9, "shots": 3}
        add_evaluations(tmp_path, step, {"mmlu": found, "gsm8k": {**found, "stderr": None}}, 10)
    with open(tmp_path / "evaluations.jsonl", "a") as file:
        file.write('{"step": 3, "col')  # a crash
    assert [(r["step"], r["column"], r["score"]) for r in read_evaluations(tmp_path)] == [
        (1, "mmlu", 25.0),
        (1, "gsm8k", 25.0),
        (2, "mmlu", 35.5),
        (2, "gsm8k", 35.5),
    ]
    assert curve_records(tmp_path)[2] == {"step": 2, "evaluation/mmlu": 35.5}
    drawn = []
    from nemo_xtoken.report import curves

    lines = curves._lines
    monkeypatch.setattr(curves, "_lines", lambda *a: drawn.extend(lines(*a)) or lines(*a))
    console = Console(file=io.StringIO(), width=100)
    report_runs({"mine": tmp_path}, tmp_path, console)
    assert "35.50 ±1.25" in console.file.getvalue()
    assert "limit=10" in console.file.getvalue()
    assert ("mine: mmlu", "evaluation/mmlu", [1, 2], [25.0, 35.5]) in drawn
    assert (tmp_path / "curves.png").read_bytes()[:4] == b"\x89PNG"
