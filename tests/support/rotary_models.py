"""Toy models saved by the installed transformers, with the logits that it computes.

Run in a process of its own, so that another version of transformers can be in front: ``rotary_models.py make FOLDER``,
``rotary_models.py read FOLDER``.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
import transformers
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

SHAPE = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
YARN = {
    "rope_type": "yarn", "factor": 4.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False,
    "original_max_position_embeddings": 64,
}  # fmt: skip
LONG = {"short_factor": [1.0, 1.5], "long_factor": [2.0, 3.0]}
WINDOWS = {"sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"]}
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 16}
#: name -> (model_type, what both versions write alike, rope_parameters of version 5, rotary keys of version 4)
MODELS = {
    "llama": ("llama", {}, {"rope_theta": 1e5}, {"rope_theta": 1e5}),
    "llama3": ("llama", {}, {"rope_theta": 5e5, **LLAMA3}, {"rope_theta": 5e5, "rope_scaling": LLAMA3}),
    "linear": (
        "llama", {}, {"rope_theta": 1e3, "rope_type": "linear", "factor": 4.0},
        {"rope_theta": 1e3, "rope_scaling": {"rope_type": "linear", "factor": 4.0}},
    ),
    "mistral": ("mistral", {}, {"rope_theta": 1e6}, {"rope_theta": 1e6}),
    "qwen2": ("qwen2", {}, {"rope_theta": 1e6}, {"rope_theta": 1e6}),
    "qwen3": ("qwen3", {"head_dim": 16}, {"rope_theta": 5e6}, {"rope_theta": 5e6}),
    "gemma3": (
        "gemma3_text", {"head_dim": 8, **WINDOWS},
        {"full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e5},
         "sliding_attention": {"rope_type": "default", "rope_theta": 500.0}},
        {"rope_theta": 1e5, "rope_local_base_freq": 500.0, "rope_scaling": {"rope_type": "linear", "factor": 8.0}},
    ),
    "phi3": (
        "phi3", {"original_max_position_embeddings": 64},
        {"rope_type": "longrope", "rope_theta": 1e3, "partial_rotary_factor": 0.5,
         "original_max_position_embeddings": 64, **LONG},
        {"rope_theta": 1e3, "partial_rotary_factor": 0.5, "rope_scaling": {"type": "longrope", **LONG}},
    ),
    "phi3-plain": (
        "phi3", {}, {"rope_theta": 1e3, "partial_rotary_factor": 0.5}, {"rope_theta": 1e3, "partial_rotary_factor": 0.5}
    ),
    "gpt_oss": (
        "gpt_oss", {"head_dim": 8, **EXPERTS}, {"rope_theta": 1e4, **YARN}, {"rope_theta": 1e4, "rope_scaling": YARN}
    ),
}  # fmt: skip


def logits(folder: Path) -> np.ndarray:
    """float32 ``[140, V]``, of one text beyond every window and original length and of one within them."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    ids = torch.randint(3, SHAPE["vocab_size"], (1, 100), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return torch.cat([model(ids).logits[0], model(ids[:, :40]).logits[0]]).numpy()


def make(folder: Path) -> None:
    """One model of each kind, in the form of the installed version."""
    newer = transformers.__version__.startswith("5.")
    for name, (kind, common, new, classic) in MODELS.items():
        torch.manual_seed(0)
        rotary = {"rope_parameters": {"rope_type": "default", **new} if "rope_theta" in new else new}
        config = CONFIG_MAPPING[kind](**SHAPE, **common, **(rotary if newer else classic))
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
        model.save_pretrained(folder / name)
        np.save(folder / name / "logits.npy", logits(folder / name))


def read(folder: Path) -> dict[str, float]:
    """The largest difference from the saved logits, by name."""
    return {p.name: float(np.abs(logits(p) - np.load(p / "logits.npy")).max()) for p in sorted(folder.iterdir())}


if __name__ == "__main__":
    if sys.argv[1] == "make":
        make(Path(sys.argv[2]))
    else:
        print(json.dumps(read(Path(sys.argv[2]))))
