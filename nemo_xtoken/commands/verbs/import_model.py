"""``xtoken import``: a Hugging Face checkpoint as a NeMo 2 checkpoint.  And what `export` has in common with it."""

import importlib
import os
from collections.abc import Callable, Mapping
from typing import Any

from nemo_xtoken.commands.verb import Option, Verb
from nemo_xtoken.environment import unloadable_nemo
from nemo_xtoken.errors import InputError
from nemo_xtoken.progress import Phase
from nemo_xtoken.weights.dtypes import FLOATS

__all__ = ["DTYPE", "OVERWRITE", "VERB", "converted"]

DTYPE = Option(
    "dtype",
    "type of the weights written; by default that of the weights read",
    choices=tuple(FLOATS.values()),
)
OVERWRITE = Option("overwrite", "replace a checkpoint at out=", bool, default=False)


def converted(function: str, **arguments: Any) -> Any:
    """Calls a function of `nemo_xtoken.plugin.nemo2.conversion` and shows what it is doing.

    Raises:
        InputError: what the function raises, and that there is no NeMo 2.
    """
    from nemo_xtoken.commands.terminal import Terminal, wants_verbose  # loads rich, which listing the verbs needs not

    with Terminal(wants_verbose([], os.environ)) as terminal, _Stages() as stages:
        try:
            with terminal.captured():
                stages.begin("loading NeMo")
                return _function(function)(say=stages.begin, **arguments)
        except InputError:
            raise
        except Exception:
            terminal.show_log()
            raise


def _function(name: str) -> Callable[..., Any]:
    try:
        return getattr(importlib.import_module("nemo_xtoken.plugin.nemo2.conversion"), name)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] in ("nemo_xtoken", "transformers", "safetensors"):
            raise
        raise InputError(
            f"NeMo 2 cannot be loaded here ({error})",
            "nemo-toolkit 2.6 or 2.7 with megatron-core",
            "pip install 'nemo_xtoken[nemo]', or use an image that has them; `xtoken env` says what is there",
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
        Option("out", "the folder to write", required=True),
        DTYPE,
        OVERWRITE,
    ),
    examples=(
        ("import model=models/Qwen3-4B out=nemo/qwen3-4b", "a folder"),
        ("import model=meta-llama/Llama-3.2-1B out=nemo/llama-1b", "from the hub, or its cache"),
    ),
    run=_run,
)
