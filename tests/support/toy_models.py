"""Tiny Hugging Face models with random weights: the real configuration and model classes, at toy width."""

from pathlib import Path
from typing import Any

import torch
from tokenizer_zoo import write_folder, zoo

from nemo_xtoken.vocab import load_vocabulary
from nemo_xtoken.weights.configuration import readable_folder
from nemo_xtoken.weights.folder import ModelFolder
from nemo_xtoken.weights.tokenizer_files import copy_tokenizer

__all__ = ["KINDS", "OF_BRIDGE", "SEEING", "logits", "tokenizer_of", "write_model", "write_seeing"]

_SHAPE = {
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
_LLAMA3 = {
    "rope_type": "llama3",
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
_YARN = {
    "rope_type": "yarn",
    "factor": 4.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": False,
    "original_max_position_embeddings": 64,
}
_WINDOWS = ["sliding_attention", "full_attention", "sliding_attention"]
#: Of Qwen3-Next and Qwen3.5: layers of gated delta nets, every fourth of gated attention.
_GATED = {
    "num_hidden_layers": 4,
    "head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 12,
}
_SHARED = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 40,
    "shared_expert_intermediate_size": 24,
}
_NORMS_AROUND_ZERO = ("gemma3_text", "qwen3_next", "qwen3_5_text", "qwen3_5_moe_text")
#: Kinds that Megatron-Bridge converts, and the NeMo 2 adapter does not.
OF_BRIDGE = ("qwen3_moe", "deepseek_v3", "qwen3_next", "qwen3_5", "qwen3_5_moe", "nemotron_h")
#: name -> (model_type, tokenizer of the zoo, settings beside `_SHAPE`).  Windows are narrower than the tests' texts.
KINDS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("llama", "llama", {}),
    "llama-tied": ("llama", "llama", {"tie_word_embeddings": True, "rope_scaling": _LLAMA3, "rope_theta": 5e5}),
    "llama-linear": ("llama", "llama", {"rope_scaling": {"rope_type": "linear", "factor": 2.0}, "head_dim": 8}),
    "qwen2": ("qwen2", "qwen", {}),
    "qwen2-tied": ("qwen2", "qwen", {"tie_word_embeddings": True}),
    "qwen3": ("qwen3", "qwen", {"head_dim": 16}),
    "qwen3-tied": ("qwen3", "qwen", {"head_dim": 16, "tie_word_embeddings": True}),
    "phi3": (
        "phi3",
        "tiktoken_json",
        {
            "num_attention_heads": 3,
            "num_key_value_heads": 1,
            "tie_word_embeddings": True,
            "partial_rotary_factor": 0.75,
            "original_max_position_embeddings": 64,
            "sliding_window": 262144,
            "pad_token_id": 0,
            "rope_scaling": {"type": "longrope", "short_factor": [1.0] * 6, "long_factor": [1.0, 1.2, 1.5, 2, 3, 4]},
        },
    ),
    "gemma3": (
        "gemma3_text",
        "sp_unigram",
        {
            "head_dim": 16,
            "tie_word_embeddings": True,
            "query_pre_attn_scalar": 24,
            "sliding_window": 16,
            "layer_types": _WINDOWS,
            "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        },
    ),
    "qwen3_moe": (
        "qwen3_moe",
        "qwen",
        {
            "head_dim": 16,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 40,
            "norm_topk_prob": True,
        },
    ),
    "deepseek_v3": (
        "deepseek_v3",
        "llama",
        {
            "num_key_value_heads": 4,
            "moe_intermediate_size": 40,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "n_group": 2,
            "topk_group": 1,
            "first_k_dense_replace": 1,
            "q_lora_rank": 24,
            "kv_lora_rank": 16,
            "qk_rope_head_dim": 8,
            "qk_nope_head_dim": 16,
            "v_head_dim": 12,
        },
    ),
    "qwen3_next": ("qwen3_next", "llama", {**_GATED, "partial_rotary_factor": 0.5, **_SHARED}),
    "qwen3_5": ("qwen3_5_text", "llama", {**_GATED, "partial_rotary_factor": 0.5}),
    "qwen3_5_moe": ("qwen3_5_moe_text", "llama", {**_GATED, "partial_rotary_factor": 0.5, **_SHARED}),
    "nemotron_h": (
        "nemotron_h",
        "llama",
        {
            "layers_block_type": ["mamba", "mlp", "attention", "mamba", "mlp"],
            "head_dim": 16,
            "mamba_num_heads": 6,
            "mamba_head_dim": 8,
            "n_groups": 2,
            "ssm_state_size": 12,
            "chunk_size": 64,  # as long as the texts: from chunk to chunk transformers' own form in torch differs
        },
    ),
    "mistral": ("mistral", "sp_bpe", {"sliding_window": 16, "head_dim": 16}),
    "gpt_oss": (
        "gpt_oss",
        "tiktoken_json",
        {
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "head_dim": 16,
            "sliding_window": 16,
            "layer_types": _WINDOWS,
            "rope_scaling": _YARN,
        },
    ),
}
_EYES = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}
_QWEN_EYES = {"depth": 1, "hidden_size": 16, "intermediate_size": 24, "num_heads": 2, "out_hidden_size": 48}
#: Models that see images: name -> (model_type, the kind in `KINDS` of its language model, the vision tower's settings).
SEEING: dict[str, tuple[str, str, dict[str, Any]]] = {
    "gemma3": ("gemma3", "gemma3", {"num_hidden_layers": 1, **_EYES}),
    "mistral3": ("mistral3", "mistral", {"num_hidden_layers": 1, **_EYES}),
    "qwen3_5": ("qwen3_5", "qwen3_5", _QWEN_EYES),
    "qwen3_5_moe": ("qwen3_5_moe", "qwen3_5_moe", _QWEN_EYES),
}
_TOKENIZERS = {"tiktoken_json": "llama"}  # transformers has no use for a rank file


