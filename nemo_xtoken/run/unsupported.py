"""Settings of Megatron and NeMo that cannot be had with these losses: one table, for both adapters and preflight.

The output layer runs on one detached position, and the loss uses its weight after the model's forward pass; documents
are packed into one sequence with their lengths.  What assumes otherwise is refused here by name, before any model is
built.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from nemo_xtoken.errors import InputError

__all__ = [
    "AHEAD",
    "CONFIG",
    "CONNECTIONS",
    "OF_A_RUN",
    "REFUSALS",
    "TEACHER",
    "TRAINER",
    "UNKNOWN",
    "Case",
    "Refusal",
    "refused",
]

#: The version of a Transformer Engine that there will be and cannot be looked at from here.
UNKNOWN = (0,)


@dataclass(frozen=True)
class Case:
    """One model of a run.

    Attributes:
        config: by Megatron's names, as far as known.
        trainer: what the trainer says, by the names of `TRAINER`; empty for a teacher.
        context: context-parallel size.
        engine: version of the Transformer Engine that attention runs in; None: it runs without.
        student: whether it is trained.
        teacher: a frozen teacher's own settings, by the names of `TEACHER`.
    """

    config: Mapping[str, Any]
    trainer: Mapping[str, Any]
    context: int
    engine: tuple[int, ...] | None
    student: bool
    teacher: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Refusal:
    """One setting that is refused.

    Attributes:
        setting: its name in a model's configuration, or its whole name on the command line.
        why: the reason, and what works instead.
        fix: what to do; ``{}`` is the name of the setting on the command line.
        when: a condition besides that the setting is on.
        versions: whether the condition depends on the version of Transformer Engine.
        of_teacher: whether it is one of a frozen teacher's own settings, and not in its model's configuration.
    """

    setting: str
    why: str
    fix: str
    when: Callable[[Case], bool] = lambda case: case.student
    versions: bool = False
    of_teacher: bool = False

    @property
    def of_trainer(self) -> bool:
        """Whether it is set in the trainer, and not in a model's configuration."""
        return "." in self.setting

    def value(self, case: Case) -> Any:
        """What the setting is; None where it is not set."""
        place = case.trainer if self.of_trainer else case.teacher if self.of_teacher else case.config
        return place.get(self.setting)

    def holds(self, case: Case) -> bool:
        """Whether the setting is on, and refused in this case."""
        return _on(self.value(case)) and self.when(case)


_OFF = (None, False, 0, "", "none", "None", "no", "vanilla")


def _on(value: Any) -> bool:
    """Whether a setting asks for something; lists and mappings do where they are not empty."""
    if isinstance(value, (list, tuple, dict)):
        return bool(value)
    return value not in _OFF


def _with_context(case: Case) -> bool:
    return case.student and case.context > 1


def _windows(case: Case) -> bool:
    if case.engine is None or case.context == 1:
        return False
    return case.engine < (2, 10) or case.config.get("cp_comm_type") != "a2a"


def _sinks(case: Case) -> bool:
    return case.engine is not None and case.engine < (2, 12)


_GRAPHS = (
    "no CUDA graphs: packed documents differ in number and length from micro-batch to micro-batch, and a graph is "
    "recorded for one"
)
_FSDP = "DDP: the loss uses the output layer's weight after the model's forward pass, when FSDP has let go of it"
_FP8 = (
    "bf16: FP8 needs multiples of 8 tokens (MXFP8: of 32) a rank, which documents cut for context parallelism are not"
)
_WHOLE = "{}=null, or context_parallel_size=1"

