"""What is done and what is to do: a file for each run, and the learning rate that tuning chose."""

import json
import platform
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from nemo_xtoken.files import atomic_path

from .corpora import Texts
from .plan import ARMS, LENGTHS, SETTINGS, TUNING_SEED, Length, Run, same_settings, settings_of

__all__ = ["Study", "read_results"]


class Study:
    """The runs of one length.

    Args:
        results: a folder for each length, in it one for each setting.
    """

    def __init__(self, results: Path, length: Length) -> None:
        self.length, self.folder = length, results / length.name

    def file(self, run: Run) -> Path:
        """Where a run's result is."""
        return self.folder / run.setting / f"{run.stem}.json"

    def result(self, run: Run) -> dict[str, Any] | None:
        """Of a run; None: it is not done, or was with other settings, or at a rate that is not the best any more."""
        try:
            found: dict[str, Any] = json.loads(self.file(run).read_text("utf-8"))
        except FileNotFoundError:
            return None
        if not same_settings(found, settings_of(run, self.length)):
            return None
        chosen = self.rate(run) if run.rate is None and ARMS[run.arm].trained else None
        return found if chosen in (None, found["rate"]) else None

    def pending(self, runs: Sequence[Run]) -> list[Run]:
        """Those without a result."""
        return [run for run in runs if self.result(run) is None]

    def rate(self, run: Run) -> float | None:
        """The learning rate of a run: its own, or the best for cross-entropy alone; None: that is not known yet."""
        if run.rate is not None:
            return run.rate
        tried = {}
        for rate in SETTINGS[run.setting].rates:
            found = self.result(Run(run.setting, "ce", TUNING_SEED, rate))
            if found is None:
                return None
            tried[rate] = sum(found["bits"].values()) / len(found["bits"])
        return min(tried, key=lambda rate: tried[rate])

    def do(self, run: Run, texts: Texts, work: Path, device: str, say: Callable[[str], None]) -> bool:
        """Trains and writes the result; False: another process is at it."""
        from .training import train

        work = work / self.length.name if self.length.name == "smoke" else work
        lock = FileLock(work / "locks" / f"{self.length.name}-{run.setting}-{run.stem}")
        Path(lock.lock_file).parent.mkdir(parents=True, exist_ok=True)
        try:
            with lock.acquire(timeout=0):
                if self.result(run) is not None:
                    return True
                rate = self.rate(run) if ARMS[run.arm].trained else 0.0
                if rate is None:
                    raise RuntimeError(f"{run}: the learning rate of {run.setting} is not known: do its tuning first")
                began = time.perf_counter()
                found = train(run, rate, self.length, texts, work / self.length.name, device, say)
                about = settings_of(run, self.length)
                about |= {"rate": rate, "machine": machine(device)}
                about["wall_seconds"] = round(time.perf_counter() - began, 1)
                write(self.file(run), about | found)
        except Timeout:
            return False
        shutil.rmtree(work / self.length.name / "runs" / run.setting / run.stem, ignore_errors=True)
        return True


def machine(device: str) -> dict[str, Any]:
    """Where and with what a run was made."""
    import torch

    from ..bench import machine as about
    from .models import precision

    name = torch.cuda.get_device_name() if device.startswith("cuda") else None
    return about() | {
        "device": name or platform.machine(),
        "precision": str(precision(device)).removeprefix("torch."),
        "threads": torch.get_num_threads(),
    }


def write(file: Path, result: dict[str, Any]) -> None:
    """A run's file: one line for each key, and for each point of a curve."""
    rows = {
        key: "[\n  " + ",\n  ".join(json.dumps(x, ensure_ascii=False) for x in value) + "\n ]"
        if key in ("curve", "looks")
        else json.dumps(value, ensure_ascii=False)
        for key, value in result.items()
    }
    text = "{\n " + ",\n ".join(f"{json.dumps(key)}: {value}" for key, value in rows.items()) + "\n}\n"
    with atomic_path(file) as temporary:
        temporary.write_text(text, "utf-8")


def read_results(results: Path, length: str) -> list[dict[str, Any]]:
    """All results of a length, by setting and arm as the plan has them, then by seed."""
    arms, settings = list(ARMS), list(SETTINGS)
    found = [json.loads(file.read_text("utf-8")) for file in sorted((results / LENGTHS[length].name).glob("*/*.json"))]
    return sorted(found, key=lambda r: (settings.index(r["setting"]), arms.index(r["arm"]), r["seed"], r["rate"]))
