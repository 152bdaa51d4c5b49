"""From a NeMo 2 checkpoint, a trained student's or any other, to Hugging Face's format."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Optional

import torch
from nemo.collections import llm
from nemo.lightning import io
from torch import Tensor

from nemo_xtoken.errors import InputError
from nemo_xtoken.plugin.nemo2.checkpoints.intact import check_checkpoint
from nemo_xtoken.plugin.nemo2.context import load_from_context
from nemo_xtoken.plugin.nemo2.hf.families import family_of_config
from nemo_xtoken.plugin.nemo2.hf.family import Family, Holder, convert
from nemo_xtoken.plugin.nemo2.hf.session import prepare, trainer_for
from nemo_xtoken.plugin.nemo2.lora.adapter_weights import merge_adapters, peft_config, peft_weights, without_adapters
from nemo_xtoken.plugin.nemo2.lora.student_adapters import adapters_to_write, add_adapters
from nemo_xtoken.plugin.nemo2.tokenizer import XTokenTokenizer
from nemo_xtoken.training.cpu import runtime as cpu_runtime
from nemo_xtoken.weights.checkpoint_names import finished_checkpoints
from nemo_xtoken.weights.configuration import writer_version
from nemo_xtoken.weights.dtypes import FLOATS
from nemo_xtoken.weights.folder import read_json, write_json
from nemo_xtoken.weights.language_model import language_config
from nemo_xtoken.weights.rotary import classic_rotary
from nemo_xtoken.weights.safetensors_file import Entry, write_safetensors
from nemo_xtoken.weights.shards import save_weights
from nemo_xtoken.weights.tokenizer_files import copy_tokenizer, special_ids

__all__ = ["HFExporter", "find_checkpoint", "load_config"]

#: What safetensors files call a type of torch's.
NAMES = {getattr(torch, name): code for code, name in FLOATS.items()}


def find_checkpoint(run: str | Path) -> Path:
    """The checkpoint that ``run`` is, or the newest finished one of the run.

    Raises:
        InputError: there is none.
    """
    run = Path(run).expanduser()
    if (run / "weights").is_dir():
        return run
    found = finished_checkpoints(run)
    if not found:
        raise InputError(
            f"no finished checkpoint in {run}",
            "a run's folder (with `checkpoints`), or a checkpoint's (with `weights` and `context`)",
            "fix the path; `nemo llm distill` says at its end where the run is",
        )
    return found[0]


def load_config(checkpoint: str | Path, trust: bool = False) -> llm.GPTConfig:
    """NeMo's configuration of a checkpoint's model: for a student that starts from an imported one.

    Args:
        trust: code that the checkpoint names may run.
    """
    runs_on_cpu = cpu_runtime.is_enabled()
    prepare()
    try:
        return _context(Path(checkpoint), "model.config", trust)
    finally:
        if not runs_on_cpu:  # a trainer that looks for an accelerator must not find what the runtime shows
            cpu_runtime.disable()


def _context(checkpoint: Path, what: str, trust: bool) -> Any:
    return load_from_context(checkpoint, what, "export with the versions that trained it", trust)


class HFExporter(io.ModelConnector[llm.GPTModel, Any]):
    """NeMo's connector that converts a checkpoint: ``nemo llm export path=CHECKPOINT target=hf``."""

    def apply(
        self,
        output_path: Path,
        dtype: Optional[torch.dtype] = None,
        say: Callable[[str], None] = lambda stage: None,
        trust: bool = False,
        adapter: Optional[str] = None,
    ) -> Path:
        """Converts into ``output_path``; code that the checkpoint brings runs only with ``trust``.

        LoRA adapters are merged, or written by themselves where ``adapter`` names the model that they belong to.
        """
        prepare()
        checkpoint, folder = Path(str(self)), Path(output_path)
        say("comparing checksums")
        check_checkpoint(checkpoint, trust)
        config, tokenizer = (_context(checkpoint, f"model.{part}", trust) for part in ("config", "tokenizer"))
        family = family_of_config(config)
        stored = _stored_dtype(checkpoint)
        lora = adapters_to_write(checkpoint, adapter, trust)
        config.params_dtype, config.bf16, config.fp16 = stored, stored == torch.bfloat16, stored == torch.float16
        folder.mkdir(parents=True, exist_ok=True)
        base, generation = _original(tokenizer, family)
        model = llm.GPTModel(config, tokenizer=tokenizer)
        say(f"building {type(config).__name__}, {config.num_layers} layers")
        with trainer_for(model, ddp="pytorch", setup_optimizers=False) as trainer:
            if lora is not None:
                add_adapters(model, lora, resumed=True)
            say("reading the checkpoint")
            trainer.strategy.setup(trainer)
            trainer.strategy.load_checkpoint(checkpoint)
            if lora is not None and adapter is None:
                say("merging the adapters")
                merge_adapters(model)
            state = {n: t for n, t in model.module.state_dict().items() if isinstance(t, Tensor)}
        say("converting the weights")
        rows = state["embedding.word_embeddings.weight"].shape[0]
        size = int(base.get("vocab_size") or 0)
        hf = _hf_config(family, config, base, size if 0 < size <= rows else min(tokenizer.vocab_size, rows), tokenizer)
        hf.dtype = dtype = dtype or stored
        if lora is not None and adapter is not None:
            own = family.transforms(config, list(without_adapters(state)))
            found = peft_weights(own, state, lambda state: _convert(family, config, state, hf), hf)
            say("writing the adapters")
            entries = {name: _entry(tensor, dtype) for name, tensor in found.items()}
            write_safetensors(folder / "adapter_model.safetensors", entries, {"format": "pt"})
            write_json(folder / "adapter_config.json", peft_config(lora, adapter, list(found)))
            _save_tokenizer(tokenizer, folder)
            return folder
        weights = _convert(family, config, without_adapters(state), hf)
        say("writing safetensors")
        save_weights(folder, {name: _entry(tensor, dtype) for name, tensor in weights.items()})
        hf.save_pretrained(folder)
        written = read_json(folder / "config.json")
        write_json(folder / "config.json", written | {"transformers_version": writer_version(family.model_type)})
        if not generation:
            generation = {key: value for key, value in _special_ids(tokenizer).items() if value is not None}
        write_json(folder / "generation_config.json", generation)
        if not _save_tokenizer(tokenizer, folder):
            say(f"no tokenizer is written: one of type {type(tokenizer).__name__} has no files")
        return folder


