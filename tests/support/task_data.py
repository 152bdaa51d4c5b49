"""A few questions for every task, with the columns of the real data, where `xtoken evaluate data=FOLDER` finds them."""

import json
from pathlib import Path
from typing import Any

from nemo_xtoken.evaluate.local_data import Source

__all__ = ["rows", "write_data"]


def rows(source: Source, split: str, count: int = 4) -> list[dict[str, Any]]:
    """Made-up items of the data set that a task reads."""
    return [_ITEMS[source.path](source.subset or "", split, n) for n in range(count)]


def write_data(sources: list[Source], folder: Path, count: int = 4) -> Path:
    """Writes the files of all sources, those of small data sets as JSON Lines, others as Parquet in two parts."""
    import datasets

    for source in sources:
        for split in source.splits:
            items = rows(source, split, count)
            place = source.place(folder)
            place.mkdir(parents=True, exist_ok=True)
            if source.path == "Rowan/hellaswag":
                (place / "data").mkdir(exist_ok=True)
                for part in range(2):
                    table = datasets.Dataset.from_list(items[part::2])
                    table.to_parquet(str(place / "data" / f"{split}-0000{part}-of-00002.parquet"))
            else:
                (place / f"{split}.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    return folder


def _mmlu(subject: str, split: str, n: int) -> dict[str, Any]:
    choices = [f"{n + k} {subject.replace('_', ' ')}" for k in range(4)]
    return {"question": f" Which comes {n}th in {split}?", "subject": subject, "choices": choices, "answer": n % 4}


def _gsm8k(subset: str, split: str, n: int) -> dict[str, Any]:
    return {
        "question": f"Ann has {n} pens and buys {n + 2}. How many?",
        "answer": f"{n}+{n + 2}=<<x>>\n#### {2 * n + 2}",
    }


def _math(subset: str, split: str, n: int) -> dict[str, Any]:
    solution = f"We add: ${n}+1=\\boxed{{{n + 1}}}$."
    return {"problem": f"What is ${n}+1$?", "level": "Level 1", "type": subset, "solution": solution}


def _winogrande(subset: str, split: str, n: int) -> dict[str, Any]:
    sentence = f"The dog {n} chased the fox because the _ was quick."
    return {"sentence": sentence, "option1": "dog", "option2": "fox", "answer": str(1 + n % 2)}


def _hellaswag(subset: str, split: str, n: int) -> dict[str, Any]:
    endings = ["jumps over the fence.", "reads [step] a book.", "walks 42 miles.", f"eats {n} apples  slowly."]
    return {
        "ind": n,
        "activity_label": "Running",
        "ctx_a": f"A man number {n} runs.",
        "ctx_b": "then he",
        "ctx": f"A man number {n} runs. then he",
        "endings": endings,
        "source_id": f"activitynet~{n}",
        "split": split,
        "split_type": "indomain",
        "label": str(n % 4),
    }


_ITEMS = {
    "cais/mmlu": _mmlu,
    "openai/gsm8k": _gsm8k,
    "EleutherAI/hendrycks_math": _math,
    "allenai/winogrande": _winogrande,
    "Rowan/hellaswag": _hellaswag,
}
