"""Whether a model is where it should be, and is the one that the settings describe."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from nemo_xtoken.hub import is_hub_name
from nemo_xtoken.preflight.findings import Finding, green, left_out, red, yellow
from nemo_xtoken.preflight.plan import Plan
from nemo_xtoken.run.arguments.signatures import class_defaults
from nemo_xtoken.run.sides import checkpoint_config
from nemo_xtoken.run.spec import ModelSpec, differences

__all__ = ["architecture"]


def architecture(plan: Plan, side: ModelSpec) -> Iterator[Finding]:
    """Checkpoint, sizes, and the positions that it was trained on."""
    if side.problem is not None:
        yield red(side.label, side.problem)
    if side.model is None and not side.known:
        if side.problem is None:
            made = side.path is None and side.label != "student"
            if made:
                yield left_out(side.label, "the recipe trains it itself")
            elif side.path and is_hub_name(side.path) and not Path(side.path).exists():
                yield left_out(
                    side.label, f"the architecture of {side.path} is on the hub", "name a folder that has it"
                )
            else:
                why = f"its architecture is not known from {side.config_from}"
                yield left_out(side.label, why, "with NeMo installed here its class says it")
        return
    where = f"in {side.path}" if side.path and side.problem is None else f"by {side.config_from}"
    config = side.config
    where += f", the language model of a {config['inside']}" if config.get("inside") else ""
    experts = f", {config['num_moe_experts']} experts" if config.get("num_moe_experts") else ""
    if side.problem is None:
        yield green(
            side.label,
            f"{config['num_layers']} layers of {config['hidden_size']}{experts}, {where}",
        )
    yield from _as_given(side)
    trained = config.get("seq_length")
    if side.problem is None and side.path and trained and side.length > trained:
        yield yellow(
            side.label,
            f"sequences of {side.length} positions for a model that was made for {trained}",
            f"at most {trained}",
            f"lower {side.length_name}, unless the model takes more than its configuration says",
        )


def _as_given(side: ModelSpec) -> Iterator[Finding]:
    """A student that starts from a checkpoint has its architecture, by what the run sets and its class."""
    if side.path is None or side.problem is not None:
        return
    own = class_defaults(str(side.given.get("_target_", ""))) | dict(side.given)
    theirs = checkpoint_config(side.path)
    problem = differences(_numbers(own), _numbers(theirs), side.path)
    if problem is not None:
        yield red(side.label, problem)


def _numbers(config: Mapping[str, Any]) -> dict[str, Any]:
    """Those that are set: what is None follows from others, which the class does when it is made."""
    return {name: value for name, value in config.items() if isinstance(value, int | float | str)}
