"""Whether the values of a run are in range, one by one and together, before anything is read, built or asked for."""

import dataclasses
import importlib
import math
import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

from nemo_xtoken.errors import InputError
from nemo_xtoken.run.arguments.names import MARKS
from nemo_xtoken.run.arguments.signatures import signature
from nemo_xtoken.run.settings import Settings

__all__ = ["check_range", "check_teacher", "made", "value_checks"]

ABOVE_0, FRACTION = (lambda x: x > 0, "a number above 0"), (lambda x: 0 <= x < 1, "from 0 up, and below 1")
_FROM = {n: (lambda x, n=n: x >= n, f"{n} or more") for n in (-1, 0, 1, 2)}
#: What each value must be, by its name in the run.  Others are judged by what takes them.
RANGES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "trainer.max_steps": (lambda x: x >= 1, "at least one step"),
    "trainer.num_nodes": _FROM[1],
    "trainer.val_check_interval": ABOVE_0,
    "trainer.log_every_n_steps": _FROM[1],
    "trainer.strategy.tensor_model_parallel_size": _FROM[1],
    "trainer.strategy.pipeline_model_parallel_size": _FROM[1],
    "trainer.strategy.context_parallel_size": _FROM[1],
    "trainer.strategy.expert_model_parallel_size": _FROM[1],
    "trainer.strategy.expert_tensor_parallel_size": _FROM[1],
    "data.micro_batch_size": _FROM[1],
    "data.global_batch_size": _FROM[1],
    "data.loader_workers": _FROM[0],
    "optim.config.lr": ABOVE_0,
    "optim.config.weight_decay": _FROM[0],
    "optim.config.adam_beta1": FRACTION,
    "optim.config.adam_beta2": FRACTION,
    "optim.config.clip_grad": _FROM[0],
    "optim.lr_scheduler.warmup_steps": _FROM[0],
    "optim.lr_scheduler.min_lr": _FROM[0],
    "log.ckpt.every_n_train_steps": _FROM[1],
    "log.ckpt.save_top_k": _FROM[-1],
    "model.config.num_layers": _FROM[1],
    "model.config.hidden_size": _FROM[1],
    "model.config.num_attention_heads": _FROM[1],
    "model.config.seq_length": _FROM[1],
    "teacher_steps": _FROM[1],
}
#: Of every teacher.
OF_TEACHER: dict[str, tuple[Callable[[Any], bool], str]] = {
    "weight": ABOVE_0,
    "length": _FROM[2],
    "learned_lr": ABOVE_0,
    "tensor_model_parallel_size": _FROM[1],
    "pipeline_model_parallel_size": _FROM[1],
    "context_parallel_size": _FROM[1],
    "expert_model_parallel_size": _FROM[1],
}
#: Parts of a run that are dataclasses of this package with checks of their own.
OBJECTIVE, TEXT, EVALUATION = "objective", "data.text", "evaluate"
PARTS = {
    OBJECTIVE: "nemo_xtoken.objective.scale.ObjectiveConfig",
    TEXT: "nemo_xtoken.data.config.DataConfig",
    EVALUATION: "nemo_xtoken.evaluate.evaluation_config.EvaluationConfig",
}
PARTS_OF_TEACHER = {
    "rule": "nemo_xtoken.projection.build.ProjectionRule",
    "options": "nemo_xtoken.losses.options.DivergenceOptions",
    "chunks": "nemo_xtoken.losses.base.ChunkLossConfig",
}
Check = Callable[[], object]


