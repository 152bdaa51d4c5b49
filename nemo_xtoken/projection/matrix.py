"""W, the projection matrix from the student's to the teacher's vocabulary: its form in memory and its file."""

import json
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as safetensors_bytes

from nemo_xtoken.errors import InputError
from nemo_xtoken.files import atomic_path, digest_of
from nemo_xtoken.vocab.vocabulary import Vocabulary

__all__ = ["FORMAT_VERSION", "ProjectionMatrix", "RawSlots"]

logger = logging.getLogger(__name__)

FORMAT = "nemo_xtoken.projection"
FORMAT_VERSION = 1
ROW_SUM_TOLERANCE = 1e-5


@dataclass(frozen=True)
class RawSlots:
    """The slots of a file of NeMo-RL's as they are there: its losses look at them, not at the rows made of them.

    Attributes:
        ids: int32 ``[V_S, k]``; -1 is an empty slot, and an id may come twice in a row.
        weights: float32 ``[V_S, k]``, of bfloat16's precision; a slot that names a token may have 0.
    """

    ids: np.ndarray
    weights: np.ndarray


@dataclass(frozen=True)
class ProjectionMatrix:
    """W ``[V_S, V_T]``, row-stochastic or empty per row, stored as at most k entries a row.

    Attributes:
        ids: int32 ``[V_S, k]``, teacher token of each entry; -1 marks an empty slot.  Distinct within a row.
        weights: float32 ``[V_S, k]``, > 0 where there is an entry and 0 in empty slots.  A row sums to 1 or is empty.
        teacher_size: ``V_T``.
        student_digest, teacher_digest: of the two tokenizers (``Vocabulary.digest``).
        rule: the parameters that built it, as plain JSON values.
        coverage: counts of rows by kind (exact, multi, truncated, empty) and of teacher tokens reached.
        raw: of one that was read from a file of NeMo-RL's, for the losses that are theirs.
    """

    ids: np.ndarray
    weights: np.ndarray
    teacher_size: int
    student_digest: str
    teacher_digest: str
    rule: dict[str, Any] = field(default_factory=dict)
    coverage: dict[str, int] = field(default_factory=dict)
    raw: RawSlots | None = None

    def __post_init__(self) -> None:
        if problem := self._problem():
            raise InputError(
                f"a projection matrix that is not valid: {problem}",
                "rows of distinct teacher ids with positive weights that sum to 1, or empty rows",
                "build it again with `xtoken build student=FOLDER teacher=FOLDER`",
            )

    def _problem(self) -> str | None:
        ids, weights = self.ids, self.weights
        if ids.dtype.kind != "i" or weights.dtype.kind != "f":
            return f"ids of type {ids.dtype}, weights of type {weights.dtype}"
        if ids.ndim != 2 or ids.shape != weights.shape:
            return f"ids have shape {list(ids.shape)}, weights {list(weights.shape)}"
        used = ids >= 0
        if ids.size and (ids.min() < -1 or ids.max() >= self.teacher_size):
            return f"teacher ids from {ids.min()} to {ids.max()}, but the vocabulary has {self.teacher_size} ids"
        if not np.isfinite(weights).all() or (weights[used] <= 0).any() or (weights[~used] != 0).any():
            return "a weight that is not a positive number, or a weight in an empty slot"
        sums = weights.sum(axis=1, dtype=np.float64)
        bad = np.flatnonzero(used.any(axis=1) & (np.abs(sums - 1) > ROW_SUM_TOLERANCE))
        if bad.size:
            return f"row {bad[0]} sums to {sums[bad[0]]:.6g} ({bad.size} such rows)"
        if self.raw is not None and not self.raw.ids.shape == self.raw.weights.shape == (
            len(ids),
            *self.raw.ids.shape[1:],
        ):
            return f"raw slots of shape {list(self.raw.ids.shape)} and {list(self.raw.weights.shape)}"
        ordered = np.sort(ids, axis=1)
        if ((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)).any():
            return "a row that names one teacher token twice"
        return None

    @property
    def student_size(self) -> int:
        """``V_S``."""
        return int(self.ids.shape[0])

    @property
    def empty_rows(self) -> np.ndarray:
        """bool ``[V_S]``: the rows without any entry."""
        return (self.ids < 0).all(axis=1)

    @property
    def reached(self) -> np.ndarray:
        """bool ``[V_T]``: the teacher tokens that some row gives weight to."""
        mask = np.zeros(self.teacher_size, dtype=bool)
        mask[self.ids[self.ids >= 0]] = True
        return mask

    def save(self, path: str | Path) -> None:
        """Writes the safetensors file, whole or not at all."""
        header = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "student_digest": self.student_digest,
            "teacher_digest": self.teacher_digest,
            "teacher_size": self.teacher_size,
            "rule": self.rule,
            "coverage": self.coverage,
        }
        header["checksum"] = _checksum(header, self.ids, self.weights)
        # One key: safetensors writes several in no fixed order, and equal matrices must give equal files.
        metadata = {"header": json.dumps(header, sort_keys=True)}
        tensors = {"ids": self.ids, "weights": self.weights}
        if self.raw is not None:
            tensors |= {"raw_ids": self.raw.ids, "raw_weights": self.raw.weights}
        blob = safetensors_bytes(tensors, metadata=metadata)
        with atomic_path(path) as temporary:
            temporary.write_bytes(blob)

    @classmethod
    def load(
        cls,
        path: str | Path,
        student: Vocabulary | None = None,
        teacher: Vocabulary | None = None,
        checked: bool = False,
    ) -> Any:
        """Reads a file written by :meth:`save` and checks it against its checksum and the tokenizers given.

        Args:
            checked: refuse a file without a checksum, as early versions wrote it; otherwise a warning says so.

        Raises:
            InputError: the file is missing, unreadable, truncated, damaged, of another format, or for another pair of
                tokenizers; or its rows are not distributions.
        """
        path = Path(path)
        if not path.is_file():
            raise InputError(f"no file {path}", "a projection matrix", "build it with `xtoken build`, or fix the path")
        try:
            with safe_open(path, framework="numpy") as f:
                header = json.loads((f.metadata() or {}).get("header", "{}"))
                if not isinstance(header, dict):
                    raise ValueError(f"a header that is a {type(header).__name__}")
                tensors = {name: f.get_tensor(name) for name in f.keys()}  # noqa: SIM118 (safe_open is not a dict)
        except (SafetensorError, OSError, ValueError, RecursionError) as error:
            raise InputError(
                f"{path} cannot be read as safetensors ({error})",
                "a whole file written by `xtoken build`",
                "delete it and build it again; it may have been cut short by a full disk or a broken copy",
            ) from error
        if (header.get("format"), header.get("format_version")) != (FORMAT, FORMAT_VERSION):
            raise InputError(
                f"{path} has format {header.get('format')!r}, version {header.get('format_version')!r}",
                f"format {FORMAT!r}, version {FORMAT_VERSION}",
                "build it again with this version's `xtoken build`",
            )
        for side, vocabulary in (("student", student), ("teacher", teacher)):
            digest = str(header.get(f"{side}_digest"))
            if vocabulary is not None and digest != vocabulary.digest:
                raise InputError(
                    f"{path} was built for another {side} tokenizer (digest {digest[:12]}..)",
                    f"one for {vocabulary.name} (digest {vocabulary.digest[:12]}..)",
                    "build one for this pair with `xtoken build`, or leave the path out and let the run build it",
                )
        try:
            written = header.pop("checksum", None)
            if written is None and not checked:
                logger.warning(
                    "%s has no checksum, as early versions wrote it, so that damage to it may go unseen; "
                    "`xtoken build` writes one",
                    path,
                )
            if (checked or written) and written != _checksum(header, tensors["ids"], tensors["weights"]):
                raise InputError(
                    f"{path} is not as it was written: its checksum is another",
                    "a file that nothing has changed",
                    "delete it and build it again; the disk or a copy may have damaged it",
                )
            return cls(
                ids=tensors["ids"],
                weights=tensors["weights"],
                teacher_size=header["teacher_size"],
                student_digest=header["student_digest"],
                teacher_digest=header["teacher_digest"],
                rule=header["rule"],
                coverage=header["coverage"],
                raw=RawSlots(tensors["raw_ids"], tensors["raw_weights"]) if "raw_ids" in tensors else None,
            )
        except InputError as error:
            found = error.found if str(path) in error.found else f"{path}: {error.found}"
            raise InputError(found, error.expected, error.fix) from None
        except (KeyError, ValueError, TypeError) as error:
            raise InputError(
                f"{path} lacks {error}", "tensors ids and weights and a whole header", "build it again"
            ) from error


def _checksum(header: dict[str, Any], ids: np.ndarray, weights: np.ndarray) -> str:
    """SHA-256 (hex) of all that a file says: ids, weights, and the header without the checksum."""
    arrays = (np.ascontiguousarray(array) for array in (ids, weights))
    parts = [part for array in arrays for part in (f"{array.dtype.str} {array.shape}", array.tobytes())]
    return digest_of(json.dumps(header, sort_keys=True), *parts)
