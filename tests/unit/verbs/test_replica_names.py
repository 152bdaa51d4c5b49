"""The names that replicas of a teacher have by default."""

import os
import re
import socket

from nemo_xtoken.commands.verbs import serve


def test_replicas_of_machines_that_look_alike_have_names_of_their_own(monkeypatch):
    """In containers of one host name, as processes of one number: one would take the other's place in the service."""
    own = serve._name()
    assert own == serve._name()
    assert own.startswith(f"{socket.gethostname()}-{os.getpid()}-")
    assert re.fullmatch(r"[\w.-]+", own)
    monkeypatch.setattr(serve, "system_name", lambda: "another boot")
    assert serve._name() != own
