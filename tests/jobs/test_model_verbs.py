"""The verbs `import` and `export` as commands: what they print, and one message for what is wrong."""

import subprocess
import sys

import pytest
from forked_commands import run_command
from safetensors.torch import load_file
from toy_models import write_model

from nemo_xtoken.commands.cli import main


def command(*words):
    words = [sys.executable, "-m", "nemo_xtoken.commands.cli", *map(str, words)]
    return subprocess.run(words, capture_output=True, text=True, timeout=300)


def test_there_and_back_by_commands(nemo, tmp_path):
    source = write_model("llama", tmp_path / "source")
    there = command("import", f"model={source}", f"out={tmp_path / 'nemo'}")
    assert there.returncode == 0, there.stderr
    assert there.stdout.strip().endswith(f"saved in {tmp_path / 'nemo'}")
    assert "converting the weights" in there.stderr
    status, output = run_command(tmp_path, "xtoken", "export", f"run={tmp_path / 'nemo'}", f"out={tmp_path / 'hf'}")
    assert status == 0, output
    before, after = (load_file(folder / "model.safetensors") for folder in (source, tmp_path / "hf"))
    assert before.keys() == after.keys()
    assert all((before[name] == after[name]).all() for name in before)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["import", "out=x"], "needs model="),
        (["export", "out=x"], "needs run="),
        (["import", "model=m", "out=x", "dtype=int8"], "one of float32, bfloat16, float16"),
    ],
)
def test_usage(words, message, capsys):
    assert main(words) == 2
    assert message in capsys.readouterr().err


def test_a_nemo_that_cannot_be_loaded_is_one_message(tmp_path):
    (tmp_path / "nemo").mkdir()
    (tmp_path / "nemo" / "__init__.py").write_text("raise IndexError('out of range')\n")
    program = (
        f"import sys\nsys.path.insert(0, {str(tmp_path)!r})\nfrom nemo_xtoken.commands.cli import main\n"
        f"raise SystemExit(main(['import', 'model=m', 'out={tmp_path / 'x'}']))"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert run.returncode == 2
    assert "error: NeMo 2 is installed and cannot be loaded (IndexError: out of range, at " in run.stderr
    assert "Traceback" not in run.stderr


def test_without_nemo_there_is_one_message(tmp_path):
    program = (
        "import sys\nsys.modules['nemo'] = None\nfrom nemo_xtoken.commands.cli import main\n"
        f"raise SystemExit(main(['import', 'model=m', 'out={tmp_path / 'x'}']))"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert run.returncode == 2
    assert "NeMo 2 cannot be loaded here" in run.stderr
    assert "Traceback" not in run.stderr
