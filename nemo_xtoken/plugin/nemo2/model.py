"""The student as NeMo sees it: a GPT model whose training step ends in hidden states, with a teacher beside it."""

from typing import Any, Optional

import torch
from nemo.collections import llm
from nemo.lightning import OptimizerModule
from torch import Tensor

from nemo_xtoken.losses.base import ModelOutput, TeacherSignal
from nemo_xtoken.losses.objective import DynamicScale, ObjectiveConfig, StepCounts
from nemo_xtoken.losses.registry import make_divergence
from nemo_xtoken.parallel.layout import VocabularyShard
from nemo_xtoken.plugin.nemo2.inputs import model_inputs
from nemo_xtoken.plugin.nemo2.loss import DistillationLoss, HeldOutLoss
from nemo_xtoken.plugin.nemo2.teacher import TeacherConfig, build_teacher
from nemo_xtoken.plugin.nemo2.tokenizer import XTokenTokenizer
from nemo_xtoken.projection.build import load_or_build
from nemo_xtoken.teachers.colocated import ColocatedTeacher
from nemo_xtoken.teachers.output import HiddenStateTap, output_head

__all__ = ["DistillationModel"]


class DistillationModel(llm.GPTModel):
    """A GPT model that learns from text and, when it has one, from a teacher with another tokenizer.

    Checkpoints, optimizer and gradient buffers hold the student alone: the teacher is a plain attribute that no
    module knows.

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
        self.counts = StepCounts(tokens=0, chunks=0)
        self._teacher_config: TeacherConfig | None = None
        self._teacher_tokenizer: XTokenTokenizer | None = None
        self._teacher: list[ColocatedTeacher] = []  # a list, so that Lightning does not take it for a submodule
        self._divergence: list[Any] = []
        self._tap: HiddenStateTap | None = None

    def learn_from(
        self, teacher: TeacherConfig | None, tokenizer: XTokenTokenizer | None, objective: ObjectiveConfig
    ) -> None:
        """Sets the teacher (None: cross-entropy alone) and the objective; before the trainer starts."""
        self._teacher_config, self._teacher_tokenizer = teacher, tokenizer
        self.scale = DynamicScale(objective)

    @property
    def teacher(self) -> ColocatedTeacher | None:
        """The teacher on this rank, once the model is configured."""
        return self._teacher[0] if self._teacher else None

    def configure_model(self, vp_stage: int | None = None) -> None:
        """Builds this rank's part of the student, taps its output layer, loads the teacher and W."""
        if hasattr(self, "module"):
            return
        from megatron.core import parallel_state

        super().configure_model(vp_stage=vp_stage)
        last_stage = parallel_state.is_pipeline_last_stage()
        if last_stage:
            self._tap = HiddenStateTap(self.module.output_layer, self.config.sequence_parallel)
        if self._teacher_config is None:
            return
        assert self._teacher_tokenizer is not None
        teacher = build_teacher(self._teacher_config, self._teacher_tokenizer, self.config, self.trainer)
        self._teacher.append(teacher)
        if last_stage:
            group = parallel_state.get_tensor_model_parallel_group()
            student, other = self.tokenizer.vocabulary, self._teacher_tokenizer.vocabulary
            config = self._teacher_config
            matrix = load_or_build(student, other, config.rule, config.projection)
            # the layer's own weight is None where it is tied
            rows = int(self.module.output_layer.output_size_per_partition)
            shard = VocabularyShard.of_local_rows(student.size, rows, group)
            divergence = make_divergence(config.loss, matrix, student, other, shard, config.options)
            teacher.lay_out(divergence.ownership)
            self._divergence.append(divergence.to(torch.cuda.current_device()))

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
        """What the teacher says about a micro-batch; empty without a teacher."""
        output, config = batch.get("teacher_output"), self._teacher_config
        if output is None or config is None:
            return []
        return [TeacherSignal(output, batch["teacher_labels"], batch["chunks"], self._divergence[0], config.chunks)]

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
