"""A teacher by itself: processes that hold one model, without a student, for ``xtoken cache`` and ``xtoken serve``."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import HashStore  # type: ignore[attr-defined]

from nemo_xtoken.errors import InputError
from nemo_xtoken.run.layout import ParallelSizes
from nemo_xtoken.teachers.groups import make_groups
from nemo_xtoken.teachers.source_settings import ServiceConfig
from nemo_xtoken.training.cpu import runtime as cpu_runtime

__all__ = ["TeacherPlan", "precision_of", "teacher_world"]

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


@dataclass(frozen=True)
class TeacherPlan:
    """What is loaded, and how.

    Attributes:
        path: its checkpoint.
        tokenizer: folder or hub name; None: that of the checkpoint.
        dtype: ``bf16`` or ``fp32``, as the run that the states are for computes.
        sizes: the layout of one copy.
        sequence_parallel: activations are cut over the tensor-parallel ranks.
        fp8: its layers compute in FP8.
        service: the folder of a service that computes its states; None: its model is in these processes.
        where: what the path is called on the command line.
    """

    path: str
    tokenizer: str | None = None
    dtype: str = "bf16"
    sizes: ParallelSizes = field(default_factory=ParallelSizes)
    sequence_parallel: bool = False
    fp8: bool = False
    service: str | None = None
    where: str = "teacher"

    def settings(self) -> dict[str, Any]:
        """Arguments of a ``TeacherConfig``.

        Raises:
            InputError: a layout for a model that is in no process here.
        """
        found = {"path": self.path, "tokenizer": self.tokenizer, "fp8": self.fp8}
        if self.service is None:
            return found
        if self.sizes.ranks > 1:
            raise InputError(
                f"service={self.service} and a teacher over {self.sizes.ranks} processes",
                "no layout: the processes of the service have theirs",
                "leave tensor=, pipeline= and context= out",
            )
        return found | {"source": "remote", "service": ServiceConfig(self.service)}


def precision_of(plan: TeacherPlan) -> SimpleNamespace:
    """In the place of a student's configuration: precision and layout, by Megatron's names.

    Raises:
        InputError: a precision that there is not.
    """
    if plan.dtype not in DTYPES:
        raise InputError(f"dtype={plan.dtype!r}", f"one of {', '.join(DTYPES)}", "choose that of the run")
    half, sizes = plan.dtype == "bf16", plan.sizes
    return SimpleNamespace(
        bf16=half,
        fp16=False,
        params_dtype=DTYPES[plan.dtype],
        pipeline_dtype=DTYPES[plan.dtype],
        autocast_dtype=DTYPES[plan.dtype],
        sequence_parallel=plan.sequence_parallel and sizes.tensor > 1,
        tensor_model_parallel_size=sizes.tensor,
        pipeline_model_parallel_size=sizes.pipeline,
        context_parallel_size=sizes.context,
        expert_model_parallel_size=sizes.expert,
        expert_tensor_parallel_size=sizes.expert_tensor,
    )


@contextmanager
def teacher_world(sizes: ParallelSizes) -> Iterator[None]:
    """Process groups of this layout over the processes that torchrun or srun started; one process without either.

    Raises:
        InputError: processes that are no whole number of copies.
    """
    from megatron.core import parallel_state
    from megatron.core.tensor_parallel import model_parallel_cuda_manual_seed

    gpu = torch.cuda.is_available()
    if not gpu:
        cpu_runtime.enable()
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world % sizes.ranks:
        raise InputError(
            f"{world} processes for a teacher over {sizes.ranks}",
            "a multiple of its tensor x pipeline x context size",
            "start as many (torchrun --nproc-per-node=N, or srun), or change the sizes",
        )
    if gpu:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    alone: dict[str, Any] = {}
    if "RANK" not in os.environ:
        alone = {"store": HashStore(), "rank": 0, "world_size": 1}
    dist.init_process_group("nccl" if gpu else "gloo", **alone)
    try:
        make_groups(sizes)
        model_parallel_cuda_manual_seed(1234)
        yield
    finally:
        parallel_state.destroy_model_parallel()
        dist.destroy_process_group()
