"""Which of NeMo, Megatron, Transformer Engine, Apex and their like this Python has, and what is lost without each.

    xtoken env                      # or: python -m nemo_xtoken
    >>> nemo_xtoken.stack           # in Python

Nothing is imported to find out, so it takes milliseconds and works where an import would fail.
"""

import contextlib
import importlib.metadata
import importlib.util
import re
import sys
import traceback
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from nemo_xtoken.errors import InputError
from nemo_xtoken.version import __version__

__all__ = [
    "COMPONENTS",
    "Component",
    "Found",
    "Stack",
    "find_stack",
    "missing_package",
    "missing_requirements",
    "unloadable_nemo",
    "without_launcher",
]


#: The mark of a requirement that is of an extra alone, in each way that tools write it; 2: its name.
_EXTRA = re.compile(r"""\s*(;|\band)\s*extra\s*==\s*["']([\w.-]+)["']""")


@dataclass(frozen=True)
class Component:
    """Something that may be installed.

    Attributes:
        name: readable.
        packages: distributions that have it, for the version; the first one that is installed counts.
        module: a top-level module, or a submodule of one that is not imported by looking for it, that only the real
            thing has.
        without: what is lost without it.
        tested: versions that the tests ran with.
        gpu: whether it is of use on a GPU alone.
    """

    name: str
    packages: tuple[str, ...]
    module: str
    without: str
    tested: tuple[str, ...] = ()
    gpu: bool = False

    def was_tested(self, version: str) -> bool:
        """Whether the tests ran with a version of this series, or none was noted."""
        return not self.tested or f"{version}.".startswith(tuple(f"{series}." for series in self.tested))


COMPONENTS = (
    Component("PyTorch", ("torch",), "torch", "losses and training; W, alignment and audits work"),
    Component(
        "NeMo",
        ("nemo-toolkit", "nemo_toolkit"),
        "nemo/collections/llm",
        "recipes and `nemo llm distill` (NeMo 2.6 or 2.7 has them; NeMo 3 has no nemo.collections.llm)",
        ("2.6", "2.7"),
    ),
    Component("NeMo-Run", ("nemo_run", "nemo-run"), "nemo_run", "the command `nemo`; `xtoken` and sbatch files work"),
    Component(
        "Megatron-core",
        ("megatron-core",),
        "megatron/core",
        "training; the losses work on tensors and groups",
        ("0.15", "0.17", "0.18", "0.19"),
    ),
    Component(
        "Megatron-Bridge",
        ("megatron-bridge",),
        "megatron/bridge",
        "`nemo llm distill` where there is no NeMo 2",
        ("0.4", "0.5", "0.6"),
    ),
    Component(
        "Transformer Engine",
        ("transformer-engine", "transformer_engine"),
        "transformer_engine_torch",  # the package of this name on the public index is empty without it
        "fp8, fused attention and norms, packed sequences by length; torch's own layers run instead, slower",
        gpu=True,
    ),
    Component(
        "Apex",
        ("apex",),
        "amp_C",  # apex of the public index is an unrelated package
        "its fused Adam and gradient-accumulation kernels; Transformer Engine has both too",
        gpu=True,
    ),
    Component("ModelOpt", ("nvidia-modelopt",), "modelopt", "`nemo.collections.llm`, which imports it"),
    Component(
        "Triton",
        ("triton", "pytorch-triton"),
        "triton",
        "the kernels of objective.kernels=triton; torch's run instead",
        gpu=True,
    ),
)


@dataclass(frozen=True)
class Found:
    """A component and what was found of it.

    Attributes:
        component: what was looked for.
        version: its version; "" where the code is there and its version is not known; None where it is absent.
        remark: what is odd about it, or "".
    """

    component: Component
    version: str | None
    remark: str = ""


@dataclass(frozen=True, repr=False)
class Stack:
    """What this Python has.

    Attributes:
        found: one entry per component.
    """

    found: tuple[Found, ...]

    def __getitem__(self, name: str) -> Found:
        return next(found for found in self.found if found.component.name == name)

    @property
    def missing(self) -> list[Component]:
        """The components that are absent."""
        return [found.component for found in self.found if found.version is None]

    def line(self) -> str:
        """One line, for a run's log."""
        there = [f"{f.component.name} {f.version}".strip() for f in self.found if f.version is not None]
        absent = ", ".join(component.name for component in self.missing)
        return f"version {__version__} with {', '.join(there)}" + (f"; without {absent}" if absent else "")

    def __repr__(self) -> str:
        width = max(len(found.component.name) for found in self.found)
        lines = [f"nemo_xtoken {__version__}, Python {sys.version.split()[0]}"]
        for found in self.found:
            if found.version is None:
                text = f"not found; lost without it: {found.component.without}"
            else:
                text = found.version or "found, version unknown"
            lines.append(f"  {found.component.name:<{width}}  {text}" + (f" ({found.remark})" if found.remark else ""))
        return "\n".join(lines)


