"""A distillation as Megatron-Bridge's ``pretrain`` sees it: a forward step, and callbacks around steps.

Needs Megatron-core and nothing of Bridge: what Bridge hands over is taken by its attributes.  Any loop that calls
Megatron's schedules, and these callbacks around each step, can train by it.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nemo_xtoken.objective.objective_state import ObjectiveState
from nemo_xtoken.objective.scale import ObjectiveConfig
from nemo_xtoken.objective.shares import Held
from nemo_xtoken.plugin.bridge.batches import HeldOutBatches, StepBatches
from nemo_xtoken.plugin.bridge.run_folder import Records
from nemo_xtoken.teachers.contract import TeacherHost
from nemo_xtoken.teachers.output import HiddenStateTap
from nemo_xtoken.training.inputs import context_layout, model_inputs, schedule_shape
from nemo_xtoken.training.lessons import Teaching, begin, student_output
from nemo_xtoken.training.loss_terms import Report, add_up, distillation_terms, held_out_terms
from nemo_xtoken.training.micro_batch import MicroBatch
from nemo_xtoken.training.step import begin_step, from_last_stage, take_in
from nemo_xtoken.training.teacher_settings import NamedTeacher
from nemo_xtoken.training.training_progress import TrainingProgress
from nemo_xtoken.vocab.vocabulary import Vocabulary

__all__ = ["Distillation", "HostTeacher"]

#: What a loop gives to the source of a teacher: ``(teacher, student's config)``.
HostTeacher = Callable[[NamedTeacher, Any], TeacherHost]


class Distillation:
    """One run: what Bridge calls, and the state between its calls.

    Pass it to ``pretrain(config, run, callbacks=[run])`` with its `tap` as a pre-wrap hook of the model's provider,
    its batches as the data, and ``calculate_per_token_loss`` in the model's configuration.

    Args:
        vocabulary: the student's.
        teachers: none for cross-entropy alone.
        objective: how the terms add up.
        train, held_out: the data; None: nothing is held out.
        folder: of the run, where ``history.jsonl`` is.
        host_teacher: what the source of a teacher is given.
        told: how far it is, for the person who watches.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        teachers: Sequence[NamedTeacher],
        objective: ObjectiveConfig,
        train: StepBatches,
        held_out: HeldOutBatches | None,
        folder: Path,
        host_teacher: HostTeacher,
        told: TrainingProgress,
    ) -> None:
        self.vocabulary, self.named, self.host_teacher, self.told = vocabulary, tuple(teachers), host_teacher, told
        self.objective = ObjectiveState(objective, {t.name: t.config.weight for t in teachers})
        self.train, self.held_out, self.records = train, held_out, Records(folder)
        self.teaching = Teaching()
        self._tap: HiddenStateTap | None = None
        self._output_layer: torch.nn.Module | None = None
        self._reports: list[Report] = []  # of the micro-batches at hand
        self._started = 0.0

    def tap(self, chunks: list[Any]) -> list[Any]:
        """A pre-wrap hook of the student's provider: takes hidden states at the door of the output layer.

        Args:
            chunks: this rank's part of the model; one, without a virtual pipeline.

        Returns:
            the same.
        """
        (module,) = chunks
        if getattr(module, "post_process", True):
            self._output_layer = module.output_layer
            self._tap = HiddenStateTap(module.output_layer, module.config.sequence_parallel)
        return chunks

    def __call__(self, data_iterator: Iterator[MicroBatch], model: torch.nn.Module) -> tuple[Tensor, Any]:
        """Megatron's forward step.

        Returns:
            ``(output, loss function)``; on the last pipeline stage the function gives ``(sum, tokens, report)``, by
            which Megatron divides once, over all micro-batches and ranks.
        """
        micro_batch = next(data_iterator)
        inputs = micro_batch.batch.student
        layout = context_layout(inputs)
        output = model(**model_inputs(inputs, layout))
        if self._tap is None:
            return output, self._loss
        found = student_output(self._tap, layout, self.vocabulary.size, _config_of(model))
        return output, partial(self._loss, micro_batch, found, model.training)

    def _loss(
        self, micro_batch: MicroBatch, found: Held, training: bool, _output: Tensor
    ) -> tuple[Tensor, Tensor, Report]:
        """The terms of a micro-batch; in the report every entry is ``[sum, count]``, as Bridge averages them."""
        if training:
            terms = distillation_terms(self.teaching.lessons, self.objective, micro_batch, found)
        else:
            terms = held_out_terms(micro_batch, found)
        loss, tokens, report = terms
        self._reports.append(report)
        pairs = {"lm loss": ("ce", "tokens")}
        if training:
            pairs |= {f"kd loss {name}": (f"kd/{name}", f"chunks/{name}") for name in self.objective.teacher_names}
        else:
            pairs |= {"accuracy": ("correct", "tokens")}
        shown = {
            label: torch.stack([report[total].detach().float(), report[count].float()])
            for label, (total, count) in pairs.items()
        }
        return loss, tokens, shown

    # The callbacks, by Bridge's names; each gets Bridge's CallbackContext.

    def on_train_start(self, context: Any) -> None:
        """Loads the teachers, makes W, and goes on where the checkpoint stands; a new run evaluates its start.

        Collectives: those of loading the teachers, and of an evaluation; one broadcast of the records.

        Raises:
            InputError: a checkpoint without the records that go with it, or of a run on other data.
        """
        from megatron.core import parallel_state

        config = _config_of(context.model[0])
        self.teaching = begin(
            self.named,
            lambda teacher: self.host_teacher(teacher, config),
            self.vocabulary,
            self._output_layer,
            self.objective.kernels,
        )
        state = context.state.train_state
        self.told.begin(state.step)
        fingerprint = str(getattr(self.train.samples, "fingerprint", ""))
        for record in self.records.resume(state.step, fingerprint):
            self._take_in_again(record)
        rank, ranks = parallel_state.get_data_parallel_rank(), parallel_state.get_data_parallel_world_size()
        self.train.start(state.consumed_train_samples, rank, ranks)
        if self.held_out is not None:
            self.held_out.start(rank, ranks)
            if state.step == 0:
                self.on_eval_start(context)
                self._evaluate(context.model[0], self.held_out)
                self.on_eval_end(context)

    def on_train_step_start(self, context: Any) -> None:
        """Fetches the step's micro-batches, counts them, runs the teachers that must run first.

        Collectives: one all-reduce of ``1 + teachers`` integers, and those of the teachers.
        """
        from megatron.core.num_microbatches_calculator import get_num_microbatches

        self._started, self._reports = time.perf_counter(), []
        batches = self.train.fetch(get_num_microbatches())
        step = context.state.train_state.step + 1  # Bridge counts it later
        self.train.hand_out(begin_step(batches, self.teaching, self.objective, step))

    def on_train_step_end(self, context: Any) -> None:
        """Adds the sums up, updates scale and weights, and writes the record.

        Collectives: one all-reduce and, under pipeline parallelism, one broadcast, of a few numbers.

        Raises:
            InputError: the loss is not a number.
        """
        step = context.state.train_state.step + 1  # Bridge counts it later
        totals = from_last_stage(add_up(self._reports) if self._tap is not None else {})
        seconds = time.perf_counter() - self._started
        outcome = take_in(self.objective, totals, seconds, step)
        self.told.step(self.records.write_step(step, totals, seconds, outcome.used), _learning_rate(context))

    def on_eval_start(self, context: Any) -> None:
        """Starts the sums."""
        self.told.evaluate()
        self._reports = []

    def on_eval_end(self, context: Any) -> None:
        """Writes the means; collectives as at the end of a step."""
        totals = from_last_stage(add_up(self._reports) if self._tap is not None else {})
        self.told.evaluated(self.records.write_held_out(context.state.train_state.step, totals))

    def _evaluate(self, model: torch.nn.Module, held_out: HeldOutBatches) -> None:
        """Before the first step, which Bridge does not."""
        from megatron.core.pipeline_parallel import get_forward_backward_func

        size, length = schedule_shape(held_out.size, held_out.samples[0].student.tokens.shape[1])
        model.eval()
        with torch.no_grad():
            get_forward_backward_func()(
                forward_step_func=self,
                data_iterator=held_out,
                model=[model],
                num_microbatches=len(held_out),
                seq_length=length,
                micro_batch_size=size,
                forward_only=True,
            )
        model.train()

    def _take_in_again(self, record: dict[str, Any]) -> None:
        """What a step before the interruption left in the scale and the teachers' weights."""
        if "kd" in record:
            self.objective.scale.update(record["ce"], record["kd"])
        scores = {key.partition("/")[2]: value for key, value in record.items() if key.startswith("score/")}
        names = self.objective.teacher_names
        self.objective.teacher_weights.update({name: scores[name] for name in scores if name in names})


def _learning_rate(context: Any) -> float | None:
    """Of the step that has ended; None where the loop does not say."""
    groups = getattr(getattr(context, "optimizer", None), "param_groups", None)
    return float(groups[0]["lr"]) if groups else None


def _config_of(model: Any) -> Any:
    """The Megatron configuration of a model, whatever is wrapped around it."""
    from megatron.core.utils import get_model_config

    return get_model_config(model)
