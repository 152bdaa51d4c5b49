"""The loss between two models in a training loop of your own: tokenizers and tensors in, nothing of NeMo.

    loss = CrossTokenizerLoss("path/of/student", "path/of/teacher")
    batch = loss.batch(texts)
    loss(batch, student_hidden, teacher_hidden, student_weight, teacher_weight).backward()

It is what a training step of the plugin does: the same divergences, the same pass over tiles.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from nemo_xtoken.alignment.aligner import Aligner
from nemo_xtoken.data.batch import IGNORED, with_beginnings
from nemo_xtoken.errors import InputError
from nemo_xtoken.kernels.reference import TORCH
from nemo_xtoken.kernels.tile_kernels import TileKernels
from nemo_xtoken.losses.base import ChunkDivergence, ChunkLossConfig, LossTerms, ModelOutput, TeacherSignal
from nemo_xtoken.losses.choosing import check_loss
from nemo_xtoken.losses.options import DEFAULT_LOSS, DivergenceOptions
from nemo_xtoken.losses.pair import VocabularyPair
from nemo_xtoken.losses.registry import chunk_selection, make_divergence
from nemo_xtoken.objective.scale import DynamicScale, ObjectiveConfig, StepCounts, kd_weights
from nemo_xtoken.objective.terms import cross_tokenizer_loss
from nemo_xtoken.objective.text_batch import TextBatch
from nemo_xtoken.objective.tiles import rows_within
from nemo_xtoken.parallel.head import FreeLogits, OutputHead
from nemo_xtoken.parallel.ownership import Ownership, reorder_rows
from nemo_xtoken.parallel.vocabulary_shard import VocabularyShard, group_size
from nemo_xtoken.projection.build import load_or_build
from nemo_xtoken.projection.matrix import ProjectionMatrix
from nemo_xtoken.vocab.loading import load_vocabulary
from nemo_xtoken.vocab.vocabulary import Vocabulary

__all__ = ["CrossTokenizerLoss", "with_spare_rows"]


class CrossTokenizerLoss:
    """``mean CE over tokens + scale * mean KD over chunks`` of a student, whose frozen teacher has another tokenizer.

    Args:
        student_tokenizer, teacher_tokenizer: a folder, a hub name, a tokenizer of transformers or tokenizers, or a
            vocabulary; see ``vocab.load_vocabulary``.
        loss: one of ``losses.registry.LOSSES``, ``"auto"``, or ``package.module:Class``.
        scale: the factor on KD; ``"dynamic"``: what made both terms equal in the last batch with gradient, 1 at first.
        temperature: of KD, which then carries its square.
        ce_weight: the factor on CE; 0 for distillation alone.
        options: settings of that loss.
        merge: how a chunk of several tokens becomes one term, where the loss asks; see ``ChunkLossConfig``.
        matrix: W; by default it is built by the paper's rule, where the loss needs it.
        pair: of these vocabularies, where several losses share what belongs to both; it has W then.
        kernels: what goes over the tiles.
        group: the tensor-parallel group over which the rows of both weights are sharded; None: one process.

    Attributes:
        terms: of the last call, for logs: sums and numbers of tokens and chunks.

    Raises:
        InputError: there is no such loss, or it cannot compare these tokenizers.
    """

    def __init__(
        self,
        student_tokenizer: Any,
        teacher_tokenizer: Any,
        loss: str = DEFAULT_LOSS,
        *,
        scale: float | str = "dynamic",
        temperature: float = 1.0,
        ce_weight: float = 1.0,
        options: DivergenceOptions | None = None,
        merge: str | None = None,
        matrix: ProjectionMatrix | None = None,
        pair: VocabularyPair | None = None,
        kernels: TileKernels = TORCH,
        group: ProcessGroup | None = None,
    ) -> None:
        self.student, self.teacher = (
            x if isinstance(x, Vocabulary) else load_vocabulary(x) for x in (student_tokenizer, teacher_tokenizer)
        )
        self.options, self.kernels, self.group = options or DivergenceOptions(), kernels, group
        self.ce_weight = ce_weight
        self.config = ChunkLossConfig(temperature=temperature)
        if merge is not None:
            self.config = replace(self.config, merge=merge)
        if scale == "dynamic_per_microbatch":
            raise InputError(f"scale={scale!r}", "a number from 0 up, or dynamic", "leave it out for dynamic")
        self._scale = DynamicScale(ObjectiveConfig(scale=scale))
        self.name = check_loss(loss, self.student, self.teacher, self.options, self.config.merge)
        self._pair = pair or VocabularyPair(
            self.student, self.teacher, matrix or (lambda: load_or_build(self.student, self.teacher))
        )
        self._aligner = Aligner(self.student, self.teacher)
        self._made: tuple[tuple[Any, ...], ChunkDivergence, torch.nn.Module | None] | None = None
        self._ordered: tuple[Tensor, int, OutputHead] | None = None
        self.terms: LossTerms | None = None

    def batch(self, texts: Sequence[str]) -> TextBatch:
        """Encodes and aligns texts, see ``TextBatch.of``."""
        return TextBatch.of(texts, self.student, self.teacher, self._aligner)

    def batch_of_ids(self, student_ids: Any, teacher_ids: Any, **more: Any) -> TextBatch:
        """Aligns texts that are encoded already; masks and labels by their names, see ``TextBatch.of_ids``."""
        return TextBatch.of_ids(student_ids, teacher_ids, self.student, self.teacher, **more, aligner=self._aligner)

    def __call__(
        self,
        batch: TextBatch,
        student: Tensor,
        teacher: Tensor,
        student_weight: Tensor | None = None,
        teacher_weight: Tensor | None = None,
    ) -> Tensor:
        """The loss of a batch, a scalar to call ``backward`` on; nothing of the teacher gets a gradient.

        Args:
            batch: of ``batch`` or ``batch_of_ids``; on any device.
            student: ``[b, T_S, H_S]``, the last hidden states, after the final norm; without ``student_weight`` the
                logits ``[b, T_S, V]``.
            teacher: ``[b, T_T, H_T]``, or without ``teacher_weight`` the logits.  Hidden states need a small part of
                the memory of logits.  A model that scales, caps or shifts its logits has to give these.
            student_weight, teacher_weight: ``[V, H]``, the output layers, which may have more rows than the tokenizer
                has tokens (of the group: this rank's rows), and without a group fewer by tokens that no text has, see
                ``with_spare_rows``.

        Returns:
            the mean over the batch's tokens and chunks.  Collectives: those of ``cross_tokenizer_loss``.

        Raises:
            InputError: shapes that do not belong together, or a device that the losses do not run on.
        """
        _check_devices(student=student, teacher=teacher, student_weight=student_weight, teacher_weight=teacher_weight)
        batch = batch.to(student.device)
        if group_size(self.group) == 1:
            student, student_weight = _whole(student, student_weight, self.student)
            if teacher_weight is None:
                teacher, _ = _whole(teacher, None, self.teacher)
        _check("student", student, batch.student_tokens, student_weight)
        _check("teacher", teacher, batch.teacher_tokens, teacher_weight)
        head = self._student_head(student, student_weight)
        divergence, selection = self._divergence(head.shard, student.device)
        teacher_head = self.teacher_head(teacher, teacher_weight, divergence.ownership)
        signal = TeacherSignal(
            ModelOutput(teacher.detach().flatten(0, 1), teacher_head),
            batch.teacher_labels,
            with_beginnings(batch.chunks, batch.beginnings) if divergence.takes_beginnings else batch.chunks,
            divergence,
            self.config,
        ).selected(selection, batch.student_labels)
        signal = signal.after(
            (batch.student_tokens, _positions(batch.student_tokens, batch.student_starts)),
            (batch.teacher_tokens, _positions(batch.teacher_tokens, batch.teacher_starts)),
        )
        tokens = max(int((batch.student_labels != IGNORED).sum()), 1)
        # the mean over tokens is taken last, after the products: float16 would lose what is divided before
        weights = kd_weights(self.scale, [1.0], StepCounts(tokens, (signal.chunks.shape[0],)))
        terms = cross_tokenizer_loss(
            ModelOutput(student.flatten(0, 1), head),
            batch.student_labels,
            [signal],
            self.ce_weight,
            weights,
            rows_within(None, head, [teacher_head]),
            self.kernels,
        )
        objective = terms.objective / tokens
        self.terms = replace(terms, objective=objective.detach())
        if self._scale.config.scale == "dynamic" and objective.requires_grad:
            self._scale.update(*self.means)
        return objective

    @property
    def means(self) -> tuple[float, float]:
        """CE in nats a token and KD (for most losses in nats a chunk) of the last call."""
        if self.terms is None:
            return math.nan, math.nan
        ce, kd = (float(x.total) / max(x.count, 1) for x in (self.terms.ce, *self.terms.kd))
        return ce, kd

    @property
    def scale(self) -> float:
        """The factor on KD in the next call."""
        return self._scale.known or 0.0

    def go_on(self, ce: float, kd: float) -> None:
        """Takes up a training that was stopped, as far as the loss remembers it: what the dynamic scale goes by.

        Args:
            ce, kd: ``means`` of the last call before it was stopped.
        """
        self._scale.update(ce, kd)

    def teacher_head(self, states: Tensor, weight: Tensor | None, own: Ownership) -> OutputHead:
        """The teacher's output layer in the order of the loss; a copy is kept as long as the weight stays the same."""
        columns = torch.from_numpy(own.owned).to(states.device)
        if weight is None:
            _check_logits("teacher", states, self.teacher, self.group)
            return FreeLogits(own.shard, columns, torch.from_numpy(own.order).to(states.device), states.device)
        if self._ordered is None or self._ordered[0] is not weight or self._ordered[1] != weight._version:
            rows = weight.detach()
            if group_size(self.group) == 1:
                rows = with_spare_rows(rows, self.teacher)
            held = VocabularyShard.of_local_rows(self.teacher.size, rows.shape[0], self.group)
            head = OutputHead(reorder_rows(rows, held, own), own.shard, columns)
            self._ordered = weight, weight._version, head
        return self._ordered[2]

    def _student_head(self, states: Tensor, weight: Tensor | None) -> OutputHead:
        if weight is None:
            _check_logits("student", states, self.student, self.group)
            return FreeLogits(VocabularyShard(self.student.size, states.shape[-1]), device=states.device)
        return OutputHead(weight, VocabularyShard.of_local_rows(self.student.size, weight.shape[0], self.group))

    def _divergence(
        self, shard: VocabularyShard, device: torch.device
    ) -> tuple[ChunkDivergence, torch.nn.Module | None]:
        if self._made is None or self._made[0] != (shard, device):
            made = make_divergence(self.name, self._pair, shard, self.options, self.kernels).to(device)
            selection = chunk_selection(self.name, self._pair)
            self._made = (shard, device), made, None if selection is None else selection.to(device)
            self._ordered = None
        return self._made[1:]


def _positions(tokens: Tensor, starts: Tensor) -> Tensor:
    """int64 ``[b, T]``, from 0 on where a text begins."""
    return torch.arange(tokens.shape[1], device=tokens.device) - starts.unsqueeze(1)


def with_spare_rows(x: Tensor, vocabulary: Vocabulary, dim: int = 0) -> Tensor:
    """An output layer, or logits, with an entry for every id where those that are missing stand for no text.

    Gemma 3's small models have no row for the id of pictures, the last one of their tokenizer.  What is added is the
    mean of the others, as an import into NeMo 2 adds it, and gets no gradient.  All else is as it was: with too few
    entries for the tokens of texts it is refused where it is used.

    Args:
        x: ``[V, H]``, or logits ``[.., V]`` with ``dim=-1``; of all ids, not of a part.
    """
    have = x.shape[dim]
    missing = vocabulary.token_bytes[have : vocabulary.size]
    if not have or not missing or any(of is not None for of in missing):
        return x
    mean = x.detach().mean(dim, keepdim=True, dtype=torch.promote_types(x.dtype, torch.float32)).to(x.dtype)
    return torch.cat([x, mean.repeat_interleave(len(missing), dim)], dim)


def _whole(states: Tensor, weight: Tensor | None, vocabulary: Vocabulary) -> tuple[Tensor, Tensor | None]:
    """The same, with an entry for each id in the output layer, or in the logits where there is none."""
    if weight is None:
        return with_spare_rows(states, vocabulary, -1), None
    return states, with_spare_rows(weight, vocabulary)


def _check_devices(**tensors: Tensor | None) -> None:
    devices = {name: str(x.device) for name, x in tensors.items() if x is not None}
    if len(set(devices.values())) > 1:
        raise InputError(
            ", ".join(f"{name} on {device}" for name, device in devices.items()),
            "all on one device",
            f"load the teacher where the student is, with device_map={{'': {devices['student']!r}}}",
        )
    if devices["student"].startswith("mps"):
        raise InputError(
            "hidden states or logits on an Apple GPU (mps)",
            "a CPU or a CUDA GPU: the losses sum in float64, which mps does not have",
            "give the loss hidden states and weights on the CPU, .cpu(), through which gradients go back; or train "
            "there: TrainingArguments(use_cpu=True)",
        )


def _check(side: str, states: Tensor, tokens: Tensor, weight: Tensor | None) -> None:
    if states.ndim != 3 or states.shape[:2] != tokens.shape:
        raise InputError(
            f"the {side}'s tensor of shape {list(states.shape)}",
            f"{[*tokens.shape]} positions and a last dimension",
            f"give what the {side} says about batch.{side}_tokens",
        )
    if weight is not None and (weight.ndim != 2 or weight.shape[1] != states.shape[-1]):
        raise InputError(
            f"hidden states of width {states.shape[-1]} and an output weight of shape {list(weight.shape)}",
            "one width",
            f"give the {side}'s last hidden states and the weight of its output layer, or its logits and no weight",
        )


def _check_logits(side: str, logits: Tensor, vocabulary: Vocabulary, group: ProcessGroup | None) -> None:
    if group_size(group) > 1:
        raise InputError(
            f"the {side}'s logits, sharded over a group", "hidden states and this rank's weight", f"give {side}_weight"
        )
    if logits.shape[-1] < vocabulary.size:
        raise InputError(
            f"the {side}'s logits for {logits.shape[-1]} tokens, a tokenizer of {vocabulary.size}",
            "at least one column for each token",
            f"give the tokenizer the {side} was trained with; with hidden states, {side}_weight too",
        )
