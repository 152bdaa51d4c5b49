"""The types of a model's weights."""

from collections.abc import Iterable

__all__ = ["FLOATS", "READABLE", "widest"]

#: As safetensors files call them -> as torch and transformers do.
FLOATS = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
#: What is read; a model is never written in the last.
READABLE = {**FLOATS, "F64": "float64"}


def widest(codes: Iterable[str]) -> str | None:
    """The narrowest type, as safetensors files call it, that holds every number of all the types; None without any.

    Args:
        codes: types of tensors; what is no floating type says nothing.
    """
    found = {code for code in codes if code in READABLE}
    if len(found) > 1:
        return "F64" if "F64" in found else "F32"  # neither BF16 nor F16 holds the other
    return next(iter(found), None)
