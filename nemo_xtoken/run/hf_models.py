"""Which Hugging Face models the adapters take, and what Megatron-Bridge would make of one without a word.

Asked by imports and runs, and by preflight before.
"""

from collections.abc import Mapping
from typing import Any

from nemo_xtoken.errors import InputError

__all__ = ["IMPORTED", "not_alone", "not_imported", "replaced", "unknown"]

#: The types that the NeMo 2 adapter imports, those of the families in ``plugin.nemo2.hf.families``.
IMPORTED = ("gemma3_text", "gpt_oss", "llama", "mistral", "phi3", "qwen2", "qwen3")

#: What Bridge and Megatron take of a rotary embedding's scaling whatever the model says, by the model's type.
_SCALING: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama3", {"original_max_position_embeddings": 8192, "low_freq_factor": 1.0, "high_freq_factor": 4.0}),
    "gpt_oss": (
        "yarn",
        {
            "factor": 32.0,
            "original_max_position_embeddings": 4096,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "truncate": False,
        },
    ),
}
#: Of Gemma 3, a layer without a window after so many with one.
_WINDOWED = 5
#: Types that no version up to 0.6.2 converts: of those that this package's recipes name, and of language models inside
#: published models that see images.
_UNKNOWN = {"phi3": "Phi3ForCausalLM", "llama4_text": "Llama4ForCausalLM", "ministral3": "Ministral3ForCausalLM"}
#: Types of language models that transformers has inside others alone.
_INSIDE = (
    *("qwen2_vl", "qwen2_vl_text", "qwen2_5_vl", "qwen2_5_vl_text", "qwen3_vl_text", "qwen3_vl_moe_text"),
    *("mllama_text_model", "glm4v_text", "glm4v_moe_text"),
)


def replaced(text: Mapping[str, Any], source: str) -> InputError | None:
    """What of a language model Bridge 0.6.2 replaces by what the published models have; None where it is all its own.

    Args:
        text: its configuration, by Hugging Face's names.
        source: where that is, for the message.
    """
    kind = text.get("model_type")
    where, found, expected = "", dict[str, Any](), dict[str, Any]()
    if kind in _SCALING:
        scaled, expected = _SCALING[kind]
        scaling = text.get("rope_parameters") or text.get("rope_scaling") or {}
        if scaling.get("rope_type", scaling.get("type")) == scaled:
            where, found = "its rotary scaling", {name: scaling.get(name, value) for name, value in expected.items()}
    elif kind == "gemma3_text" and (layers := text.get("layer_types")):
        full = [number for number, layer in enumerate(layers) if layer == "full_attention"]
        where, found = "its layers", {"full_attention": full}
        expected = {"full_attention": list(range(_WINDOWED, len(layers), _WINDOWED + 1))}
    if not found or found == expected:
        return None
    return InputError(
        f"{source} has {', '.join(f'{n}={v}' for n, v in found.items() if v != expected[n])} in {where}",
        f"{', '.join(f'{n}={v}' for n, v in expected.items() if v != found[n])}, which Megatron-Bridge takes for "
        f"every {kind} model",
        "take a published model, or an image with NeMo 2, whose adapter takes others",
    )


def unknown(text: Mapping[str, Any], source: str) -> InputError | None:
    """Whether it is of a kind that Bridge does not convert, as far as that is known without Bridge.

    Args:
        text, source: as of `replaced`.
    """
    kind = str(text.get("model_type"))
    if kind in _INSIDE:
        return not_alone(kind, source)
    if (name := _UNKNOWN.get(kind)) is None:
        return None
    return InputError(
        f"{source} is a {name}, for which Megatron-Bridge has no conversion (0.6.2 and before)",
        "a Hugging Face model of an architecture that Bridge supports",
        "take another model, or an image with NeMo 2, whose adapter has one",
    )


def not_alone(kind: str, source: str) -> InputError:
    """A model of several kinds of input whose language model is none that can be used by itself.

    Args:
        kind: the type of the language model.
        source: of the whole model, for the message.
    """
    return InputError(
        f"the language model of {source}, of type {kind}, for which transformers has no model of language alone",
        "a language model, or a model of several kinds of input around one that transformers has by itself, such as "
        "Gemma 3, Qwen3.5 and Mistral Small 3",
        "take a model of the same family that reads text alone",
    )


def not_imported(model_type: str) -> InputError:
    """A model that the NeMo 2 adapter does not import.

    Args:
        model_type: of a language model; of one inside a model of several kinds of input, its own.
    """
    return InputError(
        f"a model of type {model_type!r}",
        f"one of {', '.join(IMPORTED)} (also as the language model inside a model that sees images)",
        "use one of these, or an image with Megatron-Bridge where that converts it; or NeMo's own `nemo llm import` "
        "where it has a connector for this one",
    )
