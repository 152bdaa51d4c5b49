"""Import paths that YAML files of earlier versions hold, and what they are called today.

What NeMo's checkpoints name is in no table: it keeps its path.
"""

__all__ = ["RENAMED", "current_path"]

#: A module of an earlier version -> the module that has its configuration classes and functions today.
RENAMED = {
    "nemo_xtoken.losses.objective": "nemo_xtoken.objective.scale",
    "nemo_xtoken.plugin.bridge.config": "nemo_xtoken.plugin.bridge.bridge_config",
    "nemo_xtoken.plugin.bridge.distill": "nemo_xtoken.plugin.bridge.distill_bridge",
}


def current_path(path: str) -> str:
    """Today's full name of a function or class that a ``_target_`` names; ``path`` itself if it is not an old one."""
    module, dot, name = path.rpartition(".")
    return f"{RENAMED[module]}{dot}{name}" if module in RENAMED else path
