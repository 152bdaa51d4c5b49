"""What a model can do, asked of the Megatron model itself: answers, their calibration, numerals, nats a byte."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from nemo_xtoken.data.batch import Inputs
from nemo_xtoken.vocab.vocabulary import Vocabulary

from .arithmetic import Question
from .statistics import calibration_error

__all__ = ["answers", "forced", "measure", "nats_a_byte"]

ROWS = 64  # sequences at a time
LONGEST_ANSWER = 8  # tokens


def measure(model: Any, questions: Sequence[Question], texts: Sequence[str]) -> dict[str, float]:
    """All measures of a model.

    Args:
        model: a ``DistillationModel`` that has its weights.

    Returns:
        ``accuracy``: share of answers that are right to the letter, by greedy generation; ``accuracy_KIND`` of a kind;
        ``calibration_error`` of their probabilities; ``numerals``, ``right_answer``: see `forced`;
        ``arithmetic_ce``, ``text_ce``: nats a byte of held-out arithmetic and text.
    """
    vocabulary = model.tokenizer.vocabulary
    was_training = model.module.training
    model.module.eval()
    try:
        with torch.no_grad():
            given = answers(model, vocabulary, [q.prompt for q in questions])
            right = [text == q.answer for (text, _), q in zip(given, questions, strict=True)]
            found = forced(model, vocabulary, questions)
            found["accuracy"] = sum(right) / len(right)
            found["calibration_error"] = calibration_error([p for _, p in given], right)
            for kind in dict.fromkeys(q.kind for q in questions):
                of_kind = [good for good, q in zip(right, questions, strict=True) if q.kind == kind]
                found[f"accuracy_{kind}"] = sum(of_kind) / len(of_kind)
            if texts:
                found["text_ce"] = nats_a_byte(model, vocabulary, texts)
    finally:
        model.module.train(was_training)
    return found


def answers(model: Any, vocabulary: Vocabulary, prompts: Sequence[str]) -> list[tuple[str, float]]:
    """What the model says to each prompt up to the line break, and how likely it found that.  Greedy.

    Whole sequences are computed anew for each token: answers are a few tokens long.
    """
    ends = torch.tensor([b is not None and b"\n" in b for b in vocabulary.token_bytes])
    found: list[tuple[str, float]] = []
    order = sorted(range(len(prompts)), key=lambda n: len(prompts[n]))
    for part in _parts(order, ROWS):
        rows = [vocabulary.encode("\n" + prompts[n]).tolist() for n in part]
        said: list[list[int]] = [[] for _ in rows]
        confidence, open_ = [1.0] * len(rows), list(range(len(rows)))
        for _ in range(LONGEST_ANSWER):
            current = [rows[n] + said[n] for n in open_]
            last = torch.tensor([len(ids) - 1 for ids in current])
            best, token = _probabilities(model, current, last).max(-1)
            for n, p, t in zip(open_, best.tolist(), token.tolist(), strict=True):
                confidence[n] *= p
                said[n].append(t)
            open_ = [n for n in open_ if not ends[said[n][-1]]]
            if not open_:
                break
        for ids, p in zip(said, confidence, strict=True):
            text = b"".join(vocabulary.token_bytes[i] or b"\0" for i in ids).decode(errors="replace")
            line, broken, _ = text.partition("\n")
            found.append((line.strip() if broken else text, p))
    back = sorted(range(len(order)), key=order.__getitem__)
    return [found[n] for n in back]


def forced(model: Any, vocabulary: Vocabulary, questions: Sequence[Question]) -> dict[str, float]:
    """What the model thinks of the right answers.

    Returns:
        ``right_answer``: probability of the whole answer and the line break, spelled as the tokenizer spells it;
        ``numerals``: probability that a numeral of several digits begins where one does, by tokens of several digits
        or by one digit and then another, on the answer's own first digit; ``arithmetic_ce``: nats a byte.
    """
    digits = torch.tensor([len(b) if b and b.isdigit() else 0 for b in vocabulary.token_bytes])
    single, several = digits == 1, digits > 1
    right: list[float] = []
    numerals: list[float] = []
    nats, size = 0.0, 0
    for part in _parts(questions, ROWS):
        rows = [vocabulary.encode("\n" + q.line).tolist() for q in part]
        whole = _all_probabilities(model, rows)
        for question, ids, p in zip(part, rows, whole, strict=True):
            first = len(vocabulary.encode(f"\n{question.prompt} "))
            true = p[torch.arange(len(ids) - 1), torch.tensor(ids[1:])].clamp_min(1e-30)
            nats -= float(true.log().sum())
            size += len(question.line.encode())
            right.append(float(true[first - 1 :].prod()))
            if len(question.answer) > 1:
                at = p[first - 1]
                mass = float(at[several].sum())
                if digits[ids[first]] == 1:
                    mass += float(at[single].sum() * p[first][digits > 0].sum())
                numerals.append(mass)
    return {
        "right_answer": sum(right) / len(right),
        "numerals": sum(numerals) / max(len(numerals), 1),
        "arithmetic_ce": nats / size,
    }


def nats_a_byte(model: Any, vocabulary: Vocabulary, texts: Sequence[str]) -> float:
    """Cross-entropy by bytes of texts that begin with a line break, which alone has no predictor.

    Raises:
        ValueError: a tokenizer that puts the line break and what follows into one token.
    """
    nats, size = 0.0, 0
    for part in _parts(sorted(texts, key=len), ROWS // 2):
        rows = [vocabulary.encode(text).tolist() for text in part]
        for ids, p in zip(rows, _all_probabilities(model, rows), strict=True):
            if vocabulary.token_bytes[ids[0]] != b"\n":
                raise ValueError(f"{vocabulary.name} begins a text by {vocabulary.token_bytes[ids[0]]!r}")
            true = p[torch.arange(len(ids) - 1), torch.tensor(ids[1:])]
            nats -= float(true.clamp_min(1e-30).log().sum())
        size += sum(len(text.encode()) - 1 for text in part)
    return nats / size


def _parts(items: Sequence[Any], size: int) -> list[Sequence[Any]]:
    return [items[start : start + size] for start in range(0, len(items), size)]


def _hidden(model: Any, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """``[b, T, H]`` and the output weight ``[V, H]``; padded on the right, where nothing sees it."""
    longest = max(map(len, rows))
    tokens = torch.zeros(len(rows), longest, dtype=torch.int64)
    for row, ids in zip(tokens, rows, strict=True):
        row[: len(ids)] = torch.tensor(ids)
    positions = torch.arange(longest).expand_as(tokens).contiguous()
    output = model.output_of(Inputs(tokens, positions, torch.zeros_like(tokens), torch.arange(len(rows)))).output
    weight = output.head.weight[: model.tokenizer.vocab_size]
    return output.hidden.view(len(rows), longest, -1), weight


def _probabilities(model: Any, rows: Sequence[Sequence[int]], at: Tensor) -> Tensor:
    """``[b, V]``, of the token after position ``at`` of each row."""
    hidden, weight = _hidden(model, rows)
    return torch.softmax(hidden[torch.arange(len(rows)), at] @ weight.T, -1)


def _all_probabilities(model: Any, rows: Sequence[Sequence[int]]) -> list[Tensor]:
    """Of each row ``[its length, V]``."""
    hidden, weight = _hidden(model, rows)
    return [torch.softmax(h[: len(ids)] @ weight.T, -1) for h, ids in zip(hidden, rows, strict=True)]
