"""The course of a run under Bridge: ``history.jsonl``, which also holds what Bridge's checkpoints do not.

Bridge saves model, optimizer, schedule, random numbers and the number of samples.  The dynamic scale and adaptive
weights of teachers follow from the means of the steps before, which the history has, exactly.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch.distributed as dist

from nemo_xtoken.errors import InputError
from nemo_xtoken.files import atomic_path
from nemo_xtoken.run.records import HISTORY, STOPPED, append_record, read_history
from nemo_xtoken.training.learned_parameters import check_same_learning
from nemo_xtoken.training.step import step_record

__all__ = ["DATA", "Records"]

#: What the run was begun with.
DATA = "data.json"


class Records:
    """Reads on global rank 0 and shares; writes on global rank 0.

    Args:
        folder: the run's.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._evaluated = -1

    def check_learning(self, learning: Mapping[str, Any] | None) -> None:
        """Whether a run that goes on learns the W that it began with.

        Raises:
            InputError: it does not.
        """
        data = self.folder / DATA
        before = json.loads(data.read_text()) if data.is_file() else {}
        if learning and "learning" in before:
            check_same_learning(before["learning"], learning)

    def resume(self, step: int, fingerprint: str, about: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
        """The records up to a step; later ones are dropped from the file.

        Args:
            step: of the checkpoint that training goes on from; 0: a new run.
            fingerprint: of the data.
            about: what the run's folder says of it beside: see `Distillation`.

        Returns:
            the same on all ranks.  Collective: one broadcast over all ranks.

        Raises:
            InputError: on all ranks, where the checkpoint's step has no record, or the run was on other data.
        """
        found: list[Any] = [None]
        if dist.get_rank() == 0:
            try:
                found = [self._read(step, fingerprint, about)]
            except InputError as error:
                found = [(error.found, error.expected, error.fix)]
        dist.broadcast_object_list(found, src=0)
        if isinstance(found[0], tuple):
            raise InputError(*found[0])
        records: list[dict[str, Any]] = found[0]
        return records

    def _read(self, step: int, fingerprint: str, about: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
        data = self.folder / DATA
        kept = [record for record in read_history(self.folder) if record["step"] <= step and step]
        if step:
            if not any(record["step"] == step and "ce" in record for record in kept):
                raise InputError(
                    f"a checkpoint of step {step} and no record of that step in {self.folder / HISTORY}",
                    "the history that belongs to the checkpoints: the dynamic scale follows from it",
                    "put the file back, or start a new run in another folder (log.name=NAME)",
                )
            before = json.loads(data.read_text()) if data.is_file() else {}
            if before.get("fingerprint", fingerprint) != fingerprint:
                raise InputError(
                    "the checkpoint to resume from was trained on other data, or with other lengths or another seed",
                    "the data set, tokenizers, sequence lengths and seed of the run that is resumed",
                    "restore those settings, or start a new run in another folder (log.name=NAME)",
                )
        self.folder.mkdir(parents=True, exist_ok=True)
        with atomic_path(data) as temporary:
            temporary.write_text(json.dumps({"fingerprint": fingerprint, **(about or {})}) + "\n")
        with atomic_path(self.folder / HISTORY) as temporary:
            temporary.write_text("".join(json.dumps(record) + "\n" for record in kept))
        return [record for record in kept if "ce" in record]

    def write_step(
        self, step: int, totals: Mapping[str, float], seconds: float, used: Mapping[str, float]
    ) -> dict[str, float]:
        """Writes and returns the record: see ``training.step.step_record``."""
        record = step_record(step, totals, seconds, used)
        self._write(record)
        return record

    def write_held_out(self, step: int, means: dict[str, float]) -> dict[str, float]:
        """Writes the means of an evaluation, once a step.

        Args:
            means: see ``training.loss_terms.held_out_means``.

        Returns:
            the means; nothing where this step has been evaluated before.
        """
        if step == self._evaluated or not means:
            return {}
        self._evaluated = step
        self._write({"step": step, **means})
        return means

    def write_stopped(self, step: int, why: str) -> None:
        """Writes that the run has ended by itself."""
        self._write({"step": step, STOPPED: why})

    def _write(self, record: dict[str, Any]) -> None:
        if dist.get_rank() == 0:
            append_record(self.folder, record)
