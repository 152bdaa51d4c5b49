"""What the loss costs on a rank: each term of its products, its traffic and its memory.

``tests/unit/benchmarks/test_scaling.py`` holds FLOPs and bytes against counters of real runs, exactly.
"""

from dataclasses import dataclass

from nemo_xtoken.run.estimates.loss_traffic import COMMON, SORTED_CAP, LossTraffic

__all__ = [
    "BF16",
    "FP32",
    "GIB",
    "MIB",
    "MULTI_ENTRIES",
    "STUDENT_TENSORS",
    "TEACHER_TENSORS",
    "TILE_MIB_ON_GPU",
    "LossSizes",
    "crossing_entries",
    "rows_on_gpu",
]

BF16, FP32 = 2, 4
GIB, MIB = 2**30, 2**20
#: What the loss may use for a tile on a GPU where nothing is set: about 1,000 rows of Llama-3 <- Qwen3 at TP 1.
TILE_MIB_ON_GPU = 6144
#: Tensors of a tile's size that are alive at once in the pass, of the student's and of a teacher's vocabulary.
STUDENT_TENSORS, TEACHER_TENSORS = 5, 6
#: Rows of a GPU's tile are a multiple of this, the rows of a block of its matrix products.
BLOCK = 128
#: Entries that a rank sends for a chunk, mean over the ranks, Llama-3 -> Qwen3 (tests/unit/parallel/test_ownership.py).
CROSSING = {1: 0.0, 2: 1476.0, 4: 909.0, 8: 870.6}
MULTI_ENTRIES = 42_158


def crossing_entries(tensor: int) -> float:
    """Entries of Llama-3 -> Qwen3's W that a rank sends for a chunk; between the sizes measured the larger."""
    return 0.0 if tensor == 1 else CROSSING[max(n for n in CROSSING if n <= max(2, tensor))]


def rows_on_gpu(student_columns: float, teacher_columns: float, mib: int | None = None) -> int:
    """Student rows of a tile.

    Args:
        student_columns, teacher_columns: of the output layers on a rank; of several teachers the largest.
        mib: memory that the tile may use; None: `TILE_MIB_ON_GPU`.
    """
    row = FP32 * (STUDENT_TENSORS * student_columns + TEACHER_TENSORS * teacher_columns)
    rows = int((TILE_MIB_ON_GPU if mib is None else mib) * MIB // row)
    return max(1, rows - rows % BLOCK if rows > BLOCK else rows)


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
        sequence_parallel: the gradient of the hidden states is summed and scattered in their own type.
        traffic: of the loss.
        cap: values that a sorted distance compares one by one.
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
    sequence_parallel: bool = False
    traffic: LossTraffic = COMMON
    cap: int = SORTED_CAP

    @property
    def sorted_columns(self) -> tuple[float, float]:
        """Columns of either side on the rank that are sorted."""
        student, teacher = self.traffic.sorted_shares
        return student * self.student_columns, teacher * self.teacher_columns

    @property
    def largest(self) -> float:
        """Values of a chunk, of both sides, that the rank gives to be compared one by one."""
        return sum(min(self.cap, columns) for columns in self.sorted_columns)

    @property
    def flops(self) -> float:
        """Matrix products, each once: logits, gradients of hidden states and of the weight; the teacher's logits."""
        student = 3 * self.rows * self.student_hidden * self.student_columns
        return 2 * (student + self.teacher_rows * self.teacher_hidden * self.teacher_columns)

    @property
    def touched(self) -> float:
        """Bytes read and written by what is done element by element, sorting among it."""
        by, (student, teacher) = self.traffic, self.sorted_columns
        whole = by.student * self.rows * self.student_columns + by.teacher * self.teacher_rows * self.teacher_columns
        each = by.student_sorted * student + by.teacher_sorted * teacher + by.largest * self.tp * self.largest / 2
        return FP32 * (whole + self.chunks * each)

    @property
    def weights_touched(self) -> float:
        """Bytes of the output weights and of their gradient that are read and written: in each tile the weight twice,
        Megatron's gradient read and written in float32, a teacher's weight once; and in each micro-batch the
        placeholder that autograd gets."""
        student = self.student_hidden * self.student_columns * (self.tiles * (2 * BF16 + 2 * FP32) + BF16)
        return student + self.teacher_weights_touched

    @property
    def teacher_weights_touched(self) -> float:
        """Of these the teacher's."""
        return self.tiles * BF16 * self.teacher_hidden * self.teacher_columns

    @property
    def exchanged(self) -> float:
        """Bytes of the all-to-alls that the rank hands over: there and back."""
        returning = self.crossing if self.returning is None else self.returning
        return FP32 * self.chunks * (self.crossing + returning)

    @property
    def gathered(self) -> float:
        """Bytes that the rank hands to all-gathers: two numbers a row of either side, and the largest values."""
        values = 2 * (self.rows + self.teacher_rows) + self.chunks * self.largest
        return FP32 * values if self.tp > 1 else 0.0

    @property
    def reduced(self) -> float:
        """Bytes that the rank hands to all-reduces: some numbers a chunk, and the gradient of the hidden states."""
        hidden = 0.0 if self.sequence_parallel else self.positions * self.student_hidden
        return FP32 * (self.traffic.summed * self.chunks + hidden) if self.tp > 1 else 0.0

    @property
    def scattered(self) -> float:
        """Bytes that the rank hands to reduce-scatters: the gradient of the hidden states."""
        return BF16 * self.positions * self.student_hidden if self.sequence_parallel and self.tp > 1 else 0.0

    @property
    def wire(self) -> float:
        """Bytes that leave the rank; an all-reduce of a ring sends each twice, a reduce-scatter once."""
        share = (self.tp - 1) / self.tp
        return self.exchanged + (self.tp - 1) * self.gathered + share * (2 * self.reduced + self.scattered)

    @property
    def dense_wire(self) -> float:
        """Bytes of the exchange if ``V_T`` columns of every chunk were reduced over the ranks and gathered back."""
        return 2 * FP32 * self.chunks * self.teacher_columns * (self.tp - 1)
