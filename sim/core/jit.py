"""How the choices are compiled: one decorator, and where numba may keep its cache.

numba notices edits in the file of a cached function but not in the files it calls, so the cache folder carries a hash
of every source file of the core and of the compiled machine: an edit anywhere there is a new folder.
"""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

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
os.environ["NUMBA_CACHE_DIR"] = str(CACHE_DIR)

import numba  # noqa: E402  (reads NUMBA_CACHE_DIR when it is imported)

numba.config.CACHE_DIR = str(CACHE_DIR)

F = TypeVar("F", bound=Callable[..., Any])


# No reference counting (nothing here allocates; with it the loop runs a hundred times slower), no C entry point.
_njit: Any = numba.njit  # not every option is in its signature
_OPTIONS: dict[str, Any] = {"cache": True, "error_model": "numpy", "_nrt": False, "no_cfunc_wrapper": True}


def choice(function: F) -> F:
    """Compile one function of the core: callable from the compiled loop, from simpy, from torch, from a debugger."""
    return _njit(**_OPTIONS)(function)  # type: ignore[no-any-return]


def inlined(function: F) -> F:
    """The same for the few choices on the path of every request: always part of their caller."""
    return _njit(forceinline=True, **_OPTIONS)(function)  # type: ignore[no-any-return]


def part(function: F) -> F:
    """A piece of a choice: part of its caller, called from compiled functions only (compiles twice as fast)."""
    return _njit(forceinline=True, no_cpython_wrapper=True, **_OPTIONS)(function)  # type: ignore[no-any-return]


def wrapping(function: F) -> F:
    """A choice whose integers wrap around: numpy, which runs it when the JIT is off, must not warn of it."""
    off: bool = getattr(numba.config, "DISABLE_JIT")  # noqa: B009 (numba sets it by name, unseen by mypy)
    return np.errstate(over="ignore")(function) if off else choice(function)
