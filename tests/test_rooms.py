"""The arrows of the house: a room imports only rooms below it."""

import ast
from graphlib import CycleError, TopologicalSorter
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


def module_of(path: Path) -> str:
    return ".".join(("espnet_mla", *path.relative_to(HOUSE).with_suffix("").parts)).removesuffix(".__init__")


def imported_names(source: str, type_checking: bool = False) -> list[str]:
    """What a file imports, anywhere in it; under `if TYPE_CHECKING` only if that is asked for."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if not type_checking and isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            node.body = [ast.Pass()]
    names = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "relative imports hide where an arrow leads"
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


def imported_rooms(source: str) -> set[str]:
    """The rooms that a file imports, type-checking imports aside."""
    return {name.split(".")[1] for name in imported_names(source) if name.startswith("espnet_mla.")} & FLOOR.keys()


def sort_modules(sources: dict[str, str], type_checking: bool) -> list[str]:
    """The modules (name -> source), each after those that it imports.

    Raises:
        CycleError: some import each other.
    """
    graph = {
        module: {name if name in sources else name.rpartition(".")[0] for name in imported_names(source, type_checking)}
        & sources.keys() - {module}
        for module, source in sources.items()
    }
    return list(TopologicalSorter(graph).static_order())


def test_every_file_belongs_to_a_room():
    assert {room_of(path) for path in HOUSE.rglob("*.py")} == {*FLOOR, "__init__"}


@pytest.mark.parametrize("room", sorted(FLOOR))  # the order of a set differs between the workers of pytest-xdist
def test_no_modules_of_a_room_import_each_other(room):
    """In streaming/ not even for type checking: result, stream and pool know only what is below them."""
    sources = {
        module_of(path): path.read_text(encoding="utf-8") for path in HOUSE.rglob("*.py") if room_of(path) == room
    }
    order = sort_modules(sources, type_checking=room == "streaming")
    if room == "streaming":
        below = [order.index(f"espnet_mla.streaming.{name}") for name in ("model", "result", "stream", "pool")]
        assert below == sorted(below)


def test_modules_that_import_each_other_are_found():
    sources = {
        "espnet_mla.a": "def f():\n    from espnet_mla.b import g\n",
        "espnet_mla.b": "if TYPE_CHECKING:\n    from espnet_mla import a\n",
    }
    assert sort_modules(sources, type_checking=False) == ["espnet_mla.b", "espnet_mla.a"]
    with pytest.raises(CycleError):
        sort_modules(sources, type_checking=True)


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
