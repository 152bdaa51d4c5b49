"""What ``nemo llm distill`` loads: the recipes as factories, and the option ``--recipe``.

Loaded by nemo_run through the entry point ``llm`` of group ``nemo_run.cli``.  Where NeMo 2 is installed, its own
``distill`` command stays and only its run context becomes :class:`RecipeRunContext`, so everything that it could do
still works; elsewhere the command is registered here, and recipes run with Megatron-Bridge where that is installed.
"""

import contextlib
import gc
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

import nemo_run as run
from rich.markup import escape

import nemo_xtoken.commands.nemo_cli_light  # noqa: F401  (first: `nemo xtoken VERB` runs there and needs nothing of the below)
from nemo_xtoken.commands.cli import report_error
from nemo_xtoken.commands.output_log import OutputLog
from nemo_xtoken.commands.run_context import RecipeRunContext
from nemo_xtoken.commands.terminal import wants_verbose
from nemo_xtoken.environment import find_stack, unloadable_nemo
from nemo_xtoken.errors import InputError
from nemo_xtoken.recipes import Recipe, available_recipes, describe_recipes

__all__ = ["HOST", "distill"]

HELP = """Distil a teacher into a student, also one with another tokenizer.

Start from a recipe and change what you like:

    nemo llm distill --recipe NAME trainer.max_steps=20

The recipes (`--list-recipes` prints this list alone):

{recipes}

`--dryrun` shows the run without starting it; `--to-yaml run.yaml` writes it to a file and `--yaml run.yaml` runs that
file, with further changes after it. `--factory NAME` is the same as `--recipe NAME`.
"""

SETTINGS = """The settings of a run to begin with, as the recipe xtoken has them. `xtoken settings` lists all of them,
`xtoken settings WORD` those with a word in their name.
"""
#: Settings to begin with that a recipe leaves at their defaults.
FIRST = ("teacher.path", "teacher.weight", "teacher.chunks.temperature", "objective.scale")


def distill(recipe: str = "") -> None:
    """Distil a teacher into a student, also one with another tokenizer."""
    raise InputError(
        f"a distillation without a configured run (recipe={recipe!r})",
        "a recipe that this installation can run",
        "`nemo llm distill --list-recipes` names them; they need NeMo 2 (pip install 'nemo_xtoken[nemo]') or "
        "Megatron-Bridge, in NVIDIA's containers since 26.04",
    )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """What the import prints is kept for a run's log."""
    if wants_verbose(sys.argv, os.environ):
        yield
        return
    log = OutputLog()
    waiting = log.err.isatty()
    if waiting:
        print("loading NeMo ..", end="", file=log.err, flush=True)
    try:
        with log.active_as(True):
            yield
    finally:
        if waiting:
            print("\r\x1b[K", end="", file=log.err, flush=True)
        RecipeRunContext.import_output = log.path.read_text("utf-8", "replace")
        log.close(keep=False)


@contextlib.contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Imports make many lasting objects; not looking through them again and again saves a third of NeMo's import."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if enabled:
            gc.enable()


def _host() -> Any:
    """The function that owns ``nemo llm distill``: NeMo 2's where installed, else the one here.

    Raises:
        SystemExit: with status 2, where this process is that command and NeMo 2 is installed and cannot be loaded.
    """
    try:
        with _quiet(), _no_garbage_collection():
            from nemo.collections import llm
    except Exception as error:
        # NeMo 3 and the images that follow have no such package; anything else is a broken installation.
        absent = ("nemo", "nemo.collections", "nemo.collections.llm")
        if not (isinstance(error, ModuleNotFoundError) and error.name in absent):
            report_error(str(unloadable_nemo(error)))
            # Now, since nemo_run imports NeMo again; that may succeed, with modules left half-made by the first
            # time, and NeMo's own `distill` then answers, which knows no recipes.
            if "nemo_run.__main__" in sys.modules and sys.argv[1:3] == ["llm", "distill"]:
                raise SystemExit(2) from error
    else:
        return llm.distill
    return run.cli.entrypoint(name="distill", namespace="llm")(distill)


def _register(host: Callable[..., Any], recipe: Recipe) -> None:
    """Makes a recipe a factory of ``host`` without importing it."""

    def load(**arguments: Any) -> run.Partial:
        if host is distill and recipe.ours and recipe.yaml is not None:  # and no NeMo 2
            return _under_bridge(recipe, **arguments)
        return recipe.load()(**arguments)

    load.__name__, load.__doc__ = recipe.name, recipe.summary
    run.cli.factory(target=host, name=recipe.name)(load)


def _under_bridge(recipe: Recipe, nodes: int | None = None) -> run.Partial:
    """A recipe's settings for Megatron-Bridge.

    Args:
        nodes: of 8 GPUs, where the recipe has layouts; None: the job's.

    Raises:
        InputError: Megatron-Bridge is not installed, or the recipe needs NeMo 2.
    """
    stack = find_stack()
    if stack["Megatron-Bridge"].version is None:
        found = f"NeMo {stack['NeMo'].remark or 'is absent'}, Megatron-Bridge is absent"
        raise InputError(
            f"nothing to train with: {found}",
            "NeMo 2 (nemo-toolkit 2.6 or 2.7, with nemo.collections.llm) or Megatron-Bridge 0.4 and later",
            "pip install 'nemo_xtoken[nemo]', or use an NVIDIA NeMo container (`xtoken env` says what is installed)",
        )
    from nemo_xtoken.launch.ranks import job_nodes
    from nemo_xtoken.plugin.bridge.recipe import from_nemo2
    from nemo_xtoken.run.settings import Settings

    assert recipe.yaml is not None
    settings = Settings.read(recipe.yaml)
    if recipe.layouts:
        settings.lay_out(job_nodes(os.environ) if nodes is None else nodes, recipe.layouts)
    elif nodes is not None:
        raise InputError(f"{recipe.name}(nodes={nodes})", "no argument: it has one layout", "leave it out")
    return from_nemo2(settings.content, recipe.name)


def _show_settings(console: Any, with_docs: bool = True) -> None:
    """In place of the arguments of the function that owns the command: a run's own, those that the recipe sets."""
    from nemo_xtoken.commands.run_settings import read_settings
    from nemo_xtoken.commands.verbs.settings import settings_text
    from nemo_xtoken.preflight.fitting import left_open
    from nemo_xtoken.run.arguments.settings_list import settings_of

    recipes = available_recipes()
    settings = read_settings(recipes["xtoken"], None, (), None)
    found = settings_of(settings.content)
    first = [s for s in found if s.ours and (s.recipe is not None or "." not in s.name or s.name in FIRST)]
    console.print(
        SETTINGS, settings_text(first, left_open(settings)), sep="\n", markup=False, highlight=False, soft_wrap=True
    )


HOST = _host()
_entrypoint = HOST.cli_entrypoint
_entrypoint.run_ctx_cls = RecipeRunContext
_entrypoint.help = _show_settings
_entrypoint.help_str = HELP.format(recipes=escape(describe_recipes()))
for _recipe in available_recipes().values():
    _register(HOST, _recipe)
