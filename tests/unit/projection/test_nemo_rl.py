"""NeMo-RL's projection files: read without running code, made into distributions, and written."""

import collections
import os

import numpy as np
import pytest
import torch
from nemo_rl_files import save, with_scale_trick
from tokenizer_zoo import zoo

from nemo_xtoken.errors import InputError
from nemo_xtoken.projection.build import ProjectionRule, build_projection
from nemo_xtoken.projection.compare import compare
from nemo_xtoken.projection.nemo_rl import read_nemo_rl, read_projection, write_nemo_rl


@pytest.fixture(scope="module")
def pair():
    return zoo()["llama"], zoo()["qwen"]


@pytest.fixture(scope="module")
def paper(pair):
    return build_projection(*pair)


def row(matrix, s):
    return {int(t): float(w) for t, w in zip(matrix.ids[s], matrix.weights[s], strict=True) if t >= 0}


def one_row(pair, path, ids, weights):
    """The first row, and the report, of a file whose other rows are empty."""
    rest = pair[0].size - 1
    pad = len(ids)
    file = save(path, [ids, *[[-1] * pad] * rest], [weights, *[[0.0] * pad] * rest])
    matrix, report = read_nemo_rl(file, *pair)
    return row(matrix, 0), report


def test_there_and_back_loses_only_what_bfloat16_does(pair, paper, tmp_path):
    write_nemo_rl(paper, tmp_path / "w.pt", *pair)
    matrix, report = read_nemo_rl(tmp_path / "w.pt", *pair)
    width = int((paper.ids >= 0).sum(1).max())  # slots that no row uses are not kept
    np.testing.assert_array_equal(matrix.ids, paper.ids[:, :width])
    np.testing.assert_allclose(matrix.weights, paper.weights[:, :width], rtol=2**-7)
    assert compare(paper, matrix, tolerance=0.005).same
    single = (paper.ids >= 0).sum(1) == 1
    np.testing.assert_array_equal(matrix.weights[single, 0], paper.weights[single, 0])
    assert 0 < report.renormalised <= (~single & ~paper.empty_rows).sum()
    assert report.largest_deviation < 2**-7
    assert [w for w in report.warnings() if f"{report.renormalised:,} rows did not sum to 1" in w]
    assert {k: matrix.coverage[k] for k in ("exact", "multi", "empty", "reached")} == {
        k: paper.coverage[k] for k in ("exact", "multi", "empty", "reached")
    }
    assert matrix.rule["name"] == "nemo_rl"


def test_what_is_written_is_what_their_loss_reads(pair, tmp_path):
    prefix = build_projection(*pair, ProjectionRule.named("prefix"))
    write_nemo_rl(prefix, tmp_path / "w.pt", *pair, rows=pair[0].size + 7)
    data = torch.load(tmp_path / "w.pt", weights_only=True)
    assert data["indices"].dtype == torch.int64
    assert data["likelihoods"].dtype == torch.bfloat16
    assert list(data["indices"].shape) == list(data["likelihoods"].shape) == [pair[0].size + 7, 2]
    assert (data["indices"][:, 1] == -1).all()  # how they tell an exact row
    assert (data["indices"][-7:] == -1).all()
    assert not data["enable_scale_trick"]
    assert read_nemo_rl(tmp_path / "w.pt", *pair)[1].warnings() == []


@pytest.mark.parametrize("rows", [3, 0, -1, 10**6, 10**14, 10**30])
def test_too_few_and_too_many_rows_are_refused(pair, paper, tmp_path, rows):
    with pytest.raises(InputError, match=f"rows={rows}"):
        write_nemo_rl(paper, tmp_path / "w.pt", *pair, rows=rows)
    assert not list(tmp_path.iterdir())


def test_as_many_rows_as_are_read_again_can_be_written(pair, paper, tmp_path):
    write_nemo_rl(paper, tmp_path / "w.pt", *pair, rows=pair[0].size + 4096)
    assert np.array_equal(read_nemo_rl(tmp_path / "w.pt", *pair)[0].ids[:, 0], paper.ids[:, 0])


