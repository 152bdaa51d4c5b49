"""The light verbs, ``xtoken VERB`` and ``nemo xtoken VERB``: one small module each.

A module listed here has a ``VERB``, and imports what is heavy inside its ``run`` function only.  A new verb is a module
beside these and its name in the tuple; help, spelling hints and both commands follow.
"""

from importlib import import_module

from nemo_xtoken.commands.verb import Verb

__all__ = ["MODULES", "all_verbs"]

MODULES = (
    "build",
    "audit",
    "inspect",
    "diff",
    "convert",
    "align",
    "prepare",
    "cache",
    "serve",
    "certify",
    "transplant",
    "prune",
    "bits",
    "import_model",
    "export_model",
    "evaluate",
    "settings",
    "preflight",
    "sbatch",
    "env",
)


def all_verbs() -> dict[str, Verb]:
    """The verbs by name, in the order in which help shows them."""
    verbs = (import_module(f"{__name__}.{module}").VERB for module in MODULES)
    return {verb.name: verb for verb in verbs}
