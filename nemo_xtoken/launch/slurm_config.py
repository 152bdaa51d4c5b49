"""What a job asks Slurm for: one dataclass, filled from a YAML file and from ``executor.KEY=VALUE``."""

import dataclasses
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_type_hints

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

import nemo_xtoken.conf
from nemo_xtoken.errors import InputError
from nemo_xtoken.launch.secrets import check_environment, check_words
from nemo_xtoken.run.yaml_file import read_yaml

__all__ = ["BELOW_CACHE", "CACHE", "PREFIX", "SlurmConfig", "available_configs", "is_below", "load_config"]

PREFIX = "executor."
#: The variables that say where caches are.
CACHE = "NEMO_XTOKEN_CACHE"
#: Folders of others, each with its name below the cache: what Triton compiles, and what the Hugging Face hub gives.
BELOW_CACHE = {"TRITON_CACHE_DIR": "triton", "HF_HOME": "huggingface"}
#: What a value has to be, by the type of its field; ``???`` stands for one that the file leaves to the user.
_SCALARS: dict[Any, str] = {int: "a whole number", bool: "true or false"}
_COLLECTIONS: dict[Any, str] = {dict[str, str]: "names and values", tuple[str, ...]: "a list of texts: [a, b]"}
TIME = re.compile(r"\d+|\d+:\d\d(:\d\d)?|\d+-\d+(:\d\d){0,2}", re.ASCII)
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f\x85\u2028\u2029]")
_OPTION = re.compile(r"[a-z][a-z0-9-]*", re.ASCII)
WALLTIME_MARGIN = 2  # the grace must leave at least half of the time limit for training


