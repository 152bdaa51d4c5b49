"""Students and replicas over real connections, in threads and processes, with small tensors and no model."""

import contextlib
import dataclasses
import json
import multiprocessing
import os
import signal
import threading
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from relay import Relay

zmq = pytest.importorskip("zmq")

from nemo_xtoken.errors import InputError  # noqa: E402
from nemo_xtoken.teachers.contract import TeacherLost  # noqa: E402
from nemo_xtoken.teachers.fingerprint import Fingerprint  # noqa: E402
from nemo_xtoken.teachers.service.asked_rows import Row, inputs_of  # noqa: E402
from nemo_xtoken.teachers.service.messages import BadMessage, Message, raw, tensor_of  # noqa: E402
from nemo_xtoken.teachers.service.replica_server import Limits, ReplicaServer  # noqa: E402
from nemo_xtoken.teachers.service.service_folder import ServiceFolder  # noqa: E402
from nemo_xtoken.teachers.service.service_pool import Patience, ServicePool  # noqa: E402

WIDTH, LENGTH, IDS = 16, 64, 1000
OF = Fingerprint("w" * 64, "a" * 64, "t" * 64, WIDTH, "float32")
LIMITS = Limits(LENGTH, IDS, credits=4 * LENGTH)
QUICK = Patience(beat=0.05, silent=0.5, slow=1.0, lost=30.0, look=0.05)


