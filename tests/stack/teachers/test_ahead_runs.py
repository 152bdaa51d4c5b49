"""A teacher one micro-batch ahead teaches by the same bits, in every layout; what it launches is no race on a GPU."""

import functools
import os
import signal

import pytest
import torch
from launcher import launch, start
from watchers import Watcher

from nemo_xtoken.errors import InputError

pytestmark = pytest.mark.usefixtures("nemo")

STEPS = (0, 1, 2)
AHEAD = {"teacher_config": {"ahead": True}}
LAYOUTS = {
    "micro1": (1, {"micro": 1}),
    "without_accumulation": (1, {"micro": 4}),
    "held_out": (1, {"validate": 1}),
    "packed": (1, {"text": {"pack": True}, "lengths": True}),
    "dp2": (2, {"micro": 1}),
    "tp2": (2, {"tp": 2, "sequence_parallel": True}),
    "cp2": (2, {"cp": 2}),
    "cp2_packed": (2, {"cp": 2, "text": {"pack": True}, "lengths": True}),
    "tp2_cp2": (4, {"tp": 2, "cp": 2, "sequence_parallel": True}),
    "dropout": (1, {"dropout": 0.1}),
}


@pytest.fixture(scope="module")
def course(world):
    """``course(name, ranks, **settings)``: every rank's results of three steps; each set of settings runs once."""
    import jobs
    from watchers import Gradients, Totals, Weights

    @functools.cache
    def run(name, ranks, settings):
        given = {"text": {"pack": False}, "watchers": (Totals(), Gradients(STEPS), Weights()), **dict(settings)}
        job = world.distillation(f"ahead_{name}", **given)
        return launch(jobs.train, job, ranks=ranks, folder=world.root / "logs" / job.name)

    def take(name, ranks=1, **settings):
        return run(name, ranks, _Settings(settings))

    return take


class _Settings(dict):
    def __hash__(self):
        return hash(repr(sorted(self.items())))


def assert_same_bits(plain, ahead):
    for one, other in zip(plain, ahead, strict=True):
        assert other["totals"] == one["totals"]
        assert other["used"] == one["used"]
        assert other["weights"] == one["weights"]
        for step in STEPS:
            for name, gradient in one["gradients"][step].items():
                assert torch.equal(torch.as_tensor(other["gradients"][step][name]), torch.as_tensor(gradient)), name


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_same_bits_in_every_layout(course, layout):
    ranks, settings = LAYOUTS[layout]
    assert_same_bits(course(layout, ranks, **settings), course(f"{layout}_ahead", ranks, **settings, **AHEAD))


def test_the_same_bits_of_several_teachers(course, world):
    """One ahead and one that is not, and both, with inputs of different lengths."""
    found = []
    for ahead in ((False, False), (True, False), (True, True)):
        teachers = {
            name: {"path": world.teacher, "loss": "p_kl", "weight": weight, "length": length, "ahead": one}
            for name, weight, length, one in zip(("a", "b"), (0.5, 0.25), (96, 80), ahead, strict=True)
        }
        settings = {"micro": 1, "teacher": None, "teachers": teachers}
        found.append(course(f"several_{ahead}", **settings))
    assert_same_bits(found[0], found[1])
    assert_same_bits(found[0], found[2])


class Draws(Watcher):
    """The teacher draws random numbers, as fused attention does on a GPU even where nothing is dropped."""

    def on_train_start(self, trainer, pl_module):
        [teacher] = pl_module.teaching.teachers
        teacher.model.register_forward_pre_hook(lambda *_: self.result.update(drawn=float(torch.rand(1))))


@pytest.mark.parametrize("ahead", [False, True])
def test_what_a_teacher_draws_changes_nothing(course, world, ahead):
    import jobs
    from watchers import Weights

    [plain] = course("dropout", **LAYOUTS["dropout"][1])
    settings = {"text": {"pack": False}, "dropout": 0.1, **(AHEAD if ahead else {})}
    job = world.distillation(f"ahead_draws_{ahead}", watchers=(Weights(), Draws()), **settings)
    [found] = launch(jobs.train, job, folder=world.root / "logs" / job.name)
    assert 0 <= found["drawn"] < 1
    assert found["weights"] == plain["weights"]


