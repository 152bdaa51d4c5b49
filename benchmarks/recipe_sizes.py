"""What the recipes need on 1, 2, 8 and 16 nodes of 8 GPUs: layout, memory of a GPU, seconds a step, time; on paper.

The settings are read from the recipes themselves, so NeMo 2 has to be installed.  The terms are those of
`nemo_xtoken.sizes`, with its assumptions about an H100.  docs/recipes.md has the table.

examples:
  python benchmarks/recipe_sizes.py
  python benchmarks/recipe_sizes.py --markdown
"""

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import scaling
from bench import Parser, markdown, show_table, write_json

from nemo_xtoken.run.estimates.loss_time import GIB
from nemo_xtoken.run.estimates.memory import TeacherSizes, Training, worst_stage
from nemo_xtoken.run.estimates.model_sizes import Model
from nemo_xtoken.run.estimates.step_time import Gpu, step_time
from nemo_xtoken.run.layout import ParallelSizes

LLAMA_3B = Model("Llama-3.2-3B", 28, 3072, 8192, 24, 8, 128, 128256, tied=True)
PHI_4_MINI = Model("Phi-4-mini", 32, 3072, 8192, 24, 8, 128, 200064, tied=True)
#: Recipe -> its student and teachers.
MODELS = {
    "xtoken_qwen3_llama1b": (scaling.LLAMA_1B, [scaling.QWEN_4B]),
    "xtoken_phi4mini_llama1b": (scaling.LLAMA_1B, [PHI_4_MINI]),
    "xtoken_phi4mini_llama3b_llama1b": (scaling.LLAMA_1B, [PHI_4_MINI, LLAMA_3B]),
    "xtoken_qwen3_14b_llama8b": (scaling.LLAMA_8B, [scaling.QWEN_14B]),
    "xtoken_gold_qwen3_llama1b": (scaling.LLAMA_1B, [scaling.QWEN_4B]),
    "xtoken_uld_qwen3_llama1b": (scaling.LLAMA_1B, [scaling.QWEN_4B]),
    "xtoken_ce_llama1b": (scaling.LLAMA_1B, []),
}
NODES = (1, 2, 8, 16)
HEADINGS = ("recipe", "nodes", "GPUs", "layout", "GiB of a GPU", "s a step", "tokens/s", "time")


@dataclass(frozen=True)
class Figures:
    """A recipe on so many nodes.

    Attributes:
        recipe, nodes: which.
        layout: parallel sizes and micro-batch.
        gib: memory of a GPU.
        step: seconds of a step.
        tokens: student tokens a second, of all GPUs.
        hours: of the whole run.
    """

    recipe: str
    nodes: int
    layout: str
    gib: float
    step: float
    tokens: float
    hours: float

    @property
    def time(self) -> str:
        """The run's time as people say it."""
        if self.hours < 2:
            return f"{60 * self.hours:.0f} min"
        return f"{self.hours:.0f} h" if self.hours < 48 else f"{self.hours / 24:.1f} days"

    def row(self) -> list[str]:
        """Its line in the table."""
        numbers = [f"{self.gib:.0f}", f"{self.step:.1f}", f"{self.tokens / 1000:,.0f}k", self.time]
        return [self.recipe, str(self.nodes), str(8 * self.nodes), self.layout, *numbers]


def figures(recipe: str, run: Any, gpu: Gpu) -> Figures:
    """Of a configured run.

    Args:
        run: what the recipe returns.
    """
    student, teachers = MODELS[recipe]
    strategy, data, nodes = run.trainer.strategy, run.data, run.trainer.num_nodes
    tp, cp = strategy.tensor_model_parallel_size, strategy.context_parallel_size
    sizes = ParallelSizes(tp, strategy.pipeline_model_parallel_size, cp, 1, tp)
    length, batch = data.text.student_length, data.global_batch_size
    taught = [*(getattr(run, "teachers", None) or {"": getattr(run, "teacher", None)}).values()]
    losses = [one.loss for one in taught if one is not None]
    training = Training(
        student=student,
        sizes=sizes,
        teachers=tuple(
            TeacherSizes(model, sizes, False, data.text.teacher_length, loss=loss)
            for model, loss in zip(teachers, losses, strict=True)
        ),
        processes=8 * nodes,
        micro_batch=data.micro_batch_size,
        global_batch=batch,
        length=length,
        sequence_parallel=strategy.sequence_parallel,
    )
    step = sum(step_time(training, gpu).values())
    layout = [f"{n}{v}" for n, v in (("tp", tp), ("pp", sizes.pipeline), ("cp", cp)) if v > 1]
    return Figures(
        recipe,
        nodes,
        " ".join([*layout, f"dp{training.data_parallel}", f"micro-batch {data.micro_batch_size}"]),
        sum(worst_stage(training).values()) / GIB,
        step,
        batch * length / step,
        step * run.trainer.max_steps / 3600,
    )


def all_figures(recipes: Mapping[str, Any], gpu: Gpu | None = None) -> Iterator[Figures]:
    """Of every recipe of `MODELS` on every number of nodes.

    Args:
        recipes: name -> the function that returns the run for a number of nodes.
    """
    for name in MODELS:
        for nodes in NODES:
            yield figures(name, recipes[name](nodes=nodes), gpu or Gpu())


def main(arguments: list[str]) -> None:
    """Prints the table."""
    parser = Parser(__doc__)
    parser.add_argument("--markdown", action="store_true", help="print Markdown")
    parser.add_output()
    given = parser.parse_args(arguments)
    from nemo_xtoken.recipes import available_recipes

    found = list(all_figures({name: recipe.load() for name, recipe in available_recipes().items() if name in MODELS}))
    rows = [one.row() for one in found]
    if given.markdown:
        print(markdown(HEADINGS, rows))
    else:
        show_table("The recipes, on paper", HEADINGS, rows, words=(0, 3))
    write_json(given.json, {"figures": [vars(one) for one in found]})


if __name__ == "__main__":
    main(sys.argv[1:])
