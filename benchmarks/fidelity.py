"""Gradients without training: how far each loss's points from that of an exact KL, where a tokenizer alone is swapped.

The teacher is a model with its own tokenizer.  The student is the same model, its layers disturbed by noise, with
another tokenizer, whose embeddings `xtoken transplant` makes.  The reference is ``KL(teacher || the teacher with this
noise)`` over the teacher's own tokens, exact.  Before each chunk of a text both have a position that has read the same
text, and the student is given the states of the disturbed teacher there.  So all that differs is the tokenizer: what
the states are compared by.  The angle is that between the gradients with respect to these states, of the chunks of a
kind.  Inside of a chunk, where only the student has a position, it has its own states, and no angle is taken.

- yardstick: the exact KL in the student's tokens, of the student without and with the noise.  Nothing has to be
  carried from one tokenizer to the other; its angle is what the other embeddings make by themselves.
- changed: the angle of what the noise changes in a loss's gradient: of the one with noise less the one without.  What
  a loss wants of new embeddings that do not fit, where the layers are sound, is not in it.  Of a loss whose target does
  not depend on the student it is the yardstick's, whatever the target: no measure of a loss, kept for the claim on it.

What is claimed was written down before the measurement (``fidelity_page.py``), which fills docs/method.md from its
file: --page.

examples:
  python benchmarks/fidelity.py --assets ASSETS --made MODELS --json benchmarks/fidelity.json
  python benchmarks/fidelity.py --page
"""

import copy
import sys
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from bench import Parser, machine_line, write_json
from fidelity_page import KINDS, LOSSES, REST, YARDSTICK, fill_document
from torch import Tensor

from nemo_xtoken.losses.base import ModelOutput, TeacherSignal
from nemo_xtoken.losses.options import DivergenceOptions
from nemo_xtoken.losses.pair import VocabularyPair
from nemo_xtoken.losses.registry import chunk_selection, make_divergence
from nemo_xtoken.objective.terms import cross_tokenizer_loss
from nemo_xtoken.objective.text_batch import TextBatch
from nemo_xtoken.parallel.head import OutputHead
from nemo_xtoken.parallel.ownership import reorder_rows
from nemo_xtoken.parallel.vocabulary_shard import VocabularyShard
from nemo_xtoken.projection import build_projection
from nemo_xtoken.vocab import load_vocabulary
from nemo_xtoken.vocab.vocabulary import Vocabulary

__all__ = ["Lesson", "Piece", "angles", "disturbed", "exact", "kind_of"]

#: Kind of text -> that of the study's texts.
TEXTS = {"prose": "speeches", "code": "code", "mathematics": "mathematics", "Chinese": "chinese"}
_CJK = ((0x2E80, 0x9FFF), (0xAC00, 0xD7AF), (0xF900, 0xFAFF), (0xFF00, 0xFFEF), (0x20000, 0x3134F))


def kind_of(data: bytes, students: int, teachers: int) -> str:
    """A chunk's kind, one of `KINDS`: by its text, else by its numbers of tokens."""
    text = data.decode("utf-8", "replace")
    if any(low <= ord(c) <= high for c in text for low, high in _CJK) or "\ufffd" in text:  # also a part of one
        return "CJK"
    if any(a.isspace() and b.isspace() for a, b in pairwise(text)):
        return "indentation"
    if any(c.isdigit() for c in text):
        return "numerals"
    return f"{'1' if students == 1 else 'n'}:{'1' if teachers == 1 else 'n' if students == 1 else 'm'}"


def disturbed(model: Any, noise: float, seed: int) -> Any:
    """A copy with Gaussian noise on every matrix of its layers, ``noise`` times its root mean square."""
    other = copy.deepcopy(model)
    numbers = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in (p for layer in other.layers for p in layer.parameters() if p.dim() == 2):
            p += torch.randn(p.shape, generator=numbers) * (noise * p.square().mean().sqrt())
    return other


@torch.no_grad()
def states_of(model: Any, tokens: Tensor, embeddings: Tensor) -> Tensor:
    """``[T, H]`` after the final norm."""
    found: Tensor = model(inputs_embeds=embeddings[tokens][None], use_cache=False).last_hidden_state
    return found[0]


def exact(taught: Tensor, states: Tensor, embeddings: Tensor) -> tuple[Tensor, Tensor]:
    """``(KL(p || q) [T], its gradients [T, H] with respect to states)``, p by ``taught``, q by ``states``."""
    log_p, log_q = (torch.log_softmax(x.detach() @ embeddings.T, 1) for x in (taught, states))
    return (log_p.exp() * (log_p - log_q)).sum(1), (log_q.exp() - log_p.exp()) @ embeddings


