"""Learned W in a run: its logits among the student's parameters, what is checked of it, and the W file at the end."""

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from nemo_xtoken.errors import InputError
from nemo_xtoken.files import atomic_path, digest_of
from nemo_xtoken.losses.registry import LOSSES, loss_named
from nemo_xtoken.parallel.learned_entries import LearnedProjection
from nemo_xtoken.projection.compare import compare, describe_difference
from nemo_xtoken.projection.matrix import ProjectionMatrix
from nemo_xtoken.projection.rows import readable
from nemo_xtoken.run.records import LEARNED
from nemo_xtoken.training.lessons import Lesson
from nemo_xtoken.training.teacher_settings import THE_TEACHER, NamedTeacher
from nemo_xtoken.vocab.vocabulary import Vocabulary

__all__ = [
    "ATTRIBUTE",
    "LearnedProjections",
    "check_learned_again",
    "check_rates",
    "check_same_learning",
    "is_logits",
    "learned_teachers",
    "learning_state",
    "with_learned",
    "write_learned",
]

#: The attribute of the student's module that has them; in the names of the parameters, also in checkpoints.
ATTRIBUTE = "learned_projections"
#: Most rows in the file that says which moved.
MOST = 100


class LearnedProjections(torch.nn.ModuleDict):
    """The learned W of a run's teachers, on the last pipeline stage a submodule of the student's Megatron module.

    That is what puts the logits into Megatron's gradient buffers, optimizers and checkpoints.  They are no part of the
    student: a checkpoint with them loads into a plain model, one without them into a student that has them, whose rows
    then start at W.

    Gradient clipping: W's gradient is left out of the global norm (Megatron counts no gradient of a parameter that is
    marked as shared), so that it does not shorten the student's steps.  Megatron multiplies all gradients by one
    coefficient, and so W's as well when the student's norm is above ``clip_grad``, of which Adam's steps notice little.

    Args:
        by_teacher: of the teachers that have one, by name.
        resumed: the checkpoint that is to be loaded holds them.
    """

    def __init__(self, by_teacher: Mapping[str, LearnedProjection], resumed: bool) -> None:
        from megatron.core.tensor_parallel.layers import set_tensor_model_parallel_attributes

        super().__init__({f"of_{name}": projection for name, projection in by_teacher.items()})
        self.in_checkpoints = resumed
        logits: Any
        for logits in self.parameters():
            set_tensor_model_parallel_attributes(logits, is_parallel=True, dim=0, stride=1)
            logits.shared = True

    def of(self, teacher: str) -> LearnedProjection:
        """A teacher's."""
        found: Any = self[f"of_{teacher}"]
        return found

    def sharded_state_dict(
        self, prefix: str = "", sharded_offsets: tuple[tuple[int, int, int], ...] = (), metadata: Any = None
    ) -> dict[str, Any]:
        """The logits for Megatron's checkpoints, sharded as an output layer is: another number of ranks can load them.

        Empty as long as a student starts from another run's checkpoint, which may have none.
        """
        from megatron.core.utils import make_tp_sharded_tensor_for_checkpoint

        return {
            f"{prefix}{name}": make_tp_sharded_tensor_for_checkpoint(
                logits, f"{prefix}{name}", prepend_offsets=sharded_offsets, allow_shape_mismatch=True
            )
            for name, logits in self.named_parameters()
            if self.in_checkpoints
        }

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *rest: Any) -> None:
        """What is not in ``state_dict`` stays as it is."""
        for name, value in self.state_dict().items():
            state_dict.setdefault(prefix + name, value)
        super()._load_from_state_dict(state_dict, prefix, *rest)


def with_learned(module: torch.nn.Module, lessons: Sequence[Lesson], resumed: bool) -> LearnedProjections | None:
    """Makes the learned W of a run's lessons a part of the student's module; None where there is none.

    Args:
        module: the student's Megatron module on the last pipeline stage, before anything is wrapped around it.
        resumed: the checkpoint that is to be loaded holds them.
    """
    learned = {lesson.name: lesson.learned for lesson in lessons if lesson.learned is not None}
    if not learned:
        return None
    made = LearnedProjections(learned, resumed)
    module.add_module(ATTRIBUTE, made)
    return made


def check_learned_again(names: Iterable[str], path: str | Path, teachers: Sequence[NamedTeacher]) -> None:
    """Whether a run can go on from this checkpoint of its own.

    Args:
        names: of what the checkpoint holds.
        path: where it is.

    Raises:
        InputError: it has not learned the same teachers' W as this run does.
    """
    found = {n.split(f"{ATTRIBUTE}.of_")[1].split(".")[0] for n in names if f"{ATTRIBUTE}.of_" in n}
    wanted = {teacher.name for teacher in teachers if teacher.config.learned}
    if found != wanted:
        say = lambda kinds: f"learned W for {', '.join(sorted(kinds))}" if kinds else "no learned W"  # noqa: E731
        raise InputError(
            f"this run with {say(wanted)}, its checkpoint {path} with {say(found)}",
            "a run that goes on as it began",
            "set log.name=NAME for a run of its own; resume.restore_config.path=PATH starts it from that student",
        )


