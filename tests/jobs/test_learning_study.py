"""The study's arithmetic and its split, what it keeps of what is done, its statistics and its measures."""

import dataclasses
import json
import math
import os
import random
import re
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.learning import arithmetic, measures, statistics, texts
from benchmarks.learning import study as study_module
from benchmarks.learning.arms import ARMS, arm_named
from benchmarks.learning.claims import CLAIMS, arms_of_claims, judged
from benchmarks.learning.lengths import LENGTHS, QUICK, SMOKE
from benchmarks.learning.report import claims_table, summary, table
from benchmarks.learning.study import Study, Task
from nemo_xtoken.data.config import Tokenization
from nemo_xtoken.losses.registry import LOSSES
from nemo_xtoken.vocab import load_vocabulary


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return Study(tmp_path_factory.mktemp("learning"), SMOKE)


@pytest.fixture
def prepared(study, monkeypatch):
    """The text and the tokenizers are there, which takes two seconds to find out."""
    monkeypatch.setattr(texts, "prepare", lambda *_: study.content)


def right(question):
    """The answer, by reading the question."""
    if question.kind == "story":
        a, b = map(int, re.findall(r"\d+", question.prompt))
        return a + b if "gets" in question.prompt else a - b
    a, sign, b = re.fullmatch(r"(\d+) ([-+*]) (\d+) =", question.prompt).groups()
    return {"+": int(a) + int(b), "-": int(a) - int(b), "*": int(a) * int(b)}[sign]


@pytest.mark.parametrize("length", LENGTHS.values(), ids=LENGTHS)
def test_questions_have_right_answers_and_pairs_that_no_training_text_has(length):
    asked = arithmetic.questions(length, length.questions)
    assert len({q.prompt for q in asked}) == len(asked) == length.questions
    assert {q.kind for q in asked} <= set(arithmetic.KINDS)
    assert all(right(q) == int(q.answer) for q in asked)
    rng = random.Random(0)
    trained = [arithmetic.draw(rng, length, test=False) for _ in range(3000)]
    assert all(right(q) == int(q.answer) for q in trained)
    assert not {q.pair for q in trained} & {q.pair for q in asked}
    assert not {q.prompt for q in trained} & {q.prompt for q in asked}
    assert {q.kind for q in trained} == set(arithmetic.KINDS)


def test_the_split_is_by_pairs_in_either_order_and_about_a_tenth():
    pairs = [(a, b) for a in range(100) for b in range(100)]
    assert all(arithmetic.is_test(a, b) == arithmetic.is_test(b, a) for a, b in pairs)
    assert 0.08 < sum(arithmetic.is_test(*pair) for pair in pairs) / len(pairs) < 0.12


def test_the_same_seed_makes_the_same_study():
    made = texts.documents(SMOKE, lambda text: len(text) < 200)
    assert made == texts.documents(SMOKE, lambda text: len(text) < 200)
    assert len(made) == SMOKE.pages + SMOKE.passages
    assert all(text.startswith("\n") and 100 < len(text) < 200 for text in made[SMOKE.passages :])
    assert arithmetic.questions(QUICK, 20) == arithmetic.questions(QUICK, 30)[:20]


def test_the_tokenizers_read_numerals_as_they_should(study):
    cut = {name: load_vocabulary(texts.tokenizer(study.base, name)) for name in texts.TOKENIZERS}
    for name, wanted in (("student", [b"137"]), ("digits", [b"1", b"3", b"7"]), ("matching", [b"137"])):
        vocabulary = cut[name]
        ids = vocabulary.encode("\n100 + 37 = 137\n").tolist()
        spelled = [vocabulary.token_bytes[i] for i in ids]
        assert spelled[0] == spelled[-1] == b"\n"
        assert spelled[-1 - len(wanted) : -1] == wanted
    assert len({vocabulary.digest for vocabulary in cut.values()}) == 3
    numerals = {str(n).encode() for n in range(1000)}
    assert numerals <= cut["student"].id_of_bytes.keys() & cut["matching"].id_of_bytes.keys()


