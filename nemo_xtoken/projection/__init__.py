"""W, the sparse projection matrix from the student's to the teacher's vocabulary: building it, its file, its coverage.

The names below are loaded when they are first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nemo_xtoken.projection.audit import CoverageAudit, audit_coverage
    from nemo_xtoken.projection.build import ProjectionRule, build_projection, load_or_build
    from nemo_xtoken.projection.matrix import ProjectionMatrix

__all__ = [
    "CoverageAudit",
    "ProjectionMatrix",
    "ProjectionRule",
    "audit_coverage",
    "build_projection",
    "load_or_build",
]
_MODULES = {
    "audit": ("CoverageAudit", "audit_coverage"),
    "build": ("ProjectionRule", "build_projection", "load_or_build"),
    "matrix": ("ProjectionMatrix",),
}


def __getattr__(name: str) -> Any:
    for module, names in _MODULES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
