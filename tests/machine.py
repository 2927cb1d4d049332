"""The machine's compiled code: which tests need it, and one compilation for all their processes."""

import ast
import fcntl
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("traces", "sim", "runtime", "analysis", "tests")
COMPILED = ROOT / "sim" / "core" / "visit.py"  # every machine calls it, and it calls the rest of the core
BATCHES = (
    ("lean", "everything", "rules", "rules-everything"),
    ("log", "everything-log", "rules-log", "rules-everything-log"),
)  # of tests.warm, side by side


@cache
def needs_the_machine(path: Path) -> bool:
    """Whether a test file comes to the core's decisions: through what it imports, at the top or late, and what that
    imports, and through the modules named in its strings (commands, scripts)."""
    seen: set[Path] = set()
    ahead = [path]
    while ahead and COMPILED not in seen:
        found = ahead.pop()
        if found not in seen:
            seen.add(found)
            ahead += imported(found)
    return COMPILED in seen


@cache
def imported(path: Path) -> frozenset[Path]:
    """The files of this project that a file names, the packages around them left out."""
    names = (name.replace(".", "/") for name in _names(ast.parse(path.read_text()), path.parent.name == "tests"))
    places = [ROOT / f"{name}{end}" for name in names if name.split("/")[0] in ROOMS for end in _ENDS]
    return frozenset(place for place in places if place.is_file())


_ENDS = (".py", "/__init__.py", "/__main__.py")


def _names(tree: ast.AST, strings: bool) -> Iterator[str]:
    """Dotted names, some of which are modules."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (node.module, *(f"{node.module}.{alias.name}" for alias in node.names))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and strings:
            yield from re.findall(r"\w+(?:\.\w+)+", re.sub(r"from (\S+) import (\w+)", r"\1.\2", node.value))


@cache
def is_compiled() -> bool:
    """Compiles what numba's cache does not hold of the machine as these sources have it; False where that fails.

    Processes that ask at the same time wait for the first of them.
    """
    from sim.core.jit import CACHE_DIR

    CACHE_DIR.mkdir(parents=True, exist_ok=True)
    with (CACHE_DIR / "tests").open("a+") as note:
        fcntl.flock(note, fcntl.LOCK_EX)
        note.seek(0)
        if note.read() == _sources():
            return True
        jobs = [subprocess.Popen([sys.executable, "-m", "tests.warm", *batch], cwd=ROOT) for batch in BATCHES]
        if any([job.wait() for job in jobs]):
            return False
        note.truncate(0)
        note.write(_sources())
    return True


def _sources() -> str:
    """What numba tells an edited file by: place and time of change."""
    files = [path for room in ("core", "machines") for path in sorted((ROOT / "sim" / room).glob("*.py"))]
    return "\n".join(f"{path} {path.stat().st_mtime_ns}" for path in files)
