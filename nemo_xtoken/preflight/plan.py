"""A run as the checks see it: settings, models, machines, and the sizes that follow."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemo_xtoken.losses.options import DEFAULT_LOSS
from nemo_xtoken.run.estimates.loss_time import BF16, FP32
from nemo_xtoken.run.estimates.memory import Precision, Recompute, TeacherSizes, Training
from nemo_xtoken.run.estimates.model_sizes import Model
from nemo_xtoken.run.lora.lora_checks import lora_parameters
from nemo_xtoken.run.settings import Settings
from nemo_xtoken.run.spec import ModelSpec, RunSpec
from nemo_xtoken.run.teaching import ELSEWHERE
from nemo_xtoken.run.unsupported import AHEAD

if TYPE_CHECKING:
    from nemo_xtoken.vocab import Vocabulary

__all__ = ["Measured", "Plan"]


@dataclass(frozen=True)
class Measured:
    """What a roofline need not guess.

    Attributes:
        step_seconds: of the student's step, its loss included and no teacher; None: not measured.
        teacher_speed: tokens a second of one GPU of a teacher elsewhere; None: not measured.
    """

    step_seconds: float | None = None
    teacher_speed: float | None = None


@dataclass
class Plan:
    """A run.

    Attributes:
        settings: of the run.
        run: its models, layout, batches and steps.
        nodes, gpus: machines, and processes on each.
        gpu_gib: memory of a GPU.
        tokens, chunks: teacher's tokens and chunks for each token of the student, once measured on the data.
        measured: speeds that are known.
    """

    settings: Settings
    run: RunSpec
    nodes: int
    gpus: int
    gpu_gib: float
    tokens: float = 1.05
    chunks: float = 0.95
    measured: Measured = Measured()

    def know(self, side: ModelSpec, vocabulary: "Vocabulary") -> ModelSpec:
        """Puts a model's vocabulary, once loaded, in its place; the model as it now is."""
        known = replace(side, vocabulary=vocabulary, ids=vocabulary.size)
        if side.where == self.student.where:
            self.run = replace(self.run, student=known)
        else:
            teachers = tuple(known if other.where == side.where else other for other in self.teachers)
            self.run = replace(self.run, teachers=teachers)
        return known

    @property
    def run_folder(self) -> Path:
        """Where the run writes."""
        return self.settings.run_folder or Path("nemo_experiments/default")

    @property
    def student(self) -> ModelSpec:
        """The model that learns."""
        return self.run.student

    @property
    def teachers(self) -> tuple[ModelSpec, ...]:
        """Those that teach."""
        return self.run.teachers

    @property
    def sides(self) -> tuple[ModelSpec, ...]:
        """All models."""
        return self.run.sides

    @property
    def processes(self) -> int:
        """All of them, one for each GPU."""
        return self.nodes * self.gpus

    @property
    def data_parallel(self) -> int:
        """Copies of the student; 0 where not even one fits."""
        return self.run.data_parallel

    @property
    def micro_batch(self) -> int:
        """Samples that a copy computes at a time."""
        return self.run.micro_batch

    @property
    def global_batch(self) -> int:
        """Samples of a step."""
        return self.run.global_batch

    @property
    def max_steps(self) -> int:
        """Of the run."""
        return self.run.max_steps

    @property
    def sequence_parallel(self) -> bool:
        """Whether activations are cut over the tensor-parallel ranks."""
        return self.run.sequence_parallel

    def precision(self) -> Precision:
        """Bytes of the student's parameters, as trainer and optimizer have them."""
        get = self.settings.get
        chosen = str(get("trainer.plugins._target_", "")).endswith(".mixed_precision") and "bf16"  # with a GPU
        half = str(get("trainer.plugins.precision", chosen)).startswith(("bf16", "16")) or bool(
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
        teachers: list[TeacherSizes] = []
        seen: dict[Any, str] = {}
        for side in self.teachers:
            assert side.model is not None
            key = (side.path, side.tokenizer, side.sizes, side.length)
            shares = seen.get(key, "") if side.path is not None else ""
            seen.setdefault(key, side.label)
            experts = self.student.sizes if side.config.get("num_moe_experts") else None
            own = side.sizes != (experts or self.student.sizes)
            config = self.settings.teachers()[side.where]
            elsewhere, loss = config.get("source") in ELSEWHERE, str(config.get("loss", DEFAULT_LOSS))
            own = own and not elsewhere
            ahead = bool(side.own.get(AHEAD))
            teachers.append(
                TeacherSizes(side.model, side.sizes, own, side.length, shares, side.ids, elsewhere, loss, ahead)
            )
        return Training(
            student=student,
            sizes=self.student.sizes,
            teachers=tuple(teachers),
            processes=self.processes,
            micro_batch=self.micro_batch,
            global_batch=self.global_batch,
            length=self.student.length,
            precision=self.precision(),
            recompute=self.recompute(),
            sequence_parallel=self.sequence_parallel,
            tile_mib=self.settings.number("objective.tile_mib"),
            trained=self._trained(student),
        )

    def _trained(self, student: Model) -> float:
        """The share of the student's parameters that are."""
        lora = self.run.lora
        if lora is None or not lora.on:
            return 1.0
        return min(1.0, lora_parameters(lora, self.student.config, student.vocabulary) / student.parameters)
