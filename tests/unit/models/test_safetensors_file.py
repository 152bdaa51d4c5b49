"""Safetensors read and written byte by byte, against the safetensors package and torch."""

import json
import os

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from nemo_xtoken.errors import InputError
from nemo_xtoken.weights.folder import ModelFolder, new_folder
from nemo_xtoken.weights.safetensors_file import Entry, SafetensorsFile, from_float, to_float, write_safetensors
from nemo_xtoken.weights.shards import save_weights


@pytest.fixture
def tensors():
    torch.manual_seed(1)
    return {
        "a.weight": torch.randn(7, 5),
        "b.weight": torch.randn(3, 4, 2).to(torch.bfloat16),
        "c.half": torch.randn(6).half(),
        "d.ids": torch.arange(5),
        "e.empty": torch.zeros(0, 3),
    }


@pytest.fixture
def file(tensors, tmp_path):
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    return SafetensorsFile(tmp_path / "model.safetensors")


def test_a_copy_is_the_same_to_the_byte(file, tensors, tmp_path):
    told = []
    entries = {name: file.entry(name) for name in file.tensors}
    write_safetensors(tmp_path / "copy.safetensors", entries, {"format": "pt"}, told.append)
    copy = load_file(tmp_path / "copy.safetensors")
    assert copy.keys() == tensors.keys()
    assert all(copy[name].dtype == t.dtype and torch.equal(copy[name], t) for name, t in tensors.items())
    assert sum(told) == sum(t.numel() * t.element_size() for t in tensors.values())
    with safe_open(tmp_path / "copy.safetensors", framework="pt") as f:
        assert f.metadata() == {"format": "pt"}


def test_rows(file, tensors):
    rows = file.rows("b.weight")
    assert rows.shape == (3, 16)
    values = to_float(rows[[2, 0]].reshape(-1), "BF16").reshape(2, 4, 2)
    assert np.array_equal(values, tensors["b.weight"][[2, 0]].float().numpy())
    assert file.rows("e.empty").shape == (0, 0)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("BF16", torch.bfloat16), ("F16", torch.float16), ("F32", torch.float32), ("F64", torch.float64)],
)
def test_rounding_is_torchs(name, dtype):
    numbers = torch.cat([torch.randn(10000), torch.tensor([0.0, -0.0, 1e-40, 3.3e38, float("inf")])])
    made = from_float(numbers.numpy(), name)
    assert made == numbers.to(dtype).view(torch.uint8).numpy().tobytes()
    back = to_float(np.frombuffer(made, np.uint8), name)
    assert np.array_equal(back, numbers.to(dtype).to(torch.float64).numpy().astype(back.dtype))
    assert np.isnan(to_float(np.frombuffer(from_float(np.array([np.nan], np.float32), name), np.uint8), name)).all()


@pytest.mark.parametrize("cut", [-1, 200, 9, 4, 0])
def test_a_file_cut_short_is_refused(file, cut):
    data = file.path.read_bytes()
    file.path.write_bytes(data[:cut])
    with pytest.raises(InputError, match="cannot be read as safetensors"):
        SafetensorsFile(file.path)


def test_what_is_announced_must_come(tmp_path):
    with pytest.raises(ValueError, match="announced"):
        write_safetensors(tmp_path / "x.safetensors", {"x": Entry("F32", (4,), lambda: [b"123"])})
    assert not list(tmp_path.iterdir())


def test_shards(file, tensors, tmp_path):
    (tmp_path / "m").mkdir()
    save_weights(tmp_path / "m", {name: file.entry(name) for name in file.tensors}, shard_bytes=100)
    (tmp_path / "m" / "config.json").write_text('{"model_type": "llama"}')
    folder = ModelFolder(tmp_path / "m")
    assert len(folder.files) > 1
    assert {name: folder.tensor(name)[1] for name in folder.where} == {n: tuple(t.shape) for n, t in tensors.items()}


