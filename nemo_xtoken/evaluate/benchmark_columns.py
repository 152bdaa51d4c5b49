"""Which task and which of its metrics a column of scores is.

The paper says "3-shot" and names the benchmarks, not the harness's tasks or metrics.  What is chosen here:

- MMLU: ``mmlu``, accuracy over all questions of the 57 subjects.
- GSM8k: ``gsm8k``, exact match of the number after ``####`` (strict).  The flexible one, the last number in the answer,
  is kept in the results as well.  Which one the paper took is not said.
- MATH: ``hendrycks_math``, exact match, over all questions of the 7 subjects.  ``minerva_math`` has another prompt and
  another check of answers, and needs a version of antlr that conflicts with omegaconf.  Which one the paper took is
  not said.
- Winogrande: ``winogrande``, accuracy.
- HellaSwag: ``hellaswag``, accuracy normalised by length: that the paper means this one follows from its 65.08 for
  Llama-3.2-1B, whose plain accuracy lies below 50.
"""

import functools
import importlib.util
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemo_xtoken.errors import InputError, nearest

__all__ = ["PAPER_COLUMNS", "Column", "check_tasks", "read_columns", "readings"]


@dataclass(frozen=True)
class Column:
    """A column of scores.

    Attributes:
        key: its name in files and on the command line.
        title: in the table.
        task: the harness's name of the task or group of tasks.
        metric: ``NAME,FILTER`` in the harness's results; "" takes the first of `PREFERRED` that is there.
        place: the folder of the harness's own tasks that defines it, which need not be searched then.
    """

    key: str
    title: str
    task: str
    metric: str = ""
    place: str = ""


PAPER_COLUMNS = (
    Column("mmlu", "MMLU", "mmlu", "acc,none", "mmlu/default"),
    Column("gsm8k", "GSM8k", "gsm8k", "exact_match,strict-match", "gsm8k"),
    Column("math", "MATH", "hendrycks_math", "exact_match,none", "hendrycks_math"),
    Column("winogrande", "Winogrande", "winogrande", "acc,none", "winogrande"),
    Column("hellaswag", "HellaSwag", "hellaswag", "acc_norm,none", "hellaswag"),
)
PREFERRED = ("acc_norm", "acc", "exact_match")


def read_columns(text: str) -> tuple[Column, ...]:
    """The columns named by a comma-separated list; "all" are the paper's, another name is a task of the harness.

    Raises:
        InputError: an empty list, or a name given twice.
    """
    known = {column.key: column for column in PAPER_COLUMNS}
    known |= {column.task: column for column in PAPER_COLUMNS}
    names = [name.strip() for name in text.split(",") if name.strip()]
    found: list[Column] = []
    for name in names:
        found += PAPER_COLUMNS if name == "all" else [known.get(name, Column(name, name, name))]
    keys = [column.key for column in found]
    if not found or len({*keys}) < len(keys):
        raise InputError(
            f"tasks={text!r}",
            f"different names out of {', '.join(c.key for c in PAPER_COLUMNS)}, or of other tasks that lm_eval has",
            "write tasks=mmlu,gsm8k, or leave it out for all five of the paper",
        )
    return tuple(found)


def check_tasks(columns: Iterable[Column]) -> None:
    """Whether the harness has the tasks, by the names in its files: it is not loaded, and no hub is asked.

    Where the harness is not installed nothing is said.

    Raises:
        InputError: a task that it does not have.
    """
    for column in columns:
        names = frozenset[str]() if column in PAPER_COLUMNS else _task_names()
        if names and column.task not in names:
            raise InputError(
                f"no task {column.task!r} in lm_eval{nearest(column.task, [*names, *(c.key for c in PAPER_COLUMNS)])}",
                "one that `lm_eval ls tasks` lists",
                "correct tasks=",
            )


@functools.cache
def _task_names() -> frozenset[str]:
    """Of all tasks, groups and tags of the installed harness, read from its 14,000 files in a second."""
    found = importlib.util.find_spec("lm_eval")
    if found is None or found.origin is None:
        return frozenset()
    name = re.compile(
        rb"^[ \t]*-?[ \t]*(?:task|group|tag)[ \t]*:[ \t]*[\"']?([\w.+-]+)[\"']?[ \t]*(?:#.*)?$", re.MULTILINE
    )
    files = Path(found.origin).parent.joinpath("tasks").rglob("*.y*ml")
    return frozenset(text.decode() for file in files for text in name.findall(file.read_bytes()))


def readings(column: Column, results: Mapping[str, Any]) -> tuple[str, float, float | None]:
    """``(metric, value, standard error)`` of a column in the harness's results of its task, as they are (0 to 1).

    Raises:
        InputError: the results have no such metric.
    """
    names = [name for name, value in results.items() if "," in name and isinstance(value, (int, float))]
    metrics = [name for name in names if not name.partition(",")[0].endswith("_stderr")]
    by_preference = [m for p in PREFERRED for m in metrics if m.partition(",")[0] == p] + metrics
    metric = column.metric or next(iter(by_preference), "")
    if metric not in metrics:
        raise InputError(
            f"task {column.task} gives {', '.join(metrics) or 'no metric'}, not {metric or 'one that is a number'}",
            "the metrics that this package knows the task by",
            "install the version of lm_eval that the extra `evaluate` names",
        )
    name, _, kind = metric.partition(",")
    error = results.get(f"{name}_stderr,{kind}")
    if not isinstance(error, (int, float)) or not math.isfinite(error):  # of one question there is none
        return metric, float(results[metric]), None
    return metric, float(results[metric]), float(error)
