"""What this machine and the cluster have: packages, image, tokens for gated models, space, the Slurm configuration."""

import os
import re
import resource
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nemo_xtoken.environment import find_stack
from nemo_xtoken.errors import InputError
from nemo_xtoken.files import cache_root, tensor_places
from nemo_xtoken.launch.connections import Connections
from nemo_xtoken.launch.sbatch import unset_names
from nemo_xtoken.launch.slurm_config import CACHE, SlurmConfig
from nemo_xtoken.preflight.findings import Finding, green, left_out, red, yellow
from nemo_xtoken.preflight.plan import Plan
from nemo_xtoken.run.estimates.loss_time import GIB
from nemo_xtoken.run.settings import Settings
from nemo_xtoken.run.unsupported import CONNECTIONS, UNKNOWN
from nemo_xtoken.weights.checkpoint_names import bridge_checkpoints, check_without_checkpoints, finished_checkpoints

__all__ = [
    "attention",
    "cache_place",
    "descriptors",
    "disk",
    "engine",
    "hub",
    "overlap",
    "run_folder",
    "slurm_job",
    "versions",
]

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
TOKEN = "HF_TOKEN"
OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
#: Bytes of a checkpoint for a parameter: weights in half precision, and what the optimizer keeps.
SAVED = 2 + 12
#: Share of free space that a run may fill.
ROOM = 0.9
#: Files that a process should be able to open.
ENOUGH_FILES = 4096


def versions(slurm: SlurmConfig | InputError | None, under_bridge: bool = False) -> Iterator[Finding]:
    """Of what the run will meet: this Python, or an image that cannot be looked into from here."""
    stack = find_stack()
    image = slurm.container_image if isinstance(slurm, SlurmConfig) else None
    if image:
        if image.startswith(("/", "~", "./")) and not Path(image).expanduser().exists():
            yield yellow(
                "versions",
                f"no file {image} on this machine",
                "an image that the compute nodes see, and this one as well where it is on a shared file system",
                "fix executor.container_image; docs/clusters.md, step 2, makes one",
            )
        else:
            yield green("versions", f"the job runs in {image}; `srun --container-image .. xtoken env` says what it has")
        return
    odd = [f"{f.component.name} {f.version} ({f.remark})".replace("  ", " ") for f in stack.found if f.remark]
    framework = "Megatron-Bridge" if under_bridge else "NeMo"
    needed = [name for name in (framework, "Megatron-core", "PyTorch", "NeMo-Run") if stack[name].version is None]
    if needed:
        yield yellow(
            "versions",
            f"no {', '.join(needed)} in this Python, and no image is named",
            "an image, or this environment on the compute nodes",
            "executor.container_image=IMAGE, or look at `xtoken env` where the job will run",
        )
    if odd:
        yield yellow("versions", "; ".join(odd), "the versions that the tests ran with", "see `xtoken env`")
    if not needed and not odd:
        yield green("versions", stack.line())


def engine(slurm: SlurmConfig | InputError | None) -> tuple[int, ...] | None:
    """Version of the Transformer Engine that the run will have: an image's is not known here; None: it has none."""
    if isinstance(slurm, SlurmConfig) and slurm.container_image:
        return UNKNOWN
    version = find_stack()["Transformer Engine"].version
    return tuple(int(part) for part in re.findall(r"\d+", version)[:3]) if version else None


def attention(plan: Plan, slurm: SlurmConfig | InputError | None) -> Iterator[Finding]:
    """A job on GPUs without Transformer Engine keeps documents apart by a mask, and stores whole attention scores."""
    if not isinstance(slurm, SlurmConfig) or plan.run.engine is not None:
        return
    for side in plan.sides:
        if heads := side.config.get("num_attention_heads"):
            rows = side.length // side.sizes.context
            scores = 2 * plan.micro_batch * heads // side.sizes.tensor * rows * side.length
            yield yellow(
                "attention",
                f"no Transformer Engine: a layer of the {side.label} stores {scores / GIB:.1f} GiB of attention scores",
                "Transformer Engine, which stores none and skips what lies across documents",
                "use an image of NVIDIA's (docs/clusters.md), or a smaller data.micro_batch_size",
            )


