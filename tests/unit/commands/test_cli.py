"""The console script `xtoken VERB`."""

import io
import json
import subprocess
import sys
import warnings

import pytest
from tokenizer_zoo import write_folder

import nemo_xtoken
from nemo_xtoken.commands.cli import main, report_error
from nemo_xtoken.commands.verb import Option, UsageError, Verb, parse_arguments
from nemo_xtoken.commands.verbs import all_verbs
from nemo_xtoken.projection.matrix import ProjectionMatrix
from nemo_xtoken.vocab import load_vocabulary

TEXT = "In 1987 Fluß 🙂 = 12"


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """The arguments that name two tokenizers: digits in threes with BOS, and one by one without."""
    folder = tmp_path_factory.mktemp("tokenizers")
    student, teacher = (write_folder(name, folder / name) for name in ("llama", "qwen"))
    return [f"student={student}", f"teacher={teacher}"]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("NEMO_XTOKEN_CACHE", str(tmp_path / "cache"))


# --- reading arguments

VERB = Verb(
    "verb",
    "",
    "",
    (
        Option("name", "", required=True),
        Option("max_pieces", "", int, 4),
        Option("beta", "", float),
        Option("mode", "", default="a", choices=("a", "bb")),
        Option("json", "", bool, False),
    ),
    (),
    lambda arguments: 0,
)
DEFAULTS = {"name": "n", "max_pieces": 4, "beta": None, "mode": "a", "json": False}


@pytest.mark.parametrize(
    ("words", "changed"),
    [
        (["name=n"], {}),
        (["--name", "n"], {}),
        (["--name=n"], {}),
        (["--name", "--odd"], {"name": "--odd"}),
        (["name=a=b"], {"name": "a=b"}),
        (["name=n", "max_pieces=2"], {"max_pieces": 2}),
        (["name=n", "--max-pieces", "2"], {"max_pieces": 2}),
        (["name=n", "--max_pieces=2", "beta=.5"], {"max_pieces": 2, "beta": 0.5}),
        (["--json", "name=n"], {"json": True}),
        (["--no-json", "name=n"], {}),
        (["json=true", "name=n"], {"json": True}),
        (["json=no", "name=n", "mode=bb"], {"mode": "bb"}),
    ],
)
def test_both_spellings_of_arguments(words, changed):
    assert parse_arguments(VERB, words) == DEFAULTS | changed


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "needs name="),
        (["nam=n"], "no argument 'nam'; did you mean 'name'?"),
        (["name=n", "--no-beta"], "no argument '--no-beta'"),
        (["name=n", "--name", "m"], "'name' is given twice"),
        (["--name"], "--name needs a value"),
        (["name"], "'name' has no value"),
        (["name=n", "max_pieces=two"], "max_pieces='two': a whole number is expected"),
        (["name=n", "beta=x"], "beta='x': a number is expected"),
        (["name=n", "mode=b"], "mode='b'; did you mean 'bb'?: one of a, bb"),
        (["name=n", "json=maybe"], "true or false is expected"),
    ],
)
def test_wrong_arguments_are_named(words, message):
    with pytest.raises(UsageError) as error:
        parse_arguments(VERB, words)
    assert message in str(error.value)


# --- the command


def test_help_lists_every_verb_and_teaches_each(capsys):
    assert main(["--help"]) == 0
    general = capsys.readouterr().out
    for name, verb in all_verbs().items():
        assert f"  {name}" in general
        assert main([name, "--help"]) == 0
        own = capsys.readouterr().out
        assert own.startswith(f"usage: xtoken {name} ")
        for option in verb.options:
            assert f"{option.name}=" in own
            assert option.help in own
        assert verb.examples
        for words, _ in verb.examples:
            assert f"xtoken {words}" in own
            assert words.split()[0] == name


def test_no_arguments_is_help(capsys):
    assert main([]) == 0
    assert "usage: xtoken VERB" in capsys.readouterr().out


def test_help_names_the_program_it_was_called_by(capsys):
    main(["build", "--help"], program="nemo xtoken")
    assert "usage: nemo xtoken build" in capsys.readouterr().out


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"nemo_xtoken {nemo_xtoken.__version__}\n"


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["bild"], ["there is no verb 'bild'; did you mean 'build'?", ", ".join(all_verbs())]),
        (["build", "studen=x"], ["did you mean 'student'?", "xtoken build --help"]),
        (["build", "student=x"], ["'build' needs teacher="]),
        (["build", "student=/absent/a", "teacher=/absent/b"], ["/absent/a", "expected:", "to fix:"]),
    ],
)
def test_wrong_input_is_status_2_without_a_traceback(words, parts, capsys):
    assert main(words) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert "Traceback" not in captured.err
    for part in parts:
        assert part in captured.err


