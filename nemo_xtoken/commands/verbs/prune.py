"""``xtoken prune``: a Hugging Face checkpoint with fewer layers."""

from collections.abc import Mapping
from typing import Any

from nemo_xtoken.commands.verb import Option, Verb
from nemo_xtoken.progress import Phase, in_megabytes

__all__ = ["VERB"]


def _run(arguments: Mapping[str, Any]) -> int:
    from nemo_xtoken.weights.pruning import prune

    with Phase("writing", unit="MB", announced=False) as phase:
        done = prune(
            arguments["model"],
            arguments["layers"],
            arguments["out"],
            overwrite=arguments["overwrite"],
            progress=in_megabytes(phase),
        )
    print(
        f"saved in {done.out}: {len(done.layers)} of {done.of} layers ({', '.join(map(str, done.layers))}), "
        f"{done.parameters:,} of {done.old_parameters:,} parameters"
    )
    print("It has to learn to speak again: distil it from the original.")
    return 0


VERB = Verb(
    name="prune",
    summary="leave out layers of a Hugging Face checkpoint",
    description=(
        "Writes a copy of a checkpoint with some of its layers; embeddings, widths and tokenizer stay. A model whose "
        "layers are of several kinds (window and full attention, dense and experts) keeps their order: layers that "
        "would come to a place of another kind are refused, and some that fit are named. Weights keep their type and "
        "are streamed: a model of any size needs little memory. The result loads in transformers. It has lost much of "
        "its fluency until it is distilled from the original."
    ),
    options=(
        Option("model", "the checkpoint: a folder in Hugging Face's format, or a hub name", required=True),
        Option(
            "layers",
            "which to keep: so many, evenly spread (12), these (0,1,5-9), or every second (::2)",
            required=True,
        ),
        Option("out", "the folder to write", required=True, writes="folder"),
        Option("overwrite", "replace a checkpoint at out=", bool, default=False),
    ),
    examples=(
        ("prune model=models/smollm2 layers=12 out=models/smollm2-12", "12 of 30 layers, the first and last included"),
        ("prune model=HuggingFaceTB/SmolLM2-135M layers=::2 out=half", "every second layer, by a hub name"),
    ),
    run=_run,
)
