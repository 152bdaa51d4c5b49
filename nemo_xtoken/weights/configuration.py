"""config.json as the installed transformers is to understand it: every key is known to it, or the model is refused.

A key that a version of transformers does not know is kept as an attribute that nothing reads: the model loads, and is
another one.
"""

import contextlib
import inspect
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from nemo_xtoken.errors import InputError, shortened
from nemo_xtoken.weights.folder import ModelFolder, write_json
from nemo_xtoken.weights.rotary import classic_rotary

__all__ = ["check_numbers", "configured", "readable_folder", "understood", "writer_version"]

#: Counts of a language model by transformers' names; an architecture may know more or fewer.  Some may be None.
OPTIONAL = ("num_key_value_heads", "head_dim", "num_local_experts", "num_experts_per_tok")  # else from the others
COUNTS = (
    *("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"),
    *("max_position_embeddings", *OPTIONAL),
)

#: Keys that change nothing in the model: who wrote it, how it is trained, served or quantised for the browser.
NEUTRAL = frozenset(
    {
        *("architectures", "auto_map", "dtype", "model_type", "torch_dtype", "transformers_version", "use_cache"),
        *("pretraining_tp", "task_specific_params", "transformers.js_config", "unsloth_fixed", "unsloth_version"),
        *("neftune_noise_alpha", "model_max_length", "cache_implementation", "quantization_config"),
        *("initial_context_length", "gradient_checkpointing", "attn_implementation", "trust_remote_code"),
        *("max_window_layers", "classifier_dropout"),
    }
)
#: Keys of published models that say, with this value, what the architecture does anyway.
AS_BUILT: dict[str, tuple[Any, ...]] = {
    "is_llama_config": (True,),
    "full_attn_mod": (1,),
    "interpolate_factor": (1,),
    "embedding_multiplier": (1, 1.0),
    "swiglu_limit": (7.0,),
    "swiglu_alpha": (1.702,),
}
#: Keys that repeat another's value.
REPEATS = {"experts_per_token": "num_experts_per_tok"}

#: A rotary embedding as transformers 4 writes it.
CLASSIC_ROTARY = ("partial_rotary_factor", "rope_local_base_freq", "rope_scaling", "rope_theta")

#: Model types whose published tokenizers transformers suspects of an expression that Mistral replaced later.
SUSPECTED = ("mistral", "mistral3", "voxtral", "ministral", "pixtral")


def writer_version(model_type: str) -> str:
    """``transformers_version`` of a configuration, so that no transformers doubts the tokenizer beside it.

    Of a local folder with more than 100,000 tokens 4.57.6 warns of an incorrect expression, whatever it is, unless
    this is at most 4.57.2 and the type none of Mistral's, or at least 5.0.0; transformers 5 warns of Mistral's types
    below 5.0.0.  The remedy that they offer would cut text otherwise than in training.
    """
    return "5.0.0" if model_type in SUSPECTED else "4.57.2"


def understood(config: Mapping[str, Any], source: str) -> dict[str, Any]:
    """A configuration as a dictionary, its rotary embedding in the form that every version of transformers reads.

    Args:
        config: what config.json says; not changed.
        source: its path, for error messages.

    Raises:
        InputError: a model type that this transformers does not have, a key that it does not know, or a rotary
            embedding that contradicts itself.
    """
    out = dict(config)
    if isinstance(out.get("text_config"), Mapping):
        out["text_config"] = understood(out["text_config"], source)
    else:
        out = classic_rotary(out, source)
    _check_keys(out, source)
    return out


@contextlib.contextmanager
def readable_folder(folder: ModelFolder) -> Iterator[Path]:
    """A folder that the installed transformers loads as the model that it is: this one, or links to its files beside a
    config.json in another form, removed at the end of the context.

    Raises:
        InputError: see `understood`.
    """
    config = understood(folder.config, str(folder.path / "config.json"))
    if config == folder.config:
        yield folder.path
        return
    with tempfile.TemporaryDirectory(prefix="nemo_xtoken-model-") as name:
        copy = Path(name)
        for path in folder.path.iterdir():
            if path.name != "config.json":
                (copy / path.name).symlink_to(path.resolve())
        write_json(copy / "config.json", config)
        yield copy


