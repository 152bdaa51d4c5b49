"""Which share of the student's tokens gets no signal from the teacher: pairs of tokenizers, five kinds of text.

By the chunks that the losses select, as `losses.text_coverage` counts them: for ``prefix_kl`` a token is silent if it
is in no chunk, or in one whose first tokens have no prefix class.  Beside it ``strict_1to1``, which scores chunks of
one equal token on either side alone, and ``p_kl``, which scores all chunks: what it leaves out is in no chunk.

A token that the other tokenizer writes in some way has a class; so most texts need none of the seconds that the classes
of a pair take.  They are made where a chunk's first token is not such a one, and for every pair by --whole, which gives
the same figures.  Pairs that the file of results has are left as they are, so that a run that was ended goes on.

examples:
  python benchmarks/silence.py TOKENIZERS/llama3 TOKENIZERS/qwen3 TOKENIZERS/gemma3 --json benchmarks/silence.json
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench import Parser, write_json

from nemo_xtoken.alignment.aligner import Aligner
from nemo_xtoken.losses.chunks import scored_chunks
from nemo_xtoken.losses.pair import VocabularyPair
from nemo_xtoken.losses.registry import chunk_selection
from nemo_xtoken.losses.sample_texts import SAMPLES
from nemo_xtoken.projection.build import spell_tokens
from nemo_xtoken.projection.contexts import depends_on_context, spellings_in_context
from nemo_xtoken.projection.prefixes import MAX_PIECES, PrefixClasses, SpelledTokens
from nemo_xtoken.vocab.loading import load_vocabulary
from nemo_xtoken.vocab.vocabulary import Vocabulary

LOSSES = ("prefix_kl", "strict_1to1", "p_kl")
NO_CHUNK = "in no chunk"
#: The tokens without a signal by `prefix_kl`, in a cell.
SILENT = "silent tokens"


def have_class(own: Vocabulary, other: Vocabulary, ids: np.ndarray) -> np.ndarray:
    """Those of these tokens that have a prefix class by their own spellings, as `PrefixClasses.of` finds them.

    Others may have one all the same, as the beginning of a token of the other side.
    """
    data = {i: own.token_bytes[i] for i in np.unique(ids).tolist()}
    texts = {i: text for i, d in data.items() if (text := depends_on_context(d))}
    known = {i for i, spellings in spellings_in_context(own, other, texts) if spellings}
    equal = (i for i, d in data.items() if d is not None and d in other.id_of_bytes)
    known |= {*equal, *(i for i in data if own.roles.get(i, "") in other.id_of_role)}
    for i, pieces in spell_tokens(own, other, [i for i, d in data.items() if d and i not in known]):
        first = (other.token_bytes[pieces[0]] or b"") if pieces else b""
        if first and (data[i] or b"").startswith(first):
            known.add(i)
    return np.array(sorted(known), np.int64)


def named(student: Vocabulary, teacher: Vocabulary, ids: tuple[np.ndarray, np.ndarray]) -> PrefixClasses:
    """Classes that say of these tokens alone that they have one."""
    sides = []
    for own, other, tokens in ((student, teacher, ids[0]), (teacher, student, ids[1])):
        classes = np.full(own.size, -1, np.int32)
        classes[have_class(own, other, tokens)] = 0
        sides.append(SpelledTokens(classes, np.zeros(0, np.int32), np.zeros((0, MAX_PIECES), np.int32)))
    return PrefixClasses(*sides)


def scored(pair: VocabularyPair, ids: tuple[np.ndarray, np.ndarray], chunks: torch.Tensor) -> dict[str, np.ndarray]:
    """By loss bool ``[T_S]``: the student's tokens in chunks that it scores."""
    labels = [torch.from_numpy(x)[None] for x in ids]
    out = {}
    for name in LOSSES:
        selection = chunk_selection(name, pair)
        taken = chunks if selection is None else scored_chunks(selection, *labels, chunks)
        there = np.zeros(len(ids[0]), bool)
        for _, first, tokens, _, _ in taken.tolist():
            there[first : first + tokens] = True
        out[name] = there
    return out


def silence(
    student: Vocabulary, teacher: Vocabulary, texts: Mapping[str, str], whole: bool = False
) -> dict[str, dict[str, Any]]:
    """Shares of the student's tokens, by text, as `losses.text_coverage.losses_on_text` has them.

    Args:
        whole: the classes of all tokens are made in any case.
    """
    aligner = Aligner(student, teacher)
    ids = {kind: tuple(v.encode(text).astype(np.int64) for v in (student, teacher)) for kind, text in texts.items()}
    both = tuple(np.concatenate([of[side] for of in ids.values()]) for side in (0, 1))
    pair = VocabularyPair(student, teacher, classes=None if whole else named(student, teacher, both))
    out = {}
    for kind, sides in ids.items():
        s0, s1, t0, t1 = aligner.align(*sides).astype(np.int64).T
        chunks = torch.from_numpy(np.stack([np.zeros_like(s0), s0, s1 - s0, t0, t1 - t0], axis=1))
        found = scored(pair, sides, chunks)
        if not whole and (found["prefix_kl"] < found["p_kl"]).any():
            return silence(student, teacher, texts, whole=True)
        left = sides[0][~found["prefix_kl"]].tolist()
        out[kind] = {
            "prefix_kl": float((~found["prefix_kl"]).mean()),
            "strict_1to1": float((~found["strict_1to1"]).mean()),
            NO_CHUNK: float((~found["p_kl"]).mean()),
            SILENT: [(student.token_bytes[i] or b"").decode("utf-8", "replace") for i in left],
        }
    return out


def main() -> int:
    """Prints the pairs with the most silent cells, and writes all."""
    parser = Parser(__doc__)
    parser.add_argument("tokenizers", nargs="+", help="folders or hub names")
    parser.add_argument("--whole", action="store_true", help="make the classes of every pair")
    parser.add_output()
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    known = {Path(name).name: load_vocabulary(name) for name in arguments.tokenizers}
    cells: dict[str, dict[str, Any]] = {}
    if arguments.json and arguments.json.is_file():
        cells = json.loads(arguments.json.read_text("utf-8"))["cells"]
    for student in known:
        for teacher in (name for name in known if name != student):
            names = {f"{student} <- {teacher}, {kind}": text for kind, text in SAMPLES.items()}
            if not all(SILENT in cells.get(name, {}) for name in names):
                cells |= silence(known[student], known[teacher], names, arguments.whole)
        print(student, flush=True)
        if arguments.json:
            write_json(arguments.json, {"cells": cells})
    above = {name: cell for name, cell in cells.items() if cell["prefix_kl"] > 0.005}
    print(f"{len(cells)} cells; in {len(above)} prefix_kl leaves more than 0.5% of the student's tokens silent")
    for name, cell in sorted(above.items(), key=lambda item: -item[1]["prefix_kl"]):
        print(f"{name}: {cell['prefix_kl']:.1%} silent, {cell[NO_CHUNK]:.1%} in no chunk: {cell[SILENT]}")
    strict = np.array([cell["strict_1to1"] for cell in cells.values()])
    print(f"strict_1to1: median {np.median(strict):.1%}, most {strict.max():.1%}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
