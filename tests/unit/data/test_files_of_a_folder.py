"""Files as people have them: every format, compression and spelling; what is not read, or no document, is told."""

import bz2
import gzip
import itertools
import json
import lzma

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nemo_xtoken.data.documents import survey
from nemo_xtoken.data.skipped import Skipped
from nemo_xtoken.data.sources import FILE_FORMATS, Reading, resolve_sources, unread_files
from nemo_xtoken.errors import InputError

TEXTS = ["one", "deux, été", 'with "quotes"\nand\r\nlines', "今天 🙂", " blanks\taround "]
COMPRESS = {
    "": lambda data: data,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".zst": lambda data: pa.compress(data, "zstd", asbytes=True),
    ".xz": lzma.compress,
}


def texts_of(paths, skipped=None, **options):
    return [text for source in resolve_sources(paths, Reading(**options)) for text in source.texts(skipped)]


def rows_of(texts, key="text"):
    return [{"id": number, key: text} for number, text in enumerate(texts)]


def csv_of(texts, delimiter=","):
    import csv
    import io

    out = io.StringIO()
    writer = csv.writer(out, delimiter=delimiter)
    writer.writerows([["id", "text"], *enumerate(texts)])
    return out.getvalue().encode()


def lines_of(rows):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


WRITERS = {
    ".jsonl": lambda texts: lines_of(rows_of(texts)),
    ".ndjson": lambda texts: b"\xef\xbb\xbf" + lines_of(rows_of(texts)),
    ".json": lambda texts: json.dumps(rows_of(texts), indent=1).encode(),
    ".JSON": lambda texts: b"\n" + lines_of(rows_of(texts)),
    ".csv": csv_of,
    ".tsv": lambda texts: b"\xef\xbb\xbf" + csv_of(texts, "\t"),
}


@pytest.mark.parametrize("compression", COMPRESS)
@pytest.mark.parametrize("extension", WRITERS)
def test_every_format_in_every_compression_and_spelling(extension, compression, tmp_path):
    data = WRITERS[extension](TEXTS)
    for name in (f"a{extension}{compression}", f"B{extension}{compression}".upper()):
        (tmp_path / name).write_bytes(COMPRESS[compression](data))
        assert texts_of(tmp_path / name) == TEXTS
    assert texts_of(tmp_path) == TEXTS * 2


@pytest.mark.parametrize("compression", COMPRESS)
@pytest.mark.parametrize("extension", [".jsonl", ".csv", ".txt"])
def test_files_of_several_members(extension, compression, tmp_path):
    """As ``cat a.gz b.gz`` makes them, or a writer that begins anew with every megabyte."""
    data = WRITERS.get(extension, lambda texts: "\n".join(texts).encode())(TEXTS)
    cuts = [0, 1, len(data) // 2, len(data)]
    members = b"".join(COMPRESS[compression](data[a:b]) for a, b in itertools.pairwise(cuts))
    path = tmp_path / f"a{extension}{compression}"
    path.write_bytes(members)
    assert texts_of(path) == (["\n".join(TEXTS)] if extension == ".txt" else TEXTS)
    path.write_bytes(members[:-7])
    if compression:
        with pytest.raises(InputError, match=r"a\.\w+\.\w+ cannot be read"):
            texts_of(path, on_error="skip")  # a damaged file is no row


def test_one_object_is_one_row(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps({"text": "pretty", "n": [1, 2]}, indent=2))
    (tmp_path / "b.json").write_text("[]")
    (tmp_path / "c.json").write_text(" \n")
    assert texts_of(tmp_path) == ["pretty"]


def test_long_values_of_a_table(tmp_path):
    text = "word, " * 50_000
    (tmp_path / "a.csv").write_bytes(csv_of([text]))
    assert texts_of(tmp_path / "a.csv") == [text]


def test_what_is_passed_over_in_a_folder_is_told_by_name(tmp_path, caplog):
    good = ["a.jsonl", "sub/b.csv", "sub/deep/c.JSONL.GZ"]
    passed = {
        "hidden": [".a.jsonl", "._b.jsonl", "sub/.c.jsonl.swp", "_SUCCESS"],
        "in a hidden folder": [".ipynb_checkpoints", "sub/_temporary"],
        "of an unknown format": ["README.md", "a.zip", "b.jsonl.lz4", "c.tar", "d.parquet.gz", "notes", "x.bin"],
        "descriptions, not data": ["dataset_info.json", "sub/LICENSE.txt"],
    }
    for name in [*good, *itertools.chain(*passed.values())]:
        path = tmp_path / (f"{name}/d.jsonl" if name in passed["in a hidden folder"] else name)
        path.parent.mkdir(parents=True, exist_ok=True)
        data = WRITERS["." + name.lower().split(".")[1]]([name]) if name in good else b"no data"
        path.write_bytes(gzip.compress(data) if name.endswith("GZ") else data)
    (tmp_path / "gone.jsonl").symlink_to(tmp_path / "nowhere.jsonl")
    (tmp_path / "sub" / "loop").symlink_to(tmp_path)
    assert texts_of(tmp_path) == good
    found = unread_files(tmp_path)
    told = {reason: sorted(files) for reason, files in found.items()}
    expected = {reason: sorted(str(tmp_path / name) for name in names) for reason, names in passed.items()}
    assert told == expected | {"not there (a link to nothing), or no file": [str(tmp_path / "gone.jsonl")]}
    assert texts_of(tmp_path / "sub" / "b.csv") == ["sub/b.csv"]
    assert unread_files(tmp_path / "sub" / "b.csv") == {}


def test_a_link_to_a_folder_is_followed(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "a.jsonl").write_bytes(lines_of(rows_of(["x"])))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "linked").symlink_to(tmp_path / "elsewhere")
    assert texts_of(tmp_path / "data") == ["x"]


