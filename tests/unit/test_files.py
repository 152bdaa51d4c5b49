"""Writing a file: whole or absent, into what a user means, and never over what is read."""

import contextlib
import os
import socket
import stat
import threading

import pytest

from nemo_xtoken.commands.verb import Option, Verb, keep_inputs
from nemo_xtoken.data.prepare import survey_folder
from nemo_xtoken.errors import InputError
from nemo_xtoken.files import atomic_path, cache_root, file_digest
from nemo_xtoken.weights.folder import new_folder


def test_the_cache_may_be_named_below_the_home_folder(monkeypatch):
    """In a YAML file, or by ``env NEMO_XTOKEN_CACHE=~/cache``, no shell says where that is."""
    monkeypatch.setenv("HOME", "/home/somebody")
    monkeypatch.setenv("NEMO_XTOKEN_CACHE", "~/own")
    assert str(cache_root()) == "/home/somebody/own"
    assert str(survey_folder("~/other")) == "/home/somebody/other/surveys"
    monkeypatch.delenv("NEMO_XTOKEN_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "~/.caches")
    assert str(cache_root()) == "/home/somebody/.caches/nemo_xtoken"


def write(target, text="new"):
    with atomic_path(target) as temporary:
        temporary.write_text(text)


def others(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_replaced_and_nothing_else_stays(tmp_path):
    write(tmp_path / "a" / "file", "old")
    write(tmp_path / "a" / "file")
    assert (tmp_path / "a" / "file").read_text() == "new"
    assert others(tmp_path / "a") == ["file"]


def test_an_error_leaves_what_was_there(tmp_path):
    write(tmp_path / "file", "old")
    with pytest.raises(TypeError), atomic_path(tmp_path / "file") as temporary:
        temporary.write_text(3)
    assert (tmp_path / "file").read_text() == "old"
    assert others(tmp_path) == ["file"]


@pytest.mark.parametrize("kind", ["file", "a link to a file", "nothing"])
def test_a_link_stays_and_what_it_points_to_is_written(kind, tmp_path):
    (tmp_path / "far").mkdir()
    far, link = tmp_path / "far" / "file", tmp_path / "link"
    target = far
    if kind != "nothing":
        far.write_text("old")
    if kind == "a link to a file":
        target = tmp_path / "between"
        target.symlink_to("far/file")
    link.symlink_to(target)
    write(link)
    assert link.is_symlink()
    assert far.read_text() == "new"
    assert not far.is_symlink()
    assert others(tmp_path / "far") == ["file"]


def test_a_link_to_a_folder_stays(tmp_path):
    (tmp_path / "far").mkdir()
    (tmp_path / "link").symlink_to("far")
    with new_folder(tmp_path / "link") as folder:
        (folder / "config.json").write_text("{}")
    assert (tmp_path / "link").is_symlink()
    assert others(tmp_path / "far") == ["config.json"]
    with new_folder(tmp_path / "link", overwrite=True) as folder:
        (folder / "other.json").write_text("{}")
    assert (tmp_path / "link").is_symlink()
    assert others(tmp_path / "far") == ["other.json"]
    assert others(tmp_path) == ["far", "link"]


def test_a_pipe_gets_the_bytes_and_stays(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    read = []
    reader = threading.Thread(target=lambda: read.append((tmp_path / "pipe").read_text()))
    reader.start()
    write(tmp_path / "pipe")
    reader.join(30)
    assert read == ["new"]
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
    assert others(tmp_path) == ["pipe"]


def test_a_device_gets_the_bytes_and_stays(tmp_path):
    try:
        os.mknod(tmp_path / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    except PermissionError:
        pytest.skip("only root makes devices")
    with contextlib.suppress(PermissionError):  # a file system that has no devices
        write(tmp_path / "null")
    assert stat.S_ISCHR((tmp_path / "null").stat().st_mode)
    assert others(tmp_path) == ["null"]


def test_standard_output_gets_the_bytes(tmp_path):
    with open(tmp_path / "out", "w") as out:
        write(f"/dev/fd/{out.fileno()}")
        write(os.devnull)
        inode = os.fstat(out.fileno()).st_ino
    assert (tmp_path / "out").read_text() == "new"
    assert (tmp_path / "out").stat().st_ino == inode  # the shell's file itself
    assert stat.S_ISCHR(os.stat(os.devnull).st_mode)


def test_what_no_file_can_replace_is_refused(tmp_path, monkeypatch):
    (tmp_path / "folder").mkdir()
    (tmp_path / "empty").symlink_to("folder")
    monkeypatch.chdir(tmp_path)  # the name of a socket is short
    with socket.socket(socket.AF_UNIX) as plug:
        plug.bind("socket")
        for name in ("folder", "empty", "socket"):
            with pytest.raises(InputError, match=f"{name} is a"):
                write(tmp_path / name)
    assert others(tmp_path) == ["empty", "folder", "socket"]


def test_a_digest_does_not_depend_on_how_it_is_read(tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(bytes(range(256)) * 5)
    whole = file_digest(tmp_path / "file")
    monkeypatch.setattr("nemo_xtoken.files.BLOCK", 7)
    assert file_digest(tmp_path / "file") == whole
    (tmp_path / "file").write_bytes(bytes(range(256)) * 4 + bytes(256))
    assert file_digest(tmp_path / "file") != whole


# --- what a command reads

VERB = Verb(
    "verb",
    "",
    "",
    (
        Option("student", "", required=True),
        Option("text", ""),
        Option("mode", "", choices=("tok",)),
        Option("out", "", writes="file"),
        Option("figure", "", writes="file"),
    ),
    (),
    lambda arguments: 0,
)


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("tok/tokenizer.json", "tok/chat_template.jinja", "tok/notes.txt", "tok/model-00001.safetensors"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    (tmp_path / "w.safetensors").write_text("x")
    (tmp_path / "link").symlink_to("tok/tokenizer.json")


@pytest.mark.parametrize(
    "given",
    [
        {"out": "tok/tokenizer.json"},
        {"out": "tok/chat_template.jinja"},
        {"out": "tok/model-00001.safetensors"},
        {"out": "link"},
        {"out": "tok/../tok/tokenizer.json"},
        {"out": "tok"},
        {"out": "."},
        {"figure": "w.safetensors", "text": "w.safetensors"},
        {"student": "tok/tokenizer.json", "out": "tok/tokenizer.json"},
        {"student": "link", "out": "tok/tokenizer.json"},
    ],
)
def test_a_command_keeps_what_it_reads(files, given):
    with pytest.raises(InputError, match="reads"):
        keep_inputs(VERB, {"student": "tok", "text": None, "mode": "tok", "out": None, "figure": None} | given)


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"out": "new.json"},
        {"out": "tok/new.json"},
        {"out": "tok/notes.txt"},  # a command's own, of a run before
        {"out": "w.safetensors", "figure": "w.safetensors"},
        {"student": "w.safetensors", "mode": "tok", "out": "tok"},
        {"text": "/dev/stdin", "out": "/dev/stdin"},
        {"text": "a" * 5000, "out": "b" * 5000},
        {"text": "a\0b", "out": "tok/x"},
        {"student": "org/model", "out": "link2"},
    ],
)
def test_other_places_may_be_written(files, given):
    keep_inputs(VERB, {"student": "tok", "text": None, "mode": "tok", "out": None, "figure": None} | given)
