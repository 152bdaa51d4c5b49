"""Looking into W: the rows of named tokens, statistics, and weights that do not come from a rule."""

import re
from collections import Counter
from dataclasses import fields
from typing import Any

import numpy as np

from nemo_xtoken.errors import InputError
from nemo_xtoken.projection.build import ProjectionRule, build_projection
from nemo_xtoken.projection.matrix import ProjectionMatrix
from nemo_xtoken.projection.rows import KINDS, describe_row, entries, row_distances, row_kinds
from nemo_xtoken.projection.token_classes import CLASSES, classify
from nemo_xtoken.vocab.vocabulary import Vocabulary

__all__ = ["BFLOAT16", "find_tokens", "rule_of", "statistics", "unexpected_weights", "unreached_tokens"]

#: Distance up to which a row can be the rule's, stored in bfloat16 (8 bits: 1/256 of each weight) and normalised again.
BFLOAT16 = 0.005


def find_tokens(
    vocabulary: Vocabulary, token: str | None = None, regex: str | None = None, id: int | None = None
) -> list[int]:
    """The ids that are asked for, in order; exactly one of the three is given.

    Args:
        token: a token's text (``" the"``), or what `Vocabulary.display` shows (``<eos>``, ``\\n``).
        regex: searched for in the displayed text of every token.
        id: one id.

    Raises:
        InputError: no such token, or no regular expression.
    """
    if id is not None:
        if not 0 <= id < vocabulary.size:
            raise InputError(f"id={id}", f"0 to {vocabulary.size - 1}, the ids of {vocabulary.name}", "change the id")
        return [id]
    there = [i for i, data in enumerate(vocabulary.token_bytes) if data is not None or i in vocabulary.roles]
    if regex is not None:
        try:
            pattern = re.compile(regex)
        except re.error as error:
            raise InputError(f"regex={regex!r} ({error})", "a regular expression", "quote what has a meaning") from None
        found = [i for i in there if pattern.search(vocabulary.display(i))]
    else:
        wanted = (token or "").encode()
        found = [i for i in there if vocabulary.token_bytes[i] == wanted] if wanted else []
        found = found or [i for i in there if vocabulary.display(i) == token]
    if not found:
        raise InputError(
            f"{vocabulary.name} has no token " + (f"like {regex!r}" if regex is not None else repr(token)),
            "a token of the student",
            _suggestion(vocabulary, token) if token else "try another expression",
        )
    return found


def _suggestion(vocabulary: Vocabulary, token: str) -> str:
    core = token.strip()
    close = [
        text for text in (core, f" {core}", core.lower(), f" {core.lower()}") if text.encode() in vocabulary.id_of_bytes
    ]
    if close:
        return "it has " + ", ".join(dict.fromkeys(map(repr, close)))
    pieces = [vocabulary.display(int(i)) for i in vocabulary.encode(token)]
    return f"it writes this as {' '.join(map(repr, pieces))}; name one of these, or use regex="


def rule_of(matrix: ProjectionMatrix) -> tuple[str, ProjectionRule]:
    """The rule that W's header names, and how to call it; the paper's where the header has none (a foreign file)."""
    names = [f.name for f in fields(ProjectionRule)]
    if all(name in matrix.rule for name in names):
        return "its header's rule", ProjectionRule(**{name: matrix.rule[name] for name in names})
    return "the rule 'paper'", ProjectionRule()


def unreached_tokens(matrix: ProjectionMatrix, teacher: Vocabulary) -> list[int]:
    """The teacher's tokens that no row gives weight to, by id.  P-KL compares their probability as one, REST."""
    missed = np.flatnonzero(~matrix.reached).tolist()
    return [t for t in missed if teacher.token_bytes[t] is not None or t in teacher.roles]


