"""Rotary embeddings in a config.json, in the form of transformers 5 and in that of transformers 4.

Version 5 writes ``rope_parameters``: one object, or one for each kind of layer, with the base (``rope_theta``), the
scaling and the rotated part of a head.  Version 4 writes ``rope_theta``, ``rope_scaling`` and ``partial_rotary_factor``
side by side, Gemma 3 also ``rope_local_base_freq``.  Version 5 reads both forms; version 4 ignores ``rope_parameters``
without a word and computes with the default base.  So what is read is brought to version 4's form, which is written.
"""

from collections.abc import Mapping
from typing import Any

from nemo_xtoken.errors import InputError

__all__ = ["classic_rotary"]

NEW = "rope_parameters"
LOCAL, GLOBAL = "sliding_attention", "full_attention"
#: What a scaling may say, in either version.
SCALING = (
    "rope_type", "type", "factor", "original_max_position_embeddings", "attention_factor", "beta_fast", "beta_slow",
    "short_factor", "long_factor", "low_freq_factor", "high_freq_factor", "mscale", "mscale_all_dim", "truncate",
    "mrope_section", "mrope_interleaved",
)  # fmt: skip
BESIDE = ("rope_theta", "partial_rotary_factor")


def classic_rotary(config: Mapping[str, Any], source: str) -> dict[str, Any]:
    """The configuration of a language model with its rotary embedding in the form of transformers 4.

    Args:
        config: of the language model (``text_config`` where there is one); not changed.
        source: where it came from, for error messages.

    Raises:
        InputError: a key of ``rope_parameters`` that is unknown, a value that contradicts one of the classic form, or
            bases for each kind of layer that the classic form cannot express.
    """
    out = dict(config)
    new = out.pop(NEW, None)
    if not new:
        return out
    if not isinstance(new, Mapping):
        raise InputError(f"{source}: {NEW} is a {type(new).__name__}", "an object", "copy the file again")
    kinds = {name: value for name, value in new.items() if isinstance(value, Mapping)}
    model_type = str(config.get("model_type"))
    classic = _by_layers(new, kinds, source) if kinds else _classic(new, model_type, source, NEW)
    for name, value in classic.items():
        if out.get(name) is not None and not _equal(out[name], value):
            raise InputError(
                f"{source}: {name}={out[name]!r} beside {NEW}, which says {value!r}",
                "one rotary embedding",
                f"take out the one that the model was not trained with: {NEW}, or the other rope_* keys",
            )
    return out | classic


def _classic(new: Mapping[str, Any], model_type: str, source: str, where: str) -> dict[str, Any]:
    """One ``rope_parameters`` object in the classic keys."""
    if unknown := [name for name in new if name not in (*SCALING, *BESIDE)]:
        raise InputError(
            f"{source}: {where}.{unknown[0]}={new[unknown[0]]!r}",
            f"one of {', '.join(sorted((*SCALING, *BESIDE)))}",
            "correct the key; a rotary embedding that is not understood would be computed wrongly",
        )
    out: dict[str, Any] = {name: new[name] for name in BESIDE if new.get(name) is not None}
    scaling = {name: value for name, value in new.items() if name in SCALING and value is not None}
    kind = scaling.pop("rope_type", scaling.pop("type", "default"))
    scaling.pop("type", None)
    if kind == "default":
        return out | {"rope_scaling": None}
    if model_type == "phi3":  # its classic form has the length beside the factors, and nothing else in them
        if (length := scaling.pop("original_max_position_embeddings", None)) is not None:
            out["original_max_position_embeddings"] = length
        return out | {"rope_scaling": {"type": kind, **scaling}}
    return out | {"rope_scaling": {"rope_type": kind, **scaling}}


def _by_layers(new: Mapping[str, Any], kinds: Mapping[str, Mapping[str, Any]], source: str) -> dict[str, Any]:
    """``rope_parameters`` with an object for each kind of layer, as Gemma 3 has them."""
    if len(kinds) < len(new) or not set(kinds) <= {LOCAL, GLOBAL}:
        other = next(name for name in new if name not in (LOCAL, GLOBAL))
        raise InputError(
            f"{source}: {NEW}.{other}", f"one object, or {LOCAL} and {GLOBAL}", "this architecture is not supported"
        )
    parts = {kind: _classic(part, "", source, f"{NEW}.{kind}") for kind, part in kinds.items()}
    local, whole = parts.get(LOCAL, {}), parts.get(GLOBAL, parts.get(LOCAL, {}))
    if local.get("rope_scaling") or local.get("partial_rotary_factor", 1.0) != whole.get("partial_rotary_factor", 1.0):
        raise InputError(
            f"{source}: {NEW}.{LOCAL}={dict(kinds[LOCAL])}",
            "no scaling for the layers with a window",
            "this architecture is not supported",
        )
    base = {} if "rope_theta" not in local else {"rope_local_base_freq": local["rope_theta"]}
    return {**whole, **base}


def _equal(a: Any, b: Any) -> bool:
    """Equal values; of two scalings the type may be spelled ``type`` or ``rope_type``."""
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        a, b = ({"rope_type" if k == "type" else k: v for k, v in x.items() if v is not None} for x in (a, b))
        return dict(a) == dict(b)
    return bool(a == b)
