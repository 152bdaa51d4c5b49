"""The file of W: what is written is read, and everything else is refused with one clear error."""

import numpy as np
import pytest
from safetensors.numpy import save_file
from tokenizer_zoo import zoo

from nemo_xtoken.errors import InputError
from nemo_xtoken.projection.build import build_projection
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
