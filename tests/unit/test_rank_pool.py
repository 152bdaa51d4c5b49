"""The processes that tests of several ranks share: what one failure leaves to the next test."""

import os
import time

import pytest
import torch
import torch.distributed as dist
from ranks import run_ranks


def sum_of_ranks(more):
    total = torch.tensor([dist.get_rank() + more])
    dist.all_reduce(total)
    return int(total), os.getpid()


def raises_on_one():
    if dist.get_rank() == 1:
        raise ValueError("wrong on purpose")
    dist.barrier()


def dies_on_one():
    if dist.get_rank() == 1:
        os._exit(3)
    dist.barrier()


def hangs():
    time.sleep(600)


def test_processes_are_kept():
    first, second = run_ranks(2, sum_of_ranks, 1), run_ranks(2, sum_of_ranks, 2)
    assert [total for total, _ in first + second] == [3, 3, 5, 5]
    assert [pid for _, pid in first] == [pid for _, pid in second]


@pytest.mark.parametrize(
    ("function", "timeout", "message"),
    [
        (raises_on_one, 120, "rank 1:\n.*wrong on purpose"),
        (dies_on_one, 120, "rank [01](:\n| died)"),  # the others may notice first
        (hangs, 0.5, "rank 0 gave no answer in 0.5 s"),
    ],
)
def test_a_failing_rank_is_named_and_the_next_test_has_new_ones(function, timeout, message):
    before = [pid for _, pid in run_ranks(2, sum_of_ranks, 0)]
    with pytest.raises(AssertionError, match=f"(?s){message}"):
        run_ranks(2, function, timeout=timeout)
    after = run_ranks(2, sum_of_ranks, 0)
    assert [total for total, _ in after] == [1, 1]
    assert not {pid for _, pid in after} & set(before)
    for pid in before:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