def hub(plan: Plan, slurm: SlurmConfig | InputError | None) -> Iterator[Finding]:
    """Names on the Hugging Face hub: some models are given to those alone who have agreed to a licence."""
    paths = plan.settings.get("data.text.paths") or []
    names = {s.tokenizer for s in plan.sides if s.tokenizer and _on_hub(s.tokenizer)}
    names |= {p.removeprefix("hf:") for p in paths if isinstance(p, str) and p.startswith("hf:")}
    listed = ", ".join(sorted(names))
    if not names:
        yield green("hub", "nothing is taken from the Hugging Face hub")
        return
    passed = ("ALL",) if not isinstance(slurm, SlurmConfig) else slurm.pass_env
    variables = slurm.env_vars if isinstance(slurm, SlurmConfig) else {}
    if any(variables.get(name, os.environ.get(name, "0")) in ("1", "true", "True") for name in OFFLINE):
        yield yellow(
            "hub", f"{listed}, and the hub is switched off", "folders on the shared file system", "name folders instead"
        )
    elif not os.environ.get(TOKEN):
        yield yellow(
            "hub",
            f"{listed} from the Hugging Face hub, and {TOKEN} is not set",
            "a token, where a licence has to be agreed to (Llama, Gemma, Mistral)",
            f"agree to it on the model's page, `export {TOKEN}=TOKEN` in this shell, or name a folder",
        )
    elif "ALL" not in passed and TOKEN not in passed:
        yield yellow(
            "hub",
            f"{listed} from the Hugging Face hub; {TOKEN} is set here, and the job will not have it",
            f"{TOKEN} in pass_env",
            f"executor.pass_env=[{', '.join([*passed, TOKEN])}]",
        )
    else:
        yield green("hub", f"{listed} from the Hugging Face hub, with {TOKEN}")


def _on_hub(name: str) -> bool:
    return bool(HUB_NAME.fullmatch(name)) and not Path(name).expanduser().exists()


def disk(plan: Plan, figures: dict[str, Any]) -> Iterator[Finding]:
    """Room for aligned text and for checkpoints."""
    cache = Path(plan.settings.get("data.text.cache_dir") or cache_root()).expanduser()
    if need := figures.get("cache_bytes"):
        kept = _aligned_bytes(cache / "alignment", plan)
        yield _room("tokenised and aligned text", need, cache, kept, "set NEMO_XTOKEN_CACHE to a folder with room")
    elif not os.access(_existing(cache), os.W_OK):
        yield red("disk", _not_writable(cache, "set NEMO_XTOKEN_CACHE"))
    else:
        yield left_out("disk", "how much aligned text there will be is not known")
    if plan.student.model is not None:
        size = plan.student.model.parameters * SAVED
        copies = max(1, int(plan.settings.number("log.ckpt.save_top_k", 1))) + 1  # the one being written
        figures["checkpoint_bytes"] = round(size)
        fix = "set log.log_dir to a folder with room, or lower log.ckpt.save_top_k"
        yield _room(f"{copies} checkpoints of {size / GIB:.1f} GiB", copies * size, plan.run_folder, 0, fix)


def _aligned_bytes(folder: Path, plan: Plan) -> int:
    """Of text that is there for these tokenizers; that of others takes nothing off what the run needs."""
    student = plan.student.vocabulary.digest if plan.student.vocabulary is not None else ""
    teachers = {side.vocabulary.digest for side in plan.teachers if side.vocabulary is not None} or {student}
    size = 0
    for pair in folder.glob("*"):
        files = list(pair.rglob("*.safetensors"))
        try:
            about = tensor_places(files[0])[1] if files else {}
            if about.get("student_digest") == student and about.get("teacher_digest") in teachers:
                size += sum(file.stat().st_size for file in files)
        except (OSError, ValueError):  # written, removed or damaged just now
            continue
    return size


def _room(what: str, need: float, folder: Path, kept: float, fix: str) -> Finding:
    at = _existing(folder)
    if not os.access(at, os.W_OK):
        return red("disk", _not_writable(folder, fix))
    free = shutil.disk_usage(at).free
    already = f", {kept / GIB:.1f} GiB are there already" if kept >= GIB / 10 else ""
    found = f"about {need / GIB:.1f} GiB for {what}{already}; {free / GIB:.0f} GiB are free in {folder}"
    if need - kept > free:
        return red("disk", InputError(found, "room for them", fix))
    if need - kept > ROOM * free:
        return yellow("disk", found, f"at most {ROOM:.0%} of what is free", fix)
    return green("disk", found)


