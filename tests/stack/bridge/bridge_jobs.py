"""Runs of ``distill`` under Megatron-Bridge, described by plain data; what a rank does."""

import hashlib
import importlib
import logging
import os
import random
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import MethodType
from typing import Any

import torch
from cpu_bridge import pretend_cuda, without_kernels
from gradients import main_gradients, named_parameters
from launcher import launch
from tokenizer_zoo import TEXT, write_folder, zoo
from torch import Tensor
from toy_models import KINDS, SEEING, write_model, write_seeing

from nemo_xtoken.data.batch import Batch, Inputs, collate
from nemo_xtoken.data.config import DataConfig, Tokenization
from nemo_xtoken.objective.scale import ObjectiveConfig
from nemo_xtoken.plugin.bridge import distill_bridge, models
from nemo_xtoken.plugin.bridge.bridge_config import (
    Checkpoints,
    Data,
    Log,
    Optimizer,
    OptimizerSettings,
    Precision,
    Restore,
    Resume,
    Schedule,
    Strategy,
    Student,
    TeacherConfig,
    Trainer,
)
from nemo_xtoken.plugin.bridge.checkpoints import Checkpoint
from nemo_xtoken.plugin.bridge.distill_bridge import configure
from nemo_xtoken.plugin.bridge.forward_step import Distillation
from nemo_xtoken.plugin.bridge.older_versions import sum_up
from nemo_xtoken.run.lora.lora_settings import LoraConfig
from nemo_xtoken.run.records import read_history
from nemo_xtoken.training import inputs
from nemo_xtoken.vocab.loading import load_vocabulary
from nemo_xtoken.weights.checkpoint_names import bridge_checkpoints

LENGTHS = 64, 96  # T_S, T_T


@dataclass(frozen=True)
class Job:
    """One run.

    Attributes:
        root: folder of the ``World``.
        stop: exits after this many steps with a checkpoint, as on a signal.
        double: in float64, weights, states and gradients of both models.
        sgd: by plain gradients, since Adam turns rounding into steps where a gradient is about 0.
        warmup: steps in which the learning rate rises to its highest.
        eps: Adam's; a large one makes its steps smooth in the gradient.
        lengths: packed documents by their lengths (``thd``), as on a GPU, instead of by a mask.
        keep: of these steps, counted from 1, every rank keeps its gradients.
        logits: keep those of `KeptLogits`.
        anew: takes no optimizer states and random numbers of a checkpoint: Bridge cannot take them to another tensor or
            pipeline layout.
        strategy, teacher, text: further arguments of ``Strategy``, ``TeacherConfig`` and ``DataConfig``.
        lora: the arguments of ``LoraConfig``.
        teachers: others by name, each with the arguments of ``TeacherConfig``, beside its ``path`` below ``root``.
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
    double: bool = False
    sgd: bool = False
    warmup: int = 0
    eps: float = 1e-8
    lengths: bool = False
    keep: tuple[int, ...] = ()
    logits: bool = False
    anew: bool = False
    text: dict[str, Any] = field(default_factory=dict)
    strategy: dict[str, Any] = field(default_factory=dict)
    teacher: dict[str, Any] = field(default_factory=dict)
    teachers: dict[str, dict[str, Any]] = field(default_factory=dict)
    lora: dict[str, Any] = field(default_factory=dict)

    def arguments(self) -> tuple[Any, ...]:
        """Those of ``distill``."""
        root = self.root
        text = DataConfig([f"{root}/text/*.txt"], *LENGTHS, **{"held_out": 4, "progress": False, **self.text})
        trainer = Trainer(
            max_steps=self.steps,
            val_check_interval=2,
            log_every_n_steps=1,
            devices=int(os.environ["WORLD_SIZE"]),
            strategy=Strategy(**self.strategy),
            plugins=Precision(self.precision),
        )
        one = TeacherConfig(path=f"{root}/{self.learn}", **{"loss": "p_kl", **self.teacher})
        named = {name: TeacherConfig(**{**of, "path": f"{root}/{of['path']}"}) for name, of in self.teachers.items()}
        return (
            Student(),
            Data(text, self.micro, 4),
            trainer,
            one if self.scale and not named else None,
            ObjectiveConfig(scale=self.scale),
            Optimizer(
                OptimizerSettings(lr=0.3, weight_decay=0.0, clip_grad=0.0) if self.sgd else OptimizerSettings(1e-3),
                Schedule(self.warmup),
            ),
            Log(f"{root}/runs", self.name, Checkpoints(2, 2)),
            Resume(restore_config=Restore(f"{root}/{self.start}")),
            named or None,
        )


def on_cpu() -> None:
    """In this fork: Megatron-Bridge without CUDA and without kernels."""
    importlib.import_module("megatron.bridge.peft.utils").HAVE_TE = False  # its layers are Megatron's own here
    torch.set_num_threads(1)
    made = Checkpoint.provider
    Checkpoint.provider = lambda self, random_weights=False: without_kernels(made(self, random_weights))
    pretend_cuda()


def configured(*arguments: Any, **named: Any) -> Any:
    """What ``configure`` gives, for gloo."""
    container, run = configure(*arguments, **named)
    container.dist.distributed_backend = "gloo"
    container.ddp.overlap_grad_reduce = container.ddp.overlap_param_gather = False
    return container, run


def in_float64(container: Any) -> None:
    """In this fork: both models of a run, for which Bridge has no setting."""
    precision = container.mixed_precision
    precision.params_dtype = precision.pipeline_dtype = torch.float64
    precision.grad_reduce_in_fp32 = False
    host = models.teacher_host
    models.teacher_host = lambda teacher, config, student, _, *rest: host(
        teacher, config, student, torch.float64, *rest
    )


class Said(logging.Handler):
    """``lines``: what the package's loggers say."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keeps it."""
        self.lines.append(record.getMessage())


