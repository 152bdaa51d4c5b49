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

__all__ = ["configured", "readable_folder", "understood"]

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
    return names | set(getattr(kind, "attribute_map", {}))
