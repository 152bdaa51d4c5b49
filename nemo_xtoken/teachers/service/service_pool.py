"""The side of a student: asks the replicas that live for states, several steps ahead, and never for the same twice."""

import contextlib
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from nemo_xtoken.errors import InputError
from nemo_xtoken.progress import say
from nemo_xtoken.teachers.contract import TeacherLost
from nemo_xtoken.teachers.fingerprint import Fingerprint
from nemo_xtoken.teachers.service.asked_rows import Row
from nemo_xtoken.teachers.service.messages import BadMessage, Message, tensor_of
from nemo_xtoken.teachers.service.service_folder import Keys, Replica, ServiceFolder, zeromq

__all__ = ["Patience", "PoolStatistics", "ServicePool"]

_POLL_MS = 20


@dataclass(frozen=True)
class Patience:
    """Seconds.

    Attributes:
        beat: between two questions whether a replica lives.
        silent: without an answer, after which a replica counts as dead, and its requests go to others.
        slow: that a batch may take, or a request be under way, before the request goes to another replica as well.
        lost: without any replica that lives, after which the run ends with a checkpoint.
        look: between two looks into the service's folder.
    """

    beat: float = 2.0
    silent: float = 20.0
    slow: float = 120.0
    lost: float = 600.0
    look: float = 2.0


@dataclass
class PoolStatistics:
    """What a student's side has seen.

    Attributes:
        rows, tokens: that have arrived, and were wanted.
        wire: bytes of frames and headers that have arrived.
        again: requests that went to another replica than the first.
        twice: answers to what was there already.
        waited: seconds that the run waited for states.
    """

    rows: int = 0
    tokens: int = 0
    wire: int = 0
    again: int = 0
    twice: int = 0
    waited: float = 0.0


@dataclass
class _Peer:
    """A replica, as the thread sees it."""

    replica: Replica
    socket: Any
    heard: float
    asked: float = 0.0
    credits: int = 0  # 0: it has not said welcome yet
    busy: float = 0.0
    alive: bool = False
    #: By key: when it was asked, and its positions, which the replica counts also where nobody wants them any more.
    under_way: "OrderedDict[str, tuple[float, int]]" = field(default_factory=OrderedDict)
    finished: int = 0
    since: float = 0.0


