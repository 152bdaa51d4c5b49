"""Teachers that are not beside the student: how many nodes keep it from waiting, and what disk and network carry."""

import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nemo_xtoken.errors import InputError
from nemo_xtoken.launch.teacher_steps import NODES, TeacherSteps
from nemo_xtoken.preflight.findings import Finding, green, left_out, rounded, yellow
from nemo_xtoken.preflight.plan import Plan
from nemo_xtoken.run.estimates.loss_time import BF16, FP32
from nemo_xtoken.run.estimates.step_time import Gpu, step_time
from nemo_xtoken.run.spec import ModelSpec
from nemo_xtoken.run.teaching import CACHED, ELSEWHERE, THE_TEACHER
from nemo_xtoken.teachers.source_settings import FORMAT_BYTES

__all__ = ["nodes_of_job", "source"]

GB = 1e9
BESIDE = 4  # bytes of a token's id


def source(plan: Plan, side: ModelSpec, figures: dict[str, Any]) -> Iterator[Finding]:
    """Nothing for a teacher in the student's processes.

    Args:
        side: the teacher.
    """
    settings = plan.settings.teachers()[side.where]
    name = settings.get("source")
    if name not in ELSEWHERE:
        return
    check = f"source, {side.label}"
    run, model = plan.training(), side.model
    if run is None or model is None or plan.max_steps < 1:
        yield left_out(check, f"{name}: a model's sizes are not known, or not one copy fits the GPUs")
        return
    gpu = Gpu()
    measured = plan.measured
    step = measured.step_seconds or sum(step_time(run, gpu, plan.tokens, plan.chunks).values())
    positions = plan.global_batch * side.length
    width, half = model.hidden, run.precision.weights == BF16
    row = width * (BF16 if half else FP32)
    receivers = max(1, plan.nodes)
    held = (1 + int((settings.get("service") or {}).get("ahead", 2))) * positions * row / receivers
    if name == "cached":  # each tensor-parallel rank reads by itself
        held *= run.sizes.tensor
    found = {"step_tokens": positions, "step_bytes": positions * row, "student_step_seconds": step}
    found["host_bytes_a_node"] = held
    texts = []
    if name != "cached":
        speed = measured.teacher_speed
        seconds = positions / speed if speed else model.forward_flops(positions, side.length) / gpu.flops  # on one GPU
        guessed = [name for name, value in (("step", measured.step_seconds), ("teacher", speed)) if value is None]
        by = f"roofline of H100s for the {' and the '.join(guessed)}" if guessed else "as measured"
        gpus = math.ceil(seconds / step)
        nodes = math.ceil(gpus / plan.gpus)
        found |= {"teacher_gpus": gpus, "teacher_nodes": nodes, "network_bytes_a_second": positions * row / step}
        texts.append(
            f"about {gpus:,} GPUs, {nodes:,} nodes of {plan.gpus}, keep a step of {rounded(step, 2)} s from waiting "
            f"({by}); {rounded(positions * row / step / GB, 2)} GB/s leave the teacher's nodes and "
            f"{rounded(positions * row / step / receivers / GB, 2)} GB/s reach each of the student's, which hold "
            f"{rounded(held / GB, 2)} GB of states"
        )
    problem = ""
    if name in CACHED:
        cache = settings.get("cache") or {}
        of_width, beside = FORMAT_BYTES[cache.get("format") or ("bf16" if half else "fp32")]
        tokens = min(plan.max_steps * positions, (figures.get("data_tokens") or math.inf) * plan.tokens)
        size = tokens * (of_width * width + beside + BESIDE)
        found |= {"states_bytes": size, "read_bytes_a_second": positions * (of_width * width + beside + BESIDE) / step}
        texts.append(
            f"{rounded(size / GB)} GB of states for {rounded(tokens)} tokens on disk, "
            f"{rounded(found['read_bytes_a_second'] / GB, 2)} GB/s to read"
            + (f", by nodes which hold {rounded(held / GB, 2)} GB of them" if name == "cached" else "")
        )
        folder = Path(str(cache.get("folder") or ".")).expanduser()
        there = next((path for path in (folder, *folder.absolute().parents) if path.is_dir()), None)
        if name != "cached" and there is not None and (free := shutil.disk_usage(there).free) < size:
            problem = f"{rounded(free / GB)} GB are free in {there}"
    figures.setdefault("sources", {})[side.label] = {key: float(value) for key, value in found.items()}
    if problem:
        fix = f"set {side.where}.cache.format=fp8, or another folder"
        yield yellow(check, f"{'; '.join(texts)}; {problem}", "room for the states", fix)
    else:
        yield green(check, f"{name}: {'; '.join(texts)}")


def nodes_of_job(teacher: TeacherSteps | InputError, figures: dict[str, Any]) -> Iterator[Finding]:
    """Whether the nodes that a job adds for its teacher keep the student from waiting.

    Args:
        teacher: its part of the job, or why it can have none.
        figures: with those of `source`.
    """
    if isinstance(teacher, InputError):
        raise teacher
    gpus = teacher.config.nodes * teacher.config.gpus_per_node
    needed = int(figures.get("sources", {}).get(THE_TEACHER, {}).get("teacher_gpus", 0))
    if gpus and needed > gpus:
        nodes = math.ceil(needed / teacher.config.gpus_per_node)
        yield yellow(
            "teacher's nodes",
            f"{teacher.shape}: the student waits for it",
            f"about {needed:,} GPUs",
            f"{NODES}={nodes}, or a measured teacher_speed=",
        )
    else:
        yield green("teacher's nodes", teacher.shape)
