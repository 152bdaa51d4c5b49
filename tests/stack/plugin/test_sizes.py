"""Parameters and memory on paper against the real thing: every architecture, and the ranks of real runs."""

import pytest
from launcher import launch
from toy_models import KINDS, OF_BRIDGE, write_model
from watchers import Watcher

pytestmark = pytest.mark.usefixtures("nemo")


def _counted(folder):
    """For each architecture: parameters of NeMo's module, and by its configuration."""
    import os

    import torch

    from nemo_xtoken.plugin.nemo2.hf.session import trainer_for
    from nemo_xtoken.plugin.nemo2.model import DistillationImporter
    from nemo_xtoken.run.estimates.model_sizes import Model

    torch.set_num_threads(1)
    found = {}
    for kind in set(KINDS).difference(OF_BRIDGE):
        for name in [name for name in os.environ if name.startswith("NVTE_")]:
            del os.environ[name]  # Megatron's choice of attention for the one before
        model = DistillationImporter(str(write_model(kind, folder / kind))).init()
        config = {**vars(model.config), "_target_": type(model.config).__name__}
        with trainer_for(model, ddp="pytorch", setup_optimizers=False):
            real = sum(p.numel() for p in model.module.parameters())
        found[kind] = real, Model.from_config(kind, config, config["vocab_size"]).parameters
    return found


def test_parameters_of_every_architecture(tmp_path):
    [found] = launch(_counted, tmp_path, folder=tmp_path / "logs")
    assert {kind: paper for kind, (_, paper) in found.items()} == {kind: real for kind, (real, _) in found.items()}


class Bytes(Watcher):
    """What a rank holds at the end: bytes of the student's weights, gradients and states, and the teacher's weights."""

    def on_train_end(self, trainer, pl_module):
        import torch
        from megatron.core import parallel_state

        def size(tensors):
            return sum(t.numel() * t.element_size() for t in tensors)

        module = pl_module.module
        buffers = [
            b for chunk in trainer.strategy.megatron_parallel for b in (*chunk.buffers, *chunk.expert_parallel_buffers)
        ]
        [optimizer] = trainer.strategy.optimizers
        inner = getattr(optimizer.mcore_optimizer, "chained_optimizers", [optimizer.mcore_optimizer])
        states = [
            v for o in inner for s in o.optimizer.state.values() for v in s.values() if torch.is_tensor(v) and v.ndim
        ]
        heads = {lesson.head.weight.data_ptr(): lesson.head.weight for lesson in pl_module.teaching.lessons}
        held = {p.data_ptr(): p for t in pl_module.teaching.teachers for p in t.model.parameters()} | heads
        self.result = {
            "stage": parallel_state.get_pipeline_model_parallel_rank(),
            "student: weights": size(module.parameters()),
            "student: gradients": size(b.grad_data for b in buffers),
            "student: optimizer": size(states),
            "teachers: weights": size(held.values()),
        }


RUNS = {
    "tp2_pp2": (4, {"tp": 2, "pp": 2, "micro": 1}, {}, False),
    "dp2_other_layout": (2, {"micro": 1}, {"tensor_model_parallel_size": 2}, False),
    "ep2": (2, {"ep": 2, "micro": 1}, {}, True),
}


@pytest.mark.parametrize("name", RUNS)
def test_memory_of_the_ranks(name, world):
    """What Megatron pads its buffers by, and cuts them unevenly by, is all that may differ."""
    from jobs import train

    from nemo_xtoken.preflight.plan import Plan
    from nemo_xtoken.preflight.tokenizers import vocabularies
    from nemo_xtoken.run.estimates.memory import memory_of
    from nemo_xtoken.run.settings import Settings
    from nemo_xtoken.run.sides import run_of

    ranks, layout, of_teacher, experts = RUNS[name]
    models = world.with_experts if experts else {"start": world.student, "teacher": world.teacher}
    job = world.distillation(
        f"sizes_{name}", **models, **layout, teacher_config=of_teacher, steps=1, watchers=(Bytes(),)
    )
    results = launch(train, job, ranks=ranks, folder=world.root / "logs" / job.name)
    strategy = {
        f"{axis}_parallel_size": layout.get(short, 1)
        for axis, short in (("tensor_model", "tp"), ("pipeline_model", "pp"), ("context", "cp"), ("expert_model", "ep"))
    }
    content = {
        "_target_": "nemo_xtoken.plugin.nemo2.distill.distill",
        "teacher": {"path": job.teacher, **of_teacher},
        "data": {"micro_batch_size": job.micro, "global_batch_size": job.batch},
        "trainer": {"strategy": strategy, "plugins": {"precision": "32"}},
        "optim": {"config": {"optimizer": "adam", "use_distributed_optimizer": True}},
        "resume": {"restore_config": {"path": job.start}},
    }
    settings = Settings(content, "test")
    plan = Plan(settings, run_of(settings, ranks), 1, ranks, 80.0)
    assert all(finding.status == "green" for finding in vocabularies(plan))
    run = plan.training()
    assert run is not None
    for real in results:
        paper = memory_of(run, real["stage"])
        assert real["student: weights"] == paper["student: weights"]
        for part in ("student: gradients", "student: optimizer"):
            assert real[part] == pytest.approx(paper[part], rel=0.03)
        assert real["teachers: weights"] == paper["teachers: weights"]
