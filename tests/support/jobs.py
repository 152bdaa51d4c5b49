"""Training runs of the tests: what a rank does, described by plain data."""

import dataclasses
import functools
import os
import random
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import nemo.lightning as nl
import torch
from filelock import FileLock
from launcher import launch
from megatron.core.distributed import DistributedDataParallelConfig
from megatron.core.optimizer import OptimizerConfig
from nemo.collections import llm
from remembered import remember_spellings
from tokenizer_zoo import TEXT, write_folder
from watchers import Watcher

from nemo_xtoken.data.config import DataConfig
from nemo_xtoken.losses.base import ChunkLossConfig
from nemo_xtoken.objective.scale import ObjectiveConfig
from nemo_xtoken.plugin.nemo2.data import DistillationData
from nemo_xtoken.plugin.nemo2.distill import train_one
from nemo_xtoken.plugin.nemo2.model import DistillationModel
from nemo_xtoken.plugin.nemo2.steps import DistillationSteps
from nemo_xtoken.plugin.nemo2.teacher import TeacherConfig
from nemo_xtoken.plugin.nemo2.tokenizer import XTokenTokenizer
from nemo_xtoken.projection.prefixes import PrefixClasses
from nemo_xtoken.recipes.common import mixed_precision, saving
from nemo_xtoken.run.lora.lora_settings import LoraConfig
from nemo_xtoken.training import inputs
from nemo_xtoken.vocab.loading import load_vocabulary
from nemo_xtoken.weights.checkpoint_names import finished_checkpoints

__all__ = ["Job", "World", "build", "train"]

LENGTHS = 64, 96  # T_S, T_T
#: Layers, hidden size, attention heads and query groups of the two: all different.
STUDENT = {"num_layers": 2, "hidden_size": 48, "ffn_hidden_size": 80, "num_attention_heads": 4, "num_query_groups": 2}
TEACHER = {"num_layers": 4, "hidden_size": 64, "ffn_hidden_size": 96, "num_attention_heads": 8, "num_query_groups": 4}
#: Instead of every feed-forward network four experts, of which each token takes three; nothing that depends on a batch.
EXPERTS = {
    "num_moe_experts": 4,
    "moe_router_topk": 3,
    "moe_router_load_balancing_type": "none",
    "moe_aux_loss_coeff": 0.0,
    "moe_grouped_gemm": False,
}
DOCUMENTS = 40
WORDS = [
    "alignment",
    "tokenizers",
    "gradients",
    "projecting",
    "student",
    "vocabulary",
    "teacher's",
    "probability",
    "distributions",
    "checkpoint",
    "31415",
    "x=17*23",
    "über",
    "größer",
    "Straße",
    "naïveté",
    "模型词表",
    "обучение",
]


@dataclass(frozen=True)
class Job:
    """One run of :func:`train`.

    Attributes:
        root: folder of the ``World``.
        name: of the run's folder below ``root/runs``.
        start: checkpoint the student starts from; None: random weights.
        teacher: checkpoint of the teacher; None with ``scale=0``.
        lengths: packed documents by their lengths (``thd``), as on a GPU, instead of by a mask.
        distributed: Megatron's distributed optimizer; without it every rank has all gradients.
        save_every: steps between two checkpoints, and one at the end; None: none at all.
        save_best: keep the one with the largest ``monitor`` so far, as recipes do: of steps the newest.
        text, model, teacher_config, objective: further arguments of ``DataConfig``, the student's config,
            ``TeacherConfig``, ``ObjectiveConfig``.
        teachers: the arguments of ``TeacherConfig`` of more teachers, by name.
        lora: the arguments of ``LoraConfig``.
        watchers: callbacks added to the trainer.
    """

    root: str
    name: str
    tp: int = 1
    pp: int = 1
    cp: int = 1
    ep: int = 1
    lengths: bool = False
    sequence_parallel: bool = False
    micro: int = 2
    batch: int = 4
    steps: int = 3
    scale: Any = "dynamic"
    merge: str = "chain_rule"
    loss: str = "p_kl"
    start: str | None = None
    teacher: str | None = None
    optimizer: str = "adam"
    lr: float = 1e-3
    schedule: bool = False
    distributed: bool = True
    save_every: int | None = None
    save_best: bool = False
    monitor: str = "step"
    validate: int = 0
    tied: bool = False
    dropout: float = 0.0
    side: str = "student"
    tokenizer: str | None = None
    seed: int = 1234
    precision: str = "32"
    loader_workers: int = 0
    text: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)
    teacher_config: dict[str, Any] = field(default_factory=dict)
    objective: dict[str, Any] = field(default_factory=dict)
    teachers: dict[str, dict[str, Any]] = field(default_factory=dict)
    lora: dict[str, Any] = field(default_factory=dict)
    watchers: tuple[Watcher, ...] = ()

    def but(self, **changes: Any) -> "Job":
        """This job with some changes."""
        return dataclasses.replace(self, **changes)

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return Path(self.root) / "runs" / self.name

    @property
    def last(self) -> Path:
        """The newest checkpoint."""
        found = finished_checkpoints(self.folder)
        assert found, f"no checkpoint in {self.folder}"
        return found[0]


