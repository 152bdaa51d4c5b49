"""Test set-up: one thread a process, no network; tiers by folder; NeMo imported once a process.

``unit`` needs no NeMo; ``stack`` runs NeMo and Megatron in processes that are forked from this one, which has imported
them; ``jobs`` starts commands, and whole runs.  What several folders use is in ``support``.

The properties are tried on the same examples every time, so that two runs of one tree agree; for new ones run
``pytest --hypothesis-profile=default``.
"""

import gc
import os
import sys
from pathlib import Path

import pytest
from hypothesis import settings

import nemo_xtoken  # noqa: F401  (before anything that imports NeMo)

os.environ.update(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")

settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")

TIERS = ("unit", "stack", "jobs")
#: With several processes, a file each time: these first, then the other jobs, the stack, the units, so that all
#: processes end at about the same time.
LONGEST = (
    "test_real_job.py",
    "test_layouts.py",
    "test_recipes.py",
    "test_field.py",
    "test_learned_runs.py",
    "test_resume.py",
    "test_xtoken_tiny.py",
    "test_torchrun.py",
    "test_prefix_kl.py",
    "test_invariance.py",
    "test_kernels.py",
)


def _tier(item):
    return item.path.relative_to(Path(__file__).parent).parts[0]


def _place(item):
    """Where a test's file stands in the queue."""
    name = item.path.name
    return LONGEST.index(name) if name in LONGEST else len(LONGEST) + len(TIERS) - TIERS.index(_tier(item))


def pytest_collection_modifyitems(config, items):
    """Marks each test with the folder of its tier."""
    for item in items:
        item.add_marker(_tier(item))
    if hasattr(config, "workerinput"):  # of pytest-xdist
        items.sort(key=_place)


@pytest.fixture(scope="session")
def nemo():
    """The NeMo stack, imported (10 to 20 s) and frozen, so that forks share its memory."""
    pytest.importorskip("nemo.collections.llm", reason="the NeMo stack is not installed")
    gc.disable()
    import nemo_xtoken.plugin.nemo2.distill  # noqa: F401

    gc.enable()
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def command_line(nemo):
    """nemo_run's application with the entry points, loaded before processes are forked."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["nemo", "llm"])
        import nemo_run.__main__  # noqa: F401


@pytest.fixture(scope="session")
def world(nemo, tmp_path_factory):
    """Tokenizers, texts, checkpoints of a teacher and a student, written at TP=1: see ``jobs.World``."""
    from jobs import World

    base = tmp_path_factory.getbasetemp()
    return World(
        tmp_path_factory.mktemp("plugin"), (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "world"
    )
