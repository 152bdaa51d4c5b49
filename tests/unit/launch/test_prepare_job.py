"""The script that `xtoken prepare sbatch=FILE` writes, as an array of processes; one task is stopped and requeued."""

import json
import os
import time
from pathlib import Path

from fake_slurm import end, install, sbatch, signal_steps
from tokenizer_zoo import write_folder

from nemo_xtoken.commands.cli import main

ROOT = Path(__file__).parents[3]


def test_an_array_with_a_task_that_is_stopped(tmp_path, capsys, monkeypatch):
    install(tmp_path / "bin")
    monkeypatch.chdir(tmp_path)
    sides = [write_folder(name, tmp_path / name) for name in ("llama", "qwen")]
    (tmp_path / "d").mkdir()
    rows_of = (200, 8000, 200)  # the second is the one that is stopped
    for f in range(3):
        rows = (json.dumps({"text": f"{f} {n} the cat sat on {n * 345} chairs " * 6}) for n in range(rows_of[f]))
        (tmp_path / f"d/{f}.jsonl").write_text("\n".join(rows))
    words = [
        "prepare", f"student={sides[0]}", f"teacher={sides[1]}", "paths=d", f"out={tmp_path / 'cache'}", "workers=0",
    ]  # fmt: skip
    program = f"executor.program={ROOT / '.venv/bin/nemo'}"
    assert main([*words, "parts=3", "sbatch=job.sh", program]) == 0
    environment = {**os.environ, "PATH": f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"}
    states = [tmp_path / f"state{task}" for task in range(3)]
    for state in states:
        state.mkdir()

    def submit(task):
        return sbatch(tmp_path / "job.sh", states[task], environment, 100 + task, task)

    jobs = [submit(task) for task in range(3)]
    try:
        part = "cache/alignment/*/part-00001-of-00003"
        for pause in (0.5, 1, 2, 4, 8):  # until it has done something by then
            while not [*tmp_path.glob(f"{part}/.lock")]:
                assert jobs[1][0].poll() is None, jobs[1][1].read_text()
                time.sleep(0.02)
            time.sleep(pause)
            signal_steps(states[1])
            assert jobs[1][0].wait(60) == 75, jobs[1][1].read_text()
            assert (states[1] / "requeued").read_text().split()[-1] == "101"
            kept = {path: path.stat().st_mtime_ns for path in tmp_path.glob(f"{part}/shard-*")}
            for lock in tmp_path.glob(f"{part}/.lock"):  # the next start makes its own, and then heeds the signal
                lock.unlink()
            jobs[1] = submit(1)
            if kept:
                break
        assert kept
        for job, log in jobs:
            assert job.wait(120) == 0, log.read_text()
        assert "8,000 documents" in jobs[1][1].read_text()
    finally:
        for job, _ in jobs:
            end(job)
    after = {path: path.stat().st_mtime_ns for path in tmp_path.glob(f"{part}/shard-*")}
    assert kept.items() < after.items()  # the first start's are as they were
    capsys.readouterr()
    assert main([*words, "json=true"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["documents"] == sum(rows_of)
    assert report["teachers"][0]["new_tokens"] == 0
    assert report["teachers"][0]["shards"] == 4


def test_xtoken_is_beside_a_program_of_another_name(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    side = write_folder("llama", tmp_path / "llama")
    (tmp_path / "d.txt").write_text("the cat sat")
    words = ["prepare", f"student={side}", f"teacher={side}", "paths=d.txt", "parts=2", "sbatch=job.sh"]
    assert main([*words, "executor.program=./env/nemo-wrapper"]) == 0, capsys.readouterr().err
    assert "./env/xtoken prepare " in Path("job.sh").read_text()
