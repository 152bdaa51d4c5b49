import bz2
import gzip
import json
import os

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nemo_xtoken.data.documents import read_documents, survey
from nemo_xtoken.data.sources import Reading, resolve_sources
from nemo_xtoken.errors import InputError

TEXTS = ["first\nline", "中文 text, été", "third \U0001f642", "last"]


def texts_of(paths, **options) -> list[str]:
    return [text for source in resolve_sources(paths, Reading(**options)) for text in source.texts()]


def jsonl(texts, key="text") -> bytes:
    return "".join(json.dumps({"id": i, key: t}, ensure_ascii=False) + "\n" for i, t in enumerate(texts)).encode()


def table(texts, key="text") -> pa.Table:
    return pa.table({"id": list(range(len(texts))), key: texts})


def write_stream(path, texts):
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table(texts).schema) as writer:
        writer.write_table(table(texts), max_chunksize=2)


def write_file(path, texts):
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table(texts).schema) as writer:
        writer.write_table(table(texts), max_chunksize=2)


def write_zst(path, data):
    with pa.output_stream(str(path), compression="zstd") as file:
        file.write(data)


WRITERS = {
    "a.jsonl": lambda p, t: p.write_bytes(jsonl(t)),
    "a.ndjson": lambda p, t: p.write_bytes(b"\xef\xbb\xbf" + jsonl(t).replace(b"\n", b"\r\n\r\n")),
    "a.jsonl.gz": lambda p, t: p.write_bytes(gzip.compress(jsonl(t))),
    "a.jsonl.bz2": lambda p, t: p.write_bytes(bz2.compress(jsonl(t))),
    "a.jsonl.zst": lambda p, t: write_zst(p, jsonl(t)),
    "a.parquet": lambda p, t: pq.write_table(table(t), p, row_group_size=2),
    "A.PARQUET": lambda p, t: pq.write_table(table(t).cast(pa.schema([("id", "i8"), ("text", pa.large_string())])), p),
    "file.arrow": write_file,
    "stream.arrow": write_stream,
    "dict.arrow": lambda p, t: datasets.Dataset.from_dict({"id": [0] * len(t), "text": t}).save_to_disk(p),
    "saved": lambda p, t: datasets.Dataset.from_dict({"text": t}).save_to_disk(p),
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_kind_gives_the_same_texts(tmp_path, name):
    WRITERS[name](tmp_path / name, TEXTS)
    assert texts_of(tmp_path / name) == TEXTS


@pytest.mark.parametrize("name", WRITERS)
def test_documents_without_text_are_passed_over(tmp_path, name):
    WRITERS[name](tmp_path / name, ["", TEXTS[0], " \n\t", None, TEXTS[1]])
    assert texts_of(str(tmp_path / name)) == TEXTS[:2]


def test_the_split_of_a_saved_dictionary(tmp_path):
    parts = {
        "train": datasets.Dataset.from_dict({"text": TEXTS[:3]}),
        "test": datasets.Dataset.from_dict({"text": ["x"]}),
    }
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "d")
    assert texts_of(tmp_path / "d") == TEXTS[:3]
    assert texts_of(tmp_path / "d", split="test") == ["x"]
    with pytest.raises(InputError, match=r"no split 'dev'(.|\n)*train, test"):
        texts_of(tmp_path / "d", split="dev")


def test_the_split_of_a_saved_data_set_that_is_one(tmp_path):
    """One that is asked for by name, and is not what was saved, is not to be replaced without a word."""
    for number, (own, asked, right) in enumerate(
        (
            ("train", "train", True),
            ("test", "train", True),  # nobody has named one
            ("test", "test", True),
            ("test[:10%]", "test", True),
            (None, "test", True),  # whatever it is
            ("train", "test", False),
            ("validation[5:]", "test", False),
        )
    ):
        found = datasets.Dataset.from_dict({"text": TEXTS[:2]}, split=own and datasets.NamedSplit(own))
        found.save_to_disk(tmp_path / str(number))
        if right:
            assert texts_of(tmp_path / str(number), split=asked) == TEXTS[:2]
        else:
            with pytest.raises(InputError, match=rf"is the split '{own.partition('[')[0]}' alone"):
                texts_of(tmp_path / str(number), split=asked)


