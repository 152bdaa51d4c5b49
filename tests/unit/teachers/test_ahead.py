"""What a teacher launches ahead: one micro-batch at most, in order; and what its stream waits for."""

import functools
import sys
import types
from collections import Counter

import pytest
import torch
from streams import FakeCuda, Watched

from nemo_xtoken.data.batch import Inputs
from nemo_xtoken.errors import InputError
from nemo_xtoken.run.layout import ParallelSizes, check_ahead
from nemo_xtoken.run.values import check_teacher
from nemo_xtoken.teachers.ahead.next_in_line import NextInLine
from nemo_xtoken.teachers.ahead.own_workspace import OwnWorkspace
from nemo_xtoken.teachers.ahead.side_stream import SideStream


def side(number):
    one = torch.full((1, 2), number)
    return Inputs(one, one, one, one[0, :1])


class Line:
    """A `NextInLine` whose calls are noted; `step` is a step of training as the student goes through it."""

    def __init__(self):
        self.calls = []
        self.line = NextInLine(self._prepare, self._launch)

    def _prepare(self, one):
        self.calls.append(f"prepare {int(one.tokens[0, 0])}")
        return int(one.tokens[0, 0])

    def _launch(self, one, ready):
        assert int(one.tokens[0, 0]) == ready
        self.calls.append(f"launch {ready}")
        return f"states {ready}"

    def micro_batch(self, one, train=True):
        number, given = int(one.tokens[0, 0]), self.line.take(one)
        assert given in (None, f"states {number}")
        self.calls.append(f"{'given' if given else 'compute'} {number}")
        self.line.prepare()
        if train:
            self.calls.append(f"student {number}")
            self.line.launch()
            self.calls.append(f"back {number}")


def test_the_next_is_launched_between_the_students_ways_there_and_back():
    """Over the end of a step as well; the last of a run launches nothing."""
    made = Line()
    steps = [[side(0), side(1)], [side(2), side(3)]]
    made.line.announce(steps[0])
    made.line.announce(steps[1])
    for step in steps:
        for one in step:
            made.micro_batch(one)
    expected = ["compute 0", "prepare 1", "student 0", "launch 1", "back 0"]
    expected += ["given 1", "prepare 2", "student 1", "launch 2", "back 1"]
    expected += ["given 2", "prepare 3", "student 2", "launch 3", "back 2"]
    expected += ["given 3", "student 3", "back 3"]
    assert made.calls == expected


def test_held_out_text_between_two_steps_changes_nothing():
    made, train = Line(), [side(0), side(1), side(2)]
    made.line.announce(train[:1])
    made.line.announce(train[1:2])
    made.micro_batch(side(9), train=False)  # before the first step, when some have been announced
    made.micro_batch(train[0])
    made.line.announce(train[2:])
    for number in (7, 8):
        made.micro_batch(side(number), train=False)
    made.micro_batch(train[1])
    made.micro_batch(train[2])
    launched = [call for call in made.calls if call.split()[0] in ("launch", "given", "compute")]
    assert launched == [
        "compute 9", "compute 0", "launch 1", "compute 7", "compute 8", "given 1", "launch 2", "given 2",
    ]  # fmt: skip


def test_what_is_passed_over_is_forgotten():
    """Equal tokens do not make it the same: a micro-batch is known by the tensor."""
    made = Line()
    train = [side(number) for number in range(5)]
    made.line.announce(train)
    made.micro_batch(train[0])  # 1 is launched, and not asked for
    made.micro_batch(train[3])
    made.micro_batch(train[4])
    made.micro_batch(side(4))
    assert [call for call in made.calls if call[0] in "lgc"] == [
        "compute 0", "launch 1", "compute 3", "launch 4", "given 4", "compute 4",
    ]  # fmt: skip
    assert not made.line._due


def test_one_micro_batch_is_held_at_most():
    """It is gone when it has been given, and when the run ends."""
    made = Line()
    train = [side(number) for number in range(4)]
    made.line.announce(train)
    made.line.launch()  # nothing is prepared
    made.micro_batch(train[0])
    made.line.prepare()
    made.line.launch()
    made.line.launch()
    assert Counter(made.calls)["launch 1"] == 1
    assert "launch 2" not in made.calls
    assert made.line.take(train[1]) == "states 1"
    assert made.line._launched is None
    made.line.prepare()
    made.line.launch()
    made.line.clear()
    assert (made.line._launched, made.line._ready, list(made.line._due)) == (None, None, [])


@pytest.fixture
def cuda(monkeypatch):
    made = FakeCuda()
    with Watched(made) as watched:
        monkeypatch.setattr(torch.Tensor, "record_stream", lambda tensor, stream: watched.record(tensor, stream))
        made.watched = watched
        yield made


def beside(cuda, given=True, joined=True, taken=True, waits=True):
    """A micro-batch of a teacher beside a student, each part of its order left out at will; the races."""
    stream = SideStream(cuda)
    weight = torch.ones(4, 4)
    if not waits:
        stream.stream.wait_stream = lambda _: None
    inputs = torch.ones(4) * 2
    with stream.beside([inputs] if given else []):
        states = weight @ inputs
    del inputs
    back = weight.sum()
    if joined:
        stream.join([states] if taken else [])
    loss = (states * back).sum()
    del states
    assert float(loss) == 4 * 8 * 16
    return cuda.watched.races


