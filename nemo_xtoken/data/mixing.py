"""Which source each sample of a mixture comes from: whole shares of the weights, spread evenly."""

import heapq
import math
from collections.abc import Mapping, Sequence
from fractions import Fraction

import numpy as np

from nemo_xtoken.errors import InputError

__all__ = ["Schedule", "shares_of"]

_LONGEST_CYCLE = 2**16


def shares_of(weights: Mapping[str, float]) -> tuple[int, ...]:
    """Whole numbers in the proportion of the weights, exactly as these are written in decimals.

    If their sum would exceed 65536, the nearest ones with this sum: no share is off by more than 1.6e-5.

    Raises:
        InputError: a weight that is not a positive number.
    """
    for name, weight in weights.items():
        if not (math.isfinite(weight) and weight > 0):
            raise InputError(
                f"sources.{name}.weight={weight}", "a positive number", "correct it, or leave the source out"
            )
    exact = [Fraction(str(weight)) for weight in weights.values()]
    total = sum(exact)
    common = math.lcm(*(f.denominator for f in exact))
    whole = [int(f * common) for f in exact]
    divisor = math.gcd(*whole)
    whole = [n // divisor for n in whole]
    if sum(whole) <= _LONGEST_CYCLE:
        return tuple(whole)
    scaled = [f / total * _LONGEST_CYCLE for f in exact]
    near = [max(1, math.floor(f)) for f in scaled]
    by_remainder = sorted(range(len(near)), key=lambda k: (near[k] - scaled[k], k))
    for k in by_remainder[: max(0, _LONGEST_CYCLE - sum(near))]:
        near[k] += 1
    return tuple(near)


class Schedule:
    """Which source each sample comes from: a cycle in which no source ever is a whole sample ahead or behind.

    Of the first n samples source k has more than ``n * share_k - 1`` and fewer than ``n * share_k + 1``, for every n;
    of any n in a row it has less than 2 more or fewer than its share.  (Within 1 for any n in a row is possible for two
    sources, but not for three or more in general.)  Source k's sample j is due in ``[j / share_k, (j + 1) / share_k)``,
    and of those that are due the one with the earliest deadline is next: the proportionate-progress schedule of
    Baruah et al. (1996) on one machine.

    Args:
        shares: positive whole numbers.
    """

    def __init__(self, shares: Sequence[int]) -> None:
        self.shares, self.length = tuple(shares), sum(shares)
        source = np.zeros(self.length, np.int32)
        number = np.zeros(self.length, np.int64)
        waiting = [(0, k, 0) for k in range(len(shares))]  # release, source, number
        ready: list[tuple[int, int, int]] = []  # deadline, source, number
        for slot in range(self.length):
            while waiting and waiting[0][0] <= slot:
                _, k, j = heapq.heappop(waiting)
                heapq.heappush(ready, (-(-(j + 1) * self.length // shares[k]), k, j))
            _, k, j = heapq.heappop(ready)
            source[slot], number[slot] = k, j
            if j + 1 < shares[k]:
                heapq.heappush(waiting, ((j + 1) * self.length // shares[k], k, j + 1))
        self._source, self._number = source, number

    def __getitem__(self, index: int) -> tuple[int, int]:
        """The source of sample ``index``, and which of its samples it is."""
        cycle, slot = divmod(index, self.length)
        k = int(self._source[slot])
        return k, cycle * self.shares[k] + int(self._number[slot])

    def index_of(self, source: int, number: int) -> int:
        """Where the source's sample of this number comes."""
        cycle, within = divmod(number, self.shares[source])
        return cycle * self.length + int(np.flatnonzero(self._source == source)[within])

    def counts(self, samples: int) -> list[int]:
        """How many of the first ``samples`` each source has."""
        cycles, rest = divmod(samples, self.length)
        within = np.bincount(self._source[:rest], minlength=len(self.shares))
        return [cycles * share + int(n) for share, n in zip(self.shares, within, strict=True)]
