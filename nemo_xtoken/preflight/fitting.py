"""What a run leaves open: layout and micro-batch, by the memory that its models need on paper; the precision."""

import functools
import itertools
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from nemo_xtoken.errors import InputError
from nemo_xtoken.launch.precision import begun_in, choose_precision, processor_flags
from nemo_xtoken.launch.ranks import gpu_memory, gpus_here, placement
from nemo_xtoken.preflight.budget import COMFORT, CONTEXT
from nemo_xtoken.preflight.plan import Plan
from nemo_xtoken.run.estimates.loss_time import GIB
from nemo_xtoken.run.estimates.memory import worst_stage
from nemo_xtoken.run.lora.lora_checks import lora_problems
from nemo_xtoken.run.records import PRECISION
from nemo_xtoken.run.run_checks import layout_problems
from nemo_xtoken.run.settings import Settings
from nemo_xtoken.run.sides import processes_of, run_of
from nemo_xtoken.run.spec import RunSpec

__all__ = ["Fit", "fit_layout", "lay_out_here", "leaves_precision_open", "left_open", "settle_precision"]

STRATEGY = "trainer.strategy"
TENSOR, PIPELINE = f"{STRATEGY}.tensor_model_parallel_size", f"{STRATEGY}.pipeline_model_parallel_size"
PLUGIN = "trainer.plugins._target_"
SEQUENCE, MICRO = f"{STRATEGY}.sequence_parallel", "data.micro_batch_size"
DEVICES, ALL = "trainer.devices", (None, "auto", -1, "-1")
MOST_SAMPLES = 16  # of a micro-batch: more make no product faster


@dataclass(frozen=True)
class Fit:
    """
    Attributes:
        settings: what was chosen, by name; empty where nothing was left open.
        said: the same in words.
        refused: no layout is one that the run takes; the checks of the run say so too.
    """

    settings: dict[str, Any] = field(default_factory=dict)
    said: str = ""
    refused: bool = False


def left_open(settings: Settings) -> list[str]:
    """The names of what a run of any pair does not say: the machine that it runs on decides it."""
    if not settings.any_pair:
        return []
    unsaid = [name for name in (TENSOR, PIPELINE, MICRO) if settings.get(name) is None]
    return [*unsaid, DEVICES] if settings.get(DEVICES) in ALL else unsaid


def fit_layout(settings: Settings, nodes: int, gpus: int, gib: float | None) -> Fit:
    """Chooses what the run leaves open of tensor and pipeline parallelism and the micro-batch, and sets it.

    The fewest GPUs that hold a copy of the models, tensor parallelism within a node before pipeline parallelism; then
    the largest micro-batch that fits.

    Args:
        settings: of the run; changed.
        nodes, gpus: machines, and processes on each.
        gib: memory of a GPU; None: it runs on the CPU, a sample at a time, without a layout.
    """
    open_ = [name for name in left_open(settings) if name != DEVICES]
    if settings.get("student") is None or not open_:
        return Fit()
    if gib is None:
        chosen = {MICRO: 1} if MICRO in open_ else {}
        _set(settings, chosen)
        return Fit(chosen, "micro-batch 1, on the CPU (data.micro_batch_size)" if chosen else "")
    known = _known(Plan(settings, run_of(settings, nodes * gpus), nodes, gpus, gib))
    best: tuple[dict[str, Any], float] | None = None
    refused = ""
    asked = {name: settings.get(name) for name in (*open_, SEQUENCE)}
    for chosen in _candidates(settings, open_, gpus, nodes * gpus):
        _set(settings, chosen)
        run = run_of(settings, nodes * gpus)
        plan = Plan(settings, run, nodes, gpus, gib)
        for side in plan.sides:
            if side.where in known:
                plan.know(side, known[side.where])
        if (problem := next(_problems(plan.run), None)) is not None:
            if chosen.get(MICRO, 1) == 1:  # the least that can be asked for
                refused = refused or problem.found
            continue
        if (sizes := plan.training()) is None:
            continue
        need = sum(worst_stage(sizes).values()) / GIB
        if best is None or need < best[1]:
            best = chosen, need
        if need <= (gib - CONTEXT) * COMFORT:
            best = chosen, need
            break
    if best is None:
        chosen = {MICRO: 1} if MICRO in open_ else {}
        _set(settings, asked | chosen)  # what the checks that follow are of
        why = f"no layout can be, as {refused}" if refused else "the models' sizes are not known here"
        return Fit(chosen, f"nothing by memory: {why}", refused=bool(refused))
    _set(settings, best[0])
    return Fit(best[0], _said(best[0], best[1], gib))


