"""Whether the values of a run are in range, one by one and together, before anything is read, built or asked for."""

import dataclasses
import importlib
import math
import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

from nemo_xtoken.errors import InputError, nearest
from nemo_xtoken.limits import LONGEST_SEQUENCE, MOST_WORKERS
from nemo_xtoken.run.arguments.names import MARKS
from nemo_xtoken.run.arguments.short_names import TRACKERS
from nemo_xtoken.run.arguments.signatures import signature
from nemo_xtoken.run.records import check_run_name
from nemo_xtoken.run.settings import Settings
from nemo_xtoken.run.spec import START
from nemo_xtoken.run.teaching import name_of
from nemo_xtoken.run.unsupported import AHEAD

__all__ = ["check_range", "check_rates", "check_teacher", "made", "value_checks"]

ABOVE_0, FRACTION = (lambda x: x > 0, "a number above 0"), (lambda x: 0 <= x < 1, "from 0 up, and below 1")
_FROM = {n: (lambda x, n=n: x >= n, f"{n} or more") for n in (-1, 0, 1, 2)}
#: Learning rates: the highest, and the one that it falls to.
RATES = ("optim.config.lr", "optim.lr_scheduler.min_lr")
LENGTH = (lambda x: 2 <= x <= LONGEST_SEQUENCE, f"from 2 to {LONGEST_SEQUENCE:,} tokens")
#: Steps, or a part of an epoch.
INTERVAL = (lambda x: x >= 1 if isinstance(x, int) else 0 < x <= 1, "a number of steps, or a fraction up to 1.0")
LIMIT = (lambda x: x >= 0 if isinstance(x, int) else 0 <= x <= 1, "a number of batches, or a fraction up to 1.0")
#: What each value must be, by its name in the run.  Others are judged by what takes them.
RANGES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "trainer.max_steps": (lambda x: x >= 1, "at least one step"),
    "trainer.num_nodes": _FROM[1],
    "trainer.val_check_interval": INTERVAL,
    "trainer.limit_val_batches": LIMIT,
    "trainer.limit_train_batches": LIMIT,
    "trainer.log_every_n_steps": _FROM[1],
    "trainer.seed": _FROM[1],  # Megatron-Bridge takes no other
    "trainer.timeout_minutes": _FROM[1],
    "trainer.strategy.progress_interval": _FROM[1],
    "trainer.strategy.tensor_model_parallel_size": _FROM[1],
    "trainer.strategy.pipeline_model_parallel_size": _FROM[1],
    "trainer.strategy.context_parallel_size": _FROM[1],
    "trainer.strategy.expert_model_parallel_size": _FROM[1],
    "trainer.strategy.expert_tensor_parallel_size": _FROM[1],
    "data.micro_batch_size": _FROM[1],
    "data.global_batch_size": _FROM[1],
    "data.loader_workers": (lambda x: 0 <= x <= MOST_WORKERS, f"from 0 to {MOST_WORKERS} processes"),
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
    "model.config.vocab_size": _FROM[1],
    "teacher_steps": _FROM[1],
}
#: What each name must be one of, where it is set; NeMo and Lightning find out when a model has been built.
CHOICES: dict[str, tuple[str, ...]] = {
    "optim.config.optimizer": ("adam", "sgd"),
    "trainer.accelerator": ("auto", "cpu", "gpu", "cuda"),
    "track": TRACKERS,
}
#: The same under Megatron-Bridge alone.
CHOICES_OF_BRIDGE: dict[str, tuple[str, ...]] = {"trainer.plugins.precision": ("bf16-mixed", "32")}
#: Places that nothing can stand in for: an empty text is the current folder to some and a default to others.
PLACES = (START, "log.log_dir", "model.tokenizer.source", "data.text.cache_dir")
#: Of every teacher.
OF_TEACHER: dict[str, tuple[Callable[[Any], bool], str]] = {
    "weight": ABOVE_0,
    "length": LENGTH,
    "learned_lr": ABOVE_0,
    "tensor_model_parallel_size": _FROM[1],
    "pipeline_model_parallel_size": _FROM[1],
    "context_parallel_size": _FROM[1],
    "expert_model_parallel_size": _FROM[1],
}
#: Parts of a run that are dataclasses of this package with checks of their own.
OBJECTIVE, TEXT, EVALUATION, STOP, LORA = "objective", "data.text", "evaluate", "stop", "lora"
PARTS = {
    OBJECTIVE: "nemo_xtoken.objective.scale.ObjectiveConfig",
    TEXT: "nemo_xtoken.data.config.DataConfig",
    EVALUATION: "nemo_xtoken.evaluate.evaluation_config.EvaluationConfig",
    STOP: "nemo_xtoken.training.watching.early_stopping.StopConfig",
    LORA: "nemo_xtoken.run.lora.lora_settings.LoraConfig",
    "samples": "nemo_xtoken.training.watching.sample_settings.SampleConfig",
}
PARTS_OF_TEACHER = {
    "rule": "nemo_xtoken.projection.build.ProjectionRule",
    "options": "nemo_xtoken.losses.options.DivergenceOptions",
    "chunks": "nemo_xtoken.losses.base.ChunkLossConfig",
    "cache": "nemo_xtoken.teachers.source_settings.CacheConfig",
    "service": "nemo_xtoken.teachers.source_settings.ServiceConfig",
}
PLACES_OF_TEACHER = ("path", "tokenizer", "projection")
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