def test_held_out_passages_are_in_no_training_text(study):
    read = "".join(json.loads(line)["text"] for line in texts.training_text(study.base).read_text().splitlines())
    passages = texts.held_out(5)
    assert len(passages) == 5
    assert not [p for p in passages if p.strip() in read]


def test_students_see_the_same_samples_whoever_teaches(study):
    cut = {name: load_vocabulary(texts.tokenizer(study.base, name)) for name in texts.TOKENIZERS}
    config = texts.samples(study.base, SMOKE, 1, SMOKE.student_length)
    seen = []
    for names in (("digits",), ("matching",), ("student",), ("digits", "matching")):
        sides = [Tokenization(cut[name], texts.positions(name, SMOKE)) for name in names]
        made, _ = config.build(cut["student"], sides)
        assert all(len(side.chunks) > 20 for side in made[0].teachers)
        seen.append(np.stack([made[n].student.tokens for n in range(len(made))]))
    assert all(np.array_equal(seen[0], other) for other in seen)


def test_what_is_done_is_kept_and_other_settings_are_other_students(study, prepared):
    arms = [arm_named("ce"), arm_named("digits/p_kl")]
    tasks = study.tasks(arms, 2)
    assert [t.label for t in tasks] == ["ce, seed 0", "digits/p_kl, seed 0", "ce, seed 1", "digits/p_kl, seed 1"]
    assert study.pending(tasks) == tasks
    assert [t.needs for t in tasks[:2]] == [("start",), ("start", "digits")]
    study.keep(tasks[1], {"measures": {"accuracy": 0.5}})
    assert study.pending(tasks) == [tasks[0], tasks[2], tasks[3]]
    assert Study(study.base.parent, SMOKE).result(tasks[1])["measures"] == {"accuracy": 0.5}
    (study.results / f"{tasks[1].stem}.json").write_text('{"key": "of other settings"}')
    assert tasks[1] in study.pending(tasks)
    assert len({study.run_folder(t) for t in tasks}) == 4


def test_each_result_follows_from_the_settings_that_it_uses(study, prepared):
    root = study.base.parent
    tasks = [Task("digits"), Task("matching"), Task("start")]
    tasks += study.tasks([arm_named("ce"), arm_named("digits/p_kl"), arm_named("matching/p_kl")], 1)
    for task in tasks:
        study.keep(task, {"measures": {}})
    changed = {
        "digits_steps": {"teacher digits", "digits/p_kl, seed 0"},
        "start_steps": {"start", "ce, seed 0", "digits/p_kl, seed 0", "matching/p_kl, seed 0"},
        "weak_steps": set(),
        "steps": {"ce, seed 0", "digits/p_kl, seed 0", "matching/p_kl, seed 0"},
        "warmup": {task.label for task in tasks},
    }
    for setting, wanted in changed.items():
        other = Study(root, dataclasses.replace(SMOKE, **{setting: getattr(SMOKE, setting) + 1}))
        assert {task.label for task in other.pending(tasks)} == wanted, setting


def test_every_arm_has_a_name_of_its_own_and_a_loss_that_exists():
    assert len({arm.name for arm in ARMS}) == len(ARMS)
    assert {lesson.loss for arm in ARMS for lesson in arm.lessons} == set(LOSSES) - {
        "nrl_gold",
        "nrl_h_kl",
        "csd",
        "bpm",
        "alm",
    }
    assert set(QUICK.core) <= {arm.name for arm in ARMS}


def test_intervals_of_known_samples():
    found = statistics.estimate([9.0, 10.0, 11.0])
    assert found.mean == pytest.approx(10)
    assert found.half == pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)  # t with 2 degrees of freedom
    assert statistics.estimate([1.0] * 4).half == 0
    assert statistics.estimate([3.0]).half == math.inf


def test_differences_are_paired_by_seed():
    found = statistics.difference({0: 1.5, 1: 11.5, 2: 21.5, 3: 7.0}, {0: 1.0, 1: 11.0, 2: 21.0})
    assert (found.mean, found.count, found.clear) == (0.5, 3, True)
    assert statistics.difference({0: 1.0}, {1: 1.0}) is None


