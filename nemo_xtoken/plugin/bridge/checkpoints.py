"""Checkpoints that Megatron-Bridge loads: Hugging Face's, and its own."""

import os
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemo_xtoken.checksums import find_damage, write_checksums
from nemo_xtoken.errors import InputError
from nemo_xtoken.hub import hub_folder
from nemo_xtoken.plugin.safe_weights import check_weights, find_truncated
from nemo_xtoken.run.lora.lora_settings import unmerged
from nemo_xtoken.teachers.output_rows import MegatronRows, OutputRows, SafetensorsRows
from nemo_xtoken.training.lora.adapted import has_adapters
from nemo_xtoken.weights.checkpoint_names import RUN_CONFIG, bridge_checkpoints
from nemo_xtoken.weights.folder import read_config
from nemo_xtoken.weights.language_model import language_config
from nemo_xtoken.weights.rotary import classic_rotary

__all__ = ["Checkpoint", "has_checkpoint", "write_own_checksums"]

#: In the folder of a run's checkpoints: which one is the latest, for Bridge and for Megatron-LM.
LATEST_STATE, LATEST_STEP = "latest_train_state.pt", "latest_checkpointed_iteration.txt"
STATE = "train_state.pt"


def has_checkpoint(folder: Path) -> bool:
    """Whether Bridge has finished a checkpoint in a run's folder of them: it then writes which is the latest."""
    return any(folder.glob("latest*"))


def write_own_checksums(folder: Path, rank: int) -> None:
    """Of the files of a checkpoint that this rank wrote; of all others on the first.  To be called when it is whole."""
    own = sorted(folder.glob(f"__{rank}_*"))
    if own:
        write_checksums(folder, own, f"rank-{rank}")
    if rank == 0:
        write_checksums(folder, [p for p in sorted(folder.iterdir()) if p.is_file() and p.name[:2] != "__"], "common")


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
        for found in (folder,) if (folder / RUN_CONFIG).is_file() else bridge_checkpoints(folder).values():
            return cls(str(found), True)
        if (folder / "weights").is_dir() and (folder / "context").is_dir():
            raise InputError(
                f"{where}={path} is a NeMo 2 checkpoint, which Megatron-Bridge does not read",
                expected,
                "name the Hugging Face model that it was imported from, or export it where NeMo 2 is installed: "
                "`xtoken export`",
            )
        raise InputError(f"no checkpoint at {where}={path}", expected, "correct the path")

    def check(self) -> None:
        """Whether one of Bridge's own can be loaded as it was written, and without running code that it brings.

        The first rank reads all of it, to compare the checksums; the others look at its pickles alone.

        Raises:
            InputError: it cannot; of a damaged one of a run the message names the next older one that is intact.
        """
        folder = Path(self.source)
        if not self.bridge:
            return
        if int(os.environ.get("RANK", "0")) == 0 and (damage := _damage(folder)) is not None:
            raise InputError(f"{folder} is damaged: {damage}", "a checkpoint as it was written", _without(folder))
        try:
            check_weights(folder)
        except InputError as error:
            fix = "copy the checkpoint again; under Megatron-Bridge nothing that a checkpoint brings is run"
            raise InputError(error.found, error.expected, fix) from error

    def check_whole(self, where: str) -> None:
        """Whether it is a model by itself.  Reads its header.

        Args:
            where: what it is called on the command line.

        Raises:
            InputError: it has LoRA adapters beside its layers, which would be left out without a word.
        """
        if self.bridge and has_adapters(self.tensors()):
            raise unmerged(where, self.source, under_bridge=True)

    def provider(self, random_weights: bool = False) -> Any:
        """Bridge's model provider, to be configured; of a Hugging Face model it loads the weights when it is used.

        Args:
            random_weights: of a Hugging Face model take the architecture alone.

        Raises:
            InputError: Bridge does not know the architecture, or would make another model of it; or the installed
                transformers would read another one.
        """
        from megatron.bridge.training.model_load_save import load_model_config

        if self.bridge:
            return load_model_config(self.source)[0]
        from nemo_xtoken.plugin.bridge.hugging_face import provider_of

        _check_rotary(self.source)
        return provider_of(self.source, random_weights)

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

    def files(self) -> list[Path]:
        """Of its weights.

        Raises:
            InputError: of a hub name, they are not to be had.
        """
        if self.bridge:
            return [path for path in Path(self.source).rglob("*") if path.is_file()]
        folder = Path(self.source)
        if not folder.is_dir():
            folder = hub_folder(self.source, ["*.safetensors"], "weights", "a Hugging Face model")
        return sorted(folder.glob("*.safetensors"))

    def tensors(self) -> list[str]:
        """The names of what is in a checkpoint of Bridge's own; reads its header."""
        from megatron.core import dist_checkpointing

        return list(dist_checkpointing.load_tensors_metadata(self.source))

    def output_rows(self, tied: bool) -> OutputRows:
        """Its output layer.

        Args:
            tied: it is the embedding.
        """
        return MegatronRows(Path(self.source), tied) if self.bridge else SafetensorsRows(self.files(), tied)

    def root(self, where: str) -> str:
        """The folder of Bridge's checkpoints that holds this one, the newest in it.

        Args:
            where: what the path is called on the command line.

        Raises:
            InputError: the checkpoint is not the newest, and Bridge loads no other.
        """
        folder = Path(self.source)
        newest = list(bridge_checkpoints(folder.parent).values())
        if not newest or newest[0] != folder:
            raise InputError(
                f"{where}={self.source}, beside which there is {newest[0] if newest else 'no iter_ folder'}",
                "the newest checkpoint of a run: Megatron-Bridge starts from no other",
                "copy it, with the file latest_train_state.pt, into a folder of its own",
            )
        return str(folder.parent)


def _check_rotary(source: str) -> None:
    """Bridge reads configurations through the installed transformers, and version 4 does not know ``rope_parameters``.

    Raises:
        InputError: the rotary embedding would be another, without a word.
    """
    import transformers

    if int(transformers.__version__.partition(".")[0]) >= 5:
        return
    config, file = read_config(source)
    model = language_config(config)
    if classic_rotary(model, str(file)) != model:
        raise InputError(
            f"{file} is written by transformers 5, and transformers {transformers.__version__} is installed, which "
            "would take another rotary embedding",
            "rope_theta and rope_scaling, which every version reads, or transformers 5",
            "use an image with transformers 5; or save the model once more: `xtoken import` and `xtoken export` where "
            "NeMo 2 is installed write a configuration that both read",
        )


def _damage(folder: Path) -> str | None:
    return find_damage(folder) or (find_truncated(folder) or "").removeprefix("weights/") or None


def _without(folder: Path) -> str:
    """How a run goes on without a damaged checkpoint: Bridge takes the one that two files beside it name."""
    again = "copy or make it again"
    older = [path for path in bridge_checkpoints(folder.parent).values() if path.name < folder.name]
    intact = next((path for path in older if _damage(path) is None), None)
    if intact is None or not (folder.parent / LATEST_STATE).is_file():
        return again
    aside, place = folder.parent.parent / "damaged", folder.parent
    steps = (("mkdir", "-p", aside), ("mv", folder, aside), ("cp", intact / STATE, place / LATEST_STATE))
    words = " && ".join(shlex.join(map(str, step)) for step in steps)
    step = f"echo {int(intact.name.rpartition('_')[2])} > {shlex.quote(str(place / LATEST_STEP))}"
    return f"{again}; or let the run go on from {intact}, which is intact: {words} && {step}"
