"""``distill`` under Megatron-Bridge: stops, the run folder, teachers elsewhere, evaluation during a run."""

import shlex
import shutil
import signal
from pathlib import Path

import pytest
from damage import flip_first_bit
from launcher import launch

from nemo_xtoken.errors import InputError
from nemo_xtoken.run.records import read_evaluations, read_history
from nemo_xtoken.teachers.source_settings import CacheConfig, ServiceConfig
from nemo_xtoken.weights.checkpoint_names import bridge_checkpoints

pytestmark = pytest.mark.usefixtures("megatron", "bridge")


@pytest.fixture(scope="module")
def one(bridge_world):
    """Four steps on one rank, whose teacher is beside the student."""
    return _steps(bridge_world.run("runs_one"))


def _steps(records):
    return [record for record in records if "ce" in record]


def _distil(world, name, ranks=1, when=None, named=None, **settings):
    import functools

    from bridge_jobs import Job, distil
    from launcher import start

    job = Job(str(world.root), name, **settings)
    function = functools.partial(distil, **(named or {}))
    return start(function, job, ranks=ranks, folder=world.root / "logs" / name, when=when)


def _after_steps(world, name, steps, action):
    """What `start` calls: acts once the history has so many steps."""

    def look(pids):
        if len(_steps(read_history(world.root / "runs" / name))) < steps:
            return False
        action(pids)
        return True

    return look


def test_sigterm_ends_a_run_with_a_checkpoint_of_the_step_at_hand(bridge_world):
    """Its exit status says that the same command goes on; one rank alone may get the signal."""
    import os

    name, settings = "stopped", {"steps": 30, "micro": 1}
    stop = _after_steps(bridge_world, name, 2, lambda pids: os.kill(pids[1], signal.SIGTERM))
    ended = _distil(bridge_world, name, 2, stop, **settings)
    assert [end.status for end in ended] == [75, 75], ended[0].log[-3000:]
    folder = bridge_world.root / "runs" / name
    assert not (folder / ".occupied").exists()
    done = _steps(read_history(folder))[-1]["step"]
    assert 2 <= done < 30
    assert next(iter(bridge_checkpoints(folder))) == done


def test_a_run_that_gets_no_better_ends_by_itself(bridge_world):
    """No step makes it better by so much.  It is whole: the same command trains no more, and reports again.

    Sequence parallelism has no ranks to cut for, and is left out as under NeMo 2.
    """
    from nemo_xtoken.training.watching.early_stopping import StopConfig

    name, settings = "early", {"steps": 20, "named": {"stop": StopConfig(1, "kd/teacher", 100.0), "export": True}}
    settings["strategy"] = {"sequence_parallel": True}
    folder = bridge_world.root / "runs" / name
    for _ in range(2):
        [end] = _distil(bridge_world, name, **settings)
        assert end.status == 0, end.log[-3000:]
        *_, evaluated, last = read_history(folder)
        assert [record["step"] for record in _steps(read_history(folder))] == [1, 2]
        assert (evaluated["step"], last["step"]) == (2, 2)
        assert "no held-out KD of teacher better by 100 than" in last["stopped_early"]
        assert f"{evaluated['held_out_kd/teacher']:.3f}" in end.log
        assert "stopped early after step 2 of 20" in end.log
        assert list(bridge_checkpoints(folder)) == [2]
        assert (folder / "student" / "config.json").is_file()
        assert (folder / "samples.md").read_text().count("## after step") == 2


