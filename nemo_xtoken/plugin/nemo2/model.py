"""The student as NeMo sees it: a GPT model whose training step ends in hidden states, with teachers beside it."""

import copy
import dataclasses
from collections.abc import Sequence
from typing import Any, Optional

import fiddle as fdl
from nemo.collections import llm
from nemo.lightning import OptimizerModule, io
from torch import Tensor

from nemo_xtoken.data.batch import Inputs
from nemo_xtoken.objective.objective_state import ObjectiveState
from nemo_xtoken.objective.scale import ObjectiveConfig
from nemo_xtoken.objective.shares import Held
from nemo_xtoken.plugin.nemo2.hf.exporting import HFExporter
from nemo_xtoken.plugin.nemo2.hf.importing import HFImporter
from nemo_xtoken.plugin.nemo2.learned import check_checkpoint
from nemo_xtoken.plugin.nemo2.lora.student_adapters import add_adapters
from nemo_xtoken.plugin.nemo2.loss import DistillationLoss, HeldOutLoss
from nemo_xtoken.plugin.nemo2.teacher import host_teacher
from nemo_xtoken.plugin.nemo2.tokenizer import XTokenTokenizer
from nemo_xtoken.run.lora.lora_settings import LoraConfig
from nemo_xtoken.teachers.output import HiddenStateTap
from nemo_xtoken.training.inputs import context_layout, model_inputs, prepare_config
from nemo_xtoken.training.learned_parameters import LearnedProjections, with_learned
from nemo_xtoken.training.lessons import Teaching, begin, student_output
from nemo_xtoken.training.lora.adapted import Adapted
from nemo_xtoken.training.micro_batch import MicroBatch
from nemo_xtoken.training.teacher_settings import NamedTeacher

__all__ = ["AdaptedModel", "DistillationImporter", "DistillationModel", "with_lora"]


class DistillationModel(llm.GPTModel):
    """A GPT model that learns from text and, when it has any, from teachers with their own tokenizers.

    Checkpoints, optimizer and gradient buffers hold the student and each W that is learned with it: the teachers are
    plain attributes that no module knows.

    Args:
        config: the student's architecture, any of NeMo's GPT configs.
        tokenizer: the student's; ``model.tokenizer.source=FOLDER`` on the command line.
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
        self.objective = ObjectiveState(ObjectiveConfig(scale=0.0), {})
        #: What teaches on this rank, once this model is configured.
        self.teaching = Teaching()
        self._named: tuple[NamedTeacher, ...] = ()
        self._learned: list[LearnedProjections] = []  # in a list: the Megatron module has them
        self._tap: HiddenStateTap | None = None
        #: Its adapters, which are trained instead of its layers; None: none.  See `with_lora`.
        self.lora: LoraConfig | None = None
        self._adapted: list[Adapted] = []

    def learn_from(self, teachers: Sequence[NamedTeacher], objective: ObjectiveConfig) -> None:
        """Sets the teachers (none: cross-entropy alone) and the objective; before the trainer starts.

        Raises:
            InputError: weights that cannot be, or kernels that are unavailable on this machine.
        """
        self._named = tuple(teachers)
        self.objective = ObjectiveState(objective, {t.name: t.config.weight for t in teachers})

    @property
    def learned(self) -> LearnedProjections | None:
        """The W that are learned; None without any, and on all but the last pipeline stage."""
        return self._learned[0] if self._learned else None

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
        if self.lora is not None:  # before anything that is not to be frozen is a part of the module
            self._adapted = add_adapters(self, self.lora, resumed)
        last_stage = parallel_state.is_pipeline_last_stage()
        if last_stage:
            self._tap = HiddenStateTap(self.module.output_layer, self.config.sequence_parallel)
        self.teaching = begin(
            self._named,
            lambda teacher: host_teacher(teacher, self.config, self.trainer),
            self.tokenizer.vocabulary,
            self.module.output_layer if last_stage else None,
            self.objective.kernels,
        )
        lessons = self.teaching.lessons
        learned = with_learned(self.module, lessons, resumed)
        self._learned = [] if learned is None else [learned]
        self._training_loss_reduction = DistillationLoss(self.teaching, self.objective)
        self._validation_loss_reduction = HeldOutLoss(lessons, self.objective)

    def on_train_start(self) -> None:
        """From here on the adapters are in the checkpoints."""
        for layer in self._adapted:
            layer.in_checkpoints = True

    def data_step(self, dataloader_iter: Any) -> MicroBatch:
        """The next micro-batch; the step's callback has already moved it to the device."""
        return next(dataloader_iter)

    def forward_step(self, micro_batch: MicroBatch) -> Tensor | Held:
        """What this rank holds of the output on the last pipeline stage, the hop's tensor on the others."""
        return self.output_of(micro_batch.batch.student)

    def output_of(self, inputs: Inputs) -> Tensor | Held:
        """The same for any inputs."""
        layout = context_layout(inputs)
        output = self.module(**model_inputs(inputs, layout))
        if self._tap is None:
            return output
        return student_output(self._tap, layout, self.tokenizer.vocab_size, self.config)

    @property
    def training_loss_reduction(self) -> DistillationLoss:
        """Cross-entropy and distillation of a micro-batch, as sums; once configured."""
        return self._training_loss_reduction

    @property
    def validation_loss_reduction(self) -> HeldOutLoss:
        """Cross-entropy and next-token accuracy on held-out text, as sums; once configured."""
        return self._validation_loss_reduction


class AdaptedModel(DistillationModel):
    """The same with low-rank adapters, which its checkpoints then name.

    Args:
        config, tokenizer, optim: see `DistillationModel`.
        lora: the adapters.
    """

    def __init__(
        self,
        config: llm.GPTConfig,
        tokenizer: XTokenTokenizer,
        optim: Optional[OptimizerModule] = None,
        lora: Optional[LoraConfig] = None,
    ) -> None:
        super().__init__(config, tokenizer, optim)
        self.lora = lora


def with_lora(model: DistillationModel, lora: LoraConfig | None) -> DistillationModel:
    """A model with adapters, made of the arguments of one without; the same where there are none to be."""
    if lora is None or not lora.on:
        return model
    arguments = copy.deepcopy(model.__io__).__arguments__
    config = fdl.Config(AdaptedModel, **arguments, lora=fdl.Config(LoraConfig, **dataclasses.asdict(lora)))
    made: AdaptedModel = fdl.build(config)
    made.__io__ = config  # what checkpoints name; NeMo notes the arguments of the class above alone
    return made


@io.model_importer(DistillationModel, "hf")
class DistillationImporter(HFImporter):
    """Of `DistillationModel`, for `llm.import_ckpt` as well."""

    model_class = DistillationModel


io.model_exporter(DistillationModel, "hf")(HFExporter)  # for `nemo llm export`
io.model_exporter(AdaptedModel, "hf")(HFExporter)
