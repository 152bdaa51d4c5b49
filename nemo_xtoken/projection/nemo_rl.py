"""Projection files of NeMo-RL (``tools/x_token``), read and written.

Their file is a ``torch.save`` of a dict with ``indices`` (int64 ``[V_S, k]``, -1 in empty slots) and ``likelihoods``
(bfloat16 ``[V_S, k]``), beside ``student_model_id``, ``teacher_model_id`` and ``enable_scale_trick``; their tools hand
around a dict ``{(student id, teacher id): weight}`` as well.  A file is a pickle, so it is only ever read with
``weights_only=True``, which admits tensors and plain values and runs no code.

Their rows need not be distributions: a slot can name a token with weight 0, rows are cut to the k largest without being
normalised in more than bfloat16, and ids can lie beyond the vocabularies, where the model's layers are padded.  Reading
makes rows of ours from them and says in a `ReadReport` what that took; it takes no weight away that names a token.
"""

import pickle
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from nemo_xtoken.errors import InputError
from nemo_xtoken.files import atomic_path
from nemo_xtoken.projection.matrix import ROW_SUM_TOLERANCE, ProjectionMatrix, RawSlots
from nemo_xtoken.projection.rows import KINDS, check_sizes, row_kinds
from nemo_xtoken.vocab.vocabulary import Vocabulary

__all__ = ["ReadReport", "is_torch_file", "read_nemo_rl", "read_projection", "write_nemo_rl"]

_EXPECTED = (
    "a NeMo-RL projection: a dict with the tensors indices and likelihoods [V_S, k], or {(student, teacher): weight}"
)


@dataclass(frozen=True)
class ReadReport:
    """What reading a NeMo-RL file took.

    Attributes:
        rows, slots: shape of the file's tensors.
        renormalised: rows that did not sum to 1 within 1e-5 and were divided by their sum.
        largest_deviation: largest ``|sum - 1|`` among them.
        zero_entries: slots that name a token but have weight 0.
        bad_entries: slots with a negative weight, or a weight that is not a number; dropped.
        outside_entries: slots of rows or teacher ids that are not tokens, such as padding; dropped.
        outside_weight: the weight in these.
        merged_entries: slots that name a token a second time in their row; their weights are added.
        missing_rows: rows that the file does not have; empty.
        about: the file's other values.
    """

    rows: int
    slots: int
    renormalised: int
    largest_deviation: float
    zero_entries: int
    bad_entries: int
    outside_entries: int
    outside_weight: float
    merged_entries: int
    missing_rows: int
    about: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    def warnings(self) -> list[str]:
        """Warnings for the user, one sentence each; none if the file's rows are used unchanged."""
        sentences = (
            (
                self.renormalised,
                f"{self.renormalised:,} rows did not sum to 1 (by up to {self.largest_deviation:.3g}); they were "
                "divided by their sum",
            ),
            (
                self.outside_entries,
                f"{self.outside_entries:,} entries (weight {self.outside_weight:.3g}) name rows or teacher ids that "
                "are not tokens; they were dropped",
            ),
            (self.bad_entries, f"{self.bad_entries:,} entries have a weight that is negative or not a number; dropped"),
            (self.merged_entries, f"{self.merged_entries:,} entries repeat a token of their row; weights were added"),
            (self.missing_rows, f"{self.missing_rows:,} student tokens have no row in the file; their rows are empty"),
        )
        return [text for count, text in sentences if count]


def is_torch_file(path: str | Path) -> bool:
    """Whether a path names a file of ``torch.save`` (by its ending)."""
    return Path(path).suffix in (".pt", ".pth")


def read_projection(
    path: str | Path, student: Vocabulary, teacher: Vocabulary
) -> tuple[ProjectionMatrix, ReadReport | None]:
    """A W of this pair from our file, or from one of NeMo-RL's with a report.

    Raises:
        InputError: on the same conditions as `ProjectionMatrix.load` and `read_nemo_rl`.
    """
    if is_torch_file(path):
        return read_nemo_rl(path, student, teacher)
    return ProjectionMatrix.load(path, student, teacher), None


