"""``xtoken transplant``: a Hugging Face checkpoint with another tokenizer."""

from collections.abc import Mapping
from typing import Any

from nemo_xtoken.commands.verb import Option, Verb
from nemo_xtoken.limits import MOST_MULTIPLE
from nemo_xtoken.progress import Phase, in_megabytes

__all__ = ["VERB"]


def _run(arguments: Mapping[str, Any]) -> int:
    from nemo_xtoken.weights.transplant import transplant

    with Phase("writing", unit="MB", announced=False) as phase:
        done = transplant(
            arguments["model"],
            arguments["tokenizer"],
            arguments["out"],
            multiple_of=arguments["multiple_of"],
            overwrite=arguments["overwrite"],
            progress=in_megabytes(phase),
        )
    print(
        f"saved in {done.out}: {done.rows:,} rows (before: {done.old_rows:,}), of which {done.exact:,} are tokens of "
        f"both tokenizers, {done.pieces:,} are made of the old one's pieces, {done.mean:,} are the mean of all"
    )
    print("It has to learn to speak again: distil it from the original.")
    return 0


VERB = Verb(
    name="transplant",
    summary="give a Hugging Face checkpoint another tokenizer",
    description=(
        "Writes a copy of a checkpoint whose embeddings (and output layer, where it is not tied to them) are those of "
        "another tokenizer: a token that both tokenizers have keeps its row, any other gets the mean of the rows of "
        "the pieces that the old tokenizer cuts it into, and one that cannot be cut the mean of all. Weights keep "
        "their type and their files, and are streamed: a model of any size needs little memory. The result loads in "
        "transformers. It has lost much of its fluency until it is distilled from the original."
    ),
    options=(
        Option("model", "the checkpoint: a folder in Hugging Face's format, or a hub name", required=True),
        Option("tokenizer", "the new tokenizer: a folder, a tokenizer.json, or a hub name", required=True),
        Option("out", "the folder to write", required=True, writes="folder"),
        Option("multiple_of", "round the number of rows up to a multiple of this", int, 1, least=1, most=MOST_MULTIPLE),
        Option("overwrite", "replace a checkpoint at out=", bool, default=False),
    ),
    examples=(
        ("transplant model=models/smollm2 tokenizer=models/llama3 out=models/smollm2-llama3", "swap the tokenizer"),
        ("transplant model=HuggingFaceTB/SmolLM2-135M tokenizer=Qwen/Qwen3-0.6B out=swapped", "by hub names"),
    ),
    run=_run,
)
