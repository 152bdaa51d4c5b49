"""A teacher on disk is read before its time: in order, each once, by a thread, and faults come in the step."""

import sys
import threading
from collections import Counter
from types import SimpleNamespace

import pytest
import torch

from nemo_xtoken.data.batch import TeacherSide
from nemo_xtoken.errors import InputError
from nemo_xtoken.parallel.context_parallel import ContextLayout
from nemo_xtoken.teachers.cached import CachedTeacher
from nemo_xtoken.teachers.fingerprint import Fingerprint
from nemo_xtoken.teachers.source_settings import CacheConfig, ServiceConfig
from nemo_xtoken.teachers.store.read_ahead import ReadAhead
from nemo_xtoken.teachers.store.sampled_rows import SAMPLES
from nemo_xtoken.teachers.store.state_formats import format_for
from nemo_xtoken.teachers.store.state_store import StateStore
from nemo_xtoken.teachers.store.state_writer import StateWriter

LENGTH, WIDTH, IDS = 8, 4, 100
OF = Fingerprint("w" * 64, "a" * 64, "t" * 64, WIDTH, "float32")


def ids_of(text):
    return torch.randint(0, IDS, (LENGTH,), generator=torch.Generator().manual_seed(text))


def labels_of(text):
    return ids_of(text).roll(-1)


def states_of(text, form):
    numbers = torch.Generator().manual_seed(1000 + text)
    if form != "sampled":
        return torch.randn(LENGTH, WIDTH, generator=numbers)
    ids = torch.randint(0, IDS, (LENGTH, SAMPLES), generator=numbers)
    return torch.cat([ids, labels_of(text)[:, None], -torch.rand(LENGTH, 1, generator=numbers)], 1).float()


def side(*texts):
    """A micro-batch of whole documents of LENGTH tokens, each named by a number."""
    tokens, labels = (torch.stack([of(text) for text in texts]) for of in (ids_of, labels_of))
    nothing, rows = torch.zeros(0, 5, dtype=torch.int64), torch.arange(len(texts))
    pieces = torch.stack([rows, rows * 0, rows * 0 + LENGTH, rows * 0], 1)
    digests = torch.tensor([[text, *[7] * 15] for text in texts], dtype=torch.uint8)
    positions = torch.arange(LENGTH).expand_as(tokens)
    return TeacherSide(tokens, positions, tokens * 0, rows, labels, pieces, digests, nothing, nothing)


def write(folder, texts, form):
    with StateWriter(folder, OF, format_for(form, OF.dtype), shard_bytes=1) as writer:
        for text in texts:
            writer.add(bytes([text, *[7] * 15]), 0, ids_of(text).int().numpy(), states_of(text, form))
        writer.finish()


def zigzag(one):
    return ContextLayout.zigzag(*one.tokens.shape, None)


@pytest.fixture(params=["fp32", "sampled"])
def form(request):
    return request.param


@pytest.fixture
def student(tmp_path, monkeypatch, form):
    """``student(texts, ahead, layout)``: a teacher whose states of these texts are on disk; ``.reads`` of all."""
    parallel = SimpleNamespace(is_pipeline_last_stage=lambda: True)
    monkeypatch.setitem(sys.modules, "megatron.core", SimpleNamespace(parallel_state=parallel))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    original, made = StateStore.read, []

    def read(self, segment, ids, dtype):
        make.reads.append((threading.current_thread(), tuple(ids.tolist())))
        return original(self, segment, ids, dtype)

    monkeypatch.setattr(StateStore, "read", read)

    def make(texts, ahead=2, layout=zigzag):
        write(tmp_path, texts, form)
        settings = SimpleNamespace(
            source="cached", service=ServiceConfig(ahead=ahead), cache=CacheConfig(str(tmp_path))
        )
        host = SimpleNamespace(
            label="teacher", settings=settings, dtype=torch.float32, config=SimpleNamespace(hidden_size=WIDTH),
            form=SimpleNamespace(context_layout=layout), fingerprint=lambda: OF,
        )  # fmt: skip
        made.append(CachedTeacher.open(host))
        return made[-1]

    make.reads = []
    yield make
    for one in made:
        one.close()


def read_all(teacher):
    """Until the thread has nothing to do."""
    reader = teacher._reader
    with reader._change:
        assert reader._change.wait_for(lambda: reader._wanted == reader._found.keys(), 30)


