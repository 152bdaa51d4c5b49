"""``nemo llm distill`` under Megatron-Bridge: one student, its teachers, from text to a checkpoint and a report."""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Optional

import rich
import torch

from nemo_xtoken.data.config import Tokenization
from nemo_xtoken.data.mixture import WholeBatches
from nemo_xtoken.errors import InputError
from nemo_xtoken.evaluate.beside_training import evaluation_beside
from nemo_xtoken.evaluate.evaluation_config import EvaluationConfig
from nemo_xtoken.kernels.choice import kernels_for
from nemo_xtoken.objective.scale import ObjectiveConfig
from nemo_xtoken.occupied import Occupied
from nemo_xtoken.plugin.bridge.batches import HeldOutBatches, StepBatches
from nemo_xtoken.plugin.bridge.bridge_config import (
    Data,
    Log,
    Optimizer,
    Restore,
    Resume,
    Student,
    TeacherConfig,
    Trainer,
)
from nemo_xtoken.plugin.bridge.checkpoints import Checkpoint, has_checkpoint
from nemo_xtoken.plugin.bridge.forward_step import Distillation
from nemo_xtoken.plugin.bridge.lora.bridge_adapters import check_resumed, described
from nemo_xtoken.plugin.bridge.models import host_teacher, prepare_student
from nemo_xtoken.plugin.bridge.older_versions import sum_up
from nemo_xtoken.plugin.bridge.run_folder import Records
from nemo_xtoken.plugin.swapping import export_student
from nemo_xtoken.plugin.trackers import check_tracker, tracker
from nemo_xtoken.report.summary import report_runs
from nemo_xtoken.run.layout import ParallelSizes
from nemo_xtoken.run.lora.lora_settings import LoraConfig
from nemo_xtoken.run.records import check_run_name, read_history
from nemo_xtoken.run.run_checks import check_run, left_to_the_user, not_set
from nemo_xtoken.run.spec import BRIDGE_ROWS_FIX, START, ModelSpec, RunSpec, plain_config
from nemo_xtoken.run.values import RANGES, check_range, check_rates
from nemo_xtoken.sharing.first_process import Launch
from nemo_xtoken.sharing.forked_children import end_with_this_process
from nemo_xtoken.training.attention import settle_attention
from nemo_xtoken.training.inputs import engine_version
from nemo_xtoken.training.learned_parameters import check_learned_again, learned_teachers, learning_state
from nemo_xtoken.training.step import explained
from nemo_xtoken.training.stopped import StoppedRun, StopRequests
from nemo_xtoken.training.teacher_checks import check_losses, check_pieces, teacher_spec
from nemo_xtoken.training.teacher_settings import NamedTeacher, teachers_by_argument, teachers_of_run
from nemo_xtoken.training.trained_with import Origin, check_origin
from nemo_xtoken.training.training_progress import TrainingProgress
from nemo_xtoken.training.vocabulary_tokenizer import VocabularyTokenizer
from nemo_xtoken.training.watching.early_stopping import StopConfig, check_stop, stopped_at
from nemo_xtoken.training.watching.sample_settings import SampleConfig
from nemo_xtoken.weights.checkpoint_names import bridge_checkpoints, check_without_checkpoints

__all__ = ["configure", "distill", "is_first", "train_one"]


