"""Curves of a run in TensorBoard and Weights & Biases."""

import shutil

import pytest

from nemo_xtoken.errors import InputError
from nemo_xtoken.plugin.trackers import check_tracker, tracker
from nemo_xtoken.training.training_progress import TrainingProgress

RECORD = {"ce": 4.5, "kd": 0.25, "kd/teacher": 0.25, "scale": 2.0, "tokens": 64.0}


def curves(folder):
    """name -> (step, value) pairs, as TensorBoard shows them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return {name: [(e.step, e.value) for e in events.Scalars(name)] for name in events.Tags()["scalars"]}


def train(folder, first, last, kind="tensorboard", shown=True):
    with TrainingProgress("training", 4, 1, shown, tracker(kind, folder)) as told:
        told.begin(first)
        for step in range(first + 1, last + 1):
            told.step({"step": step, **RECORD, "ce": 4.5 + step + first}, 1e-3)
        told.evaluated({"held_out_ce": 3.5, "held_out_accuracy": 0.25})


def test_tensorboard_has_every_step_and_a_run_that_goes_on_replaces_what_was_lost(tmp_path):
    train(tmp_path, 0, 3)
    train(tmp_path, 2, 4)  # from the checkpoint of step 2
    found = curves(tmp_path / "tensorboard")
    assert found["ce"] == [(1, 5.5), (2, 6.5), (3, 9.5), (4, 10.5)]
    assert {"kd", "kd/teacher", "scale", "lr", "tokens/s", "memory_gib"} <= found.keys()
    assert found["held_out_ce"][-1] == (4, 3.5)
    assert "step" not in found


def test_other_ranks_write_nothing(tmp_path):
    train(tmp_path, 0, 1, shown=False)
    assert list(tmp_path.iterdir()) == []


def test_weights_and_biases_without_a_key_are_offline(tmp_path, monkeypatch):
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.setenv("WANDB_SILENT", "true")
    run = tmp_path / "run"
    known = []
    for first in (0, 2, 0):  # begun, gone on with, and begun again, in a folder of the same path
        if not first:
            shutil.rmtree(run, ignore_errors=True)
        train(run, first, first + 2, "wandb")
        assert list((run / "wandb").glob("offline-run-*/*.wandb"))
        known.append((run / "wandb_id").read_text())
    assert known[0] == known[1] != known[2]
    assert list((run / "wandb").glob(f"offline-run-*-{known[2]}"))


def test_none_and_what_there_is_not(tmp_path, monkeypatch):
    assert tracker("none", tmp_path) is None
    with pytest.raises(InputError, match="did you mean 'tensorboard'"):
        check_tracker("tensorbord")
    monkeypatch.setitem(__import__("sys").modules, "wandb", None)
    with pytest.raises(InputError, match="track=wandb: wandb cannot be imported"):
        check_tracker("wandb")
