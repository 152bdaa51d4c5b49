"""The losses of one micro-batch: cross-entropy and each teacher's distillation term, from one pass over the tiles."""

from collections.abc import Sequence

from torch import Tensor

from nemo_xtoken.errors import InputError
from nemo_xtoken.kernels.reference import TORCH
from nemo_xtoken.kernels.tile_kernels import TileKernels
from nemo_xtoken.losses.base import LossTerms, ModelOutput, TeacherSignal
from nemo_xtoken.losses.chunks import ScoredRows
from nemo_xtoken.objective.fused_pass import FusedPass
from nemo_xtoken.objective.tiles import TeacherRows

__all__ = ["cross_tokenizer_loss", "pass_over"]


def cross_tokenizer_loss(
    student: ModelOutput,
    labels: Tensor,
    teachers: Sequence[TeacherSignal] = (),
    ce_weight: float = 1.0,
    kd_weights: Sequence[float | Tensor] | None = None,
    tile_rows: int = 256,
    kernels: TileKernels = TORCH,
) -> LossTerms:
    """``ce_weight * CE + sum_m kd_weights[m] * KD_m``, sums over this micro-batch, and its gradient.

    The gradient is made in the forward pass; peak extra memory is a few tensors of ``[tile_rows, V/tp]`` on either side
    and the gradients themselves, whatever T is.

    Args:
        student: hidden ``[b*T_S, H_S]``, replicated over the tensor-parallel group; weight sharded over it.
        labels: int64 ``[b, T_S]``, the next token, -100 where there is none; on the same device.
        teachers: none for cross-entropy alone.
        kd_weights: one a teacher, 1 by default.
        tile_rows: student positions in a tile; see ``tiles.rows_within``.
        kernels: what goes over the tiles; see ``kernels.choice.kernels_for``.

    Returns:
        the objective, whose gradient with respect to the hidden states is summed over the tensor-parallel group and
        that with respect to the weight is this rank's; and the sums.  Collectives per tile: an all-gather a side, those
        of the divergences, an all-reduce of a column a teacher; at the end one all-reduce of ``[b*T_S, H_S]``
        (none where ``OutputHead.sums_hidden`` is off).

    Raises:
        InputError: numbers of weights and teachers differ, or chunks that no batch can have.
    """
    work = pass_over(student, labels, teachers, ce_weight, kd_weights, tile_rows, kernels)
    objective = work.run()
    return LossTerms(objective, work.cross_entropy(), work.distillation())


def pass_over(
    student: ModelOutput,
    labels: Tensor,
    teachers: Sequence[TeacherSignal] = (),
    ce_weight: float = 1.0,
    kd_weights: Sequence[float | Tensor] | None = None,
    tile_rows: int = 256,
    kernels: TileKernels = TORCH,
) -> FusedPass:
    """The pass that `cross_tokenizer_loss` runs, not run yet; arguments and errors are those of it."""
    weights = [1.0] * len(teachers) if kd_weights is None else list(kd_weights)
    if len(weights) != len(teachers):
        raise InputError(f"{len(weights)} weights for {len(teachers)} teachers", "one each", "correct kd_weights")
    empty = labels.new_zeros(0)
    rows = ScoredRows.build(labels.reshape(-1), empty, empty, only_chunks=False)
    signals = [(teacher, TeacherRows.of(labels, teacher)) for teacher in teachers]
    return FusedPass(student, rows, signals, float(ce_weight), weights, tile_rows, kernels)
