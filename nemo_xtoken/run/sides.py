"""What a student or teacher is, read from what lies beside its weights: plain data, no code of it, no pickle."""

import contextlib
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from nemo_xtoken.errors import InputError
from nemo_xtoken.hub import hub_folder, is_hub_name
from nemo_xtoken.run.arguments.short_names import short
from nemo_xtoken.run.arguments.signatures import class_defaults
from nemo_xtoken.run.hf_models import IMPORTED, not_imported, replaced, unknown
from nemo_xtoken.run.layout import ParallelSizes
from nemo_xtoken.run.lora.lora_settings import LoraConfig, unmerged
from nemo_xtoken.run.settings import Settings, resolved
from nemo_xtoken.run.spec import BRIDGE_ROWS_FIX, START, ModelSpec, RunSpec
from nemo_xtoken.run.teaching import ELSEWHERE, THE_TEACHER, label_of
from nemo_xtoken.run.unsupported import OF_A_RUN, TEACHER, TRAINER
from nemo_xtoken.run.values import LORA, PARTS, made
from nemo_xtoken.run.yaml_file import read_yaml
from nemo_xtoken.weights.checkpoint_names import RUN_CONFIG, bridge_checkpoints, is_bridge_checkpoint
from nemo_xtoken.weights.chosen import chosen_layers
from nemo_xtoken.weights.language_model import is_inside, language_config

__all__ = ["checkpoint_config", "lora_of", "processes_of", "run_of", "student_side", "teacher_side"]

NOT_TAKEN = ("vocab_size", "make_vocab_size_divisible_by", "recompute_", *OF_A_RUN)
#: What Hugging Face's models call the layers that predict further tokens.
_FURTHER_TOKENS = ("num_nextn_predict_layers", "mtp_num_hidden_layers")
_IMPORT = "`xtoken import model={} out=FOLDER` makes one from a Hugging Face model"


def run_of(settings: Settings, processes: int | None, engine: tuple[int, ...] | None = None) -> RunSpec:
    """The run that settings describe, as far as they, and what lies beside the weights of its checkpoints, say it.

    Args:
        processes: one for each GPU; None: not known yet.
        engine: version of Transformer Engine; None: the run has none, or nothing is to be said of it.

    Raises:
        InputError: a size that is not a whole number.
    """
    lora, starts = lora_of(settings)
    return RunSpec(
        student=student_side(settings),
        teachers=tuple(teacher_side(settings, where, config) for where, config in settings.teachers().items()),
        processes=processes,
        micro_batch=settings.number("data.micro_batch_size", 4),
        global_batch=settings.number("data.global_batch_size", 8),
        max_steps=settings.number("trainer.max_steps", -1),
        sequence_parallel=bool(settings.get("trainer.strategy.sequence_parallel", False)),
        virtual=settings.number("trainer.strategy.virtual_pipeline_model_parallel_size"),
        trainer={name: settings.get(name) for name in TRAINER},
        engine=engine,
        lora=lora,
        starts=starts,
        **({"rows_fix": BRIDGE_ROWS_FIX} if settings.under_bridge else {}),
    )


def lora_of(settings: Settings) -> tuple[LoraConfig | None, bool]:
    """The adapters that the settings ask for, None where there are none or their own check refuses them; and whether
    the student starts from a model, be it one that is not named yet."""
    try:
        lora = made(PARTS[LORA], settings.part(LORA), LORA)
        lora = lora.of_swap() if settings.swaps else lora
    except (InputError, ImportError):
        lora = None
    if settings.under_bridge:
        return lora, settings.get("model.architecture") is None
    return lora, settings.swaps or settings.any_pair or settings.get("resume.restore_config") is not None


def processes_of(settings: Settings) -> int | None:
    """Those that the trainer asks for; None where that follows from the machine."""
    devices, nodes = settings.get("trainer.devices", 1), settings.get("trainer.num_nodes", 1)
    if isinstance(devices, str) and devices.isdecimal():
        devices = int(devices)
    if isinstance(devices, list):
        devices = len(devices)
    if isinstance(devices, bool) or not isinstance(devices, int) or devices < 1 or not isinstance(nodes, int):
        return None
    return devices * nodes


