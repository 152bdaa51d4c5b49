"""A run under Bridge holds its folder, takes signals and ends as one under NeMo 2 does; the loop itself is replaced."""

import contextlib
import os
import signal
import sys
from types import ModuleType, SimpleNamespace

import pytest

from nemo_xtoken.errors import InputError
from nemo_xtoken.occupied import FILE, Occupied
from nemo_xtoken.training.stopped import EXIT_STATUS, INTERRUPTED, StoppedRun

STEPS = 5


@pytest.fixture
def started(megatron, tmp_path, monkeypatch):
    """Runs with another loop: ``started(loop)``; and what the loop gets."""
    import torch

    from nemo_xtoken.plugin.bridge import distill_bridge

    folder, closed = tmp_path / "run", []
    run = SimpleNamespace(
        records=SimpleNamespace(folder=folder),
        told=contextlib.nullcontext(),
        done=0,
        beside=None,
        resumed=False,
        stopped=None,
        teaching=SimpleNamespace(close=lambda: closed.append(True), check_given=lambda step: None),
    )
    container = SimpleNamespace(checkpoint=SimpleNamespace(save=str(folder / "checkpoints")))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(distill_bridge, "configure", lambda *_: (container, run))
    trainer = SimpleNamespace(max_steps=STEPS)
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]

    def start(loop):
        module = ModuleType("megatron.bridge.training.pretrain")

        def pretrain(container, run, callbacks):
            assert (folder / FILE).is_file()
            with pytest.raises(InputError, match=f"{folder} is held by process {os.getpid()}"), Occupied(folder):
                pass
            loop(run)

        module.pretrain = pretrain
        for name in ("megatron.bridge", "megatron.bridge.training"):
            monkeypatch.setitem(sys.modules, name, sys.modules.get(name) or ModuleType(name))
        monkeypatch.setitem(sys.modules, module.__name__, module)
        try:
            return distill_bridge.train_one(None, None, trainer, *[None] * 5)
        finally:
            assert closed == [True]
            assert not (folder / FILE).exists()
            assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before

    start.folder = folder
    return start


def listening(number, step, saved):
    """Bridge's loop: it listens to SIGTERM, and after the step saves and exits with status 0."""

    def loop(run):
        asked = []
        before = signal.signal(signal.SIGTERM, lambda *_: asked.append(True))
        try:
            os.kill(os.getpid(), number)
            assert asked == [True]
            run.done = step
            if saved:
                saved.mkdir(parents=True)
                (saved / "latest_train_state.pt").touch()
            raise SystemExit(0)
        finally:
            signal.signal(signal.SIGTERM, before)

    return loop


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, EXIT_STATUS), (signal.SIGINT, INTERRUPTED)])
@pytest.mark.parametrize("saved", [True, False])
def test_asked_to_stop(started, number, status, saved):
    folder = started.folder / "checkpoints"
    with pytest.raises(StoppedRun) as stop:
        started(listening(number, 3, folder if saved else None))
    assert stop.value.code == status
    assert f"after step 3 of {STEPS}" in str(stop.value)
    assert ("by SIGINT" in str(stop.value)) == (number == signal.SIGINT)
    assert (f"kept: {folder}" if saved else "no checkpoint is kept") in str(stop.value)


def test_a_stop_after_the_last_step_is_a_whole_run(started):
    assert started(listening(signal.SIGTERM, STEPS, None)) == started.folder


def test_gradients_that_are_no_numbers_are_named(started):
    def loop(run):
        run.done = 2
        raise RuntimeError("Unexpected result nan (message='found NaN in local grad norm for bucket #0')")

    with pytest.raises(InputError, match="step 3"):
        started(loop)


def test_an_exit_with_another_status_stays_what_it_is(started):
    def loop(run):
        raise SystemExit(3)

    with pytest.raises(SystemExit) as ended:
        started(loop)
    assert not isinstance(ended.value, StoppedRun)
    assert ended.value.code == 3
