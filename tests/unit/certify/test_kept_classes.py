"""Classes from the cache are those that are made; a file that is not as it was written is replaced."""

import ast
import dataclasses
import inspect
import shutil
import sys

import numpy as np
import pytest
from tokenizer_zoo import zoo

from nemo_xtoken.certify.kept_classes import MAKERS, load_or_make
from nemo_xtoken.projection import contexts
from nemo_xtoken.projection.prefixes import PrefixClasses


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("NEMO_XTOKEN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "classes"


@pytest.fixture
def made(monkeypatch):
    """The pairs whose classes have been made."""
    pairs = []
    of = PrefixClasses.of
    monkeypatch.setattr(PrefixClasses, "of", lambda a, b: pairs.append((a.name, b.name)) or of(a, b))
    return pairs


def arrays(classes):
    return {
        f"{side}.{field.name}": getattr(getattr(classes, side), field.name)
        for side in ("student", "teacher")
        for field in dataclasses.fields(classes.student)
    }


def same(one, other):
    a, b = arrays(one), arrays(other)
    types = {name: (array.dtype, array.shape) for name, array in a.items()}
    assert types == {name: (array.dtype, array.shape) for name, array in b.items()}
    return all(np.array_equal(a[name], b[name]) for name in a)


def test_the_second_time_they_are_read(made):
    student, teacher = zoo()["llama"], zoo()["qwen"]
    first, second = load_or_make(student, teacher), load_or_make(student, teacher)
    assert len(made) == 1
    assert same(first, second)
    assert same(PrefixClasses.of(student, teacher), second)
    assert second.overlaps.sides == (student, teacher)


def damages():
    yield "cut short", lambda path: path.write_bytes(path.read_bytes()[:-100])
    yield "one byte", lambda path: path.write_bytes(path.read_bytes()[:-1] + b"\x07")
    yield "empty", lambda path: path.write_bytes(b"")
    yield "text", lambda path: path.write_text("classes")
    yield "of another pair", lambda path: shutil.copy(next(p for p in path.parent.iterdir() if p != path), path)


@pytest.mark.parametrize("damage", [pytest.param(spoil, id=name) for name, spoil in damages()])
def test_a_damaged_file_is_replaced(damage, cache, made, caplog):
    student, teacher = zoo()["llama"], zoo()["qwen"]
    right = load_or_make(student, teacher)
    (path,) = cache.iterdir()
    load_or_make(teacher, student)
    damage(path)
    assert same(load_or_make(student, teacher), right)
    assert f"{path} cannot be used" in caplog.text
    assert len(made) == 3
    assert same(load_or_make(student, teacher), right)
    assert len(made) == 3


def test_a_cache_that_cannot_be_written_is_a_warning(cache, caplog):
    cache.parent.write_text("a file")
    assert load_or_make(zoo()["llama"], zoo()["qwen"]).overlaps is not None
    assert "not kept in the cache" in caplog.text


def test_what_other_code_has_made_is_not_read(cache, made, monkeypatch):
    student, teacher = zoo()["llama"], zoo()["qwen"]
    load_or_make(student, teacher)
    source = inspect.getsource
    monkeypatch.setattr(inspect, "getsource", lambda module: source(module) + "# changed" * (module is contexts))
    load_or_make(student, teacher)
    assert len(made) == len(list(cache.iterdir())) == 2


def test_all_code_that_makes_classes_is_looked_at():
    """What the first of them imports of its folder, and that in turn; but for what is not asked for their arrays.

    Beside it what reads a tokenizer and encodes by it.
    """
    beside = {"nemo_xtoken.projection.overlaps", "nemo_xtoken.projection.matrix"}
    found, new = set(), {MAKERS[0].__name__}
    while new:
        found |= new
        imported = {
            node.module
            for name in new
            for node in ast.walk(ast.parse(inspect.getsource(sys.modules[name])))
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("nemo_xtoken.projection.")
        }
        new = imported - found - beside
    of_tokenizers = {f"nemo_xtoken.vocab.{name}" for name in ("encoders", "readers", "vocabulary")}
    assert {module.__name__ for module in MAKERS} == found | of_tokenizers
