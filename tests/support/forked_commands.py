"""Commands in forks of this process, which has loaded NeMo: as a shell starts them, without the imports of each."""

import os
import sys
from pathlib import Path

from launcher import start

__all__ = ["run_command"]


def run_command(folder: Path, *words: str, env: dict[str, str] | None = None, timeout: float = 400) -> tuple[int, str]:
    """``nemo ..`` or ``xtoken ..`` in ``folder``: (exit status, all that it printed).

    For ``nemo`` the fixture ``command_line`` must have loaded the application.
    """
    logs = folder / "commands"
    [ended] = start(_command, folder, words, folder=logs, env=env, timeout=timeout)
    return ended.status, ended.log


def _command(folder: Path, words: tuple[str, ...]) -> None:
    from nemo_xtoken.environment import without_launcher

    kept = without_launcher(os.environ)
    os.environ.clear()
    os.environ.update(kept)
    os.chdir(folder)
    sys.argv = list(words)
    if words[0] == "nemo":
        from nemo_run.__main__ import app

        app()
    else:
        from nemo_xtoken.commands.cli import main

        raise SystemExit(main(list(words[1:])))
