"""Random samples of a teacher's next token in the place of its hidden states: some 60 bytes a token instead of 5,000.

A row has the exact log-probability of the token that the text goes on with, and samples of all other tokens, REST,
whose mass is known exactly with it.  With n samples ``t_1 .. t_n`` of ``p / (1 - p(x))`` without x the estimate is

    p^ = p(x) e_x + (1 - p(x)) / n * sum_i e_{t_i},    E[p^] = p,

so that whatever is linear in p, such as the gradient of ``-sum_c P_c log Q_c`` with ``P_c = sum_{t in c} p_t``, keeps
its expectation.  What is not linear, such as ``p log p`` or a top-k, does not.  Samples are drawn systematically, at
equal distances of the cumulative distribution from one random number: a token of mass m comes floor(mn) or ceil(mn)
times, with the right expectation and less variance than that of independent draws (cf. arXiv 2503.16870).
"""

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from nemo_xtoken.data.batch import IGNORED, TeacherSide
from nemo_xtoken.parallel.head import OutputHead
from nemo_xtoken.parallel.ownership import Ownership
from nemo_xtoken.parallel.softmax import all_reduce_sum, softmax_and_picked
from nemo_xtoken.parallel.vocabulary_shard import VocabularyShard, group_size
from nemo_xtoken.teachers.source_settings import SAMPLES
from nemo_xtoken.teachers.store.side_pieces import pieces_of

__all__ = ["SAMPLES", "SampledHead", "Sampler", "draw", "labels_of", "sampled_rows"]

#: The logit of what was not drawn: its probability is exactly 0, and no row of a shard is without a largest number.
NEVER = -1e4
#: Rows whose distributions are in memory in float64 at a time.
ROWS = 64


def draw(p: Tensor, label: Tensor, u: Tensor, shard: VocabularyShard, count: int = SAMPLES) -> Tensor:
    """Samples of the distribution without the label, ``[n, count]`` columns, as numbers in the whole vocabulary.

    Args:
        p: ``[n, V/tp]`` probabilities, this rank's columns.
        label: int64 ``[n]``, the column that is known exactly.  It is what is drawn where nothing else has any mass.
        u: ``[n]``, from [0, 1), which decides everything.
        shard: layout of the columns.

    Collectives: one all-gather of n values and one all-reduce of the result; none for one rank.
    """
    rows = torch.arange(p.shape[0], device=p.device)
    own = label - shard.start
    mine = (own >= 0) & (own < shard.rows)
    rest = p.to(torch.float64, copy=True)
    rest[rows[mine], own[mine]] = 0
    up_to = rest.cumsum(1)
    total = up_to[:, -1].contiguous()
    totals = total.unsqueeze(0)
    if group_size(shard.group) > 1:
        totals = total.new_empty(group_size(shard.group), total.numel())
        dist.all_gather_into_tensor(totals.view(-1), total, group=shard.group)
    ends = totals.cumsum(0)
    whole, below = ends[-1].unsqueeze(1), 1 - torch.finfo(torch.float64).eps
    steps = torch.arange(count, device=p.device)
    points = torch.minimum((steps + u.double().unsqueeze(1)) / count * whole, whole * below)
    owner = (points >= ends.unsqueeze(2)).sum(0)
    local = points - (ends[shard.rank] - total).unsqueeze(1)
    found = torch.searchsorted(up_to, torch.minimum(local, total.unsqueeze(1) * below).contiguous(), right=True)
    found = torch.where(owner == shard.rank, found.clamp_max(shard.rows - 1) + shard.start, 0)
    return torch.where(whole > 0, all_reduce_sum(found, shard.group), label.unsqueeze(1))


def sampled_rows(head: OutputHead, hidden: Tensor, labels: Tensor, u: Tensor, tokens: Tensor) -> Tensor:
    """Rows of ``SAMPLES`` token ids, the label, and its log-probability: float32 ``[n, SAMPLES + 2]``.

    Args:
        head: the teacher's output layer.
        hidden: ``[n, H]``.
        labels: int64 ``[n]``, the next tokens.
        u: ``[n]``, from [0, 1).
        tokens: int64 ``[V]``, the token of each column.

    Collectives, for each of ``ROWS`` rows: those of ``softmax_and_picked`` and `draw`.
    """
    found = []
    columns = head.columns_of(labels)
    for part in torch.arange(hidden.shape[0], device=hidden.device).split(ROWS):
        p, log_p = softmax_and_picked(head.logits(hidden[part]), columns[part], head.shard)
        drawn = tokens[draw(p, columns[part], u[part], head.shard)]
        numbers = torch.cat([drawn, labels[part].unsqueeze(1)], 1).float()  # ids below 2**24 are exact
        found.append(torch.cat([numbers, log_p.float().unsqueeze(1)], 1))
    return torch.cat(found) if found else hidden.new_zeros((0, SAMPLES + 2), dtype=torch.float32)


def labels_of(side: TeacherSide) -> Tensor:
    """int64 ``[b*T]``, the token after each position, also where no loss asks for it; 0 where none is known."""
    labels = side.labels.reshape(-1)
    after = side.tokens.reshape(-1).roll(-1)
    inside = torch.zeros_like(labels, dtype=torch.bool)
    for sample, first, count, _ in side.pieces.tolist():
        begin = sample * side.tokens.shape[1] + first
        inside[begin : begin + count - 1] = True
    return torch.where(inside, after, torch.where(labels == IGNORED, 0, labels))


class Sampler:
    """Makes sampled rows of a micro-batch's states.  The same text gives the same random numbers in every layout.

    Args:
        head: the teacher's output layer.
        ownership: its order.
    """

    def __init__(self, head: OutputHead, ownership: Ownership) -> None:
        self._head = head
        self._tokens = torch.from_numpy(ownership.order).to(head.weight.device)

    def __call__(self, hidden: Tensor, side: TeacherSide) -> Tensor:
        """``[b*T, SAMPLES + 2]`` of ``hidden [b*T, H]``, on the CPU; see `sampled_rows`, also for the collectives."""
        u = torch.zeros(hidden.shape[0], dtype=torch.float64)
        for piece in pieces_of(side):
            seed = int.from_bytes(piece.digest, "big"), piece.start
            u[piece.rows] = torch.from_numpy(np.random.default_rng(seed).random(piece.count))
        return sampled_rows(self._head, hidden, labels_of(side), u.to(hidden.device), self._tokens).cpu()


class SampledHead(OutputHead):
    """A head whose "hidden states" are sampled rows; its logits are those of the estimate ``p^``, at temperature 1.

    Args:
        shard, columns: of the order that a loss wants, as for any head.  Samples of tokens that it leaves out count for
            nothing.
    """

    def __init__(self, shard: VocabularyShard, columns: Tensor) -> None:
        super().__init__(torch.empty(shard.rows, 0), shard, columns)

    def _product(self, hidden: Tensor) -> Tensor:
        assert self.columns is not None
        count = hidden.shape[1] - 2
        ids, log_p = hidden[:, : count + 1].long(), hidden[:, -1:]
        known = ids < self.columns.numel()
        local = self.columns[ids.where(known, 0)] - self.shard.start
        known &= (local >= 0) & (local < self.shard.rows)
        masses = torch.cat([(-log_p.expm1() / count).expand(-1, count), log_p.exp()], 1)
        p = hidden.new_zeros(hidden.shape[0], self.shard.rows)
        p.scatter_add_(1, local.clamp(0, self.shard.rows - 1), torch.where(known, masses, 0))
        return p.log_().clamp_min_(NEVER)
