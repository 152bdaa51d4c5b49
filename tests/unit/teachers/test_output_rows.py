"""A teacher's output layer from files in Hugging Face's format: the rows that are asked for, or one clear error."""

import pytest
import torch
from safetensors.torch import save_file

from nemo_xtoken.errors import InputError
from nemo_xtoken.parallel.ownership import Ownership
from nemo_xtoken.parallel.vocabulary_shard import VocabularyShard
from nemo_xtoken.teachers import output_rows
from nemo_xtoken.teachers.output_rows import SafetensorsRows, spread_output_rows

ROWS, WIDTH = 37, 8
WEIGHT = torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(1))
OTHER = torch.randn(5, WIDTH, generator=torch.Generator().manual_seed(2))


@pytest.fixture
def files(tmp_path):
    """``files(output, embedding)``: a model in two files, with these layers where they are not None."""

    def write(output=WEIGHT, embedding=None):
        first = {"model.layers.0.weight": OTHER} | ({} if output is None else {"lm_head.weight": output})
        save_file({name: x.clone() for name, x in first.items()}, tmp_path / "model-00001-of-00002.safetensors")
        second = {"model.norm.weight": OTHER[0]}
        second |= {} if embedding is None else {"model.embed_tokens.weight": embedding}
        save_file({name: x.clone() for name, x in second.items()}, tmp_path / "model-00002-of-00002.safetensors")
        return sorted(tmp_path.glob("*.safetensors"))

    return write


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("bytes_at_once", [1, 5 * WIDTH * 4, 2**20])
def test_blocks_are_the_layer(files, tied, bytes_at_once, monkeypatch):
    monkeypatch.setattr(output_rows, "PIECE_BYTES", bytes_at_once)
    found = files(output=OTHER, embedding=WEIGHT) if tied else files(embedding=OTHER)
    source = SafetensorsRows(found, tied)
    assert source.width == WIDTH
    assert torch.equal(torch.cat([source.read(n) for n in range(len(source.bounds))]), WEIGHT)
    assert max(end - first for first, end in source.bounds) <= max(1, bytes_at_once // (WIDTH * 4))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bytes_at_once", [5 * WIDTH * 4, 2**20])
def test_rows_come_in_the_order_of_the_loss(files, dtype, bytes_at_once, monkeypatch):
    """Fewer tokens than rows: what is padding in the checkpoint is not read, and padding of the order is 0."""
    monkeypatch.setattr(output_rows, "PIECE_BYTES", bytes_at_once)
    size = ROWS - 4
    order = torch.randperm(size, generator=torch.Generator().manual_seed(3)).numpy()
    ownership = Ownership(order, VocabularyShard(size, ROWS + 3))
    plain = Ownership.in_order(VocabularyShard(size, size))
    one, other = spread_output_rows(SafetensorsRows(files(), False), [ownership, plain], dtype, "cpu", "teacher")
    assert torch.equal(one[:size], WEIGHT[order].to(dtype))
    assert not one[size:].any()
    assert torch.equal(other, WEIGHT[:size].to(dtype))


def test_what_is_not_there_is_one_error(files, tmp_path):
    found = files(output=None)
    for tied in (False, True):
        with pytest.raises(InputError, match=r"no output layer '(lm_head|embed_tokens)\.weight'"):
            SafetensorsRows(found, tied)
    with pytest.raises(InputError, match="no output layer"):
        SafetensorsRows([], False)
    (tmp_path / "broken").write_bytes(b"\xff" * 64)
    with pytest.raises(InputError, match="no output layer"):
        SafetensorsRows([tmp_path / "broken"], False)
    short = Ownership.in_order(VocabularyShard(ROWS + 1, ROWS + 1))
    with pytest.raises(InputError, match=f"an output layer of {ROWS} rows"):
        spread_output_rows(SafetensorsRows(files(), False), [short], torch.float32, "cpu", "teacher")
