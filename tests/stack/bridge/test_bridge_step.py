"""The forward step and its callbacks under Megatron's own schedules, without Bridge: losses, gradients, resume."""

import functools
import re

import pytest
import torch

pytestmark = pytest.mark.usefixtures("megatron")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    from tokenizer_zoo import TEXT, zoo

    zoo()  # once, before the ranks are forked
    folder = tmp_path_factory.mktemp("schedule")
    (folder / "text.txt").write_text(TEXT)
    return folder


def _run(root, name, ranks=1, **settings):
    from launcher import launch
    from schedule import run

    logs = root / "logs" / f"{name}{settings.get('done', '')}"
    env = {"NEMO_XTOKEN_CACHE": str(root / "cache")}
    return launch(functools.partial(run, **settings), str(root), name, ranks=ranks, folder=logs, env=env)


@pytest.fixture(scope="module")
def one(root):
    [result] = _run(root, "one", dense=True)
    return result


def _steps(result):
    return [record for record in result["records"] if "ce" in record]


def test_losses_and_gradients_are_those_of_dense_formulas(one):
    """Of the second step, whose scale follows from the first; two micro-batches against one batch."""
    dense, last = one["dense"], _steps(one)[-1]
    assert (last["ce"], last["kd"]) == pytest.approx((dense["ce"], dense["kd"]), rel=1e-5)
    assert last["scale"] != 1.0
    for name, expected in dense["gradients"].items():
        found, expected = torch.from_numpy(one["gradients"][name]), torch.from_numpy(expected)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()), msg=name)


def test_what_the_loop_is_shown_are_sums_and_counts(one):
    last, shown = _steps(one)[-1], one["shown"]
    assert len(shown) == 2
    for label, mean in (("lm loss", last["ce"]), ("kd loss teacher", last["kd"])):
        total, count = (sum(report[label][i] for report in shown) for i in (0, 1))
        assert total / count == pytest.approx(mean, rel=1e-5)


def test_held_out_text_is_recorded(one):
    start, end = (r for r in one["records"] if "held_out_ce" in r)
    assert (start["step"], end["step"]) == (0, 2)
    assert start["held_out_ce"] == end["held_out_ce"] > 0  # the loop of this test has no optimizer
    assert start["held_out_kd"] == start["held_out_kd/teacher"] == end["held_out_kd"] > 0


def test_what_the_student_says_is_kept(one):
    parts = re.split(r"## after step (\d+)", one["said"])
    assert parts[1::2] == ["0", "2"]
    assert parts[2].count("student:") == 2
    assert parts[2].strip() == parts[4].strip()  # the same weights say the same


@pytest.mark.parametrize(
    ("name", "settings"), [("tp", {"tp": 2}), ("pp", {"pp": 2}), ("dp", {})], ids=["tensor", "pipeline", "data"]
)
def test_the_layout_does_not_matter(one, root, name, settings):
    result = _run(root, name, ranks=2, **settings)[0]
    for found, expected in zip(result["records"], one["records"], strict=True):
        for key in {"ce", "kd", "scale", "tokens", "chunks", "held_out_ce", "held_out_kd"} & expected.keys():
            assert found[key] == pytest.approx(expected[key], rel=1e-5), key
    assert result["norm"] == pytest.approx(one["norm"], rel=1e-4)
    assert result["said"] == one["said"]


def test_a_run_goes_on_from_its_records(one, root):
    """The second step by itself is the second step: same samples, same scale; what came after it is forgotten."""
    _run(root, "again", steps=2)
    [result] = _run(root, "again", steps=1, done=1)
    assert [r["step"] for r in _steps(result)] == [1, 2]
    for key in ("ce", "kd", "scale"):
        assert _steps(result)[1][key] == _steps(one)[1][key]


def test_a_checkpoint_without_its_records_is_refused(root):
    with pytest.raises(AssertionError, match=r"a checkpoint of step 1 and no record of that step"):
        _run(root, "nothing", steps=1, done=1)


def test_other_data_is_refused(root, tmp_path):
    from nemo_xtoken.errors import InputError
    from nemo_xtoken.plugin.bridge.run_folder import Records
    from nemo_xtoken.run.records import append_record

    append_record(tmp_path, {"step": 1, "ce": 1.0})
    (tmp_path / "data.json").write_text('{"fingerprint": "one"}')
    assert Records(tmp_path)._read(1, "one")
    with pytest.raises(InputError, match="other data"):
        Records(tmp_path)._read(1, "two")
