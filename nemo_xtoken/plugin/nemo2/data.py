"""The data of a run as NeMo and Lightning want it: prepared text, Megatron's sampler, a position that resumes."""

import dataclasses
import os
from collections.abc import Sequence
from typing import Any

import lightning.pytorch as pl
import torch
from nemo.lightning import io
from nemo.lightning.data import WrappedDataLoader
from nemo.lightning.pytorch.plugins import MegatronDataSampler
from torch.utils.data import Dataset

from nemo_xtoken.data.batch import collate
from nemo_xtoken.data.config import DataConfig, Tokenization
from nemo_xtoken.data.dataset import DistillationDataset
from nemo_xtoken.data.mixture import MixedDataset, WholeBatches
from nemo_xtoken.data.workers import heed_parent_alone
from nemo_xtoken.errors import InputError
from nemo_xtoken.sharing.first_process import Launch
from nemo_xtoken.vocab.vocabulary import Vocabulary

__all__ = ["DistillationData"]

#: Micro-batches that each loader process makes ready ahead of the training.
AHEAD = 8


class DistillationData(pl.LightningDataModule, io.IOMixin):
    """Text in, aligned batches out.

    Args:
        text: which text, and how samples are made of it.
        micro_batch_size: samples that one data-parallel rank computes at a time.
        global_batch_size: samples of a step, over all data-parallel ranks.
        loader_workers: processes that read samples during training; 0: the training process itself.
    """

    def __init__(
        self, text: DataConfig, micro_batch_size: int = 4, global_batch_size: int = 8, loader_workers: int = 0
    ) -> None:
        super().__init__()
        self.text, self.loader_workers = text, loader_workers
        self.micro_batch_size, self.global_batch_size = micro_batch_size, global_batch_size
        self.seq_length = text.student_length  # NeMo asks for this name, and for a tokenizer
        self.tokenizer: Any = None
        self.train_set: DistillationDataset | MixedDataset | None = None
        self.held_out_set: Dataset[Any] | None = None
        self._position = 0, 0  # samples consumed when this many steps were done
        self.data_sampler = _Sampler(
            seq_len=self.seq_length,
            micro_batch_size=micro_batch_size,
            global_batch_size=global_batch_size,
            output_log=False,
        )

    def read(self, student: Vocabulary, teachers: Sequence[Tokenization], steps: int, progress: bool) -> None:
        """Tokenises and aligns what is not in the cache yet, splits and packs.  Every rank calls it; one does the work.

        Args:
            steps: training steps the run will take; the data set is as long as they need, over as many epochs, and
                one step longer, because a finished run that is started again needs one more.

        Raises:
            InputError: see ``DataConfig.build``.
        """
        text = dataclasses.replace(self.text, progress=self.text.progress and progress)
        self.train_set, held_out = text.build(
            student, teachers, (max(0, steps) + 1) * self.global_batch_size, Launch.of(os.environ)
        )
        if held_out is not None:
            self.held_out_set = WholeBatches(held_out, self.global_batch_size)

    def train_dataloader(self) -> Any:
        """Over the training samples, in the order of the data set."""
        return self._loader("train", self.train_set)

    def val_dataloader(self) -> Any:
        """Over the held-out samples, filled up to whole global batches; empty when nothing is held out."""
        return [] if self.held_out_set is None else self._loader("validation", self.held_out_set)

    def _loader(self, mode: str, samples: Any) -> Any:
        return WrappedDataLoader(
            mode=mode,
            dataset=samples,
            num_workers=self.loader_workers,
            persistent_workers=self.loader_workers > 0,
            # a step of a small model on many GPUs takes as long as a few samples
            prefetch_factor=AHEAD if self.loader_workers > 0 else None,
            pin_memory=torch.cuda.is_available(),
            collate_fn=collate,
        )

    def state_dict(self) -> dict[str, Any]:
        """Where training stands in the data, and which data it is."""
        assert self.train_set is not None
        assert self.trainer is not None
        consumed, step = self._position
        now = self.trainer.global_step
        return {
            "consumed_samples": consumed + (now - step) * self.global_batch_size,
            "global_step": now,
            "fingerprint": self.train_set.fingerprint,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continues after the last sample that was trained on.

        Raises:
            InputError: the checkpoint was trained on other data.
        """
        from megatron.core.num_microbatches_calculator import update_num_microbatches

        assert self.train_set is not None
        if state_dict["fingerprint"] != self.train_set.fingerprint:
            raise InputError(
                "the checkpoint to resume from was trained on other data, or with other lengths or another seed",
                "the data set, tokenizers, sequence lengths and seed of the run that is resumed",
                "restore those settings, or start a new run in another folder (log.name=NAME)",
            )
        consumed = state_dict["consumed_samples"]
        self._position = consumed, state_dict["global_step"]
        self.data_sampler.init_consumed_samples = consumed
        self.data_sampler.prev_consumed_samples = consumed
        self.data_sampler.if_first_step = 1
        update_num_microbatches(consumed_samples=consumed, consistency_check=False)

    def reconfigure_limit_batches(self) -> None:
        """Turns the trainer's limits from global batches into micro-batches, as Lightning counts."""
        from nemo.collections.llm.gpt.data.utils import _reconfigure_limit_batches

        trainer = self.trainer
        assert trainer is not None
        for name, samples in (("limit_train_batches", self.train_set), ("limit_val_batches", self.held_out_set)):
            try:
                setattr(trainer, name, _reconfigure_limit_batches(getattr(trainer, name), samples))
            except ValueError as error:  # a fraction that is less than a batch
                found = f"trainer.{name}={getattr(trainer, name)}: {error}"
                raise InputError(
                    found, "a fraction that holds a batch, or a number", f"raise trainer.{name}"
                ) from error


class _Sampler(MegatronDataSampler):
    """NeMo's sampler; its loaders draw their seeds from a generator of their own, and a signal to all ends no reader.

    With the global generator an evaluation would change the random numbers of the training after it.
    """

    def transform_dataloader(self, dataloader: Any, consumed_samples: int = 0) -> Any:
        """A loader over this data-parallel rank's samples."""
        loader = super().transform_dataloader(dataloader, consumed_samples)
        loader.generator = torch.Generator()
        loader.worker_init_fn = heed_parent_alone
        return loader
