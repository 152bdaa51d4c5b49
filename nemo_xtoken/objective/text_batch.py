"""Texts in two tokenizations with the chunks between them, for a training loop of one's own."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nemo_xtoken.alignment.aligner import Aligner
from nemo_xtoken.data.batch import IGNORED, predicted_rows
from nemo_xtoken.data.workers import document_ids
from nemo_xtoken.errors import InputError
from nemo_xtoken.vocab.vocabulary import Vocabulary

__all__ = ["TextBatch"]


@dataclass(frozen=True)
class TextBatch:
    """b texts in both tokenizations and their chunks.

    Attributes:
        student_tokens, teacher_tokens: int64 ``[b, T_S]``, ``[b, T_T]``, what the models read.
        student_labels, teacher_labels: the next token at each position, -100 where there is none to learn.
        student_starts, teacher_starts: int64 ``[b]``, where each text begins.
        chunk_table, beginning_table: int64 ``[b, K, 4]``, the rows of :attr:`chunks` and :attr:`beginnings` without
            their first column, -1 where a text has fewer.  So every tensor has the texts as its first dimension, along
            which accelerate and others join batches and cut them.
    """

    student_tokens: Tensor
    student_labels: Tensor
    teacher_tokens: Tensor
    teacher_labels: Tensor
    student_starts: Tensor
    teacher_starts: Tensor
    chunk_table: Tensor
    beginning_table: Tensor

    @property
    def chunks(self) -> Tensor:
        """int64 ``[K, 5]``: sample, first student row, student rows, first teacher row, teacher rows.

        Those whose first tokens both have a predictor.
        """
        return _flat(self.chunk_table)

    @property
    def beginnings(self) -> Tensor:
        """int64 ``[B, 5]``, likewise: what is left of the others without a text's first token.

        See `data.batch.TeacherSide`.
        """
        return _flat(self.beginning_table)

    @classmethod
    def of(
        cls, texts: Sequence[str], student: Vocabulary, teacher: Vocabulary, aligner: Aligner | None = None
    ) -> "TextBatch":
        """Encodes and aligns the texts, each as a document of its own: with BOS where the tokenizer has it, and EOS.

        Shorter texts are padded at their ends, where no causal model sees it.

        Args:
            aligner: of these vocabularies, for many batches: what it looks tokens up in is made once.
        """
        sides = [_padded([document_ids(v, ids) for ids in v.encode_batch(texts)]) for v in (student, teacher)]
        (ids, mask), (other_ids, other_mask) = sides
        return cls.of_ids(ids, other_ids, student, teacher, mask, other_mask, aligner=aligner)._without_last()

    @classmethod
    def of_ids(
        cls,
        student_ids: Any,
        teacher_ids: Any,
        student: Vocabulary,
        teacher: Vocabulary,
        student_mask: Any = None,
        teacher_mask: Any = None,
        labels: Any = None,
        aligner: Aligner | None = None,
    ) -> "TextBatch":
        """Aligns texts that are encoded already, on both sides the same ones in the same order.

        Args:
            student_ids, teacher_ids: integers ``[b, T_S]``, ``[b, T_T]``, a text a row; they become the tokens.
            student_mask, teacher_mask: of the same shapes, 0 on padding, wherever it is; None: there is none.
            labels: ``[b, T_S]`` as transformers has them: the student's ids, not shifted, -100 for what is only
                context.  A chunk with such a token is not scored.  None: everything is learned.
            aligner: see :meth:`of`.

        Raises:
            InputError: shapes that do not belong together, or ids that a tokenizer does not have.
        """
        ids = _matrix(student_ids, "student_ids"), _matrix(teacher_ids, "teacher_ids")
        if len(ids[0]) != len(ids[1]):
            raise InputError(
                f"{len(ids[0])} texts of the student, {len(ids[1])} of the teacher",
                "the same texts in the same order on both sides",
                "encode one list of texts with both tokenizers",
            )
        masks = [_mask(x, i, n) for x, i, n in zip((student_mask, teacher_mask), ids, _MASKS, strict=True)]
        learned = masks[0] & (_like(labels, ids[0], "labels") != IGNORED if labels is not None else True)
        aligner = aligner or Aligner(student, teacher)
        tables: tuple[list[np.ndarray], list[np.ndarray]] = [], []
        for sample in range(len(ids[0])):
            at = [np.flatnonzero(mask[sample]) for mask in masks]
            found = aligner.align(*(side[sample][where] for side, where in zip(ids, at, strict=True))).astype(np.int64)
            unknown = np.concatenate([[0], np.cumsum(~learned[sample][at[0]])])
            found = found[unknown[found[:, 1]] == unknown[found[:, 0]]]
            rows, whole = predicted_rows(found, 0, 0)
            columns = at[0][rows[:, 0]], rows[:, 1], at[1][rows[:, 2]], rows[:, 3]
            for table, kept in zip(tables, (whole, ~whole), strict=True):
                table.append(np.stack(columns, axis=1)[kept])
        parts = [
            part
            for tokens, mask, wanted in zip(ids, masks, (learned, masks[1]), strict=True)
            for part in (tokens, _next(tokens, mask, wanted))
        ]
        starts = [mask.argmax(1) for mask in masks]
        return cls(*map(torch.from_numpy, (*parts, *starts, *map(_table, tables))))

    def to(self, device: torch.device | str) -> "TextBatch":
        """The same on a device."""
        return TextBatch(*(getattr(self, field.name).to(device) for field in fields(self)))

    def _without_last(self) -> "TextBatch":
        """Without the last column, which predicts nothing."""
        cut = ("student_tokens", "student_labels", "teacher_tokens", "teacher_labels")
        return replace(self, **{name: getattr(self, name)[:, :-1].contiguous() for name in cut})


_MASKS = ("student_mask", "teacher_mask")


def _table(of_texts: Sequence[np.ndarray]) -> np.ndarray:
    """int64 ``[b, K, 4]`` of as many ``[k, 4]``, with -1 behind them."""
    table = np.full((len(of_texts), max(map(len, of_texts)), 4), -1, np.int64)
    for row, found in zip(table, of_texts, strict=True):
        row[: len(found)] = found
    return table


def _flat(table: Tensor) -> Tensor:
    """int64 ``[K, 5]``, with the number of the text first."""
    there = torch.nonzero(table[..., 0] >= 0)
    return torch.cat([there[:, :1], table[there[:, 0], there[:, 1]]], dim=1)


def _array(values: Any) -> np.ndarray:
    return values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)


def _matrix(values: Any, name: str) -> np.ndarray:
    found = _array(values)
    if found.ndim != 2 or found.dtype.kind not in "iu" or not found.size:
        raise InputError(
            f"{name} of shape {list(found.shape)}, {found.dtype}",
            "integers [texts, tokens]",
            "pad the texts to one length",
        )
    return found.astype(np.int64)


def _like(values: Any, ids: np.ndarray, name: str) -> np.ndarray:
    found = _array(values)
    if found.shape != ids.shape:
        raise InputError(
            f"{name} of shape {list(found.shape)}", f"{list(ids.shape)}, as its ids", "give one for each id"
        )
    return found


def _mask(values: Any, ids: np.ndarray, name: str) -> np.ndarray:
    """Where the text is."""
    if values is None:
        return np.ones(ids.shape, bool)
    mask = _like(values, ids, name).astype(bool)
    if (np.diff(mask.astype(np.int8), axis=1, prepend=0) > 0).sum(1).max() > 1:
        raise InputError(f"{name} with 0 inside of a text", "padding before and after it", "give one text a row")
    return mask


def _padded(documents: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """``(ids, mask)``, each ``[b, T]``, with padding at the ends."""
    lengths = np.array([len(ids) for ids in documents])
    mask = np.arange(lengths.max(initial=1)) < lengths[:, None]
    ids = np.zeros(mask.shape, np.int64)
    ids[mask] = np.concatenate(documents)
    return ids, mask


def _next(ids: np.ndarray, mask: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """The next token where there is one and it is wanted."""
    labels = np.full(ids.shape, IGNORED, np.int64)
    there = mask[:, :-1] & wanted[:, 1:]
    labels[:, :-1][there] = ids[:, 1:][there]
    return labels
