"""States on disk: what is written comes back, whatever is damaged is named, and nothing is half there."""

import dataclasses
import os
import threading

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_disk import small_disk

from nemo_xtoken.errors import InputError
from nemo_xtoken.files import tensor_places
from nemo_xtoken.teachers.fingerprint import Fingerprint
from nemo_xtoken.teachers.store import state_store
from nemo_xtoken.teachers.store.state_formats import format_for
from nemo_xtoken.teachers.store.state_store import Missing, StateStore
from nemo_xtoken.teachers.store.state_writer import StateWriter

WIDTH = 8
OF = Fingerprint("w" * 64, "a" * 64, "t" * 64, WIDTH, "float32")
BF16 = dataclasses.replace(OF, dtype="bfloat16")


def digest(number):
    return bytes([number, *range(1, 15), 0])  # ends in a zero, which numpy's strings of bytes drop


def piece(number, start, count, seed=0):
    """Tokens and states of a piece, which are those of any other piece of the document at these places."""
    numbers = np.random.default_rng((number, seed))
    ids = numbers.integers(0, 2**31 - 1, 64).astype(np.int32)[start : start + count]
    states = torch.from_numpy(numbers.standard_normal((64, WIDTH)).astype(np.float32))[start : start + count]
    return digest(number), start, ids, states


def write(folder, pieces, of=OF, kind=None, **options):
    with StateWriter(folder, of, format_for(kind, of.dtype), **options) as writer:
        for one in pieces:
            writer.add(*one)
        writer.finish()


def read(store, key, start, ids, context="piece", dtype=torch.float32):
    found, at = [], 0
    for segment in store.segments(key, start, len(ids), context):
        found.append(store.read(segment, ids[at : at + segment.size], dtype))
        at += segment.size
    return torch.cat(found)


@pytest.mark.parametrize("indexed", [True, False])
@pytest.mark.parametrize("shard_bytes", [1, 10 * WIDTH * 4, 2**20])
def test_what_is_written_comes_back(tmp_path, shard_bytes, indexed):
    pieces = [piece(n, start, 5 + n) for n in range(6) for start in (0, 7, 256 // 8)]
    write(tmp_path, pieces, shard_bytes=shard_bytes)
    if not indexed:
        (tmp_path / state_store.INDEX).unlink()
    store = StateStore(tmp_path, OF, open_files=2)
    assert (len(store), store.tokens) == (len(pieces), sum(len(p[2]) for p in pieces))
    for key, start, ids, states in pieces:
        assert torch.equal(read(store, key, start, ids), states)
        assert torch.equal(read(store, key, start, ids[:3]), states[:3])  # what comes later changes nothing
    assert len(store._open) <= 2


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 40), st.integers(1, 20)), min_size=1, max_size=12))
def test_any_place_is_found_exactly_where_states_of_it_are(tmp_path_factory, places):
    folder = tmp_path_factory.mktemp("states")
    write(folder, [piece(*place) for place in places], shard_bytes=300)
    store = StateStore(folder, OF)
    for number, start, count in [(n, s, c) for n in range(4) for s in range(0, 60, 3) for c in (1, 4, 18)]:
        key, _, ids, states = piece(number, start, count)
        if len(ids) < count:
            continue
        there = any(n == number and s == start and c >= count for n, s, c in places)
        covered = {p for n, s, c in places if n == number for p in range(s, s + c)}
        for context, expected in (("piece", there), ("document", covered >= set(range(start, start + count)))):
            if expected:
                assert torch.equal(read(store, key, start, ids, context), states)
            else:
                with pytest.raises(Missing):
                    store.segments(key, start, count, context)


def test_most_context_wins(tmp_path):
    """In a document each position has the states of the record that began first, and one alone where that has all."""
    long, short = piece(1, 0, 30), piece(1, 20, 30, seed=1)
    short = (short[0], 20, piece(1, 20, 30)[2], short[3])
    write(tmp_path, [short, long])
    store = StateStore(tmp_path, OF)
    ids = piece(1, 25, 20)[2]
    found = read(store, digest(1), 25, ids, "document")
    assert torch.equal(found, torch.cat([long[3][25:30], short[3][10:25]]))
    assert torch.equal(read(store, digest(1), 20, short[2]), short[3])


@pytest.mark.parametrize(
    ("of", "kind", "most"),
    [(OF, None, 0), (BF16, None, 0), (OF, "bf16", 2**-8), (OF, "fp8", 2**-4), (BF16, "fp8", 2**-4)],
)
def test_formats_lose_what_they_say(tmp_path, of, kind, most):
    dtype = getattr(torch, of.dtype)
    numbers = torch.Generator().manual_seed(1)
    states = (torch.randn(40, WIDTH, generator=numbers) * torch.logspace(-6, 6, 40)[:, None]).to(dtype)
    states[7] = 0
    key, start, ids, _ = piece(1, 0, 40)
    write(tmp_path, [(key, start, ids, states)], of, kind)
    found = read(StateStore(tmp_path, of), key, start, ids, dtype=dtype)
    assert found.dtype == dtype
    error = (found.double() - states.double()).abs().amax(1) / states.double().abs().amax(1).clamp(min=1e-30)
    assert float(error.max()) <= most
    assert (float(error.max()) == 0) == format_for(kind, of.dtype).exact_for(dtype)


def test_all_numbers_of_8_bits_widen_as_torch_widens_them():
    from nemo_xtoken.teachers.store.state_formats import Stored

    values = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn)
    for rows in (values.view(2, 128), values.view(128, 2), values[:255].view(85, 3), values[:0].view(0, 4)):
        found = format_for("fp8", "float32").decode(Stored(rows, torch.ones(len(rows))), torch.float32)
        assert torch.equal(found.nan_to_num(7e7), rows.float().nan_to_num(7e7))


