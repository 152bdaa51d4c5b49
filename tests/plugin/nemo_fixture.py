"""NeMo, imported once per test process."""

import gc

import pytest


@pytest.fixture(scope="session")
def nemo():
    """The NeMo stack, imported (10 to 20 s) and frozen, so that forks share its memory."""
    pytest.importorskip("nemo.collections.llm", reason="the NeMo stack is not installed")
    gc.disable()
    import nemo_xtoken.plugin.nemo2.distill  # noqa: F401

    gc.enable()
    gc.collect()
    gc.freeze()
