"""Whether a run can be: the same checks for its YAML on a login node, for the command line, and for the run itself."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from nemo_xtoken.errors import InputError
from nemo_xtoken.run import layout
from nemo_xtoken.run.arguments.names import check_content
from nemo_xtoken.run.lora.lora_checks import lora_problems
from nemo_xtoken.run.settings import Settings
from nemo_xtoken.run.sides import run_of
from nemo_xtoken.run.spec import ModelSpec, RunSpec
from nemo_xtoken.run.unsupported import AHEAD, UNKNOWN, refused
from nemo_xtoken.run.values import value_checks

__all__ = [
    "check_run",
    "check_settings",
    "layout_problems",
    "left_to_the_user",
    "not_set",
    "row_problems",
    "unsupported_settings",
]


def check_run(run: RunSpec) -> None:
    """Layout, sizes, and settings that cannot be had with these losses.

    Raises:
        InputError: the first thing that does not fit.
    """
    for problem, certain in unsupported_settings(run):
        if certain:
            raise problem
    for problem in (*layout_problems(run), *row_problems(run)):
        raise problem


def unsupported_settings(run: RunSpec) -> Iterator[tuple[InputError, bool]]:
    """What is refused of its settings, and whether that is certain: some depend on a version that is not known here."""
    for side in run.sides:
        config = "model.config" if side is run.student else f"{side.where}.config"
        for refusal, error in refused(side.label, config, run.case(side)):
            yield error, not (refusal.versions and run.engine == UNKNOWN)
    for problem in lora_problems(run.lora, run.student.config, run.student.sizes, run.starts):
        yield problem, True


def layout_problems(run: RunSpec) -> Iterator[InputError]:
    """Everything that does not divide, as far as sizes are known."""
    yield from _found(layout.check_virtual, run.virtual)
    if run.processes is not None:
        for side in run.sides:
            yield from _found(layout.check_processes, side.label, side.sizes, run.processes, side.where)
        if run.data_parallel:
            yield from _found(layout.check_batches, run.global_batch, run.micro_batch, run.data_parallel)
    own, tensor = run.student, run.student.sizes.tensor
    experts = own.config.get("num_moe_experts")
    yield from _found(layout.check_experts, own.label, experts, tensor, run.sequence_parallel)
    for side in run.sides:
        if all(side.config.get(name) for name in ("num_layers", "num_attention_heads")):
            yield from _found(_check_divisible, side)
        ranks = side.sizes.tensor if run.sequence_parallel else 1
        yield from _found(layout.check_length, side.label, side.length, side.length_name, side.sizes.context, ranks)
        if side.own.get(AHEAD):
            side_experts = side.config.get("num_moe_experts")
            yield from _found(layout.check_ahead, side.label, side.where, side.sizes, own.sizes, side_experts)


def _check_divisible(side: ModelSpec) -> None:
    config = side.config
    heads, layers = config["num_attention_heads"], config["num_layers"]
    layout.check_divisible(
        side.label, heads, config.get("num_query_groups"), layers, config.get("num_moe_experts"), side.sizes
    )


def row_problems(run: RunSpec, sides: Iterable[ModelSpec] | None = None) -> Iterator[InputError]:
    """Output layers that have too few rows for a tokenizer that is known, or whose rows do not divide.

    Args:
        sides: some of its models; None: all.
    """
    for side in run.sides if sides is None else sides:
        if side.ids is not None:
            rows = side.config.get("vocab_size")
            where = side.rows_name or side.path or side.where
            yield from _found(layout.check_rows, side.label, rows, side.ids, where, side.sizes.tensor, run.rows_fix)


def _found(check: Callable[..., None], *arguments: Any) -> Iterator[InputError]:
    try:
        check(*arguments)
    except InputError as error:
        yield error


def check_settings(settings: Settings, processes: int | None) -> None:
    """Names, kinds and ranges of values, and the layout: all that can be told without a checkpoint's weights or data.

    A value whose check needs a missing package is left to the run.

    Args:
        processes: of the run; None: not known yet.

    Raises:
        InputError: the first thing that is wrong.
    """
    for problem in check_content(settings.content):
        raise problem
    for _, check in value_checks(settings):
        try:
            check()
        except ImportError:
            continue
    if settings.part("data"):
        check_run(run_of(settings, processes))


def left_to_the_user(paths: Mapping[str, tuple[str, Any]], text: Any) -> dict[str, str]:
    """What a recipe leaves to the user and the user has left out: its name on the command line, and what it is.

    Args:
        paths: what else than text it leaves to the user, by name: what that is, and its value.
        text: the settings of the text.
    """
    missing = {name: what for name, (what, value) in paths.items() if not value}
    if not (text.paths or text.sources):
        missing["data.text.paths"] = "the text"
    return missing


def not_set(missing: Mapping[str, str], expected: str, first: str = "") -> InputError:
    """The error that names all of `left_to_the_user` at once.

    Args:
        expected: what these are.
        first: what to do before they can be named.
    """
    return InputError(
        f"not set: {', '.join(f'{name} ({what})' for name, what in missing.items())}",
        expected,
        f"{first and first + '; then '}add {' '.join(f'{name}=PATH' for name in missing)}",
    )
