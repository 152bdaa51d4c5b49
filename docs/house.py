"""Draws docs/house.svg: the rooms of the package on floors, and which room imports which, from the imports in the code.

    python docs/house.py

A room is a folder of nemo_xtoken.  It stands on the lowest floor that is above every room that it imports.  An arrow is
left out where others already lead there by way of another room.  The captions are those of docs/architecture.md.
"""

import ast
import html
import re
from collections.abc import Iterator
from graphlib import TopologicalSorter
from math import fsum
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PICTURE = ROOT / "docs" / "house.svg"
BOX, GAP, FLOOR = (236, 42), 24, 76
#: A package whose folders are rooms of their own.
SPLIT = {"plugin"}


def sources() -> Iterator[tuple[Path, tuple[str, ...]]]:
    """Each source file of the package with the parts of its module's name."""
    for top in (ROOT / "nemo_xtoken", ROOT / "recipes"):
        for path in sorted(top.rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            yield path, parts if parts[0] == "nemo_xtoken" else ("nemo_xtoken", *parts)


def room_of(parts: tuple[str, ...], rooms: set[str]) -> str | None:
    """The room that a module is in; None for the files that stand beside the rooms."""
    name = "/".join(parts[1 : 3 if parts[1:2] and parts[1] in SPLIT else 2])
    return name if name in rooms else None


def imports() -> dict[str, set[str]]:
    """Room -> the rooms that its files import, anywhere in them."""
    found = list(sources())
    rooms = {"/".join(p[1 : 3 if p[1] in SPLIT else 2]) for _, p in found if len(p) > (3 if p[1] in SPLIT else 2)}
    graph: dict[str, set[str]] = {room: set() for room in rooms}
    for path, parts in found:
        room = room_of(parts, rooms)
        for node in ast.walk(ast.parse(path.read_text())) if room else ():
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("nemo_xtoken"):
                names = [f"{node.module}.{alias.name}" for alias in node.names]
                other = {room_of(tuple(name.split(".")), rooms) for name in names}
                graph[room] |= {o for o in other if o and o != room}
    return graph


def floors(graph: dict[str, set[str]]) -> list[list[str]]:
    """The rooms by floor, the ground floor first.  graphlib.CycleError: rooms import each other in a circle."""
    level: dict[str, int] = {}
    for room in TopologicalSorter(graph).static_order():
        level[room] = 1 + max((level[other] for other in graph[room]), default=-1)
    rows = [sorted(r for r in level if level[r] == n) for n in range(max(level.values()) + 1)]
    for _ in range(8):  # rooms stand over what they import, so that few arrows cross
        for n, row in enumerate(rows[1:], 1):
            at = {room: (i + 0.5) / len(below) for below in rows[:n] for i, room in enumerate(below)}
            # fsum: sets of names have another order in each process, and a sum must not depend on it
            row.sort(key=lambda room: (fsum(at[o] for o in graph[room]) / max(len(graph[room]), 1), room))
    return rows


def direct(graph: dict[str, set[str]]) -> dict[str, set[str]]:
    """The graph without the arrows that lead where a longer way leads too."""
    reach: dict[str, set[str]] = {}
    for room in TopologicalSorter(graph).static_order():
        reach[room] = graph[room].union(*(reach[other] for other in graph[room]))
    return {room: {o for o in graph[room] if not any(o in reach[p] for p in graph[room])} for room in graph}


def captions() -> dict[str, str]:
    """Room -> the beginning of what the page's table says about it."""
    table = re.findall(r"^\| (`[a-z0-9_/`, ]+`) \| (.+?) \|", (ROOT / "docs" / "architecture.md").read_text(), re.M)
    return {
        name.strip("/"): re.split("[:,;]", text)[0]
        for rooms, text in table
        for name in re.findall("[a-z0-9_/]+", rooms)
    }


def draw(graph: dict[str, set[str]]) -> str:
    """The picture, as SVG."""
    rows, about = floors(graph), captions()
    width = max(len(row) for row in rows) * (BOX[0] + GAP) + GAP
    height = len(rows) * FLOOR + GAP
    place = {}
    for n, row in enumerate(rows):
        step = width / len(row)
        place |= {room: (step * (i + 0.5), height - FLOOR * (n + 0.5) - GAP / 2) for i, room in enumerate(row)}
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif">',
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
    ]
    for n in range(1, len(rows)):
        y = height - FLOOR * n - GAP / 2
        lines.append(f'<path d="M0 {y:.0f}H{width}" stroke="#eee"/>')
    for room, others in sorted(direct(graph).items()):
        for other in sorted(others):
            (x, y), (u, v) = place[room], place[other]
            y, v = y + BOX[1] / 2, v - BOX[1] / 2
            lines.append(
                f'<path d="M{x:.0f} {y:.0f}C{x:.0f} {y + 30:.0f} {u:.0f} {v - 30:.0f} {u:.0f} {v:.0f}" fill="none" '
                f'stroke="#8aa4c0" stroke-width="1.2"/><circle cx="{u:.0f}" cy="{v:.0f}" r="2.5" fill="#5b7fa6"/>'
            )
    for room, (x, y) in sorted(place.items()):
        lines.append(
            f'<rect x="{x - BOX[0] / 2:.0f}" y="{y - BOX[1] / 2:.0f}" width="{BOX[0]}" height="{BOX[1]}" rx="5" '
            f'fill="#eef4fa" stroke="#5b7fa6"/><g text-anchor="middle"><text x="{x:.0f}" y="{y - 2:.0f}" '
            f'font-size="15" font-weight="bold">{room}</text><text x="{x:.0f}" y="{y + 14:.0f}" font-size="11" '
            f'fill="#456">{html.escape(about[room])}</text></g>'
        )
    return "\n".join([*lines, "</svg>"]) + "\n"


if __name__ == "__main__":
    PICTURE.write_text(draw(imports()))
    print(f"saved in {PICTURE.relative_to(ROOT)}")
