"""Whether a model is where it should be, and is the one that the settings describe."""

from collections.abc import Iterator

from nemo_xtoken.errors import InputError
from nemo_xtoken.preflight.findings import Finding, green, left_out, red, yellow
from nemo_xtoken.preflight.plan import Plan
from nemo_xtoken.run.classes import class_defaults
from nemo_xtoken.run.sides import Side, checkpoint_config

__all__ = ["architecture"]

#: What makes the same weights another model, and a preflight can compare: numbers that a run sets itself.
COMPARED = (
    "num_layers", "hidden_size", "ffn_hidden_size", "num_attention_heads", "num_query_groups", "kv_channels",
    "share_embeddings_and_output_weights", "rotary_base", "num_moe_experts", "moe_router_topk",
)  # fmt: skip


def architecture(plan: Plan, side: Side) -> Iterator[Finding]:
    """Checkpoint, sizes, and the positions that it was trained on."""
    if side.problem is not None:
        yield red(side.label, side.problem)
    if side.model is None and not side.known:
        if side.problem is None:
            made = side.path is None and side.label != "student"
            why = "the recipe trains it itself" if made else f"its architecture is not known from {side.config_from}"
            yield left_out(side.label, why, "" if made else "with NeMo installed here its class says it")
        return
    where = f"in {side.path}" if side.path and side.problem is None else f"by {side.config_from}"
    config = side.config
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


def _as_given(side: Side) -> Iterator[Finding]:
    """A student that starts from a checkpoint has its architecture, by what the run sets and its class."""
    if side.path is None or side.problem is not None:
        return
    own, theirs = class_defaults(str(side.given.get("_target_", ""))) | side.given, checkpoint_config(side.path)
    differences = {
        name: (own[name], theirs[name])
        for name in COMPARED
        if own.get(name) is not None and theirs.get(name) is not None and own[name] != theirs[name]
    }
    if differences:
        found = ", ".join(f"{name} {own} where it has {its}" for name, (own, its) in differences.items())
        yield red(
            side.label,
            InputError(
                f"the {side.label} is to start from {side.path}, and has another architecture: {found}",
                "the architecture of the checkpoint",
                f"fix {side.path_name}, or set "
                + " ".join(f"model.config.{name}={its}" for name, (_, its) in differences.items()),
            ),
        )
