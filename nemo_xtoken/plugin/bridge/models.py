"""Models under Megatron-Bridge: the student's provider made ready, a teacher loaded."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from nemo_xtoken.errors import InputError
from nemo_xtoken.plugin.bridge.bridge_config import Strategy, TeacherConfig
from nemo_xtoken.plugin.bridge.checkpoints import Checkpoint
from nemo_xtoken.plugin.bridge.older_versions import check_experts
from nemo_xtoken.run.layout import ParallelSizes
from nemo_xtoken.teachers.contract import TeacherHost
from nemo_xtoken.training.alone.teacher_world import TeacherPlan, precision_of, teacher_world
from nemo_xtoken.training.hosting.teacher_host import OF_ANOTHER_RUN, set_where_known, teacher_host
from nemo_xtoken.training.inputs import prepare_config, uses_packed_attention, vary_lengths
from nemo_xtoken.training.teacher_settings import THE_TEACHER, NamedTeacher

__all__ = ["BF16", "FP32", "host_teacher", "hosted_teacher", "prepare_student"]

BF16, FP32 = "bf16-mixed", "32"


def prepare_student(provider: Any, strategy: Strategy, precision: str, length: int, micro_batch_size: int) -> None:
    """Configures a provider for training by these losses.

    Args:
        provider: Bridge's; changed.
        strategy: its layout.
        length: T_S.

    Raises:
        InputError: a precision that there is not, or experts that would be loaded wrongly.
    """
    if precision not in (BF16, FP32):
        raise InputError(
            f"trainer.plugins.precision={precision}", f"{BF16} or {FP32}", "choose one; the first is the default"
        )
    set_where_known(provider, OF_ANOTHER_RUN)
    sizes = ParallelSizes.of(strategy, experts=bool(provider.num_moe_experts))
    check_experts(provider, sizes.expert)
    provider.tensor_model_parallel_size, provider.pipeline_model_parallel_size = sizes.tensor, sizes.pipeline
    provider.context_parallel_size, provider.expert_model_parallel_size = sizes.context, sizes.expert
    provider.expert_tensor_parallel_size = sizes.expert_tensor
    provider.virtual_pipeline_model_parallel_size = None
    provider.sequence_parallel = strategy.sequence_parallel and sizes.tensor > 1  # Megatron refuses it alone
    half = precision == BF16
    provider.bf16, provider.fp16 = half, False
    provider.params_dtype = provider.pipeline_dtype = torch.bfloat16 if half else torch.float32
    provider.seq_length = length
    provider.calculate_per_token_loss = True  # Megatron divides once, by the tokens of all ranks and micro-batches
    if uses_packed_attention() and sizes.pipeline > 1 and micro_batch_size > 1:
        # One sequence of all samples, where Bridge's schedule expects [T, b]: stages tell each other the shape.
        vary_lengths(provider, "model.config")
    prepare_config(provider)


def host_teacher(teacher: NamedTeacher, student: Any) -> TeacherHost:
    """What a run of Bridge gives to the source of a teacher; its model is loaded when the source asks for it.

    Args:
        student: the student's configuration.

    Raises:
        InputError: no checkpoint, one that is damaged or brings code, or an architecture that Bridge does not know.
    """
    from megatron.core.utils import unwrap_model

    checkpoint = Checkpoint.at(teacher.config.path, f"{teacher.where}.path")
    checkpoint.check()
    checkpoint.check_whole(f"{teacher.where}.path")
    provider = checkpoint.provider()

    def load() -> torch.nn.Module:
        if checkpoint.bridge:
            from megatron.bridge.training.model_load_save import build_and_load_model

            chunks = build_and_load_model(checkpoint.source, provider, skip_temp_dist_context=True)
        else:
            check_experts(provider, provider.expert_model_parallel_size)
            provider.finalize()
            chunks = provider.provide_distributed_model(wrap_with_ddp=False, mixed_precision_wrapper=None)
        (module,) = unwrap_model(chunks)
        return module

    tied = bool(provider.share_embeddings_and_output_weights)
    return teacher_host(
        teacher,
        provider,
        student,
        torch.bfloat16 if student.bf16 else torch.float32,
        load,
        lambda: checkpoint.output_rows(tied),
    )


@contextmanager
def hosted_teacher(plan: TeacherPlan) -> Iterator[TeacherHost]:
    """What the source ``colocated`` needs to load a teacher in processes of its own, as ``xtoken cache`` and ``xtoken
    serve`` do; its process groups are gone afterwards.

    Raises:
        InputError: no checkpoint, or processes that are no whole number of copies.
    """
    config = TeacherConfig(**plan.settings())
    named = NamedTeacher(THE_TEACHER, config, config.load_tokenizer(plan.where), config.loss)
    with teacher_world(plan.sizes):
        yield host_teacher(named, precision_of(plan))
