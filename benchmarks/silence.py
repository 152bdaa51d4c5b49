"""Which share of the student's tokens gets no signal from the teacher: pairs of tokenizers, five kinds of text.

For ``prefix_kl`` a token is silent if it is in no chunk or in one whose first tokens have no class; here a first token
counts as one that has a class if the other tokenizer can write it.  Beside it ``strict_1to1``, which scores chunks of
one equal token on either side alone.

examples:
  python benchmarks/silence.py TOKENIZERS/llama3 TOKENIZERS/qwen3 TOKENIZERS/gemma3 --json benchmarks/silence.json
"""

import itertools
import sys
from pathlib import Path

import numpy as np
from bench import Parser, write_json

from nemo_xtoken.alignment.aligner import Aligner
from nemo_xtoken.losses.sample_texts import SAMPLES
from nemo_xtoken.projection.build import spell_tokens
from nemo_xtoken.vocab.loading import load_vocabulary
from nemo_xtoken.vocab.vocabulary import Vocabulary


def writable(own: Vocabulary, other: Vocabulary, ids: np.ndarray) -> np.ndarray:
    """bool: whether the other tokenizer has a way to write each of these tokens."""
    tokens, at = np.unique(ids, return_inverse=True)
    known = np.array([(own.token_bytes[t] or b"?") in other.id_of_bytes for t in tokens.tolist()], bool)
    rest = [t for t, k in zip(tokens.tolist(), known, strict=True) if not k and own.token_bytes[t]]
    known |= np.isin(tokens, [token for token, pieces in spell_tokens(own, other, rest) if pieces])
    return known[at]


def silence(student: Vocabulary, teacher: Vocabulary, text: str) -> dict[str, float]:
    """Shares of the student's tokens."""
    ids = [v.encode(text).astype(np.int64) for v in (student, teacher)]
    chunks = Aligner(student, teacher).align(*ids).astype(np.int64)
    firsts = ids[0][chunks[:, 0]], ids[1][chunks[:, 2]]
    sizes = chunks[:, 1] - chunks[:, 0], chunks[:, 3] - chunks[:, 2]
    scored = writable(student, teacher, firsts[0]) & writable(teacher, student, firsts[1])
    equal = np.array(
        [student.token_bytes[a] == teacher.token_bytes[b] for a, b in zip(*(f.tolist() for f in firsts), strict=True)]
    )
    strict = (sizes[0] == 1) & (sizes[1] == 1) & equal
    n = len(ids[0])
    return {
        "prefix_kl": 1 - float(sizes[0][scored].sum()) / n,
        "strict_1to1": 1 - float(sizes[0][strict].sum()) / n,
        "in no chunk": 1 - float(sizes[0].sum()) / n,
    }


def main() -> int:
    """Prints the pairs with the most silent cells, and writes all."""
    parser = Parser(__doc__)
    parser.add_argument("tokenizers", nargs="+", help="folders or hub names")
    parser.add_output()
    arguments = parser.parse_args()
    known = {Path(name).name: load_vocabulary(name) for name in arguments.tokenizers}
    cells = {}
    for student, teacher in itertools.permutations(known, 2):
        for kind, text in SAMPLES.items():
            cells[f"{student} <- {teacher}, {kind}"] = silence(known[student], known[teacher], text)
    above = {name: cell for name, cell in cells.items() if cell["prefix_kl"] > 0.005}
    print(f"{len(cells)} cells; in {len(above)} prefix_kl leaves more than 0.5% of the student's tokens silent")
    for name, cell in sorted(above.items(), key=lambda item: -item[1]["prefix_kl"]):
        print(f"{name}: {cell['prefix_kl']:.1%} silent, {cell['in no chunk']:.1%} in no chunk")
    strict = np.array([cell["strict_1to1"] for cell in cells.values()])
    print(f"strict_1to1: median {np.median(strict):.1%}, most {strict.max():.1%}")
    if arguments.json:
        write_json(arguments.json, {"cells": cells})
    return 0


if __name__ == "__main__":
    sys.exit(main())
