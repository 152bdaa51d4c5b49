"""The few lines that describe a run before it starts."""

import os
from dataclasses import replace
from pathlib import Path

import nemo_xtoken
from nemo_xtoken.environment import find_stack
from nemo_xtoken.run.settings import Settings
from nemo_xtoken.run.sides import processes_of, run_of
from nemo_xtoken.run.spec import ModelSpec, RunSpec
from nemo_xtoken.run.teaching import THE_TEACHER, name_of

__all__ = ["describe_run"]

SHOWN = ("NeMo", "Megatron-Bridge", "Megatron-core", "PyTorch")  # the log has all


def describe_run(name: str, settings: Settings, log: Path | None, chosen: str = "") -> str:
    """The lines; what a run does not have is left out.

    Args:
        name: of the recipe or the file that it is from.
        settings: of the run.
        log: the file with the output of others; None: there is none.
        chosen: of its layout and precision, in words; "": nothing was left open.
    """
    run = run_of(settings, processes_of(settings)) if settings.part("data") else None
    rows = {
        "student": _student(settings, run),
        "teacher": "; ".join(_teacher(settings, side) for side in run.teachers) if run is not None else "",
        "training": _training(settings, run),
        "trained": _trained(settings, run),
        "layout": _layout(settings, run),
        "chosen": chosen,
        "log": str(log or ""),
    }
    lines = [f"{name}: {_versions()}"]
    return "\n".join([*lines, *(f"  {label:<9} {text}" for label, text in rows.items() if text)])


def _versions() -> str:
    stack = find_stack()
    there = [f"{part} {stack[part].version}" for part in SHOWN if stack[part].version is not None]
    return ", ".join([f"nemo_xtoken {nemo_xtoken.__version__}", *there])


def _student(settings: Settings, run: RunSpec | None) -> str:
    if isinstance(model := settings.get("model"), str):
        layers = settings.get("layers")
        kept = "" if layers is None else f"layers {layers} of "
        return f"{kept}{model} with the tokenizer of {settings.get('tokenizer')}"
    if run is None:
        return ""
    side = run.student
    if settings.get("student"):
        side = replace(side, given=side.config)
    architecture = settings.get("model.architecture") or str(side.given.get("_target_", "")).rpartition(".")[2]
    layers, hidden = side.config.get("num_layers"), side.config.get("hidden_size")
    parts = [
        str(architecture).removesuffix("Config"),
        f"{layers} layers of {hidden}" if layers and hidden else "",
        f"from {side.path}" if side.path else "new weights",
    ]
    return ", ".join(filter(None, parts))


def _teacher(settings: Settings, side: ModelSpec) -> str:
    name = "" if side.where == THE_TEACHER else f"{name_of(side.where)}: "
    path = side.path or ("trained first" if settings.get("teacher_steps") else "")
    return ", ".join(filter(None, [name + path, settings.get(f"{side.where}.loss")]))


def _training(settings: Settings, run: RunSpec | None) -> str:
    steps = settings.get("trainer.max_steps")
    if run is None or not steps:
        return f"{steps:,} steps" if steps else ""
    lengths = dict.fromkeys(f"{side.length:,}" for side in run.sides)
    return f"{steps:,} steps of {run.global_batch:,} samples of {' and '.join(lengths)} tokens"


def _trained(settings: Settings, run: RunSpec | None) -> str:
    """What of the student is, where it is not all of it."""
    lora = None if run is None else run.lora
    if lora is None or not lora.on:
        return ""
    parts = [f"LoRA adapters of rank {lora.rank} ({', '.join(lora.layers)})"]
    if lora.embeddings:
        new = ", whose rows for new tokens are guesses before" if settings.swaps else ""
        parts.append(f"embeddings and output layer, whole{new}")
    elif settings.swaps:
        parts.append("not the embeddings: the rows of new tokens stay guesses (lora.embeddings=false)")
    return "; ".join(parts)


def _layout(settings: Settings, run: RunSpec | None) -> str:
    nodes, devices = settings.get("trainer.num_nodes", 1), settings.get("trainer.devices")
    if run is None or not isinstance(nodes, int) or not isinstance(devices, int):
        return ""
    sizes = run.student.sizes
    split = {
        "tensor": sizes.tensor, "pipeline": sizes.pipeline, "expert": sizes.expert, "context": sizes.context
    }  # fmt: skip
    precision, kernels = settings.get("trainer.plugins.precision"), settings.get("objective.kernels")
    parts = [
        f"{nodes} x {devices} processes" if nodes > 1 else f"{devices} process{'es' * (devices > 1)}",
        *(f"{name} parallel {size}" for name, size in split.items() if size > 1),
        f"precision {precision}" if precision else "",
        f"kernels {kernels}" if kernels and kernels != "auto" else "",
    ]
    if "SLURM_JOB_ID" in os.environ:
        parts.append(f"Slurm job {os.environ['SLURM_JOB_ID']}")
    return ", ".join(filter(None, parts))
