"""Which names a file may make objects of: classes of NeMo, Megatron, Lightning, torch's layers and this package.

YAML files of runs name what they build (``_target_``), and so do the contexts in NeMo's checkpoints.  A file from
somebody else could name anything that Python can import and call.  What is not on this list needs ``trust=true``.
"""

import enum
import inspect
import re
from collections.abc import Iterator, Mapping
from typing import Any

from nemo_xtoken.errors import InputError

__all__ = ["SWITCHES", "TRUST", "check_called", "check_content_trusted", "check_named", "is_named_trusted", "refused"]

TRUST = "trust=true"
#: Packages whose classes may be made, and whose functions may be values.
PACKAGES = (
    *("nemo_xtoken", "megatron.core", "megatron.bridge", "nemo.collections.llm", "nemo.collections.common.tokenizers"),
    *("nemo.collections.nlp.modules.common", "nemo.collections.vlm", "nemo.lightning", "nemo.core.optim"),
    *("nemo.utils.callbacks", "nemo.utils.exp_manager", "torch.optim", "torch.nn"),
    *(
        f"{package}.{part}"
        for package in ("lightning.pytorch", "lightning.fabric", "pytorch_lightning", "lightning_fabric")
        for part in ("callbacks", "loggers", "plugins", "profilers", "strategies", "trainer")
    ),
)
#: Single names: containers, and what fiddle writes around a configuration.
NAMES = frozenset(
    {
        *(f"builtins.{name}" for name in ("dict", "list", "tuple", "set", "frozenset", "slice", "complex", "bytes")),
        *(f"builtins.{name}" for name in ("int", "float", "str", "bool", "NoneType", "Ellipsis")),
        *(f"fiddle._src.config.{name}" for name in ("Config", "Partial", "BuildableTraverserMetadata", "ArgFactory")),
        *("fiddle._src.partial.Partial", "fiddle._src.partial.ArgFactory"),
        *("pathlib.Path", "pathlib.PosixPath", "pathlib.PurePosixPath", "functools.partial", "signal.Signals"),
        *("collections.OrderedDict", "collections.defaultdict", "datetime.timedelta", "torch.Size", "torch.dtype"),
        *("torch.bfloat16", "torch.float16", "torch.float32", "torch.float64", "torch.float", "torch.half"),
    }
)
#: Functions that a run calls; a class is made by calling it, and needs no place here.
_CALLED = re.compile(
    r"nemo_xtoken\.recipes\.\w+\.[a-z]\w*"
    r"|nemo_xtoken\.plugin\.(nemo2\.distill|bridge\.distill|bridge\.distill_bridge)\.distill"
    r"|nemo_xtoken\.plugin\.bridge\.bridge_swap\.swap_tokenizer"
    r"|nemo_xtoken\.plugin\.nemo2\.(swap\.swap_tokenizer|student\.tokenizer|student\.fused_rope)"
    r"|nemo\.collections\.llm\.(api|recipes\.[\w.]+)\.[a-z]\w*"
    r"|builtins\.dict"
)
#: Functions that may be values: activations, specifications of layers, initial weights.  They do no harm when called.
_VALUES = re.compile(
    r"torch\.nn\.(functional|init)\.\w+|torch\.(sigmoid|tanh|relu)"
    r"|megatron\.core\.(fusions|activations|transformer|models|extensions)\.[\w.]+|megatron\.core\.utils\.\w*init\w*"
    r"|megatron\.bridge\.models\.[\w.]+|nemo\.collections\.(llm\.gpt|llm|vlm)\.[\w.]*model\.[\w.]+"
)
#: Arguments that would let a file trust itself, or code that it names in other ways.
SWITCHES = ("trust", "trust_remote_code")
_CODE = re.compile(r"(?P<module>[A-Za-z_][\w.]*):[A-Za-z_]\w*")  # a loss or a teacher source from outside the package
CODE_KEYS = ("loss", "source")


def is_named_trusted(module: str, name: str) -> bool:
    """Whether the list has this name; of the object behind it see `check_named`."""
    full = f"{module}.{name}"
    return full in NAMES or any(full.startswith(f"{package}.") for package in PACKAGES)


def check_named(found: Any, name: str, source: str) -> None:
    """An object that has been imported under a name on the list.

    It must be at home there, as ``nemo_xtoken.hub.os.system`` is not: a public class, a function of those that may be
    values, a type of numbers or a constant of an enumeration.

    Raises:
        InputError: it is something else.
    """
    if name in NAMES or isinstance(found, enum.Enum) or type(found).__name__ == "dtype":
        return
    home = f"{getattr(found, '__module__', None)}.{getattr(found, '__qualname__', None)}"
    if isinstance(found, type):
        good = is_named_trusted(*home.rpartition(".")[::2]) and not found.__name__.startswith("_")
    else:  # functions of torch's are at home where they are written in C
        of_torch = name.startswith("torch.nn.") and home.startswith(("torch.", "None."))
        good = (
            inspect.isroutine(found) and bool(_VALUES.fullmatch(name)) and (of_torch or bool(_VALUES.fullmatch(home)))
        )
    if not good:
        raise refused(name if home == name else f"{name}, which is {home}", source)


def check_called(found: Any, name: str, source: str) -> None:
    """What is called must be a class or one of the functions that runs begin with.

    Raises:
        InputError: it is neither.
    """
    home = f"{getattr(found, '__module__', None)}.{getattr(found, '__qualname__', None)}"
    if isinstance(found, type) or _CALLED.fullmatch(home) is None:
        check_named(found, name, source)


def check_content_trusted(content: Any, source: str) -> None:
    """The names in a YAML file of a run, before anything is imported.

    Raises:
        InputError: a ``_target_`` that is not on the list, code that is named in another way, or a file that trusts
            itself or others.
    """
    for where, key, value in _pairs(content, ""):
        text = str(value)
        module, _, name = text.rpartition(".")
        outside = _CODE.fullmatch(text) is not None and not text.startswith("nemo_xtoken.")
        untrusted = name.startswith("_") or not is_named_trusted(module, name)
        switched = key in SWITCHES and value not in (False, None)
        if switched or key == "_factory_" or (key == "_target_" and untrusted) or (key in CODE_KEYS and outside):
            raise refused(f"{where}={value}", source)


def _pairs(content: Any, where: str) -> Iterator[tuple[str, str, Any]]:
    """``(path, key, value)`` of everything in plain data that has a key."""
    if isinstance(content, Mapping):
        for key, value in content.items():
            path = f"{where}.{key}" if where else str(key)
            yield path, str(key), value
            yield from _pairs(value, path)
    elif isinstance(content, list):
        for i, value in enumerate(content):
            yield from _pairs(value, f"{where}[{i}]")


def refused(what: str, source: str) -> InputError:
    """The error about a name that is not on the list."""
    return InputError(
        f"{source} names {what}",
        "classes of NeMo, Megatron, Lightning and this package, and the functions of its recipes",
        f"look at the file; if it comes from somebody you trust, add {TRUST}: code that it names is run then",
    )
