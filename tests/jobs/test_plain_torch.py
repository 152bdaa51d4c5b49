"""docs/plain_torch.py and docs/transformers_trainer.py: short, without NeMo and Megatron, and the student learns."""

import functools
import json
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from toy_models import write_model

from nemo_xtoken import CrossTokenizerLoss

ROOT = next(folder for folder in Path(__file__).parents if (folder / "pyproject.toml").is_file())
SCRIPT, TRAINER = ROOT / "docs" / "plain_torch.py", ROOT / "docs" / "transformers_trainer.py"
LINE = re.compile(r"step (\d+): cross-entropy ([\d.]+) nats a token, distillation ([\d.]+) nats a chunk")


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


@pytest.fixture
def pair(tmp_path, monkeypatch):
    """Starts a script on two toy models and a text."""

    def start(script, *more):
        monkeypatch.setattr(sys, "argv", [str(script), *map(str, [student, teacher, tmp_path / "text", *more])])
        before = torch.random.get_rng_state()
        found = runpy.run_path(str(script))
        torch.random.set_rng_state(before)
        return found

    student, teacher = (write_model(kind, tmp_path / kind) for kind in ("llama", "qwen3"))
    (tmp_path / "text").write_text("In 201 BC 37 elephants crossed the Alps.\n\nIt cost 1234 euros.")
    return start


def test_models_from_the_command_line(pair, capsys):
    pair(SCRIPT)
    first, last = _figures(capsys.readouterr().out)
    assert last[0] < first[0]


def test_the_trainer_of_transformers(pair, tmp_path, monkeypatch):
    """With a teacher that can no more be moved than one in 8 bits."""
    import transformers

    load = transformers.AutoModelForCausalLM.from_pretrained

    def fixed(name, **more):
        model = load(name, **more)
        if more:
            model.to = None
            assert more == {"device_map": {"": torch.device("cpu")}}
        return model

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", fixed)
    code = [line for line in TRAINER.read_text().splitlines() if line and not line.startswith(("from", "import"))]
    assert len(code) <= 20
    objective = pair(TRAINER, tmp_path / "out")["loss"]
    state = json.loads(next((tmp_path / "out").glob("checkpoint-10/trainer_state.json")).read_text())
    losses = [entry["loss"] for entry in state["log_history"] if "loss" in entry]
    assert len(losses) == 10
    assert objective.means[0] < losses[0]  # cross-entropy alone has fallen below the first sum
    assert all(torch.isfinite(torch.tensor([*objective.means, objective.scale])))
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_the_trainer_in_bf16(pair, tmp_path, monkeypatch):
    """What the Trainer computes under autocast; and only the first process writes the student."""
    import transformers

    arguments = functools.partial(transformers.TrainingArguments, bf16=True, use_cpu=True)
    monkeypatch.setattr(transformers, "TrainingArguments", arguments)
    monkeypatch.setattr(transformers.Trainer, "is_world_process_zero", lambda _: False)
    objective = pair(TRAINER, tmp_path / "out")["loss"]
    assert all(torch.isfinite(torch.tensor([*objective.means, objective.scale])))
    assert not (tmp_path / "out" / "model.safetensors").exists()


def test_an_adapter_learns_alone_and_is_read_back(tmp_path):
    """Value and gradients are those of logits, where autograd does all of it; what is saved is what was trained."""
    peft = pytest.importorskip("peft")
    from transformers import AutoModelForCausalLM

    folders = [write_model(kind, tmp_path / kind) for kind in ("llama", "qwen3")]
    base, teacher = (AutoModelForCausalLM.from_pretrained(folder) for folder in folders)
    torch.manual_seed(1)
    targets = ["q_proj", "o_proj", "up_proj", "down_proj"]
    student = peft.get_peft_model(base, peft.LoraConfig(r=4, lora_alpha=8, target_modules=targets))
    loss = CrossTokenizerLoss(*folders, scale=1.0)
    batch = loss.batch(["In 201 BC 37 elephants crossed the Alps.", "It cost 1234 euros."])
    weights = [model.get_output_embeddings().weight for model in (student, teacher)]
    assert not weights[0].requires_grad
    optimizer = torch.optim.Adam([p for p in student.parameters() if p.requires_grad], 1e-2)
    values = []
    for _ in range(4):
        outputs = [
            model(tokens, output_hidden_states=True)
            for model, tokens in ((student, batch.student_tokens), (teacher, batch.teacher_tokens))
        ]
        found = []
        for given in (
            (outputs[0].logits, outputs[1].logits.detach()),
            (outputs[0].hidden_states[-1], outputs[1].hidden_states[-1].detach(), *weights),
        ):
            optimizer.zero_grad()
            value = loss(batch, *given)
            value.backward(retain_graph=True)
            found.append([value.detach(), *(p.grad.clone() for p in student.parameters() if p.requires_grad)])
        for one, other in zip(*found, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
        values.append(float(found[0][0]))
        optimizer.step()
    assert values[-1] < values[0]
    learned = {name.rsplit(".lora_")[0] for name, p in student.named_parameters() if p.requires_grad}
    assert {name.rsplit(".")[-1] for name in learned} == set(targets)
    wanted = student(batch.student_tokens).logits
    student.save_pretrained(tmp_path / "adapter")
    assert {file.name for file in (tmp_path / "adapter").glob("adapter*")} == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    again = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folders[0]), tmp_path / "adapter")
    torch.testing.assert_close(again(batch.student_tokens).logits, wanted)
    again.merge_and_unload().save_pretrained(tmp_path / "merged")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(merged(batch.student_tokens).logits, wanted, rtol=1e-4, atol=1e-5)
