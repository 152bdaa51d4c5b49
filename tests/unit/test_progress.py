"""Phases: the records they make, who hears them, and the lines of a training."""

import io
import logging
import re

import pytest
from rich.console import Console

from nemo_xtoken.commands.progress_display import ProgressDisplay, listen
from nemo_xtoken.progress import LOGGER, Parts, Phase, as_time, say
from nemo_xtoken.training.training_progress import TrainingProgress, step_values


class Heard(logging.Handler):
    def __init__(self):
        super().__init__()
        self.records = []

    def emit(self, record):
        self.records.append(record)

    def lines(self, level=logging.INFO):
        return [record.getMessage() for record in self.records if record.levelno >= level]

    def states(self):
        return [(seen.progress.title, seen.progress.state) for seen in self.records]


@pytest.fixture
def heard(monkeypatch):
    handler = Heard()
    monkeypatch.setattr(LOGGER, "handlers", [handler])
    monkeypatch.setattr(LOGGER, "propagate", False)
    LOGGER.setLevel(logging.DEBUG)
    yield handler
    LOGGER.setLevel(logging.NOTSET)


def test_a_phase_from_its_beginning_to_its_end(heard):
    with Phase("aligning", 1200, "documents").begin(said="3 processes") as phase:
        phase.at(600, {"tokens/s": "12,000"}, line=True)
        phase.at(1200)
        phase.end("1,200 documents in 3 s")
    assert heard.lines() == [
        "aligning (1,200 documents, 3 processes)",
        "aligning: 600 of 1,200 documents, tokens/s 12,000, 0:00 left",
        "aligning: 1,200 documents in 3 s",
    ]
    assert [state for _, state in heard.states()] == ["begin", "at", "at", "end"]
    first, half, whole, end = (record.progress for record in heard.records)
    assert first.left is None
    assert half.left > 0
    assert whole.left is end.left is None
    assert len({seen.key for seen in (first, half, whole, end)}) == 1


def test_an_error_ends_a_phase_without_a_line(heard):
    with pytest.raises(ValueError, match="why"), Phase("reading"):
        raise ValueError("why")
    assert heard.states() == [("reading", "begin"), ("reading", "failed")]
    assert heard.lines() == ["reading"]


def test_a_phase_that_is_not_shown_says_nothing(heard):
    with Phase("reading", 3, "files", shown=False) as phase:
        phase.at(1, line=True)
    say("nothing", shown=False)
    assert not heard.records


def test_where_nobody_has_set_up_logging_lines_go_to_standard_error(monkeypatch, capsys):
    monkeypatch.setattr(LOGGER, "propagate", False)  # pytest listens to the root
    with Phase("reading", 3, "files") as phase:
        phase.at(1)
        phase.at(2, line=True)
    say("done")
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.splitlines() == ["reading (3 files)", "reading: 2 of 3 files, 0:00 left", "done"]
    assert not LOGGER.handlers


def test_a_display_shows_a_line_of_no_phase_once():
    """The same data is read by each of several runs; what a phase or a warning says is said again."""
    shown, log = io.StringIO(), []
    display = ProgressDisplay(Console(file=shown, width=80), moving=False, log=log.append)
    stop = listen(display, logging.INFO)
    for _ in range(2):
        say("training: 3 samples")
        with Phase("reading") as phase:
            phase.end("done")
        logging.getLogger("nemo_xtoken.here").warning("mind this")
    stop()
    again = ["reading", "reading: done", "warning: mind this"]
    assert shown.getvalue().splitlines() == ["training: 3 samples", *again, *again]
    assert sum(record.getMessage() == "training: 3 samples" for record in log) == 2


def record(step, **more):
    return {"step": step, "ce": 4.5, "tokens": 1000, "seconds": 1.0, **more}


