"""What a boundary of chunks costs a student that agrees with its teacher, without conditioning and with it.

At boundaries of a text that a student's and a teacher's tokenization both have, a teacher's next-token distribution is
looked at.  A student that agrees with the teacher on texts gives nothing to what its own tokenization cannot have
there; where the teacher gives that a mass m, the loss cannot be below -log(1 - m).  With conditioning (boundary=True)
classes that are not open are put aside.  What is left is estimated by what the teacher goes on to say: texts of some
tokens are drawn from it, and it is looked whether the student's tokenizer keeps the boundary in each, all of them and
those that begin in an open class.

examples:
  python benchmarks/boundary_floor.py --model MODELS/smollm2 --students TOKENIZERS/llama3 TOKENIZERS/qwen3 \\
      --text code=DATA/code.txt prose=DATA/prose.txt --json benchmarks/boundary_floor.json
"""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench import Parser, markdown, write_json

from nemo_xtoken.alignment.aligner import Aligner
from nemo_xtoken.projection.prefixes import PrefixClasses
from nemo_xtoken.vocab.loading import load_vocabulary
from nemo_xtoken.vocab.neighbours import Neighbours
from nemo_xtoken.vocab.vocabulary import Vocabulary

#: What names a row.
KEYS = ("teacher", "student", "text")
NAMES = {"smollm2-135m-instruct": "SmolLM2-135M", "gemma3-270m": "Gemma-3-270m", "llama3": "Llama-3", "qwen3": "Qwen3"}
DRAWN = ("drawn, impossible", "drawn in open classes, impossible")
#: Characters of a text before a boundary that the student's tokenizer sees in a drawn text.
BEFORE = 200


class Student:
    """A student's tokenizer beside a teacher's."""

    def __init__(self, name: str, teacher: Vocabulary, following: Neighbours) -> None:
        self.name, self.vocabulary = Path(name).name, load_vocabulary(name)
        self.own, self.teachers = Neighbours(self.vocabulary), following
        self.classes = PrefixClasses.of(self.vocabulary, teacher)
        self.teacher, self.aligner = teacher, Aligner(self.vocabulary, teacher)

    def boundaries(self, ids: tuple[np.ndarray, np.ndarray], last: int) -> dict[int, tuple[int, int]]:
        """By the teacher's position, the first tokens (numbers in their sequences) of chunks that have two before."""
        found = self.aligner.align(*ids)
        return {int(t): (int(s), int(t)) for s, _, t, _ in found if s > 1 and 1 < t < last}

    def masks(self, ids: tuple[np.ndarray, np.ndarray], at: tuple[int, int]) -> dict[str, np.ndarray]:
        """Bool, of the teacher's tokens: ``possible`` for the student, of an ``open`` class; is the text's ``own``?"""
        (s, t), classes = at, self.classes
        own = self.own.possible(int(ids[0][s - 2]), int(ids[0][s - 1]))
        others = self.teachers.possible(int(ids[1][t - 2]), int(ids[1][t - 1]))
        kept = classes.teacher.classes < 0  # REST is compared
        possible = kept.copy()
        possible[classes.teacher.tokens[own[classes.teacher.pieces[:, 0]]]] = True
        closed = np.zeros(len(others), bool)
        for side, can in ((classes.student, own), (classes.teacher, others)):
            dead = side.classes[~can]
            closed[dead[dead >= 0]] = True
        first = classes.student.classes[ids[0][s]]
        is_open = kept | ~closed[classes.teacher.classes.clip(0)]
        return {"possible": possible, "open": is_open, "own": np.array(first < 0 or not closed[first])}

    def keeps(self, text: bytes, drawn: list[bytes]) -> np.ndarray:
        """bool: whether the student's tokenization has a boundary between the two."""
        start = len(text) - len(text[-BEFORE:].decode("utf-8", "ignore").encode())
        context = text[start:].decode()
        kept = []
        for more in drawn:
            whole = context + more.decode("utf-8", "ignore")
            ends = np.cumsum([len(self.vocabulary.token_bytes[i] or b"") for i in self.vocabulary.encode(whole)])
            at = len(context.encode()) + int(ends[-1]) - len(whole.encode())  # a blank may be put before a text
            kept.append(at in ends)
        return np.array(kept)


def drawn(model: Any, ids: list[int], number: int, length: int) -> np.ndarray:
    """``[number, length]`` tokens that the teacher says after these, and its distribution of the first."""
    after = model(torch.tensor([ids])).past_key_values
    after.crop(len(ids) - 1)
    after.batch_repeat_interleave(number)
    tokens = torch.tensor([ids[-1:]]).repeat(number, 1)
    found = []
    for _ in range(length):
        out = model(tokens, past_key_values=after)
        tokens = torch.multinomial(torch.softmax(out.logits[:, -1].float(), 1), 1)
        found.append(tokens)
    return torch.cat(found, dim=1).numpy()