def student_side(settings: Settings) -> ModelSpec:
    """The student: its checkpoint's configuration, or that of NeMo's class, under what the run sets."""
    if settings.swaps:
        return _swapped_side(settings)
    named = "student" if settings.any_pair else START
    path = settings.get("model.architecture") or settings.get(named)
    starts = settings.any_pair or settings.get("resume.restore_config") is not None
    given = {k: v for k, v in settings.part("model.config").items() if not isinstance(v, Mapping)}
    found, origin, problem = _reader(settings)(path, named, "the student") if starts else ({}, "", None)
    target = str(given.get("_target_", ""))
    defaults = {k: v for k, v in class_defaults(target).items() if v is not None}
    if defaults and not origin:
        origin = target.rpartition(".")[2]
    own = {**defaults, **given}
    # the run's own settings, where they are not known the checkpoint's; it never takes those that do not belong to the
    # architecture
    # (Bridge takes the rows of the output layer as well, and the layers that predict further tokens)
    not_taken = NOT_TAKEN[1:] if settings.under_bridge or settings.any_pair else NOT_TAKEN
    if settings.under_bridge:
        not_taken = tuple(name for name in not_taken if name != "mtp_num_layers")
    config = {k: v for k, v in found.get("config", {}).items() if not k.startswith(not_taken)} | own
    tokenizer = resolved(settings.get("model.tokenizer.source"))
    named_tokenizer = str(tokenizer) if tokenizer else found.get("tokenizer")
    return _student(
        settings, path, problem, config, origin, tokenizer=named_tokenizer, tokenizer_name="model.tokenizer.source",
        given=given,
    )  # fmt: skip


def _swapped_side(settings: Settings) -> ModelSpec:
    """The student that is made of a model: some of its layers, and another tokenizer's vocabulary."""
    path, tokenizer, layers = (settings.get(name) for name in ("model", "tokenizer", "layers"))
    found, origin, problem = _reader(settings, imports=True)(path, "model", "the original")
    config = {k: v for k, v in found.get("config", {}).items() if k != "vocab_size"}
    if problem is None and tokenizer is None:
        what = "a folder, a tokenizer.json or a hub name"
        problem = InputError("tokenizer is not set (the one it is to have)", what, "add tokenizer=TOKENIZER")
    if layers is not None and isinstance(number := config.get("num_layers"), int):
        try:
            config["num_layers"] = len(chosen_layers(str(layers), number))
        except InputError as error:
            problem = problem or error
    named_tokenizer = None if tokenizer is None else str(tokenizer)
    return _student(settings, path, problem, config, origin, tokenizer=named_tokenizer, tokenizer_name="tokenizer")


def _student(
    settings: Settings, path: Any, problem: InputError | None, config: dict[str, Any], origin: str, **known: Any
) -> ModelSpec:
    """The student, with the layout and the length that the run gives it; ``known``: further fields."""
    return ModelSpec(
        label="student",
        where="trainer.strategy",
        path=str(path) if path is not None else None,
        problem=problem,
        config=config,
        config_from=origin or "the run's settings",
        sizes=ParallelSizes.of(settings.part("trainer.strategy"), experts=bool(config.get("num_moe_experts"))),
        length=settings.number("data.text.student_length", 4096),
        length_name="data.text.student_length",
        **known,
    )


def teacher_side(settings: Settings, where: str, teacher: Mapping[str, Any]) -> ModelSpec:
    """A teacher.

    Args:
        where: what it is called on the command line.
        teacher: its settings.
    """
    label = label_of(where)
    path = teacher.get("path")
    itself = path is None and where == THE_TEACHER and settings.swaps
    made = path is None and settings.makes_its_teacher and not itself
    read = _reader(settings, imports=itself)
    path = settings.get("model") if itself else path
    named = "model" if itself else f"{where}.path"
    found, origin, problem = ({}, "", None) if made else read(path, named, "the original" if itself else f"the {label}")
    given = {k: v for k, v in (teacher.get("config") or {}).items() if not isinstance(v, Mapping)}
    config = {**found.get("config", {}), **given}
    strategy = settings.part("trainer.strategy")
    student = ParallelSizes.of(strategy, experts=bool(config.get("num_moe_experts")))
    sizes = [teacher.get(f"{axis}_parallel_size") for axis in _AXES]
    length = teacher.get("length")
    elsewhere = teacher.get("source") in ELSEWHERE
    shared = settings.number("data.text.teacher_length") or settings.number("data.text.student_length", 4096)
    tokenizer = resolved(teacher.get("tokenizer")) or found.get("tokenizer")
    return ModelSpec(
        label=label,
        where=where,
        path=str(path) if path is not None else None,
        problem=problem,
        config=config,
        config_from=origin or "the run's settings",
        tokenizer=str(tokenizer) if tokenizer else None,
        tokenizer_name=f"{where}.tokenizer",
        sizes=ParallelSizes() if elsewhere else student.but(*sizes),
        length=length or shared,
        length_name=f"{where}.length" if length else "data.text.teacher_length",
        own={} if elsewhere else {name: teacher.get(name) for name in TEACHER},
    )


