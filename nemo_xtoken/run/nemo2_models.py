"""Which Hugging Face models the NeMo 2 adapter imports: asked by the import, and by preflight before."""

from nemo_xtoken.errors import InputError

__all__ = ["IMPORTED", "not_imported"]

#: The types of the families in ``plugin.nemo2.hf.families``.
IMPORTED = ("gemma3_text", "gpt_oss", "llama", "mistral", "phi3", "qwen2", "qwen3")


def not_imported(model_type: str) -> InputError:
    """
    Args:
        model_type: of a language model; of one inside a model of several kinds of input, its own.
    """
    return InputError(
        f"a model of type {model_type!r}",
        f"one of {', '.join(IMPORTED)} (also as the language model inside a model that sees images)",
        "use one of these, or an image with Megatron-Bridge where that converts it; or NeMo's own `nemo llm import` "
        "where it has a connector for this one",
    )
