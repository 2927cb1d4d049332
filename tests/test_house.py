"""The plan of the house: no import goes round in a circle, and none goes up.

The order of the rooms is that of the first column of the table in ARCHITECTURE.md, which is so held to be true. Imports
inside functions and under TYPE_CHECKING count like any other.
"""

import ast
import re
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("traces", "sim", "runtime", "analysis")
Graph = dict[str, set[str]]


def graph(root: Path) -> Graph:
    """Each module under `root`, by its path without `.py`, and which of the others it imports."""
    files = {path.relative_to(root) for package in PACKAGES for path in (root / package).rglob("*.py")}
    paths = {str(file.parent if file.name == "__init__.py" else file.with_suffix("")): root / file for file in files}
    return {name: imported(path) & paths.keys() - {name} for name, path in paths.items()}


def imported(path: Path) -> set[str]:
    """What a file imports, as paths; of `from a import b` both a and a/b, of which there may be only one."""
    out = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            out |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.module and not node.level, f"{path}:{node.lineno}: imports are absolute here"
            out |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return {name.replace(".", "/") for name in out}


def circle(of: Graph) -> list[str]:
    """One of its circles; empty where there is none."""
    try:
        TopologicalSorter(of).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def rooms() -> list[str]:
    """`traces/errors` (a file), `traces/format/` (a folder) and so on, from the lowest."""
    table = (ROOT / "ARCHITECTURE.md").read_text().split("| room |")[1].split("\n\n")[0]
    return [
        name.removesuffix(".py") for row in table.splitlines() for name in re.findall(r"`(\S+)`", row.split("|")[1])
    ]


def arrows_up(of: Graph, order: list[str]) -> list[str]:
    """`a imports b` for each import of what stands higher. What no room holds is a command at its package's top."""

    def place(name: str) -> tuple[int, int]:
        package = PACKAGES.index(name.split("/")[0])
        if name in PACKAGES:
            return package, -1
        found = [i for i, room in enumerate(order) if name == room.removesuffix("/") or name.startswith(room)]
        return package, max(found, key=lambda i: len(order[i]), default=len(order))

    return [f"{a} imports {b}" for a in sorted(of) for b in sorted(of[a]) if place(b) > place(a)]


@pytest.fixture(scope="module")
def house() -> Graph:
    found = graph(ROOT)
    assert len(found) > 100 and sum(map(len, found.values())) > 500, "hardly a module was found: nothing is checked"
    return found


def test_no_circle_among_modules(house: Graph) -> None:
    assert not circle(house)


def test_no_arrow_up(house: Graph) -> None:
    assert not arrows_up(house, rooms())


def test_every_room_is_there_and_the_rest_are_commands(house: Graph) -> None:
    order = rooms()
    gone = [room for room in order if not (ROOT / room).is_dir() and not (ROOT / f"{room}.py").is_file()]
    assert not gone
    held = tuple(room for room in order if room.endswith("/"))
    loose = [name for name in house if name not in (*order, *PACKAGES) and not f"{name}/".startswith(held)]
    assert [name for name in loose if "def main(" not in (ROOT / f"{name}.py").read_text()] == []


@pytest.mark.parametrize(
    "line", ["import {}", "def late() -> None:\n    from {} import x", "if TYPE_CHECKING:\n    import {}"]
)
def test_a_circle_and_an_arrow_up_are_found(tmp_path: Path, line: str) -> None:
    for name, text in {
        "traces/low/a": "",
        "traces/high/b": "import traces.low.a",
        "sim/c": "import traces.high.b",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / f"{name}.py").write_text(text)
    order = ["traces/low/", "traces/high/"]
    assert not circle(graph(tmp_path)) and not arrows_up(graph(tmp_path), order)
    (tmp_path / "traces/low/a.py").write_text(line.format("traces.high.b"))
    assert set(circle(graph(tmp_path))) == {"traces/low/a", "traces/high/b"}
    assert arrows_up(graph(tmp_path), order) == ["traces/low/a imports traces/high/b"]
    (tmp_path / "traces/low/a.py").write_text(line.format("sim.c"))
    assert arrows_up(graph(tmp_path), order) == ["traces/low/a imports sim/c"]