def test_errors_are_red_on_a_terminal_alone(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.delenv("NO_COLOR", raising=False)
    plain, terminal, colourless = io.StringIO(), Terminal(), Terminal()
    report_error("wrong", plain)
    report_error("wrong", terminal)
    monkeypatch.setenv("NO_COLOR", "1")
    report_error("wrong", colourless)
    assert plain.getvalue() == colourless.getvalue() == "error: wrong\n"
    assert terminal.getvalue() == "\x1b[31merror: wrong\x1b[0m\n"


# --- build


def test_build_writes_a_file_that_loads(pair, tmp_path, capsys):
    out = tmp_path / "w.safetensors"
    assert main(["build", *pair, f"out={out}", "max_pieces=2", "--overflow", "truncate"]) == 0
    printed = capsys.readouterr().out
    student, teacher = (load_vocabulary(argument.partition("=")[2]) for argument in pair)
    matrix = ProjectionMatrix.load(out, student, teacher)
    assert matrix.ids.shape[1] == 2
    assert matrix.rule["overflow"] == "truncate"
    assert f"{matrix.coverage['exact']:,}" in printed
    assert f"{matrix.coverage['truncated']:,}" in printed
    assert str(out) in printed.replace("\n", "")


def test_build_without_out_fills_the_cache(pair, tmp_path, capsys):
    assert main(["build", *pair]) == 0
    assert len(list((tmp_path / "cache").rglob("*.safetensors"))) == 1
    assert str(tmp_path / "cache") in capsys.readouterr().out.replace("\n", "")


def test_build_refuses_a_wrong_rule_before_it_reads(capsys):
    assert main(["build", "student=/absent", "teacher=/absent", "beta=-1"]) == 2
    assert "beta=-1" in capsys.readouterr().err


# --- align


def _aligned(capsys, *words):
    assert main(["align", *words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_align_prints_chunks_of_equal_text(pair, capsys):
    result = _aligned(capsys, *pair, f"text={TEXT}")
    assert result["text"] == TEXT
    student, teacher = result["student"]["tokens"], result["teacher"]["tokens"]
    assert "".join(student) == "".join(teacher) == TEXT
    assert result["student"]["gaps"] == result["teacher"]["gaps"] == []
    assert [1, 1] in [[c[1] - c[0], c[3] - c[2]] for c in result["chunks"]]
    assert any(c[3] - c[2] > 1 for c in result["chunks"])
    for s0, s1, t0, t1 in result["chunks"]:
        assert "".join(student[s0:s1]) == "".join(teacher[t0:t1])


def test_align_special_adds_what_a_document_has(pair, capsys):
    plain, special = (_aligned(capsys, *pair, "text=a b", *more) for more in ([], ["--special"]))
    assert len(special["student"]["ids"]) == len(plain["student"]["ids"]) + 2  # BOS and EOS
    assert len(special["teacher"]["ids"]) == len(plain["teacher"]["ids"]) + 1  # EOS
    assert special["student"]["gaps"] == [0]  # the teacher has no BOS
    assert special["teacher"]["gaps"] == []


def test_align_reads_files_and_standard_input(pair, tmp_path, capsys, monkeypatch):
    path = tmp_path / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(TEXT.encode())))
    expected = _aligned(capsys, *pair, f"text={TEXT}")
    assert _aligned(capsys, *pair, f"text=@{path}") == expected
    assert _aligned(capsys, *pair, "text=-") == expected


def test_align_table_shows_tokens_chunks_and_gaps(pair, capsys):
    assert main(["align", *pair, "text=a 12 b", "--special"]) == 0
    out = capsys.readouterr().out
    assert "1 | 2" in out
    assert "·b" in out
    assert "gap" in out
    assert "in no chunk: 1 and 0" in out


@pytest.mark.parametrize(
    ("content", "message"), [(None, "cannot be read"), (b"abc\xff", "is not UTF-8 (byte 3)")], ids=["absent", "bytes"]
)
def test_align_names_what_is_wrong_with_a_text(content, message, tmp_path, capsys):
    path = tmp_path / "text.txt"
    if content is not None:
        path.write_bytes(content)
    assert main(["align", "student=a", "teacher=b", f"text=@{path}"]) == 2
    assert message in capsys.readouterr().err


# --- weight


@pytest.mark.parametrize("words", [["--help"], ["build"], ["align", "text=a 12 b"]], ids=["help", "build", "align"])
def test_light_verbs_load_no_framework(words, pair):
    arguments = words + (pair if words[0] != "--help" else [])
    program = (
        "import sys\nfrom nemo_xtoken.commands.cli import main\n"
        "status = main(sys.argv[1:])\n"
        "heavy = {'torch', 'nemo', 'megatron', 'lightning', 'nemo_run', 'transformers'} & set(sys.modules)\n"
        "print('LOADED', status, sorted(heavy))\n"
    )
    run = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, timeout=120)
    assert "LOADED 0 []" in run.stdout, run.stdout + run.stderr


@pytest.mark.parametrize("words", [["align", "PAIR", "text=" + "word " * 20000, "--json"], ["--help"]])
@pytest.mark.parametrize("unbuffered", [["-u"], []])
def test_a_closed_pipe_is_no_error(pair, words, unbuffered):
    program = "import sys; from nemo_xtoken.commands.cli import main; sys.exit(main(sys.argv[1:]))"
    words = [each for word in words for each in (pair if word == "PAIR" else [word])]
    process = subprocess.Popen(
        [sys.executable, *unbuffered, "-c", program, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait(60) == 0


def test_what_pytorch_says_of_its_own_import_is_left_out(capsys):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert main(["--version"]) == 0
        warnings.warn("The pynvml package is deprecated. Please install", FutureWarning, stacklevel=1)
        warnings.warn("another", FutureWarning, stacklevel=1)
    assert [str(one.message) for one in caught] == ["another"]