def _flip(path, at):
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def _cut(path, _):
    path.write_bytes(path.read_bytes()[:-1])


def _flip_in(name):
    def flip(path, _):
        _flip(path, tensor_places(path)[0][name].begin + 3)

    return flip, None


DAMAGES = {
    **{name: _flip_in(name) for name in ("digests", "starts", "offsets", "checksums", "ids", "states")},
    "length": (_cut, None),
    "header": (_flip, 20),
    "gone": (lambda path, _: path.unlink(), None),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("indexed", [True, False])
def test_a_damaged_file_is_named_and_made_again_by_itself(tmp_path, damage, indexed):
    pieces = [piece(n, 0, 10) for n in range(6)]
    write(tmp_path, pieces, shard_bytes=20 * WIDTH * 4)
    files = sorted(tmp_path.glob("states-*"))
    assert len(files) == 3
    if not indexed:
        (tmp_path / state_store.INDEX).unlink()
    change, at = DAMAGES[damage]
    change(files[1], at)

    def all_of(folder):
        store = StateStore(folder, OF)
        return [read(store, key, start, ids) for key, start, ids, _ in pieces]

    if damage == "gone" and not indexed:
        with pytest.raises(Missing):
            all_of(tmp_path)
    else:
        with pytest.raises(InputError, match=files[1].name):
            all_of(tmp_path)
    files[1].unlink(missing_ok=True)
    store = StateStore(tmp_path, OF)
    gone = [p for p in pieces if not store.holds(p[0], p[1], len(p[2]))]
    assert [p[0] for p in gone] == [digest(2), digest(3)]
    write(tmp_path, gone)
    for found, (*_, states) in zip(all_of(tmp_path), pieces, strict=True):
        assert torch.equal(found, states)


def test_other_tokens_are_refused(tmp_path):
    write(tmp_path, [piece(1, 0, 10)])
    key, start, ids, _ = piece(1, 0, 10)
    with pytest.raises(InputError, match="of other tokens"):
        read(StateStore(tmp_path, OF), key, start, ids + 1)


@pytest.mark.parametrize("field", [f.name for f in dataclasses.fields(Fingerprint)])
@pytest.mark.parametrize("indexed", [True, False])
def test_another_teacher_is_refused(tmp_path, field, indexed):
    write(tmp_path, [piece(1, 0, 10)])
    if not indexed:
        (tmp_path / state_store.INDEX).unlink()
    other = dataclasses.replace(OF, **{field: 9 if field == "hidden_size" else "x" * 64})
    with pytest.raises(InputError, match=f"of another teacher: {field} "):
        StateStore(tmp_path, other).shard(0)


def test_parts_are_written_at_once_and_read_together(tmp_path):
    parts = {f"{n:05d}-of-00003": [piece(n, s, 9) for s in (0, 9, 18)] for n in range(3)}
    threads = [
        threading.Thread(target=write, args=(tmp_path, pieces), kwargs={"part": part, "shard_bytes": 1})
        for part, pieces in parts.items()
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    store = StateStore(tmp_path, OF)
    assert len(store) == 9
    for key, start, ids, states in (p for pieces in parts.values() for p in pieces):
        assert torch.equal(read(store, key, start, ids), states)


def test_a_second_writer_of_a_part_is_refused(tmp_path):
    kind = format_for(None, OF.dtype)
    with (
        StateWriter(tmp_path, OF, kind),
        pytest.raises(InputError, match="another process"),
        StateWriter(tmp_path, OF, kind),
    ):
        pass


def test_a_full_disk_loses_nothing_that_is_written(tmp_path):
    write(tmp_path, [piece(1, 0, 10)])
    before = sorted(os.listdir(tmp_path))
    with small_disk(), pytest.raises(InputError, match="cannot be written"):
        write(tmp_path, [piece(2, 0, 64)])
    assert sorted(os.listdir(tmp_path)) == before
    key, start, ids, states = piece(1, 0, 10)
    assert torch.equal(read(StateStore(tmp_path, OF), key, start, ids), states)


def test_a_store_knows_whether_its_index_has_all_files(tmp_path):
    write(tmp_path, [piece(1, 0, 10)])
    StateStore(tmp_path, OF).write_index()
    assert StateStore(tmp_path, OF).indexed
    write(tmp_path, [piece(2, 0, 10)], part="later")
    store = StateStore(tmp_path, OF)
    assert store.tokens == 20
    store.write_index()
    assert store.indexed
    (tmp_path / "index.safetensors").unlink()
    assert not StateStore(tmp_path, OF).indexed


def test_a_full_disk_keeps_the_index_of_before(tmp_path):
    write(tmp_path, [piece(n, 0, 2) for n in range(60)])
    path = StateStore(tmp_path, OF).write_index()
    before = path.read_bytes()
    assert len(before) > 2000
    with small_disk(), pytest.raises(OSError, match="too large"):
        StateStore(tmp_path, OF).write_index()
    assert path.read_bytes() == before
    assert not [*tmp_path.glob("*.tmp"), *tmp_path.glob(".*.tmp")]


def test_what_is_collected_is_written_when_the_work_is_interrupted(tmp_path):
    def interrupted():
        with StateWriter(tmp_path, OF, format_for(None, OF.dtype)) as writer:
            writer.add(*piece(1, 0, 10))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert StateStore(tmp_path, OF).tokens == 10


def test_nothing_is_unpickled():
    """A file is a header and bytes: neither torch.load nor pickle is in the code that reads it."""
    import inspect

    from nemo_xtoken.teachers.store import state_shard

    for module in (state_shard, state_store):
        assert not {"pickle", "torch.load"} & set(inspect.getsource(module).split())
