"""Processes that fill a folder of states together end together: what one of them finds wrong all raise."""

import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from ranks import run_ranks
from test_read_ahead import LENGTH, OF, WIDTH, side

from nemo_xtoken.errors import InputError
from nemo_xtoken.parallel.context_parallel import ContextLayout
from nemo_xtoken.teachers.contract import States
from nemo_xtoken.teachers.fill.filling import Work, fill

ROUNDS = 3
#: Whether each of the processes is a context-parallel rank of one copy, or a copy of its own.
WAYS = ("context", "copies")


class PartOfATeacher:
    """Sees what is not a number in its own positions alone; ``bad``: (rank, round)."""

    colocated, ahead = True, 0

    def __init__(self, bad, group):
        self.bad, self.group, self.rounds = bad, group, 0

    def announce(self, sides):
        pass

    def states(self, sides):
        self.rounds += 1
        if (dist.get_rank(), self.rounds) in self.bad:
            raise InputError(f"not a number on rank {dist.get_rank()}", "numbers", "none")
        layout = ContextLayout.zigzag(*sides[0].tokens.shape, self.group)
        return [States(torch.zeros(len(layout.local), WIDTH), layout) for _ in sides]


class Writer:
    """Of a disk that is full from some piece on."""

    fingerprint = OF

    def __init__(self, folder, most, flushes):
        self.folder, self.most, self.flushes, self.written = Path(folder), most, flushes, 0

    def add(self, digest, start, ids, states):
        assert states.shape == (LENGTH, WIDTH)
        if self.written == self.most:
            raise InputError("no room", "room", "none")
        self.written += 1

    def flush(self):
        if not self.flushes:
            raise InputError("no room at the end", "room", "none")


def filled(way, bad, most=99, flushes=True):
    """What a rank says at the end, and whether the ranks are in step then."""
    copies = dist.get_world_size() if way == "copies" else 1
    parallel = SimpleNamespace(
        get_data_parallel_rank=lambda: dist.get_rank() if way == "copies" else 0,
        get_data_parallel_world_size=lambda: copies,
    )
    modules, cuda = sys.modules.get("megatron.core"), torch.cuda
    sys.modules["megatron.core"] = SimpleNamespace(parallel_state=parallel)
    torch.cuda = SimpleNamespace(current_device=lambda: "cpu")
    source = SimpleNamespace(side=lambda index: side(index))
    work = Work(tuple((0, index) for index in range(ROUNDS * copies)), ROUNDS * copies * LENGTH, 0)
    try:
        with tempfile.TemporaryDirectory() as folder:
            writer = Writer(folder, most, flushes) if not dist.get_rank() else None
            if dist.get_rank() and way == "copies":
                writer = Writer(folder, 99, True)
            teacher = PartOfATeacher(bad, None if way == "copies" else dist.group.WORLD)
            try:
                fill(teacher, [source], work, writer, 1, 1)
                said = ""
            except InputError as error:
                said = error.found
    finally:
        torch.cuda = cuda
        del sys.modules["megatron.core"]
        if modules is not None:
            sys.modules["megatron.core"] = modules
    ranks = torch.ones(1)
    dist.all_reduce(ranks)
    return said, int(ranks), teacher.rounds


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("bad", [[], [(0, 1)], [(1, 2)], [(0, 2), (1, 2)]])
def test_what_one_rank_finds_wrong_all_raise(way, bad):
    """Else the others wait in a collective, or at the end, for one that is gone."""
    results = run_ranks(2, filled, way, bad, timeout=30)
    for rank, (said, ranks, rounds) in enumerate(results):
        own = [found for found in bad if found[0] == rank]
        others = "; ".join(f"not a number on rank {found[0]}" for found in bad)
        expected = f"not a number on rank {rank}" if own else f"another process has no states: {others}"
        assert (said, ranks) == (expected if bad else "", 2)
        assert rounds == (bad[0][1] if bad else ROUNDS)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("most", "flushes", "rounds"), [(0, True, 2), (ROUNDS - 1, True, 3), (99, False, 3)])
def test_the_full_disk_of_one_rank_ends_all(way, most, flushes, rounds):
    words = "no room" if flushes else "no room at the end"
    results = run_ranks(2, filled, way, [], most, flushes, timeout=30)
    for rank, (said, ranks, done) in enumerate(results):
        assert said == (f"another process has no states: {words}" if rank else words)
        assert (ranks, done) == (2, rounds)
