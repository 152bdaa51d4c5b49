"""What a swap of tokenizers costs a model and what distilling gives back: bits per byte, with and without the teacher.

Runs the recipe xtoken_swap with ce_only=true (where --model is given; the same command goes on where it stopped),
measures the original, the transplanted model and both students on texts that no run has seen, and draws the held-out
text's course.  Nothing is downloaded.  What has been measured is kept in the run's folder.

examples:
  python benchmarks/swap.py runs/xtoken_swap --on problems=held/problems.jsonl --on code=held/code.jsonl
  python benchmarks/swap.py runs/mine --model models/smollm2 --tokenizer models/llama3 --text train.jsonl \\
      --held-out watch.jsonl --on problems=held/problems.jsonl --figure swap.png -- trainer.max_steps=200
"""

import argparse
import json
import math
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench import Parser, machine_line, wide_console

from nemo_xtoken.errors import InputError
from nemo_xtoken.evaluate.bits import bits_per_byte, take_bytes
from nemo_xtoken.evaluate.results import identity_of
from nemo_xtoken.files import atomic_path, digest_of
from nemo_xtoken.report.colors import colors_of
from nemo_xtoken.run.records import read_history

__all__ = ["curve", "main", "measured", "models_of"]

KEPT = "measured.json"


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains if asked to, measures, prints the table, draws."""
    parser = Parser(__doc__)
    parser.add_argument("run", type=Path, help="the folder of the recipe's run")
    parser.add_argument("--model", help="train: the original, a folder in Hugging Face's format")
    parser.add_argument("--tokenizer", help="train: the new tokenizer's folder or file")
    parser.add_argument("--text", nargs="+", default=[], metavar="FILE", help="train: texts")
    parser.add_argument("--held-out", nargs="+", default=[], metavar="FILE", help="train: texts for the course")
    parser.add_argument("--on", action="append", default=[], metavar="NAME=FILE", help="texts to measure on (repeat)")
    parser.add_argument(
        "--bytes", type=int, default=200_000, help="of each text; whole documents (default: %(default)s)"
    )
    parser.add_argument(
        "--figure", type=Path, metavar="FILE", help="where the picture goes (default: in the run's folder)"
    )
    parser.epilog = f"{parser.epilog or ''}\n\nafter --: further settings of the recipe, for training"
    words = list(sys.argv[1:] if arguments is None else arguments)
    cut = words.index("--") if "--" in words else len(words)
    given = parser.parse_args(words[:cut], argparse.Namespace(overrides=words[cut + 1 :]))
    if given.model:
        train(given)
    models, texts = models_of(given.run), dict(word.split("=", 1) for word in given.on)
    found = measured(given.run, models, texts, given.bytes)
    show(found, texts)
    figure = given.figure or given.run / "bits.png"
    draw({name: curve(given.run, folder) for name, folder in runs_of(given.run).items()}, original(given.run), figure)
    print(f"saved in {figure}")


def train(given: argparse.Namespace) -> None:
    """The recipe, in a process of its own."""
    words = [
        f"model={given.model}",
        f"tokenizer={given.tokenizer}",
        f"data.text.paths={json.dumps(given.text)}",
        f"data.text.held_out_paths={json.dumps(given.held_out)}",
        "data.text.held_out=0",
        f"log.log_dir={given.run.resolve().parent}",
        f"log.name={given.run.name}",
        "ce_only=true",
        f"measure_bytes={1 << 40}",  # all of it: the course below is of the same text
        *given.overrides,
    ]
    start = "from nemo_run.__main__ import app; app()"
    line = [sys.executable, "-c", start, "llm", "distill", "--recipe", "xtoken_swap", *words]
    subprocess.run(line, check=True, env=os.environ | {"TOKENIZERS_PARALLELISM": "false"})


def runs_of(run: Path) -> dict[str, Path]:
    """The runs by the names of their rows."""
    return {"cross-entropy only": run / "ce_only", "distilled": run}


def read_bits(run: Path) -> dict[str, dict[str, Any]]:
    """What the recipe has measured on the held-out text.

    Raises:
        InputError: it has not.
    """
    try:
        return dict(json.loads((run / "bits.json").read_text("utf-8")))
    except (OSError, ValueError) as error:
        raise InputError(f"no bits.json in {run} ({error})", "a finished run of xtoken_swap", "run it first") from error


def models_of(run: Path) -> dict[str, str]:
    """The four models, in the order of the table."""
    return {name: row["model"] for name, row in read_bits(run).items()}


def original(run: Path) -> float:
    """Bits per byte of the original on the held-out text."""
    return float(read_bits(run)["original"]["per_byte"])


def measured(run: Path, models: Mapping[str, str], texts: Mapping[str, str], most: int) -> dict[str, dict[str, float]]:
    """Bits per byte ``[model][text]``; what ``run`` has from before is not measured again."""
    file = run / KEPT
    kept = json.loads(file.read_text("utf-8")) if file.is_file() else {}
    found: dict[str, dict[str, float]] = {name: {} for name in models}
    for text, path in texts.items():
        lines = Path(path).read_text("utf-8").splitlines()
        documents = take_bytes((json.loads(line)["text"] for line in lines), most)
        for name, model in models.items():
            key = digest_of(identity_of(model), *documents)[:24]
            if key not in kept:
                kept[key] = asdict(bits_per_byte(model, documents))
                with atomic_path(file) as temporary:
                    temporary.write_text(json.dumps(kept, indent=1) + "\n", "utf-8")
            found[name][text] = kept[key]["per_byte"]
    return found


def curve(run: Path, folder: Path) -> tuple[list[int], list[float]]:
    """Steps and bits per byte of the held-out text, as the run evaluated it: in its samples, documents packed.

    The run's mean is over tokens, with the ends of documents; the student's tokens and the bytes of the text are known.
    """
    row = read_bits(run)["transplanted"]
    factor = (row["tokens"] + row["documents"]) / row["size"] / math.log(2)
    points = [(r["step"], r["held_out_ce"] * factor) for r in read_history(folder) if "held_out_ce" in r]
    return [step for step, _ in points], [value for _, value in points]


def show(found: Mapping[str, Mapping[str, float]], texts: Mapping[str, str]) -> None:
    """The table, as Markdown."""
    console = wide_console()
    console.print(machine_line(), markup=False)
    console.print("| model | " + " | ".join(texts) + " |\n|---|" + "---:|" * len(texts), markup=False)
    for name, row in found.items():
        console.print(f"| {name} | " + " | ".join(f"{row[text]:.3f}" for text in texts) + " |", markup=False)


def draw(curves: Mapping[str, tuple[list[int], list[float]]], floor: float, path: Path) -> None:
    """Bits per byte over steps, and the original's as a line."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.8), layout="constrained")
    FigureCanvasAgg(figure)
    axes, colors = figure.add_subplot(), colors_of(curves)
    for name, (steps, values) in curves.items():
        axes.plot(steps, values, "o-", color=colors[name], label=name, markersize=4)
    axes.axhline(floor, color="#555555", linestyle="--", linewidth=1, label="original, its own tokenizer")
    axes.set(xlabel="step", ylabel="bits per byte of held-out text", ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150)


if __name__ == "__main__":
    main()
