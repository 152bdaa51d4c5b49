"""What a side of an agreement says, string by string."""

import math

import pytest


def strings_of(agreement, side, text_of):
    """Every string that a side writes, with its probability: the product of its next-token distributions."""
    found, waiting = {}, [((), 1.0)]
    while waiting:
        prefix, p = waiting.pop()
        distribution = agreement.next_token(side, prefix)
        assert math.isclose(sum(distribution.values()), 1, rel_tol=1e-12)
        for token, q in distribution.items():
            if token == agreement.ends[side]:
                text = text_of(side, prefix)
                found[text] = found.get(text, 0) + p * q
            else:
                waiting.append(((*prefix, token), p * q))
    return found


def assert_agree(agreement, text_of):
    student, teacher = (strings_of(agreement, side, text_of) for side in (0, 1))
    assert student.keys() == teacher.keys()
    assert student == pytest.approx(teacher, rel=1e-9)
    return student
