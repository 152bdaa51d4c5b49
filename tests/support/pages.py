"""README and docs as text, and the code in them."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "benchmarks").glob("*.md")])
TEXTS = {path: path.read_text() for path in DOCUMENTS}


def code(text):
    """The text of all code spans, indented and fenced blocks; continued lines are joined."""
    fenced = re.findall(r"^```\w*\n(.*?)^```", text, re.M | re.S)
    indented = re.findall(r"^(?:    |\t)((?:.*\\\n)*.*)", text, re.M)
    spans = re.findall(r"`([^`]+)`", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S))
    return [re.sub(r"\s*\\\n\s*", " ", part) for part in [*fenced, *indented, *spans]]


#: (name of the page, line)
CODE = [(path.name, line) for path, text in TEXTS.items() for part in code(text) for line in part.splitlines()]
