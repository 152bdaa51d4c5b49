"""One tiny model, local data for the paper's five tasks, and no network."""

import sys

import pytest


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    """Whatever asks the hub fails."""
    for module, names in (
        ("huggingface_hub.constants", ("HF_HUB_OFFLINE",)),
        ("datasets.config", ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE")),
    ):
        __import__(module)
        for name in names:
            monkeypatch.setattr(sys.modules[module], name, True, raising=False)


@pytest.fixture(scope="session")
def sources():
    pytest.importorskip("lm_eval", reason="the extra `evaluate` is not installed")
    from nemo_xtoken.evaluate.benchmark_columns import PAPER_COLUMNS
    from nemo_xtoken.evaluate.harness import sources_of

    return sources_of(PAPER_COLUMNS)


@pytest.fixture(scope="session")
def data(sources, tmp_path_factory):
    from task_data import write_data

    return write_data(sources, tmp_path_factory.mktemp("task-data"))


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    from toy_models import write_model

    return write_model("llama", tmp_path_factory.mktemp("model") / "student", max_position_embeddings=1024)