class Order(Watcher):
    """``order``: what the teacher and the student do, by the sample that a micro-batch begins with."""

    def on_train_start(self, trainer, pl_module):
        from megatron.core.pipeline_parallel import schedules

        [teacher] = pl_module.teaching.teachers
        noted = self.result.setdefault("order", [])

        def note(what, call, sample):
            def noting(*arguments):
                noted.append(f"{what} {sample(*arguments)}".strip())
                return call(*arguments)

            return noting

        number = lambda one, *_: int(one.samples[0])  # noqa: E731
        teacher._line._launch = note("launch", teacher._line._launch, number)
        teacher._states = note("asked", teacher._states, number)
        pl_module.output_of = note("student", pl_module.output_of, number)
        schedules.backward_step = note("back", schedules.backward_step, lambda *_: "")

    def on_megatron_step_end(self, step, **_):
        self.result.setdefault("order", []).append("held out" if step.forward_only else "step")


def test_the_order_of_launches(world):
    """Of three steps of two micro-batches: each but the first is launched before the student's way back from the one
    before it, at the end of a step as well; nothing is launched at the end of the run, nor for held-out text."""
    import jobs

    job = world.distillation("ahead_order", watchers=(Order(),), validate=2, **AHEAD)
    [result] = launch(jobs.train, job, folder=world.root / "logs" / job.name)
    assert result["order"].count("held out") > 1
    order = _without_evaluations(result["order"])
    trained = [line.split()[1] for line in order if line.startswith("student")]
    assert len(set(trained)) == 6
    expected = []
    for at, one in enumerate(trained):
        expected += [f"asked {one}", f"student {one}"]
        expected += [f"launch {trained[at + 1]}"] if at + 1 < len(trained) else []
        expected += ["back", *(["step"] if at % 2 else [])]
    assert order == expected
    assert sum(line.startswith("launch") for line in result["order"]) == 5


def _without_evaluations(order):
    """Without the micro-batches of held-out text, which are followed by no way back."""
    kept, pending = [], []
    for line in order:
        pending.append(line)
        if line in ("back", "step"):
            kept += pending
            pending = []
        elif line == "held out":
            pending = []
    return kept


class Streams(Watcher):
    """The run on streams that are none (``streams.Watched``): ``races``, ``calls``, ``operators``, ``waits``."""

    def on_train_start(self, trainer, pl_module):
        from streams import Watched

        [teacher] = pl_module.teaching.teachers
        cuda = teacher._stream._cuda
        self.watched = Watched(cuda)
        torch.Tensor.record_stream = lambda tensor, stream: self.watched.record(tensor, stream)
        state = torch.get_rng_state  # Megatron compares it around each dropout, on the host
        torch.get_rng_state = lambda: self.watched.in_host_memory(state())
        self.watched.__enter__()

    def on_train_end(self, trainer, pl_module):
        self.watched.__exit__(None, None, None)
        cuda = self.watched.cuda
        self.result |= {"races": self.watched.races, "calls": cuda.calls, "waits": dict(cuda.waits)}
        self.result["operators"] = dict(self.watched.operators)


def on_streams(job):
    from jobs import train
    from streams import FakeCuda

    from nemo_xtoken.teachers.ahead.side_stream import SideStream

    SideStream.here = classmethod(lambda cls: cls(FakeCuda()))  # in this fork
    return train(job)


#: Ranks, layout, and waits of the host in each launch: torch's attention over context-parallel ranks, which stands in
#: for Transformer Engine's, has one in each of the teacher's four layers, to put the keys in order.
STREAMS = {"one": (1, {}, 0), "tp2": (2, {"tp": 2}, 0), "cp2": (2, {"cp": 2}, 4)}