def _reader(
    settings: Settings, imports: bool = False
) -> Callable[[Any, str, str], tuple[dict[str, Any], str, InputError | None]]:
    """What reads the models that the run starts from.

    Args:
        imports: the run imports them from Hugging Face's format itself; where the user names any pair it always does.
    """
    if settings.under_bridge:
        return _bridge_checkpoint
    return partial(_checkpoint, imports=imports or settings.any_pair)


_AXES = ("tensor_model", "pipeline_model", "context", "expert_model")


def _checkpoint(path: Any, name: str, who: str, imports: bool = False) -> tuple[dict[str, Any], str, InputError | None]:
    """A NeMo 2 checkpoint: its model's configuration and tokenizer, where these came from, and what is wrong.

    Args:
        imports: whether the run imports a model in Hugging Face's format by itself.
    """
    if path is None and imports:
        what = "a folder in Hugging Face's format, a hub name, or a checkpoint's folder"
        return {}, "", InputError(f"{short(name)} is not set ({who})", what, f"add {short(name)}=MODEL")
    if path is None:
        error = InputError(f"{name} is not set ({who})", "the folder of a NeMo 2 checkpoint", _fix("MODEL", name))
        return {}, "", error
    if "://" in str(path):
        return {}, "", None  # NeMo's own cache has it
    folder = Path(path).expanduser()
    if imports and not folder.exists() and is_hub_name(str(path)):
        from nemo_xtoken.weights.tokenizer_files import TOKENIZER_FILES

        try:
            folder = hub_folder(str(path), ["config.json", *TOKENIZER_FILES], "model", "a folder, or a hub name")
        except InputError as absent:
            return {}, "", absent
    if not folder.is_dir():
        hub = "/" in str(path) and not str(path).startswith((".", "/", "~"))
        fix = _fix(str(path) if hub else "MODEL", name)
        return {}, "", InputError(f"no folder {path} ({who})", "the folder of a NeMo 2 checkpoint", fix)
    if not (folder / "weights").is_dir():
        hugging_face = (folder / "config.json").is_file()
        what = "a model in Hugging Face's format" if hugging_face else "no checkpoint"
        error = InputError(
            f"{what} in {folder} ({who})",
            "a folder with `weights` and `context`, as NeMo 2 saves them",
            _fix(str(folder), name),
        )
        config = _hugging_face(_language_config(folder)) if hugging_face else {}
        if imports:  # an import makes a row for each id that the tokenizer has
            config.pop("vocab_size", None)
        found = {"config": config, "tokenizer": str(folder)} if hugging_face else {}
        if hugging_face and imports:
            kind = str(config["_target_"])
            return found, f"{folder}/config.json", None if kind in IMPORTED else not_imported(kind)
        return found, f"{folder}/config.json" if hugging_face else "", error
    if not any((folder / "weights").iterdir()):
        error = InputError(f"no weights in {folder / 'weights'} ({who})", "a whole checkpoint", _fix("MODEL", name))
        return {}, "", error
    file = folder / "context" / "model.yaml"
    try:
        content = read_yaml(file)
        config = content["config"]
        if not isinstance(config, dict):
            raise TypeError(f"config is a {type(config).__name__}")
    except InputError as error:
        return {}, "", InputError(error.found, "what NeMo 2 saves beside the weights", _fix("MODEL", name))
    except (KeyError, TypeError) as error:
        reason = f"{file} cannot be read ({type(error).__name__}: {error})"
        return {}, "", InputError(reason, "what NeMo 2 saves beside the weights", _fix("MODEL", name))
    if isinstance(content.get("lora"), Mapping):
        return {}, "", unmerged(name, path)
    return {"config": config, "tokenizer": _tokenizer(content.get("tokenizer"), file.parent)}, str(file), None


