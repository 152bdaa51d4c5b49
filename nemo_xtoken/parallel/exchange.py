"""Moving probabilities between the two vocabularies when both are sharded: ``W^T p`` and its transpose ``W g``.

The student's columns lie where its output layer lies, and so do the rows of W; the teacher's columns lie where its
output layer lies.  :meth:`VocabularyExchange.project` and :meth:`VocabularyExchange.pull` hide how they meet.  Here the
exchange is dense: one reduce-scatter forward, one all-gather backward, of ``V_T`` columns a row.
"""

import warnings

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from nemo_xtoken.errors import InputError
from nemo_xtoken.parallel.layout import VocabularyShard, group_size
from nemo_xtoken.parallel.softmax import all_reduce_sum
from nemo_xtoken.projection.matrix import ProjectionMatrix

__all__ = ["VocabularyExchange"]


class VocabularyExchange(torch.nn.Module):
    """This rank's rows of W, ready to move probabilities to the teacher's vocabulary and gradients back.

    W is closed by one column, REST, so that all mass is somewhere: a student token with an empty row maps to REST with
    weight 1, and the teacher's mass on tokens that W does not reach is its mass on REST.

    Args:
        matrix: the whole W (host memory); only this rank's rows are kept.
        student: layout of the student's output layer.
        teacher: layout of the teacher's output layer, over the same group.
    """

    entries: Tensor
    weights: Tensor
    empty: Tensor
    reached: Tensor

    def __init__(self, matrix: ProjectionMatrix, student: VocabularyShard, teacher: VocabularyShard) -> None:
        super().__init__()
        for side, size, shard in (
            ("student", matrix.student_size, student),
            ("teacher", matrix.teacher_size, teacher),
        ):
            if size != shard.size:
                raise InputError(
                    f"a projection matrix for a {side} vocabulary of {size} tokens, a model of {shard.size}",
                    "equal sizes",
                    "give the model the tokenizer that W was built with, or build W for this pair",
                )
        self.student, self.teacher, self.group = student, teacher, student.group
        stop = student.start + student.valid_rows
        ids, weights = matrix.ids[student.start : stop], matrix.weights[student.start : stop]
        rows, slots = np.nonzero(ids >= 0)
        empty = np.zeros(student.rows, dtype=bool)
        empty[: student.valid_rows] = matrix.empty_rows[student.start : stop]
        reached = np.zeros(teacher.padded, dtype=bool)
        reached[: teacher.size] = matrix.reached
        for name, value in (
            ("entries", torch.from_numpy(np.stack([rows, ids[rows, slots]]).astype(np.int64))),
            ("weights", torch.from_numpy(weights[rows, slots])),
            ("empty", torch.from_numpy(np.flatnonzero(empty))),
            ("reached", torch.from_numpy(reached[teacher.start : teacher.start + teacher.rows])),
        ):
            self.register_buffer(name, value, persistent=False)
        self.has_rest = bool(matrix.empty_rows.any())
        self.has_unreached = not bool(matrix.reached.all())
        self._sparse: dict[tuple[torch.dtype, torch.device, bool], Tensor] = {}

    def project(self, p: Tensor) -> tuple[Tensor, Tensor]:
        """``W^T p`` for student probabilities.

        Args:
            p: ``[n, V_S/tp]``, this rank's columns.

        Returns:
            ``(q [n, V_T/tp], this rank's columns of the teacher's vocabulary; REST [n], equal on all ranks)``.
            Collectives: one reduce-scatter of ``[n, V_T]`` and one all-reduce of n values.
        """
        rest = all_reduce_sum(p.index_select(1, self.empty).sum(1), self.group)
        dense = self._matrix(p, transposed=True) @ p.t()  # [V_T, n]: the ranks' parts lie one after the other
        if group_size(self.group) > 1:
            q = p.new_empty((self.teacher.rows, p.shape[0]))
            dist.reduce_scatter_tensor(q, dense.contiguous(), group=self.group)
            dense = q
        return dense.t().contiguous(), rest

    def pull(self, g: Tensor, g_rest: Tensor) -> Tensor:
        """The transpose of :meth:`project`: ``W g``.

        Args:
            g: ``[n, V_T/tp]``, this rank's columns.
            g_rest: ``[n]``, equal on all ranks.

        Returns:
            ``[n, V_S/tp]``, this rank's columns; 0 in padding.  Collectives: one all-gather of ``[n, V_T]``.
        """
        columns = g.t().contiguous()
        if (ranks := group_size(self.group)) > 1:
            gathered = g.new_empty((ranks * columns.shape[0], columns.shape[1]))
            dist.all_gather_into_tensor(gathered, columns, group=self.group)
            columns = gathered
        out = (self._matrix(g, transposed=False) @ columns).t().contiguous()
        out.index_copy_(1, self.empty, g_rest.unsqueeze(1).expand(-1, self.empty.numel()).contiguous())
        return out

    def _matrix(self, like: Tensor, transposed: bool) -> Tensor:
        """This rank's rows of W, ``[V_S/tp, V_T]`` or its transpose, as torch's sparse CSR; made once a dtype."""
        key = like.dtype, like.device, transposed
        if key not in self._sparse:
            shape = self.student.rows, self.teacher.padded
            entries = self.entries.flip(0) if transposed else self.entries
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="Sparse", category=UserWarning)  # "in beta state"
                coo = torch.sparse_coo_tensor(
                    entries, self.weights.to(like.dtype), shape[::-1] if transposed else shape, check_invariants=True
                )
                self._sparse[key] = coo.coalesce().to_sparse_csr()
        return self._sparse[key]
