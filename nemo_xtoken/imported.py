"""Classes from outside of this package, named in a configuration as ``package.module:Class``."""

import importlib
from typing import Any

from nemo_xtoken.errors import InputError

__all__ = ["find_attribute", "import_class"]


def find_attribute(module: str, name: str) -> Any:
    """What a module calls ``name``, which may have dots.

    Raises:
        ImportError, AttributeError, ValueError: the module cannot be imported, or there is nothing of that name in it.
    """
    found: Any = importlib.import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    return found


def import_class(name: str, base: type, where: str) -> Any:
    """The class of that name.

    Args:
        base: what it has to be a subclass of.
        where: what names it, for error messages: ``loss``.

    Raises:
        InputError: the module cannot be imported, or there is no such class in it.
    """
    module, _, attribute = name.partition(":")
    try:
        found = find_attribute(module, attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(
            f"{where}={name!r} cannot be imported ({type(error).__name__}: {error})",
            "package.module:Class, a class that Python finds",
            "correct the name, install its package, or put its folder on PYTHONPATH",
        ) from error
    if not (isinstance(found, type) and issubclass(found, base)):
        raise InputError(
            f"{where}={name!r} is {found!r}",
            f"a subclass of {base.__module__}.{base.__qualname__}",
            "derive it from that class",
        )
    return found
