"""NeMo 2's recipes under Megatron-Bridge: the same settings, from the YAML file that each recipe has."""

import dataclasses
import importlib
import inspect
import typing
from collections.abc import Mapping
from typing import Any

from nemo_xtoken.errors import InputError

if typing.TYPE_CHECKING:
    import nemo_run as run

__all__ = ["NEMO_ONLY", "as_partial", "bridge_content", "from_nemo2"]

#: What takes the place of NeMo 2's function under Bridge.
TARGETS = {
    "nemo_xtoken.plugin.nemo2.distill.distill": "nemo_xtoken.plugin.bridge.distill_bridge.distill",
    "nemo_xtoken.plugin.nemo2.swap.swap_tokenizer": "nemo_xtoken.plugin.bridge.bridge_swap.swap_tokenizer",
    "nemo_xtoken.recipes.xtoken_tiny.distill_tiny": "nemo_xtoken.recipes.tiny_bridge.distill_tiny",
}
#: Settings of NeMo's and Lightning's that Bridge has no use for, or that are the same in every run here.
NEMO_ONLY = {
    "model": {"config"},  # the checkpoint has the architecture
    "log": {"use_datetime_version"},
    "log.ckpt": {"mode", "monitor", "save_last"},
    "optim.config": {"bf16", "optimizer", "params_dtype", "use_distributed_optimizer"},
    "optim.lr_scheduler": {"constant_steps"},
    "resume": {"resume_ignore_no_checkpoint"},
    "trainer": {"accelerator", "limit_val_batches", "logger", "num_sanity_val_steps", "use_distributed_sampler"},
    "trainer.plugins": {"autocast_enabled", "grad_reduce_in_fp32", "params_dtype", "pipeline_dtype"},
    "trainer.strategy": {
        "ckpt_async_save",
        "ckpt_optim_fully_reshardable",
        "ddp",
        "gradient_as_bucket_view",
        "pipeline_dtype",
        "progress_interval",
    },
}
#: What a recipe leaves to the machine; under Bridge the processes that were started say it.
OF_THE_MACHINE = (("trainer.devices", "auto"),)
#: Arguments that are None where a recipe leaves them out: what that means differs from function to function.
LEFT_OUT = ("samples",)
MARKS = {"_target_", "_partial_", "_call_"}


def from_nemo2(content: Mapping[str, Any], name: str) -> "run.Partial":
    """The run that a recipe configures, for Bridge; all arguments that it leaves out have their defaults.

    Args:
        content: of the recipe's YAML file.
        name: the recipe's, for error messages.

    Raises:
        InputError: see `bridge_content`.
    """
    return as_partial(bridge_content(content, name))


def as_partial(content: Mapping[str, Any]) -> "run.Partial":
    """What nemo_run makes of a run's settings.

    Args:
        content: as `bridge_content` gives it.
    """
    import nemo_run as run

    function = _named(content["_target_"])
    hints = typing.get_type_hints(function)
    arguments = {}
    for name, value in content.items():
        if name not in MARKS:
            kind = _dataclass(hints.get(name))
            if kind is not None and isinstance(value, Mapping) and "_target_" not in value:  # made by an override
                value = _config(kind, value, name)
            arguments[name] = _configured(value)
    return run.Partial(function, **arguments)


def _configured(value: Any) -> Any:
    """What nemo_run makes of a value of `bridge_content`."""
    import nemo_run as run

    if isinstance(value, list):
        return [_configured(one) for one in value]
    if not isinstance(value, Mapping):
        return value
    arguments = {name: _configured(one) for name, one in value.items() if name not in MARKS}
    return run.Config(_named(value["_target_"]) if "_target_" in value else dict, **arguments)


def bridge_content(content: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A recipe's settings as those of a run under Bridge: plain data with ``_target_``, as a YAML file has it.

    Args:
        content: of the recipe's YAML file.
        name: the recipe's, for error messages.

    Raises:
        InputError: a recipe that does more than distil, or has a setting that Bridge's adapter does not know.
    """
    target = TARGETS.get(str(content.get("_target_")))
    if target is None:
        raise InputError(
            f"the recipe {name} under Megatron-Bridge",
            "one that distils, and does nothing around it",
            "choose another recipe; this one needs NeMo 2 (pip install 'nemo_xtoken[nemo]')",
        )
    function = _named(target)
    hints = typing.get_type_hints(function)
    arguments: dict[str, Any] = {"_target_": target}
    for argument in inspect.signature(function).parameters:
        kind, value = _dataclass(hints[argument]), content.get(argument)
        if argument == "teachers":
            if value:
                of_one = typing.get_args(_without_none(hints[argument]))[1]
                named = {key: _config(of_one, one, f"teachers.{key}") for key, one in value.items() if key not in MARKS}
                arguments[argument] = named
        elif value is None and (argument == "teacher" or argument in LEFT_OUT):
            continue
        elif kind is not None:
            arguments[argument] = _config(kind, value or {}, argument)
        elif value is not None:
            arguments[argument] = value
    unknown = content.keys() - inspect.signature(function).parameters.keys() - MARKS
    if unknown:
        raise _not_here(name, sorted(unknown)[0])
    return arguments


def _config(kind: type, content: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A dataclass of ours, and those inside of it, so that overrides find them."""
    hints = typing.get_type_hints(kind)
    fields = {field.name: hints[field.name] for field in dataclasses.fields(kind)}
    if unknown := content.keys() - fields.keys() - MARKS - NEMO_ONLY.get(where, set()):
        raise _not_here(where, sorted(unknown)[0])
    arguments: dict[str, Any] = {"_target_": f"{kind.__module__}.{kind.__qualname__}"}
    for name, hint in fields.items():
        inner, value = _dataclass(hint), content.get(name)
        if inner is not None and (value is not None or _without_none(hint) is hint):
            arguments[name] = _config(inner, value or {}, f"{where}.{name}")
        elif name in content and (f"{where}.{name}", value) not in OF_THE_MACHINE:
            arguments[name] = _value(value)
    return arguments


def _value(value: Any) -> Any:
    """A plain value, or a call of ours: ``_target_: nemo_xtoken.recipes.tiny_text.text_file``."""
    if isinstance(value, list):
        return [_value(one) for one in value]
    if isinstance(value, Mapping) and not str(value["_target_"]).startswith("nemo_xtoken."):
        raise _not_here("a recipe", str(value["_target_"]))
    return dict(value) if isinstance(value, Mapping) else value


def _named(name: str) -> Any:
    module, _, function = name.rpartition(".")
    return getattr(importlib.import_module(module), function)


def _without_none(hint: Any) -> Any:
    """X of ``Optional[X]``; others as they are."""
    kinds = [kind for kind in typing.get_args(hint) if kind is not type(None)]
    return kinds[0] if type(None) in typing.get_args(hint) and len(kinds) == 1 else hint


def _dataclass(hint: Any) -> Any:
    kind = _without_none(hint)
    return kind if isinstance(kind, type) and dataclasses.is_dataclass(kind) else None


def _not_here(where: str, what: str) -> InputError:
    return InputError(
        f"{where} sets {what}",
        "settings that Megatron-Bridge's adapter knows",
        "run it with NeMo 2, or leave that out of the recipe's YAML file",
    )
