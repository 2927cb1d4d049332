"""How the choices are compiled: a few decorators, and where what is compiled is kept.

Nothing here imports numba: it is loaded when something must be compiled (sim.core.compiler), which a run whose machine
code is kept (sim.core.kept) does not need.

The cache folder carries a hash of every source file of the core and of the compiled machine: an edit anywhere there is
a new folder. (numba notices edits in the file of a cached function but not in the files it calls.)
"""

import functools
import hashlib
import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

_HERE = Path(__file__).resolve().parent
_MACHINES = _HERE.parent / "machines"
_SOURCES = (*sorted(_HERE.glob("*.py")), *(_MACHINES / f"{name}.py" for name in ("clock", "compiled", "durations")))
_SETTINGS = Path(".numba_config.yaml")


def _root() -> Path:
    """`$NUMBA_CACHE_DIR` or the user's cache folder."""
    if asked := os.environ.get("NUMBA_CACHE_DIR"):
        return Path(asked)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "moe-offload-sim"
    except RuntimeError:  # a user without a home
        return Path(os.devnull)


def _is_ours(folder: Path) -> bool:
    """Whether files can be written there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError:
        return False
    return True


def _cache_dir(root: Path) -> Path:
    """There, a name made of the hash of the sources."""
    digest = hashlib.sha256()
    for source in _SOURCES:
        digest.update(source.read_bytes())
    return root / f"core-{digest.hexdigest()[:16]}"


ASKED = _root()
KEPT = _is_ours(ASKED)  # else numba would keep code beside the sources, where no hash says of which core it is
_scratch = None if KEPT else tempfile.TemporaryDirectory(prefix="moe-offload-sim-")  # goes with this process
if _scratch is not None:
    os.environ["NUMBA_CACHE_DIR"] = _scratch.name  # processes that this one starts share it
CACHE_DIR = _cache_dir(ASKED if _scratch is None else Path(_scratch.name))
BESIDE_NUMBA: list[str] = []  # modules to be imported as soon as numba is


def settings() -> dict[str, str]:
    """numba's, as it takes them when it is imported: NUMBA_* of the environment, and before them what its own file in
    the working folder says, which it reads if PyYAML is there."""
    said: dict[str, Any] = {}
    if _SETTINGS.is_file():
        with suppress(ImportError):
            said = import_module("yaml").safe_load(_SETTINGS.read_text()) or {}
    of_file = {f"NUMBA_{name.upper()}": str(int(x) if isinstance(x, bool) else x) for name, x in said.items()}
    return of_file | {name: x for name, x in os.environ.items() if name.startswith("NUMBA_")}


@functools.cache
def compiles() -> bool:
    """Whether the choices are compiled at all (NUMBA_DISABLE_JIT=1 runs them as plain Python)."""
    return settings().get("NUMBA_DISABLE_JIT", "0") in ("", "0")


F = TypeVar("F", bound=Callable[..., Any])


@functools.cache
def compiler() -> Any:
    """sim.core.compiler, and with it numba."""
    made = import_module("sim.core.compiler")
    for name in BESIDE_NUMBA:
        import_module(name)
    return made


class _Part:
    """A function that compiled code calls. numba asks for its type when it compiles who calls it."""

    def __init__(self, function: Callable[..., Any], **options: bool) -> None:
        self.__doc__, self.__name__, self.__module__ = function.__doc__, function.__name__, function.__module__
        self.py_func, self.options = function, options

    @functools.cached_property
    def part(self) -> Any:
        """numba's dispatcher of it, as part of others."""
        return compiler().part(self.py_func, self.options)

    @property
    def _numba_type_(self) -> Any:
        return self.part._numba_type_


class _Choice(_Part):
    """One that Python calls, too: compiled by itself at its first call, and then as fast as numba's own."""

    __slots__ = ("__call__",)  # what a call looks up: numba's dispatcher once it is there

    def __init__(self, function: Callable[..., Any], **options: bool) -> None:
        super().__init__(function, **options)
        self.__call__ = self._first_call

    def _first_call(self, *args: Any) -> Any:
        self.__call__ = self.dispatcher
        return self.dispatcher(*args)

    @functools.cached_property
    def dispatcher(self) -> Any:
        """numba's, as called from Python."""
        return compiler().root(self.py_func)


def _if_compiled(make: Callable[..., Any], **options: bool) -> Callable[[F], F]:
    return lambda function: make(function, **options) if compiles() else function


# what machines call: the compiled loop (which inlines it), simpy, torch, a test
choice = _if_compiled(_Choice, forceinline=True)
# what only compiled code calls, as part of it where that is (numba lets it inherit that)
inner = _if_compiled(_Part)
# the same, never part of its caller unless LLVM thinks so: what few runs call, or is called in many places
apart = _if_compiled(_Part, forceinline=False)
# the same for the few on the path of every request: always part of their caller
inlined = _if_compiled(_Part, forceinline=True)


def whole(function: F) -> F:
    """Compile a run from its first step to its last. It takes what core.memory knows, arrays, integers and None, and
    returns nothing; other threads go on meanwhile (one says what is being done)."""
    if not compiles():
        return wrapping(function)
    made: Any = import_module("sim.core.kept").Whole(function)
    return made


def wrapping(function: F) -> F:
    """A choice whose integers wrap around: numpy, which runs it when the JIT is off, must not warn of that."""
    if compiles():
        return choice(function)
    return np.errstate(over="ignore")(function)
