"""Ports for process groups, which no other process can take between the choice and the use.

The system gives ports from ``ip_local_port_range`` to every outgoing connection and to every socket bound to port 0;
a number taken from there and closed again may be another connection's when rank 0 listens on it.  These lie below
that range, each worker of pytest has its own, and none is given twice until all have been.
"""

import itertools
import os
import re
import socket

__all__ = ["free_port"]

FIRST, LAST = 20000, 32000  # below the system's own (Linux: 32768)
OF_A_WORKER = 1500

_turn = itertools.count(os.getpid() % OF_A_WORKER)  # two runs of pytest on one machine rarely meet


def free_port() -> int:
    """A port of this worker's on 127.0.0.1 that nobody listens on and that no closed connection still holds."""
    worker = int(re.sub(r"\D", "", os.environ.get("PYTEST_XDIST_WORKER", "")) or 0)
    first = FIRST + worker * OF_A_WORKER % (LAST - FIRST)
    for _ in range(OF_A_WORKER):
        port = first + next(_turn) % OF_A_WORKER
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port
    raise OSError(f"no port from {first} to {first + OF_A_WORKER - 1} is free")
