"""Checkpoints named by the steps that are done, each written once: the last is one of those that are kept."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import torch.distributed as dist

from nemo_xtoken.weights.checkpoint_names import NAME, finished_checkpoints, steps_of

__all__ = ["SavedOnce"]


class SavedOnce:
    """What a `ModelCheckpoint` of NeMo's does otherwise.

    NeMo writes each checkpoint twice, among the best and as ``..-last``, and gives it the number of the step before.
    Here the last is the one of its step, whoever asked for it; one that is neither among the best nor the newest goes.
    Where the best are the newest (``monitor=step``) there are ``save_top_k`` of them, the last included.

    And the last step is saved when training has ended, after the evaluation of the end: with the last checkpoint there
    is nothing to go on with, so that what a killed run had not done by then would be left out for ever.
    """

    filename: str | None
    dirpath: str
    monitor: str | None
    mode: str
    save_last: Any
    save_top_k: int
    always_save_context: bool
    best_k_models: dict[str, Any]
    last_model_path: str
    _last_global_step_saved: int
    _del_model_without_trainer: Callable[[str], None]
    _save_topk_checkpoint: Callable[..., None]
    _should_remove_checkpoint: Callable[..., bool]
    _get_metric_interpolated_filepath_name: Callable[..., str]

    _last: dict[str, Any] | None = None  # what a checkpoint's name has, of the last step
    _older = ""  # the last one before the newest
    _removed = ""
    _loaded: Path | None = None

    @property
    def CHECKPOINT_NAME_LAST(self) -> str:
        """As that of any other."""
        return str(self.filename)

    def name_by_steps(self) -> None:
        """Unless the user has named them; with the value of what says which are the best, which NeMo reads there."""
        if self.filename is None:
            best_by = "" if self.monitor in (None, "step") else f"-{self.monitor}={{{self.monitor}:.4f}}"
            self.filename, self.auto_insert_metric_name = f"{NAME}{best_by}", False

    def on_load_checkpoint(self, trainer: pl.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """What a run goes on from is not saved again: an evaluation before its first step has no name for it."""
        super().on_load_checkpoint(trainer, pl_module, checkpoint)  # type: ignore[misc]
        self._last_global_step_saved = checkpoint["global_step"]
        loaded = Path(trainer.ckpt_path)
        self._loaded = loaded.parent if loaded.name == "weights" else loaded  # NeMo names the folder inside

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The newest is the one that was loaded, wherever its folder was when it was written."""
        super().load_state_dict(state_dict)  # type: ignore[misc]
        if self._loaded is not None:
            self.last_model_path = f"{self._loaded}.ckpt"

    def nemo_topk_check_previous_run(self) -> None:
        """Where the best are the newest, those of before by their steps: NeMo looks for a number in the whole path."""
        if not self._newest_stay:
            super().nemo_topk_check_previous_run()  # type: ignore[misc]
            return
        found = [path for path in finished_checkpoints(Path(self.dirpath)) if not path.name.endswith("-last")]
        paths = [[f"{path}.ckpt" for path in found if steps_of(path)]]
        if dist.is_initialized():  # the first rank may be removing some when another looks
            dist.broadcast_object_list(paths, src=0)
        kept = len(paths[0]) if self.save_top_k == -1 else self.save_top_k
        for path in paths[0][kept:]:
            self._del_model_without_trainer(path)
        steps = {path: torch.tensor(float(steps_of(Path(path[: -len(".ckpt")])))) for path in paths[0][:kept]}
        self.best_k_models = steps
        if steps:
            self.best_model_path, self.kth_best_model_path = next(iter(steps)), list(steps)[-1]
            self.best_model_score, self.kth_value = steps[self.best_model_path], steps[self.kth_best_model_path]

    def on_train_batch_end(self, trainer: pl.Trainer, *rest: Any) -> None:
        """Saves; after the last step it notes what a checkpoint's name has."""
        if trainer.global_step < trainer.max_steps:
            super().on_train_batch_end(trainer, *rest)  # type: ignore[misc]
        else:
            self._last = self._monitor_candidates(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Saves after the last step where that is due, and the last in any case."""
        if self._last is not None:
            super().on_train_batch_end(trainer, pl_module, None, None, trainer.global_step - 1)  # type: ignore[misc]
        if self._last_global_step_saved != trainer.global_step:
            self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))
        asked = self.save_last
        self.save_last = asked and not self.always_save_context  # it is saved
        super().on_train_end(trainer, pl_module)  # type: ignore[misc]
        self.save_last = asked

    def _monitor_candidates(self, trainer: pl.Trainer) -> dict[str, Any]:
        found = dict(self._last or super()._monitor_candidates(trainer))  # type: ignore[misc]
        if str(self.filename).startswith(NAME):
            found["step"] = torch.tensor(trainer.global_step)
        return found

    @property
    def _newest_stay(self) -> bool:
        return self.filename == NAME and self.monitor == "step" and self.mode == "max" and self.save_top_k != 0

    def _save_checkpoint(self, trainer: pl.Trainer, filepath: str) -> None:
        if self.last_model_path != filepath:
            self._older, self.last_model_path = self.last_model_path, filepath  # a part of what is saved
        super()._save_checkpoint(trainer, filepath)  # type: ignore[misc]

    def _save_last_checkpoint(self, trainer: pl.Trainer, monitor_candidates: dict[str, Any]) -> None:
        if not self.save_last:
            return
        if self._last_global_step_saved != trainer.global_step:
            if self._newest_stay:
                self._save_topk_checkpoint(trainer, monitor_candidates)
            else:
                path = self._get_metric_interpolated_filepath_name(monitor_candidates, trainer)
                self._save_checkpoint(trainer, path)
        older, self._older = self._older, ""
        if not older or _folder(older) in map(_folder, [self._removed, *self.best_k_models]):
            return
        if self._should_remove_checkpoint(trainer, older, self.last_model_path):
            self._remove_checkpoint(trainer, older)

    def _remove_checkpoint(self, trainer: pl.Trainer, filepath: str, **settings: Any) -> None:
        self._removed = filepath
        super()._remove_checkpoint(trainer, filepath, **settings)  # type: ignore[misc]


def _folder(path: str) -> Path:
    """NeMo names a checkpoint with and without a suffix that no folder has."""
    return Path(path.removesuffix(".ckpt")).resolve()
