"""The real harness on a tiny model and local data: its scores, what is kept of them, and what is wrong with input."""

import json

import pytest

pytest.importorskip("lm_eval", reason="the extra `evaluate` is not installed")

from nemo_xtoken.commands.cli import main
from nemo_xtoken.evaluate import scored_model as evaluating
from nemo_xtoken.evaluate.benchmark_columns import PAPER_COLUMNS, read_columns
from nemo_xtoken.evaluate.harness import Harness
from nemo_xtoken.evaluate.results import read_scores
from nemo_xtoken.evaluate.scored_model import evaluate_model
from nemo_xtoken.evaluate.task_settings import Settings

SUBJECTS = (
    "anatomy",
    "college_physics",
    "world_religions",
    "prehistory",
    "virology",
    "marketing",
    "sociology",
    "nutrition",
    "management",
    "philosophy",
    "astronomy",
    "jurisprudence",
)


@pytest.fixture(scope="module")
def all_five(model, data, tmp_path_factory):
    """The file of scores after all five tasks."""
    out = tmp_path_factory.mktemp("scores") / "all.json"
    settings = Settings(data=str(data), device="cpu", limit=1)
    evaluate_model(str(model), PAPER_COLUMNS, settings, out)
    return out


def test_five_columns(all_five):
    columns = json.loads(all_five.read_text())["columns"]
    assert list(columns) == ["mmlu", "gsm8k", "math", "winogrande", "hellaswag"]
    assert {k: c["samples"] for k, c in columns.items()} == {
        "mmlu": 57,
        "gsm8k": 1,
        "math": 7,
        "winogrande": 1,
        "hellaswag": 1,
    }
    assert {c["shots"] for c in columns.values()} == {3}
    assert [c["metric"] for c in columns.values()] == [c.metric for c in PAPER_COLUMNS]
    assert "exact_match,flexible-extract" in columns["gsm8k"]["all"]["gsm8k"]
    subjects = [v["acc,none"] for k, v in columns["mmlu"]["all"].items() if k not in _groups()]
    assert len(subjects) == 57
    assert columns["mmlu"]["score"] == pytest.approx(100 * sum(subjects) / 57)
    assert columns["winogrande"]["stderr"] is None  # of one question
    scores = [c["score"] for c in columns.values()]
    assert json.loads(all_five.read_text())["average"] == pytest.approx(sum(scores) / 5)


def _groups():
    return {"mmlu", "mmlu_stem", "mmlu_other", "mmlu_social_sciences", "mmlu_humanities"}


def test_multiple_choice_is_what_transformers_computes(all_five, model, sources):
    """MMLU, by the prompt of its authors and the probability of each letter after it."""
    import torch
    from task_data import rows
    from transformers import AutoModelForCausalLM, AutoTokenizer

    lm = AutoModelForCausalLM.from_pretrained(model)
    tokenizer = AutoTokenizer.from_pretrained(model)
    found = read_scores(all_five).columns["mmlu"]["all"]
    answers = set()
    for subject in SUBJECTS:
        source = next(s for s in sources if s.task == f"mmlu_{subject}")
        shots = "".join(f"{_question(item)} {'ABCD'[item['answer']]}\n\n" for item in rows(source, "dev")[:3])
        about = subject.replace("_", " ")
        right = 0
        for item in rows(source, "test")[:1]:
            prompt = (
                f"The following are multiple choice questions (with answers) about {about}.\n\n{shots}{_question(item)}"
            )
            best = max("ABCD", key=lambda letter: _log_probability(lm, tokenizer, prompt, f" {letter}"))
            answers.add(best)
            right += best == "ABCD"[item["answer"]]
        assert found[f"mmlu_{subject}"]["acc,none"] == right
    assert len(answers) > 1
    assert torch.is_grad_enabled()


def _question(item):
    options = "".join(f"{letter}. {text}\n" for letter, text in zip("ABCD", item["choices"], strict=True))
    return f"{item['question'].strip()}\n{options}Answer:"


def _log_probability(lm, tokenizer, prompt, continuation):
    import torch

    start, whole = (tokenizer(text, return_tensors="pt").input_ids for text in (prompt, prompt + continuation))
    with torch.no_grad():
        log_p = lm(whole).logits[0, :-1].float().log_softmax(-1)
    return float(log_p.gather(1, whole[0, 1:, None])[start.shape[1] - 1 :].sum())


