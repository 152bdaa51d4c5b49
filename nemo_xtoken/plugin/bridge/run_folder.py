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
from nemo_xtoken.run.records import HISTORY, append_record, read_history
from nemo_xtoken.training.step import step_record

__all__ = ["Records"]

DATA = "data.json"


class Records:
    """Reads on global rank 0 and shares; writes on global rank 0.

    Args:
        folder: the run's.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._evaluated = -1

    def resume(self, step: int, fingerprint: str) -> list[dict[str, Any]]:
        """The records up to a step; later ones are dropped from the file.

        Args:
            step: of the checkpoint that training goes on from; 0: a new run.
            fingerprint: of the data.

        Returns:
            the same on all ranks.  Collective: one broadcast over all ranks.

        Raises:
            InputError: on all ranks, where the checkpoint's step has no record, or the run was on other data.
        """
        found: list[Any] = [None]
        if dist.get_rank() == 0:
            try:
                found = [self._read(step, fingerprint)]
            except InputError as error:
                found = [(error.found, error.expected, error.fix)]
        dist.broadcast_object_list(found, src=0)
        if isinstance(found[0], tuple):
            raise InputError(*found[0])
        records: list[dict[str, Any]] = found[0]
        return records

    def _read(self, step: int, fingerprint: str) -> list[dict[str, Any]]:
        data = self.folder / DATA
        kept = [record for record in read_history(self.folder) if record["step"] <= step and step]
        if step:
            if not any(record["step"] == step and "ce" in record for record in kept):
                raise InputError(
                    f"a checkpoint of step {step} and no record of that step in {self.folder / HISTORY}",
                    "the history that belongs to the checkpoints: the dynamic scale follows from it",
                    "put the file back, or start a new run in another folder (log.name=NAME)",
                )
            if data.is_file() and json.loads(data.read_text())["fingerprint"] != fingerprint:
                raise InputError(
                    "the checkpoint to resume from was trained on other data, or with other lengths or another seed",
                    "the data set, tokenizers, sequence lengths and seed of the run that is resumed",
                    "restore those settings, or start a new run in another folder (log.name=NAME)",
                )
        self.folder.mkdir(parents=True, exist_ok=True)
        with atomic_path(data) as temporary:
            temporary.write_text(json.dumps({"fingerprint": fingerprint}) + "\n")
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

    def write_held_out(self, step: int, totals: Mapping[str, float]) -> dict[str, float]:
        """Writes ``step, held_out_ce, held_out_accuracy``, once a step.

        Returns:
            the means; nothing where there are none, or this step has been evaluated before.
        """
        if step == self._evaluated or not totals["tokens"]:
            return {}
        self._evaluated = step
        means = {
            "held_out_ce": totals["ce"] / totals["tokens"],
            "held_out_accuracy": totals["correct"] / totals["tokens"],
        }
        self._write({"step": step, **means})
        return means

    def _write(self, record: dict[str, float]) -> None:
        if dist.get_rank() == 0:
            append_record(self.folder, record)
