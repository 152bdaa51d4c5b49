"""``xtoken_tiny`` is the same under NeMo 2 and under Megatron-Bridge: arguments, and what each training is given."""

import inspect
from types import SimpleNamespace

import pytest

from nemo_xtoken.data.config import DataConfig
from nemo_xtoken.evaluate.evaluation_config import EvaluationConfig
from nemo_xtoken.recipes import tiny_text

pytestmark = pytest.mark.usefixtures("nemo")
#: Code that a checkpoint brings runs under NeMo 2 alone.
OF_NEMO = {"trust"}
LENGTH = 48
BOTH = pytest.mark.parametrize("name", ["nemo2", "bridge"])


def _changed(thing, **changes):
    return thing and SimpleNamespace(**{**vars(thing), **changes})


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    """``tiny(NAME)``: the module, its classes for data and teachers, a trainer, and what ``train_one`` was given."""
    monkeypatch.setenv("NEMO_XTOKEN_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)

    def of(name):
        if name == "nemo2":
            from nemo_xtoken.plugin.nemo2.data import DistillationData as Data
            from nemo_xtoken.plugin.nemo2.teacher import TeacherConfig
            from nemo_xtoken.recipes import xtoken_tiny as module

            trainer = SimpleNamespace(is_global_zero=True)
            monkeypatch.setattr(module, "rebuilt", _changed)
            monkeypatch.setattr(module, "finished_checkpoints", lambda folder: [folder])
        else:
            from nemo_xtoken.plugin.bridge.bridge_config import Data, TeacherConfig, Trainer
            from nemo_xtoken.recipes import tiny_bridge as module

            trainer = Trainer()
        calls, signature = [], inspect.signature(module.train_one)

        def train_one(*arguments, **named):
            calls.append(signature.bind(*arguments, **named).arguments)
            return tmp_path

        monkeypatch.setattr(module, "train_one", train_one)
        monkeypatch.setattr(module, "report_runs", lambda runs, folder: None)
        text = DataConfig([tiny_text.text_file()], student_length=32, teacher_length=LENGTH)
        return SimpleNamespace(
            module=module, data=Data(text, 8, 8), teacher=TeacherConfig, trainer=trainer, calls=calls
        )

    return of


def test_the_arguments_are_the_same():
    from nemo_xtoken.recipes import tiny_bridge, xtoken_tiny

    nemo2, bridge = (inspect.signature(m.distill_tiny).parameters for m in (xtoken_tiny, tiny_bridge))
    assert nemo2.keys() - OF_NEMO == bridge.keys()
    assert {n: nemo2[n].default for n in bridge} == {n: p.default for n, p in bridge.items()}


@BOTH
def test_every_teacher_teaches_and_is_aligned_with(name, tiny):
    from nemo_xtoken.plugin.bridge.bridge_config import Student

    run, evaluate = tiny(name), EvaluationConfig()
    own = run.teacher(path="there", tokenizer=tiny_text.teacher_tokenizer())
    second = run.teacher(path="elsewhere", tokenizer=tiny_text.teacher_tokenizer(), length=40, loss="h_kl")
    model = Student() if name == "bridge" else None
    run.module.distill_tiny(
        model=model, teacher=own, data=run.data, trainer=run.trainer, teachers={"second": second}, evaluate=evaluate
    )
    alone, taught = run.calls
    assert [side.length for side in alone["aligned_with"]] == [None, 40]
    assert alone["teacher"] is None
    assert taught["teachers"] == {"second": second}
    assert taught["evaluate"] is evaluate


@BOTH
def test_the_teacher_trains_on_sequences_of_its_own_length(name, tiny):
    run = tiny(name)
    run.module.train_teacher(tiny_text.teacher_tokenizer(), run.data, run.trainer, None, 3)
    [call] = run.calls
    assert call["data"].text.student_length == LENGTH
    if name == "nemo2":
        assert call["model"].config.seq_length == LENGTH
