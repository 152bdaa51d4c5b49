"""How much of something there may be at most: what lies beyond is a slip of the keyboard, and would fill the memory."""

from typing import Final

__all__ = [
    "LARGEST_BATCH",
    "LONGEST_SEQUENCE",
    "MOST_BYTES",
    "MOST_MULTIPLE",
    "MOST_NODES",
    "MOST_PARTS",
    "MOST_RANKS",
    "MOST_ROWS",
    "MOST_STEPS",
    "MOST_WORKERS",
    "TEMPERATURES",
]

#: Tokens of a sample.
LONGEST_SEQUENCE: Final = 2**24
#: Rows of W, or of an output layer.
MOST_ROWS: Final = 2**24
#: What the rows of an output layer are rounded up to a multiple of; a layout needs a few thousand.
MOST_MULTIPLE: Final = 65_536
#: Machines of a job, and processes on each.
MOST_NODES: Final = 100_000
#: Processes of a job, which its parallel sizes divide; the largest clusters have a few 100,000 GPUs.
MOST_RANKS: Final = 1_000_000
#: Samples, or rows, that a process has in memory at a time; it is full long before.
LARGEST_BATCH: Final = 65_536
#: Steps of a training; a year has 30 million seconds.
MOST_STEPS: Final = 1_000_000_000
#: Bytes of a text that is in memory as a whole: a TiB.
MOST_BYTES: Final = 2**40
#: Tasks that share the preparation of a data set.
MOST_PARTS: Final = 1_000_000
#: Processes beside a rank.
MOST_WORKERS: Final = 256
#: Least and largest tau: float32 logits divided by it, and tau squared, stay finite and tell tokens apart.
TEMPERATURES: Final = (0.001, 1000.0)