def test_a_first_line_that_is_none_does_not_hide_the_others(tmp_path):
    """Of JSON Lines in a file called .json: such rows can be left out, and are named, wherever they are."""
    lines = [json.dumps({"text": text}) for text in TEXTS[:2]]
    for number, at in ((1, 0), (2, 1), (3, 2)):
        (tmp_path / "a.json").write_text("\n".join([*lines[:at], '{"text": broken}', *lines[at:]]))
        assert texts_of(tmp_path / "a.json", on_error="skip") == TEXTS[:2]
        with pytest.raises(InputError, match=f"line {number} of .*a.json is not JSON"):
            texts_of(tmp_path / "a.json")
    for whole in ('{"text":\n{"a": 1}\n', '[\n{"text": "a"}\n{"text": "b"}', '{"text": "a"\n"b"}'):
        (tmp_path / "a.json").write_text(whole)
        with pytest.raises(InputError, match="is not JSON"):
            texts_of(tmp_path / "a.json")


def test_a_saved_data_set_keeps_its_selection(tmp_path):
    whole = datasets.Dataset.from_dict({"text": TEXTS})
    whole.select([3, 1]).save_to_disk(tmp_path / "d")
    assert texts_of(tmp_path / "d") == [TEXTS[3], TEXTS[1]]


def test_text_files(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbfone\r\ntwo\n\n \n\nthree\nfour\n")
    assert texts_of(path) == ["one\r\ntwo\n\n \n\nthree\nfour\n"]
    assert texts_of(path, text_split="line") == ["one", "two", "three", "four"]
    assert texts_of(path, text_split="paragraph") == ["one\r\ntwo\n", "three\nfour\n"]
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(path.read_bytes()))
    assert texts_of(tmp_path / "a.txt.gz") == texts_of(path)


def test_globs_folders_and_lists_are_sorted_and_read_once(tmp_path):
    for name in ("b.txt", "a.txt", "sub/c.txt", "sub/d.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(jsonl([name]) if name.endswith("jsonl") else name.encode())
    (tmp_path / "sub" / "README.md").write_text("no data")
    assert texts_of(tmp_path / "*.txt") == ["a.txt", "b.txt"]
    assert texts_of(f"{tmp_path}/**/*.txt") == ["a.txt", "b.txt", "sub/c.txt"]
    assert texts_of(tmp_path) == ["a.txt", "b.txt", "sub/c.txt", "sub/d.jsonl"]
    assert texts_of([tmp_path / "sub/d.jsonl", tmp_path / "*.txt", tmp_path / "a.txt"]) == [
        "sub/d.jsonl",
        "a.txt",
        "b.txt",
    ]


def test_another_column(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(jsonl(TEXTS, "body"))
    assert texts_of(tmp_path / "a.jsonl", text_key="body") == TEXTS


def bad(name, data, match, **options):
    return pytest.param(name, data, match, options, id=f"{name}-{match[:20]}")


@pytest.mark.parametrize(
    ("name", "data", "match", "options"),
    [
        bad("a.txt", b"ok\nok \xff no", r"a\.txt is not UTF-8: byte 0xff at offset 6, line 2"),
        bad("a.txt", b"ok\nok \xff no", r"offset 6, line 2", text_split="line"),
        bad("a.txt", "été".encode("utf-16"), r"a\.txt is not UTF-8: byte 0xff at offset 0"),
        bad("a.jsonl", b'{"text": "a"}\n{"text": "\xe9"}\n', r"not UTF-8: byte 0xe9 at offset 24, line 2"),
        bad("a.jsonl", b'{"text": "a"}\n{"text": "\\ud800"}\n', r"line 2 of .*a\.jsonl is not UTF-8"),
        bad("a.jsonl", b'{"text": "a"}\n\n{"text": \n', r"line 3 of .*a\.jsonl is not JSON"),
        bad("a.jsonl", b'["text"]\n', r"line 1 of .* is a JSON list"),
        bad("a.jsonl", jsonl(["x"], "body"), r"line 1 of .* has no column 'text'(.|\n)*there are: id, body"),
        bad("a.jsonl", b'{"text": 7}\n', r"'text' on line 1 of .* is a int"),
        bad("a.jsonl.gz", gzip.compress(jsonl(TEXTS))[:-12], r"a\.jsonl\.gz cannot be read"),
        bad("a.jsonl.gz", b"no gzip", r"a\.jsonl\.gz cannot be read"),
        bad("a.txt.gz", b"no gzip", r"a\.txt\.gz cannot be read"),
        bad("a.parquet", b"", r"a\.parquet is empty"),
        bad("a.parquet", b"PAR1 and no more", r"a\.parquet cannot be read"),
        bad("a.arrow", b"", r"a\.arrow is empty"),
        bad("a.arrow", b"ARROW1\0\0 and no more", r"a\.arrow cannot be read"),
        bad("a.md", b"text\nx\n", r"extension of .*a\.md is unknown(.|\n)*\.jsonl"),
        bad("a.parquet.gz", b"x", r"extension of .* is unknown"),
        bad("a.txt", b"x", r"text_split='word'", text_split="word"),
    ],
)
def test_bad_files(tmp_path, name, data, match, options):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError, match=match):
        texts_of(tmp_path / name, **options)


@pytest.mark.parametrize("write", [write_file, write_stream, lambda p, t: pq.write_table(table(t), p)])
def test_columns_of_tables_are_checked(tmp_path, write):
    path = tmp_path / ("a.parquet" if write not in (write_file, write_stream) else "a.arrow")
    write(path, TEXTS)
    with pytest.raises(InputError, match=r"no column 'body'(.|\n)*there are: id, text"):
        texts_of(path, text_key="body")
    with pytest.raises(InputError, match=r"column .id. of .* is int64"):
        texts_of(path, text_key="id")


def test_a_string_column_that_is_not_utf8(tmp_path):
    raw = pa.array([b"fine", b"\xff\xfe"], pa.binary())
    column = pa.Array.from_buffers(pa.string(), 2, raw.buffers())
    pq.write_table(pa.table({"text": column}), tmp_path / "a.parquet")
    with pytest.raises(InputError, match=r"a\.parquet is not UTF-8: .* row 1"):
        texts_of(tmp_path / "a.parquet")


@pytest.mark.parametrize("paths", [[], "nothing.txt", "*.nothing", "", ["owner/name"]])
def test_no_data_at_the_path(tmp_path, monkeypatch, paths):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="no data"):
        resolve_sources(paths)