def write_table(path, table):
    if path.suffix == ".parquet":
        pq.write_table(table, path)
    elif path.name == "stream.arrow":
        with pa.ipc.new_stream(path, table.schema) as writer:
            writer.write_table(table)
    elif path.suffix == ".arrow":
        with pa.ipc.new_file(path, table.schema) as writer:
            writer.write_table(table)
    else:
        datasets.Dataset(table).save_to_disk(path)
    return path


TABLES = ["a.parquet", "file.arrow", "stream.arrow", "saved"]


@pytest.mark.parametrize("name", TABLES)
def test_a_shard_without_any_text(name, tmp_path):
    for number, (key, kind, options) in enumerate(
        [
            ("text", pa.null(), {}),
            ("text", pa.string(), {}),
            ("data", pa.struct([("text", pa.null())]), {"text_key": "data.text"}),
            ("messages", pa.null(), {"format": "chat"}),
            ("messages", pa.list_(pa.null()), {"format": "chat"}),
        ]
    ):
        folder = tmp_path / f"{number}"
        folder.mkdir()
        skipped = Skipped()
        path = write_table(folder / name, pa.table({key: pa.array([None, None], kind)}))
        assert texts_of(path, skipped, **options) == []
        assert list(skipped.counts.values()) == [2]


@pytest.mark.parametrize("name", [*TABLES[:3], "a.csv", "a.tsv", "struct.parquet"])
def test_two_columns_of_one_name(name, tmp_path):
    path = tmp_path / name
    if path.suffix in (".csv", ".tsv"):
        path.write_text("text,id,text\na,1,b\n".replace(",", "," if path.suffix == ".csv" else "\t"))
    elif name == "struct.parquet":
        inner = pa.StructArray.from_arrays([pa.array(["a"]), pa.array(["b"])], ["text", "text"])
        write_table(path, pa.table([inner], ["data"]))
    else:
        write_table(path, pa.table([pa.array(["a"]), pa.array([1]), pa.array(["b"])], ["text", "id", "text"]))
    with pytest.raises(InputError, match="2 columns 'text'"):
        texts_of(path, text_key="data.text" if name == "struct.parquet" else "text")
    if path.suffix != ".csv" and name != "struct.parquet":
        with pytest.raises(InputError, match="id"):  # the others are still there
            texts_of(path, text_key="other")


NESTED = [
    {"data": {"text": "a", "n": 1}},
    {"data": None},
    {"data": {"text": None, "n": 2}},
    {"data": {"text": "b", "n": 3}},
]


@pytest.mark.parametrize("name", [*TABLES, "a.jsonl", "a.json"])
def test_text_inside_of_a_structure(name, tmp_path):
    path = tmp_path / name
    deep = [{"a": row} for row in NESTED]
    for rows, key in (
        (NESTED, "data.text"),
        (deep, "a.data.text"),
        ([{"a.b": {"c": "a"}}, {"a.b": {"c": "b"}}], "a.b.c"),
    ):
        if path.suffix == ".jsonl":
            path.write_bytes(lines_of(rows))
        elif path.suffix == ".json":
            path.write_text(json.dumps(rows))
        else:
            target = tmp_path / key
            target.mkdir(exist_ok=True)
            path = write_table(target / name, pa.Table.from_pylist(rows))
        assert texts_of(path, text_key=key) == ["a", "b"]
        for wrong in ("data.none", "text", "data.text.more", "a.x"):
            with pytest.raises(InputError, match=f"no column '{wrong}'"):
                texts_of(path, text_key=wrong)


@pytest.mark.parametrize("name", [*TABLES, "a.jsonl"])
def test_a_name_with_a_point_in_it(name, tmp_path):
    rows = [{"data.text": "literal", "data": {"text": "nested"}}]
    path = tmp_path / name
    if path.suffix == ".jsonl":
        path.write_bytes(lines_of(rows))
    else:
        write_table(path, pa.Table.from_pylist(rows))
    assert texts_of(path, text_key="data.text") == ["literal"]


def test_conversations_inside_of_a_structure(tmp_path):
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    (tmp_path / "a.jsonl").write_bytes(lines_of([{"data": {"chat": messages}}]))
    write_table(tmp_path / "a.parquet", pa.Table.from_pylist([{"data": {"chat": messages}}]))
    found = texts_of(tmp_path, format="chat", messages_key="data.chat")
    assert found == ['[["user","q"],["assistant","a"]]'] * 2


