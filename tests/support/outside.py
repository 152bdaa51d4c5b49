"""A loss and two sources of a teacher's states that the package knows nothing of, named as ``outside:Class``."""

import os
from pathlib import Path

import numpy as np
import torch

from nemo_xtoken.errors import InputError
from nemo_xtoken.losses.elementwise import ElementwiseDivergence
from nemo_xtoken.teachers.colocated import ColocatedTeacher
from nemo_xtoken.teachers.contract import States, Teacher
from nemo_xtoken.teachers.output import output_head

__all__ = ["FOLDER", "Hellinger", "Recorded", "Replayed"]

#: The environment variable that says where states are kept.
FOLDER = "RECORDED_STATES"


class Hellinger(ElementwiseDivergence):
    """The squared Hellinger distance."""

    def terms(self, p_student, p_teacher):
        return (p_student.sqrt() - p_teacher.sqrt()).square() / 2


def pieces(side):
    """``(key, rows)`` of each piece: text, place in it and length; its rows in the flattened micro-batch."""
    length = side.tokens.shape[1]
    for digest, (sample, first, count, start) in zip(side.digests, side.pieces.tolist(), strict=True):
        at = sample * length + first
        yield f"{bytes(digest.numpy()).hex()}-{start}-{count}", slice(at, at + count)


class Recorded(ColocatedTeacher):
    """One process's, which keeps its states and its output layer when the run ends."""

    def lay_out(self, *ownerships):
        self.kept = {"output": self.model.output_layer.weight[: self.vocabulary_size].numpy().copy()}
        return super().lay_out(*ownerships)

    def states(self, sides):
        found = super().states(sides)
        for side, states in zip(sides, found, strict=True):
            self.kept |= {key: states.hidden[rows].numpy() for key, rows in pieces(side)}
        return found

    def close(self):
        np.savez(Path(os.environ[FOLDER], "states.npz"), **self.kept)


class Replayed(Teacher):
    """The states of a run before, on any ranks; there is no model."""

    one_at_a_time = True

    @classmethod
    def check(cls, settings, where):
        if not Path(os.environ[FOLDER], "states.npz").is_file():
            raise InputError(f"no states for {where}", "those of a run before", "record them")

    @classmethod
    def open(cls, host):
        made = cls()
        made.label, made.host = host.label, host
        made.kept = dict(np.load(Path(os.environ[FOLDER], "states.npz")))
        return made

    def lay_out(self, *ownerships):
        heads = []
        for ownership in ownerships:
            shard = ownership.shard
            mine = self.kept["output"][ownership.order[shard.start : shard.start + shard.valid_rows]]
            rows = torch.nn.functional.pad(torch.from_numpy(mine), (0, 0, 0, shard.rows - len(mine)))
            heads.append(output_head(rows, shard, self.host.config, torch.from_numpy(ownership.owned)))
        return heads

    def states(self, sides):
        from megatron.core import parallel_state

        if not parallel_state.is_pipeline_last_stage():
            return [None] * len(sides)
        return [self._states(side) for side in sides]

    def _states(self, side):
        whole = torch.zeros(side.tokens.numel(), self.kept["output"].shape[1])
        for key, rows in pieces(side):
            whole[rows] = torch.from_numpy(self.kept[key])
        layout = self.host.form.context_layout(side)
        return States(layout.take(whole), layout)