def distill(
    model: Student,
    data: Data,
    trainer: Trainer,
    teacher: Optional[TeacherConfig] = None,
    objective: Optional[ObjectiveConfig] = None,
    optim: Optional[Optimizer] = None,
    log: Optional[Log] = None,
    resume: Optional[Resume] = None,
    teachers: Optional[dict[str, TeacherConfig]] = None,
    evaluate: Optional[EvaluationConfig] = None,
    student: Optional[str] = None,
    export: bool = False,
    track: str = "none",
    stop: Optional[StopConfig] = None,
    samples: Optional[SampleConfig] = None,
    lora: Optional[LoraConfig] = None,
) -> Path:
    """Trains a student on text and on what its teachers say about it, in Megatron-Bridge's loop.

    Everything that can be checked is checked before training.  The same command goes on where an interrupted run
    stopped; a finished run is reported again.

    Args:
        model: the student.
        data: text, lengths and batch sizes.
        trainer: steps, layout and precision.
        teacher: the teacher; none is needed with ``objective.scale=0``, which trains on cross-entropy alone.
        objective: how cross-entropy and distillation add up.
        optim: optimizer and learning rate.
        log: where checkpoints and the report go.
        resume: from where to resume, and what the student starts from (``restore_config``).
        teachers: more of them, by name: ``teachers.NAME.path=PATH``.
        evaluate: benchmarks every N steps, beside training: ``evaluate.every=1000 evaluate.tasks=mmlu``.
        student: a short name of ``resume.restore_config.path``; the model is that one, and so is its tokenizer.
        export: write the student in Hugging Face's format at the end, in the run's folder.
        track: ``tensorboard`` or ``wandb``: curves of the run in its folder, as well; ``log=tensorboard`` is the same.
        stop: when to stop before the last step: ``stop.patience=3``.
        samples: beginnings of held-out texts that the student continues beside every evaluation: ``samples.count=5``.
        lora: low-rank adapters, which are trained instead of the student: ``lora.rank=16``.

    Returns:
        the run's folder, with checkpoints, ``history.jsonl`` and the report.

    Raises:
        InputError: anything wrong with paths, tokenizers, W, layout or data.
    """
    check_tracker(track)
    if student is not None:
        model, resume = Student(), dataclasses.replace(resume or Resume(), restore_config=Restore(student))
    folder = train_one(
        model, data, trainer, teacher, objective, optim, log, resume, teachers, evaluate=evaluate, track=track,
        stop=stop, samples=samples or SampleConfig(), lora=lora,
    )  # fmt: skip
    if is_first():
        report_runs({folder.name: folder}, folder)
        if export:
            start = resume.restore_config.path if resume is not None else None
            belongs_to = None if lora is None else lora.written_for(str(start))
            out = export_student(folder, adapter=belongs_to)
            rich.get_console().print(f"student     {out}", soft_wrap=True)  # where the report is, and not in the log
    return folder


def train_one(
    model: Student,
    data: Data,
    trainer: Trainer,
    teacher: TeacherConfig | None,
    objective: ObjectiveConfig | None,
    optim: Optimizer | None,
    log: Log | None,
    resume: Resume | None,
    teachers: dict[str, TeacherConfig] | None = None,
    aligned_with: Sequence[Tokenization] = (),
    title: str = "training",
    evaluate: EvaluationConfig | None = None,
    track: str = "none",
    stop: StopConfig | None = None,
    samples: SampleConfig | None = None,
    lora: LoraConfig | None = None,
    origin: Origin | None = None,
    shared: bool = False,
) -> Path:
    """One training run without its report; several may follow each other in one process.

    Args:
        aligned_with, title, origin: see `configure`.
        evaluate, track, stop, samples, lora: see `distill`; without samples no text is continued.
        shared: other runs may want the same result, in the cache: they wait for each other.

    Raises:
        InputError: see `distill`.
        StoppedRun: it was asked to stop, or lost a teacher, before the last step.
    """
    if not torch.cuda.is_available():
        raise InputError(
            "no CUDA device that PyTorch can use",
            "a GPU: Megatron-Bridge trains on nothing else",
            "run it in one of NVIDIA's containers on a GPU; where NeMo 2 is installed a CPU will do",
        )
    from megatron.bridge.training.pretrain import pretrain

    container, run = configure(
        model, data, trainer, teacher, objective, optim, log, resume, teachers, aligned_with, title, evaluate, track,
        stop, samples, lora, origin,
    )  # fmt: skip
    requests = StopRequests()
    requests.take_ctrl_c()
    try:
        with Occupied(run.records.folder, is_first(), wait=shared), run.told, end_with_this_process():
            behind = next(iter(bridge_checkpoints(run.records.folder)), 0) if run.resumed else 0
            if behind and (why := stopped_at(run.stop, read_history(run.records.folder), behind)) is not None:
                run.told.was_stopped_early(behind, why)
                return run.records.folder
            try:
                pretrain(container, run, callbacks=[run])
            except Exception as error:
                raise explained(error, run.done + 1, run.teaching) from error
            except SystemExit as end:  # Bridge has saved
                if end.code not in (None, 0):
                    raise
            sum_up(Path(container.checkpoint.save), run.done, again=True)
            if run.stopped is not None:
                run.write_learned()
                run.told.stopped_early(run.done, run.stopped)
            elif run.done < trainer.max_steps:
                if run.beside is not None:
                    run.beside.finish(wait=False)  # there is no time
                folder = Path(container.checkpoint.save)
                kept = folder if has_checkpoint(folder) else None
                raise StoppedRun(requests.asked, run.done, trainer.max_steps, kept)
    finally:
        requests.leave()
        run.teaching.close()
    if run.beside is not None:
        run.beside.finish()
    return run.records.folder


