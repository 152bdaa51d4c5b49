"""The language model inside a model of several kinds of input: one rule for all that are published so.

Gemma 3 from 4B on, Qwen3.5, Mistral Small 3 and Llama 4 see images: ``text_config`` in config.json describes their
language model, whose weights stand under a prefix beside those of a vision tower.  Text meets the language model alone:
that is what teaches and learns here, and what is written at the end.
"""

from collections.abc import Iterable, Mapping
from typing import Any

__all__ = ["TIED", "is_inside", "language_config", "language_tensors", "left_aside"]

#: Where such a model keeps its language model, longest first.
PREFIXES = ("model.language_model.", "language_model.model.", "language_model.")
INSIDE = "text_config"
#: What the whole model says for its language model, whatever that says of itself.
TIED = "tie_word_embeddings"


def is_inside(config: Mapping[str, Any]) -> bool:
    """Whether the language model is inside another model, by what its config.json says."""
    inner = config.get(INSIDE)
    return isinstance(inner, Mapping) and bool(inner)


def language_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of the language model by itself.

    Args:
        config: what config.json says; of a language model it is its own.
    """
    if not is_inside(config):
        return dict(config)
    return {**config[INSIDE], **({TIED: config[TIED]} if TIED in config else {})}


def language_tensors(names: Iterable[str]) -> dict[str, str]:
    """Names as a language model by itself would have them -> names in the files; the language model's alone.

    Args:
        names: of all tensors in a model's files; of a language model each stays as it is.
    """
    names = list(names)
    inside = any(name.startswith(PREFIXES) for name in names)
    out = {}
    for name in names:
        prefix = next((p for p in PREFIXES if name.startswith(p)), None)
        if prefix is not None:
            rest = name.removeprefix(prefix)
            out[rest if rest.startswith("lm_head") else f"model.{rest}"] = name
        elif not inside or name.startswith("lm_head"):
            out[name] = name
    return out


def left_aside(config: Mapping[str, Any], names: Iterable[str]) -> str | None:
    """The line for the person who watches: what a model is, and what of it is not used; None of a language model.

    Args:
        config: what config.json says.
        names: of all tensors in its files.
    """
    if not is_inside(config):
        return None
    names = list(names)
    own = set(language_tensors(names).values())
    others = [name for name in names if name not in own]
    parts = sorted({".".join(name.split(".")[: 1 + name.startswith("model.")]) for name in others})
    what = f"{len(others)} other weights ({', '.join(parts)})" if others else "no weights"
    return f"is a {config.get('model_type')}: its language model alone is used, and {what} left aside"