def configured(config: Mapping[str, Any], source: str) -> Any:
    """transformers' configuration object made of a dictionary.

    Raises:
        InputError: transformers refuses it.
    """
    kind = _class(config, source)
    try:
        return kind.from_dict(dict(config))
    except Exception as error:  # each configuration checks itself in its own way
        raise InputError(
            f"{source} is not accepted by transformers ({error})",
            f"a configuration of type {config['model_type']}",
            "copy the file again",
        ) from error


def check_numbers(config: Any, source: str) -> None:
    """Whether a model of these sizes can be.

    Args:
        config: transformers' configuration object of a language model.
        source: its path, for error messages.

    Raises:
        InputError: a count that is no whole number above 0, or heads that cannot be formed.
    """
    found = {name: getattr(config, name) for name in COUNTS if hasattr(config, name)}
    sizes = {name: value for name, value in found.items() if not isinstance(value, list)}  # a list: one for each layer
    for name, value in sizes.items():
        if value is None and name in OPTIONAL:
            continue
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise InputError(
                f"{source}: {name}={shortened(repr(value))}", "a whole number above 0", "copy the file again"
            )
    heads, groups, width = (sizes.get(name) for name in ("num_attention_heads", "num_key_value_heads", "hidden_size"))
    if heads and ((groups and heads % groups) or (sizes.get("head_dim") is None and width and width % heads)):
        raise InputError(
            f"{source}: num_attention_heads={heads}, num_key_value_heads={groups}, hidden_size={width}",
            "as many query heads for each key head, and heads of one width",
            "take configuration and weights from one model",
        )


def _class(config: Mapping[str, Any], source: str) -> Any:
    from transformers import CONFIG_MAPPING, __version__

    name = config.get("model_type")
    try:
        return CONFIG_MAPPING[str(name)]
    except KeyError:
        raise InputError(
            f"{source}: model_type {name!r}",
            f"a type that transformers {__version__} has",
            "another version of transformers, or another model",
        ) from None


def _check_keys(config: Mapping[str, Any], source: str) -> None:
    """Raises where a key is unknown and says something."""
    from transformers import __version__

    known = _known(_class(config, source))
    for name, value in config.items():
        if name in known or name in NEUTRAL or name.startswith("_") or name.endswith("_token_id"):
            continue
        if value is None or value is False or value in ({}, []):
            continue  # a feature that is unknown and switched off changes nothing
        if name == "head_dim" and value == config.get("hidden_size", 0) // (config.get("num_attention_heads") or 1):
            continue
        if value in AS_BUILT.get(name, ()) or (name in REPEATS and value == config.get(REPEATS[name])):
            continue
        raise InputError(
            f"{source}: {name}={shortened(repr(value))}, which transformers {__version__} does not know for "
            f"model_type {config['model_type']}",
            "keys that it knows: what it does not know it leaves out, and computes another model",
            f"a version of transformers that has it; if {name} changes nothing in the model, take it out of the file",
        )


def _known(kind: Any) -> set[str]:
    """Names that a configuration class reads: its arguments, its bases', and what its instances have."""
    names: set[str] = set()
    for cls in kind.__mro__:
        if "__init__" in vars(cls):
            names |= set(inspect.signature(cls.__init__).parameters)
        names |= set(getattr(cls, "__annotations__", {}))
    with contextlib.suppress(Exception):  # one that cannot be made without arguments names them all
        names |= set(vars(kind()))
    if hasattr(kind, "convert_rope_params_to_dict"):  # transformers 5, which makes its own form of the classic one
        names |= set(CLASSIC_ROTARY)
    return names | set(getattr(kind, "attribute_map", {}))
