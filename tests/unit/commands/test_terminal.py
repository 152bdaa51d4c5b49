"""What a command prints: on a pipe, on a terminal, verbose, and when it fails; and what goes to the log."""

import os
import pty
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nemo_xtoken.commands.terminal import Terminal

#: A command that trains nothing: noise in every way a library makes it, two phases, a warning, a result.
COMMAND = """
import ctypes, logging, os, subprocess, sys, time, warnings
from pathlib import Path
import rich
from rich.table import Table
from nemo_xtoken.commands.terminal import Terminal
from nemo_xtoken.progress import Phase

how = sys.argv[1:]
old = logging.StreamHandler(sys.stderr)  # as NeMo's, which is older than the capture
logging.getLogger("nemo_logger").addHandler(old)
print("before", flush=True)
with Terminal(verbose="verbose" in how) as terminal:
    try:
        with terminal.captured():
            log = terminal.log_to(Path("runs", "it"))
            terminal.say(f"it\\n  log {log}")
            print("noise of print")
            warnings.warn("noise of a warning")
            logging.getLogger("nemo_logger").warning("noise of a logger")
            os.write(1, b"noise of a descriptor\\n")
            libc = ctypes.CDLL(None)
            libc.puts(b"noise of C, buffered")
            subprocess.run(["sh", "-c", "echo noise of a child; echo noise of its errors >&2"], check=True)
            with terminal.released():
                print("a question")
            if "early" in how:
                raise RuntimeError("broken early")
            Path("runs", "it").mkdir(parents=True)
            with Phase("training", 100, "steps") as phase:
                for step in range(1, 101):
                    phase.at(step, {"CE": f"{9 - step / 20:.3f}"}, step % 50 == 0)
                    if step == 50:
                        logging.getLogger("nemo_xtoken.here").warning("mind [this]")
                        with Phase("held-out text", unit="batches", announced=False) as inner:
                            inner.at(1)
                    if "late" in how and step == 60:
                        print("last words")
                        raise RuntimeError("broken late")
                    if "abort" in how and step == 60:
                        libc.puts(b"last words of C")
                        os.abort()
                    if "wait" in how and step == 60:
                        print("waiting")
                        Path("waiting").touch()
                        time.sleep(60)
            table = Table(title="Results")
            table.add_column("CE")
            table.add_row("4.000")
            rich.get_console().print(table)
    except RuntimeError as error:
        terminal.unexpected(error)
        sys.exit(1)
print("after")
"""
NOISES = [
    "noise of print", "noise of a warning", "noise of a logger", "noise of a descriptor", "noise of C, buffered",
    "noise of a child", "noise of its errors",
]  # fmt: skip


@pytest.fixture
def here(tmp_path, monkeypatch):
    ranks = "RANK", "LOCAL_RANK", "NODE_RANK", "WORLD_SIZE"
    for name in (*ranks, "SLURM_JOB_ID", "NO_COLOR", "COLUMNS", "PYTHONWARNINGS"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def piped(*how, **environment):
    words = [sys.executable, "-c", COMMAND, *how]
    return subprocess.run(
        words, env={**os.environ, **environment}, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=60
    )


def on_a_terminal(*how, **environment):
    """(exit status, what a terminal of 80 columns gets)."""
    master, slave = pty.openpty()
    os.set_blocking(master, True)
    import fcntl
    import struct
    import termios

    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND, *how],
        stdin=slave, stdout=slave, stderr=slave, env={**os.environ, "TERM": "xterm-256color", **environment},
    )  # fmt: skip
    os.close(slave)
    got = b""
    while True:
        try:
            part = os.read(master, 65536)
        except OSError:  # the terminal has no other end any more
            break
        if not part:
            break
        got += part
    os.close(master)
    return process.wait(30), got.decode()


def screen(text):
    """The lines that a terminal shows in the end."""
    lines, row, column = [""], 0, 0
    for part in re.findall(r"\x1b\[[0-9;?]*[A-Za-z]|\r|\n|[^\x1b\r\n]+", text):
        if part == "\n":
            row += 1
            lines += [""] * (row == len(lines))
        elif part == "\r":
            column = 0
        elif not part.startswith("\x1b"):
            lines[row] = lines[row].ljust(column)[:column] + part + lines[row][column + len(part) :]
            column += len(part)
        elif part.endswith("A"):
            row -= int(part[2:-1] or 1)
        elif part.endswith("K"):
            lines[row] = "" if part[2:-1] == "2" else lines[row][:column]
    return lines


