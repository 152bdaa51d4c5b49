"""What the processes of one replica make of a request together."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.distributed as dist
from ranks import run_ranks

from nemo_xtoken.errors import InputError
from nemo_xtoken.parallel.context_parallel import ContextLayout
from nemo_xtoken.teachers.contract import States
from nemo_xtoken.teachers.service.asked_rows import Row
from nemo_xtoken.training.alone import serving

LENGTH, WIDTH = 8, 3
ROWS = [Row(LENGTH, (n,), np.arange(n, dtype=np.int32)) for n in (8, 5)]


def whole():
    return torch.arange(len(ROWS) * LENGTH * WIDTH).float().view(-1, WIDTH)


class HalfATeacher:
    """The part of a context-parallel rank: it sees only its own positions, and only there what is not a number."""

    last_stage = True

    def __init__(self, bad):
        self.bad, self.form = bad, self

    def context_layout(self, inputs):
        return ContextLayout.zigzag(*inputs.tokens.shape, dist.group.WORLD)

    def states(self, sides):
        if dist.get_rank() in self.bad:
            raise InputError(f"not a number on rank {dist.get_rank()}", "numbers", "none")
        layout = self.context_layout(sides[0])
        return [States(whole()[layout.positions[dist.get_rank()]], layout)]


def answers(bad):
    """Of one rank, to a request with what is bad and to one after it."""
    cuda, torch.cuda = torch.cuda, SimpleNamespace(current_device=lambda: "cpu")
    try:
        return [serving._computed(HalfATeacher(ranks), ROWS) for ranks in (bad, ())]
    finally:
        torch.cuda = cuda


@pytest.mark.parametrize("bad", [(), (0,), (1,), (0, 1)])
def test_what_one_rank_finds_wrong_all_ranks_answer(bad):
    """Else some wait in a collective that the others never enter; the next request finds them in step."""
    expected = "; ".join(f"not a number on rank {rank}" for rank in bad)
    right = [whole()[n * LENGTH : n * LENGTH + row.tokens] for n, row in enumerate(ROWS)]
    for first, second in run_ranks(2, answers, bad, timeout=30):
        if bad:
            assert first == expected
        else:
            assert all(map(torch.equal, first, right))
        assert all(map(torch.equal, second, right))
