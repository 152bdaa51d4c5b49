"""``xtoken bits``: bits per byte of a text, which is comparable between models with different tokenizers."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from nemo_xtoken.commands.verb import Option, Verb
from nemo_xtoken.commands.verbs.import_model import DTYPE
from nemo_xtoken.limits import LONGEST_SEQUENCE, MOST_BYTES
from nemo_xtoken.progress import Phase

__all__ = ["VERB"]


def _run(arguments: Mapping[str, Any]) -> int:
    from nemo_xtoken.data.sources import Reading, check_settings_used, resolve_sources
    from nemo_xtoken.evaluate.bits import bits_per_byte, take_bytes

    reading = Reading(text_key=arguments["text_key"], text_split=arguments["text_split"])
    sources = resolve_sources([arguments["text"]], reading)
    check_settings_used(sources)
    texts = take_bytes((text for source in sources for text in source.texts()), arguments["bytes"])
    with Phase("measuring", len(texts), "documents", announced=False) as phase:
        found = bits_per_byte(
            arguments["model"],
            texts,
            window=arguments["window"],
            dtype=arguments["dtype"],
            device=arguments["device"],
            progress=lambda done, total: phase.at(done),
        )
    print(json.dumps(dataclasses.asdict(found)) if arguments["json"] else found)
    return 0


VERB = Verb(
    name="bits",
    summary="measure a model's bits per byte on a text (loads transformers)",
    description=(
        "Scores a text with a model in Hugging Face's format: minus the base-2 logarithms of its tokens' "
        "probabilities, summed and divided by the bytes of the text. Less is better. A loss per token cannot be "
        "compared over two tokenizers, this can: before and after a swap of tokenizers, student and teacher. Every "
        "document is read from its start, behind the model's BOS, and every byte counts once; a document longer than "
        "the window is read in steps of half a window."
    ),
    options=(
        Option("model", "a folder in Hugging Face's format with its tokenizer, or a hub name", required=True),
        Option("text", "a file, folder, glob or data set that was not trained on", required=True),
        Option("text_key", "the column that holds the text, of data that has columns", default="text"),
        Option("text_split", "documents of a .txt file", default="file", choices=("file", "paragraph", "line")),
        Option(
            "bytes",
            "stop at the end of the document that reaches so many bytes",
            int,
            1_000_000,
            least=1,
            most=MOST_BYTES,
        ),
        Option("window", "positions seen at a time; by default 1024", int, least=2, most=LONGEST_SEQUENCE),
        Option("dtype", "by default that of the weights on a GPU, float32 on a CPU", choices=DTYPE.choices),
        Option("device", "by default cuda where there is a GPU, else cpu"),
        Option("json", "print JSON", bool, False),
    ),
    examples=(
        ("bits model=models/smollm2 text=held_out.jsonl", "the original"),
        ("bits model=swapped text=held_out.jsonl", "and with another tokenizer"),
        ("bits model=student text='texts/*.txt' bytes=100000 json=true", "a part of the text, as JSON"),
    ),
    run=_run,
)  # fmt: skip
