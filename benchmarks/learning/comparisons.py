"""Defaults beside other settings: differences of two arms, seed by seed."""

from collections.abc import Mapping
from typing import Any

from .statistics import difference

__all__ = ["COMPARED", "compared"]

#: Setting, its default's arm, other value, that value's arm.
COMPARED = (
    ("loss, digits", "digits/prefix_kl", "p_kl", "digits/p_kl"),
    ("", "digits/prefix_kl", "nrl_p_kl", "digits/p_kl_nrl"),
    ("", "digits/prefix_kl", "gold", "digits/gold"),
    ("", "digits/prefix_kl", "uld", "digits/uld"),
    ("loss, matching", "matching/prefix_kl", "p_kl", "matching/p_kl"),
    ("", "matching/prefix_kl", "h_kl", "matching/h_kl"),
    ("objective.scale, digits, prefix_kl", "digits/prefix_kl", "1", "digits/prefix_kl_fixed"),
    ("objective.scale, digits, p_kl", "digits/p_kl", "1", "digits/p_kl_fixed"),
    ("objective.scale, digits, gold", "digits/gold", "1", "digits/gold_fixed"),
    ("objective.scale, matching, prefix_kl", "matching/prefix_kl", "1", "matching/prefix_kl_fixed"),
    ("objective.scale, matching, p_kl", "matching/p_kl", "1", "matching/p_kl_fixed"),
    ("objective.scale, matching, h_kl", "matching/h_kl", "1", "matching/h_kl_fixed"),
    ("objective.scale, two, prefix_kl", "two/prefix_kl", "1", "two/prefix_kl_fixed"),
    ("chunks.merge, digits, p_kl", "digits/p_kl", "mean", "digits/p_kl_mean"),
    ("", "digits/p_kl", "first", "digits/p_kl_first"),
    ("rule.overflow, digits, p_kl", "digits/p_kl", "truncate", "digits/p_kl_truncate"),
    ("", "digits/p_kl", "truncate, gamma=0", "digits/p_kl_prefix_rule"),
    ("learned, digits, p_kl", "digits/p_kl", "true", "digits/p_kl_learned"),
    ("options.top_k, digits, p_kl", "digits/p_kl", "32", "digits/p_kl_top_k"),
    ("options.partial_kl, digits, h_kl", "digits/h_kl", "paper", "digits/h_kl_paper"),
    ("options.partial_kl, matching, h_kl", "matching/h_kl", "paper", "matching/h_kl_paper"),
    ("teachers, prefix_kl", "two/prefix_kl", "digits alone", "digits/prefix_kl"),
    ("", "two/prefix_kl", "matching alone", "matching/prefix_kl"),
    ("objective.teacher_weights, prefix_kl", "two/prefix_kl", "confidence", "two/prefix_kl_confidence"),
)
#: Measure -> (heading, factor, digits).
MEASURES = {
    "accuracy": ("right answers, points", 100, 1),
    "right_answer": ("p(right answer), points", 100, 1),
    "arithmetic_ce": ("arithmetic, nats/byte", 1, 4),
    "text_ce": ("text, nats/byte", 1, 4),
}


def compared(summarized: Mapping[str, Any]) -> str:
    """Markdown: what each other value is above the default, with its interval; empty where nothing can be compared.

    Args:
        summarized: what `report.summary` returns.
    """
    headings = ["", "default", "beside it", *(heading for heading, _, _ in MEASURES.values())]
    lines, last = [], ""
    for setting, default, value, other in COMPARED:
        last = setting or last
        if default not in summarized or other not in summarized:
            continue
        cells = []
        for name, (_, factor, digits) in MEASURES.items():
            a, b = (summarized[arm]["measures"][name]["by_seed"] for arm in (other, default))
            found = difference(a, b)
            cells.append(found.written(factor, digits, sign=True) if found else "")
        lines.append(f"| {' | '.join([last, default, value, *cells])} |")
    if not lines:
        return ""
    head = [f"| {' | '.join(headings)} |", "|---|---|---|" + "---:|" * len(MEASURES)]
    return "\n".join([*head, *lines, "", "What the value is above the default, paired by seed."]) + "\n"
