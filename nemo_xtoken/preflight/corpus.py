"""The data: whether it is there and readable, how many tokens it has, how often a run goes through it."""

import dataclasses
import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemo_xtoken.errors import InputError
from nemo_xtoken.preflight.findings import Finding, green, left_out, rounded, yellow
from nemo_xtoken.preflight.plan import Plan
from nemo_xtoken.run.arguments.names import MARKS
from nemo_xtoken.run.settings import resolved
from nemo_xtoken.run.values import PARTS, TEXT, made

if TYPE_CHECKING:
    from nemo_xtoken.data.config import DataConfig
    from nemo_xtoken.data.sources import Source

__all__ = ["data"]

SAMPLE_DOCUMENTS, SAMPLE_CHARACTERS = 64, 300_000
#: What gzip and its like make of text, about.
COMPRESSION = 3.5
#: Repeating data up to four times is nearly as good as new data (Muennighoff et al., arXiv 2305.16264).
EPOCHS = 4
#: Bytes in the cache: for a token of either side; for a chunk.
TOKEN, CHUNK = 4, 16


def data(plan: Plan, figures: dict[str, Any]) -> Iterator[Finding]:
    """Paths and settings by the run's own check, then an estimate from the first documents and the files' sizes."""
    config = _config(plan)
    config.check()
    sources = _sources(config)
    sizes = [_text_bytes(source) for source in sources]
    some = ", ".join(Path(source.name).name for source in sources[:3]) + ", .." * (len(sources) > 3)
    found = f"{len(sources)} source{'s' * (len(sources) > 1)}: {some}"
    texts = next(filter(None, (_first(source) for source in sources if source.kind != "hub")), [])
    if not texts and all(source.kind != "hub" for source in sources):
        raise InputError(f"no document with any text in {some}", "documents", "see the files and text_key")
    rate = _measure(plan, texts)
    known = [size for size in sizes if size is not None]
    if rate is None or len(known) < len(sizes):
        yield green("data", found)
        yield left_out("data", "how many tokens it has: " + ("its size" if rate else "a tokenizer") + " is not known")
        return
    tokens = sum(known) * rate
    figures |= {"data_bytes": sum(known), "data_tokens": round(tokens), "tokens_per_byte": rate}
    figures["cache_bytes"] = round(tokens * _cached_bytes(plan))
    found += f"; about {rounded(tokens)} student tokens, {1 / rate:.1f} bytes each"
    if not (wanted := figures.get("tokens")):
        yield green("data", found)
        return
    epochs = wanted / tokens
    figures["epochs"] = epochs
    found += f", {rounded(epochs, 2)} epoch{'s' * (epochs >= 1.95)} of it"
    if epochs > EPOCHS:
        yield yellow(
            "data", found, f"up to {EPOCHS}: more often it is learnt by heart", "more data, or lower trainer.max_steps"
        )
    else:
        yield green("data", found)


def _config(plan: Plan) -> "DataConfig":
    given = {name: resolved(value) for name, value in plan.settings.part(TEXT).items() if name not in MARKS}
    config: DataConfig = made(PARTS[TEXT], given, TEXT)
    return config


def _sources(config: "DataConfig") -> list["Source"]:
    from nemo_xtoken.data.sources import resolve_sources

    several = getattr(config, "sources", None)
    if not several:
        return resolve_sources(config.paths, config.reading)
    found = []
    for source in several.values():
        own = {k: v for k, v in vars(source).items() if v is not None and k in config.__dict__}
        part = dataclasses.replace(config, sources={}, **own)
        found += resolve_sources(part.paths, part.reading)
    return found


def _first(source: "Source") -> list[str]:
    texts, characters = [], 0
    for text in itertools.islice(source.texts(), SAMPLE_DOCUMENTS):
        texts.append(text)
        characters += len(text)
        if characters >= SAMPLE_CHARACTERS:
            break
    return texts


def _measure(plan: Plan, texts: list[str]) -> float | None:
    """Student tokens for a byte of text; teacher's tokens and chunks for one of those go into the plan."""
    student = plan.student.vocabulary
    if student is None or not texts:
        return None
    from nemo_xtoken.alignment.aligner import Aligner

    texts = [text[:SAMPLE_CHARACTERS] for text in texts]
    ids = student.encode_batch(texts)
    total = max(1, sum(map(len, ids)))
    ratios = []
    for vocabulary in {s.vocabulary.digest: s.vocabulary for s in plan.teachers if s.vocabulary is not None}.values():
        theirs = vocabulary.encode_batch(texts)
        aligner = Aligner(student, vocabulary)
        chunks = sum(aligner.align(a, b).shape[0] for a, b in zip(ids, theirs, strict=True))
        ratios.append((sum(map(len, theirs)) / total, chunks / total))
    if ratios:
        plan.tokens, plan.chunks = (sum(column) / len(ratios) for column in zip(*ratios, strict=True))
    return total / max(1, sum(len(text.encode()) for text in texts))


def _cached_bytes(plan: Plan) -> float:
    """In the cache for a student token, over all pairs of tokenizers."""
    pairs = len({s.vocabulary.digest for s in plan.teachers if s.vocabulary is not None}) or 1
    return pairs * (TOKEN * (1 + plan.tokens) + CHUNK * plan.chunks)


def _text_bytes(source: "Source") -> float | None:
    """Of the text in a source, about; None where only the hub knows."""
    match source.kind:
        case "hub":
            return None
        case "parquet":
            return float(_parquet_bytes(source))
        case "indexed":
            return _indexed_bytes(source)
        case "saved":
            return float(sum(file.stat().st_size for file in Path(source.name).rglob("*.arrow")))
        case _:
            size = os.path.getsize(source.name)
            return size * (COMPRESSION if source.name.lower().endswith((".gz", ".bz2", ".zst", ".xz")) else 1.0)


def _indexed_bytes(source: "Source") -> float:
    """By the number of ids, and the text that the first of them stand for."""
    from nemo_xtoken.data.indexed import IndexedFile, read_indexed

    file, ids, size = IndexedFile(source.name), 0, 0
    texts = read_indexed(source.name, source.reading.indexed_tokenizer or "")
    for number, text in enumerate(itertools.islice(texts, SAMPLE_DOCUMENTS)):
        ids, size = ids + len(file.document(number)), size + len(text.encode())
        if size >= SAMPLE_CHARACTERS:
            break
    return file.tokens * size / max(ids, 1)


def _parquet_bytes(source: "Source") -> int:
    """Uncompressed, of the column that is read, from the file's footer."""
    import pyarrow.parquet as pq

    try:
        footer = pq.ParquetFile(source.name).metadata
    except Exception as error:  # each version of the format has its own
        raise InputError(f"{source.name} cannot be read ({error})", "a whole Parquet file", "copy it again") from error
    key = source.reading.messages_key if source.reading.format == "chat" else source.reading.text_key
    total = 0
    for group in range(footer.num_row_groups):
        columns = footer.row_group(group)
        for number in range(columns.num_columns):
            column = columns.column(number)
            if f"{column.path_in_schema}.".startswith(f"{key}."):
                total += column.total_uncompressed_size
    return total
