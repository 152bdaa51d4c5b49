"""A configuration is understood whole or refused: rotary embeddings of transformers 4 and 5, and unknown keys."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import rotary_models
from rotary_models import EXPERTS, MODELS, SHAPE, YARN

from nemo_xtoken.errors import InputError
from nemo_xtoken.weights.configuration import readable_folder, understood
from nemo_xtoken.weights.folder import ModelFolder
from nemo_xtoken.weights.rotary import classic_rotary

FIVE = Path(sys.prefix) / "transformers5"
needs_five = pytest.mark.skipif(not FIVE.is_dir(), reason="no transformers 5 beside the environment (make install)")


def under_five(*words: object) -> str:
    """Runs the models' script with transformers 5."""
    environment = {**os.environ, "PYTHONPATH": str(FIVE), "HF_HUB_OFFLINE": "1"}
    line = [sys.executable, rotary_models.__file__, *map(str, words)]
    done = subprocess.run(line, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.splitlines()[-1] if done.stdout else ""


@pytest.fixture(scope="module")
def of_five(tmp_path_factory):
    folder = tmp_path_factory.mktemp("five")
    under_five("make", folder)
    return folder


@pytest.mark.parametrize("name", MODELS)
def test_new_form_becomes_the_classic_one(name):
    kind, common, new, classic = MODELS[name]
    got = classic_rotary({"model_type": kind, **common, "rope_parameters": new}, "x")
    assert "rope_parameters" not in got
    want = {"rope_scaling": None, **classic, **common}
    assert {k: v for k, v in got.items() if k != "model_type"} == want
    assert classic_rotary(got, "x") == got  # the classic form stays as it is


@needs_five
@pytest.mark.parametrize("name", MODELS)
def test_what_transformers_5_wrote_has_the_same_logits_here(name, of_five):
    folder = of_five / name
    assert "rope_parameters" in json.loads((folder / "config.json").read_text())
    with readable_folder(ModelFolder(folder)) as path:
        np.testing.assert_allclose(rotary_models.logits(path), np.load(folder / "logits.npy"), rtol=0, atol=2e-6)


@needs_five
def test_what_is_written_here_has_the_same_logits_in_transformers_5(tmp_path):
    rotary_models.make(tmp_path)
    differences = json.loads(under_five("read", tmp_path))
    assert set(differences) == set(MODELS)
    assert max(differences.values()) < 2e-6, differences


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        ({"rope_parameters": {"rope_theta": 1e5}, "rope_theta": 1e4}, "rope_theta=10000.0 beside rope_parameters"),
        ({"rope_parameters": {"rope_theta": 1e5, "wavelength": 3}}, "rope_parameters.wavelength=3"),
        ({"rope_parameters": [1]}, "rope_parameters is a list"),
        ({"rope_parameters": {"full_attention": {}, "chunked_attention": {}}}, "rope_parameters.chunked_attention"),
        ({"rope_interleaved": True}, "rope_interleaved=True, which transformers"),
        ({"residual_multiplier": 0.22}, "residual_multiplier=0.22"),
        ({"logit_scale": 0}, "logit_scale=0,"),
        ({"is_llama_config": "no"}, "is_llama_config='no'"),
        ({"model_type": "llama17"}, "model_type 'llama17'"),
    ],
)
def test_what_is_not_understood_is_refused(extra, said):
    with pytest.raises(InputError, match=said.replace("(", r"\(").replace(".", r"\.").replace("[", r"\[")):
        understood({"model_type": "llama", **SHAPE, **extra}, "config.json")


@pytest.mark.parametrize(
    "extra",
    [
        {"rope_interleaved": False, "is_llama_config": True, "transformers.js_config": {"kv": 1}},
        {"unsloth_fixed": True, "_name_or_path": "x", "unk_token_id": 0, "task_specific_params": None},
        {"dtype": "bfloat16", "torch_dtype": "bfloat16", "pretraining_tp": 1, "head_dim": 8},
    ],
)
def test_what_changes_nothing_is_taken(extra):
    got = understood({"model_type": "llama", **SHAPE, **extra}, "config.json")
    assert {"rope_scaling": None} | got == {"rope_scaling": None, "model_type": "llama", **SHAPE, **extra}


def test_both_forms_that_agree():
    new = {"rope_theta": 1e5, "rope_type": "default"}
    got = understood({"model_type": "llama", **SHAPE, "rope_parameters": new, "rope_theta": 100000}, "config.json")
    assert got == {"model_type": "llama", **SHAPE, "rope_theta": 1e5, "rope_scaling": None}


def test_published_keys_of_other_families():
    phi = {"full_attn_mod": 1, "interpolate_factor": 1, "lm_head_bias": False, "mlp_bias": False, "embd_pdrop": 0.0}
    understood({"model_type": "phi3", **SHAPE, **phi}, "x")
    oss = {"experts_per_token": 2, "initial_context_length": 64, "swiglu_limit": 7.0, "rope_scaling": YARN}
    understood({"model_type": "gpt_oss", **SHAPE, **EXPERTS, **oss}, "x")
    with pytest.raises(InputError, match="experts_per_token=3"):
        understood({"model_type": "gpt_oss", **SHAPE, **EXPERTS, "experts_per_token": 3}, "x")


def test_text_config_inside_a_model_that_sees_images():
    text = {"model_type": "gemma3_text", **SHAPE, "rope_parameters": MODELS["gemma3"][2]}
    got = understood({"model_type": "gemma3", "text_config": text, "vision_config": {}}, "x")
    assert got["text_config"]["rope_local_base_freq"] == 500.0
    assert got["text_config"]["rope_theta"] == 1e5
