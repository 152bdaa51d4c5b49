"""``xtoken export``: a trained student, or another checkpoint of its framework, for transformers."""

from collections.abc import Mapping
from typing import Any

from nemo_xtoken.commands.verb import Option, Verb
from nemo_xtoken.commands.verbs.import_model import DTYPE, OVERWRITE, TRUST, converted

__all__ = ["VERB"]


def _run(arguments: Mapping[str, Any]) -> int:
    print(f"saved in {converted('export_model', **arguments)}")
    return 0


VERB = Verb(
    name="export",
    summary="write a trained student for transformers (loads NeMo, or Megatron-Bridge for its runs)",
    description=(
        "Writes the newest checkpoint of a run, or the checkpoint named, in Hugging Face's format: safetensors, "
        "config.json, generation_config.json and the tokenizer's files. transformers loads it and computes the logits "
        "of the trained model. Rows that were added to the vocabulary for the layout are left out. One process, no "
        "GPU, as much memory as the model has weights. The checkpoint is compared with its checksums first. "
        "LoRA adapters are merged into the layers; with adapter= they "
        "are written by themselves."
    ),
    options=(
        Option("run", "a run's folder, or a checkpoint's (`weights` and `context`, or `iter_*`)", required=True),
        Option("out", "the folder to write", required=True, writes="folder"),
        DTYPE,
        Option(
            "adapter", "of a student trained with LoRA write the adapters alone, for PEFT: the model they belong to"
        ),
        OVERWRITE,
        TRUST,
    ),
    examples=(
        ("export run=runs/xtoken_tiny out=student", "the newest checkpoint of a run"),
        ("export run=runs/mine/checkpoints/step_100 out=student dtype=bfloat16", "one checkpoint, in bfloat16"),
        ("export run=runs/mine out=adapter adapter=meta-llama/Llama-3.2-1B", "the LoRA adapters of a run, for PEFT"),
    ),
    run=_run,
)
