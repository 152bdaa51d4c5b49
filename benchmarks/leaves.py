"""What it costs prefix_kl to compare chunks at all their positions, on a text as two tokenizers write it.

  whole    prefix_kl
  first    the same without what it compares inside of chunks: the classes at their first positions alone

Hidden states and output layers are random, at the widths given; the chunks are the text's.  One pass gives values and
gradients; the two run in turns, timed by the processor time of the process.  A chunk's plan is made when the chunk is
first met and kept: what that takes is told apart.

examples:
  python benchmarks/leaves.py --student TOKENIZERS/llama3 --teacher TOKENIZERS/gemma3 --text code.py
"""

import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench import Parser, in_turns, machine_line, ratio, write_json

from nemo_xtoken.alignment.aligner import Aligner
from nemo_xtoken.losses.base import ModelOutput, TeacherSignal
from nemo_xtoken.losses.pair import VocabularyPair
from nemo_xtoken.losses.prefix_kl import PrefixKL
from nemo_xtoken.objective.terms import cross_tokenizer_loss
from nemo_xtoken.parallel.head import OutputHead
from nemo_xtoken.parallel.ownership import reorder_rows
from nemo_xtoken.parallel.vocabulary_shard import VocabularyShard
from nemo_xtoken.vocab.loading import load_vocabulary


class FirstPositions(PrefixKL):
    """Without the leaves."""

    def plans(self, tiles: Sequence[Any]) -> Sequence[None]:
        """None."""
        return [None] * len(tiles)


def main() -> int:
    """Prints and writes the times."""
    parser = Parser(__doc__)
    parser.add_argument("--student", required=True, help="folder or hub name of a tokenizer")
    parser.add_argument("--teacher", required=True, help="the same")
    parser.add_argument("--text", required=True, type=Path, metavar="FILE", help="what is aligned, from its beginning")
    parser.add_argument("--positions", type=int, default=512, metavar="T", help="of the student (default: %(default)s)")
    parser.add_argument("--hidden", type=int, nargs=2, default=[512, 640], metavar=("STUDENT", "TEACHER"))
    parser.add_argument("--rounds", type=int, default=3, help="how often each is timed (default: %(default)s)")
    parser.add_output()
    given = parser.parse_args()
    torch.set_num_threads(1)
    sides = load_vocabulary(given.student), load_vocabulary(given.teacher)
    text = given.text.read_text("utf-8", "replace")[: 12 * given.positions]
    ids = [v.encode(text).astype(np.int64) for v in sides]
    found = Aligner(*sides).align(*ids).astype(np.int64)
    found = found[found[:, 1] <= given.positions]
    ends = int(found[-1, 1]), int(found[-1, 3])
    sizes = found[:, 1] - found[:, 0], found[:, 3] - found[:, 2]
    chunks = torch.from_numpy(np.stack([np.zeros_like(sizes[0]), found[:, 0], sizes[0], found[:, 2], sizes[1]], axis=1))
    labels = [torch.from_numpy(x[:end])[None] for x, end in zip(ids, ends, strict=True)]
    pair, random = VocabularyPair(*sides), torch.Generator().manual_seed(0)
    shard = VocabularyShard(sides[0].size, sides[0].size)
    hidden = [torch.randn(end, h, generator=random) for end, h in zip(ends, given.hidden, strict=True)]
    weights = [torch.randn(v.size, h, generator=random) / h for v, h in zip(sides, given.hidden, strict=True)]
    forms = {name: kind(pair.classes, shard) for name, kind in (("whole", PrefixKL), ("first", FirstPositions))}

    held = VocabularyShard(sides[1].size, sides[1].size)
    rows = {name: reorder_rows(weights[1], held, loss.ownership) for name, loss in forms.items()}

    def run(name: str) -> None:
        loss = forms[name]
        order = loss.ownership
        output = ModelOutput(hidden[1], OutputHead(rows[name], order.shard, torch.from_numpy(order.owned)))
        signal = TeacherSignal(output, labels[1], chunks, loss)
        student = ModelOutput(hidden[0].requires_grad_(), OutputHead(weights[0], shard))
        cross_tokenizer_loss(student, labels[0], [signal], tile_rows=64).objective.backward()

    cold = time.process_time()
    run("whole")
    cold = time.process_time() - cold
    seconds = in_turns({name: partial(run, name) for name in forms}, given.rounds, time.process_time)
    several = (sizes[0] > 1) | (sizes[1] > 1)
    result = {
        "tokens": ends,
        "chunks": len(found),
        "chunks_of_several": int(several.sum()),
        "seconds": {name: min(times) for name, times in seconds.items()},
        "ratio": ratio(seconds, "whole", "first"),
        "first_pass_with_plans": cold,
    }
    print(machine_line())
    print(f"{ends[0]} and {ends[1]} tokens, {len(found)} chunks, {int(several.sum())} of several tokens")
    print(f"prefix_kl takes {result['ratio']:.2f} times as long as its first positions alone", end="")
    print(f" ({min(seconds['whole']):.2f} s and {min(seconds['first']):.2f} s; with the plans {cold:.2f} s)")
    write_json(given.json, result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
