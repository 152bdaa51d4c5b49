import dataclasses
import itertools
import json
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from fakes import STUDENT, TEACHER, TEACHER_BOS, vocabulary
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizer_zoo import NORMALIZING, TEXT, zoo
from torch.utils.data import DataLoader

from nemo_xtoken.data import (
    Batch,
    DataConfig,
    DistillationDataset,
    PreparedDocuments,
    Side,
    TeacherSide,
    Tokenization,
    collate,
    prepare_documents,
)
from nemo_xtoken.data.batch import IGNORED
from nemo_xtoken.errors import InputError
from nemo_xtoken.vocab import Vocabulary

TEXTS = [f"the cat {n} sat abcde {n * 345}\n\n中文 é {'abc the ' * (n * n % 31)}" for n in range(60)]


def write(folder, texts):
    path = folder / "data.jsonl"
    path.write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def prepared(folder) -> PreparedDocuments:
    return prepare_documents(write(folder, TEXTS), STUDENT, TEACHER, cache_dir=folder, progress=False)


def dataset(prepared, lengths=(64, 50), seed=3, student=STUDENT, teacher=TEACHER, **options) -> DistillationDataset:
    return DistillationDataset([prepared], student, [teacher], lengths[0], lengths[1:], seed, **options)


def check_side(side: Side, ids_of_piece: list[np.ndarray], starts: list[int], padding: int) -> None:
    """Tokens, labels, positions and document numbers are those of the pieces, one after the other, then padding."""
    (tokens,), (labels,), (positions,), (documents,) = side.tokens, side.labels, side.positions, side.documents
    at = 0
    for number, ids in enumerate(ids_of_piece):
        n = len(ids) - 1
        np.testing.assert_array_equal(tokens[at : at + n], ids[:-1])
        np.testing.assert_array_equal(labels[at : at + n], ids[1:])
        np.testing.assert_array_equal(positions[at : at + n], np.arange(n))
        assert (documents[at : at + n] == number).all()
        assert side.pieces[number].tolist() == [0, at, n, starts[number]]
        at += n
    assert (tokens[at:] == padding).all()
    assert (labels[at:] == IGNORED).all()
    assert (documents[at:] == -1).all()
    assert (positions[at:] == 0).all()


def check_sample(data: DistillationDataset, index: int, student: Vocabulary, teacher: Vocabulary, equal=True) -> list:
    """Everything that the contract of a sample says.  Returns (document, first student token, ...) of its chunks."""
    sample = data[index]
    pieces = data.describe(index)
    ids = [data.prepared[0].document(p["document"]) for p in pieces]
    [taught] = sample.teachers
    for number, (side, name) in enumerate(((sample.student, "student_tokens"), (taught, "teacher0_tokens"))):
        ranges = [p[name] for p in pieces]
        of_piece = [d[number][slice(*r)] for d, r in zip(ids, ranges, strict=True)]
        check_side(side, of_piece, [start for start, _ in ranges], data._padding[number])
        assert [bytes(d).hex() for d in side.digests.numpy()] == [p["text_digest"] for p in pieces]
        assert side.samples.tolist() == [index]
    assert (taught.chunks[:, 0] == 0).all()
    chunks = taught.chunks[:, 1:].numpy()
    assert (np.diff(chunks[:, 0]) > 0).all()
    assert (np.diff(chunks[:, 2]) > 0).all()
    known = {p["document"]: {*map(tuple, d[2].tolist())} for d, p in zip(ids, pieces, strict=True)}
    seen = []
    for first, count, teacher_first, teacher_count in chunks.tolist():
        at_student, at_teacher = slice(first, first + count), slice(teacher_first, teacher_first + teacher_count)
        numbers = {*sample.student.documents[0, at_student].tolist(), *taught.documents[0, at_teacher].tolist()}
        assert len(numbers) == 1  # no chunk crosses documents, both sides are the same one
        piece = pieces[numbers.pop()]
        start = piece["student_tokens"][0] + int(sample.student.positions[0, first]) + 1
        teacher_start = piece["teacher0_tokens"][0] + int(taught.positions[0, teacher_first]) + 1
        assert (start, start + count, teacher_start, teacher_start + teacher_count) in known[piece["document"]]
        labels = sample.student.labels[0, at_student].numpy(), taught.labels[0, at_teacher].numpy()
        assert (labels[0] != IGNORED).all()
        assert (labels[1] != IGNORED).all()
        if equal:
            assert student.decode_bytes(labels[0]) == teacher.decode_bytes(labels[1])
            assert (labels[0] == student.eos_id).any() == (labels[1] == teacher.eos_id).any()
        seen.append((piece["document"], start, count, teacher_start, teacher_count))
    return seen


def check_epoch(data: DistillationDataset, epoch: int, student: Vocabulary, teacher: Vocabulary, equal=True) -> list:
    n = data.epoch_length
    seen = [c for i in range(epoch * n, epoch * n + n) for c in check_sample(data, i, student, teacher, equal)]
    assert len(seen) == len(set(seen)) == data.report.teachers[0].scored_chunks
    return seen


