"""lm-evaluation-harness: its tasks, on the hub's data or on local files, and its runs of a Hugging Face model."""

import contextlib
import logging
import math
import os
import random
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from nemo_xtoken.errors import InputError
from nemo_xtoken.evaluate.benchmark_columns import Column, readings
from nemo_xtoken.evaluate.local_data import Source, check_data, leaves, write_tasks
from nemo_xtoken.evaluate.task_settings import Settings
from nemo_xtoken.weights.configuration import readable_folder
from nemo_xtoken.weights.folder import ModelFolder

__all__ = ["Harness", "check_harness", "harness_version", "sources_of"]

CPU_BATCH = 8  # "auto" looks for the largest batch that fits, which on a CPU is neither found nor fast


def check_harness() -> None:
    """
    Raises:
        InputError: the harness is not installed.
    """
    harness_version()


def harness_version() -> str:
    """Of the installed harness.

    Raises:
        InputError: there is none.
    """
    try:
        return metadata.version("lm_eval")
    except metadata.PackageNotFoundError:
        raise InputError(
            "lm-evaluation-harness (lm_eval) is not installed",
            "the extra `evaluate`",
            "pip install 'nemo_xtoken[evaluate]', in an environment of its own if you like: evaluating needs no NeMo",
        ) from None


def _manager(columns: Sequence[Column], more: Path | None = None) -> Any:
    """The harness's task manager.  Reading all its definitions takes half a minute: only the columns' where known."""
    check_harness()
    import lm_eval.tasks

    root = Path(lm_eval.tasks.__file__).parent
    places = [root / column.place for column in columns]
    known = all(column.place and place.is_dir() for column, place in zip(columns, places, strict=True))
    include = [*(places if known else ()), *([more] if more else ())]
    return lm_eval.tasks.TaskManager(include_path=include or None, include_defaults=not known)


def sources_of(columns: Sequence[Column]) -> list[Source]:
    """What the columns' tasks read."""
    with quiet():
        index = _manager(columns).task_index
    return [source for column in columns for source in leaves(column.task, index)]


