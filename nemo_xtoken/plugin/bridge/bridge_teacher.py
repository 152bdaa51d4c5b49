"""A teacher that Megatron-Bridge loads, in processes of its own: what ``xtoken cache`` and ``xtoken serve`` load."""

from collections.abc import Iterator
from contextlib import contextmanager

from nemo_xtoken.plugin.bridge.bridge_config import TeacherConfig
from nemo_xtoken.plugin.bridge.models import host_teacher
from nemo_xtoken.teachers.contract import TeacherHost
from nemo_xtoken.training.alone.teacher_world import TeacherPlan, precision_of, teacher_world
from nemo_xtoken.training.teacher_settings import THE_TEACHER, NamedTeacher

__all__ = ["hosted_teacher"]


@contextmanager
def hosted_teacher(plan: TeacherPlan) -> Iterator[TeacherHost]:
    """What the source ``colocated`` needs to load this teacher; its process groups are gone afterwards.

    Raises:
        InputError: no checkpoint, or processes that are no whole number of copies.
    """
    config = TeacherConfig(**plan.settings())
    named = NamedTeacher(THE_TEACHER, config, config.load_tokenizer(plan.where), config.loss)
    with teacher_world(plan.sizes):
        yield host_teacher(named, precision_of(plan))
