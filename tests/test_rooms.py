"""The arrows of the house: a room imports only rooms below it."""

import ast
from pathlib import Path

import pytest

import espnet_mla

HOUSE = Path(espnet_mla.__file__).parent
FLOORS = (  # the lowest first; rooms of one floor don't know each other
    {"common", "attention"},
    {"models"},
    {"plugin"},
    {"trained"},
    {"recipe", "streaming"},
    {"convert", "measure"},
    {"baselines"},
    {"cli", "run"},
)
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}


def room_of(path: Path) -> str:
    return path.relative_to(HOUSE).parts[0].removesuffix(".py")


def imported_rooms(source: str) -> set[str]:
    """The rooms that a file imports, anywhere in it but under `if TYPE_CHECKING`."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            node.body = [ast.Pass()]
    names = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "relative imports hide where an arrow leads"
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return {name.split(".")[1] for name in names if name.startswith("espnet_mla.")} & FLOOR.keys()


def test_every_file_belongs_to_a_room():
    assert {room_of(path) for path in HOUSE.rglob("*.py")} == {*FLOOR, "__init__"}


@pytest.mark.parametrize("room", sorted(FLOOR))  # the order of a set differs between the workers of pytest-xdist
def test_a_room_imports_only_rooms_below_it(room):
    """But for the facade `__init__`, which imports when something is used, no import leads up or sideways."""
    up = [
        f"{path.relative_to(HOUSE)} imports {other}"
        for path in HOUSE.rglob("*.py")
        if room_of(path) == room
        for other in imported_rooms(path.read_text(encoding="utf-8"))
        if other != room and FLOOR[other] >= FLOOR[room]
    ]
    assert not up


def test_an_import_is_found_wherever_it_stands():
    source = "if TYPE_CHECKING:\n    import espnet_mla.cli\ndef f():\n    from espnet_mla.recipe import stages\n"
    assert imported_rooms(source + "from espnet_mla import measure\n") == {"recipe", "measure"}
