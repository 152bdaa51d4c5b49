"""``xtoken import``: a Hugging Face checkpoint as a NeMo 2 checkpoint.  And what `export` has in common with it."""

import importlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from nemo_xtoken.commands.verb import Option, Verb
from nemo_xtoken.environment import unloadable_nemo
from nemo_xtoken.errors import InputError
from nemo_xtoken.progress import Phase
from nemo_xtoken.weights.checkpoint_names import bridge_checkpoints, is_bridge_checkpoint
from nemo_xtoken.weights.dtypes import FLOATS

__all__ = ["DTYPE", "OVERWRITE", "TRUST", "VERB", "converted"]

DTYPE = Option(
    "dtype",
    "type of the weights written; by default that of the weights read",
    choices=tuple(FLOATS.values()),
)
TRUST = Option("trust", "run code that a checkpoint brings; only of somebody you trust", bool, default=False)
OVERWRITE = Option("overwrite", "replace a checkpoint at out=", bool, default=False)


def converted(function: str, **arguments: Any) -> Any:
    """Calls a function of the installed framework's ``conversion`` and shows what it is doing.

    Raises:
        InputError: what the function raises, and that there is no framework that has it.
    """
    from nemo_xtoken.commands.terminal import Terminal, wants_verbose  # loads rich, which listing the verbs needs not

    with Terminal(wants_verbose([], os.environ)) as terminal, _Stages() as stages:
        try:
            with terminal.captured():
                stages.begin("loading NeMo or Megatron-Bridge")
                return _function(function, arguments.get("run"))(say=stages.begin, **arguments)
        except (InputError, ModuleNotFoundError):
            raise
        except Exception:
            terminal.show_log()
            raise


def _function(name: str, run: str | None) -> Callable[..., Any]:
    """Megatron-Bridge's, where a run of its own is to be converted; else NeMo 2's."""
    bridge = run is not None and bool(bridge_checkpoints(Path(run).expanduser()) or is_bridge_checkpoint(Path(run)))
    module = "bridge.bridge_conversion" if bridge else "nemo2.conversion"
    try:
        return getattr(importlib.import_module(f"nemo_xtoken.plugin.{module}"), name)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] in ("nemo_xtoken", "transformers", "safetensors"):
            raise
        if bridge:
            raise InputError(
                f"Megatron-Bridge cannot be loaded here ({error}), and {run} is a run of it",
                "megatron-bridge",
                "use an image that has it; `xtoken env` says what is there",
            ) from error
        also = "; Megatron-Bridge takes models in Hugging Face's format as they are" if name == "import_model" else ""
        raise InputError(
            f"NeMo 2 cannot be loaded here ({error})",
            "nemo-toolkit 2.6 or 2.7 with megatron-core",
            f"pip install 'nemo_xtoken[nemo]', or use an image that has them; `xtoken env` says what is there{also}",
        ) from error
    except Exception as error:
        raise unloadable_nemo(error) from error


class _Stages:
    """One phase after the other."""

    def __init__(self) -> None:
        self._phase: Phase | None = None

    def begin(self, title: str) -> None:
        if self._phase is not None:
            self._phase.end()
        self._phase = Phase(title).begin()

    def __enter__(self) -> "_Stages":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        if self._phase is not None:
            self._phase.end() if kind is None else self._phase.fail()


def _run(arguments: Mapping[str, Any]) -> int:
    print(f"saved in {converted('import_model', **arguments)}")
    return 0


VERB = Verb(
    name="import",
    summary="make a NeMo 2 checkpoint of a Hugging Face model (loads NeMo)",
    description=(
        "Converts a checkpoint in Hugging Face's format (Llama 2 and 3.x, Mistral, Qwen 2.5, Qwen 3, Phi-3 and "
        "Phi-4-mini, Gemma 3, gpt-oss) for a student (resume.restore_config.path) or a teacher (teacher.path). Its "
        "tokenizer becomes a part of the checkpoint, so that nothing else has to be kept; the vocabulary is rounded "
        "up so that every usual layout divides it. One process, no GPU, as much memory as the model has weights; any "
        "layout can load the result."
    ),
    options=(
        Option("model", "a folder in Hugging Face's format, or a hub name", required=True),
        Option("out", "the folder to write", required=True, writes="folder"),
        DTYPE,
        OVERWRITE,
    ),
    examples=(
        ("import model=models/Qwen3-4B out=nemo/qwen3-4b", "a folder"),
        ("import model=meta-llama/Llama-3.2-1B out=nemo/llama-1b", "from the hub, or its cache"),
    ),
    run=_run,
)