def read_nemo_rl(path: str | Path, student: Vocabulary, teacher: Vocabulary) -> tuple[ProjectionMatrix, ReadReport]:
    """W from a file of NeMo-RL's tools.

    The file does not say which tokenizers it is for; only its sizes can be compared with the pair.

    Raises:
        InputError: the file is missing, cannot be read without running code, is not a projection, or has a very
            different size.
    """
    data = _load(Path(path))
    rows, ids, weights, shape, about = _entries(data, str(path))
    if (many := shape[0] - student.size) > _spare_rows(student):
        raise InputError(
            f"{path} has {shape[0]:,} rows", f"about {student.size:,}, for {student.name}", "name its student tokenizer"
        )
    raw = _raw_slots(ids, weights, shape, student, teacher) if about is not None else None
    named = ids >= 0
    rows, ids, weights = rows[named], ids[named], weights[named]
    bad = ~np.isfinite(weights) | (weights < 0)
    zero = weights == 0
    outside = ((rows >= student.size) | (ids >= teacher.size)) & ~bad & ~zero
    if ids.size and outside.mean() > 0.5:
        raise InputError(
            f"{path} names teacher ids up to {ids.max():,}",
            f"ids below {teacher.size:,}, for {teacher.name}",
            "name its teacher tokenizer",
        )
    outside_weight = float(weights[outside].sum())
    keep = ~(bad | zero | outside)
    keys, place = np.unique(rows[keep] * teacher.size + ids[keep], return_inverse=True)
    merged = np.bincount(place, weights[keep], minlength=len(keys))
    matrix, sums = _matrix(keys // teacher.size, keys % teacher.size, merged, student, teacher)
    off = np.abs(sums[sums > 0] - 1)
    off = off[off > ROW_SUM_TOLERANCE]
    report = ReadReport(
        rows=shape[0],
        slots=shape[1],
        renormalised=len(off),
        largest_deviation=float(off.max(initial=0.0)),
        zero_entries=int(zero.sum()),
        bad_entries=int(bad.sum()),
        outside_entries=int(outside.sum()),
        outside_weight=outside_weight,
        merged_entries=int(keep.sum()) - len(keys),
        missing_rows=max(-many, 0),
        about=about or {},
    )
    matrix.rule.update(name="nemo_rl", **(about or {}))
    return replace(matrix, raw=raw), report


def _raw_slots(
    ids: np.ndarray, weights: np.ndarray, shape: tuple[int, int], student: Vocabulary, teacher: Vocabulary
) -> RawSlots:
    """The slots of the rows of tokens; what names no token, or has no weight that is one, is an empty slot.

    Args:
        ids, weights: of all slots, row after row.
        shape: rows and slots.
    """
    kept = min(shape[0], student.size)
    out = RawSlots(
        np.full((student.size, shape[1]), -1, dtype=np.int32), np.zeros((student.size, shape[1]), dtype=np.float32)
    )
    ids, weights = ids.reshape(shape)[:kept], weights.reshape(shape)[:kept]
    good = (ids >= 0) & (ids < teacher.size) & np.isfinite(weights) & (weights >= 0)
    out.ids[:kept] = np.where(good, ids, -1)
    out.weights[:kept] = np.where(good, weights, 0)
    return out


def _spare_rows(student: Vocabulary) -> int:
    """How many rows a file may have beyond the tokens: an output layer is padded, and may have room for more."""
    return max(4096, student.size // 8)


def _load(path: Path) -> Any:
    import torch

    if not path.is_file():
        raise InputError(f"no file {path}", "a projection file of NeMo-RL", "fix the path")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{path} holds more than tensors and plain values, or is not a file of torch.save ({_first_line(error)})",
            _EXPECTED,
            "save it again with these alone; nothing that could run code is loaded",
        ) from None
    except (RuntimeError, OSError, EOFError, ValueError, KeyError) as error:
        raise InputError(
            f"{path} cannot be read ({_first_line(error)})", _EXPECTED, "copy or make the file again"
        ) from None


def _first_line(error: Exception) -> str:
    return f"{error}".partition("\n")[0][:200] or type(error).__name__


def _entries(data: Any, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, tuple[int, int], dict[str, Any] | None]:
    """Rows, teacher ids (int64 ``[E]``) and weights (float64 ``[E]``) of all slots; the shape; the other values.

    A dict of pairs has no slots: there are no other values.
    """
    import torch

    if isinstance(data, dict) and {"indices", "likelihoods"} <= data.keys():
        ids, weights = data["indices"], data["likelihoods"]
        if not (isinstance(ids, torch.Tensor) and isinstance(weights, torch.Tensor)):
            raise InputError(f"{name}: indices and likelihoods that are not tensors", _EXPECTED, "check the file")
        if ids.ndim != 2 or ids.shape != weights.shape or ids.is_floating_point():
            found = f"{name}: indices {list(ids.shape)} of {ids.dtype}, likelihoods {list(weights.shape)}"
            raise InputError(found, _EXPECTED, "check the file")
        rows = np.repeat(np.arange(len(ids)), ids.shape[1])
        about = {k: v for k, v in data.items() if isinstance(k, str) and isinstance(v, (str, int, float, bool))}
        flat_weights = weights.detach().to(torch.float64).numpy().ravel()
        return rows, ids.to(torch.int64).numpy().ravel(), flat_weights, (ids.shape[0], ids.shape[1]), about
    if not (isinstance(data, dict) and data and all(isinstance(k, tuple) and len(k) == 2 for k in data)):
        keys = f" with {', '.join(map(str, list(data)[:6])) or 'nothing'}" if isinstance(data, dict) else ""
        found = f"a {type(data).__name__}{keys}"
        raise InputError(f"{name} holds {found}", _EXPECTED, "name a file of NeMo-RL's projection tools")
    try:
        pairs = np.array(list(data), dtype=np.int64)
        weights = np.array([float(w) for w in data.values()])
    except (TypeError, ValueError):
        raise InputError(f"{name}: pairs or weights that are not numbers", _EXPECTED, "check the file") from None
    if pairs[:, 0].min() < 0:
        raise InputError(f"{name}: student id {pairs[:, 0].min()}", "ids from 0", "check the file")
    size = int(pairs[:, 0].max()) + 1
    return pairs[:, 0], pairs[:, 1], weights, (size, int(np.bincount(pairs[:, 0]).max())), None


def _matrix(
    rows: np.ndarray, ids: np.ndarray, weights: np.ndarray, student: Vocabulary, teacher: Vocabulary
) -> tuple[ProjectionMatrix, np.ndarray]:
    """W from distinct entries, the heaviest first in each row; and the rows' sums before they were divided."""
    order = np.lexsort((ids, -weights, rows))
    rows, ids, weights = rows[order], ids[order], weights[order]
    sums = np.bincount(rows, weights, minlength=student.size)
    counts = np.bincount(rows, minlength=student.size)
    slots = np.arange(len(rows)) - (np.cumsum(counts) - counts)[rows]
    # Rows within the tolerance are not touched: a file of exact rows comes through bit by bit.
    divisors = np.where(np.abs(sums - 1) > ROW_SUM_TOLERANCE, sums, 1.0)
    weights = (weights / divisors[rows]).astype(np.float32)
    shape = (student.size, max(int(counts.max(initial=0)), 1))
    out_ids, out_weights = np.full(shape, -1, dtype=np.int32), np.zeros(shape, dtype=np.float32)
    positive = weights > 0  # a weight can vanish beside one that is 1e40 times larger
    out_ids[rows[positive], slots[positive]] = ids[positive]
    out_weights[rows[positive], slots[positive]] = weights[positive]
    matrix = ProjectionMatrix(
        ids=out_ids,
        weights=out_weights,
        teacher_size=teacher.size,
        student_digest=student.digest,
        teacher_digest=teacher.digest,
    )
    kinds = row_kinds(matrix, student, teacher)
    matrix.coverage.update({kind: int((kinds == i).sum()) for i, kind in enumerate(KINDS)}, truncated=0)
    matrix.coverage["empty"] += int((kinds < 0).sum())  # as a built W counts the gaps in the ids
    matrix.coverage["reached"] = int(matrix.reached.sum())
    return matrix, sums


def write_nemo_rl(
    matrix: ProjectionMatrix, path: str | Path, student: Vocabulary, teacher: Vocabulary, rows: int | None = None
) -> None:
    """Writes W as a file that NeMo-RL trains from.

    Weights are rounded to bfloat16 (8 bits), as their tools write them, so that rows sum to 1 only within 0.4%.  At
    least two slots are written, because their loss tells an exact row by an empty second slot.

    Args:
        rows: how many to write, for a model whose output layer is wider than the vocabulary; the others are empty.

    Raises:
        InputError: W is not of this pair, or ``rows`` is less than ``V_S``, or more than could be read again.
    """
    import torch

    check_sizes(matrix, student, teacher)
    rows = student.size if rows is None else rows
    most = student.size + _spare_rows(student)
    if not student.size <= rows <= most:
        expected = f"{student.size} to {most}: one per student token, and some for a padded output layer"
        raise InputError(f"rows={rows}", expected, "leave it out, or change it")
    shape = (rows, max(matrix.ids.shape[1], 2))
    ids, weights = np.full(shape, -1, dtype=np.int64), np.zeros(shape, dtype=np.float32)
    ids[: matrix.student_size, : matrix.ids.shape[1]] = matrix.ids
    weights[: matrix.student_size, : matrix.ids.shape[1]] = matrix.weights
    order = np.argsort(-weights, axis=1, kind="stable")  # heaviest first, empty slots last
    ids, weights = np.take_along_axis(ids, order, 1), np.take_along_axis(weights, order, 1)
    data = {
        "indices": torch.from_numpy(ids),
        "likelihoods": torch.from_numpy(weights).to(torch.bfloat16),
        "student_model_id": student.name,
        "teacher_model_id": teacher.name,
        "enable_scale_trick": False,
    }
    with atomic_path(path) as temporary:
        torch.save(data, temporary)
