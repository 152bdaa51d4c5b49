"""Local data: where it is looked for, how it gets there, and that the harness reads it."""

import dataclasses
import json
from pathlib import Path

import pytest
from task_data import rows

from nemo_xtoken.errors import InputError
from nemo_xtoken.evaluate.local_data import fetch, load_splits


def one(sources, task):
    return next(s for s in sources if s.task == task)


def test_what_the_tasks_read(sources):
    assert len(sources) == 57 + 1 + 7 + 1 + 1
    found = {(s.path, s.subset if s.path != "cais/mmlu" else "*", s.splits) for s in sources}
    assert ("openai/gsm8k", "main", ("train", "test")) in found
    assert ("allenai/winogrande", "winogrande_xl", ("train", "validation")) in found
    assert ("Rowan/hellaswag", None, ("train", "validation")) in found
    assert ("EleutherAI/hendrycks_math", "number_theory", ("train", "test")) in found
    assert ("cais/mmlu", "*", ("test", "dev")) in found


def test_fetched_files_are_what_the_hub_gave(sources, tmp_path):
    import datasets

    asked = []

    def hub(path, subset, split):
        asked.append((path, subset, split))
        source = next(s for s in sources if (s.path, s.subset) == (path, subset))
        return datasets.Dataset.from_list(rows(source, split))

    some = [one(sources, name) for name in ("mmlu_anatomy", "hellaswag", "gsm8k")]
    assert fetch(some, tmp_path, hub) == 6
    assert asked[0] == ("cais/mmlu", "anatomy", "test")
    assert (tmp_path / "mmlu" / "anatomy" / "dev.parquet").is_file()
    assert fetch(some, tmp_path, hub) == 0
    for source in some:
        files = {split: [str(f) for f in found] for split, found in source.files(tmp_path).items()}
        read = load_splits(files)
        assert {split: list(read[split]) for split in read} == {s: rows(source, s) for s in source.splits}


def test_a_hub_that_is_not_there(sources, tmp_path):
    def hub(*_, **__):
        raise ConnectionError("no route\nto host")

    with pytest.raises(InputError, match="no route to host"):
        fetch([one(sources, "gsm8k")], tmp_path, hub)
    assert not list(tmp_path.rglob("*.parquet"))


def test_numbered_files_and_kinds(sources, tmp_path):
    import datasets

    source = dataclasses.replace(one(sources, "gsm8k"), splits=("test",))
    place = tmp_path / "gsm8k" / "main"
    place.mkdir(parents=True)
    for n in range(3):
        part = datasets.Dataset.from_list([{"question": f"q{n}", "answer": "#### 1"}])
        part.to_parquet(str(place / f"test-0000{n}-of-00003.parquet"))
    (place / "test_notes.jsonl").write_text("not this")
    [files] = source.files(tmp_path).values()
    assert load_splits({"test": [str(f) for f in files]})["test"]["question"][:] == ["q0", "q1", "q2"]
    for f in files:
        f.unlink()
    (place / "test.json").write_text(json.dumps([{"question": "q", "answer": "a"}]))
    [files] = source.files(tmp_path).values()
    assert load_splits({"test": [str(f) for f in files]})["test"]["question"][:] == ["q"]


def test_lines_end_at_line_breaks_alone(tmp_path):
    """JSON may hold what Unicode calls ends of lines as they are, and files may begin with a byte-order mark."""
    items = [{"question": f"a{character}b"} for character in "\u2028\u2029\x85\x0b\x0c\x1c\r"]
    for number, (end, mark) in enumerate((("\n", b""), ("\r\n", b"\xef\xbb\xbf"))):
        path = tmp_path / f"{number}.jsonl"
        path.write_bytes(mark + "".join(json.dumps(i, ensure_ascii=False) + end for i in items).encode())
        assert list(load_splits({"test": [str(path)]})["test"]) == items
    path = tmp_path / "2.json"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(items, ensure_ascii=False).encode())
    assert list(load_splits({"test": [str(path)]})["test"]) == items


def test_missing_and_broken_files(sources, tmp_path):
    source = one(sources, "gsm8k")
    with pytest.raises(InputError, match="no data of split 'train' for task gsm8k"):
        source.files(tmp_path)
    broken = tmp_path / "x.parquet"
    broken.write_bytes(b"PAR1 and no more")
    with pytest.raises(InputError, match="cannot be read"):
        load_splits({"train": [str(broken)]})
    lines = Path(tmp_path / "x.jsonl")
    lines.write_text('{"a": 1}\n{')
    with pytest.raises(InputError, match="cannot be read"):
        load_splits({"train": [str(lines)]})
