"""What it costs prefix_kl to compare chunks at all their positions, on a text as two tokenizers write it.

  whole    prefix_kl
  first    the same without what it compares inside of chunks: the classes at their first positions alone
  p_kl     P-KL on the same chunks
  ce       cross-entropy alone

Hidden states and output layers are random, at the widths given; the chunks are the text's.  One pass gives values and
gradients; all run in turns, timed by the processor time of the process.  A chunk's plan is made when the chunk is
first met and kept: what that takes is told apart.

examples:
  python benchmarks/leaves.py --student TOKENIZERS/llama3 --teacher TOKENIZERS/gemma3 --text code.py
  python benchmarks/leaves.py --student .. --teacher TOKENIZERS/smollm2 --text .. --hidden 576 576 --dtype bf16
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
from nemo_xtoken.losses.base import ChunkDivergence, ModelOutput, TeacherSignal
from nemo_xtoken.losses.p_kl import ProjectedKL
from nemo_xtoken.losses.pair import VocabularyPair
from nemo_xtoken.losses.prefix_kl import PrefixKL
from nemo_xtoken.objective.terms import cross_tokenizer_loss
from nemo_xtoken.objective.tiles import rows_within
from nemo_xtoken.parallel.exchange import VocabularyExchange
from nemo_xtoken.parallel.head import OutputHead
from nemo_xtoken.parallel.ownership import reorder_rows
from nemo_xtoken.parallel.vocabulary_shard import VocabularyShard
from nemo_xtoken.projection.build import build_projection
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
    parser.add_argument("--dtype", choices=["fp32", "bf16"], default="fp32", help="of hidden states and output layers")
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
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[given.dtype]
    pair = VocabularyPair(*sides, matrix=lambda: build_projection(*sides))
    random = torch.Generator().manual_seed(0)
    shard = VocabularyShard(sides[0].size, sides[0].size)
    normal = lambda *shape: torch.randn(*shape, generator=random).to(dtype)  # noqa: E731
    hidden = [normal(end, h) for end, h in zip(ends, given.hidden, strict=True)]
    weights = [normal(v.size, h) / h for v, h in zip(sides, given.hidden, strict=True)]
    forms: dict[str, ChunkDivergence] = {
        "whole": PrefixKL(pair.classes, shard),
        "first": FirstPositions(pair.classes, shard),
        "p_kl": ProjectedKL(VocabularyExchange.co_sharded(pair.matrix, shard)),
    }
    held = VocabularyShard(sides[1].size, sides[1].size)
    rows = {name: reorder_rows(weights[1], held, loss.ownership) for name, loss in forms.items()}

    def run(name: str) -> None:
        signals = []
        if name in forms:
            order = forms[name].ownership
            output = ModelOutput(hidden[1], OutputHead(rows[name], order.shard, torch.from_numpy(order.owned)))
            signals.append(TeacherSignal(output, labels[1], chunks, forms[name]))
        h, weight = (x.detach().requires_grad_() for x in (hidden[0], weights[0]))
        head = OutputHead(weight, shard)
        tile = rows_within(None, head, [signal.output.head for signal in signals])
        cross_tokenizer_loss(ModelOutput(h, head), labels[0], signals, tile_rows=tile).objective.backward()

    cold = time.process_time()
    run("whole")
    cold = time.process_time() - cold
    seconds = in_turns({name: partial(run, name) for name in (*forms, "ce")}, given.rounds, time.process_time)
    several = (sizes[0] > 1) | (sizes[1] > 1)
    result = {
        "tokens": ends,
        "chunks": len(found),
        "chunks_of_several": int(several.sum()),
        "seconds": {name: min(times) for name, times in seconds.items()},
        "ratio": ratio(seconds, "whole", "first"),
        "ratio_to_p_kl": ratio(seconds, "whole", "p_kl"),
        "ratio_to_ce": ratio(seconds, "whole", "ce"),
        "first_pass_with_plans": cold,
    }
    print(machine_line())
    print(f"{ends[0]} and {ends[1]} tokens, {len(found)} chunks, {int(several.sum())} of several tokens")
    print(f"prefix_kl takes {result['ratio']:.2f} times as long as its first positions alone", end="")
    print(f" ({min(seconds['whole']):.2f} s and {min(seconds['first']):.2f} s; with the plans {cold:.2f} s)")
    for name, what in (("p_kl", "P-KL"), ("ce", "cross-entropy alone")):
        times = f"{ratio(seconds, 'whole', name):.2f} times as long as {what}"
        print(f"and {times} ({min(seconds[name]):.2f} s)")
    write_json(given.json, result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
