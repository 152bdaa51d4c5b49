"""How long each loss takes at real sizes, and what of it: products, Triton's kernels, the rest, by torch's profiler."""

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from loss import Problem, plain, products
from torch.profiler import ProfilerActivity, profile

from nemo_xtoken import kernels as kernels_folder
from nemo_xtoken.kernels.tile_kernels import TileKernels

from .device import Device
from .problem import MicroBatch

__all__ = ["OURS", "kind_of", "measured", "references", "timings"]

#: Of the names of kernels that make matrix products: cuBLAS's and CUTLASS's, and PyTorch's on a CPU.
PRODUCTS = ("gemm", "nvjet", "cutlass", "xmma", "cublas", "splitk", "aten::mm", "aten::addmm", "aten::bmm")
COPIES = ("memcpy", "memset")
#: Calls in which the CPU waits for the device.
WAITS = ("cudaStreamSynchronize", "cudaEventSynchronize")
LARGEST = 8
#: The names of our own kernels, read and not imported: where there is no Triton there are none.
OURS = tuple(
    name
    for path in sorted(Path(str(kernels_folder.__file__)).parent.glob("*.py"))
    for name in re.findall(r"^@triton\.jit.*\ndef (\w+)", path.read_text("utf-8"), re.M)
)


def measured(call: Callable[[], Any], device: Device, rounds: int) -> dict[str, Any]:
    """Time, memory and kernels of a call.

    Returns:
        ``seconds``: median of the rounds; ``on_device`` of these by kind; ``launches``, ``waits``; ``memory``: bytes;
        ``largest``: the kernels that took longest.
    """
    call()
    memory, seconds = device.peak(call), device.seconds(call, rounds)
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.cuda else [])]
    with profile(activities=activities) as profiled:
        call()
        device.wait()
    kinds, largest, launches, waits = dict.fromkeys(("products", "triton", "copies", "other"), 0.0), {}, 0, 0
    for event in profiled.key_averages():
        waits += event.count if event.key in WAITS else 0
        here = event.self_device_time_total if device.cuda else event.self_cpu_time_total
        if not here or (device.cuda and event.device_type == torch.autograd.DeviceType.CPU):
            continue
        kinds[kind_of(event.key)] += here / 1e6
        largest[event.key] = here / 1e6
        launches += event.count
    best = sorted(largest.items(), key=lambda item: -item[1])[:LARGEST]
    return {
        "seconds": seconds,
        "on_device": kinds,
        "launches": launches,
        "waits": waits,
        "memory": memory,
        "largest": [[name[:100], time] for name, time in best],
    }


def kind_of(kernel: str) -> str:
    """``triton`` for our own; ``products``, ``copies`` or ``other``, by its name."""
    if kernel.startswith(OURS):
        return "triton"
    kinds = {"products": PRODUCTS, "copies": COPIES}
    return next((kind for kind, parts in kinds.items() if any(part in kernel.lower() for part in parts)), "other")


def references(batch: MicroBatch, device: Device, rounds: int) -> dict[str, dict[str, Any]]:
    """P-KL as one writes it first, and the matrix products alone, at the batch's numbers of positions."""
    rows, _ = batch.rows
    problem = Problem(batch.pair.matrix, rows, tuple(batch.hidden_sizes), device.name, batch.h_s.dtype)
    calls = {"products": products(problem), "plain torch": plain(problem)}
    found = {}
    for name, call in calls.items():
        try:
            found[name] = measured(call, device, rounds)
        except torch.OutOfMemoryError as error:
            found[name] = {"error": str(error).splitlines()[0]}
        device.free()
    return found


def timings(
    batch: MicroBatch, names: Sequence[str], kernels: Sequence[TileKernels], device: Device, rounds: int
) -> Iterator[dict[str, Any]]:
    """A row for each loss and set of kernels."""
    for name in names:
        for chosen in kernels:
            call = batch.loss(name, chosen)
            yield {"loss": name, "kernels": chosen.name, **measured(call, device, rounds)}
            del call
            device.free()
