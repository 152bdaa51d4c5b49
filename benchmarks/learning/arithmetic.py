"""Arithmetic to learn and to be asked: sums, differences, products and short word problems, from a seed.

Which questions are for the test is decided by their two operands: a pair that is asked in the test is in no training
text, in neither order and in no kind of question.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass

from nemo_xtoken.files import digest_of

from .lengths import Length

__all__ = ["KINDS", "Question", "draw", "is_test", "questions"]

SEED = 605
TEST_SHARE = 0.1
NAMES = ("Ann", "Ben", "Cleo", "Dan")
THINGS = ("apples", "coins", "pens", "stones")


@dataclass(frozen=True)
class Question:
    """What is asked and what is right; in a text a line break stands before it and after the answer.

    Attributes:
        kind: one of `KINDS`.
        pair: the operands, the smaller one first.
    """

    kind: str
    prompt: str
    answer: str
    pair: tuple[int, int]

    @property
    def line(self) -> str:
        """As a text has it."""
        return f"{self.prompt} {self.answer}\n"


def _sum(a: int, b: int, rng: random.Random) -> tuple[str, int]:
    return f"{a} + {b} =", a + b


def _difference(a: int, b: int, rng: random.Random) -> tuple[str, int]:
    return f"{a + b} - {b} =", a


def _product(a: int, b: int, rng: random.Random) -> tuple[str, int]:
    return f"{a} * {b} =", a * b


def _story(a: int, b: int, rng: random.Random) -> tuple[str, int]:
    who, what = rng.choice(NAMES), rng.choice(THINGS)
    if rng.random() < 0.5:
        return f"{who} has {a} {what} and gets {b} more. Now:", a + b
    return f"{who} has {a + b} {what} and loses {b}. Now:", a


#: Kind -> (how often, of ten questions; how it is written, with its answer).
KINDS: dict[str, tuple[int, Callable[[int, int, random.Random], tuple[str, int]]]] = {
    "sum": (4, _sum),
    "difference": (2, _difference),
    "product": (2, _product),
    "story": (2, _story),
}


def is_test(a: int, b: int) -> bool:
    """Whether the pair is asked in the test; the order makes no difference."""
    return int(digest_of(f"{SEED} {min(a, b)} {max(a, b)}")[:8], 16) < TEST_SHARE * 2**32


def draw(rng: random.Random, length: Length, test: bool) -> Question:
    """A question, of a pair of the test or of the training."""
    kind = rng.choices(list(KINDS), [often for often, _ in KINDS.values()])[0]
    while True:
        if kind == "product":
            a, b = rng.randint(2, length.factor), rng.randrange(2, length.factor_of)
        else:
            a, b = rng.randrange(length.largest), rng.randrange(length.second)
        if is_test(a, b) == test:
            prompt, answer = KINDS[kind][1](a, b, rng)
            return Question(kind, prompt, str(answer), (min(a, b), max(a, b)))


def questions(length: Length, count: int) -> list[Question]:
    """Different questions of the test, the same for every model."""
    rng, found = random.Random(SEED), dict[str, Question]()
    for _ in range(100 * count):
        question = draw(rng, length, test=True)
        found.setdefault(question.prompt, question)
        if len(found) == count:
            break
    return list(found.values())