def check_range(name: str, value: Any, rule: tuple[Callable[[Any], bool], str]) -> None:
    """A value that is not set has its default; one that is not a number is checked elsewhere.

    Raises:
        InputError: out of range, or not finite.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        return
    if not (math.isfinite(value) and rule[0](value)):
        raise InputError(f"{name}={value}", rule[1], f"correct {name}")


def check_teacher(where: str, values: Mapping[str, Any]) -> None:
    """The numbers of one teacher.

    Args:
        where: what its settings are called on the command line.
        values: its settings.

    Raises:
        InputError: one is out of range.
    """
    for name, rule in OF_TEACHER.items():
        check_range(f"{where}.{name}", values.get(name), rule)


def value_checks(settings: Settings) -> Iterator[tuple[str, Check]]:
    """What is to be checked, each by itself, and what part of the run it belongs to.

    A check raises `InputError`, or ImportError if a package that it needs is not installed.
    """
    for name, rule in RANGES.items():
        yield _part_of(name), partial(check_range, name, settings.get(name), rule)
    yield "layout", partial(_check_devices, settings.get("trainer.devices"))
    for name, target in PARTS.items():
        if settings.get(name) is not None:
            yield _part_of(name), partial(_check_part, settings, name, target)
    for where, config in settings.teachers().items():
        yield where, partial(check_teacher, where, config)
        yield where, partial(_check_loss, where, config)
        for part, target in PARTS_OF_TEACHER.items():
            yield where, partial(made, target, config.get(part) or {}, f"{where}.{part}")


def _check_devices(devices: Any) -> None:
    """As Lightning takes them."""
    good = devices is None or isinstance(devices, list) or (isinstance(devices, int) and (devices == -1 or devices > 0))
    if isinstance(devices, str):
        good = re.fullmatch(r"auto|-1|[1-9]\d*|\d+(,\d+)+,?", devices) is not None
    if not good:
        raise InputError(f"trainer.devices={devices}", "a number from 1 up, a list, auto, or -1 for all", "correct it")


def _part_of(name: str) -> str:
    if name.startswith(("trainer.max_steps", "data.micro", "data.global")):
        return "steps"
    return "data" if name.startswith("data.") else "layout" if name.startswith("trainer.strategy") else "settings"


def _check_loss(where: str, config: Mapping[str, Any]) -> None:
    """The loss is one, and has the options that are set; whether it suits the tokenizers is seen when they are read."""
    loss = config.get("loss")
    registry = importlib.import_module("nemo_xtoken.losses.registry")
    if loss in (None, registry.AUTO):
        return
    options = made(PARTS_OF_TEACHER["options"], config.get("options") or {}, f"{where}.options")
    registry.check_options(str(loss), options, (config.get("chunks") or {}).get("merge"))


def _check_part(settings: Settings, name: str, target: str) -> None:
    value = made(target, settings.part(name), name)
    if name == TEXT:
        value.check_values()
    if name == EVALUATION:
        value.check_steps(settings.get("log.ckpt.every_n_train_steps"))


def made(target: str, values: Mapping[str, Any], where: str) -> Any:
    """An object of a dataclass of this package, from plain settings; its own checks are made.

    Values that the run computes (``_target_: nemo_xtoken.recipes.tiny_text.text_file``) are represented by their names.

    Args:
        target: the full name of the dataclass.
        where: what it is called on the command line, for error messages.

    Raises:
        InputError: a name that it does not have, or a value that does not fit.
        ImportError: a package that the check needs is not installed.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    module, _, name = target.rpartition(".")
    kind = getattr(importlib.import_module(module), name)
    given = {key: _plain(value) for key, value in values.items() if key not in MARKS}
    taken = signature(target)
    for key, value in given.items():  # OmegaConf takes no whole number for ``Union[float, str]``
        argument = taken.arguments.get(key) if taken is not None else None
        members = {member.name for member in argument.kind.members} if argument is not None else set()
        if type(value) is int and "float" in members and "int" not in members:
            given[key] = float(value)
    try:
        merged = OmegaConf.merge(OmegaConf.structured(kind), given)
        values = {str(k): v for k, v in OmegaConf.to_container(merged, resolve=True).items()}  # type: ignore[union-attr]
    except OmegaConfBaseException as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{where}: {reason}", f"settings of a {name}", "correct it") from error
    inner = {f.name for f in dataclasses.fields(kind)}
    try:
        return kind(**{k: v for k, v in values.items() if k in inner})
    except InputError as error:
        found = error.found if error.found.startswith(where) else f"{where}: {error.found}"
        raise InputError(found, error.expected, error.fix) from error


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        if "_target_" in value and re.search(r"\.[a-z_]\w*$", str(value["_target_"])):  # a function
            return str(value["_target_"])
        return {key: _plain(item) for key, item in value.items() if key not in MARKS}
    return value.replace("${", r"\${") if isinstance(value, str) else value