def statistics(
    matrix: ProjectionMatrix, student: Vocabulary, teacher: Vocabulary, examples: int = 12
) -> dict[str, Any]:
    """Counts of rows and columns, as plain values.

    ``rows``: tokens by kind of row.  ``entries_per_row``: number of rows by number of entries.  ``teacher``: tokens
    that some row gives weight to (reached), the rest by class, and the lowest ids of these (the commonest, as
    tokenizers are trained), and all tokens by class.
    """
    kinds = row_kinds(matrix, student, teacher)
    per_row = np.bincount((matrix.ids >= 0).sum(axis=1)[kinds >= 0])
    classes = classify(teacher)
    missed = np.array(unreached_tokens(matrix, teacher), dtype=np.int64)
    unreached, every = (np.bincount(c, minlength=len(CLASSES)) for c in (classes[missed], classes[classes >= 0]))
    texts = [int(t) for t in missed if teacher.token_bytes[t] is not None]
    return {
        "rows": {kind: int((kinds == i).sum()) for i, kind in enumerate(KINDS)},
        "ids_without_token": int((kinds < 0).sum()),
        "entries": int((matrix.ids >= 0).sum()),
        "entries_per_row": {str(n): int(count) for n, count in enumerate(per_row) if count},
        "teacher": {
            "tokens": int((classes >= 0).sum()),
            "reached": int(matrix.reached.sum()),
            "unreached": len(missed),
            "by_class": {c.name: int(n) for c, n in zip(CLASSES, every, strict=True) if n},
            "unreached_by_class": {c.name: int(n) for c, n in zip(CLASSES, unreached, strict=True) if n},
            "unreached_examples": [{"id": t, "token": teacher.display(t)} for t in texts[:examples]],
        },
    }


def unexpected_weights(
    matrix: ProjectionMatrix, student: Vocabulary, teacher: Vocabulary, examples: int = 8
) -> dict[str, Any]:
    """Compares every row with the row that the rule gives, as plain values.

    ``differing``: rows at a distance beyond bfloat16's rounding, of which ``filled`` (the rule leaves them empty) and
    ``emptied``.  ``stray``: rows that give weight to teacher tokens which are not among their pieces; ``stray_weight``
    is the mean share of it in such rows, ``stray_tokens`` the teacher tokens that most of them name.  NeMo-RL's files
    have such junk: its builder puts a fixed weight into the last slot of a row, whichever token stands there.  A
    learned W differs from the rule by intention, but gives weight to pieces of the token only.
    """
    name, rule = rule_of(matrix)
    expected = build_projection(student, teacher, rule)
    distances = row_distances(matrix, expected)
    differing = distances > BFLOAT16
    # A long token's first pieces are its own, whether the rule keeps them or not.
    longest = max(rule.max_pieces, matrix.ids.shape[1])
    pieces = build_projection(student, teacher, ProjectionRule(max_pieces=min(longest, 64), overflow="truncate"))
    own = np.unique(_keys(pieces))
    rows, ids, weights = entries(matrix)
    stray = ~np.isin(_keys(matrix), own)
    in_row = np.bincount(rows[stray], weights[stray], minlength=matrix.student_size)
    affected = np.flatnonzero(in_row > 0)
    heaviest = affected[np.argsort(-in_row[affected], kind="stable")][:examples]
    common = Counter(ids[stray].tolist()).most_common(examples)
    return {
        "compared_with": name,
        "rule": {f.name: getattr(rule, f.name) for f in fields(rule)},
        "differing": int(differing.sum()),
        "filled": int((differing & expected.empty_rows).sum()),
        "emptied": int((differing & matrix.empty_rows).sum()),
        "stray": len(affected),
        "stray_weight": round(float(in_row[affected].mean()), 4) if len(affected) else 0.0,
        "stray_tokens": [{"id": t, "token": teacher.display(t), "rows": n} for t, n in common],
        "examples": [
            describe_row(matrix, int(s), student, teacher)
            | {
                "stray": round(float(in_row[s]), 4),
                "expected": describe_row(expected, int(s), student, teacher)["entries"],
            }
            for s in heaviest
        ],
    }


def _keys(matrix: ProjectionMatrix) -> np.ndarray:
    """int64 ``[E]``: one number per entry, for its row and teacher token."""
    rows, ids, _ = entries(matrix)
    return rows * matrix.teacher_size + ids
