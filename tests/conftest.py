"""Test set-up: one thread a process, no network; tiers by folder; NeMo imported once a process.

``unit`` needs no NeMo; ``stack`` runs NeMo and Megatron in processes that are forked from this one, which has imported
them; ``jobs`` starts commands and whole runs, and reads real tokenizers and models.  What several folders use is in
``support``.

``--workers=2`` runs files of tests in two processes; what they need is imported and read before these are forked.

The properties are tried on the same examples every time, so that two runs of one tree agree; for new ones run
``pytest --hypothesis-profile=default``.
"""

import gc
import os
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from hypothesis import settings

import nemo_xtoken  # noqa: F401  (before anything that imports NeMo)

os.environ.update(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")

os.fsync = lambda file: None  # thousands of waits for a disk, against a power failure, which no test has

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


def pytest_addoption(parser):
    parser.addoption(
        "--workers", type=int, default=1, help="processes that run the files of tests, forked from this one"
    )


def pytest_configure(config):
    if config.getoption("durations"):
        from cpu_times import CpuTimes

        config.pluginmanager.register(CpuTimes(config.getoption("durations")))
    if config.getoption("workers") > 1:
        from forked_workers import ForkedWorkers

        config.pluginmanager.register(ForkedWorkers(config, config.getoption("workers")))


def pytest_collection_modifyitems(config, items):
    """Marks each test with the folder of its tier."""
    for item in items:
        item.add_marker(_tier(item))
    if config.getoption("workers") > 1:
        items.sort(key=_place)


def pytest_collection_finish(session):
    """Before processes are forked: what they share."""
    if session.config.getoption("workers") == 1 or session.config.option.collectonly:
        return
    capture = session.config.pluginmanager.getplugin("capturemanager")
    capture.resume_global_capture()  # what is said of an import
    if any("nemo" in item.fixturenames for item in session.items) and find_spec("nemo"):
        import_nemo()
    if len({item.path for item in session.items if hasattr(item.module, "real")}) > 1:
        from real_tokenizers import read_shared

        read_shared()
    capture.suspend_global_capture()
    capture.read_global_capture()


def import_nemo():
    """Imports the NeMo stack (10 to 20 s), so that forks share its memory."""
    gc.disable()
    from asked_before import ask_before

    import nemo_xtoken.plugin.nemo2.distill  # noqa: F401

    ask_before()
    gc.enable()


@pytest.fixture(scope="session")
def nemo():
    """The NeMo stack, imported and frozen."""
    pytest.importorskip("nemo.collections.llm", reason="the NeMo stack is not installed")
    import_nemo()
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def third_party(tmp_path_factory):
    """A folder for Python's path that looks like an installed package with a recipe of its own."""
    folder = tmp_path_factory.mktemp("site")
    metadata = folder / "fake_recipes-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: fake-recipes\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[nemo_xtoken.recipes]\nfake_recipe = fake_recipe:fake_recipe\n")
    return folder


@pytest.fixture(scope="session")
def command_line(nemo, third_party):
    """nemo_run's application with the entry points, loaded before processes are forked."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["nemo", "llm"])
        patch.syspath_prepend(third_party)
        import nemo_run.__main__  # noqa: F401


@pytest.fixture(scope="session")
def command_server(command_line, tmp_path_factory):
    """Makes programs that others start, without an import of NeMo in each."""
    from forked_commands import CommandServer

    server = CommandServer(tmp_path_factory.mktemp("programs") / "server")
    yield server
    server.end()


@pytest.fixture(scope="session")
def world(nemo, tmp_path_factory):
    """Tokenizers, texts, checkpoints of a teacher and a student, written at TP=1: see ``jobs.World``."""
    from jobs import World

    base = tmp_path_factory.getbasetemp()
    return World(
        tmp_path_factory.mktemp("plugin"), (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "world"
    )