def lay_out_here(config: Any, settings: Settings) -> str:
    """Gives a run of any pair what it leaves open: all GPUs here, and the layout and micro-batch that fit them.

    Args:
        config: the configured run; changed, as are its settings.
        settings: the same as plain data.

    Returns:
        what was chosen, in words; "" where nothing was left open.
    """
    if not settings.any_pair:
        return ""
    place = placement(os.environ)
    devices = place.devices if place is not None else processes_of(settings) or 1
    if place is None and DEVICES in left_open(settings):
        config.trainer.devices = devices = gpus_here() or 1
        settings.set(DEVICES, devices)
    chosen = fit_layout(settings, place.nodes if place is not None else 1, devices, gpu_memory())
    for name, value in chosen.settings.items():
        *path, last = name.split(".")
        setattr(functools.reduce(getattr, path, config), last, value)
    return chosen.said


def leaves_precision_open(settings: Settings) -> bool:
    """Whether the recipe takes the precision that suits the machine, and nobody has named one."""
    return str(settings.get(PLUGIN, "")).endswith(".mixed_precision") and settings.get(PRECISION) is None


def settle_precision(config: Any, settings: Settings) -> str:
    """Gives a run that leaves its precision open the one that it was begun in, or that suits this machine.

    Args:
        config: the configured run; changed, as are its settings.
        settings: the same as plain data.

    Returns:
        what was chosen, in words; "" where it was not left open.
    """
    if not leaves_precision_open(settings):
        return ""
    gpu = gpus_here() > 0
    nodes = int(settings.number("trainer.num_nodes", 1))
    chosen = choose_precision(gpu, processor_flags(), nodes, begun_in(settings.run_folder, gpu))
    config.trainer.plugins.precision = chosen.value
    settings.set(PRECISION, chosen.value)
    return f"precision {chosen.value}, {chosen.why} ({PRECISION})"


def _known(plan: Plan) -> dict[str, Any]:
    """The vocabularies of its models, by where they are configured."""
    from nemo_xtoken.vocab.loading import load_vocabulary

    found = {}
    for side in plan.sides:
        if side.tokenizer is not None:
            try:
                found[side.where] = load_vocabulary(side.tokenizer)
            except InputError:  # the run says so
                continue
    return found


def _problems(run: RunSpec) -> Iterator[InputError]:
    """What the run would refuse of a layout."""
    yield from layout_problems(run)
    yield from lora_problems(run.lora, run.student.config, run.student.sizes, run.starts)


def _candidates(settings: Settings, left: list[str], gpus: int, processes: int) -> Iterator[dict[str, Any]]:
    """From the fewest GPUs a copy, and for each layout from the largest micro-batch."""
    given = int(settings.get(TENSOR) or 1), int(settings.get(PIPELINE) or 1)
    tensors = _powers(gpus) if TENSOR in left else [given[0]]
    pipelines = _powers(processes) if PIPELINE in left else [given[1]]
    layouts = sorted(itertools.product(tensors, pipelines), key=lambda sizes: (sizes[0] * sizes[1], sizes[1]))
    for tensor, pipeline in layouts:
        if processes % (tensor * pipeline):
            continue
        for micro in reversed(_powers(MOST_SAMPLES)) if MICRO in left else [int(settings.get(MICRO))]:
            sizes = {TENSOR: tensor, PIPELINE: pipeline, MICRO: micro}
            chosen: dict[str, Any] = {name: sizes[name] for name in left}
            if TENSOR in left:
                chosen[SEQUENCE] = tensor > 1
            yield chosen


def _powers(most: int) -> list[int]:
    return [1 << n for n in range(most.bit_length()) if 1 << n <= most]


def _set(settings: Settings, chosen: dict[str, Any]) -> None:
    for name, value in chosen.items():
        settings.set(name, value)


def _said(chosen: dict[str, Any], need: float, gib: float) -> str:
    words = {TENSOR: "tensor parallel", PIPELINE: "pipeline parallel", MICRO: "micro-batch"}
    parts = ", ".join(f"{words[name]} {value}" for name, value in chosen.items() if name in words)
    fits = "" if need <= gib - CONTEXT else ", which does not fit"
    return f"{parts}: about {need:.0f} of {gib:.0f} GiB a GPU on paper{fits} ({STRATEGY}.*, {MICRO})"
