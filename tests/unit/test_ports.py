"""Ports of process groups are nobody else's between the choice and the use."""

import socket
from pathlib import Path

from ports import FIRST, LAST, OF_A_WORKER, free_port


def test_the_system_gives_none_of_them_to_others():
    first, _ = (int(word) for word in Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    assert first >= LAST
    assert all(FIRST <= free_port() < LAST for _ in range(20))


def test_none_is_given_twice_nor_while_somebody_listens():
    given = [free_port() for _ in range(50)]
    assert len(set(given)) == 50
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", given[-1] + 1))
        assert free_port() != given[-1] + 1


def test_workers_have_ranges_of_their_own(monkeypatch):
    ranges = []
    for worker in range(8):
        monkeypatch.setenv("PYTEST_XDIST_WORKER", f"gw{worker}")
        ranges.append((free_port() - FIRST) // OF_A_WORKER)
    assert ranges == list(range(8))
