"""Draws which rooms of kd_jax import from which, from the imports themselves.

`python docs/rooms.py` writes docs/images/rooms.svg. Arrows that follow from others are left out: where `evaluation`
imports from `inference`, and that from `models`, there is no arrow from `evaluation` to `models`. The six commands are
one box. A test draws the picture again, so that it cannot go out of date.
"""

import ast
from collections.abc import Iterable, Mapping
from graphlib import TopologicalSorter
from itertools import accumulate, pairwise
from pathlib import Path
from xml.etree import ElementTree as ET

ROOT = Path(__file__).resolve().parents[1]
PICTURE = ROOT / "docs" / "images" / "rooms.svg"
COMMANDS = "commands"
"""The box of all modules at the root of kd_jax."""
PIPELINE = "data_pipeline"
_WIDTH, _HEIGHT, _COLUMN, _LANE, _ROW, _MARGIN = 130, 34, 160, 40, 88, 20
_SWEEPS = 24

Rooms = Mapping[str, frozenset[str]]
"""By room, those it imports from."""


def find_rooms(package: Path = ROOT / "kd_jax") -> Rooms:
    """The rooms of kd_jax, and `data_pipeline` as one."""
    found: dict[str, set[str]] = {PIPELINE: set()}
    for file in sorted(package.rglob("*.py")):
        if file == package / "__init__.py":
            continue
        room = COMMANDS if file.parent == package else file.relative_to(package).parts[0]
        found.setdefault(room, set()).update(set(_imported(file, package)) - {room})
    return {room: frozenset(used) for room, used in found.items()}


