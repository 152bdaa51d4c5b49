"""Tests in forked processes are told as if they had run in one; where one ends, another goes on behind the test."""

import re
import subprocess
import sys
from pathlib import Path

FILES = {
    "conftest.py": """
import os, sys
import pytest
from forked_workers import ForkedWorkers

def pytest_configure(config):
    config.pluginmanager.register(ForkedWorkers(config, 2))

@pytest.fixture(scope="session")
def owner(tmp_path_factory):
    folder = tmp_path_factory.mktemp("of")
    yield folder
    with open("torn", "a") as file:
        print(folder.parent.name, file=file)
""",
    "test_a.py": """
import logging, os, sys, warnings
import pytest

logging.getLogger("a").addHandler(logging.StreamHandler(sys.stderr))

def test_first(owner, tmp_path):
    assert tmp_path.parent == owner.parent
    logging.getLogger("a").warning("into a closed file?")

def test_prints_and_fails(owner):
    logging.getLogger("a").warning("as it was when this was imported")
    print("what was printed by", os.environ["PYTEST_XDIST_WORKER"])
    os.system("echo by a child")
    assert [1] == [2]

def test_ends_its_process(owner):
    main = os.getppid()
    if os.fork() == 0:  # this one has the pipe as well, as long as somebody could wait for it
        import time
        from pathlib import Path
        for _ in range(600):
            try:
                state = Path(f"/proc/{main}/stat").read_text().rpartition(")")[2].split()[0]
            except FileNotFoundError:
                os._exit(0)
            if state == "Z":
                os._exit(0)
            time.sleep(0.05)
        Path("waited for").write_text("")
        os._exit(0)
    os._exit(3)

def test_behind_it(owner):
    warnings.warn("mind this")

@pytest.mark.skip(reason="not here")
def test_skipped():
    pass
""",
    **{f"test_{name}.py": "def test_one(owner): pass\ndef test_two(capfd): print(1)\n" for name in "bcd"},
}
#: Says which process it runs in; ``{before}``: after another one.
SAYING = """
import os, time
from pathlib import Path

def test_one():
    until = time.monotonic() + 30
    while "{before}" and not Path("{before}").exists() and time.monotonic() < until:
        time.sleep(0.01)
    Path(Path(__file__).stem).write_text(str(os.getpid()))
"""


def run(folder, *words, files=FILES):
    for name, content in files.items():
        (folder / name).write_text(content)
    (folder / "pytest.ini").write_text(f"[pytest]\npythonpath = {Path(__file__).parents[1] / 'support'}\n")
    words = [sys.executable, "-m", "pytest", "-ra", "-p", "no:hydra_pytest", "-p", "no:cacheprovider", *words]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=300)
    return done.returncode, done.stdout + done.stderr


def test_results_output_warnings_and_a_lost_process(tmp_path):
    status, out = run(tmp_path, "--durations=3")
    assert status == 1
    assert "collected 11 items" in out
    assert re.search(r"2 failed, 8 passed, 1 skipped, 1 warning in ", out), out
    assert re.search(r"test_a.py::test_prints_and_fails - assert \[1\] == \[2\]", out)
    assert re.search(r"what was printed by gw\d\nby a child\n", out)
    assert "- Captured stderr call -" in out
    assert out.count("as it was when this was imported") == 3  # to the stream, and to pytest's own handler; the line
    assert "Logging error" not in out
    assert "closed file" not in out.replace("into a closed file?", "")
    assert re.search(r"process \d ended with status 3 here", out)
    assert not (tmp_path / "waited for").exists()
    assert "FAILED test_a.py::test_ends_its_process" in out
    assert "mind this" in out
    assert "SKIPPED [1] test_a.py:" in out
    assert "slowest 3 durations" in out
    torn = (tmp_path / "torn").read_text().split()
    assert set(torn) <= {"gw0", "gw1"}
    assert 1 <= len(torn) <= 2  # of the process that ended nothing could be torn down


def test_at_the_first_failure_it_stops(tmp_path):
    status, out = run(tmp_path, "-x")
    assert status == 1
    assert "stopping after 1 failures" in out
    assert "FAILED test_a.py::test_ends_its_process" not in out


def test_files_that_share_something_run_in_one_process(tmp_path):
    files = {"conftest.py": FILES["conftest.py"], "test_e.py": SAYING.format(before="test_g")}
    files["test_f.py"] = SAYING.format(before="") + 'KEPT_WITH = "test_e.py"'
    files["test_g.py"] = SAYING.format(before="")
    status, out = run(tmp_path, files=files)
    assert status == 0, out
    first, kept, other = ((tmp_path / f"test_{name}").read_text() for name in "efg")
    assert first == kept != other  # the other process was free before, and took the file behind
