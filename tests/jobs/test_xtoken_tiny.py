"""The main job through the command a user types: three runs, the table, the files; again; and wrong input.

The first is the program itself; the others are forks of this process, which spares each the import of NeMo.
"""

import json
import os
import re
import subprocess
from pathlib import Path

import pytest
import yaml
from forked_commands import run_command

ROOT = Path(__file__).parents[2]
SHORT = [
    "trainer.max_steps=3", "teacher_steps=3", "trainer.val_check_interval=3", "trainer.limit_val_batches=1",
    "data.global_batch_size=2", "data.micro_batch_size=2",
]  # fmt: skip


def distill(folder, *words):
    """``nemo llm distill WORDS`` in ``folder``, in a fork: (exit status, output)."""
    env = {"NEMO_XTOKEN_CACHE": str(folder / "cache"), "COLUMNS": "150"}
    return run_command(folder, "nemo", "llm", "distill", *words, env=env)


def distill_by_program(folder, *words):
    """The same by the program ``nemo``."""
    environment = {**os.environ, "NEMO_XTOKEN_CACHE": str(folder / "cache"), "COLUMNS": "150"}
    environment["PYTHONWARNINGS"] = "ignore:The pynvml package is deprecated:FutureWarning"  # as in the Makefile
    done = subprocess.run(
        ["nemo", "llm", "distill", *words],
        cwd=folder,
        env={**environment, "PATH": f"{ROOT / '.venv' / 'bin'}{os.pathsep}{environment['PATH']}"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=580,
    )
    return done.returncode, done.stdout


@pytest.fixture(scope="module")
def run(command_line, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    status, output = distill_by_program(folder, "--recipe", "xtoken_tiny", *SHORT)
    assert status == 0, output[-5000:]
    return folder, output


def test_three_runs_and_a_comparison(run):
    folder, output = run
    for part in ("Student on held-out text", "cross-entropy only", "with the teacher", "curves.png"):
        assert part in output
    log = (folder / "runs" / "xtoken_tiny" / "run.log").read_text()
    for noise in ("[NeMo I ", "`Trainer.fit` stopped", "Resolved Arguments", "GPU available: False"):
        assert noise in log
        assert noise not in output
    lines = output.splitlines()
    assert len(lines) < 40, output
    assert "  log       runs/xtoken_tiny/run.log" in lines
    for title in ("the teacher", "cross-entropy only", "with the teacher"):
        [last] = [line for line in lines if line.startswith(f"{title}: 3 of 3 steps, CE ")]
        assert re.search(r", held-out [\d.]+ \(accuracy [\d.]+%(, KD [\d.]+)?\), ", last)
    assert "\x1b" not in output
    out = folder / "runs" / "xtoken_tiny"
    alone, taught = json.loads((out / "report.json").read_text())
    assert alone["start_ce"] == pytest.approx(taught["start_ce"], rel=1e-6)  # the same start
    assert alone["steps"] == taught["steps"] == 3
    assert taught["end_ce"] < taught["start_ce"]
    assert taught["chunks_per_second"] > 0
    assert alone["chunks_per_second"] is None
    assert (folder / taught["checkpoint"] / "weights" / ".metadata").is_file()
    assert (out / "curves.png").stat().st_size > 10_000


def test_the_same_command_again_reports_and_trains_nothing(run):
    folder, _ = run
    out = folder / "runs" / "xtoken_tiny"
    before = (out / "history.jsonl").read_text(), (out / "ce_only" / "history.jsonl").read_text()
    report = json.loads((out / "report.json").read_text())
    status, output = distill(folder, "--recipe", "xtoken_tiny", *SHORT)
    assert status == 0, output[-5000:]
    assert "with the teacher: was done before" in output
    assert " of 3 steps" not in output
    assert before == ((out / "history.jsonl").read_text(), (out / "ce_only" / "history.jsonl").read_text())
    assert json.loads((out / "report.json").read_text()) == report


def test_verbose_brings_the_libraries_back(run):
    folder, _ = run
    status, output = distill(folder, "--recipe", "xtoken_tiny", *SHORT, "--verbose", "log.name=loud")
    assert status == 0, output[-5000:]
    for part in ("[NeMo I ", "[nemo_xtoken] with the teacher: 3 of 3 steps", "Resolved Arguments"):
        assert part in output
    assert not (folder / "runs" / "loud" / "run.log").exists()


def test_a_teacher_that_is_not_there(run):
    folder, _ = run
    status, output = distill(folder, "--recipe", "xtoken_tiny", "teacher.path=nowhere", "log.name=wrong")
    assert status == 2
    assert "no checkpoint in nowhere" in output
    assert "Traceback" not in output
    assert not (folder / "runs" / "wrong").exists()


def test_a_second_teacher_by_name(run):
    folder, _ = run
    first = next(path for path in folder.rglob("run-*/checkpoints/step_*"))
    words = [f"teachers.again.path={first}", "teachers.again.loss=h_kl", "teachers.again.options.partial_kl=paper"]
    words += ["teachers.again.weight=0.25", "objective.teacher_weights=confidence", "log.name=two"]
    status, output = distill(folder, "--recipe", "xtoken_tiny", *SHORT, *words)
    assert status == 0, output[-5000:]
    assert "Teachers of with the teacher" in output
    _, taught = json.loads((folder / "runs" / "two" / "report.json").read_text())
    assert [teacher["name"] for teacher in taught["teachers"]] == ["teacher", "again"]
    records = [json.loads(line) for line in (folder / "runs" / "two" / "history.jsonl").read_text().splitlines()]
    steps = [record for record in records if "ce" in record]
    assert [steps[0]["alpha/teacher"], steps[0]["alpha/again"]] == [0.8, 0.2]
    assert all(record["kd/again"] != record["kd/teacher"] for record in steps)
    # The same again from a file: one teacher more is as easy to take back.
    exported = [*SHORT, *words, "--to-yaml", "two.yaml"]
    assert distill(folder, "--recipe", "xtoken_tiny", *exported)[0] == 0
    status, output = distill(folder, "--yaml", "two.yaml", "--dryrun", "teachers.again=None")
    assert status == 0, output[-3000:]
    assert "again=None" in output


def test_the_yaml_in_conf_is_the_recipe(run):
    folder, _ = run
    status, output = distill(folder, "--recipe", "xtoken_tiny", "--to-yaml", "exported.yaml")
    assert status == 0, output[-3000:]
    exported = yaml.safe_load((folder / "exported.yaml").read_text())
    assert exported == yaml.safe_load((ROOT / "conf" / "xtoken_tiny.yaml").read_text())
