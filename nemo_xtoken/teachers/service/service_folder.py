"""The folder by which students and replicas find each other: keys that its owner alone can read, and addresses."""

import json
import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path

from nemo_xtoken.errors import InputError
from nemo_xtoken.files import atomic_path
from nemo_xtoken.sharing.file_lock import file_lock

__all__ = ["Keys", "Replica", "ServiceFolder", "zeromq"]

KEYS = "keys.json"
_REPLICA = "replica-{}.json"


def zeromq() -> object:
    """The module ``zmq``.

    Raises:
        InputError: it is not installed, or without encryption.
    """
    try:
        import zmq
    except ModuleNotFoundError as error:
        raise InputError(
            "pyzmq is not installed, by which teachers on other nodes are reached",
            "pyzmq 25 or later",
            "pip install 'nemo_xtoken[service]', or pyzmq",
        ) from error
    if not zmq.has("curve"):
        raise InputError("pyzmq without CURVE encryption", "one with it, as its wheels are", "install pyzmq's wheel")
    return zmq


@dataclass(frozen=True)
class Keys:
    """Pairs of CURVE keys, of the replicas and of the students of one service, in Z85."""

    server_public: str
    server_secret: str
    student_public: str
    student_secret: str


@dataclass(frozen=True)
class Replica:
    """Where a replica listens.

    Attributes:
        name: its own in the service.
        address: ``tcp://host:port``.
        start: a number that changes when it starts again.
    """

    name: str
    address: str
    start: str


class ServiceFolder:
    """A folder on a file system that students and replicas share.

    Args:
        path: of the folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def keys(self) -> Keys:
        """The keys of the service; the first who asks makes them.

        Raises:
            InputError: the folder cannot be written, or others than the owner may read the keys.
        """
        file = self.path / KEYS
        try:
            self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
            with file_lock(self.path / ".lock"):
                if not file.is_file():
                    self._make(file)
            _check_private(file)
            return Keys(**json.loads(file.read_text("ascii")))
        except (OSError, ValueError, TypeError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(
                f"the keys of the teacher's service in {file} cannot be read or made: {error}",
                "a folder that you may write to, which students and teachers both see",
                "set teacher.service.folder to one, or delete the file",
            ) from error

    def _make(self, file: Path) -> None:
        import zmq

        pairs = [tuple(key.decode("ascii") for key in zmq.curve_keypair()) for _ in range(2)]
        keys = Keys(pairs[0][0], pairs[0][1], pairs[1][0], pairs[1][1])
        temporary = file.with_suffix(f".{os.getpid()}.tmp")
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as out:
            json.dump(vars(keys), out)
            out.flush()
            os.fsync(out.fileno())
        os.replace(temporary, file)

    def register(self, replica: Replica) -> None:
        """Says where a replica is; in place of one of its name that was before."""
        with atomic_path(self._file(replica.name)) as temporary:
            temporary.write_text(json.dumps(vars(replica)), "utf-8")

    def withdraw(self, replica: Replica) -> None:
        """A replica ends; one that has started under its name since is left."""
        if any(found == replica for found in self.replicas()):
            self._file(replica.name).unlink(missing_ok=True)

    def replicas(self) -> list[Replica]:
        """Those that are known; whether they live is seen by asking them."""
        found = []
        for file in sorted(self.path.glob(_REPLICA.format("*"))):
            try:
                replica = Replica(**json.loads(file.read_text("utf-8")))
            except (OSError, ValueError, TypeError):  # of a replica that ends right now, or of another version
                continue
            if re.fullmatch(r"tcp://[\w.:\[\]-]+:\d+", replica.address):
                found.append(replica)
        return found

    def _file(self, name: str) -> Path:
        if not re.fullmatch(r"[\w.-]+", name):
            raise InputError(f"a replica named {name!r}", "letters, digits, dots and dashes", "set name=NAME")
        return self.path / _REPLICA.format(name)


def _check_private(file: Path) -> None:
    found = file.stat()
    if found.st_mode & (stat.S_IRWXG | stat.S_IRWXO) or found.st_uid != os.getuid():
        raise InputError(
            f"{file} has the mode {stat.S_IMODE(found.st_mode):o} and the owner {found.st_uid}: others may read it",
            "a file of yours that nobody else can read",
            f"delete it, with the folder {file.parent}, and start the service again",
        )