def build(job: Job) -> dict[str, Any]:
    """The arguments of ``train_one``."""
    shape = {"student": STUDENT, "teacher": TEACHER}[job.side]
    config = llm.LlamaConfig(
        **{
            **shape,
            "seq_length": LENGTHS[0],
            "gradient_accumulation_fusion": False,
            "apply_rope_fusion": False,
            "share_embeddings_and_output_weights": job.tied,
            "init_method_std": 0.1 if job.side == "student" else 0.2,  # distributions that are far from uniform
            "hidden_dropout": job.dropout,
            "attention_dropout": job.dropout,
            **job.model,
        }
    )
    trainer = nl.Trainer(
        accelerator="auto",
        devices=int(os.environ["WORLD_SIZE"]),
        max_steps=job.steps,
        limit_val_batches=1.0 if job.validate else 0,
        val_check_interval=job.validate or None,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
        logger=False,
        use_distributed_sampler=False,
        enable_progress_bar=False,
        strategy=nl.MegatronStrategy(
            tensor_model_parallel_size=job.tp,
            pipeline_model_parallel_size=job.pp,
            context_parallel_size=job.cp,
            expert_model_parallel_size=job.ep,
            sequence_parallel=job.sequence_parallel,
            pipeline_dtype=torch.float32,
            **saving(),
            ddp=DistributedDataParallelConfig(use_distributed_optimizer=job.distributed),
        ),
        plugins=mixed_precision(job.precision),
    )
    pl.seed_everything(job.seed)
    trainer.callbacks += list(job.watchers)
    text = {
        "paths": [f"{job.root}/text/*.txt"],
        "student_length": LENGTHS[0],
        "teacher_length": LENGTHS[1],
        "held_out": 4,
        "progress": False,
        **job.text,
    }
    optimizer = OptimizerConfig(
        optimizer=job.optimizer,
        lr=job.lr,
        use_distributed_optimizer=job.distributed,
        clip_grad=0.0,
        bf16=False,
        fp16=False,
        params_dtype=torch.float32,
    )
    checkpoint = nl.ModelCheckpoint(
        every_n_train_steps=job.save_every or job.steps + 1,
        save_last=job.save_every is not None,
        save_top_k=int(job.save_best),
        monitor=job.monitor,
        mode="max",
    )
    chunks = ChunkLossConfig(merge=job.merge)
    teacher = TeacherConfig(path=job.teacher, loss=job.loss, chunks=chunks, **job.teacher_config)
    return {
        "model": DistillationModel(config, XTokenTokenizer(job.tokenizer or f"{job.root}/{job.side}_tokenizer")),
        "data": DistillationData(DataConfig(**text), job.micro, job.batch, job.loader_workers),
        "trainer": trainer,
        "teacher": teacher if job.teacher else None,
        "teachers": {name: TeacherConfig(**settings) for name, settings in job.teachers.items()},
        "objective": ObjectiveConfig(scale=job.scale, **job.objective),
        "lora": LoraConfig(**job.lora),
        "optim": nl.MegatronOptimizerModule(
            optimizer,
            nl.lr_scheduler.CosineAnnealingScheduler(max_steps=job.steps, warmup_steps=2, constant_steps=0)
            if job.schedule
            else None,
        ),
        "log": nl.NeMoLogger(log_dir=f"{job.root}/runs", name=job.name, use_datetime_version=False, ckpt=checkpoint),
        "resume": nl.AutoResume(
            resume_if_exists=True,
            resume_ignore_no_checkpoint=True,
            restore_config=nl.RestoreConfig(path=job.start) if job.start else None,
        ),
    }