class Lesson:
    """A loss between the two models.

    Args:
        pair: the vocabularies.
        name: one of `LOSSES`.
        embeddings: which are the output layers as well, the student's and the teacher's.
    """

    def __init__(self, pair: VocabularyPair, name: str, embeddings: Sequence[Tensor]) -> None:
        loss, _, boundary = name.partition(", ")
        sizes = [v.size for v in (pair.student, pair.teacher)]
        self.shard, held = (
            VocabularyShard.of_local_rows(n, len(e), None) for n, e in zip(sizes, embeddings, strict=True)
        )
        options = DivergenceOptions(boundary=True) if boundary else DivergenceOptions()
        self.divergence = make_divergence(loss, pair, self.shard, options)
        self.selection, self.output_layer = chunk_selection(loss, pair), embeddings[0]
        own = self.divergence.ownership
        self.head = OutputHead(reorder_rows(embeddings[1], held, own), own.shard, torch.from_numpy(own.owned))

    def wanted(self, batch: TextBatch, states: Tensor, taught: Tensor) -> Tensor:
        """``[T, H]``, the gradient of the sum over the chunks with respect to the student's states."""
        hidden = states.detach().requires_grad_()
        signal = TeacherSignal(
            ModelOutput(taught, self.head), batch.teacher_labels, batch.chunks, self.divergence
        ).selected(self.selection, batch.student_labels)
        if not len(signal.chunks):
            return torch.zeros_like(hidden)
        student = ModelOutput(hidden, OutputHead(self.output_layer, self.shard))
        terms = cross_tokenizer_loss(student, batch.student_labels, [signal], ce_weight=0.0, tile_rows=128)
        (found,) = torch.autograd.grad(terms.objective, hidden)
        return found


class Piece:
    """A piece of text with what the teacher and both students say of it.

    Args:
        rest, moved: the layers without and with noise.
        names: the vocabularies, the student's first.
        embeddings: likewise.

    Attributes:
        kinds: of each chunk.
        sizes: of each chunk, its tokens on both sides.
        kl: of each chunk, the reference at the teacher's position before it.
        reference: ``[chunks, H]``, its gradient there.
        student: ``[T, H]`` without and with noise: where the teacher has such a position, its own states.
    """

    def __init__(
        self, text: str, rest: Any, moved: Any, names: tuple[Vocabulary, Vocabulary], embeddings: Sequence[Tensor]
    ) -> None:
        self.batch = TextBatch.of([text], *names)
        tokens = self.batch.student_tokens[0], self.batch.teacher_tokens[0]
        _, self.rows, n, rows, m = self.batch.chunks.T
        self.sizes = torch.stack([n, m], 1)
        self.kinds = []
        for a, k, other in zip(self.rows.tolist(), n.tolist(), m.tolist(), strict=True):
            said = names[0].decode_bytes(self.batch.student_labels[0, a : a + k].numpy())
            self.kinds.append(kind_of(said, k, other))
        own = [states_of(model, tokens[1], embeddings[1]) for model in (rest, moved)]
        self.taught = own[0]
        kl, wanted = exact(*own, embeddings[1])
        self.kl, self.reference = kl[rows], wanted[rows]
        self.student = []
        for model, states in zip((rest, moved), own, strict=True):
            mine = states_of(model, tokens[0], embeddings[0])
            mine[self.rows] = states[rows]
            self.student.append(mine)
        self.yardstick = exact(*self.student, embeddings[0])[1][self.rows]

    def wanted(self, lesson: Lesson | None) -> tuple[Tensor, Tensor]:
        """``[chunks, H]`` without and with noise: gradients at the positions before the chunks; None: the yardstick."""
        if lesson is None:
            return torch.zeros_like(self.yardstick), self.yardstick
        still, found = (lesson.wanted(self.batch, states, self.taught)[self.rows] for states in self.student)
        return still, found


def degrees(one: Tensor, other: Tensor) -> float | None:
    """Between two gradients; None where one is 0: there is none."""
    one, other = one.double().flatten(), other.double().flatten()
    whole = float(one.norm() * other.norm())
    return float(torch.rad2deg(torch.arccos((one @ other / whole).clamp(-1, 1)))) if whole else None


def spread(one: Tensor, other: Tensor, draws: int = 200) -> float | None:
    """Of `degrees`, if other chunks had been drawn: its standard deviation by the bootstrap."""
    parts = torch.stack([(one * other).sum(1), one.square().sum(1), other.square().sum(1)]).double()
    if not parts.sum(1).all() or parts.shape[1] < 2:
        return None
    at = torch.randint(parts.shape[1], (draws, parts.shape[1]), generator=torch.Generator().manual_seed(0))
    dot, first, second = parts[:, at].sum(2)
    there = first * second > 0
    return float(torch.rad2deg(torch.arccos((dot / (first * second).sqrt())[there].clamp(-1, 1))).std())