class KeptGradients:
    """A callback of Bridge's: ``found``, the `main_gradients` of the given steps."""

    def __init__(self, steps: tuple[int, ...], vocabulary_size: int) -> None:
        self.steps, self.size = steps, vocabulary_size
        self.found: dict[int, dict[str, Any]] = {}

    def on_train_step_end(self, context: Any) -> None:
        """After the optimizer's step, which leaves them as they are; Bridge counts the step later."""
        from megatron.core.utils import unwrap_model

        step = context.state.train_state.step + 1
        if step in self.steps:
            self.found[step] = main_gradients(unwrap_model(context.model[0]), self.size)


class Changed:
    """A callback of Bridge's: ``found``, the names of the student's parameters that are ``trained``, and of those that
    ``changed``; ``of_teacher``: those of the teachers' that are an adapter's; ``weights``: a digest of all at the
    end."""

    def __init__(self, run: Distillation) -> None:
        self.run = run
        self.found: dict[str, Any] = {}

    def on_train_start(self, context: Any) -> None:
        """Keeps them."""
        self._before = {name: p.detach().clone() for name, p in named_parameters(_bare(context))}

    def on_train_end(self, context: Any) -> None:
        """Compares."""
        after = dict(named_parameters(_bare(context)))
        teachers = [teacher.model for teacher in self.run.teaching.teachers]
        digest = hashlib.sha256(b"".join(p.detach().contiguous().numpy().tobytes() for p in after.values()))
        self.found = {
            "trained": sorted(name for name, p in after.items() if p.requires_grad),
            "changed": sorted(name for name, p in after.items() if not torch.equal(p, self._before[name])),
            "of_teacher": [name for teacher in teachers for name, _ in teacher.named_parameters() if "adapter" in name],
            "weights": digest.hexdigest(),
        }


def _bare(context: Any) -> Any:
    from megatron.core.utils import unwrap_model

    return unwrap_model(context.model[0])


class KeptLogits:
    """A callback of Bridge's: ``found``, before the first step and after the last one, by side, the logits of the first
    held-out sample without its padding, ``[T, V]`` as numpy arrays.

    Args:
        run: with one teacher.
    """

    def __init__(self, run: Distillation) -> None:
        self.run = run
        self.found: list[dict[str, Any]] = []

    def student(self, context: Any) -> tuple[Tensor, Batch]:
        """``[T, V]`` of the student alone, with padding; the sample."""
        batch = collate([self.run.held_out.samples[0]])  # type: ignore[union-attr]
        model = context.model[0].eval()
        with torch.no_grad():
            model(**inputs.model_inputs(batch.student, inputs.context_layout(batch.student)))
            hidden, weight = self.run._tap.pop()  # type: ignore[union-attr]
        model.train()
        return hidden @ weight.T, batch

    def on_train_start(self, context: Any) -> None:
        """After the run's own."""
        logits, batch = self.student(context)
        [states] = self.run.teaching.teachers[0].states([batch.teachers[0]])
        head = self.run.teaching.lessons[0].head
        columns = head.columns  # the rows of the layer are in the order of the loss, and padded
        taught = torch.empty(states.hidden.shape[0], len(columns))  # type: ignore[arg-type,union-attr]
        taught[:, columns] = states.hidden @ head.weight[: len(columns)].T  # type: ignore[arg-type,index,union-attr]
        sides = {"student": (logits, batch.student), "teacher": (taught, batch.teachers[0])}
        real = {name: logits[side.documents[0] >= 0] for name, (logits, side) in sides.items()}
        self.found.append({name: logits.detach().numpy() for name, logits in real.items()})

    on_train_end = on_train_start


