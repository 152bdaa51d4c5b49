"""Memory of a rank in training, by part, on paper.

Parameters are counted exactly (``tests/stack/plugin/test_sizes.py``); optimizer and gradient buffers follow Megatron's
distributed optimizer.  Activations are those of fused attention, as in section 4 of Korthikanti et al. (arXiv
2205.05198), for gated feed-forward blocks, grouped queries and whatever recomputation is set.  What the allocator
wastes, CUDA's own and NCCL's buffers are in none of it.
"""

from dataclasses import dataclass

from nemo_xtoken.run.estimates.loss_time import BF16, FP32, MIB, MULTI_ENTRIES, TILE_MIB_ON_GPU
from nemo_xtoken.run.estimates.model_sizes import Model, Part
from nemo_xtoken.run.layout import ParallelSizes, owned_rows

__all__ = ["Precision", "Recompute", "TeacherSizes", "Training", "memory_of", "worst_stage"]

ROW_OF_W = 60  # bytes of an entry of W outside the exact rows: ids, weights, sparse forms of it and its transpose


@dataclass(frozen=True)
class Precision:
    """Bytes for a parameter of the student.

    Attributes:
        weights: of a weight, and of an activation.
        gradients: of its gradient.
        states: of the optimizer's states, the float32 copy of half-precision weights among them.
        distributed: whether the states are spread over the data-parallel ranks.
    """

    weights: int = BF16
    gradients: int = FP32
    states: int = 3 * FP32
    distributed: bool = True


@dataclass(frozen=True)
class Recompute:
    """Megatron's activation checkpointing: ``granularity`` None or "selective" keeps what fused attention keeps.

    Attributes:
        granularity: None, "selective" or "full".
        method: "uniform" (every run of ``layers`` is made again) or "block" (so many of a stage are).
        layers: see ``method``.
    """

    granularity: str | None = None
    method: str | None = None
    layers: int = 1


@dataclass(frozen=True)
class TeacherSizes:
    """A teacher for the estimate of memory.

    Attributes:
        model: its sizes.
        sizes: its layout.
        own_layout: whether that is other than the student's, so that its output layer is there twice.
        positions: of a sample on its side, padding included.
        shares: the name of a teacher whose model this one shares, or "".
        ids: V_T; None: as many as its output layer has rows.
        elsewhere: no process of the run has a part of it but for its output layer.
        loss: its name.
        ahead: whether it reads the next micro-batch while the student goes back through one.
    """

    model: Model
    sizes: ParallelSizes
    own_layout: bool
    positions: int
    shares: str = ""
    ids: int | None = None
    elsewhere: bool = False
    loss: str = "prefix_kl"
    ahead: bool = False

    def columns(self, tensor: int) -> int:
        """Of its output layer in the order of W, on one of so many ranks."""
        return owned_rows(self.ids or self.model.vocabulary, tensor)


