"""Megatron-core, and Megatron-Bridge where it is installed, imported once per session; ranks are forked from here."""

import gc

import pytest


@pytest.fixture(scope="session")
def megatron():
    """Megatron-core with the forward step, and NeMo 2 where it is installed, which the CPU runtime looks for."""
    from cpu_bridge import before_megatron

    before_megatron()
    pytest.importorskip("megatron.core", reason="megatron-core is not installed")
    gc.disable()
    try:
        import nemo_xtoken.plugin.nemo2.distill
    except ModuleNotFoundError as error:
        if error.name not in ("nemo", "nemo.collections", "nemo.lightning", "lightning"):
            raise
    import nemo_xtoken.plugin.bridge.forward_step  # noqa: F401

    gc.enable()
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def bridge():
    """Megatron-Bridge, on a CPU."""
    from cpu_bridge import import_bridge

    if not import_bridge():
        pytest.skip("megatron-bridge is not installed")


@pytest.fixture(scope="session")
def bridge_world(bridge, tmp_path_factory):
    """Two models of Hugging Face and a text: see ``bridge_jobs.World``."""
    from bridge_jobs import World

    world = World(tmp_path_factory.mktemp("bridge"))
    gc.collect()
    gc.freeze()
    return world
