"""A distillation as Megatron-Bridge's ``pretrain`` sees it: a forward step, and callbacks around steps.

Needs Megatron-core and nothing of Bridge: what Bridge hands over is taken by its attributes.  Any loop that calls
Megatron's schedules, and these callbacks around each step, can train by it.
"""

import logging
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from nemo_xtoken.data.batch import Batch, Inputs
from nemo_xtoken.errors import InputError
from nemo_xtoken.evaluate.beside_training import EvaluationBeside
from nemo_xtoken.objective.objective_state import ObjectiveState
from nemo_xtoken.objective.scale import ObjectiveConfig
from nemo_xtoken.objective.shares import Held
from nemo_xtoken.plugin.bridge.batches import HeldOutBatches, StepBatches
from nemo_xtoken.plugin.bridge.checkpoints import write_own_checksums
from nemo_xtoken.plugin.bridge.lora.bridge_adapters import add_bridge_adapters
from nemo_xtoken.plugin.bridge.older_versions import listen, mark_spread, sum_up
from nemo_xtoken.plugin.bridge.run_folder import Records
from nemo_xtoken.run.lora.lora_settings import LoraConfig
from nemo_xtoken.run.records import SAMPLES, read_history
from nemo_xtoken.teachers.contract import TeacherHost, TeacherLost
from nemo_xtoken.teachers.output import HiddenStateTap
from nemo_xtoken.training.inputs import context_layout, model_inputs, schedule_shape
from nemo_xtoken.training.learned_parameters import LearnedProjections, with_learned, write_learned
from nemo_xtoken.training.lessons import Teaching, begin, student_output
from nemo_xtoken.training.lookahead import Lookahead, wait_for_teachers
from nemo_xtoken.training.lora.adapted import Adapted
from nemo_xtoken.training.loss_terms import Report, add_up, distillation_terms, held_out_means, held_out_terms
from nemo_xtoken.training.micro_batch import MicroBatch
from nemo_xtoken.training.step import add_evaluated, begin_evaluation, begin_step, from_last_stage, take_in
from nemo_xtoken.training.teacher_settings import NamedTeacher
from nemo_xtoken.training.trained_with import Origin, go_on_with, trained_with
from nemo_xtoken.training.training_progress import TrainingProgress
from nemo_xtoken.training.watching.continuations import spoken
from nemo_xtoken.training.watching.early_stopping import StopConfig, reason_to_stop
from nemo_xtoken.training.watching.sample_settings import SampleConfig
from nemo_xtoken.training.watching.samples import Prompt, SampleBook, find_prompts
from nemo_xtoken.vocab.vocabulary import Vocabulary

__all__ = ["Distillation", "HostTeacher"]

