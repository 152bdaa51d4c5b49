"""The file of W: what is written is read, and everything else is refused with one clear error."""

import json
import re

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file
from tokenizer_zoo import zoo

from nemo_xtoken.errors import InputError
from nemo_xtoken.projection.build import build_projection, load_or_build
from nemo_xtoken.projection.matrix import ProjectionMatrix


@pytest.fixture
def pair():
    return zoo()["llama"], zoo()["qwen"]


@pytest.fixture
def saved(pair, tmp_path):
    matrix = build_projection(*pair)
    matrix.save(tmp_path / "w.safetensors")
    return matrix, tmp_path / "w.safetensors"


def test_round_trip(saved, pair):
    matrix, path = saved
    loaded = ProjectionMatrix.load(path, *pair)
    assert loaded.ids.tobytes() == matrix.ids.tobytes()
    assert loaded.weights.tobytes() == matrix.weights.tobytes()
    assert (loaded.rule, loaded.coverage) == (matrix.rule, matrix.coverage)
    assert [p.name for p in path.parent.iterdir()] == ["w.safetensors"]


def test_the_same_matrix_gives_the_same_file(saved, tmp_path):
    matrix, path = saved
    matrix.save(tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == path.read_bytes()


def test_another_pair_is_refused(saved):
    with pytest.raises(InputError, match="another teacher tokenizer"):
        ProjectionMatrix.load(saved[1], zoo()["llama"], zoo()["sp_bpe"])
    with pytest.raises(InputError, match="another student tokenizer"):
        ProjectionMatrix.load(saved[1], zoo()["qwen"], zoo()["qwen"])


@pytest.mark.parametrize("keep", [0, 4, 50, -1])
def test_a_truncated_file_is_refused(saved, keep):
    path = saved[1]
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(InputError, match="cannot be read"):
        ProjectionMatrix.load(path)


def test_no_file(tmp_path):
    with pytest.raises(InputError, match="no file"):
        ProjectionMatrix.load(tmp_path / "none")


def test_another_format_is_refused(tmp_path):
    save_file({"x": np.zeros(3)}, str(tmp_path / "x.safetensors"))
    with pytest.raises(InputError, match="format"):
        ProjectionMatrix.load(tmp_path / "x.safetensors")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda ids, w: w.__setitem__((0, 0), 0.5), "sums to 0.5"),
        (lambda ids, w: w.__setitem__((0, 0), np.nan), "not a positive number"),
        (lambda ids, w: w.__setitem__((0, 0), -1), "not a positive number"),
        (lambda ids, w: ids.__setitem__((0, 0), 10_000), "ids from"),
        (lambda ids, w: (ids.__setitem__((0, 1), ids[0, 0]), w.__setitem__((0, slice(2)), 0.5)), "twice"),
    ],
)
def test_rows_that_are_no_distributions_are_refused(saved, change, message):
    matrix, path = saved
    ids, weights = matrix.ids.copy(), matrix.weights.copy()
    change(ids, weights)
    broken = object.__new__(ProjectionMatrix)
    for name, value in {**vars(matrix), "ids": ids, "weights": weights}.items():
        object.__setattr__(broken, name, value)
    broken.save(path)
    with pytest.raises(InputError, match=message) as error:
        ProjectionMatrix.load(path)
    assert str(path) in str(error.value)


# --- damage that leaves distributions


def edited(path, change):
    """The file with other tensors or another header, its checksum as it was."""
    with safe_open(path, framework="numpy") as file:
        header = json.loads(file.metadata()["header"])
        tensors = {name: file.get_tensor(name) for name in ("ids", "weights")}
    change(tensors, header)
    save_file(tensors, str(path), {"header": json.dumps(header, sort_keys=True)})


def _another_id(tensors, header):
    tensors["ids"][5, 0] ^= 1


def _two_rows(tensors, header):
    for name in tensors:
        tensors[name][[5, 9]] = tensors[name][[9, 5]]


def _no_row(tensors, header):
    tensors["ids"][5], tensors["weights"][5] = -1, 0


def _wider(tensors, header):
    tensors["ids"] = np.pad(tensors["ids"], ((0, 0), (0, 1)), constant_values=-1)
    tensors["weights"] = np.pad(tensors["weights"], ((0, 0), (0, 1)))


def _teacher_size(tensors, header):
    header["teacher_size"] += 1


def _rule(tensors, header):
    header["rule"]["beta"] = 0.5


def _coverage(tensors, header):
    header["coverage"]["exact"] += 1


CHANGES = [_another_id, _two_rows, _no_row, _wider, _teacher_size, _rule, _coverage]


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_not_as_it_was_written_is_refused(saved, pair, change):
    edited(saved[1], change)
    with pytest.raises(InputError, match="not as it was written"):
        ProjectionMatrix.load(saved[1], *pair)


def test_every_flipped_bit_of_a_row_is_noticed(saved, pair):
    whole = saved[1].read_bytes()
    start = 8 + int.from_bytes(whole[:8], "little")
    for bit in range(0, 8 * 16):
        data = bytearray(whole)
        data[start + bit // 8] ^= 1 << bit % 8
        saved[1].write_bytes(data)
        with pytest.raises(InputError, match=re.escape(str(saved[1]))):
            ProjectionMatrix.load(saved[1], *pair)


@pytest.mark.parametrize("change", [lambda tensors, header: header.pop("checksum"), *CHANGES])
def test_a_damaged_one_in_the_cache_is_built_again(pair, tmp_path, monkeypatch, caplog, change):
    monkeypatch.setenv("NEMO_XTOKEN_CACHE", str(tmp_path))
    matrix = load_or_build(*pair)
    [cached] = (tmp_path / "projection").iterdir()
    whole = cached.read_bytes()
    edited(cached, change)
    again = load_or_build(*pair)
    assert again.ids.tobytes() == matrix.ids.tobytes()
    assert cached.read_bytes() == whole
    assert "building W again" in caplog.text


def test_a_file_of_an_early_version_has_no_checksum(saved, pair, caplog):
    edited(saved[1], lambda tensors, header: header.pop("checksum"))
    assert ProjectionMatrix.load(saved[1], *pair).ids.tobytes() == saved[0].ids.tobytes()
    assert f"{saved[1]} has no checksum" in caplog.text  # taken, and said
    with pytest.raises(InputError, match="its checksum"):
        ProjectionMatrix.load(saved[1], *pair, checked=True)


@pytest.mark.parametrize("header", ["[]", "3", "{}", '{"format": "nemo_xtoken.projection", "format_version": 1}', "x"])
def test_headers_that_are_none(saved, pair, header):
    with safe_open(saved[1], framework="numpy") as file:
        tensors = {name: file.get_tensor(name) for name in ("ids", "weights")}
    save_file(tensors, str(saved[1]), {"header": header})
    for vocabularies in ((), pair):
        with pytest.raises(InputError, match=re.escape(str(saved[1]))):
            ProjectionMatrix.load(saved[1], *vocabularies)
