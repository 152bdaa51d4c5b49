"""Passes bytes on between two TCP ports, and drops all connections when it is told, or when so many have passed."""

import contextlib
import os
import signal
import socket
import threading
import time
from pathlib import Path

from nemo_xtoken.teachers.service.service_folder import Replica, ServiceFolder

__all__ = ["Relay", "RelayProcess"]


class Relay:
    """One, in threads of this process.

    Args:
        target: the port on this machine to which all connections go on.
        moments: numbers of bytes, of all connections and both directions together, after which it cuts.
        listener: a socket that listens; default a new one.
    """

    def __init__(self, target, moments=(), listener=None):
        self.target, self.cuts, self._pairs = target, 0, []
        self._moments, self._passed, self._lock = sorted(moments), 0, threading.Lock()
        self._listener = listener or socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        while True:
            try:
                one, _ = self._listener.accept()
            except OSError:
                return
            other = socket.create_connection(("127.0.0.1", self.target))
            with self._lock:
                self._pairs.append((one, other))
            for a, b in ((one, other), (other, one)):
                threading.Thread(target=self._pass, args=(a, b), daemon=True).start()

    def _pass(self, a, b):
        with contextlib.suppress(OSError):
            while content := a.recv(65536):
                with self._lock:
                    left = self._moments[0] - self._passed if self._moments else len(content) + 1
                    self._passed += min(left, len(content))
                    due = left <= len(content)
                    if due:
                        self._moments.pop(0)
                b.sendall(content[:left])  # what comes after it is lost with the connection
                if due:
                    self.cut()

    def cut(self):
        """Drops all connections."""
        with self._lock:
            pairs, self._pairs = self._pairs, []
            self.cuts += 1
        for one in (one for pair in pairs for one in pair):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    def close(self):
        self._listener.close()
        self.cut()


class RelayProcess:
    """A relay in a process of its own, in front of a replica that is there: students find it in the replica's place.

    Args:
        folder: of the service; the relay counts its cuts in a file there.
        name: of the replica.
        moments: see `Relay`.
    """

    def __init__(self, folder: Path, name: str, moments=()):
        service = ServiceFolder(folder)
        [replica] = [one for one in service.replicas() if one.name == name]
        listener = socket.create_server(("127.0.0.1", 0))
        self._count = folder / f"{name}.cuts"
        self._pid = os.fork()
        if not self._pid:
            self._run(int(replica.address.rpartition(":")[2]), moments, listener)
        service.register(Replica(name, f"tcp://127.0.0.1:{listener.getsockname()[1]}", replica.start))
        listener.close()

    def _run(self, target, moments, listener):
        try:
            relay = Relay(target, moments, listener)
            while os.getppid() != 1:
                self._count.write_text(str(relay.cuts))
                time.sleep(0.02)
        finally:
            os._exit(1)

    @property
    def cuts(self) -> int:
        """So far."""
        time.sleep(0.1)
        return int(self._count.read_text())

    def close(self):
        os.kill(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)