def test_columns_are_run_once(model, data, tmp_path, monkeypatch, capsys):
    ran = []
    run = Harness.run
    monkeypatch.setattr(Harness, "run", lambda self, column: ran.append(column.key) or run(self, column))
    words = [f"model={model}", f"data={data}", "device=cpu", f"out={tmp_path / 's.json'}", "limit=2"]
    assert main(["evaluate", *words, "tasks=winogrande"]) == 0
    assert main(["evaluate", *words, "tasks=winogrande,hellaswag"]) == 0
    assert ran == ["winogrande", "hellaswag"]
    monkeypatch.setattr(Harness, "__init__", lambda *a: pytest.fail("the harness is not needed"))
    capsys.readouterr()
    assert main(["evaluate", *words, "tasks=winogrande", "--json", f"beside={tmp_path / 's.json'}"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found["ours"]["columns"]) == ["winogrande", "hellaswag"]
    for column in found["ours"]["columns"].values():
        p = column["score"] / 100
        assert column["stderr"] == pytest.approx(100 * (p * (1 - p) / (column["samples"] - 1)) ** 0.5)
    assert found["beside"][str(model)] == found["ours"]
    assert set(found["paper"]["base"]["ours_minus"]) == {"winogrande", "hellaswag"}
    assert main(["evaluate", *words, "tasks=winogrande", "shots=1"]) == 2
    assert "differ in shots (3 there)" in capsys.readouterr().err
    monkeypatch.undo()
    assert main(["evaluate", *words, "tasks=winogrande", "shots=1", "--again"]) == 0
    assert list(read_scores(tmp_path / "s.json").columns) == ["winogrande"]


def test_what_ended_before_an_interruption_is_kept(model, data, tmp_path, monkeypatch):
    run = Harness.run

    def interrupted(self, column):
        if column.key == "hellaswag":
            raise KeyboardInterrupt
        return run(self, column)

    monkeypatch.setattr(Harness, "run", interrupted)
    settings = Settings(data=str(data), device="cpu", limit=1, batch_size="2")
    with pytest.raises(KeyboardInterrupt):
        evaluate_model(str(model), read_columns("winogrande,hellaswag"), settings, tmp_path / "s.json")
    assert list(read_scores(tmp_path / "s.json").columns) == ["winogrande"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["model=m", "run=r"], "one of model=, run= and fetch="),
        (["model=m", "watch=true"], "watch= goes with run="),
        (["run=r", "out=x"], "out= goes with model="),
        (["run=r", "until=3"], "until= does nothing without watch="),
        (["run=r", "watch=true", "until=noon"], "a number of steps, or stdin"),
        (["run=r", "watch=true", "until=\u00b2"], "a number of steps, or stdin"),
        (["run=no/such"], "not a folder"),
        (["model=no/such/folder"], "is not a folder"),
        (["model={model}", "shots=-1"], "shots=-1"),
        (["model={model}", "batch_size=many"], "batch_size"),
        (["model={model}", "batch_size=\u00b2"], "batch_size"),
        (["model={model}", "limit=1", "data=no/such"], "xtoken evaluate fetch="),
        (["model={model}", "limit=1", "tasks=gsm9k", "data={data}"], "no task 'gsm9k'"),
        (["model={model}", "limit=1", "out={model}"], "is a folder"),
        (["model={model}", "beside=no.json"], "no file no.json"),
        (["model={model}", "limit=1", "tasks=winogrande"], "to fix:"),  # no data here, no network
    ],
)
def test_bad_input(words, message, model, data, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    if "tasks=gsm9k" in words:
        from lm_eval.tasks import TaskManager

        small = TaskManager(include_defaults=False)  # all of its definitions take half a minute to read
        monkeypatch.setattr("nemo_xtoken.evaluate.harness._manager", lambda *_: small)
    assert main(["evaluate", *(w.format(model=model, data=data) for w in words)]) == 2
    assert message in capsys.readouterr().err


def test_a_run_is_not_evaluated_by_several_processes(monkeypatch, capsys):
    """One of them would wait in the harness for the others, which leave the checkpoint to it."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["evaluate", "run=r"]) == 2
    assert "run= is for one process" in capsys.readouterr().err


def test_a_task_that_fails_is_one_message_and_what_others_have_is_kept(model, data, tmp_path, monkeypatch, capsys):
    """So that who watches a run goes on with its next checkpoint."""
    import lm_eval

    out = tmp_path / "s.json"
    words = [f"model={model}", f"data={data}", "device=cpu", f"out={out}", "limit=1"]
    evaluate, asked = lm_eval.evaluate, []

    def second_fails(**arguments):
        asked.append(1)
        if len(asked) == 2:
            raise RuntimeError("CUDA out of memory\nand where")
        return evaluate(**arguments)

    monkeypatch.setattr(lm_eval, "evaluate", second_fails)
    assert main(["evaluate", *words, "tasks=winogrande,hellaswag"]) == 2
    assert "the task hellaswag fails (RuntimeError: CUDA out of memory)" in capsys.readouterr().err
    assert list(read_scores(out).columns) == ["winogrande"]


def test_without_the_harness(model, monkeypatch, capsys):
    from importlib import metadata

    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    assert main(["evaluate", f"model={model}"]) == 2
    assert "pip install 'nemo_xtoken[evaluate]'" in capsys.readouterr().err


def test_the_file_is_beside_the_model_unless_named(model):
    assert evaluating.default_out(str(model), Settings()) == model / "evaluation.json"
    assert evaluating.default_out(str(model), Settings(limit=0.1)) == model / "evaluation-limit0.1.json"
    assert (
        str(evaluating.default_out("meta-llama/Llama-3.2-1B", Settings())) == "evaluation-meta-llama-Llama-3.2-1B.json"
    )
