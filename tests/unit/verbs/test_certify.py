"""The verb `certify`: its table, its files, and what it refuses."""

import json

import numpy as np
import pytest
from tokenizer_zoo import write_folder

from nemo_xtoken.certify.certificate import ZERO
from nemo_xtoken.commands.cli import main
from nemo_xtoken.commands.verbs.certify import COLUMNS, _number


@pytest.fixture(autouse=True)
def _surroundings(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("NEMO_XTOKEN_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pair")
    return [f"{side}={write_folder(name, folder / name)}" for side, name in (("student", "llama"), ("teacher", "qwen"))]


QUICK = ["chunks=2", "steps=5"]


def test_the_table_is_whole_at_80_columns(pair, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["certify", *pair, "loss=p_kl,prefix_kl", "chunks=1", "steps=1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("chunks  "))
    assert lines[start].split("  ")[0] == "chunks"
    table = lines[start : next(i for i, line in enumerate(lines) if line.startswith("Each row"))]
    assert max(map(len, table)) <= 80
    assert "…" not in "".join(table)
    assert any(line.rstrip().endswith("certified") for line in table)
    assert {"p_kl (W prefix, chain_rule)", "prefix_kl (its own merge)"} <= {line.strip() for line in lines}


@pytest.mark.parametrize("sign", [1, -1])
def test_a_number_fits_its_column(sign):
    for value in sign * np.geomspace(1e-9, 1e9, 997):
        text = _number(float(value))
        assert len(text) <= min(COLUMNS[name] for name in ("value", "least", "gradient"))
        assert float(text) == pytest.approx(value, rel=0.06, abs=ZERO)


def test_a_table_of_every_loss(pair, capsys):
    assert main(["certify", *pair, *QUICK]) == 0
    out, told = capsys.readouterr()
    assert told.startswith("reading the tokenizers\nmeasuring (22 losses)\n")
    for words in ("p_kl", "W prefix", "nrl_p_kl", "h_kl", "gold", "uld", "strict_1to1", "certified", "not compared"):
        assert words in out
    assert "1 to several: '201'" in out
    assert "5 steps of gradient descent" in out
    assert "same_tokenizer" not in out  # these are two


def test_json_and_files(pair, tmp_path, capsys):
    text = tmp_path / "text.txt"
    text.write_text("It was 201 BC.", encoding="utf-8")
    words = ["loss=p_kl,gold", f"text=@{text}", f"out={tmp_path / 'made'}", "--json"]
    assert main(["certify", *pair, *words, "steps=60", "rate=2", "probability=0.9"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told == json.loads((tmp_path / "made" / "certificates.json").read_text("utf-8"))
    assert (tmp_path / "made" / "certificates.png").read_bytes().startswith(b"\x89PNG")
    assert told["settings"]["probability"] == 0.9
    (at,) = (i for i, chunk in enumerate(told["chunks"]) if chunk["text"] == "201")
    assert told["chunks"][at]["kind"] == "one_to_several"
    assert {loss["loss"] for loss in told["losses"]} == {"p_kl", "gold"}
    for loss in told["losses"]:
        assert len(loss["steps"]) == len(loss["values"]) == len(loss["probability"])
        assert loss["probability"][0][at] == pytest.approx(0.9)
        findings = loss["findings"]["one_to_several"]
        if loss["loss"] == "gold":
            assert loss["probability"][-1][at] < 0.1
            assert findings["verdict"] == "lost"
        if (loss["rule"], loss["merge"]) == ("prefix", "chain_rule"):
            assert findings["verdict"] == "certified"
            assert all(findings[answer] for answer in ("never_negative", "zero_there", "still_there", "keeps"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["loss=p-kl"], "loss='p-kl'"),
        (["loss=same_tokenizer"], "whose tokens differ"),
        (["text=@absent.txt"], "absent.txt"),
        (["text="], "text of 0 characters"),
        (["chunks=0"], "chunks=0"),
        (["probability=1.5"], "probability=1.5"),
        (["out={file}"], "is a file"),
    ],
)
def test_wrong_input_is_one_clear_error(words, message, pair, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["certify", *pair, *(word.format(file=tmp_path / "file") for word in words)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