def test_w_of_another_pair_is_not_written(pair, paper, tmp_path):
    with pytest.raises(InputError, match="W of"):
        write_nemo_rl(paper, tmp_path / "w.pt", pair[1], pair[0])
    assert not list(tmp_path.iterdir())


def test_rows_that_sum_to_1_are_taken_as_they_are(pair, tmp_path):
    got, report = one_row(pair, tmp_path / "w.pt", [5, 3, -1], [0.25, 0.75, 0])
    assert got == {5: 0.25, 3: 0.75}
    assert report.renormalised == 0
    assert report.warnings() == []


@pytest.mark.parametrize(
    ("ids", "weights", "expected", "field", "count"),
    [
        ([5, 3, -1], [0.5, 1.5, 0], {3: 0.75, 5: 0.25}, "renormalised", 1),
        ([5, 3, 9], [0.25, 0.75, 0], {3: 0.75, 5: 0.25}, "zero_entries", 1),
        ([5, 3, 9], [0.25, 0.75, -4], {3: 0.75, 5: 0.25}, "bad_entries", 1),
        ([5, 3, 9], [0.25, 0.75, float("nan")], {3: 0.75, 5: 0.25}, "bad_entries", 1),
        ([5, 3, 3], [0.25, 0.5, 0.25], {3: 0.75, 5: 0.25}, "merged_entries", 1),
        ([5, 3, -1], [0.25, 0.75, 0.5], {3: 0.75, 5: 0.25}, "renormalised", 0),  # an empty slot has no weight
        ([5, 3, 9], [0, 0, 0], {}, "zero_entries", 3),
    ],
)
def test_what_a_row_may_be_like(pair, tmp_path, ids, weights, expected, field, count):
    got, report = one_row(pair, tmp_path / "w.pt", ids, weights)
    assert got == pytest.approx(expected)
    assert list(got) == list(expected)  # heaviest first
    assert getattr(report, field) == count


def test_padding_of_both_layers_is_dropped_and_reported(pair, paper, tmp_path):
    student, teacher = pair
    ids, weights = np.full((student.size + 64, 5), -1), np.zeros((student.size + 64, 5))
    ids[: student.size, :4], weights[: student.size, :4] = paper.ids, paper.weights
    ids[0, 4], weights[0, 4] = teacher.size + 3, 0.5
    ids[student.size + 1, 0], weights[student.size + 1, 0] = 7, 1.0
    matrix, report = read_nemo_rl(save(tmp_path / "w.pt", ids, weights), *pair)
    assert matrix.student_size == student.size
    assert (report.outside_entries, report.outside_weight) == (2, 1.5)
    assert row(matrix, 0) == row(paper, 0)


def test_a_file_without_the_added_tokens_leaves_their_rows_empty(pair, paper, tmp_path):
    file = save(tmp_path / "w.pt", paper.ids[:-7], paper.weights[:-7])
    matrix, report = read_nemo_rl(file, *pair)
    assert matrix.empty_rows[-7:].all()
    assert report.missing_rows == 7
    assert "7 student tokens have no row" in " ".join(report.warnings())


def test_the_sparse_form(pair, tmp_path):
    torch.save({(0, 5): 3.0, (0, 3): 1, (2, 1): 1.0}, tmp_path / "w.pt")
    matrix, report = read_nemo_rl(tmp_path / "w.pt", *pair)
    assert row(matrix, 0) == {5: 0.75, 3: 0.25}
    assert row(matrix, 2) == {1: 1.0}
    assert report.renormalised == 1
    assert report.missing_rows == pair[0].size - 3


def test_junk_comes_through_whole(pair, paper, tmp_path):
    sink = pair[1].id_of_bytes[b"!"]
    matrix, report = read_nemo_rl(with_scale_trick(paper, tmp_path / "w.pt", sink, padding=64), *pair)
    s = pair[0].id_of_bytes[b"987"]
    assert row(matrix, s)[sink] == pytest.approx(0.2 / 1.2, abs=0.002)
    assert report.about == {"student_model_id": "s", "teacher_model_id": "t", "enable_scale_trick": True}
    assert report.outside_entries == 64  # the last slot of the padding rows
    assert not matrix.empty_rows.any()


