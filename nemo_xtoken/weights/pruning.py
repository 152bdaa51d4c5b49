"""A model with fewer of its layers, its width kept: a student that is smaller than the teacher it comes from."""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemo_xtoken.errors import InputError
from nemo_xtoken.vocab.loading import load_vocabulary
from nemo_xtoken.weights.chosen import LAYERS, chosen_layers
from nemo_xtoken.weights.configuration import writer_version
from nemo_xtoken.weights.folder import ModelFolder, new_folder, read_json, write_json
from nemo_xtoken.weights.rotary import classic_rotary
from nemo_xtoken.weights.shards import save_weights
from nemo_xtoken.weights.tokenizer_files import copy_tokenizer

__all__ = ["LAYERS", "Pruned", "chosen_layers", "prune"]

_DENSE = "mlp_only_layers"  # their numbers
_NUMBERED = re.compile(r"(.*?\.)(\d+)(\..*)", re.DOTALL)


@dataclass(frozen=True)
class Pruned:
    """What `prune` did.

    Attributes:
        out: the new checkpoint.
        layers: those kept, by their old numbers.
        of: how many there were.
        parameters, old_parameters: numbers in the checkpoints' files.
    """

    out: Path
    layers: tuple[int, ...]
    of: int
    parameters: int
    old_parameters: int


def prune(
    model: str | Path,
    layers: str,
    out: str | Path,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Pruned:
    """Writes ``model`` with some of its layers into ``out``.  Memory: a piece of a tensor, whatever the model's size.

    Args:
        model: a checkpoint in Hugging Face's format with its tokenizer; a folder or a hub name.
        layers: which to keep, see `chosen_layers`.
        out: the folder to write; it is whole or absent.
        overwrite: replace a checkpoint at ``out``.
        progress: called with (bytes written, bytes in all).

    Raises:
        InputError: ``model`` cannot be read, its layers are not found or cannot be left out, or ``out`` exists.
    """
    source, out = ModelFolder(model), Path(out)
    number = source.text_config.get("num_hidden_layers")
    if type(number) is not int or number < 1:
        raise InputError(
            f"{source.name}: num_hidden_layers {number} in config.json", "the number of its layers",
            "use a causal language model in Hugging Face's format",
        )  # fmt: skip
    kept = chosen_layers(layers, number)
    _check_kinds(source, kept, number)
    names = _new_names(source, kept, number)
    entries = {name: source.files[file].entry(name) for name, file in source.where.items()}
    stay = {new: entries[old] for old, new in names.items()}
    with new_folder(out, overwrite) as folder:
        copy_tokenizer(source.path, folder, load_vocabulary(str(source.path)))
        save_weights(folder, stay, progress=progress)
        _write_configs(source, folder, kept, number)
    sizes = [sum(math.prod(entry.shape) for entry in side.values()) for side in (stay, entries)]
    return Pruned(out, kept, number, *sizes)


def _new_names(source: ModelFolder, kept: tuple[int, ...], number: int) -> dict[str, str]:
    """The tensors that stay, by their names, and what they are called then."""
    parts = {name: match for name in source.where if (match := _NUMBERED.fullmatch(name))}
    found: dict[str, set[int]] = {}
    for match in parts.values():
        found.setdefault(match[1], set()).add(int(match[2]))
    stacks = [stack for stack, numbers in found.items() if numbers == set(range(number))]
    if len(stacks) != 1:
        what = ", ".join(f"{stack}0 to {max(numbers)}" for stack, numbers in sorted(found.items())[:3]) or "none"
        raise InputError(
            f"{source.name}: {what} of tensors with a number, {number} layers in config.json",
            f"one stack of layers, 0 to {number - 1}", "this architecture is not supported",
        )  # fmt: skip
    place = {old: new for new, old in enumerate(kept)}
    names = {}
    for name in source.where:
        match = parts.get(name)
        if match is None or match[1] != stacks[0]:
            names[name] = name
        elif int(match[2]) in place:
            names[name] = f"{match[1]}{place[int(match[2])]}{match[3]}"
    return names


def _by_layer(key: str, value: Any, number: int) -> bool:
    """Whether an entry of a configuration has a value for each layer."""
    return "layer" in key and key != _DENSE and isinstance(value, list) and len(value) == number


def _kinds(config: Mapping[str, Any], number: int) -> list[tuple[Any, ...]]:
    """What tells a layer from the others of its model, by its place."""
    lists = [value for key, value in sorted(config.items()) if _by_layer(key, value, number)]
    named = [config.get(key) for key in ("sliding_window_pattern", "decoder_sparse_step", "no_rope_layer_interval")]
    steps = [step for step in named if isinstance(step, int) and step > 1]
    first_experts, dense = config.get("first_k_dense_replace") or 0, config.get(_DENSE) or ()
    first_window = config.get("max_window_layers") if config.get("use_sliding_window") else None
    first_window = number if type(first_window) is not int else first_window
    return [
        (
            *(value[place] for value in lists),
            *((place + 1) % step == 0 for step in steps),
            place < first_experts,
            place in dense,
            place < first_window,
        )
        for place in range(number)
    ]


def _check_kinds(source: ModelFolder, kept: tuple[int, ...], number: int) -> None:
    """
    Raises:
        InputError: a layer would come to a place where its architecture has one of another kind.
    """
    kinds = _kinds(source.text_config, number)
    moved = [(old, new) for new, old in enumerate(kept) if kinds[old] != kinds[new]]
    if moved:
        old, new = moved[0]
        fits = ",".join(str(layer) for layer in _fitting(kinds, len(kept)))
        raise InputError(
            f"{source.name}: layer {old} would be at the place of layer {new}, which is of another kind "
            "(attention, experts or positions)",
            "layers of the kinds that the model has at its beginning, in their order",
            f"choose others, for example layers={fits}",
        )


def _fitting(kinds: list[tuple[Any, ...]], count: int) -> list[int]:
    """So many layers of the kinds of the first ones, as late as they can be."""
    found: list[int] = []
    end = len(kinds)
    for place in reversed(range(count)):
        end = max(layer for layer in range(place, end) if kinds[layer] == kinds[place])
        found.append(end)
    return found[::-1]


def _write_configs(source: ModelFolder, folder: Path, kept: tuple[int, ...], number: int) -> None:
    def pruned(config: Mapping[str, Any]) -> dict[str, Any]:
        own = {key: config[key] for key in config if key != "num_hidden_layers"}
        for key, value in own.items():
            if _by_layer(key, value, number):
                own[key] = [value[layer] for layer in kept]
            elif key == _DENSE and value:
                own[key] = [new for new, old in enumerate(kept) if old in value]
            elif key == "max_window_layers" and type(value) is int:
                own[key] = min(value, len(kept))
        return classic_rotary({**own, "num_hidden_layers": len(kept)}, str(source.path / "config.json"))

    config = dict(source.config)
    if isinstance(config.get("text_config"), dict):
        config["text_config"] = pruned(config["text_config"])
    else:
        config = pruned(config)
    if "transformers_version" in config:
        config["transformers_version"] = writer_version(str(config.get("model_type")))
    write_json(folder / "config.json", config)
    if generation := read_json(source.path / "generation_config.json"):
        write_json(folder / "generation_config.json", generation)