def configure(
    model: Student,
    data: Data,
    trainer: Trainer,
    teacher: Optional[TeacherConfig] = None,
    objective: Optional[ObjectiveConfig] = None,
    optim: Optional[Optimizer] = None,
    log: Optional[Log] = None,
    resume: Optional[Resume] = None,
    teachers: Optional[dict[str, TeacherConfig]] = None,
    aligned_with: Sequence[Tokenization] = (),
    title: str = "training",
    evaluate: Optional[EvaluationConfig] = None,
    track: str = "none",
    stop: Optional[StopConfig] = None,
    samples: Optional[SampleConfig] = None,
    lora: Optional[LoraConfig] = None,
    origin: Optional[Origin] = None,
) -> tuple[Any, Distillation]:
    """Checks a run, reads its data, and configures it; for ``pretrain(container, run, callbacks=[run])``.

    Bridge's own settings can still be changed in the container.

    Args:
        aligned_with: the teachers that the data is aligned with, for a run without any that is to see the same batches
            as one with them.
        title: what is trained, for the person who watches.  The other arguments are those of `distill`.
        origin: what the model that the student starts from was made of; None: of nothing else.

    Returns:
        Bridge's ``ConfigContainer``, and the forward step.

    Raises:
        InputError: as `distill`.
    """
    objective, resume = objective or ObjectiveConfig(), resume or Resume()
    optim, log = optim or Optimizer(), log or Log()
    kernels_for(objective.kernels, torch.cuda.is_available())
    check_run_name(log.name)
    check_rates(optim.config.lr, optim.lr_scheduler.min_lr)
    _check_given(model, data, resume, *((teacher, teachers) if objective.needs_teacher else (None, None)))
    start = Checkpoint.at(model.architecture, "model.architecture") if model.architecture else None
    start = start or Checkpoint.at(resume.restore_config.path, START)
    folder = Path(log.log_dir) / log.name
    if not resume.resume_if_exists:
        check_without_checkpoints(folder)
    resumed = resume.resume_if_exists and has_checkpoint(folder / "checkpoints")
    (Checkpoint.at(str(folder / "checkpoints"), "log") if resumed else start).check()
    if origin is None and model.architecture is None:
        origin = Origin(start.source, start.files)
    if not resumed:
        start.check_whole(START)
    elif is_first():
        check_origin(folder, origin)
    tokenizer = VocabularyTokenizer(model.tokenizer.source or start.tokenizer("model.tokenizer.source"))
    named = teachers_of_run(objective, teacher, teachers, tokenizer.vocabulary)
    stop = stop or StopConfig()
    check_stop(stop.patience, stop.on, [one.name for one in named])
    provider = start.provider(random_weights=model.architecture is not None or resumed)
    length = data.text.student_length
    prepare_student(provider, trainer.strategy, trainer.plugins.precision, length, data.micro_batch_size)
    lora = lora if lora is not None and lora.on else None
    _check_run(provider, tokenizer, data, trainer, named, lora, model.architecture is None)
    settle_attention(provider, [_provider_of(t) for t in named])
    sides = [t.side for t in named] or aligned_with or [Tokenization(tokenizer.vocabulary)]
    train, held_out = _batches(data, tokenizer, sides, trainer.max_steps)
    check_pieces(named, train.samples, held_out.samples if held_out is not None else None)
    learned, rate = learned_teachers(named)
    state = learning_state(learned, tokenizer.vocabulary, rate / optim.config.lr) if learned else None
    if resumed:
        names = Checkpoint.at(str(folder / "checkpoints"), "log").tensors()
        check_resumed(lora, names, folder)
        check_learned_again(names, folder, named)
        Records(folder).check_learning(state)
    curves = tracker(track, folder) if is_first() else None
    told = TrainingProgress(title, trainer.max_steps, trainer.log_every_n_steps, is_first(), curves)
    beside = evaluation_beside(evaluate, folder, log.ckpt.every_n_train_steps)
    local = Path(tokenizer.source)
    about = {
        "tokenizer": str(local.resolve()) if local.exists() else tokenizer.source,
        **({"learning": state} if state else {}),
        **described(lora),
    }
    run = Distillation(
        tokenizer.vocabulary, named, objective, train, held_out, folder, host_teacher, told, resumed, about, beside,
        stop, samples, lora, origin,
    )  # fmt: skip
    provider.register_pre_wrap_hook(run.tap)
    from nemo_xtoken.plugin.bridge.container import AlignedText, make_container

    dataset = AlignedText(dataloader_type="external", num_workers=0).with_batches(train, held_out)
    steps = 0 if held_out is None else len(held_out.samples) // data.global_batch_size  # type: ignore[arg-type]
    root = start.root(START) if start.bridge else None
    go_on, ids = resume.resume_if_exists, tokenizer.vocab_size
    return make_container(provider, data, dataset, steps, trainer, optim, log, folder, root, go_on, ids, rate), run


