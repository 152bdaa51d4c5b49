"""The few lines that describe a run before it starts."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nemo_xtoken
from nemo_xtoken.environment import find_stack

__all__ = ["describe_run", "run_folder_of"]

SHOWN = ("NeMo", "Megatron-Bridge", "Megatron-core", "PyTorch")  # the log has all


def describe_run(name: str, config: Any, log: Path | None) -> str:
    """The lines; settings that a run does not have are left out.

    Args:
        name: of the recipe or the file that it is from.
        config: the configured run, a ``run.Partial``.
        log: the file with the output of others; None: there is none.
    """
    rows = {
        "student": _student(config),
        "teacher": _teachers(config),
        "training": _training(config),
        "layout": _layout(config),
        "log": str(log or ""),
    }
    lines = [f"{name}: {_versions()}"]
    return "\n".join([*lines, *(f"  {label:<9} {text}" for label, text in rows.items() if text)])


def _versions() -> str:
    stack = find_stack()
    there = [f"{part} {stack[part].version}" for part in SHOWN if stack[part].version is not None]
    return ", ".join([f"nemo_xtoken {nemo_xtoken.__version__}", *there])


def run_folder_of(config: Any) -> Path | None:
    """The folder of a configured run; None where it does not say."""
    explicit, folder, name = (_get(config, f"log.{key}") for key in ("explicit_log_dir", "log_dir", "name"))
    if explicit:
        return Path(explicit)
    return Path(folder or "nemo_experiments") / name if isinstance(name, str) else None


def _student(config: Any) -> str:
    start, architecture = _get(config, "resume.restore_config.path"), _get(config, "model.architecture")
    made = _get(config, "model.config")
    if isinstance(model := _get(config, "model"), str):
        return f"{model} with the tokenizer of {_get(config, 'tokenizer')}"
    layers, hidden = _get(made, "num_layers"), _get(made, "hidden_size")
    parts = [
        str(architecture or getattr(_target(made), "__name__", "")).removesuffix("Config"),
        f"{layers} layers of {hidden}" if layers and hidden else "",
        f"from {start}" if start else "new weights",
    ]
    return ", ".join(filter(None, parts)) if made is not None or architecture or start else ""


def _teachers(config: Any) -> str:
    more = _get(config, "teachers")
    held: Any = getattr(more, "__arguments__", more)
    found = {"teacher": _get(config, "teacher"), **(held if isinstance(held, Mapping) else {})}
    texts = []
    for name, teacher in found.items():
        if teacher is None or _get(teacher, "loss") is None:
            continue
        path = _get(teacher, "path") or ("trained first" if _get(config, "teacher_steps") else "")
        texts.append(", ".join(filter(None, [f"{name}: " * (name != "teacher") + path, _get(teacher, "loss")])))
    return "; ".join(texts)


def _training(config: Any) -> str:
    steps, batch = _get(config, "trainer.max_steps"), _get(config, "data.global_batch_size")
    student, teacher = (_get(config, f"data.text.{side}_length") for side in ("student", "teacher"))
    if not steps or not batch:
        return f"{steps:,} steps" if steps else ""
    lengths = f" of {student:,} and {teacher:,} tokens" if teacher else f" of {student:,} tokens" if student else ""
    return f"{steps:,} steps of {batch:,} samples{lengths}"


def _layout(config: Any) -> str:
    nodes, devices = _get(config, "trainer.num_nodes"), _get(config, "trainer.devices")
    if not isinstance(nodes, int) or not isinstance(devices, int):
        return ""
    split = {
        name: _get(config, f"trainer.strategy.{name}_model_parallel_size") for name in ("tensor", "pipeline", "expert")
    }
    split["context"] = _get(config, "trainer.strategy.context_parallel_size")
    precision, kernels = _get(config, "trainer.plugins.precision"), _get(config, "objective.kernels")
    parts = [
        f"{nodes} x {devices} processes" if nodes > 1 else f"{devices} process{'es' * (devices > 1)}",
        *(f"{name} parallel {size}" for name, size in split.items() if isinstance(size, int) and size > 1),
        f"precision {precision}" if precision else "",
        f"kernels {kernels}" if kernels and kernels != "auto" else "",
    ]
    if "SLURM_JOB_ID" in os.environ:
        parts.append(f"Slurm job {os.environ['SLURM_JOB_ID']}")
    return ", ".join(filter(None, parts))


def _target(config: Any) -> Any:
    return getattr(config, "__fn_or_cls__", None)


def _get(config: Any, path: str) -> Any:
    """An argument of an argument, by its path; None where one of them is not set."""
    for name in path.split("."):
        try:
            config = getattr(config, name, None)
        except (TypeError, ValueError):  # a default that fiddle makes by a factory
            return None
    return config
