"""What a score depends on besides the model: the same settings, the same score."""

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from nemo_xtoken.errors import InputError

__all__ = ["Settings"]

LONGEST = 8192


@dataclass(frozen=True)
class Settings:
    """How tasks are run.

    Attributes:
        shots: examples before every question; the paper's are 3.
        limit: only so many questions of every task (of MMLU and MATH: of every subject), or below 1 such a share.
        chat: wrap prompts in the tokenizer's chat template, for students of SFT.
        dtype: of the weights in memory; "auto" is that of the checkpoint.
        max_length: tokens of a prompt with its answer; longer ones lose their beginning.
        data: a folder of local data (see `nemo_xtoken.evaluate.local_data`), or None for the hub and its cache.
        batch_size: a number, or "auto"; does not change scores but by rounding.
        device: "cuda", "cuda:1", "cpu"; None takes a GPU if there is one.
    """

    shots: int = 3
    limit: float | None = None
    chat: bool = False
    dtype: str = "auto"
    max_length: int = LONGEST
    data: str | None = None
    batch_size: str = "auto"
    device: str | None = None

    def __post_init__(self) -> None:
        checks = (
            (self.shots >= 0, f"shots={self.shots}", "0 or more"),
            (self.limit is None or self.limit > 0, f"limit={self.limit}", "more than 0"),
            (self.max_length > 0, f"max_length={self.max_length}", "more than 0"),
            (
                self.batch_size == "auto" or (self.batch_size.isdecimal() and int(self.batch_size) > 0),
                f"batch_size={self.batch_size!r}",
                "auto, or a whole number above 0",
            ),
            (
                self.dtype in ("auto", "float32", "bfloat16", "float16"),
                f"dtype={self.dtype!r}",
                "auto, float32, bfloat16 or float16",
            ),
        )
        for fine, found, expected in checks:
            if not fine:
                raise InputError(found, expected, "change it")

    def words(self) -> list[str]:
        """The settings that differ from the defaults, as arguments of `xtoken evaluate`; paths are absolute."""
        changed = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}
        if self.data is not None:
            changed["data"] = Path(self.data).resolve()
        return [f"{name}={value:g}" if name == "limit" else f"{name}={value}" for name, value in changed.items()]

    @property
    def decisive(self) -> dict[str, Any]:
        """Those that decide about scores."""
        return {k: v for k, v in asdict(self).items() if k not in ("batch_size", "device", "data")}
