"""The verbs `audit`, `inspect`, `diff`, `convert`, and `build rule=`: what they print, write and refuse."""

import json
import re
import subprocess
import sys

import pytest
from nemo_rl_files import with_scale_trick
from tokenizer_zoo import write_folder, zoo

from nemo_xtoken.commands.cli import main
from nemo_xtoken.losses.sample_texts import SAMPLES
from nemo_xtoken.projection.build import ProjectionRule, build_projection
from nemo_xtoken.projection.matrix import ProjectionMatrix


@pytest.fixture(autouse=True)
def _surroundings(tmp_path, monkeypatch):
    monkeypatch.setenv("NEMO_XTOKEN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two tokenizers, their W by both rules, and a file of NeMo-RL."""
    folder = tmp_path_factory.mktemp("projection")
    for name in ("llama", "qwen"):
        write_folder(name, folder / name)
    student, teacher = zoo()["llama"], zoo()["qwen"]
    for rule in ("paper", "prefix"):
        build_projection(student, teacher, ProjectionRule.named(rule)).save(folder / f"{rule}.safetensors")
    with_scale_trick(build_projection(student, teacher), folder / "theirs.pt", teacher.id_of_bytes[b"!"])
    return folder


@pytest.fixture
def pair(folder):
    return [f"student={folder / 'llama'}", f"teacher={folder / 'qwen'}"]


def ran(capsys, *words):
    assert main([str(w) for w in words]) == 0
    return capsys.readouterr().out


# --- build


def test_build_by_the_name_of_a_rule(pair, tmp_path, capsys):
    ran(capsys, "build", *pair, "rule=prefix", f"out={tmp_path / 'w.safetensors'}")
    matrix = ProjectionMatrix.load(tmp_path / "w.safetensors")
    assert matrix.rule == {"beta": 0.9, "gamma": 0.0, "max_pieces": 4, "overflow": "truncate"}
    ran(capsys, "build", *pair, "rule=prefix", "overflow=empty", "gamma=.5", f"out={tmp_path / 'w.safetensors'}")
    assert ProjectionMatrix.load(tmp_path / "w.safetensors").rule["gamma"] == 0.5


# --- audit


def test_audit_prints_the_table_and_the_reason(pair, capsys):
    out = ran(capsys, "audit", *pair)
    assert "3-digit numerals" in out
    assert "1,000" in out
    assert "Of the paper's two losses: P-KL (loss=p_kl; the default, prefix_kl, suits every pair)" in out
    assert "0 of the student's 1,000 3-digit numerals" in out
    assert "longer numerals" not in out  # there are none


def test_audit_writes_json_and_a_figure(pair, tmp_path, capsys):
    out = ran(capsys, "audit", *pair, f"out={tmp_path / 'made'}", "--json")
    written = json.loads((tmp_path / "made" / "coverage.json").read_text("utf-8"))
    assert json.loads(out) == written
    assert written["loss"] == "p_kl"
    assert {c["name"]: c["exact"] for c in written["classes"]}["digits_1"] == 13
    assert (tmp_path / "made" / "coverage.png").read_bytes().startswith(b"\x89PNG")


def shares(out):
    """The cells of the table of texts, by the first of each row."""
    lines = out[out.index("student tokens scored in full") :].splitlines()
    cells = [[cell.strip() for cell in re.split("[│┃]", line)[1:-1]] for line in lines if line[0] in "│┃"]
    return {first: rest for first, *rest in cells}


def test_audit_prints_what_each_loss_scores_of_a_text(pair, capsys):
    """Of seven tokens the teacher cuts two up, 201 and 37."""
    found = shares(ran(capsys, "audit", *pair, "text=in 201 of 37"))
    assert found["loss"] == ["text (7)"]
    assert found["prefix_kl"] == ["100.0% / 0.0% / 0.0%"]
    assert found["p_kl"] == ["71.4% / 28.6% / 0.0%"]
    assert found["strict_1to1"] == ["71.4% / 0.0% / 28.6%"]


def test_audit_has_a_column_for_each_sample(pair, capsys):
    found = shares(ran(capsys, "audit", *pair, "text=samples"))
    texts = json.loads(ran(capsys, "audit", *pair, "text=samples", "--json"))["texts"]
    assert list(texts) == list(SAMPLES)
    assert found.pop("loss") == [f"{kind} ({sum(losses['p_kl']['tokens'].values())})" for kind, losses in texts.items()]
    assert set(found) == set(texts["prose"])
    for name, cells in found.items():
        counted = [losses[name] for losses in texts.values()]
        assert {c["bits"] for c in counted} == {None}
        parts = [[f"{n / sum(c['tokens'].values()):.1%}" for n in c["tokens"].values()] for c in counted]
        assert cells == [" / ".join(p) for p in parts]


def test_audit_refuses_a_file_as_its_folder(pair, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["audit", *pair, f"out={tmp_path / 'file'}"]) == 2
    assert "is a file" in capsys.readouterr().err


# --- inspect


def test_inspect_shows_rows(pair, folder, capsys):
    w = f"w={folder / 'paper.safetensors'}"
    assert "'9' 0.9009  '8' 0.0901  '7' 0.0090" in ran(capsys, "inspect", w, *pair, "token=987")
    out = ran(capsys, "inspect", w, *pair, r"regex=^9\d\d$", "limit=4")
    assert "and 96 more" in out
    told = json.loads(ran(capsys, "inspect", w, *pair, "id=3", "--json"))
    assert [row["id"] for row in told["rows"]] == [3]


def test_inspect_prints_statistics_of_a_built_w(pair, folder, capsys):
    out = ran(capsys, "inspect", f"w={folder / 'paper.safetensors'}", *pair)
    assert "teacher tokens that get no mass" in out
    assert "no mass, first of them" in out
    assert "JUNK" not in out


def test_inspect_reports_the_junk_of_a_file_of_nemo_rl(pair, folder, capsys):
    out = ran(capsys, "inspect", f"w={folder / 'theirs.pt'}", *pair)
    assert "JUNK WEIGHTS" in out
    assert "'!' in " in out
    assert "warning: " in out
    told = json.loads(ran(capsys, "inspect", f"w={folder / 'theirs.pt'}", *pair, "--json"))
    assert told["unexpected"]["stray"] > 1000
    assert told["read"]["renormalised"] > 0


def test_inspect_lists_the_teachers_tokens_without_mass(pair, folder, capsys):
    w = f"w={folder / 'paper.safetensors'}"
    matrix = ProjectionMatrix.load(folder / "paper.safetensors")
    told = json.loads(ran(capsys, "inspect", w, *pair, "--unreached", "--json", "limit=100000"))
    assert [t["id"] for t in told["tokens"]] == [t for t in range(matrix.teacher_size) if not matrix.reached[t]]
    out = ran(capsys, "inspect", w, *pair, "--unreached", "limit=1")
    assert f"and {told['matching'] - 1} more" in out
    assert f"'{told['tokens'][0]['token']}'" in out
    assert main(["inspect", w, *pair, "--unreached", "id=1"]) == 2
    assert "id= and --unreached are given" in capsys.readouterr().err


@pytest.mark.parametrize("words", [[], [r"regex=^9\d$", "--json"]], ids=["statistics", "rows"])
def test_inspect_draws_a_picture(words, pair, folder, tmp_path, capsys):
    picture = tmp_path / "made" / "w.png"
    out = ran(capsys, "inspect", f"w={folder / 'paper.safetensors'}", *pair, f"figure={picture}", *words)
    assert picture.read_bytes().startswith(b"\x89PNG")
    if words:
        assert json.loads(out)["matching"] == 10
    else:
        assert f"saved in {picture}" in out


@pytest.mark.parametrize("words", [["inspect", "w=x"], ["align", "text=x"]], ids=["inspect", "align"])
def test_a_picture_of_another_kind_is_refused_at_once(words, capsys):
    assert main([*words, "student=absent", "teacher=absent", "figure=w.svg"]) == 2
    assert "figure=w.svg" in capsys.readouterr().err


def test_align_draws_a_picture(pair, tmp_path, capsys):
    out = ran(capsys, "align", *pair, "text=in 201 BC", f"figure={tmp_path / 'a.png'}", "--special")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert f"saved in {tmp_path / 'a.png'}" in out


def test_inspect_takes_one_question(pair, folder, capsys):
    assert main(["inspect", f"w={folder / 'paper.safetensors'}", *pair, "token=1", "id=1"]) == 2
    assert "token= and id= are given" in capsys.readouterr().err


# --- diff


def test_diff_with_and_without_tokenizers(pair, folder, capsys):
    files = [f"a={folder / 'paper.safetensors'}", f"b={folder / 'prefix.safetensors'}"]
    out = ran(capsys, "diff", *files, *pair, "limit=100000")
    assert "'987'" in out
    assert "0 removed" in out
    bare = ran(capsys, "diff", *files, "limit=2")
    assert "id " in bare
    told = json.loads(ran(capsys, "diff", *files, "--json"))
    assert told["changed"]["count"] > 1000
    assert not told["same"]


def test_diff_of_one_file_with_itself(folder, capsys):
    assert "no row differs" in ran(capsys, "diff", *(f"{x}={folder / 'paper.safetensors'}" for x in "ab"))


def test_diff_with_a_file_of_nemo_rl_needs_tokenizers(pair, folder, capsys):
    files = [f"a={folder / 'paper.safetensors'}", f"b={folder / 'theirs.pt'}"]
    assert main(["diff", *files]) == 2
    assert "name the tokenizers" in capsys.readouterr().err
    assert main(["diff", *files, pair[0]]) == 2
    assert "together" in capsys.readouterr().err
    assert "'!' 0.166" in ran(capsys, "diff", *files, *pair, "limit=100000")


# --- convert


def test_convert_to_nemo_rl_and_back(pair, folder, tmp_path, capsys):
    theirs, ours = tmp_path / "w.pt", tmp_path / "w.safetensors"
    ran(capsys, "convert", f"from={folder / 'paper.safetensors'}", f"to={theirs}", *pair, "rows=2048")
    assert main(["convert", f"from={theirs}", f"to={ours}", *pair]) == 0
    captured = capsys.readouterr()
    assert "rows did not sum to 1" in captured.err
    assert "warning" not in captured.out
    both = [f"a={folder / 'paper.safetensors'}", f"b={ours}"]
    assert "no row differs" in ran(capsys, "diff", *both, "tolerance=.005")
    assert "no row differs" in ran(capsys, "diff", both[0], f"b={theirs}", *pair)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["from=a.pt", "to=b.pt"], "one is a .pt file"),
        (["from=a.safetensors", "to=b.safetensors"], "one is a .pt file"),
        (["from=a.pt", "to=b.safetensors", "rows=9"], "rows= is for writing"),
        (["from=/absent.pt", "to=b.safetensors"], "no file /absent.pt"),
    ],
)
def test_convert_names_what_is_wrong(pair, words, message, capsys):
    assert main(["convert", *words, *pair]) == 2
    assert message in capsys.readouterr().err