@pytest.mark.parametrize("name", STREAMS)
def test_no_race_on_a_gpu_and_no_wait_of_the_host(world, name):
    ranks, settings, waits = STREAMS[name]
    job = world.distillation(f"ahead_streams_{name}", watchers=(Streams(),), **AHEAD, **settings)
    for result in launch(on_streams, job, ranks=ranks, folder=world.root / "logs" / job.name):
        assert result["races"] == []
        assert result["waits"].get("side1", 0) == 5 * waits
        assert not any("the host waits" in call for call in result["calls"])
        assert result["operators"]["side1"] > 5 * 50  # of five micro-batches of six
        assert result["calls"].count("side1 waits for main") == 5


def test_a_race_would_be_seen(world):
    """In the same run, where the stream does not wait for the student's."""
    import streams

    job = world.distillation("ahead_race", watchers=(Streams(),), **AHEAD)
    before = streams.Stream.wait_stream
    streams.Stream.wait_stream = lambda stream, other: None
    try:
        [result] = launch(on_streams, job, folder=world.root / "logs" / job.name)
    finally:
        streams.Stream.wait_stream = before
    assert any("main reads what side1 writes" in race for race in result["races"])


def test_a_run_that_is_stopped_goes_on_with_the_batch_after_its_last(world):
    """The one that has been looked at ahead counts for nothing."""
    import jobs
    from watchers import Pause, Weights

    settings = {"steps": 5, "save_every": 10, "dropout": 0.1, "text": {"pack": False}, **AHEAD}
    job = world.distillation("ahead_straight", watchers=(Weights(),), **settings)
    [straight] = launch(jobs.train, job, folder=world.root / "logs" / job.name)
    flag = world.root / "ahead_stopped.flag"
    job = world.distillation("ahead_stopped", **settings)

    def stop(pids):
        if not flag.exists():
            return False
        os.kill(pids[0], signal.SIGTERM)
        flag.unlink()
        return True

    folder = world.root / "logs" / job.name
    [ended] = start(jobs.train, job.but(watchers=(Pause(2, flag),)), folder=folder, when=stop)
    assert ended.status == 75, ended.log[-3000:]
    [again] = launch(jobs.train, job.but(watchers=(Weights(),)), folder=folder)
    assert again["weights"] == straight["weights"]


@pytest.mark.parametrize("weight", [False, True])
def test_states_that_are_no_numbers_stop_the_run_in_their_step(world, weight):
    """They are seen when the step is over; the message is that of a teacher that is not ahead.

    The poisoned sample is of the second micro-batch that is prepared from step 2 on, the first of step 3.
    """
    import jobs
    from watchers import Poison

    job = world.distillation(f"ahead_poisoned_{weight}", watchers=(Poison(2, weight),), steps=3, **AHEAD)
    [ended] = start(jobs.train, job, folder=world.root / "logs" / job.name)
    assert isinstance(ended.error, InputError), ended.log[-3000:]
    assert f"step {2 if weight else 3}: the teacher's output is not a number for sample" in ended.error.found
    if not weight:
        [sample] = [line.split()[-1] for line in ended.log.splitlines() if line.startswith("poisoned sample")]
        assert f"for sample {sample} of the data set" in ended.error.found


@pytest.mark.parametrize(
    ("settings", "teacher", "why"),
    [({"pp": 2}, {}, "pipeline_model_parallel_size=2"), ({}, {"tensor_model_parallel_size": 2}, "a layout of its own")],
)
def test_where_it_cannot_be_the_run_does_not_begin(world, settings, teacher, why):
    import jobs

    job = world.distillation("ahead_refused", micro=1, teacher_config={"ahead": True, **teacher}, **settings)
    for end in start(jobs.train, job, ranks=2, folder=world.root / "logs" / job.name):
        assert isinstance(end.error, InputError), end.log[-3000:]
        assert f"teacher.ahead=true (teacher) with {why}" in end.error.found
