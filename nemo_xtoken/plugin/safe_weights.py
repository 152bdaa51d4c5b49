"""The pickles in a distributed checkpoint, read by an unpickler that knows a few classes, before torch reads them.

torch's distributed checkpoints have three kinds: ``.metadata``, which says where each tensor is and is unpickled as it
is; objects between the tensors, which are loaded without restriction when a model asks for them; and ``common.pt``.
"""

import collections
import io
import pathlib
import pickle
from pathlib import Path
from typing import Any

from nemo_xtoken.errors import InputError
from nemo_xtoken.run.arguments.trusted_names import TRUST

__all__ = ["check_weights", "find_truncated", "read_metadata"]

METADATA, COMMON = ".metadata", "common.pt"
MOST_METADATA = 2 << 30  # bytes; some 100 bytes a tensor and rank
MOST_OBJECT = 64 << 20  # bytes of one object
#: Modules of the classes in ``.metadata``; of each only classes, and only those named.
CLASSES = {
    "torch.distributed.checkpoint.metadata": (
        *("Metadata", "TensorStorageMetadata", "TensorProperties", "ChunkStorageMetadata", "BytesStorageMetadata"),
        *("MetadataIndex", "StorageMeta", "_MEM_FORMAT_ENCODING"),
    ),
    "torch.distributed.checkpoint.filesystem": ("_StorageInfo", "_StoragePrefix", "StorageMeta"),
    "torch.distributed.checkpoint.planner": (
        *("WriteItem", "WriteItemType", "TensorWriteData", "BytesIOWriteData", "SavePlan"),
    ),
    "megatron.core.dist_checkpointing.strategies.torch": ("MCoreMetadata", "MCoreSavePlan"),
    "torch.serialization": ("_get_layout",),
    "torch": ("Size", "device"),
    "collections": ("OrderedDict", "defaultdict"),
    "builtins": ("set", "frozenset", "dict", "list", "tuple"),
    "pathlib": ("Path", "PosixPath", "PurePosixPath"),
}


class Unreadable(ValueError):
    """A pickle that is none, or is damaged."""


class _NotListed(pickle.UnpicklingError):
    """A pickle that names what no checkpoint needs."""


class _Unpickler(pickle.Unpickler):
    """Classes of checkpoints alone."""

    def find_class(self, module: str, name: str) -> Any:
        import torch

        if name in CLASSES.get(module, ()):
            if module in ("collections", "builtins", "pathlib"):
                return getattr({"collections": collections, "pathlib": pathlib}.get(module) or _builtins(), name)
            return super().find_class(module, name)
        if module == "torch" and isinstance(found := getattr(torch, name, None), (torch.dtype, torch.memory_format)):
            return found
        raise _NotListed(f"it names {module}.{name}")


def _builtins() -> Any:
    import builtins

    return builtins


def read_metadata(weights: Path) -> Any:
    """``.metadata`` of a checkpoint's folder of weights; None where it has none.

    Raises:
        InputError: it names what is not a part of torch's checkpoints.
        Unreadable: it cannot be read.
    """
    file = weights / METADATA
    if not file.is_file():
        return None
    try:
        if (size := file.stat().st_size) > MOST_METADATA:
            raise ValueError(f"{size} bytes")
        with open(file, "rb") as stream:
            return _Unpickler(stream).load()
    except _NotListed as error:
        raise _refused(file, error) from error
    except Exception as error:  # a damaged pickle raises anything
        raise Unreadable(f"{METADATA} cannot be read ({type(error).__name__}: {error})") from error


def check_weights(weights: Path) -> None:
    """Looks at every pickle that loading could open.

    Args:
        weights: the folder with ``.metadata``.

    Raises:
        InputError: one that holds more than tensors, plain values and the classes of checkpoints, or cannot be read.
    """
    import torch
    from megatron.core.safe_globals import register_safe_globals

    register_safe_globals()  # as Megatron itself does: classes that its checkpoints hold
    if (weights / "modelopt_state").exists():  # read without restriction by its library
        raise _refused(weights / "modelopt_state", ValueError("ModelOpt keeps pickles there"))
    try:
        metadata = read_metadata(weights)
    except Unreadable as error:
        raise _refused(weights / METADATA, error) from error
    if (common := weights / COMMON).is_file():
        _loads(torch, common, common)
    places = getattr(metadata, "storage_data", None) or {}
    kinds = getattr(metadata, "state_dict_metadata", None) or {}
    for index, place in places.items():
        if type(kinds.get(index.fqn)).__name__ != "BytesStorageMetadata":
            continue
        file = weights / str(place.relative_path)
        try:
            if not file.resolve().is_relative_to(weights.resolve()) or not 0 <= place.length <= MOST_OBJECT:
                raise ValueError(f"{place.length} bytes in {place.relative_path}")
            with open(file, "rb") as stream:
                stream.seek(place.offset)
                data = io.BytesIO(stream.read(place.length))
        except (OSError, ValueError, TypeError) as error:
            raise _refused(file, error) from error
        _loads(torch, data, file)


def find_truncated(weights: Path) -> str | None:
    """A file of tensors that is missing or shorter than ``.metadata`` says; None where there is none."""
    ends: dict[str, int] = {}
    try:
        places = getattr(read_metadata(weights), "storage_data", None) or {}
    except Unreadable as error:
        return f"weights/{error}"
    except InputError:  # of a checkpoint that is trusted, or is refused for it
        return None
    for place in places.values():
        name = str(place.relative_path)
        ends[name] = max(ends.get(name, 0), place.offset + place.length)
    for name, end in ends.items():
        if not (weights / name).is_file():
            return f"weights/{name} is missing"
        if (size := (weights / name).stat().st_size) < end:
            return f"weights/{name} has {size:,} bytes of {end:,}"
    return None


def _loads(torch: Any, data: Any, file: Path) -> None:
    try:
        torch.load(data, map_location="cpu", weights_only=True)
    except Exception as error:  # each damage raises another
        raise _refused(file, error) from error


def _refused(file: Path, error: Exception) -> InputError:
    reason = str(error).strip().partition("\n")[0][:200] or type(error).__name__
    return InputError(
        f"{file} is not read: {reason}",
        "tensors, plain values and the classes that torch's and Megatron's checkpoints consist of",
        f"copy the checkpoint again if it is damaged; if it comes from somebody you trust, add {TRUST}: code in it is "
        "run then",
    )
