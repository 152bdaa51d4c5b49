"""``xtoken serve``: the model of a replica computes what students ask for."""

import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from nemo_xtoken.errors import InputError
from nemo_xtoken.progress import say
from nemo_xtoken.teachers.colocated import ColocatedTeacher
from nemo_xtoken.teachers.contract import TeacherHost
from nemo_xtoken.teachers.fill.filling import whole_states, wrong_anywhere
from nemo_xtoken.teachers.service.asked_rows import Row, inputs_of
from nemo_xtoken.teachers.service.replica_server import Asked, Limits, ReplicaServer
from nemo_xtoken.teachers.service.service_folder import ServiceFolder

__all__ = ["serve_states"]

_LINE_SECONDS = 60.0
#: What the rank that listens tells the others, instead of rows.
_STOP = None


def serve_states(
    host: TeacherHost,
    folder: ServiceFolder,
    name: str,
    limits: Limits,
    micro_batch: int,
    address: str | None = None,
    stopped: Callable[[], bool] = lambda: False,
    wait: float = 1.0,
) -> int:
    """Answers requests until it is to stop.  Collective over the processes of one replica.

    The last rank listens: it is on the model's last pipeline stage.

    Args:
        host: of the teacher; its copy takes all processes.
        folder: where students find it.
        name: of the replica.
        limits: of requests.
        micro_batch: rows at a time.
        address: under which others reach this machine.
        stopped: whether it is to stop; asked on the rank that listens.
        wait: seconds between two looks at that.

    Returns:
        positions that were computed.

    Raises:
        InputError: more processes than one copy takes, no pyzmq, or a folder that cannot be used.
    """
    ranks = dist.get_world_size()
    if ranks != host.sizes.ranks:
        raise InputError(
            f"{ranks} processes for a replica over {host.sizes.ranks}",
            "as many: each replica is a service of its own",
            "start `xtoken serve` once for each replica, in the same folder",
        )
    fingerprint = host.fingerprint()
    teacher = ColocatedTeacher.open(host)
    listens = dist.get_rank() == ranks - 1
    server = ReplicaServer(folder, name, fingerprint, limits, address) if listens else None
    if server is not None:
        say(f"{name} listens at {server.replica.address}; students find it in {folder.path}")
    tokens, begin, said = 0, time.monotonic(), time.monotonic()
    try:
        while True:
            asked = [] if server is None or stopped() else server.take(micro_batch, wait)
            word = _told(listens, _STOP if listens and stopped() and not asked else [one.row for one in asked])
            if word is _STOP:
                return tokens
            if not word:
                continue
            states = _computed(teacher, word)
            if server is not None:
                assert states is not None
                _answer(server, asked, states)
            tokens += sum(row.tokens for row in word)
            if listens and time.monotonic() - said > _LINE_SECONDS:
                said = time.monotonic()
                say(f"{name}: {tokens:,} tokens, {tokens / (said - begin):,.0f} a second")
    finally:
        if server is not None:
            server.close()


def _told(listens: bool, word: Any) -> Any:
    """The word of the rank that listens, on all."""
    if dist.get_world_size() == 1:
        return word
    shared = [word]
    dist.broadcast_object_list(shared, src=dist.get_world_size() - 1)
    return shared[0]


def _computed(teacher: ColocatedTeacher, rows: list[Row]) -> list[Tensor] | str | None:
    """The states of each row; what is wrong with them; None on ranks that do not have them.

    Collective over the processes of a replica; of the last stage's all have states, or all know what is wrong.
    """
    inputs = inputs_of(rows).map(lambda tensor: tensor.to(torch.cuda.current_device()))
    states, wrong = None, None
    try:
        [states] = teacher.states([inputs])
    except InputError as error:
        wrong = error.found
    if not teacher.last_stage:
        return wrong
    wrong = wrong_anywhere(wrong, teacher.form.context_layout(inputs).group)  # each sees its own positions alone
    if wrong is not None or states is None:
        return wrong
    hidden = whole_states(states)
    length = rows[0].length
    return [hidden[n * length : n * length + row.tokens].cpu() for n, row in enumerate(rows)]


def _answer(server: ReplicaServer, asked: list[Asked], states: list[Tensor] | str) -> None:
    if isinstance(states, str):
        server.fail(asked, states)
    else:
        server.answer(asked, states)