def train(job: Job) -> list[dict[str, Any]]:
    """Runs a job on this rank, through Bridge's own ``pretrain``; the records of its history."""
    records: list[dict[str, Any]] = course(job)["records"]
    return records


def course(job: Job) -> dict[str, Any]:
    """The same, with the ``gradients`` and ``logits`` that it keeps, and what was ``said``."""
    from megatron.bridge.training.pretrain import pretrain

    on_cpu()
    said = Said()
    package = logging.getLogger("nemo_xtoken")
    package.addHandler(said)
    package.setLevel(logging.INFO)
    if job.lengths:
        inputs.uses_packed_attention = models.uses_packed_attention = lambda: True  # in this fork alone
    container, run = configured(*job.arguments(), lora=LoraConfig(**job.lora))
    if job.double:
        in_float64(container)
    container.train.exit_interval, container.optimizer.adam_eps = job.stop, job.eps
    if job.anew:
        container.checkpoint.load_optim = container.checkpoint.load_rng = False
    if job.sgd:
        container.optimizer.optimizer = "sgd"
        container.optimizer.use_distributed_optimizer = container.ddp.use_distributed_optimizer = False
    kept, logits, changed = KeptGradients(job.keep, run.vocabulary.size), KeptLogits(run), Changed(run)
    more = [*([logits] if job.logits else []), *([changed] if job.lora else [])]
    try:
        pretrain(container, run, callbacks=[run, kept, *more])
    except SystemExit:
        assert job.stop
    sum_up(run.records.folder / "checkpoints", run.done, again=True)  # as ``distill`` does
    records = read_history(run.records.folder)
    return {"records": records, "gradients": kept.found, "logits": logits.found, "said": said.lines, **changed.found}


def distil(job: Job, **named: Any) -> list[dict[str, Any]]:
    """The same by the command's function, with its lock, its way to stop and its report."""
    _as_a_command()
    distill_bridge.distill(*job.arguments(), **named)
    return read_history(Path(job.root, "runs", job.name))


def command(words: list[str], run: str) -> dict[str, Any]:
    """What ``nemo`` with these words does, in one process.

    Args:
        run: the folder of its run, which exports the student.

    Returns:
        ``status``, ``out`` and ``err`` of the command; of the first held-out sample without its padding the logits of
        the ``trained`` student after the last step, and those that transformers computes of the ``exported`` one.
    """
    sys.argv = ["nemo", *words]  # by which this package's commands are found
    from nemo_driver import drive

    _as_a_command()
    kept: list[tuple[Tensor, Batch]] = []

    def watched(*arguments: Any, **named: Any) -> Any:
        container, distillation = configured(*arguments, **named)
        logits, end = KeptLogits(distillation), distillation.on_train_end

        def on_train_end(_: Distillation, context: Any) -> None:
            kept.append(logits.student(context))
            end(context)

        distillation.on_train_end = MethodType(on_train_end, distillation)
        return container, distillation

    distill_bridge.configure = watched
    [done] = drive([words])
    if not kept:
        return done
    [(trained, batch)] = kept
    own = batch.student.documents[0] >= 0
    exported = _transformers_logits(Path(run, "student"), batch.student)
    return {**done, "trained": trained[own].detach().numpy(), "exported": exported[own.numpy()]}


def cached_teacher(root: str, steps: int) -> str:
    """Where the teacher of ``xtoken_tiny`` is, of this text; trained now if it is not there yet."""
    from nemo_xtoken.recipes.tiny_bridge import train_teacher

    _as_a_command()
    _, data, trainer, _, _, optim, *_ = Job(root, "tiny").arguments()
    return train_teacher(f"{root}/teacher", data, trainer, optim, steps)


def _as_a_command() -> None:
    """In this fork: what a command trains and exports is made here, and its log has what is said."""
    on_cpu()
    export_here()
    package = logging.getLogger("nemo_xtoken")  # pytest listens already; here it is to be in the log
    package.addHandler(logging.StreamHandler())
    package.setLevel(logging.INFO)
    distill_bridge.configure = configured