def tokenizer_of(kind: str) -> str:
    """The name of its tokenizer in the zoo."""
    usual = KINDS[kind][1]
    return _TOKENIZERS.get(usual, usual)


def write_model(
    kind: str,
    folder: Path,
    dtype: torch.dtype = torch.float32,
    spare_rows: int = 30,
    shard: str = "5GB",
    tokenizer: str | Path | None = None,
    **changes: Any,
) -> Path:
    """Writes a model with its tokenizer; every weight is random, norms and biases included.

    Args:
        tokenizer: another of the zoo, or the folder of one.
        spare_rows: rows of the embeddings beyond the tokenizer's ids, as published models have them.
    """
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM, GenerationConfig

    model_type, _, settings = KINDS[kind]
    tokenizer = tokenizer or tokenizer_of(kind)
    vocabulary = load_vocabulary(tokenizer) if isinstance(tokenizer, Path) else zoo()[tokenizer]
    ids = {"bos_token_id": vocabulary.bos_id, "eos_token_id": vocabulary.eos_id, "pad_token_id": vocabulary.pad_id}
    settings = {**_SHAPE, "tie_word_embeddings": False, **ids, **settings, **changes}
    config = CONFIG_MAPPING[model_type](vocab_size=vocabulary.size + spare_rows, **settings)
    generator = torch.Generator().manual_seed(11)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            noise = torch.randn(parameter.shape, generator=generator)
            around_zero = model_type in _NORMS_AROUND_ZERO and "linear_attn" not in name
            centre = 1.0 if "norm" in name and not around_zero else 0.0
            parameter.copy_(centre + noise * (0.3 if parameter.ndim == 1 else 0.2))
    model.to(dtype)
    model.generation_config = GenerationConfig(**{k: v for k, v in ids.items() if v is not None}, temperature=0.5)
    model.generation_config.do_sample = True
    model.save_pretrained(folder, max_shard_size=shard)
    if model_type == "nemotron_h":
        _rename(folder, "backbone.embedding.weight", "backbone.embeddings.weight")
    if isinstance(tokenizer, Path):
        copy_tokenizer(tokenizer, folder, vocabulary, loadable=False)
    else:
        write_folder(tokenizer, folder)
    return folder


def write_seeing(kind: str, folder: Path, alone: Path) -> Path:
    """Writes a model that sees images, as transformers saves it, around a language model.

    Args:
        kind: of `SEEING`.
        alone: the language model by itself, as `write_model` wrote it.
    """
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM, AutoModelForImageTextToText

    model_type, _, eyes = SEEING[kind]
    inner = AutoModelForCausalLM.from_pretrained(alone)
    tied = inner.config.tie_word_embeddings
    config = CONFIG_MAPPING[model_type](
        text_config=inner.config.to_dict(), vision_config=eyes, tie_word_embeddings=tied
    )
    whole = AutoModelForImageTextToText.from_config(config).eval()
    whole.model.language_model.load_state_dict(inner.model.state_dict())
    if not tied:
        whole.lm_head.load_state_dict(inner.lm_head.state_dict())
    whole.save_pretrained(folder)
    copy_tokenizer(alone, folder, load_vocabulary(alone))
    return folder


def _rename(folder: Path, found: str, published: str) -> None:
    """Gives a weight the name that NVIDIA's checkpoints have, where transformers saves it under another."""
    from safetensors.torch import load_file, save_file

    file = folder / "model.safetensors"
    save_file({published if name == found else name: t for name, t in load_file(file).items()}, file, {"format": "pt"})


def logits(folder: Path, tokens: torch.Tensor) -> torch.Tensor:
    """float32 ``[b, T, V]`` of the model in ``folder``, as transformers computes them."""
    from transformers import AutoModelForCausalLM

    with readable_folder(ModelFolder(folder)) as path:  # checked against transformers 5 in test_configuration
        model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.no_grad():
        return model(tokens).logits.float()


def nemo_logits(checkpoint, tokens, **settings):
    """float32 ``[b, T, V]`` of a NeMo checkpoint, by Megatron's own forward pass; with changes of its configuration.

    LoRA adapters stay beside their layers."""
    import torch
    from nemo.collections import llm

    from nemo_xtoken.plugin.nemo2.hf.exporting import load_config
    from nemo_xtoken.plugin.nemo2.hf.session import trainer_for
    from nemo_xtoken.plugin.nemo2.lora.student_adapters import add_adapters, lora_in
    from nemo_xtoken.plugin.nemo2.tokenizer import XTokenTokenizer
    from nemo_xtoken.training.inputs import document_mask

    config = load_config(checkpoint)
    for name, value in settings.items():
        setattr(config, name, value)
    model = llm.GPTModel(config, tokenizer=XTokenTokenizer(str(next(checkpoint.glob("context/*tokenizer*")))))
    with trainer_for(model, ddp="pytorch", setup_optimizers=False) as trainer:
        if (lora := lora_in(checkpoint)) is not None:
            add_adapters(model, lora, resumed=True)
        trainer.strategy.setup(trainer)
        trainer.strategy.load_checkpoint(checkpoint)
        model.module.eval()
        mask = document_mask(torch.zeros_like(tokens))
        positions = torch.arange(tokens.shape[1]).expand_as(tokens)
        with torch.no_grad():
            return model.module(input_ids=tokens, position_ids=positions, attention_mask=mask, labels=None).float()
