"""YAML as people write it: a time stays a time, a number is a number, and a key is there once."""

import pytest

from nemo_xtoken.errors import InputError
from nemo_xtoken.run.yaml_file import read_yaml

TEXT = """
time: 4:00:00
clock: 12:30
fraction: 1:2.5
lr: 1e-5
large: 1E3
dumped: 5.0e-05
half: .5
one: 1.
infinite: .inf
thousand: 1_000
hex: 0x10
minus: -3
no number: 08
version: 1.2.3
day: 2020-01-01
quoted: '3'
yes: yes
nothing: null
list: [1, 2]
"""


def test_values(tmp_path):
    (tmp_path / "a.yaml").write_text(TEXT)
    assert read_yaml(tmp_path / "a.yaml") == {
        "time": "4:00:00", "clock": "12:30", "fraction": "1:2.5", "lr": 1e-5, "large": 1e3, "dumped": 5e-5, "half": 0.5,
        "one": 1.0, "infinite": float("inf"), "thousand": 1000, "hex": 16, "minus": -3, "no number": "08",
        "version": "1.2.3", "day": "2020-01-01", "quoted": "3", True: True, "nothing": None, "list": [1, 2],
    }  # fmt: skip


def test_text_as_it_is_written(tmp_path):
    (tmp_path / "a.yaml").write_text("a: 4:00:00\nb: 007\nc: yes\nd: null\ne: [1, 1e5]\nf:\n")
    found = {"a": "4:00:00", "b": "007", "c": "yes", "d": "null", "e": ["1", "1e5"], "f": ""}
    assert read_yaml(tmp_path / "a.yaml", text=True) == found


#: Nine lists of nine aliases each.
ALIASES = "a0: &a0 [1, 1]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 10))


@pytest.mark.parametrize("text", [False, True])
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("a: 1\nb: {c: 1, d: 2, c: 3}\n", "the key 'c' is there twice in line 2, column 17"),
        ("a: 1\n'a': 1\n", "the key 'a' is there twice"),
        ("a: [1", "line 1"),
        ("? [1, 2]\n: 3", "unhashable"),
        ("\t a: 1", "cannot start any token"),
        (ALIASES, "stand for more than 1,000,000 values"),
        ("a: &a [1, *a]", "stands for what it is in|recursive"),
        ("[" * 5000 + "]" * 5000, "recursion"),
    ],
)
def test_refused(tmp_path, content, reason, text):
    (tmp_path / "a.yaml").write_text(content)
    with pytest.raises(InputError, match=reason):
        read_yaml(tmp_path / "a.yaml", text)


def test_no_code_is_called(tmp_path):
    (tmp_path / "a.yaml").write_text("a: !!python/object/apply:os.getcwd []\n")
    with pytest.raises(InputError, match="python/object"):
        read_yaml(tmp_path / "a.yaml")


def test_what_is_no_file(tmp_path):
    with pytest.raises(InputError, match="nowhere"):
        read_yaml(tmp_path / "nowhere.yaml")
    (tmp_path / "empty.yaml").write_text("")
    assert read_yaml(tmp_path / "empty.yaml") is None


def test_a_merged_key_is_not_there_twice(tmp_path):
    (tmp_path / "a.yaml").write_text(
        "x: &x {a: 1, b: 1}\ninside: {u: &u {<<: *x, a: 2}}\nv: {<<: *u, b: 3}\nsame: *u\n"
    )
    found = read_yaml(tmp_path / "a.yaml")
    assert found["v"] == {"a": 2, "b": 3}
    assert found["inside"]["u"] == {"a": 2, "b": 1}
    assert found["same"] is found["inside"]["u"]
