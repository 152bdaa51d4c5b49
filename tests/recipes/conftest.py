"""Shares the plugin tests' NeMo and their ranks."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "plugin"))
from nemo_fixture import nemo  # noqa: F401