#: An extra whose packages are small and leave what else there is as it is, so that nothing speaks against having it.
SERVICE = "service"


def missing_requirements(distribution: str = "nemo_xtoken", extras: Collection[str] = (SERVICE,)) -> list[str]:
    """What a distribution requires and is not installed in any version.

    For an installation with ``--no-deps`` into an image whose own packages are to stay as they are.

    Args:
        extras: of it that are asked for as well; of the others nothing is.
    """
    missing = []
    for requirement in importlib.metadata.requires(distribution) or ():
        name, extra = re.match(r"[\w.-]+", requirement), _EXTRA.search(requirement)
        if name is None or (extra is not None and extra[2] not in extras):
            continue
        try:
            importlib.metadata.version(name[0])
        except importlib.metadata.PackageNotFoundError:
            missing.append(_EXTRA.sub("", requirement).strip())  # pip would pass over it
    return missing


#: What to install for a module of another name, or one that comes with a part of this package's requirements.
_BROUGHT_BY = {
    "yaml": "pyyaml",
    "lm_eval": "'nemo_xtoken[evaluate]'",
    "accelerate": "'nemo_xtoken[evaluate]'",
    "zmq": "'nemo_xtoken[service]'",
    **dict.fromkeys(("lightning", "megatron", "modelopt", "nemo", "nemo_run"), "'nemo_xtoken[nemo]'"),
}


def missing_package(error: BaseException, what: str) -> InputError | None:
    """What to say of an import that failed since a package is not installed; None for errors of other kinds.

    Args:
        what: needs it: ``xtoken bits``.
    """
    name = error.name if isinstance(error, ModuleNotFoundError) else None
    top = (name or "").split(".")[0]
    if name is None or top == __name__.split(".")[0]:
        return None
    if top in sys.stdlib_module_names:
        return InputError(
            f"{what} needs Python's own module {top}, which {sys.executable} was built without",
            "a Python that has all of its modules",
            "use another Python, or build it again where the libraries that it needs are installed",
        )
    if name != top and _has(top):
        return InputError(
            f"{what} needs {name}, which the package {top} that is installed here does not have",
            f"another version of {top}, or all of its parts",
            "`xtoken env` says which versions are here, and with which the tests ran",
        )
    package = _BROUGHT_BY.get(top, top)
    return InputError(
        f"{what} needs the package {top}, which is not installed here",
        f"{top}; other verbs may do without",
        f"pip install {package}, or start it where that is installed (in the job's container, on a compute node)",
    )


def unloadable_nemo(error: Exception) -> InputError:
    """What to say where NeMo 2 is installed and importing it raised ``error``."""
    places = traceback.extract_tb(error.__traceback__)
    at = f", at {places[-1].filename}:{places[-1].lineno}" if places else ""
    return InputError(
        f"NeMo 2 is installed and cannot be loaded ({type(error).__name__}: {error}{at})",
        "an installation in which `import nemo.collections.llm` works",
        f"`{sys.executable} -c 'import nemo_xtoken, nemo.collections.llm'` shows the whole of it, and `xtoken env` the "
        "versions; those of constraints.txt fit each other",
    )


def find_stack() -> Stack:
    """Looks for every component."""
    return Stack(tuple(map(_look_for, COMPONENTS)))


def _look_for(component: Component) -> Found:
    version, remark = None, ""
    for package in component.packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            version = importlib.metadata.version(package)
            break
    there = _has(component.module)
    if version is not None and not there:
        remark = f"a package {package} {version} is installed, which is another project or incomplete"
    elif there and version and not component.was_tested(version):
        remark = f"tested with {', '.join(component.tested)}"
    return Found(component, (version or "") if there else None, remark)


def _has(module: str) -> bool:
    """Whether a module is there; ``a/b/c`` looks for the folder of a.b.c without importing a."""
    top, *below = module.split("/")
    if top in sys.modules and sys.modules[top] is None:  # blocked
        return False
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return False
    if spec is None or not below:
        return spec is not None
    from pathlib import Path

    return any(Path(folder, *below).is_dir() for folder in spec.submodule_search_locations or ())


def without_launcher(environment: Mapping[str, str]) -> dict[str, str]:
    """A process's environment without what makes it a rank among others: for a child process that runs on its own.

    With a launcher's variables (torchrun's, srun's, MPI's) the child would wait for the other ranks, or disturb them.
    """
    names = {"RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "NODE_RANK", "MASTER_ADDR"}
    names |= {"MASTER_PORT", "GROUP_WORLD_SIZE", "ROLE_RANK", "ROLE_WORLD_SIZE", "ROLE_NAME"}
    families = ("TORCHELASTIC_", "SLURM_", "PMI_", "PMIX_", "OMPI_", "NCCL_ASYNC")
    return {k: v for k, v in environment.items() if k not in names and not k.startswith(families)}
