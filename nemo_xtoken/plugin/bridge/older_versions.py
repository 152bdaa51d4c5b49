"""What Megatron-Bridge 0.6 does by itself and the versions of NVIDIA's images 26.04 and 26.06 leave out.

Each is asked for by what is there, not by a version's number.
"""

import inspect
import os
from pathlib import Path
from typing import Any

from nemo_xtoken.checksums import CHECKSUMS
from nemo_xtoken.errors import InputError
from nemo_xtoken.plugin.bridge.checkpoints import write_own_checksums

__all__ = ["announces_checkpoints", "check_experts", "listen", "mark_spread", "sum_up"]


def listen(state: Any) -> None:
    """Has Bridge's handler take SIGTERM, where it has only been made: up to 0.5 nobody installs it, and the signal ends
    the process without a checkpoint.

    Args:
        state: Bridge's ``GlobalState``; that of another loop has no handler.
    """
    handler = getattr(state, "signal_handler", None)
    if handler is not None and handler.original_handler is None:  # what was there when it was installed
        handler.__enter__()


def mark_spread(module: Any) -> None:
    """Says of the embedding, the output layer, and Megatron's own linear layers that they are spread over the
    tensor-parallel ranks, where they do not say so.

    Megatron-core before 0.18 says it only of weights that it initialises, and Bridge does not initialise those that it
    loads.  Without it the norm of the gradients, by which they are clipped, has one rank's rows alone.

    Args:
        module: this rank's part of a model.
    """
    from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear, VocabParallelEmbedding

    for layer in module.modules():
        if not isinstance(layer, (ColumnParallelLinear, RowParallelLinear, VocabParallelEmbedding)):
            continue
        weight = getattr(layer, "weight", None)
        if weight is not None and not getattr(weight, "tensor_model_parallel", False):
            weight.tensor_model_parallel, weight.partition_stride = True, 1
            weight.partition_dim = int(isinstance(layer, RowParallelLinear))


def check_experts(provider: Any, ranks: int) -> None:
    """Whether Bridge's conversions give every expert-parallel rank its own experts.

    Up to 0.4 they count the experts of grouped kernels over all ranks, and others (Megatron's ``SequentialMLP``) on
    each from 0, so that every rank would load the first rank's, without a word.

    Args:
        provider: Bridge's, of student or teacher.
        ranks: expert parallel.

    Raises:
        InputError: they do not.
    """
    from megatron.bridge.models.conversion import model_bridge

    if ranks == 1 or not provider.num_moe_experts or provider.moe_grouped_gemm:
        return
    if "local_experts" not in inspect.getsource(model_bridge._megatron_local_name_to_global):
        raise InputError(
            f"experts over {ranks} ranks without grouped kernels (moe_grouped_gemm=False), which this version of "
            "Megatron-Bridge loads as those of the first rank on every rank",
            "grouped kernels, expert_model_parallel_size=1, or Megatron-Bridge 0.5 or newer",
            "take one of these",
        )


def announces_checkpoints() -> bool:
    """Whether Bridge calls ``on_checkpoint_save``; before 0.5 it does not."""
    from megatron.bridge.training.callbacks import VALID_EVENTS

    return "on_checkpoint_save" in VALID_EVENTS


def sum_up(checkpoints: Path, step: int, again: bool = False) -> None:
    """Writes this rank's checksums of a finished checkpoint, where Bridge does not announce it.

    Args:
        checkpoints: the folder of a run's checkpoints.
        step: of the checkpoint; there may be none.
        again: though it has some, which may be those of an earlier writing of the same step.
    """
    folder, rank = checkpoints / f"iter_{step:07d}", int(os.environ.get("RANK", "0"))
    if not folder.is_dir() or announces_checkpoints():
        return
    if again or not any((folder / CHECKSUMS / f"{part}.json").is_file() for part in (f"rank-{rank}", "common")):
        write_own_checksums(folder, rank)
