"""The paper's table is the paper's, and ours stands beside it."""

import io

import pytest
from rich.console import Console

from nemo_xtoken.errors import InputError
from nemo_xtoken.evaluate.benchmark_columns import PAPER_COLUMNS, Column, read_columns, readings
from nemo_xtoken.evaluate.published import PAPER, paper_row
from nemo_xtoken.evaluate.results import Scores, average
from nemo_xtoken.evaluate.table import as_json, differences, scores_table


def scores(**by_column):
    columns = {key: {"score": value, "stderr": 0.5, "metric": "acc,none"} for key, value in by_column.items()}
    return Scores("student", "id", {"limit": None, "shots": 3}, "0", columns)


FIVE = {"mmlu": 45.0, "gsm8k": 16.0, "math": 8.0, "winogrande": 63.0, "hellaswag": 64.0}


def shown(table):
    console = Console(file=io.StringIO(), width=80)
    console.print(table)
    return console.file.getvalue()


def test_the_paper_s_numbers():
    assert [c.key for c in PAPER_COLUMNS] == ["mmlu", "gsm8k", "math", "winogrande", "hellaswag"]
    assert len(PAPER) == len({row.key for row in PAPER}) == 11
    assert paper_row("base").scores == (32.05, 5.69, 5.48, 61.48, 65.08)
    assert paper_row("cpt").scores == (40.50, 10.25, 6.90, 61.60, 63.90)
    assert paper_row("qwen_gold").scores == (42.56, 2.56, 4.50, 62.95, 62.59)
    assert paper_row("qwen_p_kl").scores == (44.67, 15.54, 7.96, 63.46, 62.63)
    assert paper_row("phi_h_kl").average == 39.18
    assert paper_row("phi_llama").scores[0] == 46.32
    assert paper_row("phi_llama").average == 40.48


@pytest.mark.parametrize("row", PAPER, ids=lambda row: row.key)
def test_averages_are_means_of_the_five(row):
    assert sum(row.scores) / 5 == pytest.approx(row.average, abs=0.0051)


def test_differences_and_average():
    ours = scores(**FIVE)
    assert average(ours.columns) == pytest.approx(39.2)
    above = differences(ours, paper_row("base"))
    assert above["mmlu"] == pytest.approx(12.95)
    assert above["average"] == pytest.approx(5.24)
    some = scores(mmlu=45.0, math=8.0)
    assert average(some.columns) is None
    assert differences(some, paper_row("base")) == pytest.approx({"mmlu": 12.95, "math": 2.52})


def test_the_table_fits_a_terminal():
    text = shown(scores_table(scores(**FIVE), PAPER_COLUMNS, {"base": scores(**{**FIVE, "mmlu": 35.0})}))
    assert "…" not in text
    lines = {line[:22].strip(): line.split() for line in text.splitlines()}
    assert lines["Qwen3-4B, P-KL"][-7:] == ["44.67", "15.54", "7.96", "63.46", "62.63", "38.85", "+0.35"]
    assert lines["ours"][1:] == ["45.00", "16.00", "8.00", "63.00", "64.00", "39.20"]
    assert lines["base"][-1] == "+2.00"
    assert lines["standard error"][-5:] == ["0.50"] * 5
    assert lines["− Llama-3.2-1B"][-1] == "+5.24"


def test_a_part_is_compared_with_its_part():
    some = scores(mmlu=45.0, math=8.0, arc_easy=50.0)
    some.settings["limit"] = 10
    text = shown(scores_table(some, [*PAPER_COLUMNS, Column("arc_easy", "arc", "arc_easy")], {}))
    row = next(line.split() for line in text.splitlines() if line.startswith("Llama-3.2-1B"))
    assert float(row[-1]) == pytest.approx((12.95 + 2.52) / 2, abs=0.01)
    assert "limit=10" in text
    assert as_json(some, {})["ours"]["average"] is None


def test_names_of_tasks():
    assert read_columns("all") == PAPER_COLUMNS
    assert [c.task for c in read_columns("math, gsm8k")] == ["hendrycks_math", "gsm8k"]
    assert read_columns("hendrycks_math")[0].key == "math"
    assert read_columns("arc_easy") == (Column("arc_easy", "arc_easy", "arc_easy"),)
    for text in ("", "mmlu,mmlu", "math,hendrycks_math"):
        with pytest.raises(InputError):
            read_columns(text)


def test_the_metric_of_another_task():
    found = {"alias": "a", "sample_len": 3, "acc,none": 0.5, "acc_stderr,none": 0.1, "acc_norm,none": 0.75}
    assert readings(Column("a", "a", "a"), found) == ("acc_norm,none", 0.75, None)
    assert readings(Column("a", "a", "a", "acc,none"), found) == ("acc,none", 0.5, 0.1)
    assert readings(Column("a", "a", "a"), {"bleu,none": 3.0})[0] == "bleu,none"
    with pytest.raises(InputError, match="acc,none"):
        readings(Column("a", "a", "a", "exact_match,none"), found)
