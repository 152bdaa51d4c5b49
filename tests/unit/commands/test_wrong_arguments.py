"""What cannot be, of the arguments of verbs: one clear error and status 2, before anything is computed or written."""

import errno
import os

import pytest
from tokenizer_zoo import write_folder

from nemo_xtoken.commands.cli import main
from nemo_xtoken.commands.verb import Option, parse_arguments
from nemo_xtoken.commands.verbs import all_verbs
from nemo_xtoken.file_errors import check_target, file_problem

NUMBERS = [(verb.name, o) for verb in all_verbs().values() for o in verb.options if o.kind in (int, float)]
TEXTS = [(verb.name, o) for verb in all_verbs().values() for o in verb.options if o.kind is str]
WRITTEN = [(verb.name, o) for verb in all_verbs().values() for o in verb.options if o.writes]


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Arguments that name two tokenizers."""
    folder = tmp_path_factory.mktemp("tokenizers")
    return [f"{side}={write_folder(kind, folder / kind)}" for side, kind in (("student", "llama"), ("teacher", "qwen"))]


@pytest.fixture
def refused(tmp_path, monkeypatch, capsys):
    """``refused(words)``: the message, after a look that nothing was written."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NEMO_XTOKEN_CACHE", str(tmp_path / "cache"))

    def run(*words):
        before = sorted(tmp_path.rglob("*"))
        assert main(list(words)) == 2
        out, err = capsys.readouterr()
        assert err.startswith("error: ")
        assert "Traceback" not in err
        assert not out
        assert sorted(tmp_path.rglob("*")) == before
        return err

    return run


def _others(verb, name, pair=()):
    """Values for the arguments that a verb needs besides one."""
    given = {word.partition("=")[0]: word for word in pair}
    needed = [o for o in all_verbs()[verb].options if o.required and o.name != name]
    return [given.get(o.name, f"{o.name}={o.choices[0] if o.choices else 'x'}") for o in needed]


@pytest.mark.parametrize(("verb", "option"), NUMBERS, ids=[f"{verb}-{o.name}" for verb, o in NUMBERS])
def test_numbers_have_a_range(verb, option, refused):
    assert option.least is not None or option.above is not None, "say what it may be"
    for value in ("nan", "inf", "-1", "1e400"):
        message = refused(verb, *_others(verb, option.name), f"{option.name}={value}")
        assert f"{option.name}=" in message
        assert "expected" in message


@pytest.mark.parametrize(("verb", "option"), NUMBERS, ids=[f"{verb}-{o.name}" for verb, o in NUMBERS])
def test_numbers_have_an_end(verb, option, refused):
    """A slip of the keyboard, such as parts=1000000000, would fill the memory or start as many processes."""
    assert option.most is not None, "say how much it may be"
    assert option.holds(option.most)
    assert option.default is None or option.holds(option.default)
    for value in (option.kind(option.most * 10), 10**30):
        message = refused(verb, *_others(verb, option.name), f"{option.name}={value}")
        assert f"{option.name}={value}: {option.range} is expected" in message


@pytest.mark.parametrize(("verb", "option"), WRITTEN, ids=[f"{verb}-{o.name}" for verb, o in WRITTEN])
def test_what_is_written_below_the_home_folder_goes_there(verb, option, monkeypatch):
    """What is checked beforehand is so the place that is written."""
    monkeypatch.setenv("HOME", "/home/somebody")
    given = [word for word in _others(verb, option.name) if not word.startswith(f"{option.name}=")]
    for words in ([f"--{option.name}=~/x.pt"], [f"--{option.name}", "~/x.pt"], [f"{option.name}=~/x.pt"]):
        needed = [f"{option.goes_with}=x"] * bool(option.goes_with)
        assert parse_arguments(all_verbs()[verb], [*given, *needed, *words])[option.name] == "/home/somebody/x.pt"


def test_ranges_are_said_to_the_last_digit():
    assert Option("x", "", int, least=2, most=2**24).range == "from 2 to 16,777,216"
    assert Option("x", "", float, above=0, most=0.999999).range == "more than 0, up to 0.999999"


@pytest.mark.parametrize(("verb", "option"), TEXTS, ids=[f"{verb}-{o.name}" for verb, o in TEXTS])
def test_an_empty_text_is_a_slip(verb, option, refused):
    if not option.empty:
        message = refused(verb, *_others(verb, option.name), f"{option.name}=")
        assert f"{option.name}=" in message