def _imported(file: Path, package: Path) -> Iterable[str]:
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        names = [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        for name in names:
            top, _, rest = name.partition(".")
            if top == PIPELINE:
                yield PIPELINE
            elif top == package.name and rest:
                room = rest.partition(".")[0]
                yield COMMANDS if (package / f"{room}.py").exists() else room


def direct_arrows(rooms: Rooms) -> dict[str, frozenset[str]]:
    """The imports that do not follow from others (the transitive reduction)."""
    reached: dict[str, frozenset[str]] = {}
    for room in TopologicalSorter(rooms).static_order():
        reached[room] = rooms[room].union(*(reached[used] for used in rooms[room]))
    return {room: used - frozenset().union(*(reached[other] for other in used)) for room, used in rooms.items()}


def _rows(arrows: Rooms) -> dict[str, int]:
    """Row of each room, counted from the bottom: just below the lowest room that imports from it."""
    importers: dict[str, set[str]] = {room: set() for room in arrows}
    for room, used in arrows.items():
        for other in used:
            importers[other].add(room)
    depth: dict[str, int] = {}
    for room in TopologicalSorter(importers).static_order():
        depth[room] = 1 + max((depth[importer] for importer in importers[room]), default=-1)
    return {room: max(depth.values()) - d for room, d in depth.items()}


def _paths(arrows: Rooms) -> tuple[dict[tuple[str, str], list[str]], dict[str, int]]:
    """Each arrow as a chain with one stop in every row it crosses, so that it passes between rooms; rows of all."""
    rows, paths = _rows(arrows), {}
    for room in sorted(arrows):
        for used in sorted(arrows[room]):
            stops = [f"{room} {used} {row}" for row in range(rows[room] - 1, rows[used], -1)]
            rows |= {stop: int(stop.rpartition(" ")[2]) for stop in stops}
            paths[room, used] = [room, *stops, used]
    return paths, rows


def _place(paths: Iterable[list[str]], rows: Mapping[str, int]) -> dict[str, tuple[float, float]]:
    """Centre of every room and stop: each row ordered by the mean place of what it is joined to (Sugiyama 1981)."""
    joined: dict[str, set[str]] = {place: set() for place in rows}
    for path in paths:
        for one, next_one in pairwise(path):
            joined[one].add(next_one)
            joined[next_one].add(one)
    top = max(rows.values())
    ranks = [sorted(place for place in rows if rows[place] == row) for row in range(top + 1)]
    x = {place: _spread(rank)[i] for rank in ranks for i, place in enumerate(rank)}
    for sweep in range(_SWEEPS):
        for rank in ranks if sweep % 2 else reversed(ranks):
            rank.sort(key=lambda place: sum(x[other] for other in joined[place]) / len(joined[place]))
            x |= dict(zip(rank, _spread(rank), strict=True))
    left = min(x[place] - _half_width(place) for place in x)
    return {place: (_MARGIN + x[place] - left, _MARGIN + _HEIGHT / 2 + (top - rows[place]) * _ROW) for place in x}


def _half_width(place: str) -> float:
    return 0 if " " in place else _WIDTH / 2


def _spread(rank: list[str]) -> list[float]:
    """Places along a row, centred on 0; a stop of an arrow takes less room than a box."""
    widths = [_LANE if " " in place else _COLUMN for place in rank]
    ends = list(accumulate(widths))
    return [end - width / 2 - ends[-1] / 2 for end, width in zip(ends, widths, strict=True)]


def draw(rooms: Rooms) -> str:
    """The picture as SVG; each arrow's class is "importer-imported"."""
    paths, rows = _paths(direct_arrows(rooms))
    centre = _place(paths.values(), rows)
    width = max(x + _half_width(place) for place, (x, _) in centre.items()) + _MARGIN
    height = max(y for _, y in centre.values()) + _HEIGHT / 2 + _MARGIN
    svg = ET.Element("svg", xmlns="http://www.w3.org/2000/svg", viewBox=f"0 0 {width:g} {height:g}")
    svg.set("font-family", "sans-serif")
    ET.SubElement(svg, "title").text = "Rooms of kd_jax; an arrow points to what a room imports from"
    marker = ET.SubElement(ET.SubElement(svg, "defs"), "marker", id="tip", orient="auto", markerWidth="7")
    marker.attrib |= {"markerHeight": "7", "refX": "6", "refY": "3.5"}
    ET.SubElement(marker, "path", d="M0,0 L7,3.5 L0,7 z", fill="#607d8b")
    ET.SubElement(svg, "rect", width="100%", height="100%", fill="white")
    for (room, used), path in paths.items():
        line = ET.SubElement(svg, "path", d=_curve([centre[place] for place in path]), fill="none", stroke="#607d8b")
        line.attrib |= {"class": f"{room}-{used}", "marker-end": "url(#tip)"}
    for room in sorted(rooms):
        x, y = centre[room]
        box = ET.SubElement(svg, "rect", x=f"{x - _WIDTH / 2:g}", y=f"{y - _HEIGHT / 2:g}", rx="6", stroke="#37474f")
        box.attrib |= {"width": f"{_WIDTH}", "height": f"{_HEIGHT}", "fill": "#eceff1"}
        label = ET.SubElement(svg, "text", x=f"{x:g}", y=f"{y + 5:g}", fill="#212121")
        label.attrib |= {"text-anchor": "middle", "font-size": "15"}
        label.text = room
    ET.indent(svg)
    return ET.tostring(svg, encoding="unicode") + "\n"


def _curve(points: list[tuple[float, float]]) -> str:
    """From the lower edge of the first box through all stops to the upper edge of the last."""
    half = _HEIGHT / 2
    bends = []
    for i, ((x1, y1), (x2, y2)) in enumerate(pairwise(points)):
        start, end = y1 + half, y2 - half
        bends.append(
            f"{'L' if i else 'M'}{x1:g},{start:g} C{x1:g},{start + half:g} {x2:g},{end - half:g} {x2:g},{end:g}"
        )
    return " ".join(bends)


if __name__ == "__main__":
    PICTURE.write_text(draw(find_rooms()), encoding="utf-8")
