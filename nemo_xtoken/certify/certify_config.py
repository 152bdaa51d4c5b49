"""The settings of a certificate, and the text that it looks at when none is given."""

from dataclasses import dataclass

from nemo_xtoken.errors import InputError

__all__ = ["DEFAULT_TEXT", "CertifyConfig"]

#: Numerals, dates and prices, words long and short, code, and scripts that some tokenizers cut finer than others.
DEFAULT_TEXT = """It was 201 BC, and 37 elephants had crossed the Alps; 2026 - 201 = 1825.
The invoice of 12/03/1998 came to $4,750.60 (plus 19% VAT): see page 128, line 7.
Distillation misrepresents photosynthesis; nevertheless, counterrevolutionaries understood.
def area(width, height):
    return width * height  # 0x7F, 3.14159
这个模型的词表不同,但是我们可以使用人工智能。中华人民共和国的经济发展。今天天气很好。
Der Fluß fließt schnell; zespół nieruchomości; l'été dernier. Привет, как дела? Δεν ξέρω.
今日は天気がいいですね。 한국어 문장입니다. مرحبا بالعالم 🙂
"""


@dataclass(frozen=True)
class CertifyConfig:
    """How the agreeing pair is made and how far a descent goes.

    Attributes:
        probability: of the right token, at the start; the rest goes to others.
        chunks: chunks of each kind that are taken from the text, at most.
        near: others that begin as the right one does, and as many of its class, that share 13/14 of the rest.
        floor: tokens of a side, spread evenly over its vocabulary, that share the remaining 1/14.
        steps: of gradient descent.
        rate: its step size, on the sum over a chunk's positions.  A plain KL is stable below 4 by free logits.
    """

    probability: float = 0.986
    chunks: int = 4
    near: int = 12
    floor: int = 64
    steps: int = 200
    rate: float = 2.0

    def __post_init__(self) -> None:
        wrong = [
            f"{name}={getattr(self, name)} ({rule})"
            for name, good, rule in (
                ("probability", 0 < self.probability < 1, "between 0 and 1"),
                ("chunks", self.chunks >= 1, "at least 1"),
                ("near", self.near >= 1, "at least 1"),
                ("floor", self.floor >= 1, "at least 1"),
                ("steps", 1 <= self.steps <= 10**6, "1 to 1,000,000"),
                ("rate", 0 < self.rate < float("inf"), "above 0, and finite"),
            )
            if not good
        ]
        if wrong:
            raise InputError(f"a certificate with {', '.join(wrong)}", "values in those ranges", "change them")
