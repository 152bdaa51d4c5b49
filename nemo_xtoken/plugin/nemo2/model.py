"""The student as NeMo sees it: a GPT model whose training step ends in hidden states, with teachers beside it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Optional

import torch
from nemo.collections import llm
from nemo.lightning import OptimizerModule
from torch import Tensor

from nemo_xtoken.losses.base import ChunkDivergence, ModelOutput, TeacherSignal
from nemo_xtoken.losses.learned import LearnedProjection
from nemo_xtoken.losses.nrl_compat import NrlProjectedKL
from nemo_xtoken.losses.objective import DynamicScale, ObjectiveConfig, StepCounts
from nemo_xtoken.losses.p_kl import ProjectedKL
from nemo_xtoken.losses.registry import chunk_selection, make_divergence
from nemo_xtoken.losses.shares import Held, share
from nemo_xtoken.losses.teacher_weights import STATIC, TeacherWeights
from nemo_xtoken.parallel.head import OutputHead
from nemo_xtoken.parallel.layout import VocabularyShard
from nemo_xtoken.plugin.nemo2.inputs import context_layout, model_inputs, prepare_config
from nemo_xtoken.plugin.nemo2.learned import ATTRIBUTE, LearnedProjections, check_checkpoint
from nemo_xtoken.plugin.nemo2.loss import DistillationLoss, HeldOutLoss
from nemo_xtoken.plugin.nemo2.teacher import NamedTeacher, build_teacher, one_model_each
from nemo_xtoken.plugin.nemo2.tokenizer import XTokenTokenizer
from nemo_xtoken.projection.build import load_or_build
from nemo_xtoken.teachers.colocated import ColocatedTeacher
from nemo_xtoken.teachers.output import HiddenStateTap, output_head

__all__ = ["DistillationModel"]


@dataclass(frozen=True)
class _Lesson:
    """One teacher's part in the loss, on the last pipeline stage.

    Attributes:
        teacher: whose it is.
        source: number of the model, in ``DistillationModel.teachers``, that has the hidden states.
        head: the model's output layer in the order of the divergence.
        divergence: how distributions are compared.
        learned: the logits of its W, where that is learned.
    """

    teacher: NamedTeacher
    source: int
    head: OutputHead
    divergence: ChunkDivergence
    learned: LearnedProjection | None


class DistillationModel(llm.GPTModel):
    """A GPT model that learns from text and, when it has any, from teachers with their own tokenizers.

    Checkpoints, optimizer and gradient buffers hold the student and each W that is learned with it: the teachers are
    plain attributes that no module knows.

    Args:
        config: the student's architecture, any of NeMo's GPT configs.
        tokenizer: the student's; ``model.tokenizer.source=..`` on the command line.
        optim: optimizer, as for any NeMo model.
    """

    def __init__(
        self,
        config: llm.GPTConfig,
        tokenizer: XTokenTokenizer,
        optim: Optional[OptimizerModule] = None,
    ) -> None:
        super().__init__(config, optim=optim, tokenizer=tokenizer)
        config.calculate_per_token_loss = True  # Megatron divides once, by the tokens of all ranks and micro-batches
        self.scale = DynamicScale(ObjectiveConfig(scale=0.0))
        self.teacher_weights = TeacherWeights(STATIC, {})
        self.counts = StepCounts(tokens=0)
        #: The teachers' models on this rank, once this one is configured; teachers of one checkpoint share one.
        self.teachers: list[ColocatedTeacher] = []
        #: Which chunks of each teacher its loss scores, once configured; None: all.
        self.selections: list[torch.nn.Module | None] = []
        self._named: tuple[NamedTeacher, ...] = ()
        self._lessons: list[_Lesson] = []
        self._learned: list[LearnedProjections] = []  # in a list: the Megatron module has them
        self._tap: HiddenStateTap | None = None

    def learn_from(self, teachers: Sequence[NamedTeacher], objective: ObjectiveConfig) -> None:
        """Sets the teachers (none: cross-entropy alone) and the objective; before the trainer starts.

        Raises:
            InputError: weights that cannot be.
        """
        self._named = tuple(teachers)
        self.scale = DynamicScale(objective)
        self.teacher_weights = TeacherWeights(objective.teacher_weights, {t.name: t.config.weight for t in teachers})

    @property
    def teacher_names(self) -> tuple[str, ...]:
        """In the order of their sides in a batch."""
        return tuple(teacher.name for teacher in self._named)

    @property
    def learned(self) -> LearnedProjections | None:
        """The W that are learned; None without any, and on all but the last pipeline stage."""
        return self._learned[0] if self._learned else None

    @classmethod
    def _get_connector(cls, ext: str, path: Any = None, importer: bool = True) -> Any:
        """NeMo's, after ours are registered: for `llm.import_ckpt` and `nemo llm export`."""
        import nemo_xtoken.plugin.nemo2.hf.exporting
        import nemo_xtoken.plugin.nemo2.hf.importing  # noqa: F401

        return super()._get_connector(ext, path, importer)

    def configure_model(self, vp_stage: int | None = None) -> None:
        """Builds this rank's part of the student, taps its output layer, loads the teachers and W."""
        if hasattr(self, "module"):
            return
        from megatron.core import parallel_state

        resumed = self.trainer.ckpt_path is not None
        if resumed:
            check_checkpoint(self.trainer.ckpt_path, self._named)
        prepare_config(self.config)
        super().configure_model(vp_stage=vp_stage)
        last_stage = parallel_state.is_pipeline_last_stage()
        if last_stage:
            self._tap = HiddenStateTap(self.module.output_layer, self.config.sequence_parallel)
        for t in self._named:
            selection = chunk_selection(t.config.loss, self.tokenizer.vocabulary, t.tokenizer.vocabulary)
            self.selections.append(None if selection is None else selection.to(torch.cuda.current_device()))
        sources = one_model_each(self._named)
        numbers = sorted(set(sources))
        self.teachers = [build_teacher(self._named[n], n, self.config, self.trainer) for n in numbers]
        if last_stage:
            self._lessons = self._make_lessons([numbers.index(n) for n in sources])
            if learned := {
                lesson.teacher.name: lesson.learned for lesson in self._lessons if lesson.learned is not None
            }:
                self._learned = [LearnedProjections(learned, resumed)]
                self.module.add_module(ATTRIBUTE, self._learned[0])
        else:
            for model in self.teachers:
                model.lay_out()  # one with a layout of its own wants everyone

    def _make_lessons(self, sources: Sequence[int]) -> list[_Lesson]:
        """Makes the divergences, and lays the teachers' output layers out as they want them."""
        from megatron.core import parallel_state

        group, student = parallel_state.get_tensor_model_parallel_group(), self.tokenizer.vocabulary
        # the layer's own weight is None where it is tied
        rows = int(self.module.output_layer.output_size_per_partition)
        shard = VocabularyShard.of_local_rows(student.size, rows, group)
        divergences: list[ChunkDivergence] = []
        learned: list[LearnedProjection | None] = []
        for teacher in self._named:
            config, other = teacher.config, teacher.tokenizer.vocabulary
            matrix = load_or_build(student, other, config.rule, config.projection)
            divergence = make_divergence(config.loss, matrix, student, other, shard, config.options)
            divergences.append(divergence)
            learned.append(None)
            if config.learned:
                assert isinstance(divergence, ProjectedKL | NrlProjectedKL)  # learn_projections has seen to it
                learned[-1] = LearnedProjection(divergence.exchange, matrix)
        heads: dict[int, OutputHead] = {}
        for source, model in enumerate(self.teachers):
            taught = [number for number, n in enumerate(sources) if n == source]
            heads |= zip(taught, model.lay_out(*(divergences[n].ownership for n in taught)), strict=True)
        device = torch.cuda.current_device()
        return [
            _Lesson(teacher, sources[n], heads[n], divergences[n].to(device), learned[n])
            for n, teacher in enumerate(self._named)
        ]

    def data_step(self, dataloader_iter: Any) -> dict[str, Any]:
        """The next micro-batch; the step's callback has already moved it to the device."""
        return next(dataloader_iter)

    def forward_step(self, batch: dict[str, Any]) -> Tensor | ModelOutput:
        """Hidden states and output layer on the last pipeline stage, the hop's tensor on the others."""
        output = self.module(**model_inputs(batch, "student"))
        if self._tap is None:
            return output
        from megatron.core import parallel_state

        hidden, weight = self._tap.pop()
        group = parallel_state.get_tensor_model_parallel_group()
        shard = VocabularyShard.of_local_rows(self.tokenizer.vocab_size, weight.shape[0], group)
        return ModelOutput(hidden, output_head(weight, shard, self.config))

    def signals(self, batch: dict[str, Any]) -> list[TeacherSignal]:
        """What the teachers say about a micro-batch; empty without any."""
        outputs = batch.get("teacher_outputs", ())
        return [
            TeacherSignal(
                ModelOutput(outputs[lesson.source].hidden, lesson.head),
                batch[f"teacher{number}_labels"],
                batch[f"teacher{number}_chunks"],
                lesson.divergence,
                lesson.teacher.config.chunks,
                None if lesson.learned is None else lesson.learned(),
                statistic=self.teacher_weights.statistic,
            )
            for number, lesson in enumerate(self._lessons)
        ]

    def shared(self, batch: dict[str, Any], output: ModelOutput) -> tuple[ModelOutput, Tensor, list[TeacherSignal]]:
        """What this context-parallel rank scores of a micro-batch: student, its labels, teachers.

        Args:
            output: of the student, this rank's rows.
        """
        signals = self.signals(batch)
        layouts = [context_layout(batch, self.teachers[lesson.source].side) for lesson in self._lessons]
        student = Held(output, context_layout(batch, "student"))
        return share(student, batch["student_labels"], signals, layouts[: len(signals)])

    @property
    def training_loss_reduction(self) -> DistillationLoss:
        """Cross-entropy and distillation of a micro-batch, as sums."""
        if self._training_loss_reduction is None:
            self._training_loss_reduction = DistillationLoss(self)
        return self._training_loss_reduction

    @property
    def validation_loss_reduction(self) -> HeldOutLoss:
        """Cross-entropy and next-token accuracy on held-out text, as sums."""
        if self._validation_loss_reduction is None:
            self._validation_loss_reduction = HeldOutLoss()
        return self._validation_loss_reduction