REFUSALS = (
    Refusal(
        "defer_embedding_wgrad_compute",
        "the output layer's gradient taken at once: this setting waits for a backward pass of the layer, which the "
        "fused loss replaces",
        "set {}=false (MegatronCommOverlapCallback has the argument too)",
    ),
    Refusal(
        "mtp_num_layers",
        "a student without multi-token prediction: its extra heads have losses of their own, with labels that this "
        "forward pass does not get",
        "set {}=null, under Megatron-Bridge num_nextn_predict_layers=0 (Qwen3.5: mtp_num_hidden_layers=0) in the "
        "model's config.json; a teacher's extra heads are left out by themselves",
    ),
    Refusal("enable_cuda_graph", _GRAPHS, "set {}=false"),
    Refusal("external_cuda_graph", _GRAPHS, "set {}=false"),
    Refusal("cuda_graph_impl", _GRAPHS, "set {}=none"),
    Refusal(
        "overlap_moe_expert_parallel_comm",
        "the usual schedule: this one takes the model apart and passes by the place where hidden states are taken",
        "set {}=false",
    ),
    Refusal(
        "tp_comm_overlap",
        "sequences of one length: its buffers have one size, and documents cut for context parallelism vary",
        "set {}=false, or context_parallel_size=1",
        _with_context,
    ),
    Refusal("fp8", _FP8, _WHOLE, _with_context),
    Refusal("fp4", _FP8, _WHOLE, _with_context),
    Refusal("trainer.plugins.fp8", _FP8, _WHOLE, _with_context),
    Refusal(
        "window_size",
        "attention over the whole sequence, or Transformer Engine 2.10 and cp_comm_type=a2a: sliding windows over "
        "packed documents cannot be cut for context parallelism before",
        "set context_parallel_size=1 for this model",
        _windows,
        versions=True,
    ),
    Refusal(
        "softmax_type",
        "Transformer Engine 2.12 or newer: before, no attention with a learned sink takes packed documents",
        "use an image with Transformer Engine 2.12, or another model",
        _sinks,
        versions=True,
    ),
    Refusal(
        "fp8",
        "Transformer Engine on a GPU: no other layers compute in FP8",
        "set {}=false, or use an image of NVIDIA's",
        lambda case: case.engine is None,
        of_teacher=True,
    ),
    Refusal("fp8", _FP8, _WHOLE, lambda case: case.context > 1, of_teacher=True),
    Refusal("trainer.strategy.fsdp", _FSDP, "leave {} out"),
    Refusal("trainer.strategy.ddp.use_megatron_fsdp", _FSDP, "set {}=false"),
    Refusal("trainer.strategy.ddp.use_custom_fsdp", _FSDP, "set {}=false"),
)

#: What the table asks of a trainer.
TRAINER = tuple(r.setting for r in REFUSALS if r.of_trainer)
#: Of a model's configuration, what belongs to the run that it was made for and not to the model.
OF_A_RUN = tuple(r.setting for r in REFUSALS if not (r.of_trainer or r.of_teacher or r.versions))
#: A frozen teacher's own setting that its layout is checked against, see ``layout.check_ahead``.
AHEAD = "ahead"
#: With "1" it overlaps nothing.
CONNECTIONS = "CUDA_DEVICE_MAX_CONNECTIONS"
#: What the checks ask of a frozen teacher's own settings.
TEACHER = (*dict.fromkeys(r.setting for r in REFUSALS if r.of_teacher), AHEAD)
#: What the table asks of a model's configuration.
CONFIG = (*(r.setting for r in REFUSALS if not (r.of_trainer or r.of_teacher)), "cp_comm_type")


def refused(label: str, config_name: str, case: Case) -> Iterator[tuple[Refusal, InputError]]:
    """All that is refused of one model.

    Args:
        label: what messages call it.
        config_name: what its configuration is called on the command line.
    """
    layout = f" with a context-parallel size of {case.context}" if case.context > 1 else ""
    version = "of an unknown version" if case.engine == UNKNOWN else ".".join(map(str, case.engine or ()))
    for refusal in REFUSALS:
        if refusal.holds(case):
            place = config_name.removesuffix(".config") if refusal.of_teacher else config_name
            name = refusal.setting if refusal.of_trainer else f"{place}.{refusal.setting}"
            engine = f" in Transformer Engine {version}" if refusal.versions else ""
            found = f"{name}={refusal.value(case)} ({label}){layout}{engine}"
            yield refusal, InputError(found, refusal.why, refusal.fix.format(name))
