"""The examples of docs/adding.md, taken from the page and run: those that need neither NeMo nor Megatron."""

import ast
import contextlib
import sqlite3

import pytest
import torch
from adding import PAGE, example, module, source
from tokenizer_zoo import zoo

from nemo_xtoken import CrossTokenizerLoss, TextBatch
from nemo_xtoken.data.sources import FILE_FORMATS, Reading, resolve_sources
from nemo_xtoken.errors import InputError


def _hellinger(student, teacher):
    """The loss of the page on a text between random models, by its name: its mean over the chunks, and its gradient."""
    batch = TextBatch.of(["In 201 BC 37 elephants crossed the Alps."], student, teacher)
    random = torch.Generator().manual_seed(0)
    normal = lambda *shape: torch.randn(*shape, generator=random)  # noqa: E731
    weights = normal(student.size, 5), normal(teacher.size, 5)
    states = normal(*batch.student_tokens.shape, 5).requires_grad_(), normal(*batch.teacher_tokens.shape, 5)
    if student is teacher:  # one model, twice
        weights, states = (weights[0], weights[0]), (states[0], states[0].detach())
    loss = CrossTokenizerLoss(student, teacher, "my_losses:Hellinger")
    loss(batch, *states, *weights).backward()
    (kd,) = loss.terms.kd
    return float(kd.total / kd.count), states[0].grad


def test_a_loss(tmp_path, monkeypatch):
    module("A loss", "my_losses", tmp_path, monkeypatch)
    student, teacher = zoo()["llama"], zoo()["qwen"]
    value, gradient = _hellinger(student, teacher)
    assert 0 < value < 1
    assert torch.isfinite(gradient).all()
    assert _hellinger(student, student)[0] < 1e-6


def test_a_teacher_source():
    """What the page shows is what tests/stack/plugin/test_from_outside.py runs on NeMo."""
    code = source("A teacher source")
    ran = (PAGE.parents[1] / "tests" / "support" / "outside.py").read_text()
    shown = [node for node in ast.parse(code).body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    assert [node.name for node in shown] == ["pieces", "Replayed"]
    for node in shown:
        assert ast.get_source_segment(code, node) in ran


def test_a_data_format(tmp_path, monkeypatch):
    monkeypatch.setattr("nemo_xtoken.data.sources.FILE_FORMATS", dict(FILE_FORMATS))
    path = tmp_path / "a b.db"
    with contextlib.closing(sqlite3.connect(path)) as file:
        file.execute("CREATE TABLE documents (id INTEGER, body)")
        file.executemany("INSERT INTO documents VALUES (?, ?)", [(1, "one, two"), (2, None), (3, 7), (4, "four")])
        file.commit()
    with pytest.raises(InputError, match="extension"):
        resolve_sources(path)
    example("A data format")
    [found] = resolve_sources(tmp_path / "*.db", Reading(text_key="body", on_error="skip"))
    assert list(found.texts()) == ["one, two", "four"]
    with pytest.raises(InputError, match=r"row 2 of .*a b\.db is a int(.|\n)*text_key"):
        list(resolve_sources(path, Reading(text_key="body"))[0].texts())
    with pytest.raises(InputError, match=r"a b\.db has no column 'text'(.|\n)*there are: id, body"):
        list(resolve_sources(tmp_path)[0].texts())
    (tmp_path / "c.sqlite").write_text("no database, but long enough to be one" * 3)
    with pytest.raises(InputError, match="not a database"):
        list(resolve_sources(tmp_path / "c.sqlite")[0].texts())
