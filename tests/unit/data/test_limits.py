"""Data and templates that would fill the memory, or run for ever, are refused before they do."""

import gzip
import itertools
import tracemalloc
from types import SimpleNamespace

import numpy as np
import pytest
from tokenizer_zoo import write_folder

from nemo_xtoken.alignment.told import Told
from nemo_xtoken.data import jinja_environment
from nemo_xtoken.data.conversation.chat import Message
from nemo_xtoken.data.prepare import told_lines
from nemo_xtoken.data.readers import stored_files
from nemo_xtoken.data.sources import Reading, resolve_sources
from nemo_xtoken.data.templates import ChatTemplate
from nemo_xtoken.errors import InputError
from nemo_xtoken.vocab import load_vocabulary

TALK = [Message("user", "what?"), Message("assistant", "100% of **it**")]


def test_what_templates_leave_out_is_told_in_little_memory():
    """Whether a document is among those of the run is not asked of an object for each of them."""
    digests = np.arange(2 * 200_000, dtype=np.uint64).view("S16")
    told = Told()
    told.add("it leaves out something", bytes(digests[-1]).ljust(16, b"\0"))
    told.add("it leaves out another thing", b"x" * 16)
    none = np.zeros(1, np.int64)
    shards = [SimpleNamespace(metadata=told.header())]
    prepared = SimpleNamespace(
        digests=digests, shards=lambda: shards, student_lengths=none + 5, teacher_lengths=none + 5
    )
    tracemalloc.start()
    try:
        lines = told_lines(prepared, [])
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()
    assert lines == [
        "1 conversations it leaves out another thing",
        "1 conversations it leaves out something (a document)",
    ]


@pytest.fixture(scope="module")
def side(tmp_path_factory):
    return load_vocabulary(write_folder("qwen", tmp_path_factory.mktemp("tokenizer")))


@pytest.mark.parametrize(
    "source",
    [
        "{{ 'a' * 10**10 }}",
        "{{ 10**10 * 'a' }}",
        "{{ [1] * 10**10 }}",
        "{{ 10 ** 1000000000 }}",
        "{{ '%0999999999d' % 1 }}",
        "{{ '%*d' % (999999999, 1) }}",
        "{{ '{:>999999999}'.format(1) }}",
        "{{ '%999999999d' | format(1) }}",
        "{{ 'a' | center(999999999) }}",
        "{{ 'a' | indent(999999999, true) }}",
        "{{ 'a'.ljust(999999999) }}",
        "{{ 'a'.zfill(999999999) }}",
        "{{ 'aaaaaaaaaa'.replace('a', 'a' * 90000000) }}",
        "{% set ns = namespace(x='aaaaaaaa') %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
        "{% for i in range(60000) %}{{ 'a' * 60000 }}{% endfor %}",
    ],
)
def test_memory_of_a_template(side, source):
    with pytest.raises(InputError, match="refuses the conversation"):
        ChatTemplate(side, source).render(TALK)


def test_time_of_a_template(side, monkeypatch):
    monkeypatch.setattr(jinja_environment, "SECONDS", 0.05)
    loops = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    with pytest.raises(InputError, match=r"it takes more than 0\.05 seconds"):
        ChatTemplate(side, loops).render(TALK)
    assert ChatTemplate(side, "ok").render(TALK) == "ok"


def test_what_templates_do_is_allowed(side):
    source = (
        "{% for m in messages %}{{ '-' * 20 + m['role'] + '%s: %05d' % (m.content, loop.index) }}"
        "{{ m.content | replace('%', '*') | indent(4) }}{{ '{:>10}'.format(loop.index) }}{% endfor %}"
    )
    assert "100% of **it**: 00002" in ChatTemplate(side, source).render(TALK)


@pytest.mark.parametrize("name", ["bomb.jsonl.gz", "bomb.txt.gz", "bomb.txt"])
@pytest.mark.parametrize("split", ["file", "line", "paragraph"])
def test_a_line_that_fits_into_no_memory(tmp_path, monkeypatch, name, split):
    monkeypatch.setattr(stored_files, "MOST_BYTES", 2**20)
    with (gzip.open if name.endswith(".gz") else open)(tmp_path / name, "wb") as file:
        for block in itertools.repeat(b"x" * 2**16, 40):
            file.write(block)
    (source,) = resolve_sources(tmp_path / name, Reading(text_split=split) if ".txt" in name else Reading())
    with pytest.raises(InputError, match="has more than"):
        list(source.texts())