logger = logging.getLogger(__name__)

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
        resumed: a checkpoint of this run is to be loaded.
        about: what the run's folder says of it: ``tokenizer``, the student's, and ``learning``, of learned W, see
            ``learned_parameters.learning_state``.
        beside: the evaluation of checkpoints during training.
        stop: when the run ends by itself.
        samples: which texts the student continues beside evaluations; None: none.
        lora: adapters that are trained instead of the student; None: none.
        origin: what the student is made of; None: random weights.
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
        resumed: bool = False,
        about: Mapping[str, Any] | None = None,
        beside: EvaluationBeside | None = None,
        stop: StopConfig | None = None,
        samples: SampleConfig | None = None,
        lora: LoraConfig | None = None,
        origin: Origin | None = None,
    ) -> None:
        self.vocabulary, self.named, self.host_teacher, self.told = vocabulary, tuple(teachers), host_teacher, told
        self.objective = ObjectiveState(objective, {t.name: t.config.weight for t in teachers})
        self.train, self.held_out, self.records = train, held_out, Records(folder)
        self.resumed, self.about, self.beside, self.stop = resumed, about, beside, stop or StopConfig()
        self.stopped: str | None = None  # why the run has ended by itself
        self._samples, self._book = samples or SampleConfig(count=0), SampleBook(folder / SAMPLES)
        self._prompts: list[Prompt] | None = None
        self._sums: dict[str, float] = {}  # of the evaluation at hand
        self._evaluations: list[dict[str, Any]] = []
        self.teaching = Teaching()
        self._learned: list[LearnedProjections] = []  # this rank's, which the student's module has
        self._tap: HiddenStateTap | None = None
        self._lora, self._origin, self._adapted = lora, origin, list[Adapted]()
        self._reports: list[Report] = []  # of the micro-batches at hand
        self._started = 0.0
        self.done = 0  # steps
        self._lookahead = Lookahead()
        self._next: list[Batch] = []  # micro-batches of the next step, where its teachers have been waited for

    def tap(self, chunks: list[Any]) -> list[Any]:
        """A pre-wrap hook of the student's provider: takes hidden states at the door of the output layer, loads the
        teachers, and makes W; a learned one becomes a part of the student, so that it is wrapped with it.

        Args:
            chunks: this rank's part of the model; one, without a virtual pipeline.

        Returns:
            the same.

        Collectives: those of loading the teachers.
        """
        (module,) = chunks
        if self._lora is not None:  # before anything that is not to be frozen is a part of the module
            self._adapted = add_bridge_adapters(chunks, self._lora, self.resumed)
        mark_spread(module)
        output_layer = None
        if getattr(module, "post_process", True):
            output_layer = module.output_layer
            self._tap = HiddenStateTap(output_layer, module.config.sequence_parallel)
        host_of = partial(self._host_of, module.config)
        self.teaching = begin(self.named, host_of, self.vocabulary, output_layer, self.objective.kernels)
        learned = with_learned(module, self.teaching.lessons, self.resumed)
        self._learned = [] if learned is None else [learned]
        return chunks

    def _host_of(self, config: Any, teacher: NamedTeacher) -> TeacherHost:
        return self.host_teacher(teacher, config)

    def __call__(self, data_iterator: Iterator[MicroBatch], model: torch.nn.Module) -> tuple[Tensor, Any]:
        """Megatron's forward step.

        Returns:
            ``(output, loss function)``; on the last pipeline stage the function gives ``(sum, tokens, report)``, by
            which Megatron divides once, over all micro-batches and ranks.
        """
        micro_batch = next(data_iterator)
        output, found = self._forward(model, micro_batch.batch.student)
        if found is None:
            return output, self._loss
        return output, partial(self._loss, micro_batch, found, model.training)

    def _forward(self, model: torch.nn.Module, inputs: Inputs) -> tuple[Tensor, Held | None]:
        """A stage's output, and on the last one what this rank holds of it."""
        layout = context_layout(inputs)
        output = model(**model_inputs(inputs, layout))
        if self._tap is None:
            return output, None
        return output, student_output(self._tap, layout, self.vocabulary.size, _config_of(model))

    def _loss(
        self, micro_batch: MicroBatch, found: Held, training: bool, _output: Tensor
    ) -> tuple[Tensor, Tensor, Report]:
        """The terms of a micro-batch; in the report every entry is ``[sum, count]``, as Bridge averages them."""
        if training:
            terms = distillation_terms(self.teaching.lessons, self.objective, micro_batch, found)
            self.teaching.begin_next()
        else:
            terms = held_out_terms(self.teaching.lessons, self.objective, micro_batch, found)
        loss, tokens, report = terms
        self._reports.append(report)
        pairs = {"lm loss": ("ce", "tokens")}
        if not training:
            pairs |= {"accuracy": ("correct", "tokens")}
        names = [name for name in self.objective.teacher_names if f"kd/{name}" in report]
        pairs |= {f"kd loss {name}": (f"kd/{name}", f"chunks/{name}") for name in names}
        shown = {
            label: torch.stack([report[total].detach().float(), report[count].float()])
            for label, (total, count) in pairs.items()
        }
        return loss, tokens, shown

    # The callbacks, by Bridge's names; each gets Bridge's CallbackContext.

    def on_train_start(self, context: Any) -> None:
        """Goes on where the checkpoint stands; a new run evaluates its start.

        Collectives: those of an evaluation; one broadcast of the records.

        Raises:
            InputError: a checkpoint without the records that go with it, or of a run on other data.
        """
        from megatron.core import parallel_state

        parts: list[Any] = [*self._learned, *self._adapted]
        for part in parts:
            part.in_checkpoints = True  # from here on
        listen(context.state)
        state = context.state.train_state
        self.told.begin(state.step)
        self.done = state.step
        fingerprint = str(getattr(self.train.samples, "fingerprint", ""))
        for record in self.records.resume(state.step, fingerprint, self.about):
            self._take_in_again(record)
        if dist.get_rank() == 0:
            self._book.begin(state.step)
            if state.step < context.state.cfg.train.train_iters:  # Bridge begins a run that is finished as well
                settings = trained_with(self.objective.config, self.named, self._origin)
                go_on_with(self.records.folder, state.step, settings)
            self._evaluations = [r for r in read_history(self.records.folder) if "held_out_ce" in r]
        if self.beside is not None and dist.get_rank() == 0:
            self.beside.start()
        rank, ranks = parallel_state.get_data_parallel_rank(), parallel_state.get_data_parallel_world_size()
        self.train.start(state.consumed_train_samples, rank, ranks)
        if self.held_out is not None:
            self.held_out.start(rank, ranks)
            if state.step == 0:
                self._evaluate(context, self.held_out)

    def on_train_step_start(self, context: Any) -> None:
        """Fetches the step's micro-batches, counts them, runs the teachers that must run first.

        Collectives: one all-reduce of ``1 + teachers`` integers, and those of the teachers.

        Raises:
            InputError: a teacher elsewhere has not answered since the run started.
        """
        self._started, self._reports = time.perf_counter(), []
        step = context.state.train_state.step + 1  # Bridge counts it later
        sum_up(self.records.folder / "checkpoints", step - 1)
        batches, self._next = self._next or self._take(), []
        try:
            ready = begin_step(batches, self.teaching, self.objective, step)
        except TeacherLost as lost:  # of the run's first step: of the others `on_train_step_end` has seen to it
            raise InputError(
                f"{lost}, since the run started",
                "a service that answers",
                "see the log of the teacher's service, and that both name the same folder",
            ) from None
        self.train.hand_out(ready)

    def _take(self) -> list[Batch]:
        from megatron.core.num_microbatches_calculator import get_num_microbatches

        return self._lookahead.take(partial(self.train.fetch, get_num_microbatches()), self.teaching, None)

    def on_train_step_end(self, context: Any) -> None:
        """Adds the sums up, updates scale and weights, and writes the record.

        A teacher elsewhere is waited for here: where it is lost, Bridge gets the signal on which it saves and stops.

        Collectives: one all-reduce and, under pipeline parallelism, one broadcast, of a few numbers; where a teacher
        may be lost, another all-reduce.

        Raises:
            InputError: the loss is not a number.
        """
        step = context.state.train_state.step + 1  # Bridge counts it later
        totals = from_last_stage(add_up(self._reports) if self._tap is not None else {})
        seconds = time.perf_counter() - self._started
        self.teaching.check_given(step)
        outcome = take_in(self.objective, totals, seconds, step)
        self.done = step
        self.told.step(self.records.write_step(step, totals, seconds, outcome.used), _learning_rate(context))
        may_be_lost = any(teacher.may_be_lost for teacher in self.teaching.teachers)
        if may_be_lost and step < context.state.cfg.train.train_iters:
            self._next = self._take()
            try:
                wait_for_teachers(self._next, self.teaching)
            except TeacherLost as lost:
                text = "%s: the run ends after %d steps with a checkpoint, and the same command goes on there"
                logger.warning(text, lost, step)
                signal.raise_signal(signal.SIGTERM)

    def on_eval_start(self, context: Any) -> None:
        """Starts the sums."""
        self.told.evaluate()
        self._sums = {}

    def on_eval_step_start(self, context: Any) -> None:
        """Fetches a global batch and has the teachers read it.  Collectives: those of ``step.begin_evaluation``."""
        assert self.held_out is not None, "there is something to evaluate"
        self._reports = []
        batches = self.held_out.fetch()
        self.held_out.hand_out(begin_evaluation(batches, self.teaching, context.state.train_state.step))

    def on_eval_step_end(self, context: Any) -> None:
        """Adds its sums; collectives as at the end of a step."""
        add_evaluated(self._sums, from_last_stage(add_up(self._reports) if self._tap is not None else {}))

    def on_eval_end(self, context: Any) -> None:
        """Writes the means, lets the student continue texts, and stops the run where that is due.

        Bridge gets the signal on which it saves and stops then.

        Collectives: those of ``watching.continuations.continued``; a broadcast of a text over all ranks.
        """
        step = context.state.train_state.step
        means = self.records.write_held_out(step, held_out_means(self._sums, self.objective))
        self.told.evaluated(means)
        if not means:
            return
        if self._prompts is None:
            assert self.held_out is not None, "it has been evaluated"
            self._prompts = find_prompts(self.held_out.samples, self._samples)
        (module,) = context.model
        said = spoken(module, partial(self._forward, module), self._prompts, self._samples, self.vocabulary)
        if dist.get_rank() == 0:
            self._book.add(step, said)
        self.told.said(said)
        self._evaluations.append({"step": step, **means})
        if self.stop.patience and step < context.state.cfg.train.train_iters:
            why = [reason_to_stop(self.stop, self._evaluations)]
            dist.broadcast_object_list(why, src=0)
            if why[0] is not None:
                self.stopped = why[0]
                self.records.write_stopped(step, why[0])
                signal.raise_signal(signal.SIGTERM)

    def on_checkpoint_save(self, context: Any) -> None:
        """Writes checksums beside a checkpoint that has just been finished; every rank of its own files."""
        step = int(context.state.train_state.step)
        folder = Path(context.state.cfg.checkpoint.save) / f"iter_{step:07d}"
        if folder.is_dir():
            write_own_checksums(folder, dist.get_rank())

    def on_train_end(self, context: Any) -> None:
        """Writes the W that were learned, at the end of the whole run.  Collectives: see ``write_learned``."""
        if self.done >= context.state.cfg.train.train_iters:
            self.write_learned()

    def write_learned(self) -> None:
        """Writes the W that were learned.  Collectives: see ``learned_parameters.write_learned``."""
        taught = [teacher for teacher in self.named if teacher.config.learned]
        made = self._learned[0] if self._learned else None
        write_learned(self.records.folder, made, taught, self.vocabulary, self.done)

    def _evaluate(self, context: Any, held_out: HeldOutBatches) -> None:
        """Before the first step, which Bridge does not."""
        from megatron.core.pipeline_parallel import get_forward_backward_func

        size, length = schedule_shape(held_out.size, held_out.samples[0].student.tokens.shape[1])
        model = context.model[0]
        self.on_eval_start(context)
        model.eval()
        with torch.no_grad():
            for _ in range(len(held_out) // held_out.of_one):
                self.on_eval_step_start(context)
                get_forward_backward_func()(
                    forward_step_func=self,
                    data_iterator=held_out,
                    model=[model],
                    num_microbatches=held_out.of_one,
                    seq_length=length,
                    micro_batch_size=size,
                    forward_only=True,
                )
                self.on_eval_step_end(context)
        model.train()
        self.on_eval_end(context)

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
