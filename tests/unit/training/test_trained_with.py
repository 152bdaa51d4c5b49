"""What a run trains with, in its folder: what is compared, and what is said when it goes on with something else."""

import json
from pathlib import Path

import pytest

from nemo_xtoken.errors import InputError
from nemo_xtoken.losses.base import ChunkLossConfig
from nemo_xtoken.objective.scale import ObjectiveConfig
from nemo_xtoken.run.records import TRAINED_WITH as FILE
from nemo_xtoken.run.records import settings_changed
from nemo_xtoken.training.teacher_settings import NamedTeacher, TeacherSettings
from nemo_xtoken.training.trained_with import Origin, check_origin, go_on_with, trained_with


class _Settings(TeacherSettings):
    files = (__file__,)

    def weight_files(self, where="teacher"):
        return map(Path, self.files)


def of(name="teacher", loss="p_kl", scale="dynamic", **settings):
    teacher = NamedTeacher(name, _Settings(**{"path": "hub/teacher", **settings}), None, loss)
    return trained_with(ObjectiveConfig(scale=scale), [teacher])


@pytest.fixture
def goes_on(tmp_path, caplog):
    """``goes_on(step, settings)``: what is said."""

    def begin(step, settings):
        caplog.clear()
        go_on_with(tmp_path, step, settings)
        return [record.getMessage() for record in caplog.records]

    return begin


def test_each_setting_that_differs_is_named():
    now = of(loss="gold", scale=0.5, chunks=ChunkLossConfig("mean", 2.0), projection="w.safetensors")
    assert settings_changed(of(), now) == [
        "objective.scale=0.5 (before: dynamic)",
        "teacher.loss=gold (before: p_kl)",
        "teacher.projection=w.safetensors (before: None)",
        "teacher.chunks.merge=mean (before: chain_rule)",
        "teacher.chunks.temperature=2.0 (before: 1.0)",
    ]


def test_where_and_how_a_teacher_runs_is_not_compared():
    elsewhere = of(source="remote", tensor_model_parallel_size=2)
    assert settings_changed(of(), elsewhere) == []


def test_a_teacher_that_comes_or_goes_is_told_by_its_path():
    two = of() | of("large", path="hub/large")
    assert settings_changed(of(), two) == ["teachers.large.path=hub/large (before: None)"]
    assert settings_changed(two, of()) == ["teachers.large.path=None (before: hub/large)"]


def test_a_path_is_the_place_that_it_leads_to(tmp_path, monkeypatch):
    (tmp_path / "teacher").mkdir()
    (tmp_path / "link").symlink_to("teacher")
    monkeypatch.chdir(tmp_path)
    assert of(path="link") == of(path="./teacher") == of(path=str(tmp_path / "teacher"))
    assert of(path="elsewhere") != of(path="teacher")


def test_a_file_of_w_that_was_made_again_is_another(tmp_path):
    file = tmp_path / "w.safetensors"
    file.write_bytes(b"one")
    before = of(projection=str(file))
    assert of(projection=str(file)) == before
    file.write_bytes(b"another")
    [changed] = settings_changed(before, of(projection=str(file)))
    assert changed.startswith(f"teacher.projection={file} (SHA-256 ")


def test_a_checkpoint_that_was_written_over_is_another(tmp_path, monkeypatch):
    file = tmp_path / "weights.distcp"
    monkeypatch.setattr(_Settings, "files", (file,))
    weights = bytearray(3 * 2**20)
    file.write_bytes(weights)
    before = of()
    file.write_bytes(weights)  # the same again, at another time
    assert of() == before
    weights[:] = b"1" * len(weights)
    file.write_bytes(weights)
    [changed] = settings_changed(before, of())
    assert changed.startswith("teacher.checkpoint=content ")


def test_a_change_is_said_once_and_from_which_step_on(goes_on, tmp_path):
    assert goes_on(0, of()) == []
    assert goes_on(4, of()) == []
    assert len(json.loads((tmp_path / FILE).read_text())) == 1
    [said] = goes_on(1234, of(loss="gold"))
    assert said == "from step 1,235 on with other settings than before: teacher.loss=gold (before: p_kl)"
    assert goes_on(2000, of(loss="gold")) == []
    entries = json.loads((tmp_path / FILE).read_text())
    assert [(entry["after"], entry["settings"]["teacher.loss"]) for entry in entries] == [(0, "p_kl"), (1234, "gold")]


def test_settings_that_left_no_checkpoint_do_not_count(goes_on):
    goes_on(0, of())
    assert len(goes_on(4, of(loss="gold"))) == 1
    assert len(goes_on(4, of(loss="gold"))) == 1  # nothing was kept of the start before
    assert goes_on(4, of()) == []
    assert goes_on(6, of()) == []
    assert goes_on(0, of(loss="uld")) == []  # a run from the beginning


@pytest.mark.parametrize("content", [None, "", "[1, 2", '{"a": 1}', "[3]"])
def test_a_folder_without_that_record_goes_on_silently(goes_on, tmp_path, content):
    if content is not None:
        (tmp_path / FILE).write_text(content)
    assert goes_on(4, of()) == []
    assert len(goes_on(8, of(loss="gold"))) == 1


def test_what_another_version_did_not_know_is_not_compared(goes_on, tmp_path):
    older = of()
    del older["teacher.options.beta"], older["teacher.checkpoint"]
    goes_on(0, older | {"teacher.options.gone": 1})
    assert goes_on(4, of()) == []


def test_a_folder_belongs_to_the_student_that_it_began_from(tmp_path):
    """Its weights, wherever they lie, and its layers; of a folder that does not say nothing is known."""
    run = tmp_path / "run"
    run.mkdir()

    def origin(name, content, layers=None):
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / "model.safetensors").write_text(content)
        return Origin(name, lambda: [tmp_path / name / "model.safetensors"], layers)

    check_origin(run, origin("a", "one"))
    go_on_with(run, 0, trained_with(ObjectiveConfig(), [], origin("a", "one")))
    go_on_with(run, 2, trained_with(ObjectiveConfig(scale=1.0), []))  # nothing was given: the folder's own
    for same in (origin("a", "one"), origin("b", "one"), None):
        check_origin(run, same)
    for other in (origin("b", "two"), origin("a", "one", "12"), origin("a", "one ")):
        with pytest.raises(InputError, match=f"began from another student than {other.path}"):
            check_origin(run, other)
