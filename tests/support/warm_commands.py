"""``nemo llm distill`` in a process that has imported NeMo; the commands that it starts are forks of that process."""

import contextlib
import io
import multiprocessing
import os

import torch
from remembered import remember_pictures, remember_spellings

__all__ = ["distil"]

FORK = multiprocessing.get_context("fork")


def _say(pipe, words):
    """One command of ``xtoken``, here; sends its exit status and what it prints."""
    from nemo_xtoken.commands.cli import main
    from nemo_xtoken.environment import without_launcher

    kept = without_launcher(os.environ)
    os.environ.clear()
    os.environ.update(kept)
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        status = main(words)
    pipe.send((status, said.getvalue()))


def _serve(pipe):
    """Commands, each in a fork of this process, which has imported NeMo and has not trained."""
    while True:
        ours, theirs = FORK.Pipe()
        process = FORK.Process(target=_say, args=(theirs, pipe.recv()))
        process.start()
        theirs.close()
        try:
            pipe.send(ours.recv())
        except EOFError:
            pipe.send((1, ""))
        process.join()


def distil(folder, *lines):
    """``nemo llm distill WORDS`` for each line: (status, output, the commands that it started).

    A first word that is a dictionary changes the environment for its line; None takes a variable away.
    """
    torch.set_num_threads(1)
    remember_spellings()
    remember_pictures()
    os.chdir(folder)
    os.environ.update(NEMO_XTOKEN_CACHE=str(folder / "cache"), COLUMNS="200")
    ours, theirs = FORK.Pipe()
    FORK.Process(target=_serve, args=(theirs,), daemon=False).start()
    from nemo_run.__main__ import app
    from typer.testing import CliRunner

    from nemo_xtoken.plugin import swapping

    started: list[str] = []

    def command(*words):  # as the real one, without importing NeMo anew
        started.append(words[0])
        ours.send(list(words))
        status, said = ours.recv()
        assert status == 0, words
        return said

    swapping.run_command = command
    results = []
    for words in lines:
        environment, words = (words[0], words[1:]) if isinstance(words[0], dict) else ({}, words)
        done = CliRunner().invoke(app, ["llm", "distill", *words], env=environment)
        results.append((done.exit_code, done.output, list(started)))
        started.clear()
    return results