class Harness:
    """Columns that are ready to be run, and the model once it is loaded.

    Args:
        columns: what to run; their data is read here, so that missing data is found before the model is loaded.
        settings: how.

    Raises:
        InputError: no such task, no data, no harness.
    """

    def __init__(self, columns: Sequence[Column], settings: Settings) -> None:
        self.settings = settings
        self._model: Any = None
        with quiet(), tempfile.TemporaryDirectory(prefix="nemo_xtoken-tasks-") as folder:
            manager = _manager(columns)
            if settings.data is not None:
                check_data(Path(settings.data))
                sources = [source for column in columns for source in leaves(column.task, manager.task_index)]
                write_tasks(sources, Path(settings.data), Path(folder))
                manager = _manager(columns, Path(folder))
            self._tasks = {column.key: self._load(column, manager) for column in columns}

    def _load(self, column: Column, manager: Any) -> dict[str, Any]:
        if column.task not in manager.task_index:
            raise InputError(
                f"no task {column.task!r} in lm_eval", "one that `lm_eval ls tasks` lists", "correct tasks="
            )
        try:
            loaded = manager.load([column.task])
        except InputError:
            raise
        except ModuleNotFoundError as error:
            raise InputError(f"task {column.task}: {error}", "the packages that it needs", "install them") from error
        except Exception as error:  # of the network, the hub, the cache, the data
            raise InputError(
                f"the data of task {column.task} cannot be read: {' '.join(str(error).split())[:300]}",
                "a connection to the Hugging Face hub, its cache, or local data",
                "with network: `xtoken evaluate fetch=DATA`; then data=DATA",
            ) from error
        if column.task not in {*loaded["tasks"], *loaded["groups"]}:
            raise InputError(
                f"{column.task} is a tag: many tasks without a score of all", "a task or a group", "name some"
            )
        for task in loaded["tasks"].values():
            if task.get_config("num_fewshot") != 0:  # the harness's rule: 0 says that the task has no examples
                task.set_config(key="num_fewshot", value=self.settings.shots)
            task.set_fewshot_seed(seed=1234)
        return dict(loaded)

    def open(self, model: str) -> None:
        """Loads a model from a folder in Hugging Face's format.

        Raises:
            InputError: transformers cannot load it; several processes without GPUs, which the harness does not have.
        """
        import torch

        device = self.settings.device or ("cuda" if torch.cuda.is_available() else "cpu")
        if device == "cpu":
            os.environ.setdefault("ACCELERATE_USE_CPU", "true")  # the harness would take some memory of a GPU as well
            if os.environ.get("WORLD_SIZE", "1") != "1":
                raise InputError(
                    "several processes on a CPU", "one, or as many as there are GPUs", "leave torchrun out"
                )
        folder = ModelFolder(model)
        with quiet(), readable_folder(folder) as path:
            from lm_eval.models.huggingface import HFLM

            batch = self.settings.batch_size
            if batch == "auto" and device == "cpu":
                batch = str(CPU_BATCH)
            try:
                self._model = HFLM(
                    pretrained=str(path),
                    device=device,
                    dtype=self.settings.dtype,
                    batch_size=batch if batch == "auto" else int(batch),
                    max_length=min(self.settings.max_length, _longest(folder)),
                    trust_remote_code=False,
                )
            except ModuleNotFoundError:
                raise
            except Exception as error:  # of transformers, the hub, the device
                reason = " ".join(str(error).split())[:300]
                raise InputError(
                    f"{model} cannot be loaded on {device} ({type(error).__name__}: {reason})",
                    "a causal language model in Hugging Face's format, with its tokenizer",
                    "of a training run, make one by `xtoken export run=RUN out=FOLDER`",
                ) from error

    @property
    def first(self) -> bool:
        """Whether this process has the results, where `torchrun` or `accelerate` started several."""
        return self._model is None or self._model.rank == 0

    def run(self, column: Column) -> dict[str, Any]:
        """The scores of a column; {} on other processes than the first.

        Returns:
            ``task, metric, score, stderr`` (the last two in percent), ``samples`` (questions asked), ``shots``,
            ``version`` of the task, ``seconds``, and ``all``: everything that the harness reports on the task and its
            subtasks, unchanged.
        """
        import lm_eval
        import numpy as np
        import torch

        tasks = self._tasks[column.key]
        random.seed(0)
        np.random.seed(1234)
        torch.manual_seed(1234)
        start = time.perf_counter()
        try:
            with quiet():
                found = lm_eval.evaluate(
                    lm=self._model,
                    task_dict=tasks,
                    limit=self.settings.limit,
                    log_samples=False,
                    apply_chat_template=self.settings.chat,
                    fewshot_as_multiturn=self.settings.chat,
                )
        except InputError:
            raise
        except Exception as failure:  # of a task, the model or the device: each fails in its own way
            reason = (str(failure).splitlines() or [""])[0]
            raise InputError(
                f"the task {column.task} fails ({type(failure).__name__}: {reason})",
                "a task that runs to its end; what other columns have is kept",
                "lower batch_size= where memory is short, or leave the task out of tasks=",
            ) from failure
        if found is None:
            return {}
        everything = {name: _plain(values) for name, values in {**found["results"], **found.get("groups", {})}.items()}
        metric, value, error = readings(column, everything[column.task])
        shots = {found["n-shot"][name] for name in tasks["tasks"]}
        return {
            "task": column.task,
            "metric": metric,
            "score": 100 * value,
            "stderr": None if error is None else 100 * error,
            "samples": sum(found["n-samples"][name]["effective"] for name in tasks["tasks"]),
            "shots": shots.pop() if len(shots) == 1 else None,
            "version": found["versions"].get(column.task),
            "seconds": time.perf_counter() - start,
            "all": everything,
        }


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """The value as JSON can hold it: NumPy's numbers converted, NaN (the error of a single question) as None."""
    numbers = {k: float(v) if hasattr(v, "item") else v for k, v in values.items() if not callable(v)}
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in numbers.items()}


def _longest(folder: ModelFolder) -> int:
    """The tokens that a model was made for."""
    return int(folder.text_config.get("max_position_embeddings") or 2048)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silences the logs of the harness and its libraries, which address their developers; progress bars stay."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
