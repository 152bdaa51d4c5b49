"""docs/plain_torch.py: at most 60 lines, without NeMo and Megatron, and the student learns."""

import re
import runpy
import subprocess
import sys
from pathlib import Path

import torch
from toy_models import write_model

ROOT = next(folder for folder in Path(__file__).parents if (folder / "pyproject.toml").is_file())
SCRIPT = ROOT / "docs" / "plain_torch.py"
LINE = re.compile(r"step (\d+): cross-entropy ([\d.]+) nats a token, P-KL ([\d.]+) nats a chunk")


def _figures(text):
    found = [(int(step), float(ce), float(kd)) for step, ce, kd in LINE.findall(text)]
    assert [step for step, _, _ in found] == list(range(20))
    return found[0][1:], found[-1][1:]


def test_tiny_models_made_on_the_spot():
    assert len(SCRIPT.read_text().splitlines()) <= 60
    frameworks = "{'nemo', 'megatron', 'lightning'}"
    code = f"import runpy, sys; runpy.run_path({str(SCRIPT)!r}); print({frameworks} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    first, last = _figures(done.stdout)
    assert last[0] < first[0]
    assert last[1] < first[1] / 2
    assert done.stdout.endswith("set()\n")


def test_models_from_the_command_line(tmp_path, monkeypatch, capsys):
    student, teacher = (write_model(kind, tmp_path / kind) for kind in ("llama", "qwen3"))
    (tmp_path / "text").write_text("In 201 BC 37 elephants crossed the Alps.\n\nIt cost 1234 euros.")
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), str(student), str(teacher), str(tmp_path / "text")])
    before = torch.random.get_rng_state()
    runpy.run_path(str(SCRIPT))
    torch.random.set_rng_state(before)
    first, last = _figures(capsys.readouterr().out)
    assert last[0] < first[0]
