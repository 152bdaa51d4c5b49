"""The CPU-seconds that are shown at the end: of tests in this process or in forks, and of what they start."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

FILES = {
    "conftest.py": """
from cpu_times import CpuTimes
from forked_workers import ForkedWorkers

def pytest_addoption(parser):
    parser.addoption("--workers", type=int)

def pytest_configure(config):
    config.pluginmanager.register(CpuTimes(3))
    if config.getoption("workers"):
        config.pluginmanager.register(ForkedWorkers(config, 2))
""",
    "tests/unit/a/test_own.py": """
import time
import pytest

def burn(seconds):
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass

@pytest.fixture
def burnt():
    burn(0.3)
    yield
    burn(0.3)

def test_fails(burnt):
    burn(0.3)
    assert False

def test_sleeps():
    time.sleep(1)
""",
    "tests/jobs/test_child.py": """
import subprocess, sys

def test_one():
    burn = "import time\\nwhile time.process_time() < 0.6: pass"
    subprocess.run([sys.executable, "-SEc", burn], check=True)
""",
    "tests/jobs/test_ranks.py": """
import time
from ranks import run_ranks

def burn():
    end = time.process_time() + 0.4
    while time.process_time() < end:
        pass

def test_one():
    run_ranks(2, burn)
""",
}


@pytest.mark.parametrize("workers", [(), ("--workers=2",)])
def test_of_tiers_and_files(tmp_path, workers):
    for name, content in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    support = Path(__file__).parents[1] / "support"
    (tmp_path / "pytest.ini").write_text(f"[pytest]\npythonpath = {support}\n")
    words = [sys.executable, "-m", "pytest", "-p", "no:hydra_pytest", "-p", "no:cacheprovider", *workers]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert "1 failed, 3 passed" in done.stdout, done.stdout + done.stderr
    shown = re.findall(r"^ *([\d.]+) (tests/\S+)$", done.stdout.partition("CPU-seconds")[2], re.MULTILINE)
    seconds = {name: float(number) for number, name in shown}
    assert set(seconds) == {"tests/unit", "tests/jobs", *(name for name in FILES if name.startswith("tests/"))}
    assert 0.8 < seconds["tests/unit/a/test_own.py"] == seconds["tests/unit"] < 1.7
    assert 0.5 < seconds["tests/jobs/test_child.py"] < 1.5
    assert seconds["tests/jobs/test_ranks.py"] > 0.7
