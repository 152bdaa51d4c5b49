"""Which beginnings of held-out texts a student continues, and how far."""

from dataclasses import dataclass

from nemo_xtoken.errors import InputError

__all__ = ["SampleConfig"]


@dataclass
class SampleConfig:
    """What the student says, beside every evaluation on held-out text: ``samples.count=5``.

    It continues the beginnings of held-out texts, conversations up to the answer, each time by the most probable token.

    Attributes:
        count: of texts that it continues; 0: none.
        prompt_tokens: of a text that it is shown, at most.
        new_tokens: that the student adds, at most.
    """

    count: int = 3
    prompt_tokens: int = 32
    new_tokens: int = 32

    def __post_init__(self) -> None:
        for name, least in (("count", 0), ("prompt_tokens", 1), ("new_tokens", 1)):
            if not least <= getattr(self, name) <= 4096:
                raise InputError(
                    f"samples.{name}={getattr(self, name)}", f"a number from {least} to 4096", f"correct samples.{name}"
                )
