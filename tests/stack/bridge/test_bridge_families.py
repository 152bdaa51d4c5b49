"""Model families through Megatron-Bridge's own conversions, at toy width: import, two steps, export, and a teacher."""

import numpy as np
import pytest
from toy_models import SEEING

pytestmark = pytest.mark.usefixtures("megatron", "bridge")

LLAMA_3 = {"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
#: As gpt-oss is published; Bridge takes these values, whatever the model says.
YARN = {"rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False}
WINDOWS = ["sliding_attention"] * 5 + ["full_attention"]
#: Of ``toy_models``, with what is changed of it; docs/bridge.md has what was not run.
FAMILIES = {
    # Megatron knows 8192 alone
    "llama-tied": {"rope_scaling": {**LLAMA_3, "original_max_position_embeddings": 8192}},
    "qwen2": {},
    "qwen3-tied": {},
    "qwen3_moe": {},
    "mistral": {},
    "gemma3": {"num_hidden_layers": 6, "layer_types": WINDOWS},
    "gpt_oss": {"rope_scaling": {**YARN, "original_max_position_embeddings": 4096}},
    "deepseek_v3": {},
    "qwen3_next": {},
    "qwen3_5": {},
    "qwen3_5_moe": {},
    "nemotron_h": {},
}
#: Whose layers carry a state from position to position: the bounds of documents tell them where one begins, as on a
#: GPU, where for the others on a CPU a mask does.
RECURRENT = ("qwen3_next", "qwen3_5", "qwen3_5_moe", "nemotron_h")


def _off(found, expected):
    """The largest difference, in standard deviations of the logits."""
    width = min(found.shape[1], expected.shape[1])
    return np.abs(found[:, :width] - expected[:, :width]).max() / expected.std()


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_family_is_imported_trained_and_exported(bridge_world, kind):
    """As a student that learns from itself: logits are those of transformers before, of both, and after."""
    _learns_from_itself(bridge_world, kind, bridge_world.family(kind, **FAMILIES[kind]))


@pytest.mark.parametrize("kind", SEEING)
def test_of_a_model_that_sees_images_the_language_model_is_used(bridge_world, kind):
    """As student and as teacher; the reference is the whole model, which gets text alone.  The export is without it."""
    import json

    from nemo_xtoken.files import tensor_places

    done = _learns_from_itself(bridge_world, kind, bridge_world.seeing(kind, **FAMILIES[SEEING[kind][1]]))
    aside = [line for line in done["said"] if "its language model alone is used" in line]
    assert len(aside) == 2  # of the student, and of the teacher
    assert all("other weights" in line and ("vision_tower" in line or "model.visual" in line) for line in aside)
    exported = bridge_world.root / "exported" / f"learned_seeing-{kind}"
    names = tensor_places(exported / "model.safetensors")[0]
    assert all(name.startswith(("model.layers", "model.embed", "model.norm", "lm_head")) for name in names)
    assert json.loads((exported / "config.json").read_text())["architectures"][0].endswith("ForCausalLM")
    assert not list(exported.glob("*processor*"))


def _learns_from_itself(bridge_world, kind, folder):
    """What `course` gives of two steps."""
    from bridge_jobs import Job, export_and_compare
    from launcher import launch

    settings = {"start": folder.name, "learn": folder.name, "steps": 2, "logits": True}
    settings |= {"teacher": {"loss": "same_tokenizer"}, "lengths": kind in RECURRENT}
    name = f"learned_{folder.name}"
    [done] = bridge_world.courses(name, **settings)
    job = Job(str(bridge_world.root), name, **settings)
    [(start, exported)] = launch(export_and_compare, job, folder=bridge_world.root / "logs" / folder.name)
    before, after = done["logits"]
    assert _off(before["student"], start) < 1e-4
    assert _off(before["teacher"], start) < 1e-4
    assert _off(after["teacher"], start) < 1e-4  # nobody has trained it
    assert _off(after["student"], exported) < 1e-4
    assert _off(exported, start) > 1e-2
    return done


@pytest.fixture
def with_extra_head(bridge_world):
    """The folder of ``deepseek_v3`` with a layer that predicts one more token, as published ones have it."""
    import json
    import shutil

    from safetensors.torch import load_file, save_file

    plain = bridge_world.family("deepseek_v3")
    folder = plain.with_name("deepseek_v3-mtp")
    shutil.copytree(plain, folder, dirs_exist_ok=True)
    config = json.loads((folder / "config.json").read_text())
    last = config["num_hidden_layers"] - 1
    tensors = load_file(folder / "model.safetensors")
    before, extra = f"model.layers.{last}.", f"model.layers.{last + 1}."
    tensors |= {name.replace(before, extra): t.clone() for name, t in tensors.items() if name.startswith(before)}
    norm = tensors["model.norm.weight"]
    tensors |= {f"{extra}{name}.weight": norm.clone() for name in ("enorm", "hnorm", "shared_head.norm")}
    tensors[f"{extra}eh_proj.weight"] = norm.repeat(len(norm), 2)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config | {"num_nextn_predict_layers": 1}))
    return folder


def test_an_extra_head_is_left_out_of_a_teacher_and_refused_in_a_student(bridge_world, with_extra_head):
    settings = {"learn": with_extra_head.name, "steps": 1, "teacher": {"loss": "same_tokenizer"}}
    [done] = bridge_world.courses("taught_by_mtp", start="family-deepseek_v3", **settings)
    [kd] = [record["kd"] for record in done["records"] if "kd" in record]
    assert abs(kd) < 1e-6  # the student is the teacher without it
    assert "the teacher predicts 1 more tokens by extra layers: they are left out" in done["said"]
    with pytest.raises(AssertionError, match=r"mtp_num_layers=1 \(student\)[^$]*num_nextn_predict_layers=0"):
        bridge_world.run("mtp_student", start=with_extra_head.name, **settings)


@pytest.mark.parametrize(
    ("whole", "text", "message"),
    [
        ("llama4", "llama4_text", r"its language model is a Llama4ForCausalLM\) cannot be loaded by Megatron-Bridge"),
        ("qwen3_vl", "qwen3_vl_text", "of type qwen3_vl_text, for which transformers has no model of language alone"),
    ],
)
def test_a_language_model_inside_another_that_bridge_does_not_know_is_refused(tmp_path, whole, text, message):
    import json

    from bridge_jobs import look_at
    from launcher import launch

    text = {"model_type": text, "hidden_size": 48, "num_attention_heads": 4, "num_hidden_layers": 2}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": whole, "text_config": text}))
    with pytest.raises(AssertionError, match=f"(?s)InputError.*{message}"):
        launch(look_at, str(tmp_path), folder=tmp_path / "log")


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("phi3", "cannot be loaded by Megatron-Bridge.*Phi3ForCausalLM"),
        ("gpt_oss", r"factor=4.0, original_max_position_embeddings=64 in its rotary scaling"),
        ("llama-tied", r"original_max_position_embeddings=64 in its rotary scaling"),
        ("gemma3", r"full_attention=\[1\] in its layers"),
    ],
)
def test_what_bridge_does_not_know_or_would_replace_is_refused(bridge_world, tmp_path, kind, message):
    """As ``toy_models`` has them: of these families others than the published ones."""
    from bridge_jobs import look_at
    from launcher import launch
    from toy_models import write_model

    write_model(kind, tmp_path / kind)
    with pytest.raises(AssertionError, match=f"(?s)InputError.*{message}"):
        launch(look_at, str(tmp_path / kind), folder=tmp_path / "log")
