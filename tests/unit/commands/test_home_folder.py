"""``~`` in a setting: the home folder, wherever the setting stands."""

from pathlib import Path

import nemo_run as run
import pytest

from nemo_xtoken.commands.run_config import expand_home, plain
from nemo_xtoken.run.settings import Settings


def part(**arguments):
    raise AssertionError("it is configured, not called")


@pytest.fixture(autouse=True)
def _home(monkeypatch):
    monkeypatch.setenv("HOME", "/home/somebody")


def test_every_place_of_a_configuration():
    config = run.Partial(
        part,
        log=run.Config(part, log_dir="~/runs", name="a~b"),
        paths=["~/text", "/text", "hf:~/no"],
        several={"first": run.Config(part, path="~")},
        pair=("~/a", 1),
        steps=3,
        none=None,
    )
    expand_home(config)
    assert plain(config)["log"]["log_dir"] == "/home/somebody/runs"
    assert plain(config)["log"]["name"] == "a~b"
    assert config.paths == ["/home/somebody/text", "/text", "hf:~/no"]
    assert config.several["first"].path == "/home/somebody"
    assert config.pair == ("/home/somebody/a", 1)
    assert (config.steps, config.none) == (3, None)


@pytest.mark.parametrize(
    ("log", "folder"),
    [
        ({"log_dir": "~/runs", "name": "mine"}, "/home/somebody/runs/mine"),
        ({"log_dir": "runs", "explicit_log_dir": "~/here"}, "/home/somebody/here"),
        ({"log_dir": "runs", "name": "mine"}, "runs/mine"),
        ({"log_dir": "~nobody_of_this_name/runs", "name": "mine"}, "~nobody_of_this_name/runs/mine"),
    ],
)
def test_the_folder_of_a_run(log, folder):
    assert Settings({"_target_": "x", "log": log}, "here").run_folder == Path(folder)
