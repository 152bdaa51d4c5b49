"""Bits per byte of a text: how well a model predicts it, in a unit that does not depend on its tokenizer.

``sum over tokens of -log2 p(token | what comes before) / bytes of the text in UTF-8``.  A token of a large vocabulary
covers more bytes and is harder to guess, so that a loss per token cannot be compared over two tokenizers; this can.

Every document is scored from its start, after the model's BOS (its EOS where it has none, as between documents), and
every token of it counts once, the first included.  What does not fit a window is scored in steps of half a window, so
that every token but the first ones of a document has at least half a window before it.  The end of a document is not
scored.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from nemo_xtoken.errors import InputError
from nemo_xtoken.vocab.loading import load_vocabulary
from nemo_xtoken.vocab.vocabulary import Vocabulary
from nemo_xtoken.weights.configuration import check_numbers, configured, readable_folder, understood
from nemo_xtoken.weights.folder import ModelFolder

__all__ = ["Bits", "bits_of_tokens", "bits_per_byte", "take_bytes", "windows"]

WINDOW = 1024
TILE = 256  # positions whose scores are computed in float32 at a time


@dataclass(frozen=True)
class Bits:
    """How well a model predicts a text.

    Attributes:
        model: its name, as given.
        nats: minus the sum of the logarithms of the tokens' probabilities.
        tokens, size, documents: of the text; ``size`` in bytes.
        window: positions that the model saw at a time.
    """

    model: str
    nats: float
    tokens: int
    size: int
    documents: int
    window: int
    per_byte: float = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "per_byte", self.nats / math.log(2) / self.size)

    def __str__(self) -> str:
        return (
            f"{self.per_byte:.4f} bits per byte: {self.documents:,} documents, {self.size:,} bytes, {self.tokens:,} "
            f"tokens ({self.size / self.tokens:.2f} bytes and {self.nats / self.tokens:.3f} nats a token)"
        )


def bits_per_byte(
    model: str | Path,
    texts: Iterable[str],
    window: int | None = None,
    dtype: str | None = None,
    device: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Bits:
    """Scores ``texts`` with a model in Hugging Face's format.  Memory: the model and ``window`` rows of logits.

    Args:
        model: a folder, or a hub name; its own tokenizer reads the texts.
        texts: the documents; empty ones say nothing.
        window: positions at a time; by default 1024, or as many as the model was made for.
        dtype: ``float32``, ``bfloat16`` or ``float16``; by default that of its weights on a GPU, float32 on a CPU.
        device: as torch names it; by default a GPU where there is one.
        progress: called with (documents done, documents in all).

    Raises:
        InputError: there is no such model or device, a weight is missing, a token has no row of embeddings, the model's
            scores are not numbers, it has neither BOS nor EOS to put before a text, or the texts are empty.
    """
    documents = [text for text in texts if text]
    if not documents:
        raise InputError("no text to measure on", "at least one document that is not empty", "give other text")
    reader = _Reader(model, window, dtype, device)
    nats, tokens = 0.0, 0
    for number, ids in enumerate(reader.vocabulary.encode_batch(documents)):
        if progress is not None:
            progress(number, len(documents))
        nats += float(reader.nats(ids, f"document {number + 1}").sum())
        tokens += len(ids)
    size = sum(len(text.encode()) for text in documents)
    return Bits(reader.name, nats, tokens, size, len(documents), reader.window)


def bits_of_tokens(model: str | Path, tokenizer: Vocabulary, texts: Sequence[str]) -> list[np.ndarray]:
    """For each text float64 ``[T]``: ``-log2 p`` of each of its tokens, given what comes before.

    Args:
        model: as for `bits_per_byte`, which says what it needs, and raises.
        tokenizer: what the tokens are of.

    Raises:
        InputError: the model has another tokenizer.
    """
    reader = _Reader(model, None, None, None)
    if reader.vocabulary.digest != tokenizer.digest:
        raise InputError(
            f"a model whose tokenizer ({reader.vocabulary.name}) is not {tokenizer.name}",
            "one tokenizer",
            "give the model that belongs to the tokenizer, or the model's folder for both",
        )
    return [reader.nats(tokenizer.encode(text), f"text {n + 1}") / math.log(2) for n, text in enumerate(texts)]


class _Reader:
    """A model that scores texts; arguments as `bits_per_byte` has them."""

    def __init__(self, model: str | Path, window: int | None, dtype: str | None, device: str | None) -> None:
        self.device = _device(device)
        folder = ModelFolder(model)
        self.name, self.vocabulary = folder.name, load_vocabulary(str(folder.path))
        self.start = _start(self.vocabulary)
        longest = folder.text_config.get("max_position_embeddings")
        longest = longest if isinstance(longest, int) and longest > 1 else WINDOW
        self.window = min(WINDOW, longest) if window is None else window
        if not 2 <= self.window <= longest:
            raise InputError(f"window={window}", f"2 to {longest}, the positions that {folder.name} has", "change it")
        network = _load(folder, dtype or ("float32" if self.device == "cpu" else "auto"))
        self.network = network.to(self.device).eval()
        self.rows = self.network.get_input_embeddings().weight.shape[0]

    def nats(self, ids: np.ndarray, document: str) -> np.ndarray:
        """float64 ``[T]``: minus the logarithm of the probability of each token.

        Args:
            document: what messages call it.
        """
        import torch

        row = np.concatenate([[self.start], ids]).astype(np.int64)
        if row.max() >= self.rows:
            raise InputError(
                f"{self.name}: the id {int(row.max())} in {document}, and {self.rows} rows of embeddings",
                "a row for each id of the tokenizer",
                "take weights and tokenizer from one model",
            )
        found = [np.zeros(0)]
        with torch.inference_mode():
            for begin, first, stop in windows(len(row), self.window):
                found.append(_nats(self.network, torch.from_numpy(row[begin:stop]).to(self.device), first - begin))
        nats = np.concatenate(found)
        if not math.isfinite(total := float(nats.sum())):
            raise InputError(
                f"{self.name}: the scores of {document} are not numbers (minus their sum is {total})",
                "finite weights, in a type that holds what is computed with them",
                "see whether the weights are damaged; dtype=float32 has the widest range",
            )
        return nats


def windows(length: int, window: int) -> Iterator[tuple[int, int, int]]:
    """``(begin, first, stop)``: with the tokens ``begin..stop`` before it, the model scores those from ``first`` on.

    ``first`` goes through 1, 1 + .., up to ``length``: every token but the first of a row of ``length`` once.
    """
    first, stop = 1, min(window, length)
    while first < stop:
        yield stop - min(window, stop), first, stop
        first, stop = stop, min(stop + window // 2, length)


def take_bytes(texts: Iterable[str], most: int) -> list[str]:
    """The first documents, until they have ``most`` bytes together; at least one where there is any."""
    taken: list[str] = []
    for text in texts:
        if most <= 0:
            break
        taken.append(text)
        most -= len(text.encode())
    return taken


def _device(name: str | None) -> str:
    """The device of that name, or the usual one."""
    import torch

    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name is None:
        return "cuda" if gpus else "cpu"
    try:
        device = torch.device(name)
        backend = None if device.type == "cpu" else getattr(torch, device.type, None)
        there = device.type == "cpu" or (backend is not None and backend.is_available())
        if there and not (device.type == "cuda" and (device.index or 0) >= gpus):
            return name
    except (RuntimeError, AttributeError):  # no name of a device, or of one that computes nothing
        pass
    raise InputError(
        f"device={name!r}",
        "cpu" + (f", or cuda, cuda:0 to cuda:{gpus - 1}" if gpus else "; torch finds no GPU here"),
        "change it, or leave it out",
    )


def _start(vocabulary: Vocabulary) -> int:
    for start in (vocabulary.bos_id, vocabulary.eos_id):
        if start is not None:
            return start
    raise InputError(
        f"{vocabulary.name} has neither BOS nor EOS",
        "a token to put before a text, whose first token is to be scored as well",
        "name one as bos_token in its tokenizer_config.json",
    )


def _load(folder: ModelFolder, dtype: str) -> Any:
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    source = str(folder.path / "config.json")
    if folder.text_config.get("model_type"):
        check_numbers(configured(understood(folder.text_config, source), source), source)
    logging.disable_progress_bar()
    try:
        with readable_folder(folder) as path:
            network, said = AutoModelForCausalLM.from_pretrained(
                path, dtype=dtype, trust_remote_code=False, output_loading_info=True
            )
    except InputError:
        raise
    except Exception as error:  # each architecture fails in its own way
        raise InputError(
            f"{folder.name} does not load in transformers ({type(error).__name__}: {error})",
            "a causal language model of an architecture that this version of transformers has",
            "use another model, or another version of transformers",
        ) from error
    if missing := sorted(said["missing_keys"]):  # transformers gives them random numbers, and a warning
        raise InputError(
            f"{folder.name} has no {', '.join(missing[:4])}" + (f" and {len(missing) - 4} more" * (len(missing) > 4)),
            "all weights that its configuration asks for",
            "copy the checkpoint again, or take configuration and weights from one model",
        )
    return network


def _nats(network: Any, ids: Any, first: int) -> np.ndarray:
    """float64, one for each of the tokens ``ids[first:]``."""
    import torch
    from torch.nn.functional import cross_entropy

    logits = network(ids[None], use_cache=False).logits[0, first - 1 : -1]
    targets = ids[first:]
    parts = [
        cross_entropy(logits[i : i + TILE].float(), targets[i : i + TILE], reduction="none").double()
        for i in range(0, len(targets), TILE)
    ]
    nats: np.ndarray = torch.cat(parts).cpu().numpy()
    return nats