def test_a_pipe_is_no_data(tmp_path):
    """It would be waited for, and could be read once alone."""
    os.mkfifo(tmp_path / "a.jsonl")
    with pytest.raises(InputError, match=r"a\.jsonl is a pipe"):
        resolve_sources(tmp_path / "a.jsonl")


def test_a_folder_without_data(tmp_path):
    (tmp_path / "README.md").write_text("x")
    with pytest.raises(InputError, match="holds no data"):
        resolve_sources(tmp_path)


def test_a_hub_data_set_that_cannot_be_had():
    with pytest.raises(InputError, match=r"nobody/nothing-of-this-name cannot be read"):
        texts_of("hf:nobody/nothing-of-this-name")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read(tmp_path):
    (tmp_path / "a.txt").write_text("x")
    (tmp_path / "a.txt").chmod(0)
    with pytest.raises(InputError, match="cannot be read"):
        texts_of(tmp_path / "a.txt")


def test_nothing_but_empty_documents(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"")
    (tmp_path / "b.txt").write_bytes(b" \n")
    with pytest.raises(InputError, match=r"no document with any text in .*a\.txt"):
        survey(resolve_sources(tmp_path / "*.txt"))


def test_data_that_changes_after_the_survey(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("one\ntwo\n")
    sources = resolve_sources(path, Reading(text_split="line"))
    found = survey(sources)
    assert [t for _, t in read_documents(sources, found, found.characters > 0)] == ["one", "two"]
    for changed in ("one\n2\n", "one\n"):
        path.write_text(changed)
        with pytest.raises(InputError, match="changed while it was being prepared"):
            list(read_documents(sources, found, found.characters > 0))


def test_large_documents_are_read_a_few_at_a_time(tmp_path, monkeypatch):
    texts = [f"{n} " + "word " * 40000 for n in range(12)]
    pq.write_table(pa.table({"text": texts, "other": [0] * 12}), tmp_path / "a.parquet", use_dictionary=False)
    sizes = []
    batches = pq.ParquetFile.iter_batches
    monkeypatch.setattr(
        pq.ParquetFile,
        "iter_batches",
        lambda self, batch_size, **more: sizes.append(batch_size) or batches(self, batch_size=batch_size, **more),
    )
    assert texts_of(tmp_path / "a.parquet") == texts
    assert sizes == [5]  # 200 kB each