def row(number, tokens=None):
    numbers = np.random.default_rng(number)
    count = tokens or int(numbers.integers(2, LENGTH))
    counts = (count,) if count < 4 else (count // 2, count - count // 2)
    return Row(LENGTH, counts, numbers.integers(0, IDS, count).astype(np.int32))


def states_of(one):
    """What a teacher computes of a row, alone: any function of its tokens."""
    return torch.sin(torch.from_numpy(one.ids).float()[:, None] * torch.arange(1, WIDTH + 1))


class Computing:
    """A replica whose model is `states_of`, in a thread."""

    def __init__(self, folder, name, seconds=0.0, of=OF, limits=LIMITS, wrong=None):
        self.server = ReplicaServer(ServiceFolder(folder), name, of, limits, "127.0.0.1")
        self.seconds, self.wrong, self.rows = seconds, wrong, []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def _work(self):
        while not self._stop.is_set():
            asked = self.server.take(2, 0.02)
            if not asked:
                continue
            self._stop.wait(self.seconds)
            self.rows += [one.row.key for one in asked]
            if self.wrong:
                self.server.fail(asked, self.wrong)
            else:
                self.server.answer(asked, [states_of(one.row) for one in asked])

    def close(self):
        self._stop.set()
        self._thread.join()
        self.server.close()


@pytest.fixture
def service(tmp_path):
    """``service(name, ..)`` starts a replica, ``service.pool(..)`` a student; all end with the test."""
    made = []

    def start(name, **settings):
        made.append(Computing(tmp_path / "service", name, **settings))
        return made[-1]

    def pool(patience=QUICK, of=OF):
        made.append(ServicePool(ServiceFolder(tmp_path / "service"), of, patience))
        return made[-1]

    start.pool, start.folder = pool, tmp_path / "service"
    yield start
    for one in reversed(made):
        one.close()


def check(pool, numbers):
    for key, one in [(pool.want(one), one) for one in map(row, numbers)]:
        assert torch.equal(pool.get(key), states_of(one))


def test_states_arrive_whatever_the_order_and_are_asked_for_once(service):
    one, two, pool = service("one"), service("two"), service.pool()
    check(pool, range(40))
    check(pool, reversed(range(40)))
    assert sorted(one.rows + two.rows) == sorted(row(n).key for n in range(40))
    assert pool.statistics.rows == 40
    assert pool.statistics.wire < 1.1 * pool.statistics.tokens * WIDTH * 4  # headers weigh more in a row so small


def test_several_students_share_a_service(service):
    service("one")
    students = [service.pool() for _ in range(3)]
    threads = [threading.Thread(target=check, args=(s, range(20))) for s in students]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [student.statistics.rows for student in students] == [20] * 3


def test_what_waits_is_bounded_by_the_credits(service):
    replica = service("one", seconds=0.05)
    pool = service.pool()
    keys = [pool.want(row(n, LENGTH)) for n in range(12)]
    most = 0
    while len(pool._results) < len(keys):
        most = max(most, sum(a.row.tokens for a in list(replica.server._asked)))
        time.sleep(0.001)  # or the threads of both get no time, and their hearts do not beat
    assert most <= LIMITS.credits


def test_what_is_under_way_and_not_wanted_any_more_counts(service):
    """Another replica has answered, or the states came from a file: the replica still counts them until it has
    answered, and is not asked for more than the credits allow, which would end the run."""
    limits = Limits(LENGTH, IDS, credits=LENGTH)
    replica, pool = service("one", seconds=0.5, limits=limits), service.pool(dataclasses.replace(QUICK, slow=30))
    for n in range(2):
        pool.want(row(n, LENGTH))
        while not sum(replica.server._held.values()):
            time.sleep(0.001)
        pool.forget(row(n, LENGTH).key)
    assert torch.equal(pool.get(pool.want(row(2, LENGTH))), states_of(row(2, LENGTH)))


def test_credits_are_back_before_a_reply_is_sent(service):
    """Else a student that has one of several replies asks for more than the replica believes that it may."""
    server = service("one").server
    held = []

    class Sent(type(server._out)):
        def append(self, reply):
            held.append(sum(server._held.values()))
            super().append(reply)

        def extend(self, replies):
            for reply in replies:
                self.append(reply)

    server._out = Sent()
    pool = service.pool()
    keys = [pool.want(row(n, LENGTH)) for n in range(2)]
    for n, key in enumerate(keys):
        assert torch.equal(pool.get(key), states_of(row(n, LENGTH)))
    assert len(held) == 2
    assert held[-1] == 0


def test_a_student_may_come_first(service):
    pool = service.pool()
    key = pool.want(row(1))
    service("late")
    assert torch.equal(pool.get(key), states_of(row(1)))


def test_a_replica_that_withdraws_leaves_its_work_to_others(service):
    slow = service("slow", seconds=30)
    pool = service.pool(dataclasses.replace(QUICK, slow=60))
    keys = [pool.want(row(n)) for n in range(3)]
    while not slow.server._held:
        time.sleep(0.01)
    service("other")
    slow.server.folder.withdraw(slow.server.replica)
    for n, key in enumerate(keys):
        assert torch.equal(pool.get(key), states_of(row(n)))


def test_work_that_hangs_goes_to_others(service):
    """Its heart beats, and its model does not answer."""
    service("hangs", seconds=30)
    pool = service.pool()
    keys = [pool.want(row(n)) for n in range(3)]
    while not pool.alive():
        time.sleep(0.01)
    service("other")
    for n, key in enumerate(keys):
        assert torch.equal(pool.get(key), states_of(row(n)))


def test_the_faster_replica_gets_more(service):
    fast, slow = service("fast", seconds=0.002), service("slow", seconds=0.2)
    pool = service.pool(dataclasses.replace(QUICK, slow=30))
    while pool.alive() < 2:
        time.sleep(0.01)
    check(pool, range(60))
    assert len(fast.rows) > 1.5 * len(slow.rows)  # on a busy machine the fast one is slow as well


@pytest.mark.parametrize("field", [f.name for f in dataclasses.fields(Fingerprint)])
def test_another_teacher_is_refused_at_once(service, field):
    service("one")
    of = dataclasses.replace(OF, **{field: 3 if field == "hidden_size" else "bfloat16"})
    pool = service.pool(of=of)
    with pytest.raises(InputError, match=f"refuses: another teacher: {field}"):
        pool.get(pool.want(row(1)))


def test_another_protocol_is_refused_at_once(service, monkeypatch):
    from nemo_xtoken.teachers.service import messages

    replica = service("one")

    def parts(self):
        header = json.dumps({"protocol": 2, "kind": self.kind, **self.values}).encode()
        return [header, *self.frames]

    monkeypatch.setattr(messages.Message, "parts", parts)  # of both, so the student refuses as well
    pool = service.pool()
    with pytest.raises(InputError, match="protocol 2 where 1 is spoken"):
        pool.get(pool.want(row(1)))
    assert replica.rows == []


def test_what_cannot_be_computed_is_an_error(service):
    service("one", wrong="its output is not a number")
    pool = service.pool()
    with pytest.raises(InputError, match="not a number"):
        pool.get(pool.want(row(1)))


def test_without_a_replica_the_teacher_is_lost(service):
    pool = service.pool(dataclasses.replace(QUICK, lost=0.3))
    with pytest.raises(TeacherLost, match="no replica"):
        pool.get(pool.want(row(1)))


@pytest.mark.parametrize("side", [ServicePool, ReplicaServer])
def test_a_thread_that_fails_is_an_error_at_once(service, monkeypatch, side):
    """And not a teacher that is lost after ten minutes, or a replica that answers nobody."""
    monkeypatch.setattr(side, "_receive", lambda *_: 1 // 0)
    pool, replica = service.pool(), ReplicaServer(ServiceFolder(service.folder), "one", OF, LIMITS, "127.0.0.1")
    ask = partial(replica.take, 1, 60.0) if side is ReplicaServer else partial(pool.get, pool.want(row(1)))
    with contextlib.closing(replica), pytest.raises(RuntimeError) as raised:
        ask()
    assert isinstance(raised.value.__cause__, ZeroDivisionError)


def test_a_stranger_gets_nothing(service):
    replica = service("one")
    context = zmq.Context()
    public, secret = zmq.curve_keypair()
    keys = ServiceFolder(service.folder).keys()
    try:
        for curve in (True, False):
            stranger = context.socket(zmq.DEALER)
            stranger.linger = 0
            if curve:  # it even knows the service's public key
                stranger.curve_serverkey, stranger.curve_publickey = keys.server_public.encode(), public
                stranger.curve_secretkey = secret
            stranger.connect(replica.server.replica.address)
            with contextlib.suppress(zmq.Again):  # refused before it could send: a blocking call would wait for ever
                stranger.send_multipart(Message("hello", {"fingerprint": OF.as_json()}).parts(), zmq.DONTWAIT)
            assert not stranger.poll(200)
            stranger.close()
    finally:
        context.term()
    assert replica.server._held == {}


def test_keys_are_their_owners_alone(tmp_path):
    folder = ServiceFolder(tmp_path / "service")
    keys = folder.keys()
    file = folder.path / "keys.json"
    assert file.stat().st_mode & 0o777 == 0o600
    assert folder.path.stat().st_mode & 0o777 == 0o700
    assert ServiceFolder(folder.path).keys() == keys
    file.chmod(0o644)
    with pytest.raises(InputError, match="others may read"):
        folder.keys()


BAD_ROWS = {
    "no length": ({"counts": [2]}, 2),
    "a long row": ({"length": 10**9, "counts": [2]}, 2),
    "a negative count": ({"length": 8, "counts": [4, -2]}, 2),
    "no count": ({"length": 8, "counts": []}, 0),
    "more than it holds": ({"length": 2, "counts": [3]}, 3),
    "fewer tokens than it says": ({"length": 8, "counts": [3]}, 2),
    "true for a number": ({"length": True, "counts": [1]}, 1),
}


@pytest.mark.parametrize("bad", BAD_ROWS)
def test_a_request_that_is_none_is_refused(bad):
    values, tokens = BAD_ROWS[bad]
    with pytest.raises(BadMessage):
        Row.of(Message("ask", values, [raw(torch.zeros(tokens, dtype=torch.int32))]), LENGTH, IDS)


@pytest.mark.parametrize("ids", [[-1, 3], [3, IDS]])
def test_tokens_that_are_none_are_refused(ids):
    message = Message("ask", {"length": 8, "counts": [2]}, [raw(torch.tensor(ids, dtype=torch.int32))])
    with pytest.raises(BadMessage, match="of a vocabulary of"):
        Row.of(message, LENGTH, IDS)


@pytest.mark.parametrize(
    "parts", [[], [b"x" * (2**20 + 1)], [b"{"], [b"[]"], [b'{"kind": 3, "protocol": 1}'], [b"{}", b"", b""]]
)
def test_what_is_no_message_is_refused(parts):
    with pytest.raises(BadMessage):
        Message.of(parts)


def test_a_frame_of_another_size_is_refused_before_memory_is_taken():
    with pytest.raises(BadMessage, match="a frame of 8 bytes"):
        tensor_of(b"12345678", "float32", [2**40, 2**20])


def test_a_row_is_what_the_sample_was():
    one = row(5, 9)
    inputs = inputs_of([one, row(6, 3)])
    assert inputs.tokens.shape == (2, LENGTH)
    assert inputs.tokens[0, :9].tolist() == one.ids.tolist()
    assert inputs.positions[0, :9].tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 4]
    assert inputs.documents[0, :10].tolist() == [0] * 4 + [1] * 5 + [-1]


def _replica(folder, name):
    """A replica as a process of its own; never returns."""
    one = Computing(Path(folder), name, seconds=0.002)
    print(one.server.replica.address, flush=True)
    threading.Event().wait()


@pytest.fixture(scope="module")
def forks():
    """A server that has imported this file, and forks processes quickly."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


@pytest.fixture
def processes(tmp_path, forks):
    """``processes(name)`` starts a replica in a process; all are killed at the end."""
    made = []

    def start(name):
        made.append(forks.Process(target=_replica, args=(str(tmp_path / "service"), name), daemon=True))
        made[-1].start()
        return made[-1]

    yield start
    for one in made:
        one.kill()
        one.join()


@pytest.mark.parametrize("fault", ["kill", "stop"])
def test_processes_that_die_or_stand_still_lose_nothing(processes, service, fault):
    """At ten moments a replica is killed, and another takes its name; or it stands still for a while."""
    moments = np.random.default_rng(7).choice(200, 10 if fault == "kill" else 2, replace=False).tolist()
    victim, survivor = processes("victim"), service("survivor", seconds=0.01)
    pool = service.pool(dataclasses.replace(QUICK, silent=0.15))
    while pool.alive() < 2:
        time.sleep(0.01)
    for n in range(200):
        for ahead in range(n, min(n + 6, 200)):
            pool.want(row(ahead))
        if n in moments:
            if fault == "kill":
                victim.kill()
                victim = processes("victim")
            else:
                os.kill(victim.pid, signal.SIGSTOP if n == min(moments) else signal.SIGCONT)
        assert torch.equal(pool.get(row(n).key), states_of(row(n)))
        pool.forget(row(n).key)
    assert survivor.rows


def test_a_connection_that_is_cut_is_made_again(service):
    """Through a relay, which drops its connections in the midst of the work."""
    replica = service("one", seconds=0.01)
    _, port = replica.server.replica.address.removeprefix("tcp://").split(":")
    relay = Relay(int(port))
    folder = ServiceFolder(service.folder)
    folder.register(dataclasses.replace(replica.server.replica, address=f"tcp://127.0.0.1:{relay.port}"))
    try:
        pool = service.pool()
        for n in range(30):
            for ahead in range(n, min(n + 4, 30)):
                pool.want(row(ahead))
            if n in (5, 15):
                relay.cut()
            assert torch.equal(pool.get(row(n).key), states_of(row(n)))
        assert relay.cuts == 2
    finally:
        relay.close()
