"""Runs of ``distill`` under Megatron-Bridge, described by plain data; what a rank does."""

import os
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from cpu_bridge import pretend_cuda, without_kernels
from launcher import launch
from tokenizer_zoo import TEXT, zoo
from toy_models import KINDS, write_model

from nemo_xtoken.data.config import DataConfig
from nemo_xtoken.objective.scale import ObjectiveConfig
from nemo_xtoken.plugin.bridge.bridge_config import (
    Checkpoints,
    Data,
    Log,
    Optimizer,
    OptimizerSettings,
    Precision,
    Restore,
    Resume,
    Strategy,
    Student,
    TeacherConfig,
    Trainer,
)
from nemo_xtoken.plugin.bridge.checkpoints import Checkpoint
from nemo_xtoken.plugin.bridge.distill_bridge import configure
from nemo_xtoken.run.records import read_history

LENGTHS = 64, 96  # T_S, T_T


@dataclass(frozen=True)
class Job:
    """One run.

    Attributes:
        root: folder of the ``World``.
        stop: exits after this many steps with a checkpoint, as on a signal.
        strategy, teacher: further arguments of ``Strategy`` and ``TeacherConfig``.
    """

    root: str
    name: str
    start: str = "student"
    learn: str = "teacher"
    micro: int = 2
    steps: int = 4
    stop: int | None = None
    scale: Any = "dynamic"
    precision: str = "32"
    strategy: dict[str, Any] = field(default_factory=dict)
    teacher: dict[str, Any] = field(default_factory=dict)

    def arguments(self) -> tuple[Any, ...]:
        """Those of ``distill``."""
        root = self.root
        text = DataConfig([f"{root}/text/*.txt"], *LENGTHS, held_out=4, progress=False)
        trainer = Trainer(
            max_steps=self.steps,
            val_check_interval=2,
            log_every_n_steps=1,
            devices=int(os.environ["WORLD_SIZE"]),
            strategy=Strategy(**self.strategy),
            plugins=Precision(self.precision),
        )
        return (
            Student(),
            Data(text, self.micro, 4),
            trainer,
            TeacherConfig(path=f"{root}/{self.learn}", **{"loss": "p_kl", **self.teacher}) if self.scale else None,
            ObjectiveConfig(scale=self.scale),
            Optimizer(OptimizerSettings(lr=1e-3)),
            Log(f"{root}/runs", self.name, Checkpoints(2, 2)),
            Resume(restore_config=Restore(f"{root}/{self.start}")),
        )


def train(job: Job) -> list[dict[str, Any]]:
    """Runs a job on this rank, through Bridge's own ``pretrain``; the records of its history."""
    from megatron.bridge.training.pretrain import pretrain

    torch.set_num_threads(1)
    made = Checkpoint.provider
    Checkpoint.provider = lambda self, random_weights=False: without_kernels(made(self, random_weights))
    pretend_cuda()
    container, run = configure(*job.arguments())
    container.dist.distributed_backend = "gloo"
    container.ddp.overlap_grad_reduce = container.ddp.overlap_param_gather = False
    container.train.exit_interval = job.stop
    try:
        pretrain(container, run, callbacks=[run])
    except SystemExit:
        assert job.stop
    return read_history(run.records.folder)


def export(root: str, name: str) -> float:
    """Takes a run's last student to Hugging Face's format by Bridge; its cross-entropy on the held-out text there."""
    from megatron.bridge import AutoBridge
    from transformers import AutoModelForCausalLM

    from nemo_xtoken.data.batch import collate
    from nemo_xtoken.data.config import Tokenization
    from nemo_xtoken.training.inputs import document_mask
    from nemo_xtoken.vocab.loading import load_vocabulary

    torch.set_num_threads(1)
    pretend_cuda()
    bridge = AutoBridge.from_hf_pretrained(f"{root}/student")
    bridge.export_ckpt(f"{root}/runs/{name}/checkpoints/iter_0000004", f"{root}/exported", show_progress=False)
    model = AutoModelForCausalLM.from_pretrained(f"{root}/exported", attn_implementation="eager").float().eval()
    text = Job(root, name).arguments()[1].text
    student, teacher = (load_vocabulary(f"{root}/{side}") for side in ("student", "teacher"))
    _, held_out = text.build(student, [Tokenization(teacher)], 16)
    assert held_out is not None
    side = collate([held_out[i] for i in range(len(held_out))]).student
    hidden = document_mask(side.documents)
    mask = torch.zeros(hidden.shape).masked_fill(hidden, torch.finfo(torch.float32).min)
    with torch.no_grad():
        made = model(side.tokens, attention_mask=mask, position_ids=side.positions).logits
    logits = made[..., : student.size].flatten(0, 1).double()
    return float(torch.nn.functional.cross_entropy(logits, side.labels.flatten()))


class World:
    """What all runs share: ``student`` and ``teacher``, with tokenizers of their own, and text."""

    def __init__(self, root: Path) -> None:
        self.root = root
        os.environ["NEMO_XTOKEN_CACHE"] = str(root / "cache")
        for kind, side, shape in (
            ("llama", "student", {"num_hidden_layers": 2}),
            ("qwen3", "teacher", {"num_hidden_layers": 4, "hidden_size": 64, "intermediate_size": 96}),
        ):
            spare = 24 + -zoo()[KINDS[kind][1]].size % 8  # rows that two ranks divide
            write_model(kind, root / side, spare_rows=spare, **shape)
        (root / "text").mkdir()
        words = [*TEXT.split(), "31415", "x=17*23", "größer", "tokenizers", "gradients"]
        for i in range(40):
            numbers = random.Random(i)
            text = " ".join(numbers.choice(words) for _ in range(numbers.randrange(8, 60)))
            (root / f"text/{i:02}.txt").write_text(text)

    def run(self, name: str, ranks: int = 1, **settings: Any) -> list[dict[str, Any]]:
        """The records of a run."""
        job = Job(str(self.root), name, **settings)
        return launch(train, job, ranks=ranks, folder=self.root / "logs" / f"{name}{settings.get('stop', '')}")[0]
