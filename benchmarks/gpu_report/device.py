"""The device that is measured: what it is, how fast its products and its memory are, clocks and peaks."""

import contextlib
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

__all__ = ["Device"]

MIB = 2**20


class Device:
    """A GPU, or the CPU in its place, on which all runs at small sizes so that the report itself can be tested.

    Products of float32 are made in float32, whatever the environment asks for.
    """

    def __init__(self, name: str) -> None:
        self.name, self.cuda = name, name == "cuda"
        torch.backends.cuda.matmul.allow_tf32 = False

    def about(self) -> dict[str, Any]:
        """Its name and that of what drives it, as plain values."""
        import importlib.util

        found: dict[str, Any] = {
            "device": torch.cuda.get_device_name() if self.cuda else "CPU",
            "torch": torch.__version__,
            "cuda": torch.version.cuda,
            "triton": None,
            "TF32": torch.backends.cuda.matmul.allow_tf32,
        }
        if importlib.util.find_spec("triton"):
            import triton

            found["triton"] = triton.__version__
        if self.cuda:
            properties = torch.cuda.get_device_properties(0)
            found |= {
                "capability": list(torch.cuda.get_device_capability()),
                "memory MiB": properties.total_memory // MIB,
                "multiprocessors": properties.multi_processor_count,
            }
        asked = {
            n: os.environ[n] for n in ("TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", "PYTORCH_CUDA_ALLOC_CONF") if n in os.environ
        }
        return found | {"environment": asked}

    def speed(self, size: int) -> dict[str, float]:
        """What products of bfloat16 and copies reach: floating-point operations and bytes a second.

        Args:
            size: rows and columns of the factors; random numbers, since zeros take less power and go faster.
        """
        a, b = (torch.randn(size, size, device=self.name).bfloat16() for _ in range(2))
        source = torch.randn(4 * size * size, device=self.name)
        target = torch.empty_like(source)
        return {
            "products": 2 * size**3 / self.seconds(lambda: a @ b, 10),
            "memory": 2 * source.nbytes / self.seconds(lambda: target.copy_(source), 10),
        }

    def seconds(self, call: Callable[[], Any], rounds: int) -> float:
        """The median over the rounds, after one that does not count."""
        call()
        times = []
        for _ in range(rounds):
            self.wait()
            start = time.perf_counter()
            call()
            self.wait()
            times.append(time.perf_counter() - start)
        return statistics.median(times)

    def wait(self) -> None:
        """Until all that was asked for is done."""
        if self.cuda:
            torch.cuda.synchronize()

    def peak(self, call: Callable[[], Any]) -> int | None:
        """Bytes that a call takes at its largest beside what is there before; None on a CPU, see ``bench``."""
        if not self.cuda:
            call()
            return None
        self.free()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return torch.cuda.max_memory_allocated() - before

    def free(self) -> None:
        """Gives back what nobody holds."""
        import gc

        gc.collect()
        if self.cuda:
            with contextlib.suppress(RuntimeError):
                torch.cuda.empty_cache()