def test_calibration_error_of_known_answers():
    assert statistics.calibration_error([1.0, 1.0, 0.0, 0.0], [True, True, False, False]) == 0
    assert statistics.calibration_error([0.95, 0.95], [True, False]) == pytest.approx(0.45)
    assert statistics.calibration_error([0.95, 0.15], [False, False]) == pytest.approx(0.55)


def result(**measures):
    names = ("accuracy", "right_answer", "numerals", "calibration_error", "arithmetic_ce", "text_ce")
    cost = {"steps": 10, "seconds": 5.0}
    return {"measures": dict.fromkeys(names, 0.25) | measures, "cost": cost, "course": []}


def test_table_has_every_arm_and_says_what_is_clear():
    results = {"ce": (0.1, 0.3), "digits/p_kl": (0.5, 0.7)}
    found = summary({name: {n: result(accuracy=a) for n, a in enumerate(both)} for name, both in results.items()})
    assert found["digits/p_kl"]["above_ce"]["accuracy"]["mean"] == pytest.approx(0.4)
    lines = table(found, {}).splitlines()
    assert lines[2].startswith("| ce | 20.0 ± 127.1 |")
    assert "**+40.0 ± 0.0**" in lines[3]
    json.dumps(found, allow_nan=False)


def test_holms_correction():
    assert statistics.holm([0.04, 0.01, 0.03, 0.5]) == pytest.approx([0.09, 0.04, 0.09, 0.5])
    assert statistics.holm([0.9, 0.8]) == [1.0, 1.0]
    stats = pytest.importorskip("scipy.stats")
    values = [0.4, 0.9, 0.7, 1.6]
    assert statistics.estimate(values).p == pytest.approx(stats.ttest_1samp(values, 0).pvalue)


def test_a_claim_holds_by_the_correction_over_all_of_them():
    """Those that were not made count in it."""
    wanted, numbers = dict(enumerate((0.02, 0.021, 0.022))), dict(enumerate((0.9, 0.91, 0.905)))
    results = {
        "ce": {n: result(text_ce=1.0, numerals=0.9) for n in range(3)},
        "digits/prefix_kl": {n: result(text_ce=1.0 - less) for n, less in wanted.items()},
        "digits/p_kl": {n: result(text_ce=1.0 + more) for n, more in wanted.items()},
        "digits/gold": {n: result(numerals=0.9 + low) for n, low in enumerate((-0.5, 0.4, -0.3))},
        "digits/h_kl": {n: result(numerals=high) for n, high in numbers.items()},
    }
    found = judged(summary(results))
    each = {(f.comparison.arm, f.comparison.measure): f for every in found.values() for f in every}
    count = sum(len(claim.comparisons) for claim in CLAIMS)
    assert len(each) == count == 10
    made = sorted(f.estimate.p for f in each.values() if f.estimate)
    least = each["digits/p_kl", "text_ce"]
    assert least.p == pytest.approx(count * made[0])
    assert each["digits/prefix_kl", "text_ce"].verdict == "holds"
    assert least.verdict == "the opposite holds"
    assert each["digits/gold", "numerals"].verdict == each["digits/h_kl", "numerals"].verdict == "not shown"
    assert each["matching/h_kl", "text_ce"].verdict == "not run"
    assert claims_table(summary(results)).count("\n") == count + 2
    assert set(arms_of_claims()) <= {arm.name for arm in ARMS}


class Parrot:
    """A model that knows one text: after each of its tokens the next one has a probability of about 0.8."""

    def __init__(self, vocabulary, text):
        self.tokenizer, self.module = self, torch.nn.Identity()
        self.vocabulary, self.vocab_size = vocabulary, vocabulary.size
        self.ids = vocabulary.encode(text).tolist()
        self.head = self

    @property
    def weight(self):
        return torch.eye(self.vocab_size)

    @property
    def output(self):
        return self

    def output_of(self, inputs):
        hidden = torch.zeros(*inputs.tokens.shape, self.vocab_size)
        for row, tokens in zip(hidden, inputs.tokens.tolist(), strict=True):
            for at in range(len(tokens)):
                if self.ids[: at + 1] == tokens[: at + 1] and at + 1 < len(self.ids):
                    row[at, self.ids[at + 1]] = math.log(4 * (self.vocab_size - 1))
        self.hidden = hidden.flatten(0, 1)
        return self