@dataclass(frozen=True)
class Training:
    """A run as memory sees it.

    Attributes:
        student, sizes, teachers: models and layouts.
        processes: all of them.
        micro_batch, global_batch: samples.
        length: T_S.
        precision, recompute, sequence_parallel, tile_mib: settings; None is the default of a GPU.
        trained: share of the student's parameters that are trained, and have gradients and optimizer states.
    """

    student: Model
    sizes: ParallelSizes
    teachers: tuple[TeacherSizes, ...]
    processes: int
    micro_batch: int
    global_batch: int
    length: int
    precision: Precision = Precision()
    recompute: Recompute = Recompute()
    sequence_parallel: bool = False
    tile_mib: int | None = None
    trained: float = 1.0

    @property
    def data_parallel(self) -> int:
        """Copies of the student."""
        return max(1, self.processes // self.sizes.ranks)

    @property
    def micro_batches(self) -> float:
        """Of a step, on each data-parallel rank."""
        return self.global_batch / (self.micro_batch * self.data_parallel)

    @property
    def tokens(self) -> float:
        """Student positions of a micro-batch on a rank."""
        return self.micro_batch * self.length / self.sizes.context


def worst_stage(run: Training) -> dict[str, float]:
    """`memory_of` the pipeline stage that needs most: the first or the last."""
    stages = {0, run.sizes.pipeline - 1}
    return max((memory_of(run, stage) for stage in sorted(stages)), key=lambda parts: sum(parts.values()))


def memory_of(run: Training, stage: int) -> dict[str, float]:
    """Bytes on a rank of a pipeline stage, by part.

    Args:
        stage: from 0.
    """
    sizes, precision = run.sizes, run.precision
    last = stage == sizes.pipeline - 1
    part = run.student.stage_part(stage == 0, last, sizes.tensor, sizes.expert, sizes.expert_tensor, sizes.pipeline)
    parts = {
        "student: weights": part.total * precision.weights,
        "student: gradients": run.trained * part.total * precision.gradients,
        "student: optimizer": run.trained * _states(run, part),
        "activations": activations(run, stage),
        "teachers: weights": sum(_teacher_weights(run, t, last) for t in run.teachers if not t.shares),
    }
    if last:
        teachers = [t for t in run.teachers if not t.shares]
        hidden = sum(_kept(run, t) * run.micro_batch * t.positions / sizes.context * t.model.hidden for t in teachers)
        rows = run.student.vocabulary / sizes.tensor
        columns = [t.columns(sizes.tensor) for t in run.teachers]
        parts |= {
            "teachers: hidden states": hidden * precision.weights,
            "loss: tile": float(MIB * (TILE_MIB_ON_GPU if run.tile_mib is None else run.tile_mib)),
            # the hidden states' in float32, and a placeholder of the weight's, which is added to Megatron's
            "loss: gradients": run.student.hidden * (FP32 * run.tokens + precision.weights * rows),
            "loss: W": sum(MULTI_ENTRIES / sizes.tensor * ROW_OF_W + FP32 * (rows + c) for c in columns),
        }
    return parts


def _kept(run: Training, teacher: TeacherSizes) -> float:
    """Micro-batches whose hidden states are there at a time: all of a step where stages wait for each other."""
    at_once = teacher.elsewhere or (run.sizes.pipeline == 1 and not teacher.own_layout)
    return 1.0 + teacher.ahead if at_once else run.micro_batches


def _states(run: Training, part: Part) -> float:
    """Of the optimizer; those of experts are spread over the ranks that have the same experts."""
    if not run.precision.distributed:
        return part.total * run.precision.states
    same_experts = max(1, run.processes // run.sizes.expert_ranks)
    spread = part.dense / (run.data_parallel * run.sizes.context) + part.experts / same_experts
    return spread * run.precision.states


def _teacher_weights(run: Training, teacher: TeacherSizes, last: bool) -> float:
    """Frozen weights; an untied output layer is released once it exists in the order of W, except one row."""
    model, own = teacher.model, teacher.sizes
    if teacher.elsewhere:
        return last * teacher.columns(run.sizes.tensor) * model.hidden * run.precision.weights
    weights = 0.0
    for i in {0, own.pipeline - 1} if teacher.own_layout else {own.pipeline - 1 if last else 0}:
        ends = i == own.pipeline - 1
        part = model.stage_part(i == 0, ends, own.tensor, own.expert, own.expert_tensor, own.pipeline)
        gone = 0.0 if model.tied or not ends else model.vocabulary / own.tensor - teacher.own_layout
        weights = max(weights, part.total - gone * model.hidden)
    return (weights + last * teacher.columns(run.sizes.tensor) * model.hidden) * run.precision.weights


def activations(run: Training, stage: int) -> float:
    """Of the micro-batches that are on their way through the stage, first ones most."""
    model, sizes = run.student, run.sizes
    on_the_way = min(run.micro_batches, sizes.pipeline - stage)
    layers = model.layers / sizes.pipeline
    layer, kept = _layer(run), run.tokens * model.hidden * run.precision.weights
    kept /= sizes.tensor if run.sequence_parallel else 1
    recompute = run.recompute
    if recompute.granularity != "full":
        return on_the_way * layers * layer
    if recompute.method == "block":
        again = min(layers, recompute.layers)
        return on_the_way * (again * kept + (layers - again) * layer) + (layer if again else 0)
    return on_the_way * layers / recompute.layers * kept + recompute.layers * layer


def _layer(run: Training) -> float:
    """Of one layer and micro-batch, with fused attention and a fused gate.

    Kept for the way back: what goes into either norm, and out of it into a linear layer; queries, keys, values and what
    comes out of the attention; what comes out of the first linear layer of the feed-forward block, and the gate's.
    """
    model, tensor = run.student, run.sizes.tensor
    whole = 4 * model.hidden / (tensor if run.sequence_parallel else 1)
    heads = model.head_size * (2 * model.heads + 2 * model.groups) / tensor
    width = model.active * model.ffn / run.sizes.expert_tensor if model.experts > 1 else model.ffn / tensor
    width += model.shared_ffn / tensor
    block = (3 if model.gated else 2) * width
    if model.experts > 1:  # tokens sent to experts and back
        block += 2 * model.active * model.hidden / (tensor if run.sequence_parallel else 1)
    return run.tokens * (whole + heads + block) * run.precision.weights
