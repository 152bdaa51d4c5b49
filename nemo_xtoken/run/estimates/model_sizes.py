"""The sizes of a decoder, and the parameters and FLOPs that follow from them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["Model", "Part"]


@dataclass(frozen=True)
class Part:
    """Parameters of a group of weights: those of a rank, by what they are cut over.

    Attributes:
        dense: of everything but experts, on a rank.
        experts: of experts, on a rank.
    """

    dense: float
    experts: float = 0.0

    @property
    def total(self) -> float:
        """Both."""
        return self.dense + self.experts


@dataclass(frozen=True)
class Model:
    """Sizes of a decoder; ``active`` of ``experts`` feed-forward blocks work on a token (dense: 1 of 1).

    Attributes:
        name: readable.
        layers, hidden, ffn, heads, groups, head_size: ``ffn`` is an expert's where there are experts.
        vocabulary: rows of the output layer.
        tied: embedding and output layer are one.
        experts, active: feed-forward blocks of a layer; how many of them a token goes through.
        gated: feed-forward blocks of three matrices rather than two.
        qkv_bias, bias: biases of the attention's first layer; of every linear layer.
        qk_norm: norms of queries and keys.
        norms: norms of a layer, each of ``norm_weights`` x ``hidden`` parameters.
        norm_weights: 1, or 2 where norms have a bias.
        sinks: a number per head that attention may fall on.
        dense_layers, dense_ffn: layers without experts in a model with experts, and their width.
        shared_ffn: width of the block that works on every token beside the experts.
        positions: learned positions.
    """

    name: str
    layers: int
    hidden: int
    ffn: int
    heads: int
    groups: int
    head_size: int
    vocabulary: int
    tied: bool = False
    experts: int = 1
    active: int = 1
    gated: bool = True
    qkv_bias: bool = False
    bias: bool = False
    qk_norm: bool = False
    norms: int = 2
    norm_weights: int = 1
    sinks: bool = False
    dense_layers: int = 0
    dense_ffn: int = 0
    shared_ffn: int = 0
    positions: int = 0

    @classmethod
    def from_config(cls, name: str, config: Mapping[str, Any], rows: int) -> "Model":
        """From what NeMo 2 writes of a model's configuration, by Megatron's names.

        Args:
            name: readable.
            config: plain values; what is None or missing has Megatron's default.
            rows: of the output layer.

        Raises:
            KeyError: without layers, hidden size or heads.
        """
        heads, hidden, layers = (int(config[key]) for key in ("num_attention_heads", "hidden_size", "num_layers"))
        ffn = int(config.get("ffn_hidden_size") or 4 * hidden)
        experts = int(config.get("num_moe_experts") or 0)
        kind = str(config.get("_target_", ""))
        gemma3 = "gemma3" in kind.lower()
        post_norms = gemma3 or "gemma2" in kind.lower()
        learned = config.get("position_embedding_type") == "learned_absolute"
        return cls(
            name=name,
            layers=layers,
            hidden=hidden,
            ffn=int(config.get("moe_ffn_hidden_size") or ffn) if experts else ffn,
            heads=heads,
            groups=int(config.get("num_query_groups") or heads),
            head_size=int(config.get("kv_channels") or hidden // heads),
            vocabulary=rows,
            tied=bool(config.get("share_embeddings_and_output_weights", True)),
            experts=experts or 1,
            active=int(config.get("moe_router_topk") or 2) if experts else 1,
            gated=bool(config.get("gated_linear_unit")),
            qkv_bias=bool(config.get("add_qkv_bias")),
            bias=bool(config.get("add_bias_linear", True)),
            qk_norm=gemma3 or bool(config.get("qk_layernorm")),  # its layers have them whatever the setting
            norms=4 if post_norms else 2,
            norm_weights=2 if config.get("normalization", "LayerNorm") == "LayerNorm" else 1,
            sinks=config.get("softmax_type") == "learnable",
            dense_layers=_dense_layers(layers, config.get("moe_layer_freq")) if experts else 0,
            dense_ffn=ffn,
            shared_ffn=int(config.get("moe_shared_expert_intermediate_size") or 0) if experts else 0,
            positions=int(config.get("seq_length") or 0) if learned else 0,
        )

    def _block(self, width: int, tensor: int = 1) -> float:
        """A feed-forward block on one of ``tensor`` ranks."""
        matrices = 3 if self.gated else 2
        bias = (matrices - 1) * width / tensor + self.hidden if self.bias else 0
        return matrices * self.hidden * width / tensor + bias

    def _attention(self, tensor: int = 1) -> float:
        first = self.head_size * (self.heads + 2 * self.groups)
        matrices = self.hidden * (first + self.head_size * self.heads)
        bias = (first / tensor if self.bias or self.qkv_bias else 0) + (self.hidden if self.bias else 0)
        sinks = self.heads / tensor if self.sinks else 0
        return matrices / tensor + bias + sinks + (2 * self.head_size * self.norm_weights if self.qk_norm else 0)

    def layers_part(self, tensor: int = 1, expert: int = 1, expert_tensor: int = 1, stages: int = 1) -> Part:
        """Parameters of a pipeline stage's layers on a rank; norms and routers are whole on every rank.

        Args:
            tensor, expert, expert_tensor, stages: parallel sizes.
        """
        dense = self._attention(tensor) + self.norms * self.norm_weights * self.hidden
        if self.experts == 1:
            return Part(self.layers / stages * (dense + self._block(self.ffn, tensor)))
        mixed = (self.layers - self.dense_layers) / stages
        router = self.experts * (self.hidden + (1 if self.bias else 0))
        shared = self._block(self.shared_ffn, tensor) if self.shared_ffn else 0
        plain = self._block(self.dense_ffn, tensor) * self.dense_layers / stages
        return Part(
            self.layers / stages * dense + mixed * (router + shared) + plain,
            mixed * self.experts / expert * self._block(self.ffn, expert_tensor),
        )

    def stage_part(
        self, first: bool, last: bool, tensor: int = 1, expert: int = 1, expert_tensor: int = 1, stages: int = 1
    ) -> Part:
        """Parameters of a whole pipeline stage on a rank; a tied embedding is on the last stage as well.

        Args:
            first, last: which stage it is; both where there is one alone.
            tensor, expert, expert_tensor, stages: parallel sizes.
        """
        part = self.layers_part(tensor, expert, expert_tensor, stages)
        matrices = first + (last and not (first and self.tied))
        ends = matrices * self.vocabulary / tensor * self.hidden
        ends += self.positions * self.hidden * first + self.norm_weights * self.hidden * last
        return Part(part.dense + ends, part.experts)

    @property
    def parameters(self) -> float:
        """All of them, each once."""
        return self.stage_part(True, True).total

    def worked_on(self) -> float:
        """Parameters of the layers' matrices that one token is multiplied by."""
        one = self.head_size * self.hidden * 2 * (self.heads + self.groups)
        matrices = 3 if self.gated else 2
        width = self.active * self.ffn + self.shared_ffn
        plain = self.dense_layers * (self.dense_ffn - width)
        return self.layers * (one + matrices * self.hidden * width) + matrices * self.hidden * plain

    def forward_flops(self, tokens: float, length: int) -> float:
        """Of the layers, without the output layer; attention over half the sequence on average."""
        attention = 2 * self.layers * self.heads * self.head_size * length
        return tokens * (2 * self.worked_on() + attention)


def _dense_layers(layers: int, frequency: Any) -> int:
    """How many layers have no experts: Megatron's ``moe_layer_freq``, a list of 0 and 1, or one layer in so many."""
    if isinstance(frequency, list | tuple):
        return layers - sum(bool(x) for x in frequency)
    every = int(frequency or 1)
    return layers - -(-layers // every)
