"""The examples of docs/adding.md, taken from the page and run: those that need neither NeMo nor Megatron."""

import pytest
from adding import example

from nemo_xtoken.data.sources import FILE_FORMATS, Reading, resolve_sources
from nemo_xtoken.errors import InputError


def test_a_data_format(tmp_path, monkeypatch):
    monkeypatch.setattr("nemo_xtoken.data.sources.FILE_FORMATS", dict(FILE_FORMATS))
    (tmp_path / "a.csv").write_text('id,body\n1,"one, two\nthree"\n2,\n3,four\n')
    with pytest.raises(InputError, match="extension"):
        resolve_sources(tmp_path / "a.csv")
    example("A data format")
    [source] = resolve_sources(tmp_path / "*.csv", Reading(text_key="body"))
    assert list(source.texts()) == ["one, two\nthree", "four"]
    with pytest.raises(InputError, match=r"line 2 of .*a\.csv(.|\n)*text_key"):
        list(resolve_sources(tmp_path)[0].texts())
