"""A job that is stopped by a signal, at every line of the code that writes: nothing of what it keeps is damaged."""

import contextlib
import signal
import sys

import numpy as np
import pytest

from nemo_xtoken.alignment import shard_writer
from nemo_xtoken.alignment.aligned import AlignedBatch, AlignedDocument, Part
from nemo_xtoken.alignment.cache import AlignmentCache, text_digest
from nemo_xtoken.alignment.held_signals import held_signals


def document(number: int) -> AlignedDocument:
    ids = np.arange(number + 1, dtype=np.int32)
    return AlignedDocument(text_digest(f"text {number}"), ids, ids, np.array([[0, 1, 0, 1]], np.int32))


def parts_of(number: int) -> list[AlignedBatch]:
    """A document in two parts."""
    whole = document(number)
    pieces = [
        AlignedDocument(whole.digest, whole.student_ids[span], whole.teacher_ids[span], whole.chunks)
        for span in (slice(0, 2), slice(2, None))
    ]
    places = Part(True, False, True), Part(False, True, True)
    made = [AlignedBatch.of([piece]) for piece in pieces]
    for batch, place in zip(made, places, strict=True):
        object.__setattr__(batch, "part", place)
    return made


BATCHES = [
    AlignedBatch.of([document(0), document(1)]),
    AlignedBatch.of([document(2)]),
    *parts_of(5),
    AlignedBatch.of([document(3), document(4)]),
]


@contextlib.contextmanager
def signal_at(n: int | None):
    """SIGTERM before the n-th line that runs in the writer's file; gives the numbers of the lines that ran."""
    ran = []

    def trace(frame, event, argument):
        if frame.f_code.co_filename != shard_writer.__file__:
            return None
        if event == "line":
            ran.append(frame.f_lineno)
            if len(ran) - 1 == n:
                signal.raise_signal(signal.SIGTERM)
        return trace

    sys.settrace(trace)
    try:
        yield ran
    finally:
        sys.settrace(None)


@pytest.fixture
def ends_the_process():
    def stop(*_):
        raise SystemExit(143)

    before = signal.signal(signal.SIGTERM, stop)
    yield
    signal.signal(signal.SIGTERM, before)


def written(folder, stopped_at: int | None = None) -> list[int]:
    """Writes as `prepare` does, until a signal comes before the line that runs as that one; the lines that ran."""
    cache = AlignmentCache(folder, "abc", {"student": "s"})
    with cache.lock(), contextlib.closing(cache.writer()) as writer, signal_at(stopped_at) as ran:
        with contextlib.suppress(SystemExit):
            for batch in BATCHES:
                writer.add(batch)
                writer.keep()
        with contextlib.suppress(SystemExit):
            writer.publish()
    return ran


def test_a_signal_at_any_line_leaves_whole_shards(tmp_path, ends_the_process):
    ran = written(tmp_path / "whole")
    places = {line: n for n, line in reversed([*enumerate(ran)])}  # where each line runs first
    assert len(places) > 90
    for n in {*places.values(), *{line: n for n, line in enumerate(ran)}.values()}:  # and last
        folder = tmp_path / str(n)
        written(folder, n)
        cache = AlignmentCache(folder, "abc")
        assert len(cache.shards) == len([*folder.glob("shard-*")]) <= 1, ran[n]  # none is damaged
        found = [cache.shards[0].document(row) for row in range(len(cache.shards[0].scored))] if cache.shards else []
        digests = [d.digest for d in found]
        assert len(digests) == len(set(digests)), ran[n]
        for d in found:
            number = next(k for k in range(6) if document(k).digest == d.digest)
            np.testing.assert_array_equal(d.student_ids, document(number).student_ids)


def test_what_is_held_comes_at_the_end_and_once(ends_the_process):
    done = []
    with pytest.raises(SystemExit), held_signals():  # noqa: PT012
        with held_signals():
            signal.raise_signal(signal.SIGTERM)
            done.append("inner")
        done.append("outer")
    assert done == ["inner", "outer"]
    with held_signals():  # nothing is left over
        pass


@pytest.mark.parametrize("handler", [signal.default_int_handler, signal.SIG_IGN])
def test_ctrl_c_is_held_as_well_and_stays_ignored_where_it_is(handler):
    """Shells let what they start in the background ignore it."""
    done = []
    before = signal.signal(signal.SIGINT, handler)
    try:
        raised = pytest.raises(KeyboardInterrupt) if callable(handler) else contextlib.nullcontext()
        with raised, held_signals():
            signal.raise_signal(signal.SIGINT)
            done.append(1)
    finally:
        signal.signal(signal.SIGINT, before)
    assert done == [1]
