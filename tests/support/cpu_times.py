"""CPU-seconds of each tier and of the files that take most, at the end of a run that is asked for durations.

On a machine with other work, or with several processes of tests, seconds on the clock say little.  Counted is what the
process of a test has used, with the processes that it has started and seen end, and the ranks that it keeps.
"""

import os
import resource
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

__all__ = ["CpuTimes"]

_TICKS = os.sysconf("SC_CLK_TCK")
_USED = "cpu seconds"


class CpuTimes:
    """A plugin of pytest.

    Args:
        most: files that are named, at most.
    """

    def __init__(self, most: int) -> None:
        self._most, self._before = most, 0.0
        self._of_file: defaultdict[str, float] = defaultdict(float)

    def pytest_runtest_logstart(self) -> None:
        """A test begins."""
        self._before = _used()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self) -> Iterator[None]:
        """A part of it has ended: its report takes the time along, also to another process."""
        report: Any = yield
        now = _used()
        report.user_properties.append((_USED, now - self._before))
        self._before = now
        return report

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Adds it up."""
        self._of_file[report.nodeid.split("::")[0]] += sum(n for name, n in report.user_properties if name == _USED)

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """Shows it."""
        tiers: defaultdict[str, float] = defaultdict(float)
        for file, seconds in self._of_file.items():
            tiers["/".join(Path(file).parts[:-1][:2]) or "."] += seconds
        terminalreporter.section("CPU-seconds")
        for name, seconds in (
            *sorted(tiers.items()),
            *sorted(self._of_file.items(), key=lambda e: -e[1])[: self._most],
        ):
            terminalreporter.line(f"{seconds:7.1f} {name}")


def _used() -> float:
    """CPU-seconds of this process, of those that it has seen end, and of the ranks that wait for it."""
    parts = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    used = sum(part.ru_utime + part.ru_stime for part in parts)
    pools = sys.modules["ranks"]._pools.values() if "ranks" in sys.modules else ()
    for pool in pools:
        for pid in pool.pids if pool.owner == os.getpid() else ():
            with open(f"/proc/{pid}/stat") as file:
                used += sum(map(int, file.read().rpartition(")")[2].split()[11:15])) / _TICKS
    return used