@settings(deadline=None, max_examples=20)
@given(
    lengths=st.tuples(st.integers(6, 80), st.integers(6, 80)),
    seed=st.integers(0, 1000),
    pack=st.booleans(),
    of=st.sets(st.integers(0, len(TEXTS) - 1), min_size=1, max_size=8),
)
def test_samples_are_what_the_contract_says(prepared, lengths, seed, pack, of):
    part = prepared.select(np.array(sorted(of)))
    data = dataset(part, lengths, seed, pack=pack)
    seen = check_epoch(data, 0, STUDENT, TEACHER)
    assert part.scored.sum() - data.report.teachers[0].skipped_chunks <= len(seen) <= part.scored.sum()


def test_epochs_have_the_same_samples_in_another_order(prepared):
    data = dataset(prepared, num_samples=1000)
    n = data.epoch_length
    assert len(data) == 1000
    assert n > 10
    assert sorted(check_epoch(data, 0, STUDENT, TEACHER)) == sorted(check_epoch(data, 2, STUDENT, TEACHER))
    epochs = [[tuple(data[e * n + i].student.tokens[0].tolist()) for i in range(n)] for e in range(3)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(epochs[2])
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]


def same(a, b) -> bool:
    return same_tensors(a.student, b.student) and all(map(same_tensors, a.teachers, b.teachers))


def same_tensors(a, b) -> bool:
    pairs = [(getattr(a, f.name), getattr(b, f.name)) for f in dataclasses.fields(a)]
    return all(torch.equal(x, y) and x.dtype == y.dtype for x, y in pairs)


def test_an_item_depends_on_data_seed_and_index_alone(prepared, folder, tmp_path):
    data = dataset(prepared, num_samples=500)
    wanted = {i: data[i] for i in (0, 499, 17, 250)}
    fresh = prepare_documents(folder / "data.jsonl", STUDENT, TEACHER, cache_dir=tmp_path, workers=1, progress=False)
    other = dataset(fresh, num_samples=10_000)  # another cache, another length, another order of access
    assert all(same(other[i], wanted[i]) for i in (250, 17, 0, 499))
    copy = pickle.loads(pickle.dumps(data))  # noqa: S301
    assert all(same(copy[i], wanted[i]) for i in wanted)
    assert data.fingerprint == other.fingerprint
    changed = [dataset(prepared, seed=4), dataset(prepared, (64, 49)), dataset(prepared, pack=False)]
    changed.append(dataset(prepared.select(np.arange(59))))
    assert len({data.fingerprint, *(d.fingerprint for d in changed)}) == 5


def test_a_data_set_is_small_to_pickle(prepared):
    data = dataset(prepared)
    assert len(pickle.dumps(data)) < 100 * len(prepared) + 60 * data.report.pieces + 8000


@pytest.mark.parametrize(("method", "workers"), [("fork", 2), ("spawn", 1)])
def test_batches_from_a_data_loader(prepared, method, workers):
    data = dataset(prepared, num_samples=24)
    loader = DataLoader(data, batch_size=4, collate_fn=collate, num_workers=workers, multiprocessing_context=method)
    batches = list(loader)
    assert [b.student.samples.tolist() for b in batches] == [list(range(i, i + 4)) for i in range(0, 24, 4)]
    for batch in batches:
        assert same(batch, collate([data[i] for i in batch.student.samples.tolist()]))


def test_what_a_batch_is(prepared):
    data = dataset(prepared)
    samples = [data[i] for i in (2, 0, 5)]
    batch = collate(samples)
    kinds = {"tokens": torch.int64, "labels": torch.int64, "positions": torch.int64, "documents": torch.int32}
    [taught] = batch.teachers
    for (side, length), (name, dtype) in itertools.product(((batch.student, 64), (taught, 50)), kinds.items()):
        assert getattr(side, name).shape == (3, length)
        assert getattr(side, name).dtype == dtype
    assert taught.chunks.dtype == torch.int64
    assert taught.chunks.shape == (sum(len(s.teachers[0].chunks) for s in samples), 5)
    for table, of in ((taught.chunks, "chunks"), (taught.pieces, "pieces")):
        assert table.tolist() == sorted(table.tolist())
        for number, sample in enumerate(samples):
            assert torch.equal(table[table[:, 0] == number][:, 1:], getattr(sample.teachers[0], of)[:, 1:])
    for side in (batch.student, taught):
        assert side.samples.tolist() == [2, 0, 5]
        assert torch.equal(side.digests, torch.cat([sample.student.digests for sample in samples]))
        assert torch.equal(side.pieces[:, 0], taught.pieces[:, 0])


