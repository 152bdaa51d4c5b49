"""The side of a replica: takes requests from students, and sends them states, while the model computes elsewhere."""

import secrets
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from nemo_xtoken.teachers.fingerprint import Fingerprint
from nemo_xtoken.teachers.service.asked_rows import Row
from nemo_xtoken.teachers.service.messages import PROTOCOL, BadMessage, Message, raw
from nemo_xtoken.teachers.service.service_folder import Keys, Replica, ServiceFolder

__all__ = ["Asked", "Limits", "ReplicaServer"]

_POLL_MS = 50
_GONE_SECONDS = 600.0  # a student that has said nothing for so long is gone


@dataclass(frozen=True)
class Limits:
    """What a replica takes.

    Attributes:
        length: positions of a row.
        vocabulary: V_T.
        credits: positions that a student may have asked for and not got yet; this bounds memory on both sides.
        students: that it speaks with at a time.
    """

    length: int
    vocabulary: int
    credits: int
    students: int = 4096


@dataclass(frozen=True)
class Asked:
    """A request.

    Attributes:
        student: who asked, as ZeroMQ names the connection.
        row: what for.
    """

    student: bytes
    row: Row


class ReplicaServer:
    """Listens in a thread of its own, so that heartbeats are answered while the model computes.

    Students must have the service's key; others get nothing, not even an answer.

    Args:
        folder: where students find it.
        name: of the replica.
        fingerprint: of the teacher.
        limits: of requests.
        host: under which others reach this machine; default its name.
        clock: in seconds.

    Raises:
        InputError: no pyzmq, or a folder whose keys cannot be made or read.
    """

    def __init__(
        self,
        folder: ServiceFolder,
        name: str,
        fingerprint: Fingerprint,
        limits: Limits,
        host: str | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.folder, self.fingerprint, self.limits = folder, fingerprint, limits
        self._keys = folder.keys()
        self._clock = clock
        self._asked: deque[Asked] = deque()
        self._held: dict[bytes, int] = {}  # positions that each student waits for
        self._heard: dict[bytes, float] = {}
        self._there = threading.Condition()
        self._out: deque[tuple[bytes, list[Any]]] = deque()
        self._since: float | None = None  # when the batch that is computed began
        self._stop = threading.Event()
        self._ready = threading.Event()
        self._error: BaseException | None = None
        self.replica = Replica(name, "", secrets.token_hex(8))
        self._host = host or socket.gethostname()
        self._thread = threading.Thread(target=self._run, name=f"replica {name}", daemon=True)
        self._thread.start()
        self._ready.wait()
        if self._error is not None:
            raise self._error
        folder.register(self.replica)

    # --- for the thread that computes

    def take(self, most: int, wait: float) -> list[Asked]:
        """Up to ``most`` requests for rows of one length, the oldest first; [] where none came in ``wait`` seconds.

        Raises:
            RuntimeError: the thread that listens has failed.
        """
        with self._there:
            self._there.wait_for(lambda: bool(self._asked or self._error), wait)
            if self._error is not None:
                raise RuntimeError("what listens to students has failed") from self._error
            if not self._asked:
                return []
            length = self._asked[0].row.length
            chosen = [asked for asked in self._asked if asked.row.length == length][:most]
            for asked in chosen:
                self._asked.remove(asked)
            self._since = self._clock()
            return chosen

    def answer(self, asked: Sequence[Asked], states: Sequence[Tensor]) -> None:
        """Sends states ``[tokens, H]`` of each request."""
        replies = []
        for one, found in zip(asked, states, strict=True):
            dtype = str(found.dtype).removeprefix("torch.")
            values = {"key": one.row.key, "dtype": dtype, "shape": list(found.shape)}
            replies.append(Message("states", values, [raw(found.cpu())]))
        self._done(asked, replies)

    def fail(self, asked: Sequence[Asked], why: str) -> None:
        """Says that states are not to be had."""
        self._done(asked, [Message("failed", {"key": one.row.key, "why": why[:2000]}) for one in asked])

    def _done(self, asked: Sequence[Asked], replies: Sequence[Message]) -> None:
        """A student may ask anew when it has a reply, so the credits come back before the first is sent."""
        with self._there:
            self._since = None
            for one in asked:
                if one.student in self._held:
                    self._held[one.student] = max(0, self._held[one.student] - one.row.tokens)
        self._out.extend((one.student, reply.parts()) for one, reply in zip(asked, replies, strict=True))

    def close(self, wait: float = 5.0) -> None:
        """Withdraws the address, sends what is to be sent, and ends the thread."""
        self.folder.withdraw(self.replica)
        self._stop.set()
        self._thread.join(wait)

    # --- the thread that listens

    def _run(self) -> None:
        try:
            import zmq
            from zmq.auth.thread import ThreadAuthenticator

            context = zmq.Context()
            authenticator = ThreadAuthenticator(context)
            authenticator.start()
            authenticator.configure_curve_callback("*", credentials_provider=_Known(self._keys))
            router = context.socket(zmq.ROUTER)
            router.curve_secretkey = self._keys.server_secret.encode()
            router.curve_publickey = self._keys.server_public.encode()
            router.curve_server = True
            router.linger = 2000
            router.setsockopt(zmq.MAXMSGSIZE, max(2**20, 8 * self.limits.length))
            router.setsockopt(zmq.SNDHWM, 0)  # credits bound it
            port = router.bind_to_random_port("tcp://*")
            self.replica = Replica(self.replica.name, f"tcp://{self._host}:{port}", self.replica.start)
        except BaseException as error:
            self._error = error
            self._ready.set()
            return
        self._ready.set()
        try:
            self._serve(router)
        except BaseException as error:
            with self._there:
                self._error = error
                self._there.notify_all()
        finally:
            router.close()
            authenticator.stop()
            context.term()

    def _serve(self, router: Any) -> None:
        import zmq

        poller = zmq.Poller()
        poller.register(router, zmq.POLLIN)
        while not self._stop.is_set() or self._out:
            while self._out:
                student, parts = self._out.popleft()
                router.send_multipart([student, *parts], copy=False)
            if poller.poll(1 if self._out else _POLL_MS if not self._since else 5):
                student, *parts = router.recv_multipart()
                self._receive(student, parts, lambda reply: router.send_multipart([student, *reply.parts()]))  # noqa: B023

    def _receive(self, student: bytes, parts: Sequence[bytes], reply: Callable[[Message], None]) -> None:
        try:
            message = Message.of(parts)
            if message.kind == "hello":
                reply(self._welcome(student, message))
            elif message.kind == "ping":
                self._heard[student] = self._clock()
                known = student in self._held
                reply(Message("pong", {"busy": self._busy(), "waiting": len(self._asked), "known": known}))
            elif message.kind == "ask":
                self._ask(student, message, reply)
            else:
                raise BadMessage(f"a message {message.kind!r}")
        except BadMessage as bad:
            reply(Message("refused", {"why": str(bad), "protocol_here": PROTOCOL}))

    def _busy(self) -> float:
        """Seconds since the batch began that is computed."""
        since = self._since
        return 0.0 if since is None else self._clock() - since

    def _welcome(self, student: bytes, message: Message) -> Message:
        try:
            wanted = Fingerprint.from_json(str(message.values.get("fingerprint")))
        except ValueError as error:
            raise BadMessage(str(error)) from error
        if wanted != self.fingerprint:
            return Message("refused", {"why": f"another teacher: {wanted.differences(self.fingerprint)}"})
        with self._there:
            now = self._clock()
            for gone in [one for one, heard in self._heard.items() if now - heard > _GONE_SECONDS]:
                del self._heard[gone]
                self._held.pop(gone, None)
            if student not in self._held and len(self._held) >= self.limits.students:
                return Message("refused", {"why": f"{len(self._held)} students already"})
            # A student that says hello again waits for nothing: it has lost its connection, and asks anew.
            self._held[student], self._heard[student] = 0, now
            self._asked = deque(asked for asked in self._asked if asked.student != student)
        return Message("welcome", {"credits": self.limits.credits, "busy": self._busy()})

    def _ask(self, student: bytes, message: Message, reply: Callable[[Message], None]) -> None:
        key = str(message.values.get("key"))[:64]
        if student not in self._held:
            reply(Message("unknown", {"key": key}))
            return
        try:
            row = Row.of(message, self.limits.length, self.limits.vocabulary)
        except BadMessage as bad:
            reply(Message("failed", {"key": key, "why": str(bad)}))
            return
        with self._there:
            if self._held[student] and self._held[student] + row.tokens > self.limits.credits:
                reply(Message("failed", {"key": key, "why": "more than the credits allow"}))
                return
            self._held[student] += row.tokens
            self._asked.append(Asked(student, row))
            self._there.notify()


class _Known:
    """Which public keys may connect, in the form that pyzmq asks."""

    def __init__(self, keys: Keys) -> None:
        self._public = keys.student_public.encode()

    def callback(self, _domain: str, key: bytes) -> bool:
        """Whether it is the students' key, in Z85."""
        return secrets.compare_digest(key, self._public)
