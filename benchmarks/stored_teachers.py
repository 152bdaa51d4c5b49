"""What the form in which a teacher is stored does to a student: gradients, and a short training, on real models.

Used by ``benchmarks/teachers.py --models``.  A form is an output layer and what stands in the place of hidden states.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from nemo_xtoken.losses.base import LossTerms, ModelOutput, TeacherSignal
from nemo_xtoken.losses.options import DivergenceOptions
from nemo_xtoken.losses.pair import VocabularyPair
from nemo_xtoken.losses.registry import check_options, chunk_selection, loss_named, make_divergence
from nemo_xtoken.objective.terms import cross_tokenizer_loss
from nemo_xtoken.objective.text_batch import TextBatch
from nemo_xtoken.parallel.head import FreeLogits, OutputHead
from nemo_xtoken.parallel.ownership import reorder_rows
from nemo_xtoken.parallel.vocabulary_shard import VocabularyShard
from nemo_xtoken.projection import build_projection
from nemo_xtoken.teachers.store.sampled_rows import NEVER, SampledHead, sampled_rows
from nemo_xtoken.teachers.store.state_formats import format_for
from nemo_xtoken.vocab import load_vocabulary
from nemo_xtoken.weights.rotary import classic_rotary

__all__ = ["DRAWS", "LOSSES", "Models", "gradients", "training"]

#: Losses whose forward form is compared, and of those that a plain top-k is shown for.
LOSSES = ("p_kl", "alm", "prefix_kl", "h_kl", "gold", "uld", "strict_1to1")
FORMS = ("bf16", "fp8", "sampled", "top 12", "top 50")
TRAINED = ("fp32", *FORMS)
#: Of the samples of one batch, whose gradients' mean has the noise of a batch so many times as large.
DRAWS = 16


def degrees(one: Tensor, other: Tensor) -> float:
    """The angle between two gradients."""
    one, other = one.flatten().double(), other.flatten().double()
    return float(torch.rad2deg(torch.arccos((one @ other / (one.norm() * other.norm())).clamp(-1, 1))))


class Pair:
    """A loss between two models, without cross-entropy; the teacher is given at each call.

    Args:
        names: the vocabularies, the student's first.
        weights: the output layers.
        loss: its name.
    """

    def __init__(self, names: Sequence[Any], weights: Sequence[Tensor], loss: str) -> None:
        pair = VocabularyPair(*names, lambda: build_projection(*names))
        self.shard = VocabularyShard.of_local_rows(names[0].size, weights[0].shape[0], None)
        self.divergence, self.selection = make_divergence(loss, pair, self.shard), chunk_selection(loss, pair)
        own = self.divergence.ownership
        held = VocabularyShard.of_local_rows(names[1].size, weights[1].shape[0], None)
        self.head = OutputHead(reorder_rows(weights[1], held, own), own.shard, torch.from_numpy(own.owned))
        self.tokens = torch.from_numpy(own.order)

    def __call__(
        self, batch: TextBatch, hidden: Tensor, weight: Tensor, teacher: "Stored", ce_weight: float
    ) -> LossTerms:
        """The mean over chunks, and that over tokens times its weight."""
        output = ModelOutput(teacher.states.flatten(0, 1), teacher.head)
        signal = TeacherSignal(output, batch.teacher_labels, batch.chunks, self.divergence)
        signal = signal.selected(self.selection, batch.student_labels)
        tokens = int((batch.student_labels >= 0).sum())
        student = ModelOutput(hidden.flatten(0, 1), OutputHead(weight, self.shard))
        weights = ce_weight / tokens, [1 / max(1, signal.chunks.shape[0])]
        return cross_tokenizer_loss(student, batch.student_labels, [signal], *weights, tile_rows=128)


class Stored(NamedTuple):
    """A teacher in some form: an output layer, and what stands in the place of hidden states ``[b, T, H]``."""

    head: OutputHead
    states: Tensor


@dataclass
class Models:
    """A student and a teacher on some texts.

    Attributes:
        names: of their vocabularies, loaded.
        weights: their output layers.
        batches: of the texts, some for training and the last for testing.
        hidden: of each batch, both sides' ``[b, T, H]``.
    """

    names: tuple[Any, Any]
    weights: tuple[Tensor, Tensor]
    batches: list[TextBatch]
    hidden: list[tuple[Tensor, Tensor]]

    @classmethod
    def load(cls, student: str, teacher: str, text: str, batches: int, texts: int, characters: int) -> "Models":
        """From folders in Hugging Face's format, and a file of text whose paragraphs are the texts."""
        from transformers import AutoConfig, AutoModelForCausalLM

        parts = [p[:characters] for p in Path(text).read_text("utf-8").split("\n\n") if len(p) >= characters // 2]
        assert len(parts) >= batches * texts, f"{len(parts)} paragraphs of {characters // 2} characters in {text}"
        models = []
        for name in (student, teacher):
            config = AutoConfig.for_model(**classic_rotary(json.loads((Path(name) / "config.json").read_text()), name))
            models.append(AutoModelForCausalLM.from_pretrained(name, config=config, dtype=torch.float32).eval())
        mine, theirs = (load_vocabulary(name) for name in (student, teacher))
        made, hidden = [], []
        for number in range(batches):
            batch = TextBatch.of(parts[number * texts : (number + 1) * texts], mine, theirs)
            with torch.no_grad():
                sides = zip(models, (batch.student_tokens, batch.teacher_tokens), strict=True)
                s, t = (model(ids, output_hidden_states=True).hidden_states[-1] for model, ids in sides)
            made.append(batch)
            hidden.append((s, t))
        sizes = [
            (model.get_output_embeddings().weight.detach(), v.size)
            for model, v in zip(models, (mine, theirs), strict=True)
        ]
        s, t = (torch.nn.functional.pad(w, (0, 0, 0, max(0, size - len(w)))) for w, size in sizes)
        return cls((mine, theirs), (s, t), made, hidden)

    def stored(self, form: str, number: int, pair: Pair, draw: int = 0) -> Stored:
        """The teacher's part of a batch in a form.

        Args:
            draw: of samples, by other random numbers each.
        """
        states, labels, head = self.hidden[number][1], self.batches[number].teacher_labels, pair.head
        flat = states.flatten(0, 1)
        if form == "fp32":
            return Stored(head, states)
        if form == "sampled":
            u = torch.from_numpy(np.random.default_rng((number, draw)).random(len(flat)))
            rows = sampled_rows(head, flat, labels.flatten().clamp_min(0), u, pair.tokens)
            assert head.columns is not None
            kind = format_for("sampled", "float32")
            kept = kind.decode(kind.encode(rows), torch.float32)
            return Stored(SampledHead(head.shard, head.columns), kept.unflatten(0, states.shape[:2]))
        if form.startswith("top "):
            logits = torch.cat([_largest(head.logits(part), int(form[4:])) for part in flat.split(256)])
            return Stored(FreeLogits(head.shard, head.columns), logits.unflatten(0, states.shape[:2]))
        kind = format_for(form, "float32")
        return Stored(head, kind.decode(kind.encode(flat), torch.float32).view_as(states))


def _largest(z: Tensor, k: int) -> Tensor:
    """Logits of the k most probable tokens alone, as a plain top-k keeps them."""
    values, at = z.topk(k, dim=1)
    return torch.full_like(z, NEVER).scatter_(1, at, values)


def gradients(models: Models, losses: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Of each loss and form: degrees between its gradient and the one by exact states, and their lengths' ratio.

    By the student's output layer, which adds all positions of a batch up, and by its hidden states, position by
    position.  Of losses that samples suffice for also by the mean of several draws.
    """
    for name in losses:
        pair = Pair(models.names, models.weights, name)
        linear = loss_named(name).linear_in_teacher(check_options(name, DivergenceOptions()))

        def gradient(form: str, draw: int = 0, pair: Pair = pair) -> tuple[Tensor, ...]:
            hidden, weight = models.hidden[0][0].clone().requires_grad_(), models.weights[0].clone().requires_grad_()
            terms = pair(models.batches[0], hidden, weight, models.stored(form, 0, pair, draw), 0.0)
            return torch.autograd.grad(terms.objective, (hidden, weight))

        exact = gradient("fp32")
        for form in (*FORMS, f"{DRAWS} x sampled") if linear else FORMS:
            if form in FORMS:
                hidden, weight = gradient(form)
            else:
                hidden, weight = gradient("sampled")
                for draw in range(1, DRAWS):  # one at a time: each is as large as an output layer
                    for total, part in zip((hidden, weight), gradient("sampled", draw), strict=True):
                        total += part
                hidden, weight = hidden / DRAWS, weight / DRAWS
            yield {
                "loss": name,
                "form": form,
                "accepted": form in ("bf16", "fp8") or ("sampled" in form and linear),
                "degrees, weight": degrees(weight, exact[1]),
                "degrees, states": degrees(hidden, exact[0]),
                "length": float(weight.norm() / exact[1].norm()),
            }


def training(models: Models, steps: int, rate: float = 1e-4, loss: str = "p_kl") -> Iterator[dict[str, Any]]:
    """A short training by each form: a matrix on the student's hidden states, from the identity, by Adam.

    The objective is the sum of cross-entropy and distillation loss.  Both are shown of texts that were not trained on,
    the latter by exact states.
    """
    pair = Pair(models.names, models.weights, loss)
    test = len(models.batches) - 1

    def terms(matrix: Tensor, number: int, teacher: Stored) -> LossTerms:
        return pair(models.batches[number], models.hidden[number][0] @ matrix, models.weights[0], teacher, 1.0)

    for form in ("untrained", *TRAINED):
        matrix = torch.eye(models.weights[0].shape[1]).requires_grad_()
        optimizer = torch.optim.Adam([matrix], rate)
        kept = [models.stored(form, n, pair) for n in range(test)] if form != "untrained" else []
        for step in range(steps if kept else 0):
            optimizer.zero_grad()
            terms(matrix, step % test, kept[step % test]).objective.backward()
            optimizer.step()
        with torch.no_grad():
            found = terms(matrix, test, models.stored("fp32", test, pair))
        yield {
            "form": form,
            "CE": float(found.ce.total / found.ce.count),
            "exact KD": float(found.kd[0].total / found.kd[0].count),
        }
