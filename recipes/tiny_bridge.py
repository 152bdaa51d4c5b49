"""What ``xtoken_tiny`` does under Megatron-Bridge: trains the teacher, the student without it, the student with it."""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any, Optional

from nemo_xtoken.evaluate.evaluation_config import EvaluationConfig
from nemo_xtoken.files import atomic_path, digest_of
from nemo_xtoken.objective.scale import ObjectiveConfig
from nemo_xtoken.plugin.bridge.bridge_config import (
    Data,
    Log,
    Optimizer,
    Resume,
    Student,
    TeacherConfig,
    TokenizerSource,
    Trainer,
)
from nemo_xtoken.plugin.bridge.distill_bridge import is_first, train_one
from nemo_xtoken.progress import Parts, say
from nemo_xtoken.recipes import tiny_text
from nemo_xtoken.recipes.tiny_models import CE_ONLY, STUDENT, TAUGHT, TEACHER, TEACHER_STEPS
from nemo_xtoken.report.summary import report_runs
from nemo_xtoken.sharing.file_lock import file_lock
from nemo_xtoken.training.teacher_settings import named_teachers
from nemo_xtoken.training.watching.early_stopping import StopConfig
from nemo_xtoken.training.watching.sample_settings import SampleConfig
from nemo_xtoken.vocab.loading import load_vocabulary

__all__ = ["distill_tiny", "llama", "train_teacher"]


def distill_tiny(
    model: Student,
    data: Data,
    trainer: Trainer,
    teacher: TeacherConfig,
    objective: Optional[ObjectiveConfig] = None,
    optim: Optional[Optimizer] = None,
    log: Optional[Log] = None,
    resume: Optional[Resume] = None,
    teachers: Optional[dict[str, TeacherConfig]] = None,
    evaluate: Optional[EvaluationConfig] = None,
    teacher_steps: int = TEACHER_STEPS,
    stop: Optional[StopConfig] = None,
    samples: Optional[SampleConfig] = None,
) -> Path:
    """Trains the teacher if there is none, the student without it, the student with it; then compares.

    Args:
        teacher_steps: how long the teacher trains.
        samples: off unless given: so small a model has little to say.  The other arguments are those of ``distill`` in
            ``nemo_xtoken.plugin.bridge.distill_bridge``.

    Returns:
        the folder of the distilled student's run.
    """
    log, resume = log or Log(name="xtoken_tiny"), resume or Resume()
    tokenizer = model.tokenizer.source or tiny_text.student_tokenizer()
    if not resume.restore_config.path:
        architecture = model.architecture or llama(tokenizer, data.text.student_length, STUDENT)
        model = Student(TokenizerSource(tokenizer), architecture)
    # In a log every line begins with the title of its training.
    parts = Parts(2 + (teacher.path is None), is_first() and sys.stderr.isatty())
    if teacher.path is None:
        parts.begin("training the teacher")
        tokenizer = teacher.tokenizer or tiny_text.teacher_tokenizer()
        path = train_teacher(tokenizer, data, trainer, optim, teacher_steps)
        teacher = dataclasses.replace(teacher, tokenizer=tokenizer, path=path)
    folder = Path(log.log_dir) / log.name
    ce_only_log = dataclasses.replace(log, log_dir=str(folder), name="ce_only")
    sides = [t.side for t in named_teachers(teacher, teachers)]
    no_teacher = ObjectiveConfig(scale=0.0)
    parts.begin(f"training the student, {CE_ONLY}")
    ce_only = train_one(
        model, data, trainer, None, no_teacher, optim, ce_only_log, resume, aligned_with=sides, title=CE_ONLY
    )
    parts.begin(f"training the student, {TAUGHT}")
    train_one(
        model, data, trainer, teacher, objective, optim, log, resume, teachers, title=TAUGHT, evaluate=evaluate,
        stop=stop, samples=samples,
    )  # fmt: skip
    if is_first():
        report_runs({CE_ONLY: ce_only, TAUGHT: folder}, folder)
    return folder


def llama(tokenizer: str, length: int, sizes: dict[str, int]) -> str:
    """The folder of a Hugging Face configuration of a small Llama, in the cache.

    Args:
        length: of its sequences.
        sizes: by Megatron's names.
    """
    rows = -(-load_vocabulary(tokenizer).size // 128) * 128
    content: dict[str, Any] = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": rows,
        "num_hidden_layers": sizes["num_layers"],
        "hidden_size": sizes["hidden_size"],
        "intermediate_size": sizes["ffn_hidden_size"],
        "num_attention_heads": sizes["num_attention_heads"],
        "num_key_value_heads": sizes["num_attention_heads"],
        "max_position_embeddings": length,
        "initializer_range": 0.01,  # NeMo 2's, whose recipe this is
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
    }
    folder = tiny_text.folder() / f"llama-{digest_of(json.dumps(content))[:16]}"
    folder.mkdir(parents=True, exist_ok=True)
    with file_lock(f"{folder}.lock"):
        if not (folder / "config.json").is_file():
            with atomic_path(folder / "config.json") as temporary:
                temporary.write_text(json.dumps(content, indent=1) + "\n")
    return str(folder)


def train_teacher(tokenizer: str, data: Data, trainer: Trainer, optim: Optional[Optimizer], steps: int) -> str:
    """The checkpoints of a teacher trained on cross-entropy, in the cache; trained now if it is not there yet.

    Args:
        tokenizer: its own, a folder.
        data: the run's, whose teacher's length is that of its sequences.
        trainer, optim: the run's, but for the number of ``steps``.

    Raises:
        InputError: see ``plugin.bridge.distill_bridge.distill``.
    """
    length = data.text.lengths[1]
    architecture = llama(tokenizer, length, TEACHER)
    key = digest_of(load_vocabulary(tokenizer).digest, repr(data.text), repr((Path(architecture).name, steps)))[:16]
    log = Log(str(tiny_text.folder()), f"bridge-{key}")
    checkpoints = Path(log.log_dir) / log.name / "checkpoints"
    if not (checkpoints / f"iter_{steps:07}").is_dir():
        model = Student(TokenizerSource(tokenizer), architecture)
        text = dataclasses.replace(data, text=dataclasses.replace(data.text, student_length=length))
        longer = dataclasses.replace(trainer, max_steps=steps, val_check_interval=steps)
        train_one(
            model, text, longer, None, ObjectiveConfig(scale=0.0), optim, log, Resume(), title="the teacher",
            shared=True,
        )  # fmt: skip
    else:
        say("the teacher: was trained before", is_first())
    return str(checkpoints)
