"""What each loss reads and writes beside its matrix products, and what it sends, as counted on a CPU.

The counts are those of ``benchmarks/loss_counts.json``, of Triton's kernels, which a GPU takes;
``tests/unit/benchmarks/test_loss_counts.py`` holds the figures here against it.
"""

from dataclasses import dataclass

__all__ = ["COMMON", "SORTED_CAP", "LossTraffic", "traffic_of"]

#: Values of a side that a sorted distance compares one by one, where nothing is set.
SORTED_CAP = 4096


@dataclass(frozen=True)
class LossTraffic:
    """Of one loss.

    Attributes:
        student, teacher: full reads or writes of ``[n, V_S/tp]`` and ``[m, V_T/tp]`` in float32, for n student rows and
            m teacher rows.
        student_sorted, teacher_sorted: the same of the columns that are sorted, for K chunks, where they are copied
            first; Triton's kernels find the largest of them in the whole rows.
        largest: the same of the largest values, ``[K, SORTED_CAP]`` of each rank.
        sorted_shares: which share of the student's and of the teacher's tokens is sorted, of Llama-3 and Qwen3.
        summed: numbers of a chunk that go through all-reduces.
        exchanges: entries of W go from rank to rank.  Where its rows have one entry none has to.
    """

    student: float
    teacher: float
    student_sorted: float = 0.0
    teacher_sorted: float = 0.0
    largest: float = 0.0
    sorted_shares: tuple[float, float] = (0.0, 0.0)
    summed: int = 6
    exchanges: bool = True


#: Of prefix_kl and bpm; P-KL reads the teacher's once less.
COMMON = LossTraffic(5.0, 4.0)
_TRAFFIC = {
    "h_kl": LossTraffic(10.0, 8.0, largest=18.0, sorted_shares=(0.145, 0.277), exchanges=False),
    "gold": LossTraffic(10.0, 8.0, largest=18.0, sorted_shares=(0.146, 0.278), exchanges=False),
    "csd": LossTraffic(5.0, 3.0, exchanges=False),
    "uld": LossTraffic(8.0, 7.0, largest=18.0, sorted_shares=(1.0, 1.0), summed=3, exchanges=False),
}


def traffic_of(loss: str) -> LossTraffic:
    """Of a loss by its name; one that is not counted, ``auto`` among them, has `COMMON`."""
    return _TRAFFIC.get(loss, COMMON)