@pytest.mark.parametrize("name", texts.TOKENIZERS)
def test_measures_of_a_model_that_knows_one_answer(study, name):
    known = arithmetic.Question("sum", "12 + 34 =", "46", (12, 34))
    other = arithmetic.Question("sum", "5 + 71 =", "76", (5, 71))
    vocabulary = load_vocabulary(texts.tokenizer(study.base, name))
    model = Parrot(vocabulary, "\n" + known.line)
    found = measures.measure(model, [other, known], ["\n" + known.line])
    (_, unsure), (said, sure) = measures.answers(model, vocabulary, [other.prompt, known.prompt])
    pieces = 2 if name == "digits" else 1
    assert said == "46"
    assert sure == pytest.approx(0.8 ** (pieces + 2), rel=1e-4)  # the blank before, and the line break
    assert unsure < 1e-6
    assert found["accuracy"] == found["accuracy_sum"] == 0.5
    assert found["right_answer"] == pytest.approx(0.8 ** (pieces + 1) / 2, rel=1e-3)
    assert 0.4 * 0.8 ** (pieces - 1) < found["numerals"] < 0.85
    tokens = len(vocabulary.encode("\n" + known.line)) - 1
    assert found["text_ce"] == pytest.approx(-tokens * math.log(0.8) / len(known.line), rel=1e-4)


def ended(tmp_path, tasks, do, jobs=2):
    """Does the tasks in a process of its own: its exit status."""
    pid = os.fork()
    if pid == 0:
        status = 99
        try:
            status = len(study_module._each(tasks, do, jobs, lambda task: tmp_path / f"{task.stem}.log"))
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    return pid


def test_tasks_run_in_processes_and_failures_are_counted(tmp_path, capfd):
    tasks = [Task(name, arm_named("ce"), seed) for seed, name in enumerate(("good", "bad", "better"))]

    def do(task):
        print("working")
        if task.name == "bad":
            raise ValueError("too bad")
        (tmp_path / task.name).write_text(str(os.getpid()))

    _, status = os.waitpid(ended(tmp_path, tasks, do), 0)
    assert os.waitstatus_to_exitcode(status) == 1
    assert (tmp_path / "good").read_text() != (tmp_path / "better").read_text()
    assert (tmp_path / "good-0.log").read_text() == "working\n"
    written = capfd.readouterr()
    assert "[3/3]" in written.out
    assert "ValueError: too bad" in written.err


def test_a_student_waits_for_its_teachers_and_not_for_others(tmp_path, capfd):
    teachers = [Task("digits"), Task("matching"), Task("start")]
    students = [Task(name, arm_named(name)) for name in ("digits/p_kl", "matching/p_kl", "ce")]

    def do(task):
        with open(tmp_path / "order", "a") as file:
            file.write(f"{task.label}\n")
        time.sleep(0.2)
        if task.name == "digits":
            raise ValueError("it learned nothing")

    _, status = os.waitpid(ended(tmp_path, [*teachers, *students], do), 0)
    assert os.waitstatus_to_exitcode(status) == 1
    order = (tmp_path / "order").read_text().splitlines()
    assert set(order[:3]) == {"teacher digits", "teacher matching", "start"}
    assert sorted(order[3:]) == ["ce, seed 0", "matching/p_kl, seed 0"]
    assert "not begun: digits/p_kl, seed 0" in capfd.readouterr().err


def test_a_study_that_is_ended_ends_its_trainings(tmp_path):
    def do(task):
        (tmp_path / "pid").write_text(str(os.getpid()))
        time.sleep(60)

    study = ended(tmp_path, [Task("long", arm_named("ce"))], do)
    end = time.monotonic() + 30
    while not ((tmp_path / "pid").is_file() and (tmp_path / "pid").read_text()) and time.monotonic() < end:
        time.sleep(0.05)
    child = int((tmp_path / "pid").read_text())
    os.kill(study, signal.SIGTERM)
    os.waitpid(study, 0)
    while Path(f"/proc/{child}").exists() and time.monotonic() < end:
        time.sleep(0.05)
    assert not Path(f"/proc/{child}").exists()
