"""The examples of docs/adding.md as modules."""

import importlib
import re
import sys
from pathlib import Path

PAGE = next(folder for folder in Path(__file__).parents if (folder / "pyproject.toml").is_file()) / "docs" / "adding.md"


def example(heading):
    """The Python under a heading of the page, run; its names."""
    names = {"__name__": f"example_{heading.lower().replace(' ', '_')}"}
    exec(compile(source(heading), str(PAGE), "exec"), names)  # noqa: S102 (our own page)
    return names


def module(heading, name, folder, monkeypatch):
    """The same as a module that Python can import by name, here and in processes that are forked from here."""
    (folder / f"{name}.py").write_text(source(heading))
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, name, raising=False)
    importlib.invalidate_caches()
    return importlib.import_module(name)


def source(heading):
    """All Python blocks under a heading, one after the other."""
    section = re.split(r"^## ", PAGE.read_text(), flags=re.M)
    [text] = [part for part in section if part.startswith(heading + "\n")]
    return "\n".join(re.findall(r"^```python\n(.*?)^```", text, re.M | re.S))
