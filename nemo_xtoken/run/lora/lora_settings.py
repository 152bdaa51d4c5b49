"""LoRA: which layers of a student get low-rank adapters, what else is trained, and what is written at the end."""

import math
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Optional

from nemo_xtoken.errors import InputError, nearest

__all__ = ["ADAPTER", "ATTENTION", "FEED_FORWARD", "MERGED", "TARGETS", "LoraConfig", "unmerged"]

#: The linear layers that may have an adapter, by Megatron's names.
ATTENTION, FEED_FORWARD = ("linear_qkv", "linear_proj"), ("linear_fc1", "linear_fc2")
TARGETS = (*ATTENTION, *FEED_FORWARD)
#: What the student is exported as.
MERGED, ADAPTER = "merged", "adapter"


@dataclass
class LoraConfig:
    """Train low-rank adapters of the student's linear layers, and leave the layers as they are: ``lora.rank=16``.

    Attributes:
        rank: width of the adapters; 0: there are none, and the whole student is trained.
        alpha: what an adapter adds to its layer is multiplied by alpha / rank.
        targets: the layers of attention and feed-forward network that get one, by Megatron's names.
        embeddings: train embeddings and output layer as well, whole; by default where a swap gives the student new
            tokens, whose rows are guesses before.
        export: what the student is written as in Hugging Face's format: merged, a model like any other; or adapter, the
            adapters alone, for PEFT.
    """

    rank: int = 0
    alpha: float = 32.0
    targets: str = "linear_qkv,linear_proj,linear_fc1,linear_fc2"
    embeddings: Optional[bool] = None  # noqa: UP045 (nemo_run's command line reads this)
    export: str = "merged"

    def __post_init__(self) -> None:
        if self.rank < 0:
            raise InputError(f"lora.rank={self.rank}", "a rank from 1 up; 0: no LoRA", "correct lora.rank")
        if not 0 < self.alpha < math.inf:
            raise InputError(f"lora.alpha={self.alpha}", "a number above 0", "correct lora.alpha")
        unknown = [name for name in self.layers if name not in TARGETS]
        if unknown or not self.layers or len(set(self.layers)) < len(self.layers):
            close = nearest(unknown[0], TARGETS) if unknown else ""
            raise InputError(
                f"lora.targets={self.targets}{close}",
                f"some of {', '.join(TARGETS)}, each once",
                "correct lora.targets",
            )
        if self.export not in (MERGED, ADAPTER):
            close = nearest(self.export, (MERGED, ADAPTER))
            raise InputError(f"lora.export={self.export}{close}", f"{MERGED} or {ADAPTER}", "correct lora.export")
        given = [f"lora.{one.name}" for one in fields(self) if getattr(self, one.name) != one.default]
        if given and not self.rank:
            raise InputError(
                f"{', '.join(given)} without lora.rank",
                "the rank of the adapters: without it there are none, and the whole student is trained",
                "set lora.rank, or leave the others out",
            )
        if self.export == ADAPTER and self.embeddings:
            raise InputError(
                f"lora.export={ADAPTER} with lora.embeddings",
                f"adapters alone, or lora.export={MERGED}: rows of a vocabulary do not fit into an adapter",
                f"set lora.export={MERGED}, or leave lora.embeddings out",
            )

    @property
    def on(self) -> bool:
        """Whether the student gets adapters."""
        return self.rank > 0

    @property
    def layers(self) -> list[str]:
        """``targets``, one by one."""
        return [name.strip() for name in self.targets.split(",") if name.strip()]

    def of_swap(self) -> "LoraConfig":
        """What it is where the student is given new tokens.

        Raises:
            InputError: adapters alone are to be written.
        """
        if self.export == ADAPTER:
            raise InputError(
                f"lora.export={ADAPTER} in a swap of tokenizers",
                f"lora.export={MERGED}: the adapters would belong to a transplanted model that nobody else has",
                f"set lora.export={MERGED}",
            )
        return replace(self, embeddings=True) if self.on and self.embeddings is None else self

    def written_for(self, start: str) -> Optional[str]:  # noqa: UP045
        """The model that the adapters belong to, where they are written alone; None: they are merged.

        Args:
            start: what the student starts from, a folder or a hub name.
        """
        if self.export == MERGED:
            return None
        folder = Path(start).expanduser()
        return str(folder.resolve()) if folder.exists() else start

    def shape(self) -> dict[str, Any]:
        """What a run that goes on must have in common with its beginning; empty without adapters."""
        if not self.on:
            return {}
        return {
            "lora.rank": self.rank,
            "lora.alpha": float(self.alpha),
            "lora.targets": ",".join(name for name in TARGETS if name in self.layers),
            "lora.embeddings": bool(self.embeddings),
        }


def unmerged(where: str, path: Any, under_bridge: bool = False) -> InputError:
    """The error about a model that something starts from, or that teaches, and that has adapters: they would be left
    out without a word.

    Args:
        where: what it is called on the command line.
        path: of its checkpoint.
        under_bridge: Megatron-Bridge loads what the export writes as it is.
    """
    then = f"{where}=MODEL" if under_bridge else f"`xtoken import model=MODEL out=FOLDER`; then {where}=FOLDER"
    return InputError(
        f"{where}={path} has LoRA adapters beside its layers",
        "a model whose adapters are merged",
        f"`xtoken export run={path} out=MODEL` merges them; {then}",
    )
