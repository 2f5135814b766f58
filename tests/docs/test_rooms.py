"""The picture of the rooms in CONTRIBUTING.md shows the imports as they are."""

import importlib.util
from pathlib import Path
from xml.etree import ElementTree as ET

from tests.test_architecture import COMMANDS, _rooms

ROOT = Path(__file__).resolve().parents[2]
_SPEC = importlib.util.spec_from_file_location("rooms", ROOT / "docs" / "rooms.py")
rooms = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(rooms)


def _drawn() -> set[tuple[str, str]]:
    paths = ET.parse(rooms.PICTURE).iter("{http://www.w3.org/2000/svg}path")
    return {tuple(path.get("class").split("-")) for path in paths if path.get("class")}


def _reachable(arrows: set[tuple[str, str]]) -> set[tuple[str, str]]:
    """Every room and whatever it uses through others."""
    found = set(arrows)
    while more := {(a, d) for a, b in found for c, d in arrows if b == c} - found:
        found |= more
    return found


def test_the_picture_is_drawn_from_the_imports_of_today():
    assert rooms.PICTURE.read_text() == rooms.draw(rooms.find_rooms()), "draw it again: python docs/rooms.py"


def test_the_arrows_lead_wherever_imports_do_and_none_follows_from_others():
    box = dict.fromkeys(COMMANDS, rooms.COMMANDS)
    imports = {
        (box.get(room, room), box.get(used, used)) for room, others in _rooms("kd_jax").items() for used in others
    }
    drawn = {(room, used) for room, used in _drawn() if used != rooms.PIPELINE}
    assert _reachable(drawn) == _reachable(imports - {(rooms.COMMANDS,) * 2})
    assert all((room, used) not in _reachable(drawn - {(room, used)}) for room, used in drawn)
