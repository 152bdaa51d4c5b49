"""Runs several `nemo llm ..` command lines in one process, because importing NeMo takes 10 to 20 seconds.

Usage: python nemo_driver.py COMMANDS.json RESULTS.json [--without-nemo]

Commands are lists of words after `nemo`; a first word that is a dictionary changes the environment for it.
A result has the exit status, standard output and standard error.
"""

import importlib.abc
import json
import sys
from pathlib import Path


class _Blocker(importlib.abc.MetaPathFinder):
    """Makes this process one where NeMo is not installed."""

    def find_spec(self, name, path=None, target=None):
        if name == "nemo" or name.startswith("nemo."):
            raise ModuleNotFoundError(f"No module named {name!r}", name="nemo")
        return None


if __name__ == "__main__":
    commands, results, *flags = sys.argv[1:]
    if flags:
        sys.meta_path.insert(0, _Blocker())
    sys.argv = ["nemo", "llm"]
    from nemo_run.__main__ import app
    from typer.testing import CliRunner

    done = []
    for words in json.loads(Path(commands).read_text()):
        environment = words.pop(0) if isinstance(words[0], dict) else {}
        result = CliRunner().invoke(app, words, env=environment)
        done.append({"status": result.exit_code, "out": result.stdout, "err": result.stderr})
    loaded = [name for name in ("nemo", "megatron", "fake_recipe") if name in sys.modules]
    Path(results).write_text(json.dumps({"done": done, "loaded": loaded}))
