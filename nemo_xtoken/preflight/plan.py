"""A run as the checks see it: settings, models, machines, and the sizes that follow."""

from dataclasses import dataclass
from typing import Any

from nemo_xtoken.run.loss_time import BF16, FP32
from nemo_xtoken.run.memory import Precision, Recompute, TaughtBy, Training
from nemo_xtoken.run.settings import Settings
from nemo_xtoken.run.sides import Side

__all__ = ["Plan"]


@dataclass
class Plan:
    """A run.

    Attributes:
        settings: of the run.
        student, teachers: the models.
        nodes, gpus: machines, and processes on each.
        gpu_gib: memory of a GPU.
        tokens, chunks: teacher's tokens and chunks for each token of the student, once measured on the data.
    """

    settings: Settings
    student: Side
    teachers: tuple[Side, ...]
    nodes: int
    gpus: int
    gpu_gib: float
    tokens: float = 1.05
    chunks: float = 0.95

    @property
    def sides(self) -> tuple[Side, ...]:
        """All models."""
        return self.student, *self.teachers

    @property
    def processes(self) -> int:
        """All of them, one for each GPU."""
        return self.nodes * self.gpus

    @property
    def data_parallel(self) -> int:
        """Copies of the student; 0 where not even one fits."""
        return self.processes // self.student.sizes.ranks

    @property
    def micro_batch(self) -> int:
        """Samples that a copy computes at a time."""
        return int(self.settings.number("data.micro_batch_size", 4))

    @property
    def global_batch(self) -> int:
        """Samples of a step."""
        return int(self.settings.number("data.global_batch_size", 8))

    @property
    def max_steps(self) -> int:
        """Of the run."""
        return int(self.settings.number("trainer.max_steps", -1))

    @property
    def sequence_parallel(self) -> bool:
        """Whether activations are cut over the tensor-parallel ranks."""
        return bool(self.settings.get("trainer.strategy.sequence_parallel", False))

    def precision(self) -> Precision:
        """Bytes of the student's parameters, as trainer and optimizer have them."""
        get = self.settings.get
        half = str(get("trainer.plugins.precision", "")).startswith(("bf16", "16")) or bool(
            get("optim.config.bf16") or get("optim.config.fp16")
        )
        wide = bool(get("trainer.strategy.ddp.grad_reduce_in_fp32") or get("trainer.plugins.grad_reduce_in_fp32"))
        spread = bool(
            get("optim.config.use_distributed_optimizer") or get("trainer.strategy.ddp.use_distributed_optimizer")
        )
        states = {"sgd": 1}.get(str(get("optim.config.optimizer", "adam")), 2) * FP32
        if not half:
            return Precision(FP32, FP32, states, spread)
        return Precision(BF16, FP32 if wide else BF16, FP32 + states, spread)

    def recompute(self) -> Recompute:
        """What is made again on the way back."""
        config = self.student.config
        layers = config.get("recompute_num_layers") or 1
        return Recompute(config.get("recompute_granularity"), config.get("recompute_method"), int(layers))

    def training(self) -> Training | None:
        """For the estimates; None where a model's sizes are not known, or where the layout does not divide."""
        student = self.student.model
        if student is None or self.data_parallel < 1 or any(side.model is None for side in self.teachers):
            return None
        taught: list[TaughtBy] = []
        seen: dict[Any, str] = {}
        for side in self.teachers:
            assert side.model is not None
            key = (side.path, side.tokenizer, side.sizes, side.length)
            shares = seen.get(key, "") if side.path is not None else ""
            seen.setdefault(key, side.label)
            experts = self.student.sizes if side.config.get("num_moe_experts") else None
            own = side.sizes != (experts or self.student.sizes)
            ids = side.vocabulary.size if side.vocabulary is not None else None
            taught.append(TaughtBy(side.model, side.sizes, own, side.length, shares, ids))
        return Training(
            student=student,
            sizes=self.student.sizes,
            teachers=tuple(taught),
            processes=self.processes,
            micro_batch=self.micro_batch,
            global_batch=self.global_batch,
            length=self.student.length,
            precision=self.precision(),
            recompute=self.recompute(),
            sequence_parallel=self.sequence_parallel,
            tile_mib=self.settings.number("objective.tile_mib"),
        )
