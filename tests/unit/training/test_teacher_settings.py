"""Which teachers of a run are one model in memory."""

from types import SimpleNamespace

import pytest

from nemo_xtoken.teachers.source_settings import CacheConfig
from nemo_xtoken.training.teacher_settings import NamedTeacher, TeacherSettings, one_model_each


class _Settings(TeacherSettings):
    def model(self, where="teacher"):
        return (self.path,)


def teacher(**settings):
    tokenizer = SimpleNamespace(vocabulary=SimpleNamespace(digest="of both"))
    return NamedTeacher("one", _Settings(**{"path": "hub/teacher", **settings}), tokenizer, "p_kl")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("path", "hub/other"),
        ("fp8", True),
        ("ahead", True),
        ("length", 7),
        ("tensor_model_parallel_size", 2),
        ("pipeline_model_parallel_size", 2),
        ("context_parallel_size", 2),
        ("expert_model_parallel_size", 2),
        ("source", "remote"),
        ("cache", CacheConfig(folder="elsewhere")),
    ],
)
def test_what_makes_it_another_model(name, value):
    assert one_model_each([teacher(), teacher(**{name: value}), teacher()]) == [0, 1, 0]


def test_another_loss_does_not():
    assert one_model_each([teacher(), teacher(loss="h_kl", weight=2.0)]) == [0, 0]
