"""What training on a CPU takes: tokens a second of processor time, through the recipe and by transformers alone.

Each row is a process of its own with one thread.  The recipe xtoken_swap trains the transplanted model twice, without
and with its teacher; transformers trains the same model on as many tokens a step, its weights in bf16, its optimizer
AdamW on them.  The limit is what the processor's products would allow if nothing else took time: 6 operations for a
parameter and a token, attention left out, by the speed of a square product.  Time is processor time of all threads, of
user and kernel, so that what else runs on the machine matters less; it matters still where threads share a core or
caches, so rows are measured in turns.  Nothing is downloaded.

examples:
  python benchmarks/cpu_speed.py --model models/smollm2 --tokenizer models/llama3 --text text.jsonl --json speed.json
  python benchmarks/cpu_speed.py .. --precision 32 --length 1024 --micro-batches 8
"""

import argparse
import contextlib
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import cpu_clock
from bench import Parser, machine_line, show_table, write_json

__all__ = ["main"]

ROWS = ("limit", "transformers", "recipe", "taught")
PRECISIONS = ("bf16-mixed", "32")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures each row in a process of its own, or one here."""
    parser = Parser(__doc__)
    parser.add_argument("--model", required=True, metavar="FOLDER", help="the original, in Hugging Face's format")
    parser.add_argument("--tokenizer", required=True, metavar="FOLDER", help="the new tokenizer")
    parser.add_argument("--text", required=True, nargs="+", metavar="FILE", help="to train on")
    parser.add_argument("--length", type=int, default=512, help="student tokens of a sample (default: %(default)s)")
    parser.add_argument("--micro-batches", type=int, default=4, help="of one sample, a step (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=4, help="the first is not counted (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=1, help="of all rows (default: %(default)s)")
    parser.add_argument("--precision", default="bf16-mixed", choices=PRECISIONS)
    parser.add_argument("--loss", default="prefix_kl", help="of the teacher (default: %(default)s)")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS), help="(default: all)")
    parser.add_argument("--work", type=Path, default=Path("runs/cpu_speed"), help="folder (default: %(default)s)")
    parser.add_argument("--here", choices=ROWS, help=argparse.SUPPRESS)
    parser.add_output()
    words = list(sys.argv[1:] if arguments is None else arguments)
    given = parser.parse_args(words)
    if given.here:
        write_json(given.json, MEASURES[given.here](given))
        return
    found: dict[str, list[dict[str, Any]]] = {}
    for _ in range(given.rounds):
        for row in given.rows:
            for name, figures in _apart(row, words).items():
                found.setdefault(name, []).append(figures)
                print(name, json.dumps(figures), flush=True)
    print(machine_line())
    table = {name: _median(rounds) for name, rounds in found.items()}
    columns = ("tokens/s", "user s/step", "kernel s/step", "faults/step", "GiB")
    show_table(
        f"{given.micro_batches} x {given.length} tokens a step, {given.precision}",
        ("", *columns),
        [(name, *(f"{row[c]:,.4g}" if c in row else "" for c in columns)) for name, row in table.items()],
        words=(0,),
    )
    settings = {k: str(v) if isinstance(v, Path) else v for k, v in vars(given).items() if k not in ("json", "here")}
    write_json(given.json, {"settings": settings, "rows": table, "rounds": found})


def _apart(row: str, words: Sequence[str]) -> dict[str, Any]:
    """A row in a process of its own."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "row.json"
        line = [sys.executable, str(Path(__file__).resolve()), *words, "--here", row, "--json", str(file)]
        subprocess.run(line, check=True, env=environment, stdout=sys.stderr)
        found: dict[str, Any] = json.loads(file.read_text("utf-8"))
    del found["machine"]
    return found


def _median(rounds: Sequence[dict[str, float]]) -> dict[str, float]:
    return {key: statistics.median(one[key] for one in rounds) for key in rounds[0]}


