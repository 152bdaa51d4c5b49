"""A teacher in the student's own processes: same ranks, same tensor and pipeline parallel groups, no gradients."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from nemo_xtoken.errors import InputError
from nemo_xtoken.losses.base import ModelOutput
from nemo_xtoken.parallel.head import OutputHead
from nemo_xtoken.parallel.ownership import Ownership, reorder_rows
from nemo_xtoken.parallel.vocabulary_shard import VocabularyShard
from nemo_xtoken.teachers.output import HiddenStateTap, output_head

__all__ = ["ColocatedTeacher"]

Inputs = Callable[[dict[str, Tensor]], dict[str, Any]]


class ColocatedTeacher:
    """Runs a frozen Megatron model over a step's micro-batches.

    The forward pass is a schedule of its own (``forward_only``), so the teacher's sequence length, width and depth have
    nothing to do with the student's, under pipeline parallelism as well.  What stays of a micro-batch is its last
    hidden state, ``[b*T_T, H_T]`` (under context parallelism this rank's rows), on the last pipeline stage.

    Without pipeline stages it can run in the midst of the student's schedule, each micro-batch when it is needed
    (``one_at_a_time``), so that one hidden state is there at a time.  Stages would wait for each other: with them it
    runs over all micro-batches of a step before the student's.

    Args:
        model: this pipeline stage of the teacher, in evaluation mode, its parameters frozen.
        vocabulary_size: V_T of its tokenizer.
        inputs: keyword arguments of ``model(...)`` from a micro-batch.
        schedule_shape: from a micro-batch's size and sequence length to those that the schedule sees.
        side: what its entries in a micro-batch begin with.
        label: what messages call it.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        vocabulary_size: int,
        inputs: Inputs,
        schedule_shape: Callable[[int, int], tuple[int, int]],
        side: str = "teacher0",
        label: str = "teacher",
    ) -> None:
        from megatron.core import parallel_state

        self.model, self.vocabulary_size, self.inputs = model, vocabulary_size, inputs
        self.schedule_shape, self.side, self.label = schedule_shape, side, label
        self.group = parallel_state.get_tensor_model_parallel_group()
        self.last_stage = parallel_state.is_pipeline_last_stage()
        self.one_at_a_time = parallel_state.get_pipeline_model_parallel_world_size() == 1
        self.tap: HiddenStateTap | None = None
        self.head: OutputHead | None = None
        if self.last_stage:
            self.tap = HiddenStateTap(model.output_layer, model.config.sequence_parallel)

    def lay_out(self, *ownerships: Ownership) -> list[OutputHead]:
        """The output layer in each order that a loss wants; on the last pipeline stage, before any output.

        The first takes the place of an untied layer's rows; a tied one's embedding stays as it is beside the new order.
        Without an order (on other stages) there is nothing to do.  Collectives: those of ``reorder_rows``.
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
        self.head = heads[0]
        return heads

    @torch.no_grad()
    def outputs(self, micro_batches: Sequence[dict[str, Any]]) -> list[ModelOutput | None]:
        """See :class:`~nemo_xtoken.teachers.output.Teacher`; the output layer is the first of ``lay_out``.

        Raises:
            InputError: a hidden state is not a number; the message names the samples.
        """
        assert self.head is not None or not self.last_stage, "lay_out comes first"
        return [
            None if hidden is None or self.head is None else ModelOutput(hidden, self.head)
            for hidden in self.hidden_states(micro_batches)
        ]

    @torch.no_grad()
    def hidden_states(self, micro_batches: Sequence[dict[str, Any]]) -> list[Tensor | None]:
        """The last hidden states of each micro-batch, ``[b*T_T, H_T]``; None off the last pipeline stage.

        Raises:
            InputError: one is not a number; the message names the samples.
        """
        from megatron.core.pipeline_parallel import get_forward_backward_func

        size, length = self.schedule_shape(*micro_batches[0][f"{self.side}_tokens"].shape)
        taken = get_forward_backward_func()(
            forward_step_func=self._forward_step,
            data_iterator=iter(micro_batches),
            model=[self.model],
            num_microbatches=len(micro_batches),
            seq_length=length,
            micro_batch_size=size,
            forward_only=True,
            collect_non_loss_data=True,
        )
        if not self.last_stage:
            return [None] * len(micro_batches)
        for batch, hidden in zip(micro_batches, taken, strict=True):
            self._check_finite(hidden, batch)
        return list(taken)

    def _forward_step(self, batches: Iterator[dict[str, Tensor]], model: torch.nn.Module) -> tuple[Tensor, Any]:
        output = model(**self.inputs(next(batches)))
        return output, self._take

    def _take(self, _output: Tensor, non_loss_data: bool = True) -> Tensor:
        assert self.tap is not None
        return self.tap.pop()[0]

    def _check_finite(self, hidden: Tensor, batch: dict[str, Tensor]) -> None:
        rows = torch.nonzero(~torch.isfinite(hidden).all(dim=1)).squeeze(1)
        layout = batch.get(f"{self.side}_layout")
        if layout is not None:  # this rank's positions in the batch; what is padding counts for nothing
            rows = layout.local[rows]
            rows = rows[rows >= 0]
        if not rows.numel():
            return
        samples = batch["sample_ids"][(rows // batch[f"{self.side}_tokens"].shape[1]).unique()].tolist()
        raise InputError(
            f"the {self.label}'s output is not a number for sample {', '.join(map(str, samples))} of the data set",
            "finite hidden states",
            "check the teacher's weights and precision (bf16 rather than fp16), and the text of that sample; "
            "the last checkpoint of the student is intact",
        )
