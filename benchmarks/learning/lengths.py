"""How large the study is: the arithmetic, the models and how long they train, at full length and for a quick look."""

from dataclasses import dataclass

__all__ = ["FULL", "LENGTHS", "QUICK", "SMOKE", "Length", "Shape"]


@dataclass(frozen=True)
class Shape:
    """A Llama's size."""

    num_layers: int
    hidden_size: int
    ffn_hidden_size: int
    num_attention_heads: int


@dataclass(frozen=True)
class Length:
    """Everything that makes one study another.

    Attributes:
        largest, second: the operands of sums and differences are below these.
        factor, factor_of: products are ``a * b`` with a from 2 to ``factor`` and b from 2 to below ``factor_of``.
        pages: documents of arithmetic to train on.
        passages: documents of text to train on; 0: all there are.
        teacher: of the teachers whose tokenizer is not the student's.
        student: of the students, and of the weak teacher that has their tokenizer.
        digits_steps, matching_steps, weak_steps: of the teachers' training; digit by digit is learned more slowly.
        start_steps: what all students have been trained for, on text alone, when the arms part.
        steps: of an arm.
        batch, student_batch: samples of a step: of several documents each, and of an arm, of one document.
        student_length: positions of a sample on the student's side.
        teacher_length: on the digit-splitting teacher's.
        warmup: steps until the learning rate is at its peak; of an arm a quarter of it.
        questions, texts: measured at the end.
        watched: questions of the course, which is measured ``looks`` times.
        seeds: of the order of an arm's samples.
        core: the arms of this length; empty: all.
    """

    name: str
    largest: int
    second: int
    factor: int
    factor_of: int
    pages: int
    passages: int
    teacher: Shape
    student: Shape
    digits_steps: int
    matching_steps: int
    weak_steps: int
    start_steps: int
    steps: int
    batch: int
    student_batch: int
    student_length: int
    teacher_length: int
    warmup: int
    questions: int
    texts: int
    watched: int
    looks: int
    seeds: int = 3
    teacher_lr: float = 5e-3
    lr: float = 2e-3
    core: tuple[str, ...] = ()


CORE = (
    "none",
    "ce",
    "digits/uld",
    "digits/gold",
    "digits/h_kl",
    "digits/p_kl",
    "digits/prefix_kl",
    "matching/gold",
    "matching/h_kl",
    "matching/p_kl",
    "matching/prefix_kl",
    "own/same_tokenizer",
    "two/prefix_kl",
)

FULL = Length(
    name="full", largest=30, second=10, factor=4, factor_of=15, pages=12000, passages=500,
    teacher=Shape(3, 128, 320, 4), student=Shape(2, 96, 256, 4),
    digits_steps=4000, matching_steps=1500, weak_steps=2000, start_steps=1200, steps=200, batch=16, student_batch=16,
    student_length=96, teacher_length=160, warmup=60, questions=300, texts=60, watched=100, looks=5,
)  # fmt: skip
QUICK = Length(
    name="quick", largest=30, second=10, factor=4, factor_of=15, pages=4000, passages=250,
    teacher=Shape(2, 96, 256, 4), student=Shape(2, 96, 256, 4),
    digits_steps=1000, matching_steps=1000, weak_steps=800, start_steps=400, steps=40, batch=8, student_batch=12,
    student_length=96, teacher_length=160, warmup=40, questions=100, texts=24, watched=40, looks=4, core=CORE,
)  # fmt: skip
#: Nothing is learned in it: to see that everything runs.
SMOKE = Length(
    name="smoke", largest=20, second=20, factor=2, factor_of=12, pages=40, passages=10,
    teacher=Shape(1, 32, 64, 2), student=Shape(1, 32, 64, 2),
    digits_steps=2, matching_steps=2, weak_steps=2, start_steps=2, steps=2, batch=2, student_batch=2,
    student_length=64, teacher_length=112, warmup=1, questions=6, texts=2, watched=4, looks=2, seeds=2,
)  # fmt: skip
LENGTHS = {length.name: length for length in (FULL, QUICK, SMOKE)}