def _stored_dtype(checkpoint: Path) -> torch.dtype:
    """The type of the embeddings in a checkpoint, which its context does not know: the trainer's precision decided."""
    from megatron.core import dist_checkpointing

    try:
        tensors = dist_checkpointing.load_tensors_metadata(str(checkpoint / "weights"))
    except Exception as error:  # the loader raises different types for foreign folders
        raise InputError(
            f"no checkpoint that can be read in {checkpoint} ({type(error).__name__}: {error})",
            "a folder with `weights` and `context`, as NeMo 2 saves them",
            "fix the path",
        ) from error
    for name, tensor in tensors.items():
        if name.endswith("embedding.word_embeddings.weight") and not name.startswith("optimizer"):
            if tensor.dtype in NAMES:
                return tensor.dtype
            break
    raise InputError(f"no embeddings in {checkpoint}", "a language model's checkpoint", "fix the path")


def _original(tokenizer: Any, family: Family) -> tuple[dict[str, Any], dict[str, Any]]:
    """config.json and generation_config.json of the model that was imported, where the tokenizer's folder has them."""
    source = Path(getattr(tokenizer, "source", ""))
    if not isinstance(tokenizer, XTokenTokenizer) or not source.is_dir():
        return {}, {}
    config = language_config(read_json(source / "config.json"))
    if config.get("model_type") != family.model_type:
        return {}, {}
    return classic_rotary(config, str(source / "config.json")), read_json(source / "generation_config.json")


def _hf_config(family: Family, config: Any, base: dict[str, Any], vocab_size: int, tokenizer: Any) -> Any:
    """transformers' configuration: what NeMo's says, and of the original what NeMo's does not."""
    from transformers import CONFIG_MAPPING

    said = family.hf_config(config, vocab_size)
    # The sequence length of a training run is not a property of the model.
    longest = "max_position_embeddings"
    said[longest] = max(int(said[longest]), int(base.get(longest) or 0))
    ids = {} if base else _special_ids(tokenizer)
    old = {k: v for k, v in base.items() if k not in ("quantization_config", "auto_map", "torch_dtype", "dtype")}
    return CONFIG_MAPPING[family.model_type].from_dict({**ids, **old, **said})


def _special_ids(tokenizer: Any) -> dict[str, Any]:
    if isinstance(tokenizer, XTokenTokenizer):
        return dict(special_ids(tokenizer.vocabulary))
    return {f"{role}_token_id": getattr(tokenizer, f"{role}_id", None) for role in ("bos", "eos", "pad")}


def _convert(family: Family, config: Any, state: dict[str, Tensor], hf: Any) -> dict[str, Tensor]:
    """The weights under transformers' names, in the order of its model."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        target = AutoModelForCausalLM.from_config(hf, dtype=hf.dtype)
    tied = set(target._tied_weights_keys or ()) if hf.tie_word_embeddings else set()
    names = {name: tensor for name, tensor in target.state_dict().items() if name not in tied}
    transforms = [w.exporting() for w in family.transforms(config, list(state))]
    with torch.no_grad():
        return convert(transforms, Holder(config), state, Holder(hf), names)


def _entry(tensor: Tensor, dtype: Optional[torch.dtype]) -> Entry:
    kind = dtype or tensor.dtype

    def data() -> Iterator[memoryview]:
        flat = tensor.detach().to(kind).contiguous().view(-1)
        yield memoryview(flat.view(torch.uint8).numpy())

    return Entry(NAMES[kind], tuple(tensor.shape), data)


def _save_tokenizer(tokenizer: Any, folder: Path) -> bool:
    if isinstance(tokenizer, XTokenTokenizer):
        copy_tokenizer(tokenizer.source, folder, tokenizer.vocabulary)
    elif hasattr(getattr(tokenizer, "tokenizer", None), "save_pretrained"):
        tokenizer.tokenizer.save_pretrained(folder)
    else:
        return False
    return True
