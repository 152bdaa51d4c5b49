"""``xtoken import``: a Hugging Face checkpoint as a NeMo 2 checkpoint.  And what `export` has in common with it."""

import contextlib
import importlib
import logging
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

from nemo_xtoken.commands.verb import Option, Verb
from nemo_xtoken.environment import unloadable_nemo
from nemo_xtoken.errors import InputError
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
    from rich.console import Console

    console = Console(stderr=True)
    status = console.status("loading NeMo") if console.is_terminal else None

    def say(stage: str) -> None:
        if status is not None:
            status.update(stage)
        else:
            console.print(stage, highlight=False, markup=False, soft_wrap=True)

    with status or contextlib.nullcontext(), warnings.catch_warnings(), _silence():
        warnings.simplefilter("ignore")
        say("loading NeMo")
        try:
            call = getattr(importlib.import_module("nemo_xtoken.plugin.nemo2.conversion"), function)
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
        return call(say=say, **arguments)


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """NeMo, Megatron and Lightning say more while they load than a conversion has to say."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(level)


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
