"""What is said of the bytes of states, by plans as well as by writers, is what is written."""

import pytest
import torch

from nemo_xtoken.preflight import elsewhere
from nemo_xtoken.teachers.source_settings import FORMAT_BYTES, FORMATS, SAMPLES
from nemo_xtoken.teachers.store import state_formats
from nemo_xtoken.teachers.store.state_formats import format_for


@pytest.mark.parametrize("width", [1, 8, 33])
@pytest.mark.parametrize("name", FORMATS)
def test_the_bytes_of_a_format_are_those_that_it_writes(name, width):
    kind, tokens = format_for(name, "float32"), 5
    stored = kind.encode(torch.ones(tokens, SAMPLES + 2 if kind.sampled else width))
    parts = [part for part in (stored.values, stored.scales) if part is not None]
    assert sum(part.numel() * part.element_size() for part in parts) == tokens * kind.row_bytes(width)
    assert stored.values.shape == (tokens, kind.columns(width))


def test_settings_plans_and_writers_know_the_same_formats():
    assert set(FORMATS) == set(state_formats._FORMATS) == set(FORMAT_BYTES)
    assert elsewhere.FORMAT_BYTES is FORMAT_BYTES
