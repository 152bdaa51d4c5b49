"""What ``nemo xtoken VERB`` loads: the same verbs as the console script ``xtoken``, under the command ``nemo``.

nemo_run loads the entry points of every command group, NeMo's included, before it runs a command of any; for a light
verb that would be 10 to 20 seconds of imports it does not need.  So the verb runs right here, while nemo_run is looking
for commands, and the process ends with its exit status.  (Whether NeMo's entry points are loaded before ours is not
under our control; if they are, the verb still runs, later.)
"""

import multiprocessing
import sys

from nemo_xtoken.commands.cli import main

__all__: list[str] = []


def _called_as_nemo_xtoken() -> bool:
    """Whether this process is ``nemo xtoken ..``, not a worker that a verb started, which has the same arguments."""
    in_command = "nemo_run.__main__" in sys.modules
    return in_command and sys.argv[1:2] == ["xtoken"] and multiprocessing.parent_process() is None


if _called_as_nemo_xtoken():
    raise SystemExit(main(sys.argv[2:], program="nemo xtoken"))
