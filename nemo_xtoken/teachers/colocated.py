"""A teacher in the student's own processes: same ranks, same tensor and pipeline parallel groups, no gradients."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from nemo_xtoken.data.batch import Inputs
from nemo_xtoken.errors import InputError
from nemo_xtoken.parallel.context_parallel import ContextLayout
from nemo_xtoken.parallel.head import OutputHead
from nemo_xtoken.parallel.ownership import Ownership, reorder_rows
from nemo_xtoken.parallel.vocabulary_shard import VocabularyShard
from nemo_xtoken.teachers.contract import InputForm, States, Teacher, TeacherHost
from nemo_xtoken.teachers.output import HiddenStateTap, output_head

__all__ = ["ColocatedTeacher", "ModelInputs", "random_numbers_kept"]

#: A micro-batch as the model takes it: which positions this rank holds, and the keyword arguments.
ModelInputs = tuple[ContextLayout, dict[str, Any]]


class ColocatedTeacher(Teacher):
    """Runs a frozen Megatron model over a step's micro-batches.

    The forward pass is a schedule of its own (``forward_only``), so the teacher's sequence length, width and depth have
    nothing to do with the student's, under pipeline parallelism as well.

    Without pipeline stages it can run in the midst of the student's schedule.  Stages would wait for each other: with
    them it runs over all micro-batches of a step before the student's.

    Args:
        model: this pipeline stage of the teacher, a Megatron model with an output layer (``GPTModel``, ``HybridModel``)
            in evaluation mode, its parameters frozen.
        vocabulary_size: V_T of its tokenizer.
        form: of its inputs.
        label: what messages call it.
    """

    colocated = True

    def __init__(self, model: Any, vocabulary_size: int, form: InputForm, label: str = "teacher") -> None:
        from megatron.core import parallel_state

        self.model, self.vocabulary_size, self.form, self.label = model, vocabulary_size, form, label
        self.group = parallel_state.get_tensor_model_parallel_group()
        self.last_stage = parallel_state.is_pipeline_last_stage()
        self.one_at_a_time = parallel_state.get_pipeline_model_parallel_world_size() == 1
        self.tap: HiddenStateTap | None = None
        if self.last_stage:
            self.tap = HiddenStateTap(model.output_layer, model.config.sequence_parallel)

    @classmethod
    def open(cls, host: TeacherHost) -> "ColocatedTeacher":
        """
        Raises:
            InputError: a layout that is not the student's.
        """
        if host.sizes != host.student_sizes:
            raise InputError(
                f"source=colocated for the {host.label}, whose layout is {host.sizes}",
                f"the student's, {host.student_sizes}",
                "leave source out, or the teacher's parallel sizes",
            )
        return cls(host.load(), host.vocabulary_size, host.form, host.label)

    def lay_out(self, *ownerships: Ownership) -> list[OutputHead]:
        """See `Teacher.lay_out`.  Collectives: those of ``reorder_rows``.

        The first order takes the place of an untied layer's rows; a tied one's embedding stays as it is beside it.
        """
        if not ownerships:
            return []
        model = self.model
        weight = model.shared_embedding_or_output_weight() if model.share_embeddings_and_output_weights else None
        own = model.output_layer.weight
        held = own if weight is None else weight
        shard = VocabularyShard.of_local_rows(self.vocabulary_size, held.shape[0], self.group)
        heads = []
        for ownership in ownerships:
            rows = reorder_rows(held.detach(), shard, ownership)
            columns = torch.from_numpy(ownership.owned).to(rows.device)
            heads.append(output_head(rows, ownership.shard, model.config, columns))
        if weight is None:
            own.data = heads[0].weight
        return heads

    @torch.no_grad()
    def states(self, sides: Sequence[Inputs]) -> list[States | None]:
        """See `Teacher.states`.  Under context parallelism a rank has the rows that its part of the model computes."""
        # one by one, as the schedule asks for them: a mask is large
        taken = self._run(map(self._prepare, sides), len(sides), sides[0].tokens.shape)
        if not self.last_stage:
            return [None] * len(sides)
        for inputs, states in zip(sides, taken, strict=True):
            self._check_numbers(self._no_numbers(states), states.layout, inputs)
        return list(taken)

    def _prepare(self, inputs: Inputs) -> ModelInputs:
        layout = self.form.context_layout(inputs)
        return layout, self.form.model_inputs(inputs, layout)

    def _run(self, prepared: Iterable[ModelInputs], number: int, shape: Sequence[int]) -> list[States]:
        """The states of micro-batches, on the last stage.

        Args:
            number: of them.
            shape: of their tokens.
        """
        from megatron.core.pipeline_parallel import get_forward_backward_func

        size, length = self.form.schedule_shape(*shape)
        with random_numbers_kept():
            taken: list[States] = get_forward_backward_func()(
                forward_step_func=self._forward_step,
                data_iterator=iter(prepared),
                model=[self.model],
                num_microbatches=number,
                seq_length=length,
                micro_batch_size=size,
                forward_only=True,
                collect_non_loss_data=True,
            )
        return taken

    def _forward_step(self, prepared: Iterator[ModelInputs], model: Any) -> tuple[Tensor, Any]:
        layout, arguments = next(prepared)
        return model(**arguments), partial(self._take, layout)

    def _take(self, layout: ContextLayout, _output: Tensor, non_loss_data: bool = True) -> States:
        assert self.tap is not None
        return States(self.tap.pop()[0], layout)

    @staticmethod
    def _no_numbers(states: States) -> Tensor:
        """bool ``[n]``, which rows are not finite."""
        return ~torch.isfinite(states.hidden).all(dim=1)

    def _check_numbers(self, bad: Tensor, layout: ContextLayout, inputs: Inputs) -> None:
        """
        Args:
            bad: see `_no_numbers`; on any device.
            layout: of the states.
            inputs: that they are of.

        Raises:
            InputError: some rows are, and not of padding.
        """
        at = torch.nonzero(bad).squeeze(1)
        rows = layout.local[at.to(layout.local.device)]  # this rank's positions in the batch
        rows = rows[rows >= 0]  # what is padding counts for nothing
        if not rows.numel():
            return
        samples = inputs.samples[(rows // inputs.tokens.shape[1]).unique()].tolist()
        raise InputError(
            f"the {self.label}'s output is not a number for sample {', '.join(map(str, samples))} of the data set",
            "finite hidden states",
            "check the teacher's weights and precision (bf16 rather than fp16), and the text of that sample; "
            "the last checkpoint of the student is intact",
        )


@contextmanager
def random_numbers_kept() -> Iterator[None]:
    """Inside, the numbers that are drawn are not missed afterwards.

    Fused attention moves the generator on even where nothing is dropped.  When a model runs that is not trained, and
    how often, is not to decide what the student drops.
    """
    from megatron.core.tensor_parallel.random import get_cuda_rng_tracker

    tracker, states = get_cuda_rng_tracker(), (torch.get_rng_state(), torch.cuda.get_rng_state())
    by_name = tracker.get_states()
    try:
        yield
    finally:
        torch.set_rng_state(states[0])
        torch.cuda.set_rng_state(states[1])
        tracker.set_states(by_name)