class _Runs:
    """Runs code where a pickle is read without care."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (self.target,)


@pytest.mark.parametrize("legacy", [False, True])
def test_no_code_of_a_file_runs(pair, tmp_path, legacy):
    target = str(tmp_path / "made")
    data = {"indices": _Runs(target), "likelihoods": torch.zeros(1, 1)}
    torch.save(data, tmp_path / "w.pt", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(InputError, match="more than tensors"):
        read_nemo_rl(tmp_path / "w.pt", *pair)
    assert not os.path.exists(target)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"A_to_B": {}}, "a dict with A_to_B"),
        ({}, "a dict with nothing"),
        (torch.zeros(3, 3), "a Tensor"),
        ({"indices": [1], "likelihoods": [2]}, "not tensors"),
        ({"indices": torch.zeros(3, 2).long(), "likelihoods": torch.zeros(3, 3)}, r"indices \[3, 2\]"),
        ({"indices": torch.zeros(3, 2), "likelihoods": torch.zeros(3, 2)}, "torch.float32"),
        ({(0, "a"): 1.0}, "not numbers"),
        ({(-1, 2): 1.0}, "student id -1"),
        (collections.OrderedDict(x=1), "a OrderedDict with x"),
    ],
)
def test_other_contents_are_named(pair, tmp_path, data, message):
    torch.save(data, tmp_path / "w.pt")
    with pytest.raises(InputError, match=message):
        read_nemo_rl(tmp_path / "w.pt", *pair)


def test_another_pair_is_noticed_by_its_sizes(pair, paper, tmp_path):
    file = save(tmp_path / "w.pt", np.full((20_000, 2), -1), np.zeros((20_000, 2)))
    with pytest.raises(InputError, match="20,000 rows"):
        read_nemo_rl(file, *pair)
    file = save(tmp_path / "w.pt", np.full((pair[0].size, 1), 50_000), np.ones((pair[0].size, 1)))
    with pytest.raises(InputError, match="teacher ids up to 50,000"):
        read_nemo_rl(file, *pair)


@pytest.mark.parametrize("content", [None, b"", b"not a file of torch", b"PK\x03\x04 cut short"])
def test_what_is_no_file_of_torch(pair, tmp_path, content):
    if content is not None:
        (tmp_path / "w.pt").write_bytes(content)
    with pytest.raises(InputError, match=r"w\.pt"):
        read_nemo_rl(tmp_path / "w.pt", *pair)


def test_either_kind_of_file_by_its_ending(pair, paper, tmp_path):
    paper.save(tmp_path / "w.safetensors")
    write_nemo_rl(paper, tmp_path / "w.pt", *pair)
    ours, none = read_projection(tmp_path / "w.safetensors", *pair)
    theirs, report = read_projection(tmp_path / "w.pt", *pair)
    assert none is None
    assert report is not None
    assert compare(ours, theirs, 0.005).same


def test_the_slots_are_kept_as_they_are(pair, tmp_path):
    """The losses of NeMo-RL tell an exact row by an empty second slot, which rows of ours do not have."""
    student, teacher = pair
    ids = np.full((student.size + 8, 3), -1)
    weights = np.zeros((student.size + 8, 3))
    ids[5], weights[5] = [7, 7, teacher.size + 1], [0.5, 0.25, 0.25]
    ids[6], weights[6] = [3, 4, -1], [1.0, 0.0, 0.0]
    matrix, _ = read_nemo_rl(save(tmp_path / "w.pt", ids, weights), student, teacher)
    assert matrix.raw.ids.shape == (student.size, 3)
    assert (matrix.raw.ids[5].tolist(), matrix.raw.weights[5].tolist()) == ([7, 7, -1], [0.5, 0.25, 0.0])
    assert (matrix.raw.ids[6].tolist(), matrix.raw.weights[6].tolist()) == ([3, 4, -1], [1.0, 0.0, 0.0])
