"""Random texts over a few letters as two random vocabularies write them, and random models of these."""

import itertools

import numpy as np
import torch

from nemo_xtoken.projection.prefixes import PrefixClasses
from nemo_xtoken.vocab.vocabulary import Vocabulary

__all__ = ["IGNORED", "Greedy", "Texts", "random_words", "vocabulary"]

IGNORED = -100


class Greedy:
    """Takes the longest token that the text goes on with."""

    def __init__(self, tokens):
        self.ids = {token: i for i, token in enumerate(tokens) if token is not None}

    def ids_of(self, data):
        found = []
        while data:
            end = max((n for n in range(1, len(data) + 1) if data[:n] in self.ids), default=0)
            if not end:
                return []
            found.append(self.ids[data[:end]])
            data = data[end:]
        return found

    def encode_batch(self, texts):
        return [np.array(self.ids_of(text.encode()), np.int32) for text in texts]


def vocabulary(name, words, roles=()):
    tokens = [w.encode() for w in words] + [None] * len(roles)
    named = {len(words) + i: f"special:{role}" for i, role in enumerate(roles)}
    return Vocabulary(name=name, behaviour=repr(tokens), token_bytes=tokens, roles=named, encoder=Greedy(tokens))


def random_words(rng, number, longest, letters):
    words = set(letters)
    while len(words) < number:
        words.add("".join(rng.choice(list(letters), size=int(rng.integers(2, longest + 1)))))
    return sorted(words, key=lambda w: (len(w), w))


class Texts:
    """Random models of two random vocabularies, and random texts as both write them, with the chunks of equal bytes."""

    def __init__(
        self, seed=0, roles=(("one",), ("two",)), dtype=torch.float64, length=24, h=6, words=(14, 17), letters="abc"
    ):
        rng = np.random.default_rng(seed)
        self.student = vocabulary("s", random_words(rng, words[0], 4, letters), roles[0])
        self.teacher = vocabulary("t", [*random_words(rng, words[1], 3, letters), letters[-1] * 10], roles[1])
        self.v_s, self.v_t = self.student.size, self.teacher.size
        ten = letters[0] + letters[-1] * 11
        samples = ["".join(rng.choice(list(letters), size=n)) for n in (length, 9)]
        samples[1] = ten + samples[1]
        sides = [[Greedy(v.token_bytes).ids_of(t.encode()) for t in samples] for v in (self.student, self.teacher)]
        chunks, lengths = [], [max(map(len, ids)) for ids in sides]
        for i, (s, t) in enumerate(zip(*sides, strict=True)):
            ends = [
                np.cumsum([len(v.token_bytes[x]) for x in ids]) for v, ids in ((self.student, s), (self.teacher, t))
            ]
            shared = [0, *np.intersect1d(*ends)]
            cuts = [[0, *(np.searchsorted(e, shared[1:]) + 1)] for e in ends]
            for (a, b), (c, d) in zip(itertools.pairwise(cuts[0]), itertools.pairwise(cuts[1]), strict=True):
                if a and c:  # the first token has no predictor
                    chunks.append((i, a - 1, b - a, c - 1, d - c))
        labels = [np.full((len(samples), n), IGNORED) for n in lengths]
        for table, ids in zip(labels, sides, strict=True):
            for row, x in zip(table, ids, strict=True):
                row[: len(x) - 1] = x[1:]
        self.batch = {
            "student_labels": torch.from_numpy(labels[0]),
            "teacher_labels": torch.from_numpy(labels[1]),
            "chunks": torch.tensor(chunks, dtype=torch.int64).reshape(-1, 5),
        }
        pad_s, pad_t = -(-self.v_s // 4) * 4 + 4, -(-self.v_t // 4) * 4 + 4
        normal = lambda *shape: torch.from_numpy(rng.normal(size=shape)).to(dtype)  # noqa: E731
        self.hidden_s, self.weight_s = normal(len(samples), lengths[0], h), normal(pad_s, h)
        self.hidden_t, self.weight_t = normal(len(samples), lengths[1], h + 2), normal(pad_t, h + 2)
        self.classes = PrefixClasses.of(self.student, self.teacher)
