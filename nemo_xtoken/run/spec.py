"""A run, read once: its models, layout, batches and steps as plain data, from any configuration."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from nemo_xtoken.errors import InputError
from nemo_xtoken.run.estimates.model_sizes import Model
from nemo_xtoken.run.layout import ParallelSizes, padded_rows
from nemo_xtoken.run.lora.lora_settings import LoraConfig
from nemo_xtoken.run.unsupported import CONFIG, Case

if TYPE_CHECKING:
    from nemo_xtoken.vocab import Vocabulary

__all__ = ["ARCHITECTURE", "BRIDGE_ROWS_FIX", "START", "ModelSpec", "RunSpec", "differences", "plain_config"]

#: What the checkpoint that the student starts from is called on the command line.
START = "resume.restore_config.path"
#: What of a configuration makes the same weights another model, or other weights.
ARCHITECTURE = (
    "num_layers", "hidden_size", "ffn_hidden_size", "num_attention_heads", "num_query_groups", "kv_channels",
    "share_embeddings_and_output_weights", "position_embedding_type", "rotary_base", "rotary_percent", "scale_factor",
    "seq_len_interpolation_factor", "normalization", "layernorm_epsilon", "qk_layernorm", "add_bias_linear",
    "add_qkv_bias", "gated_linear_unit", "window_size", "num_moe_experts", "moe_router_topk", "moe_ffn_hidden_size",
)  # fmt: skip
#: What to do where rows of an output layer do not divide, under Megatron-Bridge.
BRIDGE_ROWS_FIX = (
    "change tensor_model_parallel_size of trainer.strategy or of the teacher: Megatron-Bridge loads a model's rows as "
    "they are"
)
_ROWS_FIX = "import the model again with `xtoken import`, which rounds up, or change the layout"


@dataclass(frozen=True)
class ModelSpec:
    """One model of a run.

    Attributes:
        label: what messages call it.
        where: what its settings are called on the command line.
        sizes: its layout.
        length, length_name: positions of a sample, and what they are called.
        config: its configuration by Megatron's names; empty where it is not known.
        config_from: where it came from, for error messages.
        given: what of the configuration the run sets itself.
        path: its checkpoint; None where none is set.
        problem: what is wrong with the checkpoint.
        tokenizer, tokenizer_name: folder, file or hub name, None where it is not known; and what that is called.
        ids: V of its tokenizer; None until that is loaded.
        rows_name: what decides the number of rows of its output layer, for error messages.
        vocabulary: once loaded.
        own: of a teacher, its settings that `unsupported.TEACHER` names.
    """

    label: str
    where: str
    sizes: ParallelSizes
    length: int
    length_name: str
    config: Mapping[str, Any] = field(default_factory=dict)
    config_from: str = "the run's settings"
    given: Mapping[str, Any] = field(default_factory=dict)
    path: str | None = None
    problem: InputError | None = None
    tokenizer: str | None = None
    tokenizer_name: str = ""
    ids: int | None = None
    rows_name: str = ""
    vocabulary: "Vocabulary | None" = None
    own: Mapping[str, Any] = field(default_factory=dict)

    @property
    def known(self) -> bool:
        """Whether its architecture is."""
        return all(self.config.get(name) for name in ("num_layers", "hidden_size", "num_attention_heads"))

    @property
    def rows(self) -> int | None:
        """Of its output layer; None where they follow from a tokenizer that is not known."""
        if self.config.get("vocab_size"):
            return int(self.config["vocab_size"])
        if self.ids is None:
            return None
        return padded_rows(self.ids, self.config.get("make_vocab_size_divisible_by"), self.sizes.tensor)

    @property
    def model(self) -> Model | None:
        """Its sizes; None where they are not known."""
        rows = self.rows
        return Model.from_config(self.label, self.config, rows) if self.known and rows is not None else None


@dataclass(frozen=True)
class RunSpec:
    """A run.

    Attributes:
        student, teachers: the models; without a teacher it trains on cross-entropy alone.
        processes: one for each GPU; None: not known here, as for a job that is yet to be submitted.
        micro_batch, global_batch: samples of a data-parallel rank at a time, and of a step.
        max_steps: optimizer steps.
        sequence_parallel: whether activations are cut over the tensor-parallel ranks.
        virtual: size of the virtual pipeline.
        rows_fix: what to do where rows of an output layer do not divide.
        trainer: what `unsupported.TRAINER` asks of the trainer.
        engine: version of the Transformer Engine that attention runs in; None: it runs without.
        lora: the adapters of the student; None: it has none.
        starts: whether the student starts from a model.
    """

    student: ModelSpec
    teachers: tuple[ModelSpec, ...]
    processes: int | None
    micro_batch: int
    global_batch: int
    max_steps: int
    sequence_parallel: bool = False
    virtual: int | None = None
    rows_fix: str = _ROWS_FIX
    trainer: Mapping[str, Any] = field(default_factory=dict)
    engine: tuple[int, ...] | None = None
    lora: LoraConfig | None = None
    starts: bool = True

    @property
    def sides(self) -> tuple[ModelSpec, ...]:
        """All models."""
        return self.student, *self.teachers

    @property
    def data_parallel(self) -> int:
        """Copies of the student; 0 where not even one fits, or where the processes are not known."""
        return (self.processes or 0) // self.student.sizes.ranks

    def case(self, side: ModelSpec) -> Case:
        """One of its models, as `unsupported.refused` looks at it."""
        student = side is self.student
        return Case(side.config, self.trainer if student else {}, side.sizes.context, self.engine, student, side.own)


def plain_config(config: Any) -> dict[str, Any]:
    """What the checks ask of a framework's configuration object."""
    names = {*ARCHITECTURE, "vocab_size", "make_vocab_size_divisible_by", "seq_length", *CONFIG}
    return {"_target_": type(config).__name__, **{name: getattr(config, name, None) for name in names}}


def differences(own: Mapping[str, Any], theirs: Mapping[str, Any], path: str) -> InputError | None:
    """What is wrong where a student starts from a checkpoint of another architecture; None where it does not.

    Args:
        own, theirs: configurations by Megatron's names; what only one of them has is not compared.
        path: of the checkpoint.
    """
    found = {
        name: (own[name], theirs[name])
        for name in ARCHITECTURE
        if name in own and name in theirs and own[name] != theirs[name]
    }
    if not found:
        return None
    listed = ", ".join(f"{name} {mine} where it has {its}" for name, (mine, its) in found.items())
    return InputError(
        f"the student is to start from {path}, and has another architecture: {listed}",
        "the architecture of the checkpoint",
        f"fix {START}, or set {' '.join(f'model.config.{name}={its}' for name, (_, its) in found.items())}",
    )