def export_here() -> None:
    """Exports are made in this process: another one would have to do without CUDA as well."""
    from megatron.core import parallel_state

    from nemo_xtoken.plugin import swapping
    from nemo_xtoken.plugin.bridge.bridge_conversion import export_model

    as_it_is = swapping.run_command

    def command(verb: str, *words: str) -> str:
        if verb != "export":
            return as_it_is(verb, *words)
        if torch.distributed.is_initialized():
            parallel_state.destroy_model_parallel()
            torch.distributed.destroy_process_group()
        arguments = dict(word.split("=", 1) for word in words)
        export_model(arguments["run"], arguments["out"], arguments.get("dtype"), True, adapter=arguments.get("adapter"))
        return ""

    swapping.run_command = command


def swap(root: str, name: str) -> Path:
    """Gives the student another tokenizer, by two steps of training; the swap's folder."""
    from nemo_xtoken.plugin.bridge.bridge_swap import swap_tokenizer

    on_cpu()
    distill_bridge.configure = configured
    export_here()
    _, data, trainer, _, _, optim, log, *_ = Job(root, name, steps=2).arguments()
    return swap_tokenizer(
        data, trainer, log, f"{root}/student", f"{root}/new_tokenizer",
        teacher=TeacherConfig(loss="p_kl"), optim=optim, ce_only=True,
    )  # fmt: skip


def cache(root: str, folder: str) -> None:
    """Fills a folder with the teacher's states for the text of every job."""
    from nemo_xtoken.plugin.standalone import cache_text

    on_cpu()
    text = Job(root, "cache").arguments()[1].text
    plan = {"path": f"{root}/teacher", "dtype": "fp32"}
    cache_text(plan, text, load_vocabulary(f"{root}/student"), (), Path(folder), None, 2)


def look_at(folder: str) -> None:
    """Makes Bridge's provider for a model, without its weights."""
    on_cpu()
    Checkpoint.at(folder, "teacher.path").provider(random_weights=True)


def export(root: str, name: str) -> Path:
    """Takes a run's last student to Hugging Face's format; the folder."""
    from nemo_xtoken.plugin.bridge.bridge_conversion import export_model

    on_cpu()
    return export_model(f"{root}/runs/{name}", f"{root}/exported/{name}", "float32")


def export_adapters(root: str, name: str, base: str) -> list[Any]:
    """The logits of a trained student with its adapters beside its layers, of its merged export, of the model ``base``
    with its adapters under PEFT, and of that model alone; and the files of the adapters."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from nemo_xtoken.plugin.bridge.bridge_conversion import export_model
    from nemo_xtoken.plugin.bridge.lora.bridge_adapters import recorded, with_adapters

    merged = export(root, name)
    alone = Path(f"{root}/exported/{name}_adapter")
    export_model(f"{root}/runs/{name}", alone, "float32", adapter=base)
    tokens = torch.randint(0, 200, (2, 40), generator=torch.Generator().manual_seed(5))
    checkpoint = next(iter(bridge_checkpoints(Path(f"{root}/runs/{name}")).values()))
    positions = torch.arange(tokens.shape[1]).expand_as(tokens)
    with with_adapters(str(checkpoint), recorded(Path(f"{root}/runs/{name}"))) as (_, [model]), torch.no_grad():  # type: ignore[arg-type]
        beside = model.eval()(tokens, positions, inputs.document_mask(torch.zeros_like(tokens)))

    def of(model: Any) -> Any:
        with torch.no_grad():
            return model.float().eval()(tokens).logits

    plain, whole = (AutoModelForCausalLM.from_pretrained(f) for f in (base, merged))
    alike = [of(plain), of(whole), of(PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), alone))]
    return [*(x.numpy() for x in (beside, *alike)), sorted(path.name for path in alone.iterdir())]


def export_and_evaluate(root: str, name: str) -> float:
    """The same; its cross-entropy on the held-out text."""
    return held_out_ce(root, str(export(root, name)))


def export_and_compare(job: Job) -> list[Any]:
    """The same, of a student that learned from its own start: logits of `KeptLogits`' sample, as transformers computes
    them, of the start and of the exported student."""
    exported = export(job.root, job.name)
    text = job.arguments()[1].text
    vocabulary = load_vocabulary(f"{job.root}/{job.start}")
    _, held_out = text.build(vocabulary, [Tokenization(vocabulary)], 4 * job.steps)
    side = held_out[0].student  # type: ignore[index]
    own = (side.documents[0] >= 0).numpy()
    return [_transformers_logits(folder, side)[own] for folder in (f"{job.root}/{job.start}", exported)]


def _transformers_logits(folder: str | Path, side: Inputs) -> Any:
    """``[T, V]``, of each document by itself; of a model that sees images, as the whole of it says."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

    config = AutoConfig.from_pretrained(folder)
    kind = AutoModelForCausalLM if config.get_text_config() is config else AutoModelForImageTextToText
    model = kind.from_pretrained(folder, attn_implementation="eager").float().eval()
    rows = []
    for document in side.documents.unique_consecutive():  # each by itself, so that windows are transformers' own
        with torch.no_grad():
            rows.append(model(side.tokens[:, side.documents[0] == document], use_cache=False).logits[0])
    return torch.cat(rows).numpy()