@dataclass(frozen=True)
class SlurmConfig:
    """One job.  Names are those of nemo_run's ``SlurmExecutor`` where it has the same thing.

    Attributes:
        account, partition, qos, constraint, mem, exclusive, cpus_per_task, comment: sbatch's options of these names.
        time: limit per job, ``minutes``, ``HH:MM:SS`` or ``D-HH:MM:SS``; 0: none.
        nodes: machines.
        gpus_per_node: GPUs of each; 0 for a job on CPUs.
        gpu_request: how they are asked for: ``gpus-per-node``, ``gres``, or ``none`` where nodes are given whole.
        ntasks_per_node: processes on a node; by default one per GPU, or one.
        array: for arrays that do not come from a sweep, as in ``0-63%8``.
        job_name: by default the run's name.
        container_image: a pyxis image (``/path/image.sqsh`` or ``registry#image:tag``); none: no container.
        container_mounts: ``source:target[:flags]``; the folder that the job starts in is always mounted.
        container_mount_home: whether the home folder is visible inside.
        env_vars: variables to set; written into the script, so nothing secret.
        pass_env: names of variables whose values come from the shell that submits; ``ALL`` is all of them.  Those named
            replace what the image sets.
        setup_lines: shell lines before the run, outside of the container, as they are (``module load ..``).
        srun_args: further options of srun.
        additional_parameters: further options of sbatch; an empty value makes a bare one.
        program: the command ``nemo``, where it is not found by name.
        workdir: the folder that the job starts in; by default the one it is submitted from.
        logs: folder of the logs, absolute or below ``workdir``.
        stop_seconds: how long before the time limit the run is asked to write a checkpoint and end.
        requeue: whether Slurm may start the job again after a preemption, and the job does so itself at its time limit.
        chain: jobs in a row, each starting when the one before was stopped before its end.
    """

    account: str | None = None
    partition: str | None = None
    qos: str | None = None
    constraint: str | None = None
    comment: str | None = None
    mem: str | None = None
    exclusive: bool = False
    time: str = "04:00:00"
    nodes: int = 1
    gpus_per_node: int = 8
    gpu_request: str = "gpus-per-node"
    ntasks_per_node: int | None = None
    cpus_per_task: int | None = None
    array: str | None = None
    job_name: str | None = None
    container_image: str | None = None
    container_mounts: tuple[str, ...] = ()
    container_mount_home: bool = False
    env_vars: dict[str, str] = field(default_factory=dict)
    pass_env: tuple[str, ...] = ("ALL",)
    setup_lines: tuple[str, ...] = ()
    srun_args: tuple[str, ...] = ()
    additional_parameters: dict[str, str] = field(default_factory=dict)
    program: str = "nemo"
    workdir: str = ""
    logs: str = "runs/slurm"
    stop_seconds: int = 300
    requeue: bool = True
    chain: int = 1

    def __post_init__(self) -> None:
        for name in ("nodes", "chain", "ntasks_per_node", "cpus_per_task"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise _wrong(name, value, "1 or more")
        if self.gpus_per_node < 0:
            raise _wrong("gpus_per_node", self.gpus_per_node, "0 or more")
        if self.gpu_request not in ("gpus-per-node", "gres", "none"):
            raise _wrong("gpu_request", self.gpu_request, "gpus-per-node, gres or none")
        if not TIME.fullmatch(self.time):
            raise _wrong("time", self.time, "minutes, HH:MM:SS or D-HH:MM:SS")
        if self.stop_seconds < 0:
            raise _wrong("stop_seconds", self.stop_seconds, "0 or more")
        if self.seconds and self.stop_seconds > self.seconds // WALLTIME_MARGIN:
            raise _wrong("stop_seconds", self.stop_seconds, f"at most half of the time limit ({self.time})")
        for mount in self.container_mounts:
            if not re.fullmatch(r"[^:,]+:/[^:,]*(:[^:,]+)?", mount):
                raise _wrong("container_mounts", mount, "source:/target or source:/target:flags, without commas")
        if self.array is not None and self.chain > 1:
            raise _wrong("chain", self.chain, "1 for an array, whose tasks go on by themselves with requeue=true")
        check_environment(self.env_vars, self.pass_env)
        check_words([*self.setup_lines, *self.srun_args, *self.additional_parameters.values()])
        self._check_lines()

    def _check_lines(self) -> None:
        """No value and no name but those of `setup_lines` may begin another line of the script."""
        for name, value in vars(self).items():
            if name == "setup_lines":
                continue
            parts = (
                [*value, *value.values()] if isinstance(value, dict) else value if isinstance(value, tuple) else [value]
            )
            for part in parts:
                if isinstance(part, str) and (found := _CONTROL.search(part)):
                    raise _wrong(name, repr(part), f"one line without control characters (there is {found[0]!r})")
        for option in self.additional_parameters:
            if not _OPTION.fullmatch(option):
                raise _wrong("additional_parameters", option, "names of sbatch's options, without dashes in front")

    @property
    def tasks(self) -> int:
        """Processes on a node."""
        return self.ntasks_per_node or self.gpus_per_node or 1

    @property
    def shape(self) -> str:
        """Nodes and processes, as readable text."""
        return f"{self.nodes} node{'s' * (self.nodes > 1)}, {self.tasks} task{'s' * (self.tasks > 1)} on each"

    @property
    def folder(self) -> Path:
        """The folder that the job starts in."""
        return Path(os.path.expanduser(self.workdir) or os.getcwd()).absolute()

    @property
    def log_folder(self) -> Path:
        """The folder of the logs."""
        return self.folder / os.path.expanduser(self.logs)

    @property
    def seconds(self) -> int:
        """The time limit; 0: there is none, as Slurm has it."""
        days, _, clock = self.time.rpartition("-")
        parts = [int(part) for part in clock.split(":")]
        if days:  # D-HH[:MM[:SS]]
            hours, minutes, seconds = (*parts, 0, 0)[:3]
        elif len(parts) == 3:
            hours, minutes, seconds = parts
        else:  # MM[:SS]
            hours, (minutes, seconds) = 0, (*parts, 0)[:2]
        return int(days or 0) * 86400 + hours * 3600 + minutes * 60 + seconds

    @property
    def limit(self) -> str:
        """The time limit, as readable text."""
        return self.time if self.seconds else "no time limit"

    @property
    def xtoken(self) -> str:
        """The command ``xtoken`` in the folder of `program`; by name where that has none."""
        return "".join(self.program.rpartition("/")[:2]) + "xtoken"

    @property
    def mounts(self) -> tuple[str, ...]:
        """``container_mounts`` and the folder that the job starts in, at its own path."""
        here = str(self.folder)
        covered = any(is_below(here, target) for target in self._same_path_mounts())
        return self.container_mounts if covered else (*self.container_mounts, f"{here}:{here}")

    @property
    def cache(self) -> str | None:
        """The folder of the cache where nobody names one, for a job in a container; None: below the home folder.

        Below the folder that the job starts in: that is mounted, and on all nodes.  The home folder of an image is
        another one on each node, and gone after the job.
        """
        inside = self.container_image is not None and not self.container_mount_home
        return f"{self.folder}/cache" if inside and CACHE not in self.env_vars else None

    def sees(self, path: str) -> bool:
        """Whether a path in the job's container is one of the machine, by its mounts; True without a container."""
        if self.container_image is None:
            return True
        if self.container_mount_home and is_below(path, str(Path.home())):
            return True
        return any(is_below(path, mount.split(":")[1]) for mount in self.mounts)

    def outside(self, path: str) -> str | None:
        """Where this machine has a path of the job's container, by the longest mount above it; None: in no mount."""
        path, found = os.path.normpath(path), None
        for mount in sorted(self.mounts, key=lambda mount: len(os.path.normpath(mount.split(":")[1]))):
            source, target = mount.split(":")[:2]
            if is_below(path, target):
                found = os.path.normpath(os.path.join(source, os.path.relpath(path, target)))
        return found

    def _same_path_mounts(self) -> Iterable[str]:
        for mount in self.container_mounts:
            source, target = mount.split(":")[:2]
            if source == target:
                yield target


def is_below(path: str, folder: str) -> bool:
    """Whether a path is a folder, or something in it."""
    path, folder = os.path.normpath(path), os.path.normpath(folder)
    return path == folder or path.startswith(f"{folder.rstrip('/')}/")


def load_config(source: str | None, overrides: Iterable[str] = ()) -> SlurmConfig:
    """The configuration in a file, with overrides.

    Args:
        source: a path, or the name of a file in ``~/.config/nemo_xtoken/slurm`` or in this package's ``conf/slurm``;
            by default ``default``, the user's own before the package's.
        overrides: ``KEY=VALUE``, with or without ``executor.`` before it; ``env_vars.NAME=VALUE`` sets one entry.

    Raises:
        InputError: the file is missing, has an unknown key or a value of another type, or lacks a required value.
    """
    path = _find(source or "default")
    content = read_yaml(path, text=True) or {}
    if not isinstance(content, dict):
        raise InputError(
            f"{path} holds no keys", "lines such as `account: mine`", f"compare {_packaged() / 'default.yaml'}"
        )
    config = OmegaConf.structured(SlurmConfig)
    OmegaConf.set_readonly(config, False)
    for name, value in content.items():
        _set(config, name, value, path)
    for override in overrides:
        key, equals, text = override.removeprefix(PREFIX).partition("=")
        if not equals:
            raise InputError(f"{override!r} is no override", f"{PREFIX}KEY=VALUE", "such as executor.nodes=2")
        name, _, entry = key.partition(".")
        _set(config, name, {entry: text} if entry else text, path, merge=bool(entry))
    if missing := [name for name in config if OmegaConf.is_missing(config, name)]:
        raise InputError(
            f"{' and '.join(missing)} not set in {path}",
            "a value for your cluster",
            f"{' '.join(f'{PREFIX}{name}=VALUE' for name in missing)}, a file of yours, or slurm=venv",
        )
    made: Any = OmegaConf.to_container(config, resolve=True)
    values: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in made.items()}
    return SlurmConfig(**values)


