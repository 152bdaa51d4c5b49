"""Documents packed into one sample are to each loss what they are alone: no chunk and no context goes over an end.

Through what a training step does with a batch: data set, selection of chunks, lessons, the pass over tiles.
"""

from dataclasses import replace

import pytest
import torch
from harness import close
from tokenizer_zoo import zoo

from nemo_xtoken.data import DataConfig, Tokenization
from nemo_xtoken.data.batch import Batch
from nemo_xtoken.losses.base import ChunkLossConfig, ModelOutput
from nemo_xtoken.losses.options import DivergenceOptions
from nemo_xtoken.losses.pair import VocabularyPair
from nemo_xtoken.losses.registry import LOSSES, chunk_selection, make_divergence
from nemo_xtoken.objective.shares import Held
from nemo_xtoken.objective.terms import cross_tokenizer_loss
from nemo_xtoken.parallel.context_parallel import ContextLayout
from nemo_xtoken.parallel.head import OutputHead
from nemo_xtoken.parallel.vocabulary_shard import VocabularyShard
from nemo_xtoken.projection.build import build_projection
from nemo_xtoken.teachers.contract import States
from nemo_xtoken.training.lessons import Lesson, shared
from nemo_xtoken.training.micro_batch import MicroBatch, select_chunks

#: Ends of documents after which the next one could go on in the same token, and none after which it could not.
TEXTS = ["The cat.", "Alps in 201.", "2", "01 BC", "\n    x = 5)", "if it is"]
WIDTH = 3


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """A sample of all documents between two tokenizers, and the vocabularies."""
    folder, made = tmp_path_factory.mktemp("texts"), {}
    for number, text in enumerate(TEXTS):
        (folder / f"{number}.txt").write_text(text)

    def sample(*names):
        if names not in made:
            student, teacher = (zoo()[name] for name in names)
            data = DataConfig([f"{folder}/*.txt"], 64, cache_dir=str(folder / "-".join(names)), progress=False)
            samples, _ = data.build(student, [Tokenization(teacher)], 1)
            assert len(samples[0].student.pieces) == len(TEXTS)
            made[names] = samples[0], student, teacher
        return made[names]

    return sample


def alone(batch, number):
    """One document of a sample, with the places of its positions on both sides."""
    sides, places, chunks = [], [], batch.teachers[0].chunks
    for side in (batch.student, *batch.teachers):
        _, start, size, _ = side.pieces[number].tolist()
        places.append(slice(start, start + size))
        cut = {name: getattr(side, name)[:, places[-1]] for name in ("tokens", "positions", "documents", "labels")}
        sides.append(replace(side, **cut))
    own, other = places
    tables = {}
    for name in ("chunks", "beginnings"):
        chunks = getattr(batch.teachers[0], name)
        inside = (chunks[:, 1] >= own.start) & (chunks[:, 1] < own.stop)
        tables[name] = chunks[inside] - torch.tensor([0, own.start, 0, other.start, 0])
    return Batch(sides[0], (replace(sides[1], **tables),)), places


def without_ends(batch):
    """The same sample of documents that were cut, as long ones are: nothing says that they end."""
    sides, places = [], []
    for side in (batch.student, *batch.teachers):
        kept = side.documents[0] >= 0
        kept[side.pieces[:, 1] + side.pieces[:, 2] - 1] = False
        places.append((kept, kept.cumsum(0) - 1))
        pieces = side.pieces - torch.tensor([0, 0, 1, 0])
        pieces[:, 1] = places[-1][1][pieces[:, 1]]
        cut = {name: getattr(side, name)[:, kept] for name in ("tokens", "positions", "documents", "labels")}
        sides.append(replace(side, pieces=pieces, **cut))
    tables = {}
    for name in ("chunks", "beginnings"):
        table = getattr(batch.teachers[0], name)
        for column, (kept, number) in zip((1, 3), places, strict=True):
            table = table[kept[table[:, column] + table[:, column + 1] - 1]]
            table[:, column] = number[table[:, column]]
        tables[name] = table
    return Batch(sides[0], (replace(sides[1], **tables),))


class Scored:
    """A loss between two tokenizers, on made-up models."""

    def __init__(self, name, student, teacher, options=None):
        pair = VocabularyPair(student, teacher, lambda: build_projection(student, teacher))
        shard = VocabularyShard(student.size, student.size)
        self.divergence = make_divergence(name, pair, shard, options)
        self.selection = chunk_selection(name, pair)
        random = torch.Generator().manual_seed(0)
        own = self.divergence.ownership
        weights = [torch.randn(n, WIDTH, generator=random, dtype=torch.float64) for n in (student.size, own.shard.rows)]
        self.student = OutputHead(weights[0], shard)
        self.teacher = OutputHead(weights[1], own.shard, torch.from_numpy(own.owned))

    def __call__(self, batch, student, teacher):
        """``(KD, chunks, gradient of the student's hidden states)``; hidden states ``[T, H]``."""
        batch = select_chunks(batch, [self.selection], [self.divergence.takes_beginnings])
        lesson = Lesson("teacher", 0, self.teacher, self.divergence, ChunkLossConfig(), None)
        layouts = [ContextLayout.zigzag(1, len(hidden), None) for hidden in (student, teacher)]
        hidden = student.clone().requires_grad_()
        held = Held(ModelOutput(hidden, self.student), layouts[0])
        output, labels, signals = shared([lesson], MicroBatch(batch, (States(teacher, layouts[1]),)), held, None)
        terms = cross_tokenizer_loss(output, labels, signals, 0.0, [1.0], 7)
        terms.objective.backward()
        return terms.kd[0].total, batch.teachers[0].chunks, hidden.grad


@pytest.mark.parametrize(
    ("name", "options"),
    [*((name, None) for name in LOSSES), ("prefix_kl", DivergenceOptions(boundary=True))],
)
def test_a_sample_is_its_documents_one_by_one(packed, name, options):
    for pair in [("llama", "llama")] if name == "same_tokenizer" else [("llama", "llama"), ("llama", "qwen")]:
        sample, student, teacher = packed(*pair)
        scored = Scored(name, student, teacher, options)
        for whole in (sample, without_ends(sample)):
            random = torch.Generator().manual_seed(1)
            hidden = [
                torch.randn(side.tokens.shape[1], WIDTH, generator=random, dtype=torch.float64)
                for side in (whole.student, *whole.teachers)
            ]
            kd, chunks, gradient = scored(whole, *hidden)
            sums, sizes, gradients = 0.0, [], torch.zeros_like(gradient)
            for number in range(len(TEXTS)):
                document, (own, other) = alone(whole, number)
                value, found, by_hidden = scored(document, hidden[0][own], hidden[1][other])
                sums, gradients[own] = sums + value, by_hidden
                sizes += (found + torch.tensor([0, own.start, 0, other.start, 0])).tolist()
            assert chunks.tolist() == sizes
            close(kd, sums, 1e-9)
            close(gradient, gradients, 1e-9)
