"""The arguments of a run under Megatron-Bridge; named as NeMo 2 names them wherever they mean the same."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Optional

from nemo_xtoken.data.config import DataConfig
from nemo_xtoken.training.teacher_settings import TeacherSettings
from nemo_xtoken.training.vocabulary_tokenizer import VocabularyTokenizer

__all__ = [
    "Checkpoints",
    "Data",
    "Log",
    "Optimizer",
    "OptimizerSettings",
    "Precision",
    "Restore",
    "Resume",
    "Schedule",
    "Strategy",
    "Student",
    "TeacherConfig",
    "TokenizerSource",
    "Trainer",
]


@dataclass
class TokenizerSource:
    """A tokenizer.

    Attributes:
        source: a folder or hub name; None: that of the checkpoint.
    """

    source: Optional[str] = None


@dataclass
class Student:
    """The model that learns; its weights are those of ``resume.restore_config.path``.

    Attributes:
        tokenizer: by default the checkpoint's.
        architecture: instead of a checkpoint the folder or hub name of a Hugging Face ``config.json``: a new model with
            random weights.
    """

    tokenizer: TokenizerSource = field(default_factory=TokenizerSource)
    architecture: Optional[str] = None


@dataclass
class TeacherConfig(TeacherSettings):
    """A teacher that Megatron-Bridge loads; see `TeacherSettings` for the other attributes.

    Attributes:
        path: folder or hub name of a Hugging Face model, or the folder of a Megatron-Bridge checkpoint.
    """

    def load_tokenizer(self, where: str = "teacher") -> VocabularyTokenizer:
        """Its tokenizer, given or from its checkpoint."""
        from nemo_xtoken.plugin.bridge.checkpoints import Checkpoint

        if self.tokenizer is not None:
            return VocabularyTokenizer(self.tokenizer)
        return VocabularyTokenizer(Checkpoint.at(self.path, f"{where}.path").tokenizer(f"{where}.tokenizer"))

    def model(self, where: str = "teacher") -> tuple[str, ...]:
        """What tells its model from others."""
        from nemo_xtoken.plugin.bridge.checkpoints import Checkpoint

        return (Checkpoint.at(self.path, f"{where}.path").source,)

    def weight_files(self, where: str = "teacher") -> Iterable[Path]:
        """The files of its weights."""
        from nemo_xtoken.plugin.bridge.checkpoints import Checkpoint

        return Checkpoint.at(self.path, f"{where}.path").files()


@dataclass
class Data:
    """Text in, aligned batches out.

    Attributes:
        text: which text, and how samples are made of it.
        micro_batch_size: samples that one data-parallel rank computes at a time.
        global_batch_size: samples of a step, over all data-parallel ranks.
        loader_workers: processes that read samples during training; 0: the training process itself.
    """

    text: DataConfig = field(default_factory=DataConfig)
    micro_batch_size: int = 4
    global_batch_size: int = 8
    loader_workers: int = 0


@dataclass
class Strategy:
    """How the student lies on the GPUs; what is left of them is data parallel.

    Attributes:
        virtual_pipeline_model_parallel_size: refused above 1, as under NeMo 2.
    """

    tensor_model_parallel_size: int = 1
    pipeline_model_parallel_size: int = 1
    context_parallel_size: int = 1
    expert_model_parallel_size: int = 1
    expert_tensor_parallel_size: Optional[int] = None
    virtual_pipeline_model_parallel_size: Optional[int] = None
    sequence_parallel: bool = False


@dataclass
class Precision:
    """``bf16-mixed``, or ``32``."""

    precision: str = "bf16-mixed"


@dataclass
class Trainer:
    """The training loop.

    Attributes:
        max_steps: optimizer steps.
        val_check_interval: steps between evaluations on held-out text.
        log_every_n_steps: steps between lines in the log.
        devices, num_nodes: processes on a node, and nodes, as ``torchrun`` or ``srun`` started them.
        seed: of everything random.
        timeout_minutes: after which a collective that waits is an error.
    """

    max_steps: int = 1000
    val_check_interval: int = 1000
    log_every_n_steps: int = 10
    devices: int = 1
    num_nodes: int = 1
    seed: int = 1234
    timeout_minutes: int = 30
    strategy: Strategy = field(default_factory=Strategy)
    plugins: Precision = field(default_factory=Precision)


@dataclass
class OptimizerSettings:
    """AdamW, its states spread over the data-parallel ranks."""

    lr: float = 5e-5
    weight_decay: float = 0.1
    adam_beta1: float = 0.9
    adam_beta2: float = 0.98
    clip_grad: float = 1.0


@dataclass
class Schedule:
    """A linear warm-up, then a cosine to the last step."""

    warmup_steps: int = 0
    min_lr: float = 0.0


@dataclass
class Optimizer:
    """Optimizer and learning rate."""

    config: OptimizerSettings = field(default_factory=OptimizerSettings)
    lr_scheduler: Schedule = field(default_factory=Schedule)


@dataclass
class Checkpoints:
    """When to save, and how many of the newest stay."""

    every_n_train_steps: int = 500
    save_top_k: int = 1


@dataclass
class Log:
    """The run's folder is ``log_dir/name``."""

    log_dir: str = "runs"
    name: str = "distillation"
    ckpt: Checkpoints = field(default_factory=Checkpoints)


@dataclass
class Restore:
    """What a new student starts from: a Hugging Face model (folder or hub name), or a Megatron-Bridge checkpoint."""

    path: Optional[str] = None


@dataclass
class Resume:
    """Where a run begins.

    Attributes:
        resume_if_exists: continue from the newest checkpoint in the run's folder.
        restore_config: what the student starts from if there is none.
    """

    resume_if_exists: bool = True
    restore_config: Restore = field(default_factory=Restore)
