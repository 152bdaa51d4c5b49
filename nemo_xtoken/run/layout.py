"""Whether a run's sizes divide: one check for the login node and for the run itself.

Every function raises `InputError` with what was found, what divides, and which argument to change.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from nemo_xtoken.errors import InputError

__all__ = [
    "ParallelSizes",
    "check_ahead",
    "check_batches",
    "check_divisible",
    "check_experts",
    "check_length",
    "check_processes",
    "check_rows",
    "check_virtual",
    "owned_rows",
    "padded_rows",
]

#: Rows on a rank are a multiple of this, as matrix products and vector loads on a GPU like them; of fewer where that
#: would be more than a part in 64.
ROW_MULTIPLE, FEW_ROWS = 64, 8


@dataclass(frozen=True)
class ParallelSizes:
    """A layout; what remains of the processes is data parallel.  ``expert_tensor`` is the tensor size of experts."""

    tensor: int = 1
    pipeline: int = 1
    context: int = 1
    expert: int = 1
    expert_tensor: int = 1

    @classmethod
    def of(cls, settings: Any, experts: bool = True) -> "ParallelSizes":
        """From what has Megatron's names for them: a strategy, a model's config, or a mapping.

        Args:
            experts: whether the model has any to spread.
        """

        def size(name: str) -> int | None:
            return settings.get(name) if isinstance(settings, Mapping) else getattr(settings, name)

        tensor = size("tensor_model_parallel_size") or 1
        return cls(
            tensor,
            size("pipeline_model_parallel_size") or 1,
            size("context_parallel_size") or 1,
            (size("expert_model_parallel_size") or 1) if experts else 1,
            (size("expert_tensor_parallel_size") or tensor) if experts else 1,
        )

    def but(self, tensor: int | None, pipeline: int | None, context: int | None, expert: int | None) -> "ParallelSizes":
        """This layout with the sizes that are given; a teacher's, where this is the student's."""
        own = tensor or self.tensor
        return ParallelSizes(
            own,
            pipeline or self.pipeline,
            context or self.context,
            expert or self.expert,
            self.expert_tensor if own == self.tensor else own,
        )

    @property
    def ranks(self) -> int:
        """Of one copy of the model, experts aside."""
        return self.tensor * self.pipeline * self.context

    @property
    def expert_ranks(self) -> int:
        """Of one copy of its experts."""
        return self.expert_tensor * self.pipeline * self.expert


def check_processes(side: str, layout: ParallelSizes, processes: int, where: str) -> None:
    """The processes are a whole number of copies of a model.

    Args:
        side: what messages call it.
        where: what its parallel sizes are called on the command line.
    """
    for kind, unit in (
        ("tensor x pipeline x context", layout.ranks),
        ("expert tensor x pipeline x expert", layout.expert_ranks),
    ):
        if processes % unit:
            raise InputError(
                f"{processes} processes for the {side}'s {kind} parallel = {unit}",
                f"a multiple of {unit}",
                "start that many processes (torchrun --nproc-per-node, Slurm tasks) and set trainer.devices, or change "
                f"{where}.*_parallel_size",
            )


def check_divisible(
    side: str, heads: int, groups: int | None, layers: int, experts: int | None, layout: ParallelSizes
) -> None:
    """A model's heads, query groups, layers and experts are spread evenly."""
    if layout.expert > 1 and not experts:
        raise InputError(
            f"the {side} has no experts, expert_model_parallel_size is {layout.expert}",
            "1",
            "set expert_model_parallel_size of a teacher that has experts (teacher.expert_model_parallel_size=N)",
        )
    for what, number, size, name in (
        ("attention heads", heads, layout.tensor, "tensor_model_parallel_size"),
        ("query groups", groups or heads, layout.tensor, "tensor_model_parallel_size"),
        ("layers", layers, layout.pipeline, "pipeline_model_parallel_size"),
        ("experts", experts or 0, layout.expert, "expert_model_parallel_size"),
    ):
        if number % size:
            raise InputError(
                f"the {side} has {number} {what}, {name} is {size}",
                f"a {name} that divides {number}",
                f"set {name} of trainer.strategy or of the teacher to a divisor",
            )


def check_experts(side: str, experts: int | None, tensor: int, sequence_parallel: bool) -> None:
    """Megatron trains experts under tensor parallelism with sequence parallelism alone."""
    if experts and tensor > 1 and not sequence_parallel:
        raise InputError(
            f"the {side} has {experts} experts, tensor_model_parallel_size is {tensor}, without sequence parallelism",
            "sequence parallelism: Megatron trains experts under tensor parallelism with it alone",
            "set trainer.strategy.sequence_parallel=true",
        )


