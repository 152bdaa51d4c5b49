"""Test set-up: one thread a process, no network, helpers importable by their file names.

The properties are tried on the same examples every time, so that two runs of one tree agree; for new ones run
``pytest --hypothesis-profile=default``.
"""

import os
import sys
from pathlib import Path

from hypothesis import settings

os.environ.update(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
for folder in (Path(__file__).parent, Path(__file__).parent / "losses"):
    sys.path.insert(0, str(folder))

settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")