def learned_teachers(teachers: Sequence[NamedTeacher]) -> tuple[list[NamedTeacher], float]:
    """Those whose W is learned, and the rate for it; none and 0 in most runs.

    Raises:
        InputError: a loss without learned W, or rates that cannot be.
    """
    learned = [teacher for teacher in teachers if teacher.config.learned]
    for teacher in learned:
        if not loss_named(teacher.loss).learns_matrix:
            able = " or ".join(name for name, kind in LOSSES.items() if kind.learns_matrix)
            raise InputError(
                f"{teacher.where}.learned with loss={teacher.loss}",
                f"loss={able}",
                f"set one of them: {teacher.where}.loss={able}",
            )
    if not learned:
        return [], 0.0
    rates = sorted({teacher.config.learned_lr for teacher in learned})
    if len(rates) > 1 or not rates[0] > 0:
        raise InputError(
            f"learned_lr={', '.join(map(str, rates))}",
            "one number above 0 for all teachers: Megatron has one multiple of the learning rate",
            "set the same learned_lr for each teacher whose W is learned; 0.01 is the default",
        )
    return learned, float(rates[0])


def check_rates(rate: float, base: float, lowest: float) -> None:
    """Whether W's rate fits the student's.

    Args:
        base, lowest: the student's, and where its schedule ends.

    Raises:
        InputError: it does not.
    """
    if not base > 0 or rate < lowest:
        raise InputError(
            f"learned_lr={rate} with optim.config.lr={base} and a schedule down to {lowest}",
            "a rate above 0 for the student, and one for W that is not below where the schedule ends",
            "change optim.config.lr, optim.lr_scheduler.min_lr or learned_lr",
        )


def is_logits(name: str, _: Any = None) -> bool:
    """Whether a parameter of the student's module is a learned W's, by its name."""
    return f"{ATTRIBUTE}." in name


def learning_state(teachers: Sequence[NamedTeacher], student: Vocabulary, multiple: float) -> dict[str, Any]:
    """What a run that goes on must have in common with its beginning: which W the logits are of, and their rate.

    Args:
        teachers: those whose W is learned.
        multiple: W's rate over the student's.
    """
    return {"multiple": multiple, "projections": {t.name: _identity(t, student) for t in teachers}}


def check_same_learning(before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Whether two `learning_state` are the same.

    Raises:
        InputError: they are not.
    """
    for key, what in (("projections", "another W"), ("multiple", "another learned_lr / optim.config.lr")):
        if before[key] != now[key]:
            raise InputError(
                f"{what} than the checkpoint that the run is to go on from",
                "the tokenizers, the rule or file of W, and the rates that the run began with",
                "set them back, or set log.name=NAME for a run of its own; one that was begun before the rows of long "
                "tokens were filled by default goes on with teacher.rule.overflow=empty",
            )


def write_learned(
    folder: Path, made: LearnedProjections | None, teachers: Sequence[NamedTeacher], student: Vocabulary, steps: int
) -> None:
    """Writes ``learned_projection.safetensors``, a W file for ``teacher.projection=FILE`` of another run, and a
    ``.json`` with the rows that moved most.  Of a named teacher the files are called ``learned_projection_NAME``.

    Args:
        folder: the run's.
        made: this rank's; None off the last pipeline stage.
        teachers: those whose W is learned.
        steps: that it was learned in.

    Collectives: those of ``LearnedProjection.whole`` on the last pipeline stage.
    """
    from megatron.core import parallel_state

    if made is None:
        return
    first = parallel_state.get_tensor_model_parallel_rank() == 0
    first = first and parallel_state.get_data_parallel_rank(with_context_parallel=True) == 0
    for teacher in teachers:
        projection = made.of(teacher.name)
        learned = projection.whole()
        if first:
            rule = learned.rule | {"learned_steps": steps}
            _write(folder, teacher, projection.matrix, dataclasses.replace(learned, rule=rule), student)


def _write(
    folder: Path, teacher: NamedTeacher, before: ProjectionMatrix, learned: ProjectionMatrix, student: Vocabulary
) -> None:
    name = LEARNED if teacher.name == THE_TEACHER else f"{LEARNED}_{teacher.name}"
    path, other = folder / f"{name}.safetensors", teacher.tokenizer.vocabulary
    learned.save(path)
    moved = describe_difference(compare(before, learned), before, learned, student, other, MOST)["changed"]
    for row in moved["rows"]:
        row |= {"text": readable(row), "text_after": readable({"entries": row["after"]})}
    record = {"teacher": teacher.label, "projection": str(path), "rule": learned.rule, **moved}
    with atomic_path(folder / f"{name}.json") as temporary:
        temporary.write_text(json.dumps(record, ensure_ascii=False, indent=1) + "\n")


def _identity(teacher: NamedTeacher, student: Vocabulary) -> str:
    """Of the W that a teacher starts from: the places of its logits mean nothing in another."""
    config = teacher.config
    source = repr(config.rule) if config.projection is None else Path(config.projection).read_bytes()
    return digest_of(student.digest, teacher.tokenizer.vocabulary.digest, source)