def check_rates(highest: Any, lowest: Any) -> None:
    """The learning rate falls: NeMo and Megatron find out when models have been built.

    Args:
        highest, lowest: the values of `RATES`.

    Raises:
        InputError: it would rise.
    """
    if all(isinstance(rate, int | float) for rate in (highest, lowest)) and lowest > highest:
        raise InputError(
            f"{RATES[1]}={lowest}, {RATES[0]}={highest}", "a rate that falls to a lower one", f"lower {RATES[1]}"
        )


def check_teacher(where: str, values: Mapping[str, Any]) -> None:
    """The values of one teacher.

    Args:
        where: what its settings are called on the command line.
        values: its settings.

    Raises:
        InputError: one is out of range, or does not go with another.
    """
    for name, rule in OF_TEACHER.items():
        check_range(f"{where}.{name}", values.get(name), rule)
    if values.get(AHEAD) and (source := values.get("source")) not in (None, "colocated"):
        raise InputError(
            f"{where}.{AHEAD}=true with {where}.source={source}",
            "a teacher in the student's processes and layout",
            f"leave {where}.{AHEAD} out; teachers elsewhere read ahead by {where}.service.ahead",
        )


def value_checks(settings: Settings) -> Iterator[tuple[str, Check]]:
    """What is to be checked, each by itself, and what part of the run it belongs to.

    A check raises `InputError`, or ImportError if a package that it needs is not installed.
    """
    for name, rule in RANGES.items():
        yield _part_of(name), partial(check_range, name, settings.get(name), rule)
    yield "layout", partial(_check_devices, settings.get("trainer.devices"))
    yield "settings", partial(check_run_name, settings.get("log.name"))
    yield "layout", partial(_check_strategy, settings)
    yield "settings", partial(check_rates, *(settings.get(name) for name in RATES))
    for name, choices in (CHOICES | (CHOICES_OF_BRIDGE if settings.under_bridge else {})).items():
        yield _part_of(name), partial(_check_choice, name, settings.get(name), choices)
    for name in PLACES:
        yield _part_of(name), partial(_check_place, name, settings.get(name))
    for name, target in PARTS.items():
        if settings.get(name) is not None:
            yield _part_of(name), partial(_check_part, settings, name, target)
    for where, config in settings.teachers().items():
        yield where, partial(check_teacher, where, config)
        for name in PLACES_OF_TEACHER:
            yield where, partial(_check_place, f"{where}.{name}", config.get(name))
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


def _check_strategy(settings: Settings) -> None:
    """Megatron trains under NeMo's strategy alone."""
    trainer = settings.part("trainer")
    if "strategy" in trainer and not isinstance(trainer["strategy"], Mapping):
        raise InputError(
            f"trainer.strategy={trainer['strategy']}",
            "settings of a MegatronStrategy",
            "leave trainer.strategy as it is",
        )


def _check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    if isinstance(value, str) and value not in choices:
        raise InputError(f"{name}={value}{nearest(value, choices)}", f"one of {', '.join(choices)}", f"correct {name}")


def _check_place(name: str, value: Any) -> None:
    if isinstance(value, str) and not value.strip():
        raise InputError(f"{name}= is empty", "a name or a path", f"give {name} a value, or leave it out")


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
    if name == LORA and settings.swaps:
        value.of_swap()
    if name == STOP:
        stopping = importlib.import_module("nemo_xtoken.training.watching.early_stopping")
        stopping.check_stop(value.patience, value.on, map(name_of, settings.teachers()))
    if name == EVALUATION:
        value.check_steps(settings.get("log.ckpt.every_n_train_steps"))
        if value.every is None and settings.part(name).keys() - {*MARKS, "every"}:
            raise InputError(
                f"{', '.join(f'evaluate.{key}' for key in settings.part(name) if key not in (*MARKS, 'every'))} "
                "without evaluate.every",
                "the steps between two evaluations: without them nothing is evaluated",
                "set evaluate.every, or leave the others out",
            )


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
