"""A second set of Megatron's process groups in the same processes, for a teacher that is laid out in its own way.

Megatron-core keeps one set in the module ``parallel_state``, where layers, schedules and checkpoints look it up.  So
the set is exchanged as a whole while the teacher is built, loaded or run, and put back after.

Instead, groups can be given (``pg_collection``) in parts.  In version 0.15, which NeMo 2 needs: not in NeMo's model
configs, in loading checkpoints, or under sequence parallelism.  In version 0.19 models, schedules and Bridge 0.6.2's
import from Hugging Face take them; loading one of Bridge's own checkpoints (``build_and_load_model``) makes the model
in the module's set.  With collections beside the exchange there would be two ways to the same thing, of which neither
could go.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from nemo_xtoken.run.layout import ParallelSizes

__all__ = ["ParallelSizes", "TeacherGroups", "make_groups"]


def make_groups(sizes: ParallelSizes) -> None:
    """Makes Megatron's process groups for a layout of all processes; collective over them."""
    from megatron.core import parallel_state

    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=sizes.tensor,
        pipeline_model_parallel_size=sizes.pipeline,
        context_parallel_size=sizes.context,
        expert_model_parallel_size=sizes.expert,
        expert_tensor_parallel_size=sizes.expert_tensor,
        create_gloo_process_groups=False,
    )


class TeacherGroups:
    """Process groups of another layout over all processes.

    Collective over all processes: makes the groups, in Megatron's order of ranks.  The active layout does not change.

    """

    def __init__(self, sizes: ParallelSizes) -> None:
        self.sizes = sizes
        theirs = _state()
        try:
            _put(dict.fromkeys(theirs))
            make_groups(sizes)
            self._state = _state()
        finally:
            _put(theirs)

    @contextmanager
    def active(self) -> Iterator[None]:
        """Inside, Megatron's functions see these groups; afterwards, also after an error, the previous ones."""
        theirs = _state()
        _put(self._state)
        try:
            yield
        finally:
            self._state = _state()
            _put(theirs)


def _state() -> dict[str, Any]:
    """All that ``parallel_state`` knows of a layout: its module variables in capitals."""
    from megatron.core import parallel_state

    return {name: value for name, value in vars(parallel_state).items() if re.fullmatch("_[A-Z][A-Z_]*", name)}


def _put(state: dict[str, Any]) -> None:
    from megatron.core import parallel_state

    vars(parallel_state).update(state)