def _batches(
    data: Data, tokenizer: VocabularyTokenizer, sides: Sequence[Tokenization], steps: int
) -> tuple[StepBatches, HeldOutBatches | None]:
    """Tokenises and aligns what is not in the cache yet.  Every rank calls it; one does the work."""
    text = dataclasses.replace(data.text, progress=data.text.progress and is_first())
    samples, held_out = text.build(tokenizer.vocabulary, sides, steps * data.global_batch_size, Launch.of(os.environ))
    train = StepBatches(samples, data.micro_batch_size, data.loader_workers)
    if held_out is None:
        return train, None
    return train, HeldOutBatches(
        WholeBatches(held_out, data.global_batch_size), data.micro_batch_size, data.global_batch_size
    )


def _check_given(
    model: Student,
    data: Data,
    resume: Resume,
    teacher: Optional[TeacherConfig],
    teachers: Optional[dict[str, TeacherConfig]],
) -> None:
    """Names all that a recipe leaves to the user and the user has left out, at once."""
    taught_by = teachers_by_argument(teacher, teachers)
    paths = {START: ("the student", resume.restore_config.path or model.architecture)}
    paths |= {f"{where}.path": ("a teacher", config.path) for where, config in taught_by.items()}
    missing = left_to_the_user(paths, data.text)
    if missing:
        raise not_set(
            missing, "Hugging Face models (folders or hub names) or checkpoints of Megatron-Bridge, and files of text"
        )


def _check_run(
    provider: Any,
    tokenizer: VocabularyTokenizer,
    data: Data,
    trainer: Trainer,
    teachers: Sequence[NamedTeacher],
    lora: LoraConfig | None,
    starts: bool,
) -> None:
    """Checks layout, models and W against each other; reads configurations, and W where the user names a file."""
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if processes != trainer.devices * trainer.num_nodes:
        raise InputError(
            f"{processes} processes, trainer.num_nodes={trainer.num_nodes} and trainer.devices={trainer.devices}",
            "a process for each device",
            f"start it by `torchrun --nproc-per-node={trainer.devices} --no-python nemo llm distill ..` or by srun, or "
            "set trainer.devices and trainer.num_nodes",
        )
    for name in ("max_steps", "val_check_interval", "log_every_n_steps", "seed", "timeout_minutes"):
        check_range(f"trainer.{name}", getattr(trainer, name), RANGES[f"trainer.{name}"])
    run = run_spec(provider, tokenizer, data, trainer, teachers, processes)
    check_run(dataclasses.replace(run, lora=lora, starts=starts))
    check_losses(teachers, tokenizer.vocabulary, trainer.strategy.context_parallel_size)


def run_spec(
    provider: Any,
    tokenizer: VocabularyTokenizer,
    data: Data,
    trainer: Trainer,
    teachers: Sequence[NamedTeacher],
    processes: int,
) -> RunSpec:
    """The run that Bridge's provider and our arguments describe.

    Raises:
        InputError: a teacher's checkpoint that cannot be read.
    """
    strategy = trainer.strategy
    own, default = data.text.lengths
    sizes = ParallelSizes.of(strategy, experts=bool(provider.num_moe_experts))
    student = ModelSpec(
        "student", "trainer.strategy", sizes, own, "data.text.student_length", plain_config(provider),
        ids=tokenizer.vocab_size, rows_name="model.tokenizer",
    )  # fmt: skip
    theirs = [_provider_of(teacher) for teacher in teachers]
    taught_by = [teacher_spec(t, plain_config(c), strategy, default) for t, c in zip(teachers, theirs, strict=True)]
    return RunSpec(
        student, tuple(taught_by), processes, data.micro_batch_size, data.global_batch_size, trainer.max_steps,
        strategy.sequence_parallel, strategy.virtual_pipeline_model_parallel_size, rows_fix=BRIDGE_ROWS_FIX,
        engine=engine_version(),
    )  # fmt: skip


def _provider_of(teacher: NamedTeacher) -> Any:
    """What Bridge makes of a teacher's checkpoint, without its weights."""
    return Checkpoint.at(teacher.config.path, f"{teacher.where}.path").provider(random_weights=True)


def is_first() -> bool:
    """Whether this is the first process of the run."""
    return int(os.environ.get("RANK", "0")) == 0