def check(teacher, one, texts, form):
    [states] = teacher.states([one])
    assert torch.equal(states.hidden, torch.cat([states_of(text, form) for text in texts]))


def test_a_step_reads_nothing_that_was_announced(student, form):
    """In the order of the steps, each once, what nobody has announced among it; and nothing is held afterwards."""
    before = set(threading.enumerate())
    teacher = student(range(10))
    texts = [[0, 1], [2, 3], [4, 0], [5, 6]]
    steps = [side(*two) for two in texts]
    assert teacher.ahead == 2
    for one in steps:
        teacher.announce([one])
    read_all(teacher)
    ahead = list(student.reads)
    assert [ids for _, ids in ahead] == [tuple(ids_of(text).tolist()) for two in texts for text in two]
    for one, two in zip(steps[:2], texts[:2], strict=True):
        check(teacher, one, two, form)
    assert student.reads == ahead
    check(teacher, side(9, 7), [9, 7], form)  # held-out text
    assert len(student.reads) == len(ahead) + 2
    for one, two in zip(steps[2:], texts[2:], strict=True):
        check(teacher, one, two, form)
    assert len(student.reads) == len(ahead) + 2
    assert threading.main_thread() not in {thread for thread, _ in student.reads}
    assert not teacher._reader._wanted
    assert not teacher._reader._found
    teacher.close()
    assert set(threading.enumerate()) == before


def test_what_is_due_comes_before_what_is_ahead(student, form):
    teacher = student(range(6))
    teacher._reader.lock.acquire()
    teacher.announce([side(0), side(1), side(2)])
    threading.Timer(0.2, teacher._reader.lock.release).start()  # the thread is at the first of them
    check(teacher, side(5), [5], form)
    read_all(teacher)
    order = [ids for _, ids in student.reads]
    assert order.index(tuple(ids_of(5).tolist())) <= 1
    assert Counter(order).most_common(1)[0][1] == 1


def test_a_context_parallel_rank_holds_its_own_rows_alone(student, form):
    def halves(one):
        return ContextLayout(torch.tensor([[0, 1, 6, 7], [2, 3, 4, 5]]))

    teacher, one = student([1], layout=halves), side(1)
    teacher.announce([one])
    read_all(teacher)
    assert [found.shape[0] for found in teacher._reader._found.values()] == [4]
    [states] = teacher.states([one])
    assert torch.equal(states.hidden, states_of(1, form)[[0, 1, 6, 7]])


@pytest.mark.parametrize("fault", ["damaged", "gone", "missing", "labels"])
def test_a_fault_comes_in_the_step_that_it_is_of(student, tmp_path, form, fault):
    """Not before, and with the words of a teacher that reads within the step."""
    if fault == "labels" and form != "sampled":
        pytest.skip("states know no labels")
    teacher = student(range(4))
    file = sorted(tmp_path.glob("states-*"))[2]
    if fault == "damaged":
        content = bytearray(file.read_bytes())
        content[-3] ^= 1
        file.write_bytes(content)
    elif fault == "gone":
        file.unlink()
    bad = side(9) if fault == "missing" else side(2)
    if fault == "labels":
        bad.labels[0, 3] += 1
    words = {"missing": "no states of the teacher for sample 0", "labels": "other next tokens"}.get(fault, file.name)
    teacher.announce([side_0 := side(0), bad, side_3 := side(3)])
    read_all(teacher)
    check(teacher, side_0, [0], form)
    for one in (bad, side(9) if fault == "missing" else bad):
        with pytest.raises(InputError, match=words):
            teacher.states([one])
    check(teacher, side_3, [3], form)


def test_a_stage_without_a_loss_reads_nothing(student):
    teacher = student(range(2))
    teacher.last_stage = False
    teacher.announce([side(0)])
    assert teacher._reader._thread is None


def test_what_is_forgotten_while_it_is_read_is_not_kept():
    reader = ReadAhead()
    begun, go_on = threading.Event(), threading.Event()

    def reading():
        begun.set()
        go_on.wait()
        return torch.zeros(1)

    reader.want("one", reading)
    reader.want("two", lambda: torch.ones(1))
    begun.wait()
    reader.forget("one")
    go_on.set()
    assert reader.get("two") == 1
    assert list(reader._found) == ["two"]
    with pytest.raises(RuntimeError, match="nobody reads"):
        reader.get("one")
    reader.close()
    with pytest.raises(RuntimeError, match="nobody reads"):
        reader.get("three")
