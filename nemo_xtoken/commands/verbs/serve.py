"""``xtoken serve``: a replica of a teacher, which students of other processes ask for hidden states."""

import importlib
import os
import signal
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nemo_xtoken.commands.verb import Option, Verb
from nemo_xtoken.commands.verbs.cache import MODEL, plan_of
from nemo_xtoken.files import digest_of
from nemo_xtoken.leftovers import system_name
from nemo_xtoken.limits import LARGEST_BATCH, LONGEST_SEQUENCE

__all__ = ["VERB"]


def _run(arguments: Mapping[str, Any]) -> int:
    from nemo_xtoken.launch.ranks import adopt_slurm_ranks

    adopt_slurm_ranks(os.environ)
    asked: list[int] = []
    until = Path(arguments["until"]).expanduser() if arguments["until"] else None

    def stop(number: int, _: Any) -> None:
        asked.append(number)

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        standalone = importlib.import_module("nemo_xtoken.plugin.standalone")  # loads torch and Megatron
        tokens = standalone.serve_teacher(
            plan_of(arguments),
            Path(arguments["folder"]).expanduser(),
            arguments["name"] or _name(),
            arguments["length"],
            arguments["credits"],
            arguments["micro_batch_size"],
            arguments["address"],
            lambda: bool(asked) if until is None else until.exists() or signal.SIGINT in asked,
        )
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if os.environ.get("RANK", "0") == "0":
        print(f"stopped; {tokens:,} tokens were computed")
    return 0


def _name() -> str:
    """Of this replica among all of a service: containers of several machines may have one host name and numbers."""
    return f"{socket.gethostname()}-{os.getpid()}-{digest_of(system_name())[:8]}"


VERB = Verb(
    name="serve",
    summary="run a teacher in processes of its own, for students elsewhere (loads NeMo)",
    description=(
        "Loads one copy of a teacher over the processes that torchrun or srun started, and answers requests for hidden "
        "states until it gets SIGTERM. Each further call with the same folder is another replica: students balance "
        "between all, and go on when some end. The folder must be on a file system that students and replicas share; "
        "the keys in it are made by the first who needs them, and are its owner's alone. Train with "
        "teacher.source=remote teacher.service.folder=FOLDER and the same teacher.path and precision."
    ),
    options=(
        Option("teacher", "the teacher's checkpoint, as teacher.path of the run", required=True),
        *MODEL,
        Option("folder", "by which students find it, as teacher.service.folder of the run", required=True),
        Option(
            "name",
            "of this replica; one that starts again under its name takes its place; default of its host and process",
        ),
        Option("address", "under which students reach this machine; default its host name"),
        Option(
            "until",
            "a file whose appearance, or Ctrl-C, ends it, instead of SIGTERM: a student may still need it then",
        ),
        Option("length", "positions of a row, at most", int, 32768, least=2, most=LONGEST_SEQUENCE),
        Option(
            "credits",
            "rows of that length that a student may have asked for and not got yet",
            int,
            8,
            least=1,
            most=LARGEST_BATCH,
        ),
        Option(
            "micro_batch_size",
            "rows at a time; with 1 a state does not depend on what else is asked for",
            int,
            1,
            least=1,
            most=LARGEST_BATCH,
        ),
    ),
    examples=(
        ("serve teacher=nemo/qwen3-4b folder=runs/one/service", "a replica in one process"),
        ("serve teacher=nemo/qwen3-32b folder=runs/one/service tensor=8", "over 8 processes, below torchrun or srun"),
    ),
    run=_run,
)
