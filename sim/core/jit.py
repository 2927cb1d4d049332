"""How the choices are compiled: one decorator, and where numba may keep its cache.

numba notices edits in the file of a cached function but not in the files it calls, so the cache folder carries a hash
of every source file of the core and of the compiled machine: an edit anywhere there is a new folder.
"""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numba
import numpy as np

_HERE = Path(__file__).resolve().parent
_MACHINES = _HERE.parent / "machines"
_SOURCES = (*sorted(_HERE.glob("*.py")), _MACHINES / "clock.py", _MACHINES / "compiled.py")


def _cache_dir() -> Path:
    """`$NUMBA_CACHE_DIR` or the user's cache folder, then a name made of the hash of the sources."""
    default = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "moe-offload-sim"
    root = Path(os.environ.get("NUMBA_CACHE_DIR", default))
    digest = hashlib.sha256()
    for source in _SOURCES:
        digest.update(source.read_bytes())
    return root / f"core-{digest.hexdigest()[:16]}"


CACHE_DIR = _cache_dir()
_config: Any = numba.config  # Any: its settings are made when it is imported, where mypy does not see them
_config.CACHE_DIR = str(CACHE_DIR)


def compiles() -> bool:
    """Whether the choices are compiled at all (NUMBA_DISABLE_JIT=1 runs them as plain Python)."""
    return not _config.DISABLE_JIT


F = TypeVar("F", bound=Callable[..., Any])


# Without numba's runtime nothing allocates and nothing counts references: 50 times faster here. See ARCHITECTURE.md.
_OPTIONS: dict[str, Any] = {"cache": True, "error_model": "numpy", "_nrt": False}
# What only compiled code calls needs no wrapper for Python, whose compile time is left out.
_BARE: dict[str, Any] = {**_OPTIONS, "no_cpython_wrapper": True, "no_cfunc_wrapper": True}


def choice(function: F) -> F:
    """Compile a function that machines call: the compiled loop (which inlines it), simpy, torch, a test."""
    return numba.njit(forceinline=True, **_OPTIONS)(function)


def inner(function: F) -> F:
    """Compile a function that only compiled code calls, as part of it where that is (numba lets it inherit that)."""
    return numba.njit(**_BARE)(function)


def apart(function: F) -> F:
    """The same, never part of its caller unless LLVM thinks so: for what runs with core.rules alone call. It costs
    little speed and halves what there is to compile, for numba compiles what a function holds again with each caller.
    """
    return numba.njit(forceinline=False, **_BARE)(function)


def inlined(function: F) -> F:
    """The same for the few on the path of every request: always part of their caller."""
    return numba.njit(forceinline=True, **_BARE)(function)


def wrapping(function: F) -> F:
    """A choice whose integers wrap around: numpy, which runs it when the JIT is off, must not warn of that."""
    return choice(function) if compiles() else np.errstate(over="ignore")(function)


def frozen(array: Any) -> Any:
    """Read-only and contiguous, whatever it came as: one type for numba, one compiled version."""
    out = np.ascontiguousarray(array).view()
    out.flags.writeable = False
    return out
