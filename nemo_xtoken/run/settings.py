"""A run's settings as plain data: the YAML of its recipe with the overrides of the command line."""

import ast
import importlib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from nemo_xtoken.errors import InputError
from nemo_xtoken.run.renamed_paths import current_path

__all__ = ["Settings", "resolved"]

#: What ``distill`` takes, beside what a recipe of its own adds.
ARGUMENTS = ("model", "data", "trainer", "teacher", "objective", "optim", "log", "resume", "teachers")
#: Values that are functions, which the run calls; those below are light and belong to this package.
LIGHT = "nemo_xtoken.recipes.tiny_text."
_WORDS = {"true": True, "false": False, "null": None, "none": None}


class Settings:
    """What a run is configured with.  Names that are not there have the defaults of the classes they belong to.

    Args:
        content: nested dictionaries with ``_target_``, as ``--to-yaml`` writes them.
        source: whence, for messages.
    """

    def __init__(self, content: dict[str, Any], source: str) -> None:
        self.content, self.source = content, source

    @classmethod
    def read(cls, path: Path, overrides: Iterable[str] = ()) -> "Settings":
        """From a file, with overrides ``a.b.c=value`` as ``nemo llm distill`` takes them.

        Raises:
            InputError: no such file, no run in it, or an override that cannot be read.
        """
        try:
            content = yaml.safe_load(path.read_text("utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise InputError(f"{path} cannot be read ({error})", "the YAML file of a run", "fix the path") from error
        if not isinstance(content, dict) or "_target_" not in content:
            raise InputError(
                f"{path} holds no run", "a file from `nemo llm distill .. --to-yaml FILE.yaml`", "write it by that"
            )
        settings = cls(content, str(path))
        for override in overrides:
            settings.override(override)
        return settings

    def override(self, word: str) -> None:
        """Sets one value; a name on the way that is not there is made."""
        name, equals, text = word.partition("=")
        if not equals or re.search(r"[*+\-/|&]$", name):
            raise InputError(f"{word!r}", "key=value", "write the value itself: trainer.max_steps=20")
        first = name.partition(".")[0]
        if first not in {*ARGUMENTS, *self.content}:
            known = ", ".join(sorted({*ARGUMENTS, *self.content} - {"_target_", "_partial_"}))
            raise InputError(f"there is no argument {first!r} in the run ({word})", f"one of {known}", "correct it")
        self._set(name, _value(text))

    def _set(self, name: str, value: Any) -> None:
        *path, last = name.split(".")
        at = self.content
        for part in path:
            if not isinstance(at.get(part), dict):
                at[part] = {}
            at = at[part]
        at[last] = value

    def get(self, name: str, default: Any = None) -> Any:
        """The value at ``a.b.c``; ``default`` where it is not set, or None."""
        at: Any = self.content
        for part in name.split("."):
            if not isinstance(at, Mapping) or at.get(part) is None:
                return default
            at = at[part]
        return at

    def part(self, name: str) -> dict[str, Any]:
        """The settings below ``a.b.c``; empty where there are none."""
        found = self.get(name)
        return dict(found) if isinstance(found, Mapping) else {}

    def number(self, name: str, default: Any = None) -> Any:
        """A whole number.

        Raises:
            InputError: something else.
        """
        found = self.get(name, default)
        if found is not None and (isinstance(found, bool) or not isinstance(found, int)):
            raise InputError(f"{name}={found!r}", "a whole number", "correct it")
        return found

    def lay_out(self, nodes: int, layouts: Mapping[int, Mapping[str, int]]) -> None:
        """Gives the run so many nodes, and the layout that its recipe has for them.

        Args:
            layouts: by number of nodes, what differs from `recipes.common.Layout`'s defaults; empty: none of its own.
        """
        self._set("trainer.num_nodes", nodes)
        if not layouts:
            return
        layout = layouts[max(number for number in layouts if number <= nodes)]
        tensor = layout.get("tensor", 1)
        for name, value in {
            "tensor_model_parallel_size": tensor,
            "pipeline_model_parallel_size": layout.get("pipeline", 1),
            "context_parallel_size": layout.get("context", 1),
            "sequence_parallel": tensor > 1,
        }.items():
            self._set(f"trainer.strategy.{name}", value)
        self._set("data.micro_batch_size", layout.get("micro_batch", 1))

    @property
    def target(self) -> str:
        """The full name of the function that runs."""
        return current_path(str(self.content["_target_"]))

    @property
    def makes_its_teacher(self) -> bool:
        """Whether a teacher without a path is trained by the run itself, which is a function of the recipe's own."""
        return not self.target.endswith((".distill.distill", ".distill_bridge.distill"))

    def teachers(self) -> dict[str, dict[str, Any]]:
        """Settings of those that are to teach, by what each is called on the command line, as `distill` picks them."""
        if self.get("objective.scale", "dynamic") == 0:
            return {}
        several = {k: v for k, v in self.part("teachers").items() if k != "_target_" and isinstance(v, Mapping)}
        found = {f"teachers.{name}": dict(config) for name, config in several.items()}
        alone = self.get("teacher")
        if isinstance(alone, Mapping) and (alone.get("path") is not None or not found):
            return {"teacher": dict(alone), **found}
        return found


def resolved(value: Any) -> Any:
    """A value that is a light function of this package's is called; other functions are None: the run calls them."""
    if isinstance(value, list):
        return [resolved(item) for item in value]
    if not isinstance(value, Mapping) or "_target_" not in value:
        return value
    target = str(value["_target_"])
    if not target.startswith(LIGHT):
        return None
    function = getattr(importlib.import_module(target.rpartition(".")[0]), target.rpartition(".")[2])
    return function(**{k: v for k, v in value.items() if not k.startswith("_")})


def _value(text: str) -> Any:
    """As nemo_run reads it: a Python literal, a word for none, true or false, or text."""
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
