"""How much of something there may be at most: what lies beyond is a slip of the keyboard, and would fill the memory."""

from typing import Final

__all__ = ["LONGEST_SEQUENCE", "MOST_NODES", "MOST_PARTS", "MOST_ROWS", "MOST_WORKERS", "TEMPERATURES"]

#: Tokens of a sample.
LONGEST_SEQUENCE: Final = 2**24
#: Rows of W, or of an output layer.
MOST_ROWS: Final = 2**24
#: Machines of a job, and processes on each.
MOST_NODES: Final = 100_000
#: Tasks that share the preparation of a data set.
MOST_PARTS: Final = 1_000_000
#: Processes beside a rank.
MOST_WORKERS: Final = 256
#: Least and largest tau: float32 logits divided by it, and tau squared, stay finite and tell tokens apart.
TEMPERATURES: Final = (0.001, 1000.0)
