"""The kill campaign sees what it is there for: another result, a failed start, what goes on running, what is left."""

import os
import time
from pathlib import Path

import pytest
from kill_campaign import Work, campaign


def slowly(folder: Path) -> None:
    time.sleep(0.3)


def doubled(folder: Path) -> None:
    with open(folder / "result", "a") as file:
        file.write("x")
    slowly(folder)


def failing(folder: Path) -> None:
    again = (folder / "began").exists()
    (folder / "began").touch()
    slowly(folder)
    if again:
        raise SystemExit(3)


def leaving(folder: Path) -> None:
    (folder / ".result.tmp").touch()
    slowly(folder)


def orphaned(folder: Path) -> None:
    if os.fork() == 0:
        time.sleep(60)
        os._exit(0)
    slowly(folder)


def result(folder: Path) -> str:
    file = folder / "result"
    return file.read_text() if file.exists() else ""


@pytest.mark.parametrize(
    ("do", "fault"),
    [(slowly, None), (doubled, "different"), (failing, "failed"), (leaving, "stray"), (orphaned, "orphans")],
)
def test_each_fault_is_seen(do, fault, tmp_path, monkeypatch):
    monkeypatch.setattr("kill_campaign.GRACE", 0.2)
    counts = campaign(Work(do.__name__, do, result), 2, tmp_path, seed=1)
    assert counts.kills == 2 or fault == "failed"
    assert [name for name in ("different", "failed", "orphans", "stray") if getattr(counts, name)] == (
        [fault] if fault else []
    )