def test_a_training_has_a_line_an_interval_and_one_an_evaluation(heard):
    with TrainingProgress("the student", 5, 2, shown=True) as told:
        told.begin(0)
        told.evaluate()
        told.evaluated({"held_out_ce": 8.25, "held_out_accuracy": 0.125})
        for step in range(1, 6):
            told.step(record(step, kd=0.5, scale=9.0, **{"kd/teacher": 0.5}), 1e-3)
    lines = heard.lines()
    assert lines[0] == "the student: after step 0: held-out CE 8.250, accuracy 12.5%"
    assert [line.split(",")[0] for line in lines[1:]] == [f"the student: {n} of 5 steps" for n in (2, 4, 5)]
    for part in ("CE 4.500", "KD 0.500", "held-out 8.250", "scale 9", "tokens/s ", "lr 1.00e-03", "left"):
        assert part in lines[1]
    assert lines[-1].startswith("the student: 5 of 5 steps, CE 4.500, KD 0.500, held-out 8.250, ")
    assert heard.states()[:4] == [
        ("the student", "begin"),
        ("loading models", "begin"),
        ("loading models", "end"),
        ("the student", "begin"),
    ]
    assert heard.states()[-1] == ("the student", "end")


def test_the_last_step_and_the_evaluation_behind_it_have_one_line(heard):
    with TrainingProgress("the student", 2, 1, shown=True) as told:
        told.begin(0)
        for step in (1, 2):
            told.step(record(step), None)
            told.evaluate()
            told.evaluated({"held_out_ce": 8.0 - step, "held_out_accuracy": 0.25})
    assert [line.split(", tokens/s")[0] for line in heard.lines()] == [
        "the student: 1 of 2 steps, CE 4.500",
        "the student: after step 1: held-out CE 7.000, accuracy 25.0%",
        "the student: 2 of 2 steps, CE 4.500, held-out 6.000 (accuracy 25.0%)",
    ]


def test_slow_steps_have_a_line_each(heard, monkeypatch):
    monkeypatch.setattr("nemo_xtoken.training.training_progress.SECONDS", -1.0)
    with TrainingProgress("the student", 50, 10, shown=True) as told:
        told.begin(0)
        told.step(record(1), None)
    assert re.search(r"the student: 1 of 50 steps, CE 4.500, tokens/s [\d,]+, memory [\d.]+ GiB", heard.lines()[0])


def test_a_finished_and_a_resumed_training_say_so(heard):
    with TrainingProgress("the student", 5, 2, shown=True):
        pass
    with TrainingProgress("the student", 5, 2, shown=True) as told:
        told.begin(3)
    assert heard.lines() == ["the student: was done before", "the student: goes on after step 3"]


def stop_after_a_step(error, shown):
    with TrainingProgress("the student", 5, 2, shown) as told:
        told.begin(0)
        told.step(record(1), None)
        raise error


def test_an_interrupted_training_says_how_to_go_on(heard, caplog):
    caplog.set_level(logging.INFO, "nemo_xtoken")
    with pytest.raises(SystemExit):
        stop_after_a_step(SystemExit(0), shown=True)
    assert "stopped at step 1; the same command goes on from the last checkpoint" in caplog.text
    assert heard.states()[-1] == ("the student", "failed")


def test_other_ranks_are_silent(heard, caplog):
    with pytest.raises(KeyboardInterrupt):
        stop_after_a_step(KeyboardInterrupt(), shown=False)
    assert not heard.records
    assert not [record for record in caplog.records if record.levelno > logging.INFO]


def test_several_teachers_have_their_own_values():
    values = step_values(record(1, kd=1.0, **{"kd/a": 0.25, "kd/b": 0.75}), 1234.5, None)
    assert values == {"CE": "4.500", "KD": "1.000", "KD a": "0.250", "KD b": "0.750", "tokens/s": "1,234"}


def test_the_only_teacher_has_its_name_unless_it_has_none():
    """What is shown is its distance, which its weight does not change."""
    named = step_values(record(1, kd=0.3, **{"kd/phi": 0.6}), 1.0, None)
    assert named == {"CE": "4.500", "KD phi": "0.600", "tokens/s": "1"}
    assert step_values(record(1, kd=0.3, **{"kd/teacher": 0.6}), 1.0, None)["KD"] == "0.600"


def test_the_parts_of_a_command_are_counted(heard):
    parts, single, silent = Parts(2), Parts(1), Parts(2, shown=False)
    for part in (silent, single, parts):
        part.begin("training the teacher")
    parts.begin("training the student")
    assert heard.lines() == ["1 of 2: training the teacher", "2 of 2: training the student"]


def test_times():
    assert [as_time(seconds) for seconds in (0.4, 59.6, 3661)] == ["0:00", "1:00", "1:01:01"]
