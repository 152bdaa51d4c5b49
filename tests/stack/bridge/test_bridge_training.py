"""Whole runs through Megatron-Bridge's ``pretrain``: its model, optimizer, schedule, checkpoints, on a CPU."""

import pytest
import torch

pytestmark = pytest.mark.usefixtures("megatron", "bridge")

TERMS = ("ce", "kd", "scale")


@pytest.fixture(scope="module")
def one(bridge_world):
    """Four steps on one rank."""
    return bridge_world.run("one")


def _steps(records):
    return [record for record in records if "ce" in record]


def _same(found, expected, rtol):
    assert [r["step"] for r in found] == [r["step"] for r in expected]
    for a, b in zip(found, expected, strict=True):
        for name in {*TERMS, "held_out_ce", "tokens", "chunks"} & b.keys():
            assert a[name] == pytest.approx(b[name], rel=rtol), (name, a, b)


def _reference(root):
    """Cross-entropy and P-KL of the first global batch, means, by transformers' models and dense float64 formulas."""
    from bridge_jobs import LENGTHS
    from dense import chunk_losses, dense_w, projected_kl
    from transformers import AutoModelForCausalLM

    from nemo_xtoken.data.batch import collate
    from nemo_xtoken.data.config import DataConfig, Tokenization
    from nemo_xtoken.projection.build import ProjectionRule, load_or_build
    from nemo_xtoken.training.inputs import document_mask
    from nemo_xtoken.vocab.loading import load_vocabulary

    student, teacher = (load_vocabulary(str(root / side)) for side in ("student", "teacher"))
    text = DataConfig([f"{root}/text/*.txt"], *LENGTHS, held_out=4, progress=False)
    samples, _ = text.build(student, [Tokenization(teacher)], 16)
    batch = collate([samples[i] for i in range(4)])
    logits = []
    [taught] = batch.teachers
    for name, side, size in (("student", batch.student, student.size), ("teacher", taught, teacher.size)):
        model = AutoModelForCausalLM.from_pretrained(root / name, dtype=torch.float32, attn_implementation="eager")
        hidden = document_mask(side.documents)
        mask = torch.zeros(hidden.shape).masked_fill(hidden, torch.finfo(torch.float32).min)
        with torch.no_grad():
            made = model.eval()(side.tokens, attention_mask=mask, position_ids=side.positions).logits
        logits.append(made[..., :size].double())
    w = dense_w(load_or_build(student, teacher, ProjectionRule(), None), student.size, teacher.size)
    problem = {
        "student_labels": batch.student.labels,
        "teacher_labels": taught.labels,
        "chunks": taught.chunks,
    }
    ce, kd = chunk_losses(*logits, problem, lambda p_s, p_t: projected_kl(p_s, p_t, w), "chain_rule", 1.0)
    return float(ce) / int((batch.student.labels != -100).sum()), float(kd) / len(taught.chunks)


def test_the_first_step_is_that_of_the_models_on_the_hub(one, bridge_world):
    ce, kd = _reference(bridge_world.root)
    first = _steps(one)[0]
    assert (first["step"], first["scale"]) == (1, 1.0)
    assert first["ce"] == pytest.approx(ce, rel=1e-5)
    assert first["kd"] == pytest.approx(kd, rel=1e-4)


def test_it_learns_and_evaluates(one):
    steps = _steps(one)
    assert [r["step"] for r in steps] == [1, 2, 3, 4]
    assert steps[1]["scale"] == pytest.approx(steps[0]["ce"] / steps[0]["kd"])
    held_out = [r for r in one if "held_out_ce" in r]
    assert [r["step"] for r in held_out] == [0, 2, 4]
    assert held_out[2]["held_out_ce"] < held_out[1]["held_out_ce"] < held_out[0]["held_out_ce"]


@pytest.fixture(scope="module")
def smooth(bridge_world):
    """The same with an eps above most gradients: Adam's own makes a step of full length of one that is rounding."""
    return bridge_world.run("smooth", eps=1e-3)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("tp", {"strategy": {"tensor_model_parallel_size": 2, "sequence_parallel": True}}),
        ("dp", {"micro": 1}),
    ],
    ids=["tensor", "data"],
)
def test_adam_and_its_distributed_states_in_a_layout(smooth, bridge_world, name, settings):
    """Beside ``test_bridge_layouts.py``, whose optimizer is plain."""
    _same(bridge_world.run(f"smooth_{name}", ranks=2, eps=1e-3, **settings), smooth, 1e-5)


def test_an_interrupted_run_goes_on_exactly(one, bridge_world):
    assert [r["step"] for r in _steps(bridge_world.run("resumed", stop=2))] == [1, 2]
    _same(_steps(bridge_world.run("resumed")), _steps(one), 1e-9)
    longer = bridge_world.run("resumed", steps=6)  # than it was to be
    assert [r["step"] for r in _steps(longer)] == [1, 2, 3, 4, 5, 6]


def test_checkpoints_of_bridge_start_students_and_teach(one, bridge_world):
    """A student that starts from the checkpoint that teaches it has nothing to learn from it."""
    made = "runs/one/checkpoints"
    first = _steps(bridge_world.run("again", start=made, learn=made, steps=2, teacher={"loss": "same_tokenizer"}))[0]
    assert first["step"] == 1
    assert abs(first["kd"]) < 1e-6
    assert first["ce"] < _steps(one)[0]["ce"]


def test_a_student_goes_back_to_hugging_face(one, bridge_world):
    from bridge_jobs import export_and_evaluate
    from launcher import launch

    [ce] = launch(export_and_evaluate, str(bridge_world.root), "one", folder=bridge_world.root / "logs" / "export")
    assert ce == pytest.approx(one[-1]["held_out_ce"], rel=1e-4)


def test_text_alone(one, bridge_world):
    """Without a teacher; the cross-entropy of the first step is that beside one."""
    steps = _steps(bridge_world.run("alone", scale=0.0, steps=2))
    assert "kd" not in steps[0]
    assert steps[1]["ce"] < steps[0]["ce"]


def test_bfloat16(one, bridge_world):
    _same(_steps(bridge_world.run("half", precision="bf16-mixed"))[:1], _steps(one)[:1], 0.02)


def test_two_teachers(bridge_world):
    """Each with its own tokenizer, weight and loss; the sum of both is what the student learns from."""
    teachers = {
        "large": {"path": "teacher", "loss": "p_kl", "weight": 0.8},
        "same": {"path": "other", "loss": "same_tokenizer", "weight": 0.2},
    }
    one = _steps(bridge_world.run("two", teachers=teachers, sgd=True))
    for record in one:
        expected = 0.8 * record["kd/large"] + 0.2 * record["kd/same"]
        assert record["kd"] == pytest.approx(expected, rel=1e-6)
    _same(_steps(bridge_world.run("two_dp", ranks=2, micro=1, teachers=teachers, sgd=True)), one, 1e-5)
