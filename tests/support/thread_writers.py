"""Checkpoints written by threads of a rank, as megatron-core 0.19 does, where 0.15 forks two processes for each.

After a fork the rank copies every page of memory that it touches: half of what a save of a toy costs.
"""

import importlib
import queue
import sys
import threading
from types import SimpleNamespace
from typing import Any

__all__ = ["write_in_threads"]

_WRITER = "megatron.core.dist_checkpointing.strategies.filesystem_async"
_THREADS = SimpleNamespace(Queue=queue.Queue, JoinableQueue=queue.Queue, Process=threading.Thread)


def write_in_threads() -> None:
    """From now on in this process, if it has imported megatron-core."""
    if "megatron.core" not in sys.modules:
        return
    writer: Any = importlib.import_module(_WRITER)
    if not hasattr(writer.FileSystemWriterAsync, "write_preloaded_data_multiproc"):
        return  # it has threads
    processes = writer.mp
    get = lambda kind=None: _THREADS if kind == "fork" else processes.get_context(kind)  # noqa: E731
    writer.mp = SimpleNamespace(get_context=get)
