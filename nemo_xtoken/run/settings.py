"""A run's settings as plain data: the YAML of its recipe with the overrides of the command line."""

import importlib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from nemo_xtoken.errors import InputError
from nemo_xtoken.files import at_home
from nemo_xtoken.run.arguments.kinds import ANYTHING, read_word
from nemo_xtoken.run.arguments.names import argument_at
from nemo_xtoken.run.arguments.short_names import in_full
from nemo_xtoken.run.node_layouts import Layout, choose_layout
from nemo_xtoken.run.renamed_paths import current_path
from nemo_xtoken.run.teaching import teaching
from nemo_xtoken.run.yaml_file import read_yaml

__all__ = ["Settings", "resolved"]

#: Values that are functions, which the run calls; those below are light and belong to this package.
LIGHT = "nemo_xtoken.recipes.tiny_text."
_OPERATOR = re.compile(r"[*+\-/|&]$")


class Settings:
    """What a run is configured with.  Names that are not there have the defaults of the classes they belong to.

    Args:
        content: nested dictionaries with ``_target_``, as ``--to-yaml`` writes them.
        source: where it came from, for error messages.
    """

    def __init__(self, content: dict[str, Any], source: str) -> None:
        self.content, self.source = content, source

    @classmethod
    def read(cls, path: Path, overrides: Iterable[str] = ()) -> "Settings":
        """From a file, with overrides ``a.b.c=value`` as ``nemo llm distill`` takes them.

        Raises:
            InputError: no such file, no run in it, or an override that does not fit it.
        """
        content = read_yaml(path)
        if not isinstance(content, dict) or "_target_" not in content:
            raise InputError(
                f"{path} holds no run", "a file from `nemo llm distill .. --to-yaml FILE.yaml`", "write it by that"
            )
        settings = cls(content, str(path))
        for override in overrides:
            settings.override(override)
        return settings

    def override(self, word: str) -> None:
        """Sets one value, by its name or a short one; what an argument of this package's leaves out on the way is made.

        Raises:
            InputError: not ``key=value``, an unknown argument, or a value of another type.
        """
        name, equals, _ = word.partition("=")
        if not equals or _OPERATOR.search(name):
            raise InputError(f"{word!r}", "key=value", "write the value itself: trainer.max_steps=20")
        word = in_full(self.content, word)
        self.set(word.partition("=")[0], self.judged(word))

    def judged(self, word: str) -> Any:
        """The value of an override, after its name and its kind have been checked.

        Raises:
            InputError: an unknown argument, or a value of another type.
        """
        name, _, text = word.partition("=")
        argument = argument_at(self.content, _OPERATOR.sub("", name), word)
        kind = argument.kind if argument is not None else ANYTHING
        try:
            return read_word(text, kind)
        except ValueError:
            raise InputError(f"{name}={text!r}", str(kind), f"correct {word}") from None

    def set(self, name: str, value: Any) -> None:
        """Sets the value at ``a.b.c``."""
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

    def lay_out(self, nodes: int | None, layouts: Mapping[int, Mapping[str, int]]) -> None:
        """Gives the run so many nodes, and the layout that its recipe has for them.

        Args:
            nodes: None: as many as it says.
            layouts: of its recipe, the arguments of `Layout` by number of nodes; empty: none of its own.

        Raises:
            InputError: less than one node.
        """
        if nodes is None:
            nodes = self.number("trainer.num_nodes", 1)
        self.set("trainer.num_nodes", nodes)
        if layouts:
            layout = choose_layout(nodes, {number: Layout(**sizes) for number, sizes in layouts.items()})
            for name, size in layout.strategy.items():
                self.set(f"trainer.strategy.{name}", size)
            self.set("data.micro_batch_size", layout.micro_batch)

    @property
    def target(self) -> str:
        """The full name of the function that runs."""
        return current_path(str(self.content["_target_"]))

    @property
    def under_bridge(self) -> bool:
        """Whether Megatron-Bridge trains it; else NeMo 2 does."""
        return self.target.startswith(("nemo_xtoken.plugin.bridge.", "nemo_xtoken.recipes.tiny_bridge."))

    @property
    def any_pair(self) -> bool:
        """Whether the student's architecture is that of the model it starts from, which the run imports."""
        return self.get("student") is not None or (self.get("model") is None and "student" in self.content)

    @property
    def swaps(self) -> bool:
        """Whether the student is made of its teacher: with another tokenizer, and with fewer layers where some are left
        out."""
        return self.target.endswith("swap.swap_tokenizer")

    @property
    def makes_its_teacher(self) -> bool:
        """Whether a teacher without a path is trained by the run itself, which is a function of the recipe's own."""
        return not self.target.endswith((".distill.distill", ".distill_bridge.distill"))

    @property
    def run_folder(self) -> Path | None:
        """Where the run writes; None where it says nothing of that."""
        log = self.part("log")
        if not log:
            return None
        folder = Path(log.get("log_dir") or "nemo_experiments") / str(log.get("name") or "default")
        return Path(at_home(str(log.get("explicit_log_dir") or folder)))

    def teachers(self) -> dict[str, dict[str, Any]]:
        """Settings of those that are to teach, by what each is called on the command line."""
        if self.get("objective.scale", "dynamic") == 0:
            return {}
        several = {k: v for k, v in self.part("teachers").items() if k != "_target_" and isinstance(v, Mapping)}
        given = self.get("teacher")
        one = given if isinstance(given, Mapping) else None
        return {where: dict(config) for where, config in teaching(one, several, lambda c: c.get("path")).items()}


def resolved(value: Any) -> Any:
    """A value that is a light function of this package's is called; other functions, which the run calls, and those
    that need a missing package are None."""
    if isinstance(value, list):
        return [resolved(item) for item in value]
    if not isinstance(value, Mapping) or "_target_" not in value:
        return value
    target = str(value["_target_"])
    if not target.startswith(LIGHT):
        return None
    module, _, name = target.rpartition(".")
    try:
        function = getattr(importlib.import_module(module), name)
        return function(**{k: v for k, v in value.items() if not k.startswith("_")})
    except ImportError:
        return None
