"""``python -m nemo_xtoken``: what is installed; with words after it, the command ``xtoken``."""

import sys

from nemo_xtoken.commands.cli import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or ["env"], program="python -m nemo_xtoken"))
