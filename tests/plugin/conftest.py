"""NeMo is imported once per session; ranks are forked from here.  One teacher and one student, written at TP=1."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from nemo_fixture import nemo  # noqa: F401


@pytest.fixture(scope="session")
def world(nemo, tmp_path_factory):  # noqa: F811
    """Tokenizers, texts, checkpoints of a teacher and a student: see ``jobs.World``."""
    from jobs import World

    made = World(tmp_path_factory.mktemp("plugin"))
    made.write()
    return made
