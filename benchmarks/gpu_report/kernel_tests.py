"""The tests of the kernels, in a process of their own, whose Triton interprets where there is no GPU."""

import importlib.util
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

__all__ = ["kernel_tests"]

ROOT = Path(__file__).parents[2]
TESTS = "tests/unit/kernels"


def kernel_tests(cuda: bool, seconds: float, only: str = "") -> dict[str, Any]:
    """How many passed and failed, and the end of what was printed.

    Args:
        seconds: they are stopped after these.
        only: of the tests' names, as pytest's ``-k``.
    """
    missing = [name for name in ("triton", "pytest", "hypothesis") if importlib.util.find_spec(name) is None]
    if missing:
        return {"status": None, "said": f"not run: {', '.join(missing)} not installed"}
    files = sorted(str(path.relative_to(ROOT)) for path in (ROOT / TESTS).glob("*_cases.py"))
    variables = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    variables["PYTHONPATH"] = os.pathsep.join(
        [str(ROOT), str(ROOT / "tests" / "support"), os.environ.get("PYTHONPATH", "")]
    )
    if not cuda:
        variables["TRITON_INTERPRET"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        found = Path(folder, "found.xml")
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "-c",
            os.devnull,
            "--rootdir",
            str(ROOT),
        ]
        command += [f"--junitxml={found}", "-k", only, *files]
        try:
            done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=seconds)
        except subprocess.TimeoutExpired as error:
            said = error.stdout if isinstance(error.stdout, str) else (error.stdout or b"").decode(errors="replace")
            return {"status": None, "said": f"{said[-2000:]}\nstopped after {seconds:.0f} s"}
        counts = dict(ElementTree.parse(found).getroot()[0].attrib) if found.is_file() else {}
    numbers = {name: int(counts.get(name, 0)) for name in ("tests", "failures", "errors", "skipped")}
    return {"status": done.returncode, **numbers, "said": (done.stdout + done.stderr)[-4000:]}