def train(job: Job, **changes: Any) -> dict[str, Any]:
    """Runs a job on this rank.

    Args:
        changes: of the arguments of ``train_one``.

    Returns:
        ``totals``: the sums of each step; and what the watchers saw.
    """
    torch.set_num_threads(1)
    if job.lengths:
        inputs.uses_packed_attention = lambda: True  # in this fork alone
    arguments = build(job) | changes
    train_one(**arguments)
    result: dict[str, Any] = {}
    for watcher in job.watchers:
        result |= watcher.result
    steps = next(c for c in arguments["trainer"].callbacks if isinstance(c, DistillationSteps))
    return result | {"ratio": arguments["model"].objective.scale.ratio, "seconds": steps.seconds}


def _text(seed: int) -> str:
    """Words and numbers that the two tokenizers cut differently: chunks of 1 to 4 tokens on either side."""
    numbers = random.Random(seed)
    known = TEXT.split()
    words = [
        numbers.choice((numbers.choice(WORDS), numbers.choice(known), str(numbers.randrange(10 ** (1 + i % 5)))))
        for i in range(numbers.randrange(8, 60))
    ]
    return " ".join(words)


class World:
    """What all runs share.

    Attributes:
        root: the folder of this process; its runs and cache lie in it.
        teacher, student, tied: checkpoints written by one process.
    """

    def __init__(self, root: Path, assets: Path) -> None:
        """Makes tokenizers, text and checkpoints in ``assets``, where no other process has yet, and links to them."""
        self.root = assets
        with FileLock(f"{assets}.lock"):
            if not (assets / "whole").exists():
                shutil.rmtree(assets, ignore_errors=True)
                self._write()
                (assets / "whole").touch()
        self.teacher, self.student, self.tied = (str(self.job(name).last) for name in ("teacher", "student", "tied"))
        self.root = root
        for name in ("text", "student_tokenizer", "teacher_tokenizer"):
            (root / name).symlink_to(assets / name)
        os.environ["NEMO_XTOKEN_CACHE"] = str(root / "cache")

    def _write(self) -> None:
        os.environ["NEMO_XTOKEN_CACHE"] = str(self.root / "cache")
        (self.root / "text").mkdir(parents=True)
        write_folder("llama", self.root / "student_tokenizer")
        write_folder("sp_bpe", self.root / "teacher_tokenizer")
        for i in range(DOCUMENTS):
            (self.root / f"text/{i:02}.txt").write_text(_text(i))
        padded = {"make_vocab_size_divisible_by": 64}  # another width with two ranks than with one, on both sides
        self._checkpoint(self.job("teacher", side="teacher", model=padded))
        self._checkpoint(self.job("student"))
        self._checkpoint(self.job("tied", tied=True))

    def job(self, name: str, **settings: Any) -> Job:
        """A job that trains on text alone unless told otherwise."""
        return Job(**{"root": str(self.root), "name": name, "scale": 0.0, **settings})

    def distillation(self, name: str, **settings: Any) -> Job:
        """A job that starts from the student and learns from the teacher."""
        return Job(**{"root": str(self.root), "name": name, "start": self.student, "teacher": self.teacher, **settings})

    def run(self, job: Job, ranks: int = 1, **kwargs: Any) -> list[dict[str, Any]]:
        """The results of the ranks."""
        return launch(train, job, ranks=ranks, folder=self.root / "logs" / job.name, **kwargs)

    @functools.cached_property
    def spelled(self) -> PrefixClasses:
        """The prefix classes of the two tokenizers, which runs from now on have of this process."""
        remember_spellings()
        student, teacher = (load_vocabulary(self.root / f"{side}_tokenizer") for side in ("student", "teacher"))
        return PrefixClasses.of(student, teacher)

    @functools.cached_property
    def with_experts(self) -> dict[str, Any]:
        """Settings of a job whose student and teacher have experts; the first use writes their checkpoints."""
        teacher = self.job("teacher_experts", side="teacher", model={"make_vocab_size_divisible_by": 64, **EXPERTS})
        student = self.job("student_experts", model=EXPERTS)
        return {"start": self._checkpoint(student), "teacher": self._checkpoint(teacher), "model": EXPERTS}

    def _checkpoint(self, job: Job) -> str:
        self.run(job.but(steps=1, save_every=1))
        return str(job.last)