def test_another_loss_goes_on_and_is_said(bridge_world):
    """By the first rank, once: what is the same again is not news.  The warm-up may be longer than the run."""
    name, changed = "other_loss", {"scale": 0.5, "teacher": {"loss": "uld"}, "warmup": 12}
    bridge_world.courses(name, 2, micro=1, stop=2, warmup=12)
    for steps, expected in ((4, [1, 0]), (6, [0, 0])):
        ranks = bridge_world.courses(name, 2, micro=1, steps=steps, **changed)
        said = [[line for line in rank["said"] if "other settings" in line] for rank in ranks]
        assert [len(lines) for lines in said] == expected
        if steps == 4:
            assert said[0] == [
                "from step 3 on with other settings than before: objective.scale=0.5 (before: dynamic), "
                "teacher.loss=uld (before: p_kl)"
            ]
    assert [record["step"] for record in _steps(ranks[0]["records"])] == [1, 2, 3, 4, 5, 6]
    assert any("6 of 6 steps" in line and "lr 5.00e-04" in line for line in ranks[0]["said"])
    ranks = bridge_world.courses(name, 2, micro=1, steps=6)  # finished: nothing is trained with the loss of before
    assert not [line for rank in ranks for line in rank["said"] if "other settings" in line]


def test_a_folder_goes_on_with_its_own_student_alone(bridge_world):
    """Of the same architecture and tokenizer; the folder's checkpoint would go before it."""
    root, name = bridge_world.root, "other_student"
    bridge_world.courses(name, micro=1, stop=2)
    shutil.copytree(root / "student", root / "student_again")  # somewhere else, the same
    shutil.copytree(root / "student", root / "student_later")
    flip_first_bit(root / "student_later" / "model.safetensors", "model.norm.weight")
    [end] = _distil(bridge_world, name, micro=1, steps=3, start="student_later")
    assert isinstance(end.error, InputError)
    run, given = root / "runs" / name, root / "student_later"
    assert end.error.found == f"the run in {run} began from another student than {given}"
    [end] = _distil(bridge_world, name, micro=1, steps=3, start="student_again")
    assert end.status == 0, end.log[-3000:]
    assert [record["step"] for record in _steps(read_history(root / "runs" / name))] == [1, 2, 3]


def test_one_process_at_a_time_is_in_a_runs_folder(bridge_world):
    import os

    from nemo_xtoken.occupied import Occupied

    with Occupied(bridge_world.root / "runs/held"):
        [end] = _distil(bridge_world, "held")
    assert end.status == 1
    assert f"is held by process {os.getpid()}" in end.log


def test_of_two_runs_that_want_one_cached_teacher_the_second_waits_for_it(bridge_world):
    """The first stands still until the second has come; it is trained once."""
    import os

    from bridge_jobs import cached_teacher
    from launcher import start

    from nemo_xtoken.occupied import FILE

    root, logs, steps, second = str(bridge_world.root), bridge_world.root / "logs", 4, []

    def come(pids):
        if not any(bridge_world.root.glob(f"cache/tiny/*/bridge-*/{FILE}")):
            return False

        def go_on(_):
            log = logs / "tiny_second/log.0"
            if not log.exists() or "waiting for its end" not in log.read_text():
                return False
            os.kill(pids[0], signal.SIGCONT)
            return True

        os.kill(pids[0], signal.SIGSTOP)
        try:
            second.extend(start(cached_teacher, root, steps, folder=logs / "tiny_second", when=go_on))
        finally:
            os.kill(pids[0], signal.SIGCONT)
        return True

    [first] = start(cached_teacher, root, steps, folder=logs / "tiny_first", when=come)
    ended = [first, *second]
    assert [end.status for end in ended] == [0, 0], [end.log[-3000:] for end in ended]
    assert ended[0].result == ended[1].result
    folder = Path(first.result).parent
    assert [record["step"] for record in _steps(read_history(folder))] == [1, 2, 3, 4]
    assert not (folder / FILE).exists()


def test_checkpoints_are_evaluated_beside_training(bridge_world, tmp_path):
    from nemo_xtoken.evaluate.evaluation_config import EvaluationConfig

    script = tmp_path / "take.sh"
    script.write_text('echo "$1" >> "$0.taken"\n')
    beside = EvaluationConfig(every=2, tasks="winogrande", shots=1, submit=f"sh {script}")
    [end] = _distil(bridge_world, "evaluated", named={"evaluate": beside})
    assert end.status == 0, end.log[-3000:]
    jobs = [shlex.split(line)[3:] for line in (tmp_path / "take.sh.taken").read_text().splitlines()]
    assert all(words[:2] == ["evaluate", f"run={bridge_world.root}/runs/evaluated"] for words in jobs)
    assert {"step=4"} <= {words[2] for words in jobs} <= {"step=2", "step=4"}
    pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed")
    launch(_evaluate, str(bridge_world.root / "runs/evaluated"), folder=tmp_path / "evaluation")
    [found] = read_evaluations(bridge_world.root / "runs/evaluated")
    assert (found["step"], found["task"], found["samples"], found["shots"]) == (4, "winogrande", 2, 1)
    assert found["score"] in (0.0, 50.0, 100.0)