def _bridge_checkpoint(path: Any, name: str, who: str) -> tuple[dict[str, Any], str, InputError | None]:
    """The same of what Megatron-Bridge loads: a Hugging Face model, or a checkpoint of its own."""
    expected = "a Hugging Face model (folder or hub name), or the folder of a Megatron-Bridge checkpoint"
    if path is None:
        return {}, "", InputError(f"{name} is not set ({who})", expected, f"set {name}=PATH")
    folder = Path(path).expanduser()
    if not folder.exists() and not folder.is_absolute() and len(folder.parts) <= 2:
        return {"tokenizer": str(path)}, "", None  # on the hub
    if (folder / "config.json").is_file():
        text = _language_config(folder)
        config = _hugging_face(text)
        further = next((text[name] for name in _FURTHER_TOKENS if text.get(name)), None)
        problem = replaced(text, str(folder)) or unknown(text, str(folder))
        found = {"config": config | {"mtp_num_layers": further}, "tokenizer": str(folder)}
        return found, f"{folder}/config.json", problem
    own = [folder] if is_bridge_checkpoint(folder) else list(bridge_checkpoints(folder).values())
    if not own:
        nemo = (folder / "weights").is_dir() and (folder / "context").is_dir()
        fix = "name the Hugging Face model that it was imported from" if nemo else "correct the path"
        what = f"{name}={path} is a NeMo 2 checkpoint" if nemo else f"no checkpoint at {name}={path}"
        return {}, "", InputError(f"{what} ({who})", expected, fix)
    file = own[0] / RUN_CONFIG
    try:
        model = read_yaml(file)["model"]
        if not isinstance(model, dict):
            raise TypeError(f"model is a {type(model).__name__}")
    except (InputError, KeyError, TypeError) as error:
        reason = f"{file} cannot be read ({type(error).__name__}: {error})"
        return {}, "", InputError(reason, "what Megatron-Bridge saves beside the weights", "name another checkpoint")
    plain = {k: v for k, v in model.items() if not isinstance(v, Mapping)}
    return {"config": plain, "tokenizer": model.get("hf_model_id")}, str(file), None


def checkpoint_config(path: str) -> dict[str, Any]:
    """The configuration in a NeMo 2 checkpoint; empty where there is none that can be read."""
    found, _, problem = _checkpoint(path, START, "the student")
    return dict(found.get("config", {})) if problem is None else {}


def _fix(model: str, name: str) -> str:
    return f"{_IMPORT.format(model)}; then {name}=FOLDER"


def _tokenizer(settings: Any, folder: Path) -> str | None:
    """Folder or hub name of the tokenizer that a context names."""
    if not isinstance(settings, Mapping):
        return None
    name = next((settings[k] for k in ("source", "pretrained_model_name", "model_path") if settings.get(k)), None)
    if not isinstance(name, str):
        return None
    return str(folder / name) if (folder / name).exists() else name


def _language_config(folder: Path) -> dict[str, Any]:
    """Of a model in Hugging Face's format, that of its language model; ``inside``: the type of the model around it."""
    from nemo_xtoken.weights.folder import read_json

    config = read_json(folder / "config.json")
    return language_config(config) | {"inside": config.get("model_type") if is_inside(config) else None}


def _hugging_face(text: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration of Hugging Face's by Megatron's names, for sizes alone: the model has to be imported yet."""
    if text.get("inside") and "num_attention_heads" not in text:  # Gemma 3 4B is published so: the rest is the class's
        with contextlib.suppress(ImportError, KeyError):
            from transformers import CONFIG_MAPPING

            text = {**CONFIG_MAPPING[str(text.get("model_type"))]().to_dict(), **text}
    experts = text.get("num_local_experts") or text.get("num_experts")
    kind = str(text.get("model_type", ""))
    return {
        "_target_": kind,
        "inside": text.get("inside"),
        "num_layers": text.get("num_hidden_layers"),
        "hidden_size": text.get("hidden_size"),
        "ffn_hidden_size": text.get("intermediate_size"),
        "num_attention_heads": text.get("num_attention_heads"),
        "num_query_groups": text.get("num_key_value_heads"),
        "kv_channels": text.get("head_dim"),
        "vocab_size": text.get("vocab_size"),
        "seq_length": text.get("max_position_embeddings"),
        "share_embeddings_and_output_weights": text.get("tie_word_embeddings", kind.startswith("gemma")),
        "num_moe_experts": experts,
        "moe_router_topk": text.get("num_experts_per_tok"),
        "moe_ffn_hidden_size": text.get("moe_intermediate_size"),
        "gated_linear_unit": True,
        "add_qkv_bias": kind == "qwen2" or kind == "gpt_oss",
        "add_bias_linear": kind == "gpt_oss",
        "qk_layernorm": kind in ("qwen3", "qwen3_moe", "gemma3", "gemma3_text"),
        "normalization": "RMSNorm",
        "softmax_type": "learnable" if kind == "gpt_oss" else "vanilla",
    }