def _recipe(given: argparse.Namespace, taught: bool) -> dict[str, Any]:
    """The recipe in this process, until its last step has ended."""
    import fiddle as fdl
    import nemo_run as run

    from nemo_xtoken.recipes.xtoken_swap import xtoken_swap

    given.work.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=given.work) as folder, contextlib.suppress(cpu_clock.Measured):
        recipe = xtoken_swap()
        recipe.model, recipe.tokenizer, recipe.measure_bytes = given.model, given.tokenizer, 0
        recipe.data.text.paths, recipe.data.text.held_out, recipe.data.text.workers = given.text, 0, 0
        recipe.data.text.student_length, recipe.data.text.teacher_length = given.length, given.length * 5 // 4
        recipe.data.micro_batch_size, recipe.data.global_batch_size = 1, given.micro_batches
        recipe.trainer.max_steps, recipe.trainer.plugins.precision = given.steps + 1, given.precision
        recipe.trainer.callbacks = [run.Config(cpu_clock.Clock, steps=given.steps)]
        recipe.teacher.loss = given.loss
        if not taught:
            recipe.objective.scale = 0.0
        recipe.log.log_dir, recipe.log.ckpt.every_n_train_steps = folder, given.steps + 2
        gc.collect()
        gc.freeze()  # as the command does after its imports
        fdl.build(recipe)()
    tokens = given.length * given.micro_batches
    return {"the recipe" + (f" with its teacher, {given.loss}" if taught else ""): cpu_clock.METERS[0].figures(tokens)}


def _transformers(given: argparse.Namespace) -> dict[str, Any]:
    """The same steps of transformers' model, and the same without AdamW."""
    import torch
    from transformers import AutoModelForCausalLM

    from nemo_xtoken.plugin.swapping import transplanted
    from nemo_xtoken.weights.configuration import readable_folder
    from nemo_xtoken.weights.folder import ModelFolder

    folder = transplanted(given.model, given.tokenizer).model
    with readable_folder(ModelFolder(folder)) as path:
        model = AutoModelForCausalLM.from_pretrained(path, dtype=_dtype(given))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    found = {}
    for name, stepped in (("transformers", True), ("transformers, no optimizer", False)):
        meter = cpu_clock.Meter()
        meter.mark()
        for _ in range(given.steps):
            for _ in range(given.micro_batches):
                tokens = torch.randint(0, model.config.vocab_size, (1, given.length))
                (model(tokens, labels=tokens).loss / given.micro_batches).backward()
            if stepped:
                optimizer.step()
            optimizer.zero_grad()
            meter.mark()
        found[name] = meter.figures(given.length * given.micro_batches)
    return found


def _dtype(given: argparse.Namespace) -> Any:
    import torch

    return torch.float32 if given.precision == "32" else torch.bfloat16


def _limit(given: argparse.Namespace) -> dict[str, Any]:
    """By the speed of a product of 2048 x 2048 numbers."""
    import torch

    from nemo_xtoken.vocab.loading import load_vocabulary
    from nemo_xtoken.weights.folder import ModelFolder

    folder = ModelFolder(given.model)
    config = folder.config
    square = torch.ones(2048, 2048, dtype=_dtype(given))
    seconds = []
    for _ in range(6):
        began = time.process_time()
        torch.mm(square, square)
        seconds.append(time.process_time() - began)
    speed = 2 * 2048**3 / statistics.median(seconds[1:])
    layers, hidden, wide = (config[k] for k in ("num_hidden_layers", "hidden_size", "intermediate_size"))
    heads = config["num_key_value_heads"] / config["num_attention_heads"]
    parameters = layers * hidden * (hidden * (2 + 2 * heads) + 3 * wide)
    parameters += hidden * load_vocabulary(given.tokenizer).size
    return {f"the limit, by {speed / 1e9:.0f} GFLOP/s": {"tokens/s": speed / (6 * parameters)}}


MEASURES = {
    "limit": _limit,
    "transformers": _transformers,
    "recipe": partial(_recipe, taught=False),
    "taught": partial(_recipe, taught=True),
}

if __name__ == "__main__":
    main()
