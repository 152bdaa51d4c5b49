"""Test set-up: one thread a process, no network, helpers importable by their file names."""

import os
import sys
from pathlib import Path

os.environ.update(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
for folder in (Path(__file__).parent, Path(__file__).parent / "losses"):
    sys.path.insert(0, str(folder))
