"""Losses between models that agree on texts, chunk after chunk, and how far their gradients point the right way.

Two models draw a text from one finite set and write it in their own tokens; all that either says next follows by brute
force, so that student and teacher differ in the tokenizer alone.  For each kind of text and loss:

- the value at the first, second and third chunk behind the context, and the gradient's norm: of a student that agrees.
- the cosine between the loss's gradient and the exact one, where the student gives the texts other probabilities: that
  of ``KL(teacher || student)`` at each of the student's positions in these chunks, with the teacher in the student's
  own tokens.

examples:
  python benchmarks/agreement.py --student TOKENIZERS/llama3 --teacher TOKENIZERS/gemma3 --json agreement.json
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from bench import Parser, machine_line, markdown, write_json

from nemo_xtoken.certify.certificate import ZERO
from nemo_xtoken.certify.said_texts import SaidTexts
from nemo_xtoken.certify.variants import Variant, variants_for
from nemo_xtoken.losses.options import DivergenceOptions
from nemo_xtoken.losses.pair import VocabularyPair
from nemo_xtoken.losses.registry import chunk_selection, make_divergence
from nemo_xtoken.parallel.vocabulary_shard import VocabularyShard
from nemo_xtoken.projection.build import ProjectionRule, load_or_build
from nemo_xtoken.vocab.loading import load_vocabulary
from nemo_xtoken.vocab.vocabulary import Vocabulary

#: The losses that are shown, each by its first form.
LOSSES = "prefix_kl,p_kl,h_kl,gold,uld,strict_1to1,csd,bpm,alm,nrl_p_kl"
#: `prefix_kl` with conditioned boundaries, in tables.
BOUNDARY = "prefix_kl, boundary"
#: Chunks in a row.
CHUNKS = 3
#: Context, and what is said after it: the first is the right text.
TEXTS = {
    "words": ("The", [" cat sat on it", " cat ran", " dog sat", " house is", " counters of", " underwater cat"]),
    "numerals": (" It was", [" 201 BC then", " 2015 it", " 20 men", " 207 AD", " 21 of", " 1999. So", " 2 x"]),
    "numerals, then digits": ("n =", [" 37 + 12", " 375 + 1", " 3 + 12", " 37.5 m", " 379 - 4", " 45 / 9"]),
    "indentation": ("x = 1\n", ["    return x + 1", "    def f(x):", "        return", "    if x:", "  # c", "pass\n"]),
    "full stop, line break": (
        "He said so",
        [".\nThen he", ".\n\nThe end", ". Then he", "!\nThen", ".com is", " again.\n"],
    ),
    "Chinese": ("他说", ["我们可以使用它", "我们今天去", "我的朋友", "今天天气很好", "人工智能发展", "你好世界"]),
    "blanks before punctuation": ("print", [" (x) ;", " ( x )", "(x) ;", " [x] ;", " : x", " (y) ,"]),
}


class Lesson:
    """A loss by its name, made once.

    Args:
        pair: the vocabularies.
        variant: the loss and its settings.
    """

    def __init__(self, pair: VocabularyPair, variant: Variant) -> None:
        shard = VocabularyShard(pair.student.size, pair.student.size)
        self.divergence = make_divergence(variant.loss, pair, shard, variant.options)
        self.selection, self.config = chunk_selection(variant.loss, pair), variant.config

    def measure(self, said: SaidTexts, student: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        """See `SaidTexts.measure`."""
        return said.measure(lambda shard: self.divergence, self.selection, student, self.config)


def measured(lesson: Lesson, said: SaidTexts, other: SaidTexts) -> dict[str, Any]:
    """One loss on one kind of text.

    Args:
        said: where the student agrees.
        other: the same texts with the student's other probabilities.
    """
    values, gradient = lesson.measure(said, None)
    start = other.z[0].clamp_min(-30)
    _, found = lesson.measure(said, start)
    exact = torch.zeros_like(found)
    for first, tokens, _, _ in said.rows:
        at = slice(first, first + tokens)
        exact[at] = torch.softmax(start[at], 1) - said.z[0][at].exp()
    whole = float(found.norm() * exact.norm())
    return {
        "values": values.tolist(),
        "gradient": float(gradient.norm()),
        "cosine": float((found * exact).sum()) / whole if whole else 0.0,
    }


def agreement(student: Vocabulary, teacher: Vocabulary) -> dict[str, Any]:
    """All losses on all kinds of text."""
    pair = VocabularyPair(student, teacher, lambda: load_or_build(student, teacher, ProjectionRule.named("paper")))
    variants = {v.loss: v for v in reversed(variants_for(LOSSES, student, teacher))}
    conditioned = Variant("prefix_kl", options=DivergenceOptions(boundary=True))
    chosen = {"prefix_kl": variants["prefix_kl"], BOUNDARY: conditioned}
    chosen |= {name: variants[name] for name in LOSSES.split(",")}
    lessons = {name: Lesson(pair, variant) for name, variant in chosen.items()}
    out: dict[str, Any] = {}
    for kind, (context, texts) in TEXTS.items():
        order = range(2, 2 + len(texts))
        weights = ([1 / i for i in order], [1 / (2 + (3 * i) % len(texts)) for i in order])
        sides = [SaidTexts(student, teacher, context, dict(zip(texts, w, strict=True))) for w in weights]
        for side in sides:
            side.rows = side.rows[:CHUNKS]
        shapes = [f"{said.shape(i)[0]}:{said.shape(i)[1]}" for said in sides[:1] for i in range(len(said.rows))]
        found = {name: measured(lesson, *sides) for name, lesson in lessons.items()}
        out[kind] = {"chunks": dict(zip(sides[0].texts, shapes, strict=True)), "losses": found}
        print(f"{kind}: {out[kind]['chunks']}", flush=True)
        for name, row in found.items():
            values = " ".join(f"{value:9.2g}" for value in row["values"])
            print(f"  {name:19} {values}   gradient {row['gradient']:8.2g}   cosine {row['cosine']:6.3f}", flush=True)
    return out


def table(found: dict[str, Any]) -> str:
    """The cosines as Markdown, bold where a student that agrees has the loss 0 and no gradient.

    Args:
        found: of one pair.
    """
    names = list(next(iter(found.values()))["losses"])
    rows = []
    for kind, part in found.items():
        cells = []
        for row in part["losses"].values():
            still = max([row["gradient"], *map(abs, row["values"])]) <= ZERO
            cells.append(f"**{row['cosine']:.2f}**" if still else f"{row['cosine']:.2f}")
        rows.append([kind, *cells])
    return markdown(["kind of text", *(f"`{name}`" for name in names)], rows)


def main() -> int:
    """Prints and writes what is found."""
    parser = Parser(__doc__)
    parser.add_argument("--student", required=True, help="folder or hub name of a tokenizer")
    parser.add_argument("--teacher", required=True, help="the same")
    parser.add_output()
    arguments = parser.parse_args()
    print(machine_line())
    found = agreement(load_vocabulary(arguments.student), load_vocabulary(arguments.teacher))
    print(table(found))
    if arguments.json:
        name = f"{Path(arguments.student).name} <- {Path(arguments.teacher).name}"
        file = Path(arguments.json)
        kept = json.loads(file.read_text("utf-8")) if file.is_file() else {}
        write_json(file, {key: kept[key] for key in kept if key != "machine"} | {name: found})
    return 0


if __name__ == "__main__":
    sys.exit(main())