def _not_writable(folder: Path, fix: str) -> InputError:
    return InputError(f"{folder} cannot be written", "a folder that you may write to", fix)


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that is there."""
    folder = folder.expanduser().absolute()
    return next(path for path in (folder, *folder.parents) if path.exists())


def run_folder(plan: Plan) -> Iterator[Finding]:
    """Where the run writes, and whether it is one that goes on."""
    folder = plan.run_folder
    if not os.access(_existing(folder), os.W_OK):
        yield red("run folder", _not_writable(folder, "set log.log_dir"))
        return
    settings = plan.settings
    # Where nothing is said of it Bridge continues, and so does what makes NeMo's AutoResume by itself.
    unsaid = settings.under_bridge or (settings.get("resume") is None and (settings.any_pair or settings.swaps))
    if not (settings.get("resume.resume_if_exists", unsaid) or settings.get("resume.resume_from_path")):
        check_without_checkpoints(folder)  # what it raises is red
    begun = finished_checkpoints(folder) or bridge_checkpoints(folder)
    yield green("run folder", f"{folder}" + (", continues from its last checkpoint" if begun else ""))


def cache_place(settings: Settings, slurm: SlurmConfig) -> Iterator[Finding]:
    """Whether all nodes of a job in a container see one cache, which stays when the job ends."""
    if slurm.container_image is None:
        return
    own = str(settings.get("data.text.cache_dir") or "")
    handed_on = "ALL" in slurm.pass_env or CACHE in slurm.pass_env
    of_shell = os.environ.get(CACHE) if handed_on and not slurm.env_vars.get(CACHE) else None
    named = f"{CACHE} of {'this shell' if of_shell else 'env_vars'}"
    places = {named: of_shell or slurm.env_vars.get(CACHE) or slurm.cache, "data.text.cache_dir": own}
    for name, place in places.items():
        if not place or "$" in place:
            continue
        if os.path.isabs(place) and slurm.sees(place):
            yield green("cache", f"{place}, mounted in the container")
            continue
        yield red(
            "cache",
            InputError(
                f"the cache folder {place} ({name}) lies inside the container: another one on each node, and gone with "
                "the job",
                f"a folder below {' or '.join(mount.split(':')[1] for mount in slurm.mounts)}",
                f"executor.env_vars.{CACHE}=/SHARED/cache, and /SHARED in executor.container_mounts",
            ),
        )


def descriptors() -> Iterator[Finding]:
    """Whether a process may have enough files open; it raises its own limit as far as it may."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if hard != resource.RLIM_INFINITY and hard < ENOUGH_FILES:
        yield yellow(
            "open files",
            f"at most {hard} in a process (`ulimit -Hn`)",
            f"{ENOUGH_FILES}: sockets of the ranks, and shards of aligned text",
            "have the hard limit raised (limits.conf, or LimitNOFILE of slurmd)",
        )


def slurm_job(slurm: SlurmConfig | InputError, asked: bool) -> Iterator[Finding]:
    """Whether the configuration is filled in."""
    if isinstance(slurm, InputError):
        if asked:
            raise slurm
        yield yellow("Slurm", slurm.found, slurm.expected, f"{slurm.fix}; slurm=none leaves this out")
        return
    yield green(
        "Slurm",
        f"{slurm.shape}, {slurm.limit}, account {slurm.account or 'by default'}, "
        f"partition {slurm.partition or 'by default'}, logs in {slurm.log_folder}",
    )
    if not slurm.account or not slurm.partition:
        missing = " and ".join(n for n in ("account", "partition") if not getattr(slurm, n))
        yield yellow(
            "Slurm",
            f"no {missing}",
            "what your cluster wants",
            "executor.account=ACCOUNT executor.partition=PARTITION, if it asks",
        )
    for name in unset_names(slurm):
        yield yellow(
            "Slurm",
            f"{name} is in pass_env and not set in this shell",
            "a value",
            f"`export {name}=VALUE` before you submit",
        )


def overlap(connections: Connections) -> Iterator[Finding]:
    """Whether the device lets a teacher's pass run beside the student's, as ``ahead`` asks for."""
    if connections.said and connections.overlaps:
        yield green("ahead", connections.said)
    elif connections.said:
        yield yellow(
            "ahead",
            connections.said,
            f"another {CONNECTIONS}, or no teacher ahead",
            f"executor.env_vars.{CONNECTIONS}=8 where that is worth more, or set ahead=false",
        )