def held_out_ce(root: str, folder: str) -> float:
    """A student's cross-entropy on the held-out text, as transformers computes it.

    Args:
        folder: of the model and its tokenizer.
    """
    text = Job(root, "text").arguments()[1].text
    student, teacher = load_vocabulary(folder), load_vocabulary(f"{root}/teacher")
    _, held_out = text.build(student, [Tokenization(teacher)], 16)
    assert held_out is not None
    nats, tokens = 0.0, 0
    for row in (held_out[i].student for i in range(len(held_out))):
        logits = torch.from_numpy(_transformers_logits(folder, row))[:, : student.size].double()
        nats += float(torch.nn.functional.cross_entropy(logits, row.labels[0], reduction="sum"))
        tokens += int((row.labels != -100).sum())
    return nats / tokens


class World:
    """What all runs share: ``student`` and ``teacher``, with tokenizers of their own, other models, and text."""

    def __init__(self, root: Path) -> None:
        self.root = root
        os.environ["NEMO_XTOKEN_CACHE"] = str(root / "cache")
        for kind, side, shape in (
            ("llama", "student", {"num_hidden_layers": 2}),
            ("qwen3", "teacher", {"num_hidden_layers": 4, "hidden_size": 64, "num_key_value_heads": 4}),
            ("llama", "other", {"num_hidden_layers": 2, "rope_theta": 5e5}),
            ("qwen3-tied", "tied", {"num_hidden_layers": 2}),
            ("qwen3_moe", "experts", {"num_hidden_layers": 2}),
            ("qwen3_moe", "teacher_of_experts", {"num_hidden_layers": 3, "hidden_size": 64}),
        ):
            spare = 24 + -zoo()[KINDS[kind][1]].size % 8  # rows that two ranks divide
            write_model(kind, root / side, spare_rows=spare, **shape)
        write_folder("sp_bpe", root / "new_tokenizer")
        (root / "text").mkdir()
        words = [*TEXT.split(), "31415", "x=17*23", "größer", "tokenizers", "gradients"]
        for i in range(40):
            numbers = random.Random(i)
            text = " ".join(numbers.choice(words) for _ in range(numbers.randrange(8, 60)))
            (root / f"text/{i:02}.txt").write_text(text)

    def family(self, kind: str, **changes: Any) -> Path:
        """The folder of a toy model of ``toy_models.KINDS``."""
        folder = self.root / f"family-{kind}"
        if not folder.is_dir():
            tokenizer = "llama" if KINDS[kind][1] == "qwen" else None  # as transformers 5 reads the zoo's
            write_model(kind, folder, spare_rows=24, tokenizer=tokenizer, **changes)
        return folder

    def seeing(self, kind: str, **changes: Any) -> Path:
        """The folder of a toy model of ``toy_models.SEEING``; ``changes`` of its language model."""
        folder = self.root / f"seeing-{kind}"
        if not folder.is_dir():
            write_seeing(kind, folder, self.family(SEEING[kind][1], **changes))
        return folder

    def run(self, name: str, ranks: int = 1, **settings: Any) -> list[dict[str, Any]]:
        """The records of a run."""
        return self.courses(name, ranks, train, **settings)[0]

    def courses(self, name: str, ranks: int = 1, function: Callable[[Job], Any] = course, **settings: Any) -> list[Any]:
        """What every rank of a run gives."""
        job = Job(str(self.root), name, **settings)
        return launch(function, job, ranks=ranks, folder=self.root / "logs" / f"{name}{settings.get('stop', '')}")
