"""What a checkpoint, the optimizer and the gradient buffers hold: the student alone, and all of it."""

import shutil

import pytest
from launcher import launch

pytestmark = pytest.mark.usefixtures("nemo")


@pytest.fixture(scope="module")
def trained(world):
    """A distillation of three steps from a tokenizer that is gone afterwards: ``(job, what the watchers saw)``."""
    from watchers import Buffers, Weights

    copy = shutil.copytree(world.root / "student_tokenizer", world.root / "copied" / "tokenizer")
    job = world.distillation(
        "trained", save_every=3, tokenizer=str(copy), distributed=False, watchers=(Buffers(), Weights())
    )
    [seen] = world.run(job)
    shutil.rmtree(copy.parent)
    return job, seen


def in_rank(world, function, *args):
    """The result of a function in a process of its own: NeMo leaves much behind in one."""
    [result] = launch(function, *args, folder=world.root / "logs" / function.__name__.strip("_"))
    return result


def _saved(path):
    from megatron.core import dist_checkpointing

    return {
        name: tuple(tensor.global_shape)
        for name, tensor in dist_checkpointing.load_tensors_metadata(f"{path}/weights").items()
    }


def test_the_teacher_is_in_no_checkpoint(world, trained):
    import jobs

    job, _ = trained
    saved = in_rank(world, _saved, job.last)
    of_model = {name for name in saved if not name.startswith("optimizer.")}
    assert len(of_model) == 9, of_model  # embedding, output layer, final norm, and six of the layers, stacked
    assert not [name for name, shape in saved.items() if jobs.TEACHER["hidden_size"] in shape]
    of_optimizer = {name.split(".", 3)[-1] for name in set(saved) - of_model}
    assert of_optimizer == {name for name in of_model if not name.endswith("_extra_state")}
    layers = [shape[0] for name, shape in saved.items() if "decoder.layers.self_attention" in name]
    assert layers
    assert set(layers) == {jobs.STUDENT["num_layers"]}


def test_the_teacher_is_in_no_optimizer_and_no_gradient_buffer(trained):
    import jobs

    _, seen = trained
    assert seen["buffer"] == seen["parameters"] == seen["optimizer"]
    assert all(jobs.TEACHER["hidden_size"] not in shape for shape in seen["parameters"])
    assert not any("teacher" in name for name in seen["names"])


def test_the_teacher_does_not_change(trained):
    _, seen = trained
    assert seen["frozen"]
    assert seen["teacher_start"] == seen["teacher_end"]


def _load_plain(path):
    """Starts a stock NeMo model from the checkpoint, and gives the digest of its weights before the first step."""
    import lightning.pytorch as pl
    import nemo.lightning as nl
    import torch
    from megatron.core.optimizer import OptimizerConfig
    from nemo.collections import llm
    from nemo.lightning import io
    from watchers import digest

    from nemo_xtoken.training.cpu import runtime as cpu_runtime

    class Found(Exception):
        pass

    class Look(pl.Callback):
        def on_train_start(self, trainer, pl_module):
            raise Found(digest(pl_module.module))

    cpu_runtime.enable()
    config = io.load_context(path / "context", subpath="model.config")
    tokenizer = io.load_context(path / "context", subpath="model.tokenizer")
    trainer = nl.Trainer(
        accelerator="cpu",
        devices=1,
        max_steps=1,
        limit_val_batches=0,
        logger=False,
        callbacks=[Look()],
        strategy=nl.MegatronStrategy(ckpt_async_save=False),
        plugins=nl.MegatronMixedPrecision(precision="32"),
    )
    with pytest.raises(Found) as found:
        llm.train(
            llm.GPTModel(config, tokenizer=tokenizer),
            llm.MockDataModule(seq_length=64, micro_batch_size=1, global_batch_size=1, tokenizer=tokenizer),
            trainer,
            optim=nl.MegatronOptimizerModule(
                OptimizerConfig(lr=0.0, bf16=False, fp16=False, params_dtype=torch.float32)
            ),
            log=nl.NeMoLogger(log_dir=str(path.parent / "plain"), use_datetime_version=False),
            resume=nl.AutoResume(restore_config=nl.RestoreConfig(path=str(path))),
        )
    return str(found.value)


def test_the_checkpoint_is_a_plain_nemo_model(world, trained):
    job, seen = trained
    assert in_rank(world, _load_plain, job.last) == seen["weights"]


def _load_context(path):
    from nemo.lightning import io

    from nemo_xtoken.plugin.nemo2.tokenizer import XTokenTokenizer

    config = io.load_context(path / "context", subpath="model.config")
    tokenizer = io.load_context(path / "context", subpath="model.tokenizer")
    assert isinstance(tokenizer, XTokenTokenizer)
    return config.num_layers, config.hidden_size, tokenizer.vocabulary.digest, tokenizer.source


def test_the_context_holds_model_and_tokenizer(world, trained, tmp_path):
    import jobs

    from nemo_xtoken.vocab.loading import load_vocabulary

    job, _ = trained
    moved = tmp_path / "elsewhere"
    shutil.copytree(job.last, moved)
    layers, hidden, digest, source = in_rank(world, _load_context, moved)
    assert (layers, hidden) == (jobs.STUDENT["num_layers"], jobs.STUDENT["hidden_size"])
    assert digest == load_vocabulary(world.root / "student_tokenizer").digest
    assert str(moved) in source


@pytest.mark.parametrize(("monitor", "kept"), [("step", ["step_6"]), ("reduced_train_loss", ["step_3-", "step_6-"])])
def test_a_checkpoint_is_written_once(world, monitor, kept):
    """The last is one of them; also when the run goes on, which has to find the best of before."""
    job = world.job(f"once_{monitor}", steps=3, save_every=3, save_best=True, monitor=monitor, lr=1e-2)
    world.run(job)
    [first] = job.folder.glob("checkpoints/*")
    assert first == job.last
    world.run(job.but(steps=6))  # it learns: the largest loss is the first
    found = sorted(path.name for path in job.folder.glob("checkpoints/*"))
    assert len(found) == len(kept)
    assert all(name.startswith(start) for name, start in zip(found, kept, strict=True)), found
    assert job.last.name.startswith("step_6")


def _finished(folder):
    from nemo_xtoken.plugin.nemo2.checkpoint_folders import finished_checkpoint

    names = "r--step=9.0000-epoch=0-last", "r--step=19.0000-epoch=1-last", "step_30"
    for name in names:
        (folder / name / "weights").mkdir(parents=True)
    answers = [finished_checkpoint(folder, steps) for steps in (10, 20, 30)]
    (folder / f"{names[1]}-unfinished").touch()
    return [path and path.name for path in (*answers, finished_checkpoint(folder, 20))], names


def test_a_finished_run_is_known_by_its_last_checkpoint(world, tmp_path):
    found, names = in_rank(world, _finished, tmp_path)
    assert found == [*names, None]