def main() -> int:
    """Prints a line for each student and text, and writes all."""
    parser = Parser(__doc__)
    parser.add_argument("--model", required=True, help="the teacher's folder, with its tokenizer")
    parser.add_argument("--students", nargs="+", required=True, help="tokenizers")
    parser.add_argument("--text", nargs="+", required=True, help="KIND=FILE or KIND=FILE:START, texts in UTF-8")
    parser.add_argument("--characters", type=int, default=3000, help="of each text (3000)")
    parser.add_argument("--boundaries", type=int, default=250, help="of each text that are looked at (250)")
    parser.add_argument("--draws", type=int, default=0, help="texts that are drawn at each of some boundaries (none)")
    parser.add_argument("--drawn-at", type=int, default=40, help="boundaries at which texts are drawn (40)")
    parser.add_output()
    arguments = parser.parse_args()
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32).eval()
    teacher = load_vocabulary(arguments.model)
    following = Neighbours(teacher)
    lead = [teacher.bos_id] if teacher.adds_bos and teacher.bos_id is not None else []
    texts = {}
    for given in arguments.text:
        kind, _, place = given.partition("=")
        file, _, start = place.partition(":")
        text = Path(file).read_text(encoding="utf-8")[int(start or 0) :][: arguments.characters]
        ids = teacher.encode(text).astype(np.int64)
        with torch.no_grad():
            logits = model(torch.tensor([lead + ids.tolist()])).logits[0, :, : teacher.size].float()
        p = torch.softmax(logits, 1).numpy()  # a tokenizer may have ids that the model has no row for
        texts[kind] = text, ids, np.pad(p, ((0, 0), (0, teacher.size - p.shape[1])))
    rows = read_rows(arguments.json)
    for name in arguments.students:
        student = Student(name, teacher, following)
        for kind, (text, theirs, p) in texts.items():
            row = looked_at(model, student, (text, theirs, p), lead, arguments)
            key = Path(arguments.model).name, student.name, kind
            rows[key] = dict(zip(KEYS, key, strict=True)) | row
            print(rows[key], flush=True)
            if arguments.json:  # what there is, also where the run is ended
                write_json(arguments.json, {"rows": [rows[key] for key in sorted(rows)]})
    return 0


def read_rows(file: str | Path | None) -> dict[tuple[str, ...], dict[str, Any]]:
    """Those of an earlier run, which another model's are put beside."""
    if file is None or not Path(file).is_file():
        return {}
    rows = json.loads(Path(file).read_text("utf-8"))["rows"]
    return {tuple(row[key] for key in KEYS): row for row in rows}


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """As Markdown."""
    head = ["teacher", "student's tokenizer", "text", "impossible", "floor", "put aside", "own class open"]
    lines = []
    for row in rows:
        lines.append(
            [NAMES.get(row[key], row[key]) for key in KEYS]
            + [f"{row['impossible']:.1%}", f"{row['floor']:.3f}", f"{row['put aside']:.1%}"]
            + [f"{row['own class open']:.1%}"]
            + [f"{row[key]:.1%}" if key in row else "" for key in DRAWN]
        )
    return markdown([*head, "drawn: all", "in open classes"], lines)


def looked_at(
    model: Any, student: Student, known: tuple[str, np.ndarray, np.ndarray], lead: list[int], arguments: Any
) -> dict[str, float]:
    """Means over the boundaries of one text."""
    text, theirs, p = known
    ids = student.vocabulary.encode(text).astype(np.int64), theirs
    places = list(student.boundaries(ids, len(theirs)).values())
    rng = np.random.default_rng(0)
    chosen = [places[i] for i in rng.permutation(len(places))[: arguments.boundaries]]
    lost, aside, own, kept, survived = [], [], [], [], []
    for number, at in enumerate(chosen):
        masks, said = student.masks(ids, at), p[at[1] - 1 + len(lead)]
        lost.append(float(said[~masks["possible"]].sum()))
        aside.append(float(said[~masks["open"]].sum()))
        own.append(bool(masks["own"]))
        if arguments.draws and number < arguments.drawn_at:
            before = theirs[: at[1]].tolist()
            with torch.no_grad():
                tokens = drawn(model, lead + before, arguments.draws, 4)
            texts = [student.teacher.decode_bytes(np.array(row)) for row in tokens.tolist()]
            kept.append(student.keeps(student.teacher.decode_bytes(before), texts))
            survived.append(masks["open"][tokens[:, 0].clip(0, len(masks["open"]) - 1)])
    mass = np.array(lost)
    found = {
        "boundaries": len(chosen),
        "impossible": float(mass.mean()),
        "floor": float(-np.log1p(-mass.clip(0, 1 - 1e-6)).mean()),
        "above 5%": float((mass > 0.05).mean()),
        "put aside": float(np.mean(aside)),
        "own class open": float(np.mean(own)),
    }
    if kept:
        all_kept, all_open = np.concatenate(kept), np.concatenate(survived)
        found |= {
            "drawn": len(all_kept),
            "drawn, impossible": float(1 - all_kept.mean()),
            "drawn in open classes, impossible": float(1 - all_kept[all_open].mean()),
        }
    return found


if __name__ == "__main__":
    sys.exit(main())