def angles(pieces: Sequence[tuple[str, Piece]], lesson: Lesson | None) -> dict[str, dict[str, Any]]:
    """Figures of a loss by set of chunks: each kind in all texts, each text, and all.

    Args:
        pieces: with the kind of text of each.
        lesson: None: the yardstick.
    """
    still, found = (torch.cat(x) for x in zip(*(p.wanted(lesson) for _, p in pieces), strict=True))
    reference = torch.cat([p.reference for _, p in pieces])
    kinds = [kind for _, p in pieces for kind in p.kinds]
    texts = [text for text, p in pieces for _ in p.kinds]
    sets = {kind: [k == kind for k in kinds] for kind in KINDS}
    sets |= {f"all of {text}": [t == text for t in texts] for text in dict.fromkeys(texts)}
    out = {}
    for name, members in (sets | {"all": [True] * len(kinds)}).items():
        if any(members):
            at = torch.tensor(members)
            one, without, other = found[at], still[at], reference[at]
            out[name] = {
                "degrees": degrees(one, other),
                "spread": spread(one, other),
                "changed": degrees(one - without, other),
                "length": float(one.norm() / other.norm()),
                REST: float(without.norm() / other.norm()),
            }
    return out


def main() -> int:
    """Prints and writes what is found, or fills the document."""
    parser = Parser(__doc__)
    parser.add_argument("--assets", type=Path, help="the folder of models, tokenizers and texts: students/README.md")
    parser.add_argument("--made", type=Path, help="where the student is made, once")
    parser.add_argument("--model", default="models/smollm2-135m-instruct", help="in the assets (%(default)s)")
    parser.add_argument("--tokenizer", default="tokenizers/llama3", help="in the assets (%(default)s)")
    parser.add_argument("--noise", type=float, default=0.1, help="of a matrix's root mean square (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the noise (%(default)s)")
    parser.add_argument("--pieces", type=int, default=1, help="of each kind of text (%(default)s)")
    parser.add_argument("--bytes", type=int, default=600, help="a piece has at most (%(default)s)")
    parser.add_argument("--losses", nargs="+", default=list(LOSSES), help="(all of the table)")
    parser.add_argument("--page", action="store_true", help="fill the document from the file of results")
    parser.add_output()
    arguments = parser.parse_args()
    if arguments.page:
        fill_document()
        return 0
    print(machine_line())
    for found in measured(arguments):  # what there is, also where the run is ended
        if arguments.json:
            write_json(arguments.json, found)
    return 0


def measured(arguments: Any) -> Iterator[dict[str, Any]]:
    """Everything, as the file has it, loss after loss."""
    from students.corpora import Texts
    from transformers import AutoModelForCausalLM

    from nemo_xtoken.weights.transplant import transplant

    torch.set_num_threads(1)
    model, tokenizer = (arguments.assets / name for name in (arguments.model, arguments.tokenizer))
    given = arguments.made / f"{model.name}-{tokenizer.name}"
    if not given.exists():
        transplant(model, tokenizer, given)
    names = load_vocabulary(str(given)), load_vocabulary(str(model))
    loaded = [AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval() for folder in (given, model)]
    assert all(m.config.tie_word_embeddings for m in loaded)
    embeddings = [m.get_input_embeddings().weight.detach()[: v.size] for m, v in zip(loaded, names, strict=True)]
    rest = loaded.pop().base_model
    loaded.clear()
    moved = disturbed(rest, arguments.noise, arguments.seed)
    texts = Texts(arguments.assets)
    pieces = [
        (kind, Piece(text, rest, moved, names, embeddings))
        for kind, of in TEXTS.items()
        for text in texts.pieces(of, arguments.bytes)[: arguments.pieces]
    ]
    del rest, moved
    kinds, sizes = [kind for _, p in pieces for kind in p.kinds], torch.cat([p.sizes for _, p in pieces])
    counts = {}
    for kind in (*KINDS, "all"):
        at = torch.tensor([kind in (k, "all") for k in kinds])
        counts[kind] = [int(at.sum()), *sizes[at].sum(0).tolist()]
    shape = {
        "student": given.name,
        "teacher": model.name,
        "noise": arguments.noise,
        "seed": arguments.seed,
        "pieces": len(pieces),
        "KL": float(torch.cat([p.kl for _, p in pieces]).mean()),
    }
    print(shape, counts, flush=True)
    pair = VocabularyPair(*names, lambda: build_projection(*names))
    table: dict[str, dict[str, Any]] = {}
    for name in arguments.losses:
        lesson = None if name == YARDSTICK else Lesson(pair, name, embeddings)
        table[name] = angles(pieces, lesson)
        for kind, row in table[name].items():
            print(f"{name:20} {kind:20} {row}", flush=True)
        yield {"shape": shape, "counts": counts, "angles": table}


if __name__ == "__main__":
    sys.exit(main())
