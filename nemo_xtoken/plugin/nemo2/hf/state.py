"""The weights of a Hugging Face checkpoint, read one by one when they are asked for."""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from nemo_xtoken.errors import InputError
from nemo_xtoken.weights.dtypes import READABLE, widest
from nemo_xtoken.weights.folder import ModelFolder
from nemo_xtoken.weights.language_model import language_tensors

__all__ = ["HFState"]

TYPES = {code: getattr(torch, name) for code, name in READABLE.items()}
PACKED = ("_blocks", "_scales")  # parts of what is stored in MXFP4


class HFState(Mapping[str, Tensor]):
    """A state dict on the disk: ``model.embed_tokens.weight``, ``model.layers.0...``, whatever the files call them.

    Experts in MXFP4 (gpt-oss as published) are given as numbers, in the form in which transformers has them.

    Args:
        folder: the checkpoint.
        dtype: what every tensor is converted to; by default the type that holds all weights as they are.

    Attributes:
        mixed: what to tell the user of weights in several types; empty where they have one, or ``dtype`` is given.

    Raises:
        InputError: a quantised checkpoint of another kind, or one without embeddings.
    """

    def __init__(self, folder: ModelFolder, dtype: torch.dtype | None = None) -> None:
        said = folder.config.get("quantization_config") or {}
        quantised = said.get("quant_method") if isinstance(said, Mapping) else said
        if quantised not in (None, "mxfp4"):
            raise InputError(
                f"{folder.name} is quantised ({quantised})",
                "weights in float32, bfloat16 or float16 (of gpt-oss also MXFP4)",
                "take the checkpoint that was not quantised",
            )
        self.folder = folder
        self._names = language_tensors(folder.where)
        embeddings = self._names.get("model.embed_tokens.weight")
        if embeddings is None:
            raise InputError(
                f"{folder.name} has no model.embed_tokens.weight",
                "a causal language model in Hugging Face's format",
                "name the folder of such a model",
            )
        for own, name in self._names.items():
            stored = folder.tensor(name)[0]
            bare = own.removesuffix("_blocks").removesuffix("_scales")
            packed = own != bare and all(bare + part in self._names for part in PACKED)
            if stored not in TYPES and not packed:
                raise InputError(
                    f"{name} of type {stored} in {folder.name}", ", ".join(TYPES), "take or make a checkpoint in these"
                )
        shape = folder.tensor(embeddings)[1]
        if len(shape) != 2:
            raise InputError(
                f"{embeddings} of shape {list(shape)} in {folder.name}", "rows and columns", "copy the checkpoint again"
            )
        kinds = Counter(folder.tensor(name)[0] for name in self._names.values() if folder.tensor(name)[0] in TYPES)
        self.dtype, self.vocab_size = dtype or TYPES[widest(kinds) or "F32"], shape[0]
        told = ", ".join(f"{count} weights in {READABLE[code]}" for code, count in kinds.most_common())
        self.mixed = f"{told}: all are written as {self.dtype}".replace("torch.", "") if len(kinds) > 1 else ""

    def __getitem__(self, name: str) -> Tensor:
        if (blocks := self._names.get(f"{name}_blocks")) is not None:
            from transformers.integrations.mxfp4 import convert_moe_packed_tensors

            scales = self._read(self._names[f"{name}_scales"])
            return convert_moe_packed_tensors(self._read(blocks), scales, dtype=self.dtype).cpu()
        return self._read(self._names[name]).to(self.dtype)

    def __iter__(self) -> Iterator[str]:
        return (n.removesuffix("_blocks") for n in self._names if not n.endswith("_scales"))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def shape(self, name: str) -> tuple[int, ...] | None:
        """Of a tensor as `__getitem__` gives it; None of one that is packed."""
        return self.folder.tensor(self._names[name])[1] if name in self._names else None

    def _read(self, name: str) -> Tensor:
        with safe_open(self.folder.files[self.folder.where[name]].path, framework="pt") as f:
            tensor: Any = f.get_tensor(name)
        return tensor