def _set(config: DictConfig, name: str, value: Any, path: Path, merge: bool = False) -> None:
    """Sets a field from what a file or the command line says, all of it text.

    Args:
        merge: add to the entries that are there.

    Raises:
        InputError: an unknown key, or a value that does not fit its type.
    """
    kinds = get_type_hints(SlurmConfig)
    if name not in kinds:
        raise InputError(
            f"there is no {PREFIX}{name} (in {path} or on the command line)",
            f"one of {', '.join(kinds)}",
            f"correct it; other options of sbatch go below {PREFIX}additional_parameters, srun's into srun_args",
        )
    kind, given = kinds[name], value
    optional = isinstance(kind, UnionType)
    if optional and value in ("", "null", "none", "~"):
        given = None
    elif kind in _COLLECTIONS and isinstance(value, str):  # on the command line: [a, b], {a: b}, or a single text
        given = yaml.load(value, yaml.BaseLoader) if value[:1] in ("[", "{") else [value] if value else kind()  # noqa: S506
    try:
        OmegaConf.update(config, name, _literal(given), merge=merge)
    except OmegaConfBaseException as error:
        one = get_args(kind)[0] if optional else kind
        raise _wrong(name, value, {**_SCALARS, **_COLLECTIONS}.get(one, "one value")) from error


def _literal(value: Any) -> Any:
    """Text that OmegaConf leaves as it is: ``${..}`` means a variable of the shell here."""
    if isinstance(value, dict):
        return {key: _literal(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_literal(item) for item in value]
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", value) if isinstance(value, str) else value


def available_configs() -> dict[str, Path]:
    """The files that a name finds, by name."""
    folders = (_packaged(), _own())
    return {path.stem: path for folder in folders for path in sorted(folder.glob("*.yaml"))}


def _packaged() -> Path:
    return Path(nemo_xtoken.conf.__path__[0]) / "slurm"


def _own() -> Path:
    return Path(os.environ.get("XDG_CONFIG_HOME", Path.home() / ".config")) / "nemo_xtoken" / "slurm"


def _find(source: str) -> Path:
    configs = available_configs()
    if os.sep not in source and source in configs:
        return configs[source]
    path = Path(source).expanduser()
    if not path.is_file():
        raise InputError(
            f"no Slurm configuration {source!r}",
            f"a YAML file, or one of {', '.join(configs)}",
            f"copy {_packaged() / 'default.yaml'} to {_own()}/NAME.yaml and say slurm=NAME",
        )
    return path


def _wrong(name: str, value: Any, expected: str) -> InputError:
    known = name in {f.name for f in dataclasses.fields(SlurmConfig)}
    return InputError(
        f"{PREFIX if known else ''}{name}={value}", expected, "correct it in the file or on the command line"
    )
