"""What a run gives to the source of a teacher: its configuration as this run has it, and how it is loaded."""

import logging
from collections.abc import Callable, Mapping
from typing import Any

import torch

from nemo_xtoken.run.layout import ParallelSizes
from nemo_xtoken.run.spec import ARCHITECTURE
from nemo_xtoken.run.unsupported import TEACHER
from nemo_xtoken.teachers.contract import TeacherHost
from nemo_xtoken.teachers.fingerprint import Fingerprint, architecture_digest, weights_digest
from nemo_xtoken.teachers.output_rows import OutputRows
from nemo_xtoken.teachers.teacher_sources import has_model
from nemo_xtoken.training import inputs
from nemo_xtoken.training.teacher_settings import NamedTeacher, TeacherSettings

__all__ = ["OF_ANOTHER_RUN", "OF_TRAINING", "SHARED_WITH_STUDENT", "set_where_known", "teacher_host"]

logger = logging.getLogger(__name__)

SHARED_WITH_STUDENT = (
    "sequence_parallel",
    "pipeline_dtype",
    "params_dtype",
    "bf16",
    "fp16",
    "autocast_dtype",
    "attention_backend",
)
#: What a checkpoint's configuration may hold of the run that wrote it, and no model of this run is to have.
OF_ANOTHER_RUN = {
    "virtual_pipeline_model_parallel_size": None,
    "num_layers_in_first_pipeline_stage": None,
    "num_layers_in_last_pipeline_stage": None,
    "account_for_embedding_in_pipeline_split": False,
    "account_for_loss_in_pipeline_split": False,
    "hierarchical_context_parallel_sizes": None,
    "fp8": None,
    "fp8_param": False,
    "fp4": None,
}
#: What a frozen model besides has no use for, or cannot have beside a student with its own inputs.
OF_TRAINING = {
    "mtp_num_layers": None,
    "mtp_hybrid_override_pattern": None,
    "mtp_use_repeated_layer": False,
    "enable_cuda_graph": False,
    "external_cuda_graph": False,
    "cuda_graph_impl": "none",
    "tp_comm_overlap": False,
    "overlap_moe_expert_parallel_comm": False,
    "defer_embedding_wgrad_compute": False,
    "recompute_granularity": None,
    "recompute_method": None,
    "recompute_num_layers": None,
}
#: FP8 as a frozen model has it: E4M3 throughout, since there is no gradient; no history of scales, which a checkpoint
#: would have to have.
IN_FP8 = {"fp8": "e4m3", "fp8_recipe": "tensorwise", "fp8_param": False}
#: What a configuration calls the bound on logits.
SOFTCAP = "final_logit_softcapping"


def set_where_known(config: Any, values: Mapping[str, Any]) -> None:
    """Gives a configuration those of the values that its version of Megatron has a name for."""
    for name, value in values.items():
        if hasattr(config, name):
            setattr(config, name, value)


def _give_layout(
    config: Any, settings: TeacherSettings, student: Any, dtype: torch.dtype
) -> tuple[ParallelSizes, ParallelSizes]:
    """Gives a teacher's Megatron configuration the student's precision, and its own layout or the student's.

    Args:
        config: of the teacher; changed.
        student: the student's configuration.
        dtype: of the student's parameters in computation.

    Returns:
        its layout, and the student's as far as such a model has it.
    """
    set_where_known(config, OF_ANOTHER_RUN | OF_TRAINING)
    for name in SHARED_WITH_STUDENT:
        if hasattr(student, name):  # a teacher by itself has the layout and the precision of one alone
            setattr(config, name, getattr(student, name))
    students = ParallelSizes.of(student, experts=bool(config.num_moe_experts))
    sizes = settings.sizes(students)
    config.tensor_model_parallel_size, config.pipeline_model_parallel_size = sizes.tensor, sizes.pipeline
    config.context_parallel_size, config.expert_model_parallel_size = sizes.context, sizes.expert
    config.expert_tensor_parallel_size = sizes.expert_tensor
    if sizes != students:
        config.sequence_parallel = sizes.tensor > 1 and (config.sequence_parallel or sizes.expert > 1)
        config.pipeline_dtype = config.pipeline_dtype or dtype
    return sizes, students


def teacher_host(
    teacher: NamedTeacher,
    config: Any,
    student: Any,
    dtype: torch.dtype,
    load: Callable[[], Any],
    output_rows: Callable[[], OutputRows],
) -> TeacherHost:
    """What a run gives to the source of a teacher.

    Args:
        config: the teacher's Megatron configuration; it gets the student's precision and the teacher's layout.
        student: the student's configuration.
        dtype: of the student's parameters in computation.
        load: makes this rank's part of the model from that configuration, in the process groups that are in force.
        output_rows: the output layer in its checkpoint.

    Raises:
        InputError: see `inputs.prepare_config`.
    """
    if extra := getattr(config, "mtp_num_layers", None):
        logger.warning("the %s predicts %s more tokens by extra layers: they are left out", teacher.label, extra)
    sizes, students = _give_layout(config, teacher.config, student, dtype)
    beside = has_model(teacher.config.source)
    own = {name: getattr(teacher.config, name) for name in TEACHER} if beside else {}
    inputs.prepare_config(config, teacher.label, f"{teacher.where}.config", student=False, own=own)
    if teacher.config.fp8:
        set_where_known(config, IN_FP8)

    def frozen() -> Any:
        module = load().to(device=torch.cuda.current_device(), dtype=dtype)
        return module.requires_grad_(False).eval()

    architecture = {name: getattr(config, name, None) for name in (*ARCHITECTURE, SOFTCAP)}

    def fingerprint() -> Fingerprint:
        return Fingerprint(
            weights_digest(teacher.config.weight_files(teacher.where)),
            architecture_digest(architecture | (IN_FP8 if teacher.config.fp8 else {})),
            teacher.tokenizer.vocabulary.digest,
            int(config.hidden_size),
            str(dtype).removeprefix("torch."),
        )

    return TeacherHost(
        teacher.label,
        teacher.config,
        teacher.tokenizer.vocab_size,
        config,
        sizes,
        students,
        inputs,
        frozen,
        dtype,
        output_rows,
        fingerprint,
    )
