"""Runs a function on several gloo ranks, forked from this process so that nothing is imported twice."""

import multiprocessing
import os
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist


def run_ranks(ranks: int, function: Callable[..., Any], *args: Any, timeout: float = 120) -> list[Any]:
    """``[function(*args) on rank r for r in ranks]``; fails with the first rank's traceback if one fails.

    Results travel by pickle, so they are plain data or CPU tensors turned into numpy arrays.
    """
    context = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory() as folder:
        store = str(Path(folder) / "store")
        pipes, processes = [], []
        for rank in range(ranks):
            ours, theirs = context.Pipe(duplex=False)
            process = context.Process(target=_rank, args=(rank, ranks, store, theirs, function, args), daemon=False)
            process.start()
            theirs.close()
            pipes.append(ours)
            processes.append(process)
        results: list[Any] = []
        failed = ""
        try:
            for rank, pipe in enumerate(pipes):
                if not pipe.poll(timeout):
                    failed = failed or f"rank {rank} gave no answer in {timeout} s"
                    break
                try:
                    good, value = pipe.recv()
                except EOFError:
                    good, value = False, f"rank {rank} died"
                if not good:
                    failed = value
                    break
                results.append(value)
        finally:
            for process in processes:
                if failed:
                    process.terminate()
                process.join(10)
                if process.is_alive():
                    process.kill()
        if failed:
            raise AssertionError(failed)
        return results


def _rank(rank: int, ranks: int, store: str, pipe: Any, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(ranks), GLOO_SOCKET_IFNAME="lo")
    torch.set_num_threads(1)
    code = 1
    try:
        dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=ranks)
        pipe.send((True, function(*args)))
        dist.barrier()
        dist.destroy_process_group()
        code = 0
    except BaseException:
        pipe.send((False, f"rank {rank}:\n{traceback.format_exc()}"))
    finally:
        pipe.close()
        os._exit(code)