def test_a_folder_is_whole_or_absent(tmp_path):
    out = tmp_path / "out"
    with pytest.raises(FileNotFoundError), new_folder(out) as folder:
        (folder / "absent").rename(folder / "config.json")
    assert not list(tmp_path.iterdir())
    for text in ("1", "2"):
        with new_folder(out, overwrite=True) as folder:
            (folder / "config.json").write_text(text)
    assert (out / "config.json").read_text() == "2"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    with pytest.raises(InputError, match="exists"), new_folder(out):
        pass
    (out / "config.json").rename(out / "thesis.tex")
    with pytest.raises(InputError, match="is not a checkpoint"), new_folder(out, overwrite=True):
        pass


# --- files made to harm


def written(path, header, length=None, data=b""):
    """A safetensors file of this header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)
    return path


def _entry(begin=0, end=4, shape=(1,), dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


HEADERS = {
    "a list": [],
    "a number": 3,
    "no objects": {"x": 3},
    "no offsets": {"x": {"dtype": "F32", "shape": [1]}},
    "three offsets": {"x": _entry() | {"data_offsets": [0, 1, 4]}},
    "text for offsets": {"x": _entry() | {"data_offsets": ["a", "b"]}},
    "backwards": {"x": _entry(4, 0)},
    "before the data": {"x": _entry(-4, 0)},
    "behind the file": {"x": _entry(0, 10**15, (10**15 // 4,))},
    "a shape below 0": {"x": _entry(shape=(-1, -1))},
    "a shape of other size": {"x": _entry(shape=(3,))},
    "a shape that is none": {"x": _entry() | {"shape": None}},
    "metadata that is a list": {"__metadata__": [1], "x": _entry()},
    "metadata with numbers": {"__metadata__": {"format": 3}, "x": _entry()},
    "deeper than Python goes": b"[" * 100_000 + b"]" * 100_000,
    "no JSON": b"{'x': 3}",
    "no text": b"\xff\xfe{}",
    "a number of many digits": b'{"x": {"dtype": "F32", "shape": [' + b"9" * 5000 + b'], "data_offsets": [0, 4]}}',
}


@pytest.mark.parametrize("name", HEADERS)
def test_headers_that_are_none_are_refused(name, tmp_path):
    file = written(tmp_path / "x.safetensors", HEADERS[name], data=b"1234")
    with pytest.raises(InputError, match="cannot be read as safetensors"):
        SafetensorsFile(file)


@pytest.mark.parametrize("length", [40 << 30, (40 << 30) - 8, 100_000_001, 1 << 63, (1 << 64) - 1, 0, 1])
def test_a_header_is_measured_before_it_is_read(length, tmp_path, monkeypatch):
    file = written(tmp_path / "x.safetensors", {}, length)
    os.truncate(file, 40 << 30)  # a sparse file: it takes no room
    monkeypatch.setattr(json, "loads", lambda text: pytest.fail("it was read"))
    with pytest.raises(InputError, match="a header of"):
        SafetensorsFile(file)


@pytest.mark.parametrize(
    "name", [3, None, True, ["a"], {"a": 1}, "../x", "/etc/passwd", "a\0b", "", "gone.safetensors"]
)
def test_an_index_names_files_beside_it(name, file, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"a": "model.safetensors", "b": name}})
    )
    with pytest.raises(InputError, match=r"model\.safetensors\.index\.json names"):
        ModelFolder(tmp_path)


@pytest.mark.parametrize("content", ["[" * 100_000, "\ud800".encode("utf-8", "surrogatepass"), "3", "{", " " * 2_000])
def test_a_configuration_that_is_none(content, tmp_path, monkeypatch):
    monkeypatch.setattr("nemo_xtoken.weights.folder.MOST_JSON", 1_000 if content == " " * 2_000 else 10**6)
    (tmp_path / "config.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=r"config\.json"):
        ModelFolder(tmp_path)


@pytest.mark.parametrize("text_config", [3, "x", [1], None, {}])
def test_a_text_config_that_is_none(text_config, file, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "text_config": text_config}))
    assert ModelFolder(tmp_path).text_config["model_type"] == "llama"