DEEP = b'{"text": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
BAD_LINES = {
    "not JSON": (b'{"text": ', "is not JSON"),
    "nested": (DEEP, "nested more than"),
    "a list": (b'["text"]', "is a JSON list"),
    "no column": (b'{"body": "x"}', "no column 'text'"),
    "a number": (b'{"text": 7}', "is a int"),
    "not UTF-8": (b'{"text": "\xe9"}', "not UTF-8"),
    "half a character": (b'{"text": "\\ud800"}', "surrogate"),
    "a huge number": (b'{"text": ' + b"1" * 5000 + b"}", "is not JSON"),
}


@pytest.mark.parametrize("kind", BAD_LINES)
@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.json"])
def test_a_bad_line_is_refused_with_its_place_or_skipped_and_counted(name, kind, tmp_path):
    line, message = BAD_LINES[kind]
    data = b"\n".join([b'{"text": "a"}', b"", line, b'{"text": ""}', b'{"text": "b"}'])
    path = tmp_path / name
    path.write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    with pytest.raises(InputError, match=message) as error:
        texts_of(path)
    assert "line 3" in error.value.found
    assert name in error.value.found
    assert "on_error=skip" in error.value.fix
    skipped = Skipped()
    assert texts_of(path, skipped, on_error="skip") == ["a", "b"]
    assert skipped.counts == {"refused": 1, "empty": 1}
    assert message.lstrip("^") in skipped.examples[0]


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.csv", b"id,text\n1,a\n2\n3,b\n", "line 3 of .* has 1 values"),
        ("a.csv", b"id,text\n1,a\n2,\xe9\n3,b\n", "not UTF-8: byte 0xe9 at offset 14, line 3"),
        ("a.csv", b'id,text\n1,a\n2,"x\n\xe9\n"\n3,b\n', "not UTF-8.*line 4"),
        ("a.tsv", b"id\ttext\n1\ta\n2\tx\ty\n3\tb\n", "line 3 of .* has 3 values"),
        ("a.json", b'[{"text": "a"}, 7, {"text": "b"}]', "row 1 of .* is a JSON int"),
        ("a.txt", b"a\nx\xff\nb\n", "not UTF-8: byte 0xff at offset 3, line 2"),
    ],
)
def test_a_bad_row_of_other_files(name, data, message, tmp_path):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError, match=message):
        texts_of(tmp_path / name, text_split="line")
    skipped = Skipped()
    assert texts_of(tmp_path / name, skipped, text_split="line", on_error="skip") == ["a", "b"]
    assert skipped.counts == {"refused": 1}


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.csv", b'id,text\n1,"a\n', "line 2 of .* is not CSV"),
        ("a.csv", b"id,body\n1,a\n", "no column 'text'(.|\n)*there are: id, body"),
        ("a.csv", b"\xe9\n1\n", "not UTF-8"),
        ("a.json", b'[{"text": "a"}, ', "is not JSON"),
        ("a.json", b"\xff", "not UTF-8"),
        ("a.json", b"[" * 100_000, "nested more than"),
        ("a.jsonl.xz", b"no xz", "cannot be read"),
        ("a.jsonl.zst", b"no zstd", "cannot be read"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused_in_any_case(name, data, message, tmp_path):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError, match=message):
        texts_of(tmp_path / name)
    if "UTF-8" not in message or name != "a.json":
        with pytest.raises(InputError, match=message):
            texts_of(tmp_path / name, on_error="skip")


def test_counts_are_kept_with_the_survey(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "a"}\n{"text": null}\nnot JSON\n')
    (tmp_path / "b.jsonl").write_bytes(b'{"text": "a"}\n{"text": "b"}\n7\n')
    sources = resolve_sources(tmp_path, Reading(on_error="skip"))
    first = survey(sources, tmp_path / "kept")
    again = survey(sources, tmp_path / "kept")
    assert first.skipped == again.skipped
    assert first.skipped.counts == {"empty": 1, "refused": 2}
    assert [example.split(" is")[0] for example in first.skipped.examples] == [
        f"line 3 of {tmp_path / name}.jsonl" for name in "ab"
    ]
    assert "rows that are no document: 1 empty, 2 refused\n  line 3" in str(first.skipped)
    with pytest.raises(InputError, match="on_error='ignore'"):
        Reading(on_error="ignore")


def test_a_format_of_ones_own_may_yield_texts_alone(tmp_path, monkeypatch):
    from nemo_xtoken.data.sources import FileFormat

    monkeypatch.setitem(FILE_FORMATS, "md", FileFormat((".md",), lambda path, _: iter(["a", "", "b"])))
    (tmp_path / "a.md").write_text("x")
    skipped = Skipped()
    assert texts_of(tmp_path, skipped) == ["a", "b"]
    assert skipped.counts == {"empty": 1}
    assert resolve_sources(tmp_path)[0].place(2) == f"row 2 of {tmp_path / 'a.md'}"
