"""The paper's table of scores: X-Token (arXiv 2605.21699, May 2026), a student Llama-3.2-1B after 30,000 steps, 3-shot.

Scores are percentages, as printed; the average is the mean of the five columns.
"""

from dataclasses import dataclass

__all__ = ["PAPER", "PublishedRow", "paper_row"]


@dataclass(frozen=True)
class PublishedRow:
    """A row of the table.

    Attributes:
        key: its name in files and on the command line.
        label: teachers and method.  P-KL with a learned W; KD between equal tokenizers; two teachers weigh .8 and .2.
        scores: of `nemo_xtoken.evaluate.benchmark_columns.PAPER_COLUMNS`, in their order.
        average: as printed.
    """

    key: str
    label: str
    scores: tuple[float, float, float, float, float]
    average: float


PAPER = (
    PublishedRow("base", "Llama-3.2-1B", (32.05, 5.69, 5.48, 61.48, 65.08), 33.96),
    PublishedRow("cpt", "continued pretraining", (40.50, 10.25, 6.90, 61.60, 63.90), 36.63),
    PublishedRow("llama_kd", "Llama-3.2-3B, KD", (43.83, 12.89, 8.16, 62.70, 64.42), 38.40),
    PublishedRow("phi_uld", "Phi-4-mini, ULD", (41.43, 17.97, 6.24, 62.59, 63.32), 38.31),
    PublishedRow("phi_gold", "Phi-4-mini, GOLD", (43.50, 16.50, 7.80, 62.60, 62.92), 38.66),
    PublishedRow("phi_h_kl", "Phi-4-mini, H-KL", (43.93, 19.11, 8.32, 61.87, 62.67), 39.18),
    PublishedRow("qwen_uld", "Qwen3-4B, ULD", (40.34, 14.56, 4.04, 61.96, 62.93), 36.77),
    PublishedRow("qwen_gold", "Qwen3-4B, GOLD", (42.56, 2.56, 4.50, 62.95, 62.59), 35.03),
    PublishedRow("qwen_p_kl", "Qwen3-4B, P-KL", (44.67, 15.54, 7.96, 63.46, 62.63), 38.85),
    PublishedRow("phi_llama", "Phi-4-mini + Llama-3B", (46.32, 20.39, 9.02, 63.30, 63.38), 40.48),
    PublishedRow("three", "all three teachers", (45.86, 19.18, 8.56, 63.61, 63.55), 40.15),
)


def paper_row(key: str) -> PublishedRow:
    """The row of that name (KeyError if there is none)."""
    return {row.key: row for row in PAPER}[key]
