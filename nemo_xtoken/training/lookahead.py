"""Steps ahead: a teacher elsewhere is told what it will be asked for, and a step begins when its states are there."""

from collections import deque
from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist

from nemo_xtoken.data.batch import Batch
from nemo_xtoken.teachers.contract import TeacherLost
from nemo_xtoken.training.lessons import Teaching

__all__ = ["Lookahead", "wait_for_teachers"]


class Lookahead:
    """Fetches the micro-batches of steps before their time, as many as the most far-sighted teacher wants."""

    def __init__(self) -> None:
        self._ready: deque[list[Batch]] = deque()

    def take(self, fetch: Callable[[], list[Batch]], teaching: Teaching, left: int | None) -> list[Batch]:
        """The micro-batches of the step at hand.

        Args:
            fetch: the next step's from the data.
            teaching: the teachers.
            left: steps that the run takes after this one; None: as many as there is data for.
        """
        most = 2**31 if left is None else max(0, left)
        ahead = min(most, max((teacher.ahead for teacher in teaching.teachers), default=0))
        while len(self._ready) <= ahead:
            try:
                batches = fetch()
            except StopIteration:  # the data ends with the run
                if not self._ready:
                    raise
                break
            for teacher, side in zip(teaching.teachers, teaching.sides, strict=True):
                teacher.announce([batch.teachers[side] for batch in batches])
            self._ready.append(batches)
        return self._ready.popleft()


def wait_for_teachers(batches: Sequence[Batch], teaching: Teaching) -> None:
    """Until the states of a step are at hand, where they come from elsewhere.

    Args:
        batches: of this data-parallel rank.

    Collective over all processes, where a teacher may be lost: one all-reduce of a number.

    Raises:
        TeacherLost: on all processes, where one of them has lost its teacher.  The step has not begun on any.
    """
    if not any(teacher.may_be_lost for teacher in teaching.teachers):
        return
    why = ""
    for teacher, side in zip(teaching.teachers, teaching.sides, strict=True):
        try:
            teacher.wait([batch.teachers[side] for batch in batches])
        except TeacherLost as lost:
            why = str(lost)
    flag = torch.tensor([int(bool(why))], device=torch.cuda.current_device())
    dist.all_reduce(flag, op=dist.ReduceOp.MAX)
    if int(flag):
        raise TeacherLost(why or "a process of the run has lost its teacher")
