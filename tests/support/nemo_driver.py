"""Runs several `nemo llm ..` command lines in one process, because importing NeMo takes 10 to 20 seconds.

A fork of a test's process does so by `drive`; as a program it is a process where NeMo is not installed:

    python nemo_driver.py GROUPS.json RESULTS.json

Each group of commands there has a process of its own.
"""

import importlib.abc
import json
import multiprocessing
import sys
from pathlib import Path

__all__ = ["drive"]


def drive(commands):
    """The exit status, standard output and standard error of each command.

    Args:
        commands: lists of words after `nemo`; a first word that is a dictionary changes the environment for it.
    """
    import typer.main
    import typer.testing
    from nemo_run.__main__ import app

    command = typer.main.get_command(app)
    typer.testing._get_command = lambda app: command  # built once, not for each
    done = []
    for words in commands:
        environment = {}
        if isinstance(words[0], dict):
            environment, *words = words
        result = typer.testing.CliRunner().invoke(app, words, env=environment)
        done.append({"status": result.exit_code, "out": result.stdout, "err": result.stderr})
    return done


class _Blocker(importlib.abc.MetaPathFinder):
    """Makes this process one where NeMo is not installed."""

    def find_spec(self, name, path=None, target=None):
        if name == "nemo" or name.startswith("nemo."):
            raise ModuleNotFoundError(f"No module named {name!r}", name="nemo")
        return None


def _group(commands):
    done = drive(commands)
    return {"done": done, "loaded": [name for name in ("nemo", "megatron") if name in sys.modules]}


if __name__ == "__main__":
    sys.meta_path.insert(0, _Blocker())
    sys.argv, (groups, results) = ["nemo", "llm"], sys.argv[1:]
    import nemo_run.__main__  # noqa: F401  (loaded once, before the forks)

    fork = multiprocessing.get_context("fork")
    with fork.Pool(1, maxtasksperchild=1) as pool:
        done = pool.map(_group, json.loads(Path(groups).read_text()), chunksize=1)
    Path(results).write_text(json.dumps(done))
