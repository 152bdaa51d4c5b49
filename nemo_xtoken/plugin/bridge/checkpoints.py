"""Checkpoints that Megatron-Bridge loads: Hugging Face's, and its own."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemo_xtoken.errors import InputError

__all__ = ["Checkpoint"]

RUN_CONFIG = "run_config.yaml"
ITERATION = re.compile(r"iter_(\d+)")


@dataclass(frozen=True)
class Checkpoint:
    """Where a model's weights are.

    Attributes:
        source: a folder or hub name; of Bridge's own the folder of the newest iteration.
        bridge: it is one of Bridge's own.
    """

    source: str
    bridge: bool

    @classmethod
    def at(cls, path: str | None, where: str) -> "Checkpoint":
        """What is at ``path``.

        Args:
            where: what the path is called on the command line.

        Raises:
            InputError: there is nothing that Bridge can load.
        """
        expected = "a Hugging Face model (folder or hub name), or the folder of a Megatron-Bridge checkpoint"
        if not path:
            raise InputError(f"{where} is not set", expected, f"set {where}=PATH")
        folder = Path(path)
        if not folder.exists() and not folder.is_absolute() and len(folder.parts) <= 2:
            return cls(path, False)  # a name on the hub
        if (folder / "config.json").is_file():
            return cls(str(folder), False)
        for found in (folder, *_iterations(folder)):
            if (found / RUN_CONFIG).is_file():
                return cls(str(found), True)
        if (folder / "weights").is_dir() and (folder / "context").is_dir():
            raise InputError(
                f"{where}={path} is a NeMo 2 checkpoint, which Megatron-Bridge does not read",
                expected,
                "name the Hugging Face model that it was imported from, or export it where NeMo 2 is installed: "
                "`xtoken export`",
            )
        raise InputError(f"no checkpoint at {where}={path}", expected, "correct the path")

    def provider(self, random_weights: bool = False) -> Any:
        """Bridge's model provider, to be configured; of a Hugging Face model it loads the weights when it is used.

        Args:
            random_weights: of a Hugging Face model take the architecture alone.

        Raises:
            InputError: Bridge does not know the architecture.
        """
        from megatron.bridge import AutoBridge
        from megatron.bridge.training.model_load_save import load_model_config

        if self.bridge:
            return load_model_config(self.source)[0]
        try:
            if random_weights:
                from transformers import AutoConfig

                bridge = AutoBridge.from_hf_config(AutoConfig.from_pretrained(self.source, trust_remote_code=False))
            else:
                bridge = AutoBridge.from_hf_pretrained(self.source, trust_remote_code=False)
        except (ValueError, OSError) as error:
            raise InputError(
                f"{self.source} cannot be loaded by Megatron-Bridge ({error})",
                "a Hugging Face model of an architecture that Bridge supports",
                "see AutoBridge.list_supported_models() for the architectures",
            ) from error
        return bridge.to_megatron_provider(load_weights=not random_weights)

    def tokenizer(self, override: str) -> str:
        """The tokenizer that belongs to it: a folder or hub name.

        Args:
            override: the argument that names another one.

        Raises:
            InputError: Bridge's checkpoint does not name its tokenizer.
        """
        if not self.bridge:
            return self.source
        from megatron.bridge import AutoBridge

        name = AutoBridge.get_hf_model_id_from_checkpoint(self.source)
        if not name:
            raise InputError(
                f"the checkpoint {self.source} does not say which tokenizer it was trained with",
                "the tokenizer's folder or hub name",
                f"set {override}=FOLDER",
            )
        return str(name)

    def root(self, where: str) -> str:
        """The folder of Bridge's checkpoints that holds this one, the newest in it.

        Args:
            where: what the path is called on the command line.

        Raises:
            InputError: the checkpoint is not the newest, and Bridge loads no other.
        """
        folder = Path(self.source)
        newest = _iterations(folder.parent)
        if not newest or newest[0] != folder:
            raise InputError(
                f"{where}={self.source}, beside which there is {newest[0] if newest else 'no iter_ folder'}",
                "the newest checkpoint of a run: Megatron-Bridge starts from no other",
                "copy it, with the file latest_train_state.pt, into a folder of its own",
            )
        return str(folder.parent)


def _iterations(folder: Path) -> list[Path]:
    """The iterations in a folder of Bridge's checkpoints, the newest first."""
    found = [(ITERATION.fullmatch(path.name), path) for path in folder.iterdir()] if folder.is_dir() else []
    numbered = [(int(match[1]), path) for match, path in found if match]
    return [path for _, path in sorted(numbered, reverse=True)]