def _evaluate(run):
    """What such a job does with the last checkpoint: Bridge exports it, and lm-evaluation-harness reads that."""
    from bridge_jobs import on_cpu
    from task_data import write_data

    from nemo_xtoken.evaluate.benchmark_columns import read_columns
    from nemo_xtoken.evaluate.harness import sources_of
    from nemo_xtoken.evaluate.suite import chosen, evaluate_checkpoint, find_checkpoints
    from nemo_xtoken.evaluate.task_settings import Settings
    from nemo_xtoken.plugin.bridge.bridge_conversion import export_model

    on_cpu()
    folder, columns = Path(run), read_columns("winogrande")
    data = write_data(sources_of(columns), folder / "tasks")
    [last, *_] = chosen(find_checkpoints(folder))
    settings = Settings(data=str(data), device="cpu", limit=2, shots=1)
    evaluate_checkpoint(folder, last, columns, settings=settings, export=export_model)


@pytest.fixture
def service(bridge_world, tmp_path):
    from bridge_jobs import on_cpu
    from service import Service

    made = Service(tmp_path / "service", bridge_world.root / "teacher", on_cpu)
    yield made
    made.close()


def _remote(service, **settings):
    return {"teacher": {"source": "remote", "service": ServiceConfig(str(service.folder), **settings)}}


def _same(found, expected):
    assert [r["step"] for r in found] == [r["step"] for r in expected]
    for a, b in zip(found, expected, strict=True):
        for name in ("ce", "kd", "scale", "chunks"):
            assert a[name] == pytest.approx(b[name], rel=1e-5), name


def test_a_served_teacher_teaches_as_one_beside_the_student_and_a_run_that_loses_it_goes_on(one, bridge_world, service):
    service.start("one")
    lose = _after_steps(bridge_world, "served", 2, lambda pids: service.signal("one", signal.SIGKILL))
    settings = {"steps": 40, **_remote(service, silent=1.0, lost=4.0)}
    [end] = _distil(bridge_world, "served", when=lose, **settings)
    assert end.status == 75, end.log[-3000:]
    folder = bridge_world.root / "runs/served"
    assert next(iter(bridge_checkpoints(folder))) == _steps(read_history(folder))[-1]["step"] < 40
    service.start("again", 2, tp=2)
    found = bridge_world.run("served_whole", **_remote(service))
    _same(_steps(found), one)


def test_a_cached_teacher_teaches_as_one_beside_the_student(one, bridge_world):
    from bridge_jobs import cache
    from launcher import launch

    folder = bridge_world.root / "states"
    launch(cache, str(bridge_world.root), str(folder), folder=bridge_world.root / "logs/cache")
    found = bridge_world.run("cached", teacher={"source": "cached", "cache": CacheConfig(str(folder))})
    _same(_steps(found), one)


def test_a_model_gets_another_tokenizer_and_learns_from_itself(bridge_world):
    import json

    from bridge_jobs import swap
    from launcher import launch

    from nemo_xtoken.vocab.loading import load_vocabulary

    [folder] = launch(swap, str(bridge_world.root), "swapped", folder=bridge_world.root / "logs/swap")
    measured = json.loads((folder / "bits.json").read_text())
    assert set(measured) == {"original", "transplanted", "cross-entropy only", "distilled"}
    assert len({model["per_byte"] for model in measured.values()}) == 4
    assert measured["original"]["size"] == measured["distilled"]["size"]
    expected = load_vocabulary(str(bridge_world.root / "new_tokenizer"))
    assert load_vocabulary(str(folder / "student")).digest == expected.digest
