"""A command as a login node runs it: with the packages that docs/clusters.md installs there, and no others."""

import importlib.metadata
import os
import re
import subprocess
import sys
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "clusters.md"
#: Refuses to import what neither Python nor the packages named bring along.
_PROGRAM = """
import importlib.metadata, sys
distributions, words = set(sys.argv[1].split(",")), sys.argv[2:]
brought = {name for name, by in importlib.metadata.packages_distributions().items() if distributions & set(by)}

class Nothing:
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top not in brought and top not in sys.stdlib_module_names:
            raise ModuleNotFoundError(f"No module named {top!r}", name=top)

brought.add("nemo_xtoken")
sys.meta_path.insert(0, Nothing())
from nemo_xtoken.commands.cli import main
sys.exit(main(words))
"""


def named_packages():
    """What the page's pip line installs beside this package."""
    return re.search(r"^    pip install ([\w. -]+) && pip install --no-deps \.$", PAGE.read_text(), re.M)[1].split()


def with_requirements(names):
    """The distributions of these names that are here, and what they require."""
    found = {}
    queue = list(names)
    while queue:
        try:
            distribution = importlib.metadata.distribution(queue.pop())
        except importlib.metadata.PackageNotFoundError:  # of another Python
            continue
        if distribution.name not in found:
            found[distribution.name] = distribution
            required = (r for r in distribution.requires or () if "extra ==" not in r)
            queue += [re.match(r"[\w.-]+", requirement)[0] for requirement in required]
    return sorted(found)


def on_login_node(words, folder=None):
    """The finished process of ``xtoken WORDS``."""
    program = [sys.executable, "-c", _PROGRAM, ",".join(with_requirements(named_packages())), *words]
    own = {name: value for name, value in os.environ.items() if not name.startswith("NEMO_XTOKEN_")}
    return subprocess.run(program, capture_output=True, text=True, timeout=120, cwd=folder, env=own)
