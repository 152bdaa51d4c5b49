"""The components of a graph, by arrays."""

import numpy as np

__all__ = ["components"]


def components(edges: np.ndarray, *sizes: int) -> list[np.ndarray]:
    """The components of a graph between two or more sets of nodes.

    Args:
        edges: int64 ``[e, 2]``; of two sets a node of the first and one of the second, else of one numbering of all.
        sizes: of the sets.

    Returns:
        for each set int64 ``[size]``, the number of each node's component, from 0; -1 for nodes without edges.
    """
    starts = np.cumsum([0, *sizes])
    ends = edges + starts[:2] if len(sizes) == 2 else edges
    label = np.arange(starts[-1])
    while True:
        least = label[ends].min(axis=1)
        new = label.copy()
        np.minimum.at(new, label[ends].ravel(), np.repeat(least, 2))
        while not np.array_equal(new, shorter := new[new]):
            new = shorter
        new = new[label]
        if np.array_equal(new, label):
            break
        label = new
    used = np.zeros(starts[-1], bool)
    used[ends] = True
    number = np.full(starts[-1], -1, np.int64)
    number[used] = np.unique(label[used], return_inverse=True)[1]
    return np.split(number, starts[1:-1])
