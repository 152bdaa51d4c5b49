"""The path of ``ObjectiveConfig`` in YAML files and checkpoints of version 0.1.0."""

from nemo_xtoken.objective.scale import ObjectiveConfig

__all__ = ["ObjectiveConfig"]