class ServicePool:
    """Requests and their answers.  One thread owns the connections; any thread may call the methods.

    Args:
        folder: by which the replicas are found.
        fingerprint: of the teacher that is wanted.
        patience: how long what may take.
        clock: in seconds.
        pinned: states are put into memory from which a GPU copies by itself, on this thread.

    Raises:
        InputError: no pyzmq, or keys that cannot be read.
    """

    def __init__(
        self,
        folder: ServiceFolder,
        fingerprint: Fingerprint,
        patience: Patience | None = None,
        clock: Callable[[], float] = time.monotonic,
        pinned: bool = False,
    ) -> None:
        self._zmq: Any = zeromq()
        self.folder, self.fingerprint, self.patience = folder, fingerprint, patience or Patience()
        self._clock, self._pinned = clock, pinned
        self._keys: Keys = folder.keys()
        self._change = threading.Condition()
        self._rows: OrderedDict[str, Row] = OrderedDict()  # wanted, in order
        self._results: dict[str, Tensor] = {}
        self._failed: dict[str, str] = {}
        self._refused: InputError | None = None
        self._broken: BaseException | None = None  # what the thread ended with
        self._peers: dict[str, _Peer] = {}
        self._stop = threading.Event()
        self._lived = clock()  # when a replica was last known to live
        self.statistics = PoolStatistics()
        self._thread = threading.Thread(target=self._run, name="teacher's service", daemon=True)
        self._thread.start()

    def want(self, row: Row) -> str:
        """Asks for the states of a row, unless they are asked for or there; returns its key."""
        key = row.key
        with self._change:
            if key not in self._rows:
                self._rows[key] = row
        return key

    def get(self, key: str, told: Callable[[str], None] = say) -> Tensor:
        """The states of a row that was asked for, ``[tokens, H]``; waits for them.

        Raises:
            InputError: the teacher refuses, or cannot compute them.
            TeacherLost: no replica lives.
            RuntimeError: the thread has failed.
        """
        begin = said = self._clock()
        with self._change:
            while True:
                if self._broken is not None:
                    raise RuntimeError("what asks the teacher's service has failed") from self._broken
                if self._refused is not None:
                    raise self._refused
                if key in self._results:
                    self.statistics.waited += self._clock() - begin
                    return self._results[key]
                if key in self._failed:
                    raise InputError(
                        f"the teacher gives no states ({self._failed[key]})",
                        "finite states of every row",
                        "see the log of the teacher's service",
                    )
                now = self._clock()
                if (silence := now - self._lived) > self.patience.lost:
                    raise TeacherLost(
                        f"no replica of the teacher in {self.folder.path} has answered for {silence:.0f} s"
                    )
                if now - said > 30:
                    said = now
                    alive = sum(peer.alive for peer in self._peers.values())
                    told(
                        f"waiting for the teacher since {now - begin:.0f} s: {alive} of {len(self._peers)} replicas "
                        f"answer; the run ends with a checkpoint after {self.patience.lost:.0f} s without any"
                    )
                self._change.wait(0.2)

    def has(self, key: str) -> bool:
        """Whether the states of a row have come and are still here."""
        with self._change:
            return key in self._results

    def forget(self, key: str) -> None:
        """What was got is not needed any more."""
        with self._change:
            self._rows.pop(key, None)
            self._results.pop(key, None)
            self._failed.pop(key, None)

    def alive(self) -> int:
        """Replicas that answer."""
        with self._change:
            return sum(peer.alive for peer in self._peers.values())

    def close(self) -> None:
        """Ends the connections."""
        self._stop.set()
        self._thread.join(5)

    # --- the thread

    def _run(self) -> None:
        context = self._zmq.Context()
        poller = self._zmq.Poller()
        looked = -float("inf")
        try:
            while not self._stop.is_set():
                now = self._clock()
                if now - looked >= self.patience.look:
                    looked = now
                    self._look(context, poller)
                with self._change:
                    self._keep_alive(now)
                    self._hand_out(now)
                for found, _ in poller.poll(_POLL_MS):
                    self._receive(found)
        except BaseException as error:
            with self._change:
                self._broken = error
                self._change.notify_all()
        finally:
            for peer in self._peers.values():
                peer.socket.close()
            context.term()

    def _look(self, context: Any, poller: Any) -> None:
        """Connects to replicas that are new, and lets go of those that have withdrawn or started anew."""
        found = {replica.name: replica for replica in self.folder.replicas()}
        for name, peer in list(self._peers.items()):
            if found.get(name) != peer.replica:
                with self._change:
                    self._lose(peer)
                    del self._peers[name]
                poller.unregister(peer.socket)
                peer.socket.close()
        for name, replica in found.items():
            if name not in self._peers:
                with self._change:
                    self._peers[name] = _Peer(replica, self._connected(context, replica), self._clock())
                poller.register(self._peers[name].socket, self._zmq.POLLIN)

    def _connected(self, context: Any, replica: Replica) -> Any:
        socket = context.socket(self._zmq.DEALER)
        socket.curve_serverkey = self._keys.server_public.encode()
        socket.curve_publickey = self._keys.student_public.encode()
        socket.curve_secretkey = self._keys.student_secret.encode()
        socket.linger = 0
        socket.setsockopt(self._zmq.RCVHWM, 0)  # credits bound it
        socket.setsockopt(self._zmq.SNDHWM, 0)
        socket.setsockopt(self._zmq.RECONNECT_IVL_MAX, 2000)
        socket.connect(replica.address)
        return socket

    def _keep_alive(self, now: float) -> None:
        for peer in self._peers.values():
            if now - peer.asked >= self.patience.beat:
                peer.asked = now
                kind = "ping" if peer.credits else "hello"
                self._send(peer, Message(kind, {} if peer.credits else {"fingerprint": self.fingerprint.as_json()}))
            if peer.alive and (now - peer.heard > self.patience.silent or peer.busy > self.patience.slow):
                self._lose(peer)
            if peer.alive:
                self._lived = now

    def _lose(self, peer: _Peer) -> None:
        """Its requests go to others; when it answers again it has to say welcome first."""
        if peer.alive:
            self.statistics.again += len(peer.under_way)
        peer.alive, peer.credits, peer.busy = False, 0, 0.0
        peer.under_way.clear()

    def _send(self, peer: _Peer, message: Message) -> None:
        with contextlib.suppress(self._zmq.Again):  # there is no connection: it is silent, and will count as dead
            peer.socket.send_multipart(message.parts(), self._zmq.NOBLOCK)

    def _hand_out(self, now: float) -> None:
        """Rows that nobody computes go to the replica that will be done with them first, within its credits."""
        alive = [peer for peer in self._peers.values() if peer.alive]
        if not alive:
            return
        busy: dict[str, int] = {}
        late: set[str] = set()
        for peer in alive:
            for key, (since, _) in peer.under_way.items():
                busy[key] = busy.get(key, 0) + 1
                if now - since > self.patience.slow:
                    late.add(key)
        for key, row in self._rows.items():
            if key in self._results or key in self._failed:
                continue
            if key in busy and not (key in late and busy[key] == 1):
                continue
            free = [
                peer
                for peer in alive
                if key not in peer.under_way and (not peer.under_way or self._held(peer) + row.tokens <= peer.credits)
            ]
            if not free:
                if key in busy:
                    continue
                break
            best = min(free, key=lambda peer: (self._held(peer) + row.tokens) / self._speed(peer, now))
            best.under_way[key] = now, row.tokens
            self.statistics.again += key in busy
            self._send(best, row.message())

    def _held(self, peer: _Peer) -> int:
        return sum(tokens for _, tokens in peer.under_way.values())

    def _speed(self, peer: _Peer, now: float) -> float:
        """Tokens a second so far; the same for all that have finished nothing."""
        return max(peer.finished, 1) / max(now - peer.since, 1.0)

    def _receive(self, socket: Any) -> None:
        peer = next(peer for peer in self._peers.values() if peer.socket is socket)
        parts = socket.recv_multipart()
        with self._change:
            peer.heard = now = self._clock()
            try:
                self._take(peer, Message.of(parts), sum(map(len, parts)), now)
            except (BadMessage, ValueError, TypeError) as bad:
                self._refused = self._refusal(peer, str(bad))
            self._change.notify_all()

    def _take(self, peer: _Peer, message: Message, size: int, now: float) -> None:
        values = message.values
        if message.kind == "welcome":
            if float(values.get("busy", 0.0)) <= self.patience.slow:  # else it hangs, and is no use yet
                peer.credits, peer.alive = max(1, int(values.get("credits", 1))), True
                peer.since, peer.finished = now, 0
        elif message.kind == "refused":
            self._refused = self._refusal(peer, str(values.get("why")))
        elif message.kind == "pong":
            peer.busy = float(values.get("busy", 0.0))
            if not values.get("known"):  # the connection was lost, and what was under way with it
                self._lose(peer)
        elif message.kind == "unknown":
            self._lose(peer)
        elif message.kind in ("states", "failed"):
            key = str(values.get("key"))
            peer.under_way.pop(key, None)
            peer.busy = 0.0
            row = self._rows.get(key)
            if row is None or key in self._results:
                self.statistics.twice += 1
            elif message.kind == "failed":
                self._failed[key] = str(values.get("why"))
            else:
                of = self.fingerprint
                if values.get("dtype") != of.dtype or len(message.frames) != 1:
                    raise BadMessage(f"states of type {values.get('dtype')!r}")
                states = tensor_of(message.frames[0], of.dtype, [row.tokens, of.hidden_size])
                self._results[key] = states.pin_memory() if self._pinned else states
                peer.finished += row.tokens
                self.statistics.rows += 1
                self.statistics.tokens += row.tokens
                self.statistics.wire += size

    def _refusal(self, peer: _Peer, why: str) -> InputError:
        return InputError(
            f"the teacher's replica {peer.replica.name} at {peer.replica.address} refuses: {why}",
            f"the teacher of this run, whose fingerprint is {self.fingerprint.digest[:12]}, and the same version",
            "start the service with the run's teacher.path and precision, or set teacher.service.folder",
        )