@pytest.mark.parametrize(("verb", "option"), WRITTEN, ids=[f"{verb}-{o.name}" for verb, o in WRITTEN])
def test_places_that_cannot_be_written(verb, option, refused, tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("kept")
    os.mkfifo(tmp_path / "pipe")
    wrong = "file" if option.writes == "folder" else "folder"
    for value in (wrong, "pipe", "file/below", "a" * 300):
        words = [*_others(verb, option.name), f"{option.name}={value}"]
        message = refused(verb, *words)
        assert value[:20] in message
        assert "expected:" in message
    assert (tmp_path / "file").read_text() == "kept"


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["sbatch", "recipe=xtoken_tiny", "slurm=venv", "=5"], "no argument ''"),
        (["sbatch", "recipe=xtoken_tiny(nodes=5)", "slurm=venv"], "has no argument 'nodes'"),
        (["sbatch", "recipe=xtoken_qwen3_llama1b(nodes=abc)", "slurm=venv"], "nodes=abc"),
        (["preflight", "recipe=xtoken_tiny(nodes=0)"], "nodes"),
        (["prepare", "student=a", "teacher=b", "paths=c", "slurm=nope"], "slurm= does nothing without sbatch="),
        (["evaluate", "run=x", "until=5"], "until= does nothing without watch="),
        (["evaluate", "model=x", "tasks=nope"], "no task 'nope' in lm_eval"),
        (["align", "student=a", "teacher=b", "text=\udc80"], "is not UTF-8"),
    ],
)
def test_arguments_that_do_not_go_together(words, part, refused):
    if "tasks=nope" in words:
        pytest.importorskip("lm_eval", reason="lm_eval is not installed")
    assert part in refused(*words)


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["split=trian"], "split=trian for data of the kind jsonl"),
        (["indexed_tokenizer=nope"], "indexed_tokenizer=nope for data of the kind jsonl"),
        (["text_split=line"], "text_split=line for data of the kind jsonl"),
        (["messages_key=turns"], "messages_key=turns for data of the kind jsonl"),
    ],
)
def test_settings_that_the_data_has_no_use_for(words, part, refused, pair, tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n')
    assert part in refused("prepare", *pair, "paths=a.jsonl", "out=there", *words)


def test_a_folder_that_is_no_run(refused, tmp_path):
    (tmp_path / "folder").mkdir()
    assert "neither `checkpoints` nor history.jsonl" in refused("evaluate", "run=folder")
    (tmp_path / "folder" / "checkpoints").mkdir()
    pytest.importorskip("lm_eval", reason="lm_eval is not installed")
    assert "no finished checkpoint" in refused("evaluate", "run=folder")


def test_a_disk_that_is_full_or_read_only(pair, tmp_path, monkeypatch, capsys):
    """The system's errors and those of safetensors, wherever in a verb they come from."""
    from safetensors import SafetensorError

    import nemo_xtoken.projection.matrix as matrix

    target = tmp_path / "w.safetensors"
    for error, part in (
        (
            OSError(errno.ENOSPC, "", f"{tmp_path}/.w.safetensors.abc123.tmp"),
            f"{target} cannot be written or read: No sp",
        ),
        (OSError(errno.EROFS, "", str(target)), "Read-only file system"),
        (SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"), "No space left"),
    ):

        def fail(*_, error=error, **__):
            raise error

        with monkeypatch.context() as patch:
            patch.setattr(matrix, "safetensors_bytes", fail)
            assert main(["build", *pair, f"out={target}"]) == 2
        assert part in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_cache_that_can_only_be_read_serves_those_who_only_look(pair, tmp_path, monkeypatch, capsys):
    (tmp_path / "cache").write_text("no folder")
    monkeypatch.setenv("NEMO_XTOKEN_CACHE", str(tmp_path / "cache"))
    assert main(["audit", *pair]) == 0
    assert "P-KL" in capsys.readouterr().out
    assert main(["build", *pair]) == 2
    assert "W cannot be kept in" in capsys.readouterr().err


def test_other_errors_keep_their_traceback():
    assert file_problem(ValueError("x")) is None
    assert file_problem(OSError(errno.ECONNREFUSED, "refused")) is None


def test_right_targets(tmp_path):
    check_target("out", str(tmp_path / "new" / "folder"), folder=True)
    check_target("out", str(tmp_path), folder=True)
    (tmp_path / "there").write_text("")
    check_target("out", str(tmp_path / "there"))
