"""What the loss costs on a rank: each term of its products, its traffic and its memory.

``tests/unit/benchmarks/test_scaling.py`` holds FLOPs and bytes against counters of real runs, exactly.
"""

from dataclasses import dataclass

__all__ = ["BF16", "FP32", "GIB", "MIB", "MULTI_ENTRIES", "LossSizes", "crossing_entries"]

BF16, FP32 = 2, 4
GIB, MIB = 2**30, 2**20
#: Full reads or writes of a tile of [n, V/tp] float32 in the torch path, on either side.
STUDENT_PASSES, TEACHER_PASSES = 14, 16
#: Entries that a rank sends for a chunk, mean over the ranks, Llama-3 -> Qwen3 (tests/unit/parallel/test_ownership.py).
CROSSING = {1: 0.0, 2: 1476.0, 4: 909.0, 8: 870.6}
MULTI_ENTRIES = 42_158


def crossing_entries(tensor: int) -> float:
    """Entries of Llama-3 -> Qwen3's W that a rank sends for a chunk; between the sizes measured the larger."""
    return 0.0 if tensor == 1 else CROSSING[max(n for n in CROSSING if n <= max(2, tensor))]


@dataclass(frozen=True)
class LossSizes:
    """One micro-batch of the loss on one rank, on the last pipeline stage.

    Attributes:
        rows, teacher_rows: labelled student rows; teacher rows that chunks cover.
        chunks: chunks.
        student_columns, teacher_columns: columns of either output layer on the rank.
        tp: tensor-parallel ranks.
        crossing: entries that the rank sends for a chunk, forward.
        positions: rows of the hidden states, labelled or not.
        tiles: tiles of the pass.
        returning: entries that it sends for a chunk on the way back; the same in the mean over the ranks.
    """

    rows: float
    teacher_rows: float
    chunks: float
    positions: float
    student_hidden: int
    teacher_hidden: int
    student_columns: float
    teacher_columns: float
    tp: int
    crossing: float
    tiles: float = 1.0
    returning: float | None = None

    @property
    def flops(self) -> float:
        """Matrix products: logits, gradient by hidden states and by weight; the teacher's logits.  Each once."""
        student = 3 * self.rows * self.student_hidden * self.student_columns
        return 2 * (student + self.teacher_rows * self.teacher_hidden * self.teacher_columns)

    @property
    def touched(self) -> float:
        """Bytes read and written by what is done element by element."""
        student = STUDENT_PASSES * self.rows * self.student_columns
        return FP32 * (student + TEACHER_PASSES * self.teacher_rows * self.teacher_columns)

    @property
    def exchanged(self) -> float:
        """Bytes of the all-to-alls that the rank hands over: there and back."""
        returning = self.crossing if self.returning is None else self.returning
        return FP32 * self.chunks * (self.crossing + returning)

    @property
    def gathered(self) -> float:
        """Bytes that the rank hands to all-gathers: two numbers a row of either side."""
        return 2 * FP32 * (self.rows + self.teacher_rows) if self.tp > 1 else 0.0

    @property
    def reduced(self) -> float:
        """Bytes that the rank hands to all-reduces: six numbers a chunk, and the gradient by the hidden states."""
        return FP32 * (6 * self.chunks + self.positions * self.student_hidden) if self.tp > 1 else 0.0

    @property
    def wire(self) -> float:
        """Bytes that leave the rank; an all-reduce of a ring sends each twice."""
        share = (self.tp - 1) / self.tp
        return self.exchanged + (self.tp - 1) * self.gathered + 2 * share * self.reduced

    @property
    def dense_wire(self) -> float:
        """Bytes of the exchange if ``V_T`` columns of every chunk were reduced over the ranks and gathered back."""
        return 2 * FP32 * self.chunks * self.teacher_columns * (self.tp - 1)