def check_length(side: str, length: int, where: str, cp: int, sequence_ranks: int) -> None:
    """A context-parallel rank holds two equal parts of a sequence, and sequence parallelism cuts what it holds.

    Args:
        where: what the length is called on the command line.
        sequence_ranks: ranks of sequence parallelism; 1 without.
    """
    unit = cp * (math.lcm(2, sequence_ranks) if cp > 1 else sequence_ranks)
    if length % unit:
        raise InputError(
            f"a {side} sequence of {length} positions, context parallel over {cp} ranks, sequence parallel over "
            f"{sequence_ranks}",
            f"a multiple of {unit}",
            f"change {where}, trainer.strategy.context_parallel_size or trainer.strategy.sequence_parallel",
        )


def check_rows(side: str, rows: int | None, ids: int, where: str, tensor: int, fix: str) -> None:
    """An output layer has a row for each id, and its rows are spread evenly.

    Args:
        rows: of the output layer; None: it sizes itself.
        ids: V of its tokenizer.
        where: what decides the number of rows, for error messages.
        tensor: ranks that the rows are spread over.
        fix: what to do where they cannot be.
    """
    if rows is not None and rows < ids:
        raise InputError(
            f"the {side}'s output layer has {rows} rows ({where}), its tokenizer {ids} ids",
            "at least one row for each id",
            "give the tokenizer that the model was trained with; a new model sizes itself when "
            "model.config.vocab_size is not set",
        )
    if rows is not None and rows % tensor:
        raise InputError(
            f"the {side}'s output layer has {rows} rows ({where}), tensor_model_parallel_size is {tensor}",
            f"a multiple of {tensor}",
            fix,
        )


def check_batches(global_batch: int, micro_batch: int, data_parallel: int) -> None:
    """A global batch is a whole number of micro-batches on each data-parallel rank."""
    unit = micro_batch * data_parallel
    if unit < 1 or global_batch % unit:
        raise InputError(
            f"a global batch of {global_batch} samples in micro-batches of {micro_batch} "
            f"over {data_parallel} data-parallel ranks",
            f"a multiple of {unit}",
            "change data.global_batch_size, data.micro_batch_size or the number of processes",
        )


def check_virtual(virtual: int | None) -> None:
    """There is no virtual pipeline: see the message for what stands in the way."""
    if (virtual or 1) > 1:
        raise InputError(
            f"trainer.strategy.virtual_pipeline_model_parallel_size={virtual}",
            "1: Megatron's interleaved schedule runs several model chunks on a rank, and distillation has one module "
            "for each rank: it takes hidden states after every forward pass of a rank that has the output layer, also "
            "after those of its chunks without that layer, and the teacher's pass and evaluations hand the schedule "
            "one module and one iterator, where it asks for a list with one for each chunk",
            "leave it out; use tensor, pipeline, context and data parallelism",
        )


def check_ahead(side: str, where: str, own: ParallelSizes, student: ParallelSizes, experts: int | None) -> None:
    """Whether a teacher's forward pass can run beside the student's backward pass.

    Args:
        where: what its settings are called on the command line.
        own, student: layouts.
        experts: that it has.
    """
    found = None
    if experts:
        found, expected = f"{experts} experts", "none: to send tokens to experts the host waits for the device"
    elif student.pipeline > 1 or own.pipeline > 1:
        found = f"pipeline_model_parallel_size={max(student.pipeline, own.pipeline)}"
        expected = "1: with stages the teacher reads all micro-batches of a step before the student's schedule begins"
    elif own != replace(student, expert=1, expert_tensor=1):
        found = "a layout of its own"
        expected = "the student's layout: in another one its copies share the micro-batches of a step out before it"
    if found:
        raise InputError(f"{where}.ahead=true ({side}) with {found}", expected, f"set {where}.ahead=false")


def padded_rows(ids: int, divisor: int | None, tensor: int) -> int:
    """Rows that NeMo gives an output layer that sizes itself.

    Args:
        ids: V of its tokenizer.
        divisor: ``make_vocab_size_divisible_by``; None: Megatron's 128.
    """
    unit = (divisor or 128) * tensor
    return -(-ids // unit) * unit


def owned_rows(ids: int, tensor: int) -> int:
    """Rows of a teacher's output layer in the order of W, on each of so many ranks.

    Args:
        ids: V_T.
    """
    unit = ROW_MULTIPLE if ids >= tensor * ROW_MULTIPLE**2 else FEW_ROWS
    return -(-ids // (tensor * unit)) * unit
