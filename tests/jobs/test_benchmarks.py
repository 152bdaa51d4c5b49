"""The benchmarks run on small tokenizers, write what they print, and check what they time."""

import importlib
import json

import numpy as np
import pytest
from tokenizer_zoo import write_folder, zoo

from nemo_xtoken.projection.token_classes import is_text

alignment, bench, loss, prepare, projection, sweep, teachers, texts = map(
    importlib.import_module,
    ("alignment", "bench", "loss", "prepare", "projection", "sweep", "teachers", "texts"),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("benchmarks")
    for name in ("llama", "qwen", "sp_bpe"):
        write_folder(name, folder / name)
    return folder


@pytest.fixture
def pair(folder):
    return ["--student", str(folder / "llama"), "--teacher", str(folder / "qwen")]


@pytest.mark.parametrize("script", [alignment, loss, prepare, projection, sweep, teachers])
def test_help_teaches(script, capsys):
    with pytest.raises(SystemExit) as stop:
        script.main(["--help"])
    assert stop.value.code == 0
    out = capsys.readouterr().out
    assert "examples:" in out
    assert "  python benchmarks/" in out


def test_projection(pair, tmp_path, capsys):
    file = tmp_path / "made" / "projection.json"
    projection.main([*pair, "--rounds", "2", "--dense", "64", "128", "100000", "--json", str(file)])
    result = json.loads(file.read_text("utf-8"))
    assert set(result["methods"]) == {"library", "loop"}
    assert result["methods"]["loop"]["ratio"] > 0
    assert [row["tokens"] for row in result["dense"]] == [64, 128]  # what the vocabularies have not is left out
    assert result["machine"]["packages"]["numpy"] == np.__version__
    out = capsys.readouterr().out
    assert "dense, all tokens (worked out)" in out
    assert f"saved in {file}" in out


def test_loss(pair, tmp_path, capsys):
    file = tmp_path / "loss.json"
    sizes = ["--positions", "24", "--hidden", "8", "8", "--rounds", "1"]
    loss.main([*pair, *sizes, "--kernels", "torch", "auto", "--json", str(file)])
    (result,) = json.loads(file.read_text("utf-8"))["results"]
    assert set(result["methods"]) == {"fused", "fused, torch", "plain", "top-k", "products"}
    assert result["gradients_differ"] < 1e-4
    assert "kernels torch, auto" in capsys.readouterr().out


@pytest.mark.parametrize("workers", [0, 1])
def test_prepare(pair, tmp_path, capsys, workers):
    file = tmp_path / "prepare.json"
    sizes = ["--megabytes", "0.1", "--rounds", "1", "--shapes", *(["tiny", "whole"] if workers == 0 else ["documents"])]
    prepare.main([*pair, *sizes, "--workers", str(workers), "--json", str(file)])
    for row in json.loads(file.read_text("utf-8"))["shapes"].values():
        assert row["share"] > 0
        within = row["prepare"]["within"]
        assert within is None if workers else 0 < within < 1
        assert row["alone"]["tokens"] <= row["prepare"]["tokens"]  # which has BOS and EOS as well
        assert row["alone"]["tokens"] > row["bytes"] / 10
    assert f"prepare, {workers} workers" in capsys.readouterr().out


@pytest.mark.parametrize("asked", [["--kernels", "triton"], ["--device", "cuda"]])
@pytest.mark.skipif(loss.torch.cuda.is_available(), reason="a GPU is there")
def test_loss_says_what_is_not_here(asked, capsys):
    with pytest.raises(SystemExit) as stop:
        loss.main(asked)
    assert stop.value.code == 2
    assert asked[0] in capsys.readouterr().err


def test_the_other_ways_to_build_give_the_same_rows():
    student, teacher = zoo()["llama"], zoo()["qwen"]
    exact, loop = projection.build_projection(student, teacher), projection.by_loop(student, teacher)
    whole = [is_text(student.token_bytes[s] or b"") for s in range(student.size)]
    np.testing.assert_array_equal(exact.ids[whole], loop.ids[whole])
    np.testing.assert_allclose(exact.weights[whole], loop.weights[whole], atol=1e-7)
    size = 256
    ids, weights = projection.by_dense_array(student, teacher, size)
    dense = np.zeros((size, size))
    np.put_along_axis(dense, ids, weights, 1)
    for s in range(size):
        row = {int(t): w for t, w in zip(exact.ids[s], exact.weights[s], strict=True) if t >= 0}
        if whole[s] and all(t < size for t in row):
            assert {int(t): dense[s, t] for t in np.flatnonzero(dense[s])} == pytest.approx(row)


def test_alignment(pair, folder, tmp_path, capsys):
    file, own = tmp_path / "alignment.json", tmp_path / "own.txt"
    own.write_text("He walked 42 miles. ", "utf-8")
    words = ["--sizes", "100", "400", "--rounds", "1", "--paper-tokens", "300", "--text", f"own={own}"]
    alignment.main([*pair, *words, "--json", str(file)])
    result = json.loads(file.read_text("utf-8"))
    assert set(result["texts"]) == {*texts.KINDS, "own"}
    for rows in result["texts"].values():
        assert "paper" in rows[0]["seconds"]
        assert "paper" not in rows[1]["seconds"]
        assert rows[1]["student_tokens"] > 200
        assert rows[0]["chunks"]["loop"] == rows[0]["chunks"]["library"]
    assert "slowest" in capsys.readouterr().out


def test_texts_are_as_long_as_asked_and_the_same_every_time():
    for kind in texts.KINDS:
        assert len(texts.text_of(kind, 12_345)) == 12_345
        assert texts.text_of(kind, 3000) == texts.text_of(kind, 5000)[:3000]


def test_sweep(folder, tmp_path, capsys):
    table = tmp_path / "sweep.md"
    names = ["llama", "qwen", "sp_bpe"]
    assert sweep.main([*(str(folder / name) for name in names), "--markdown", str(table)]) == 0
    lines = table.read_text("utf-8").splitlines()
    assert [line.split(" | ")[0].strip("| ") for line in lines[2:]] == names
    assert all(line.count("|") == 5 for line in lines)
    assert "6 pairs" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        sweep.main([str(folder / "llama")])


def test_a_sweep_that_finds_something_says_so(folder, monkeypatch, capsys):
    monkeypatch.setattr(sweep, "problems_of", lambda *args: ["wrong"])
    assert sweep.main([str(folder / "llama"), str(folder / "qwen")]) == 1
    out = capsys.readouterr().out
    assert "English: wrong" in out
    assert "pairs with something wrong: 2" in out


def test_turns_and_memory():
    seconds = bench.in_turns({"a": lambda: None, "b": lambda: sum(range(20_000))}, 5)
    assert [len(times) for times in seconds.values()] == [5, 5]
    assert bench.ratio(seconds, "b", "a") > 1
    result, peak = bench.peak_memory(lambda: np.ones(30_000_000).sum())
    assert result == 30_000_000
    assert peak is None or 200 * 2**20 < peak < 300 * 2**20