def test_a_stream_waits_for_what_it_reads_and_is_waited_for(cuda):
    assert beside(cuda) == []
    assert cuda.calls == ["side1 waits for main", "main waits for side1"]
    assert cuda.waits == {"main": 1}  # the test's own float


@pytest.mark.parametrize(
    ("left_out", "race"),
    [
        ("waits", "mv on side1 reads what main writes"),
        ("joined", "mul on main reads what side1 writes"),
        ("given", "memory of main is freed while side1 may use it"),
        ("taken", "memory of side1 is freed while main may use it"),
    ],
)
def test_each_part_of_the_order_is_needed(cuda, left_out, race):
    assert race in beside(cuda, **{left_out: False})


def test_the_host_never_waits_for_a_stream(cuda):
    stream = SideStream(cuda)
    with stream.beside([torch.ones(3)]):
        torch.ones(3) + 1
    stream.join()
    assert not cuda.waits
    stream.stream.synchronize()
    with stream.beside([]):
        torch.ones(3).nonzero()
        on_host = cuda.watched.in_host_memory(torch.ones(3))
        assert bool((on_host == 1).all())
    assert cuda.waits == {"side1": 2}


def test_without_cuda_there_is_no_stream():
    stream = SideStream(None)
    with stream.beside([torch.ones(1)]):
        states = torch.ones(1)
    stream.join([states])
    assert stream.stream is None


# --- the buffer of Transformer Engine's matrix products


def engine(monkeypatch, **places):
    """Its modules with only what is given, by the last part of their names."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    made = []
    for name in ("transformer_engine.pytorch.cpp_extensions.gemm", "transformer_engine.pytorch.module.base"):
        module = types.ModuleType(name)
        vars(module).update(places.get(name.rpartition(".")[2], {}))
        monkeypatch.setitem(sys.modules, name, module)
        made.append(module)
    return made


def test_products_of_a_teacher_have_a_buffer_of_their_own(monkeypatch):
    """The same one each time, and not the student's; here where a function keeps it."""

    @functools.cache
    def get_cublas_workspace(device, ub, grouped_gemm):
        return torch.empty(4)

    gemm, _ = engine(monkeypatch, gemm={"get_cublas_workspace": get_cublas_workspace})
    own, theirs = OwnWorkspace(), gemm.get_cublas_workspace(0, False, False)
    found = []
    for _ in range(2):
        with own.active():
            found.append(gemm.get_cublas_workspace(0, False, False))
        assert gemm.get_cublas_workspace(0, False, False) is theirs
    assert found[0] is found[1]
    assert found[0] is not theirs


def test_products_of_a_teacher_have_a_buffer_of_their_own_in_a_variable(monkeypatch):
    _, base = engine(monkeypatch, base={"_cublas_workspace": None})

    def product():
        if base._cublas_workspace is None:
            base._cublas_workspace = torch.empty(4)
        return base._cublas_workspace

    own, theirs = OwnWorkspace(), product()
    found = []
    for _ in range(2):
        with own.active():
            found.append(product())
        assert product() is theirs
    assert found[0] is found[1]
    assert found[0] is not theirs


def test_a_transformer_engine_that_keeps_it_elsewhere_is_refused(monkeypatch):
    engine(monkeypatch)
    with pytest.raises(InputError, match="unknown"):
        OwnWorkspace()


# --- where it is refused


@pytest.mark.parametrize(
    ("own", "student", "experts", "why"),
    [
        (ParallelSizes(), ParallelSizes(), None, None),
        (ParallelSizes(2, 1, 2), ParallelSizes(2, 1, 2), None, None),
        (ParallelSizes(2), ParallelSizes(2, expert=2, expert_tensor=2), None, None),  # a dense teacher has none
        (ParallelSizes(1, 2), ParallelSizes(1, 2), None, "pipeline_model_parallel_size=2"),
        (ParallelSizes(2), ParallelSizes(1, 2), None, "pipeline_model_parallel_size=2"),
        (ParallelSizes(), ParallelSizes(1, 2), None, "pipeline_model_parallel_size=2"),
        (ParallelSizes(2), ParallelSizes(), None, "a layout of its own"),
        (ParallelSizes(context=2), ParallelSizes(2), None, "a layout of its own"),
        (ParallelSizes(expert=2), ParallelSizes(), 4, "4 experts"),
        (ParallelSizes(), ParallelSizes(), 4, "4 experts"),
    ],
)
def test_where_it_cannot_be(own, student, experts, why):
    if why is None:
        check_ahead("teacher", "teacher", own, student, experts)
        return
    with pytest.raises(InputError) as refused:
        check_ahead("teacher one", "teachers.one", own, student, experts)
    assert refused.value.found == f"teachers.one.ahead=true (teacher one) with {why}"
    assert refused.value.fix == "set teachers.one.ahead=false"


@pytest.mark.parametrize("source", ["remote", "cached", "remote+cached", "own_layout", "my.module:Teacher"])
def test_teachers_elsewhere_have_a_setting_of_their_own(source):
    check_teacher("teacher", {"source": source})
    check_teacher("teacher", {"source": source, "ahead": False})
    check_teacher("teacher", {"source": "colocated", "ahead": True})
    with pytest.raises(InputError, match=r"teacher\.ahead=true with teacher\.source="):
        check_teacher("teacher", {"source": source, "ahead": True})