def test_a_batch_moves_as_loaders_and_trainers_move_one(prepared, monkeypatch):
    """Lightning and torch's loader take it whole, by the names of the methods; the batch itself stays as it is."""
    from torch.utils.data._utils.pin_memory import pin_memory

    lightning = pytest.importorskip("lightning.fabric.utilities.apply_func")
    batch = collate([dataset(prepared)[i] for i in (1, 2)])
    moved = lightning.move_data_to_device(batch, torch.device("meta"))
    assert {getattr(moved.student, f.name).device.type for f in dataclasses.fields(Side)} == {"meta"}
    assert {getattr(moved.teachers[0], f.name).device.type for f in dataclasses.fields(TeacherSide)} == {"meta"}
    assert batch.student.tokens.device.type == "cpu"
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor + 1)
    assert torch.equal(pin_memory(batch).teachers[0].labels, batch.teachers[0].labels + 1)
    with pytest.raises(dataclasses.FrozenInstanceError):
        batch.student = moved.student


def test_a_batch_without_chunks(prepared):
    sample = dataset(prepared)[0]
    [side] = sample.teachers
    sample = Batch(sample.student, (dataclasses.replace(side, chunks=side.chunks[:0]),))
    assert collate([sample, sample]).teachers[0].chunks.shape == (0, 5)


def test_padding_without_a_padding_token(prepared):
    no_pad = vocabulary("student", [], pad=False)
    assert dataset(prepared, student=no_pad)._padding == (no_pad.eos_id, TEACHER.pad_id)


def test_indices_outside(prepared):
    data = dataset(prepared, num_samples=5)
    for index in (-1, 5):
        with pytest.raises(IndexError):
            data[index]
    with pytest.raises(InputError, match="num_samples=0"):
        dataset(prepared, num_samples=0)


def test_bos_on_both_sides_is_a_predictor_for_the_first_word(tmp_path):
    found = prepare_documents(write(tmp_path, TEXTS), STUDENT, TEACHER_BOS, cache_dir=tmp_path, progress=False)
    data = dataset(found, teacher=TEACHER_BOS)
    assert data.report.teachers[0].scored_chunks == found.chunk_counts.sum() - len(found)  # all but BOS itself
    check_epoch(data, 0, STUDENT, TEACHER_BOS)


@pytest.mark.parametrize(
    ("s", "t"), [("llama", "qwen"), ("qwen", "sp_bpe"), ("tiktoken", "llama"), ("sp_model", "qwen_nfc")]
)
def test_real_tokenizers_end_to_end(tmp_path, s, t):
    student, teacher = zoo()[s], zoo()[t]
    texts = [TEXT[i : i + 300] for i in range(0, len(TEXT), 300)] + ["short", "12345 67", "é 中"]
    config = DataConfig([str(write(tmp_path, texts))], 128, 160, cache_dir=str(tmp_path), workers=1, progress=False)
    config.held_out = 4
    training, held_out = config.build(student, [Tokenization(teacher)], num_samples=300)
    assert held_out is not None
    assert len(training) == 300
    assert len(held_out) == held_out.epoch_length
    assert len(training.prepared[0]) + len(held_out.prepared[0]) == len(texts)
    exact = s not in NORMALIZING and t not in NORMALIZING
    for data in (training, held_out):
        seen = check_epoch(data, 0, student, teacher, equal=exact)
        assert len(seen) == data.prepared[0].scored.sum() > 10
    student_text = b"".join(student.decode_bytes(training.prepared[0].document(i)[0]) for i in range(3))
    assert len(student_text) > 200


def test_config_finds_what_is_wrong_without_reading(tmp_path):
    path = str(write(tmp_path, TEXTS))
    DataConfig([path]).check()
    for options, match in (
        ({"paths": []}, "no data"),
        ({"student_length": 1}, "student_length=1"),
        ({"teacher_length": 0}, "teacher_length=0"),
        ({"workers": -2}, "workers=-2"),
        ({"held_out": 0.1, "held_out_paths": [path]}, "both"),
        ({"held_out": 2.5}, "held_out=2.5"),
        ({"held_out_paths": [path + ".gone"]}, "no data"),
        ({"text_split": "word"}, "text_split"),
    ):
        with pytest.raises(InputError, match=match):
            DataConfig(**({"paths": [path]} | options)).check()


def test_config_with_other_data_held_out(tmp_path):
    (tmp_path / "held.txt").write_text(TEXTS[5])
    config = DataConfig([str(write(tmp_path, TEXTS))], 64, cache_dir=str(tmp_path), progress=False)
    assert config.prepare(STUDENT, [TEACHER])[1] is None
    config.held_out_paths = [str(tmp_path / "held.txt")]
    training, held_out = config.build(STUDENT, [Tokenization(TEACHER)])
    assert held_out is not None
    assert (len(training.prepared[0]), len(held_out.prepared[0])) == (len(TEXTS), 1)
    assert training[0].teachers[0].tokens.shape == (1, 64)


def test_the_preparation_needs_no_torch():
    code = "import sys, nemo_xtoken.data.workers; print([m for m in ('torch', 'datasets', 'nemo') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
