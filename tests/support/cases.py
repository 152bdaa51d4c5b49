"""Random problems for the losses: two vocabularies, W, hidden states, output weights, labels and chunks."""

import numpy as np
import torch

from nemo_xtoken.projection.matrix import ProjectionMatrix
from nemo_xtoken.projection.prefixes import MAX_PIECES, PrefixClasses, SpelledTokens


def random_matrix(rng, v_s, v_t, empty=0.1, reach=1.0):
    """Rows of 1 to 4 entries (some empty) over the first ``reach`` of the teacher's tokens."""
    ids = np.full((v_s, 4), -1, np.int32)
    weights = np.zeros((v_s, 4), np.float32)
    for s in range(v_s):
        if rng.random() < empty:
            continue
        k = 1 if rng.random() < 0.7 else int(rng.integers(2, 5))
        ids[s, :k] = rng.choice(max(4, int(v_t * reach)), size=k, replace=False)
        raw = 0.9 * 0.1 ** np.arange(k)
        weights[s, :k] = raw / raw.sum()
    return ProjectionMatrix(ids, weights, v_t, "s", "t")


def random_batch(rng, b, t_s, t_t, v_s, v_t):
    """Labels with holes and chunks of 1 to 3 tokens on either side, gaps between them."""
    student = rng.integers(0, v_s, (b, t_s))
    teacher = rng.integers(0, v_t, (b, t_t))
    chunks = []
    for i in range(b):
        s, t = int(rng.integers(0, 2)), int(rng.integers(0, 3))
        while True:
            n, m = (1, 1) if rng.random() < 0.5 else (int(rng.integers(1, 4)), int(rng.integers(1, 4)))
            if s + n > t_s - 2 or t + m > t_t - 1:
                break
            chunks.append((i, s, n, t, m))
            s, t = s + n + int(rng.random() < 0.2), t + m + int(rng.random() < 0.2)
        student[i, t_s - 1] = -100
        teacher[i, t_t - 1] = -100
    return {
        "student_labels": torch.from_numpy(student),
        "teacher_labels": torch.from_numpy(teacher),
        "chunks": torch.tensor(chunks, dtype=torch.int64).reshape(-1, 5),
    }


class Problem:
    """One random problem; ``pad_*`` rows make the output layers wider than the vocabularies."""

    def __init__(self, seed=0, b=2, t_s=9, t_t=11, v_s=23, v_t=31, pad_s=24, pad_t=32, h=6, dtype=torch.float64, **w):
        rng = np.random.default_rng(seed)
        self.v_s, self.v_t = v_s, v_t
        self.matrix = random_matrix(rng, v_s, v_t, **w)
        self.batch = random_batch(rng, b, t_s, t_t, v_s, v_t)
        normal = lambda *shape: torch.from_numpy(rng.normal(size=shape)).to(dtype)  # noqa: E731
        self.hidden_s, self.weight_s = normal(b, t_s, h), normal(pad_s, h)
        self.hidden_t, self.weight_t = normal(b, t_t, h + 2), normal(pad_t, h + 2)


def match_labels(problem, common):
    """Gives two of three chunks of one token a side a pair of the common set for labels; says which, ``[K]``."""
    matched = []
    for number, (i, a, n, c, m) in enumerate(problem.batch["chunks"].tolist()):
        matched.append(n == m == 1 and number % 3 < 2)
        if matched[-1]:
            pair = number % len(common)
            problem.batch["student_labels"][i, a] = int(common.student[pair])
            problem.batch["teacher_labels"][i, c] = int(common.teacher[pair])
    return torch.tensor(matched)


def random_classes(rng, v, alone=12):
    """Prefix classes of two vocabularies of v tokens, of which the first ones are equal and the others spelled."""

    def side():
        pieces = np.full((v, MAX_PIECES), -1, np.int32)
        pieces[:alone, 0] = np.arange(alone)
        for token in range(alone, v):
            count = int(rng.integers(2, 4))
            pieces[token, :count] = rng.integers(0, alone, count)
        return SpelledTokens(pieces[:, 0].copy(), np.arange(v, dtype=np.int32), pieces)

    return PrefixClasses(side(), side())


def match_spellings(problem, classes):
    """Gives chunks whose one side has a single token labels that spell one as the classes have it; says how many."""
    matched = 0
    for i, a, n, c, m in problem.batch["chunks"].tolist():
        if (n == 1) == (m == 1):
            continue
        whole, spelling = ("student", "teacher") if n == 1 else ("teacher", "student")
        at, start, count = (a, c, m) if n == 1 else (c, a, n)
        lengths = (getattr(classes, whole).pieces >= 0).sum(1)
        token = int(np.flatnonzero(lengths == count)[(i + a) % int((lengths == count).sum())])
        problem.batch[f"{whole}_labels"][i, at] = token
        pieces = torch.from_numpy(getattr(classes, whole).pieces[token, :count])
        problem.batch[f"{spelling}_labels"][i, start : start + count] = pieces.long()
        matched += 1
    return matched
