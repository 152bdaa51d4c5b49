"""The architectures that are known, by their names in Hugging Face's configurations and by NeMo's classes."""

from typing import Any

from nemo_xtoken.errors import InputError
from nemo_xtoken.plugin.nemo2.hf.dense import LLAMA, MISTRAL, QWEN2, QWEN3
from nemo_xtoken.plugin.nemo2.hf.family import Family
from nemo_xtoken.plugin.nemo2.hf.gemma3 import GEMMA3
from nemo_xtoken.plugin.nemo2.hf.gpt_oss import GPT_OSS
from nemo_xtoken.plugin.nemo2.hf.phi3 import PHI3
from nemo_xtoken.run.hf_models import not_imported

__all__ = ["FAMILIES", "family_of_config", "family_of_model_type"]

#: A class stands before its base classes.
FAMILIES: tuple[Family, ...] = (GPT_OSS, GEMMA3, PHI3, MISTRAL, QWEN3, QWEN2, LLAMA)


def family_of_model_type(model_type: str) -> Family:
    """
    Raises:
        InputError: an architecture that is not known.
    """
    for family in FAMILIES:
        if family.model_type == model_type:
            return family
    raise not_imported(model_type)


def family_of_config(config: Any) -> Family:
    """The family of a NeMo model.

    Raises:
        InputError: no family has such a configuration.
    """
    for family in FAMILIES:
        dense = family is not GPT_OSS and getattr(config, "num_moe_experts", None)
        if isinstance(config, family.config) and not dense:
            return family
    raise InputError(
        f"a NeMo model with the configuration {type(config).__name__}",
        f"one of {', '.join(f.config.__name__ for f in FAMILIES)}, dense except for gpt-oss",
        "use NeMo's own `nemo llm export` where it has a connector for this one",
    )