# --- weight


@pytest.mark.parametrize(
    ("words", "torch"),
    [
        (["audit", "out={tmp}/audit"], False),
        (["inspect", "w={folder}/paper.safetensors"], False),
        (["inspect", "w={folder}/theirs.pt"], True),
        (["diff", "a={folder}/paper.safetensors", "b={folder}/prefix.safetensors"], False),
        (["convert", "from={folder}/theirs.pt", "to={tmp}/w.safetensors"], True),
    ],
    ids=["audit", "inspect", "inspect-pt", "diff", "convert"],
)
def test_they_load_no_framework_and_torch_only_for_its_files(words, torch, pair, folder, tmp_path):
    program = (
        "import sys\nfrom nemo_xtoken.commands.cli import main\nstatus = main(sys.argv[1:])\n"
        "heavy = {'torch', 'nemo', 'megatron', 'lightning', 'nemo_run', 'transformers'} & set(sys.modules)\n"
        "print('LOADED', status, sorted(heavy))\n"
    )
    arguments = [w.format(folder=folder, tmp=tmp_path) for w in words] + pair
    run = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, timeout=120)
    assert f"LOADED 0 {['torch'] if torch else []}" in run.stdout, run.stdout + run.stderr


@pytest.mark.parametrize("tolerance", ["nan", "-1", "-0.001", "inf", "-inf", "1.5"])
def test_a_tolerance_that_compares_nothing_is_refused(folder, capsys, tolerance):
    words = ["diff", f"a={folder / 'paper.safetensors'}", f"b={folder / 'prefix.safetensors'}"]
    assert main([*words, f"tolerance={tolerance}"]) == 2
    assert "tolerance=" in capsys.readouterr().err


def test_a_command_does_not_write_over_what_it_reads(folder, capsys):
    tokenizer = folder / "llama" / "tokenizer.json"
    before = tokenizer.read_bytes()
    assert main(["build", f"student={folder / 'llama'}", f"teacher={folder / 'qwen'}", f"out={tokenizer}"]) == 2
    assert "what is read would be lost" in capsys.readouterr().err
    assert tokenizer.read_bytes() == before