def test_on_a_pipe_there_are_plain_lines_and_the_noise_is_in_the_log(here):
    done = piped()
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stderr + done.stdout
    assert done.stderr.splitlines() == [
        "it",
        "  log runs/it/run.log",
        "training (100 steps)",
        "training: 50 of 100 steps, CE 6.500, 0:00 left",
        "warning: mind [this]",
        "training: 100 of 100 steps, CE 4.000",
    ]
    assert [line.strip() for line in done.stdout.splitlines() if line.strip()][:3] == [
        "before",
        "a question",
        "Results",
    ]
    assert "4.000" in done.stdout
    assert done.stdout.rstrip().endswith("after")
    log = (here / "runs" / "it" / "run.log").read_text()
    for noise in NOISES:
        assert log.count(noise) == 1, noise
        assert noise not in done.stderr + done.stdout
    assert log.count("training: 50 of 100 steps") == 1  # what is said is in the log too
    assert "mind [this]" in log
    assert not list((here / "tmp").iterdir())


def test_on_a_terminal_a_bar_moves(here):
    status, got = on_a_terminal()
    assert status == 0, got
    shown = screen(got)
    assert not any("noise" in line for line in shown), shown
    (bar,) = [line for line in shown if line.startswith("training ")]
    assert "100/100 CE 4.000" in bar
    assert all(len(line) <= 80 for line in shown)
    assert "warning: mind [this]" in shown
    assert "held-out text" not in "".join(shown)  # it was there while it went on
    assert "held-out text" in got
    assert got.count("\x1b[?25h") >= got.count("\x1b[?25l")  # the cursor stays
    assert "noise of print" in (here / "runs" / "it" / "run.log").read_text()


@pytest.mark.parametrize("job", [{"SLURM_JOB_ID": "7"}, {"WORLD_SIZE": "2", "RANK": "0"}])
def test_a_job_has_plain_lines_on_a_terminal_too(here, job):
    status, got = on_a_terminal(**job)
    assert status == 0, got
    assert "training: 50 of 100 steps, CE 6.500" in got
    assert "\x1b" not in got.replace("\x1b[3m", "").split("Results")[0].replace("\x1b[33m", "").replace("\x1b[0m", "")


#: What torchrun tells a process, and what Lightning tells one that it starts.
OF_TORCHRUN, OF_LIGHTNING = {"RANK": "3"}, {"LOCAL_RANK": "3", "NODE_RANK": "0"}


@pytest.mark.parametrize("told", [OF_TORCHRUN, OF_LIGHTNING])
def test_other_ranks_are_silent_and_have_a_log_each(here, told):
    done = piped(WORLD_SIZE="4", **told)
    assert done.returncode == 0
    assert done.stderr == ""
    assert "noise of a child" in (here / "runs" / "it" / "logs" / "rank3.log").read_text()


def test_what_lightning_starts_on_other_nodes_has_logs_of_its_own(here, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    numbers = set()
    for node, place in ((0, 0), (0, 1), (1, 0), (1, 1)):
        monkeypatch.setenv("NODE_RANK", str(node))
        monkeypatch.setenv("LOCAL_RANK", str(place))
        numbers.add(Terminal().rank)
    assert len(numbers) == 4
    monkeypatch.setenv("RANK", "2")
    assert Terminal().rank == 2


def test_verbose_brings_everything_to_the_terminal(here):
    done = piped("verbose")
    assert done.returncode == 0
    for noise in NOISES:
        assert noise in done.stderr + done.stdout
    assert "[nemo_xtoken] training: 50 of 100 steps, CE 6.500" in done.stderr
    assert not list(here.rglob("*.log"))


@pytest.mark.parametrize("shown", [piped, on_a_terminal])
def test_an_unexpected_error_shows_its_traceback_and_the_end_of_the_log(here, shown):
    done = shown("late")
    status, got = done if isinstance(done, tuple) else (done.returncode, done.stderr)
    assert status == 1
    got = "\n".join(screen(got))
    assert "RuntimeError: broken late" in got
    assert "Traceback (most recent call last)" in got
    assert "last words" in got
    assert "the log: runs/it/run.log" in got
    assert "RuntimeError: broken late" in (here / "runs" / "it" / "run.log").read_text()


def test_the_log_of_an_error_before_the_run_has_a_folder_stays(here):
    done = piped("early")
    assert done.returncode == 1
    (log,) = (here / "tmp").iterdir()
    assert f"the log: {log}" in done.stderr
    assert "noise of print" in log.read_text()
    assert not (here / "runs").exists()


def test_a_crash_in_c_shows_the_stack(here):
    done = piped("abort")
    assert done.returncode == -signal.SIGABRT
    assert "Fatal Python error: Aborted" in done.stderr
    assert "noise of print" in (here / "runs" / "it" / "run.log").read_text()


def test_a_killed_run_leaves_its_log(here):
    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND, "wait"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        end = time.monotonic() + 30
        while not Path("waiting").exists() and time.monotonic() < end:
            time.sleep(0.02)
        process.terminate()
        out, errors = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == -signal.SIGTERM
    assert "noise" not in out + errors
    assert (here / "runs" / "it" / "run.log").read_text().rstrip().endswith("waiting")
