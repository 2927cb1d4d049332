"""How the choices are compiled: one decorator, and where numba may keep its cache.

numba notices edits in the file of a cached function but not in the files it calls, so the cache folder carries a hash
of every source file of the core and of the compiled machine: an edit anywhere there is a new folder.
"""

import hashlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import llvmlite.binding as llvm
import numba
import numpy as np
from numba.core import types
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import Compiler
from numba.core.dispatcher import Dispatcher as CPUDispatcher
from numba.core.registry import CPUDispatcher

_HERE = Path(__file__).resolve().parent
_MACHINES = _HERE.parent / "machines"
_SOURCES = (*sorted(_HERE.glob("*.py")), _MACHINES / "clock.py", _MACHINES / "compiled.py")


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
_config: Any = numba.config  # Any: its settings are made when it is imported, where mypy does not see them
_config.CACHE_DIR = str(CACHE_DIR)


def compiles() -> bool:
    """Whether the choices are compiled at all (NUMBA_DISABLE_JIT=1 runs them as plain Python)."""
    return not _config.DISABLE_JIT


F = TypeVar("F", bound=Callable[..., Any])


# Without numba's runtime nothing allocates and nothing counts references: 50 times faster here. See ARCHITECTURE.md.
_OPTIONS: dict[str, Any] = {"error_model": "numpy", "_nrt": False}
# What only compiled code calls needs no wrapper for Python, whose compile time is left out.
_BARE: dict[str, Any] = {**_OPTIONS, "no_cpython_wrapper": True, "no_cfunc_wrapper": True}


class _Part(JITCodeLibrary):
    """What only compiled code calls: neither optimised nor made machine code by itself; whoever is called from Python
    links all of its parts once (numba's own way does all of it again with each caller)."""

    def add_llvm_module(self, ll_module):
        self._optimize_functions(ll_module)
        self._final_module.link_in(ll_module)

    def finalize(self):
        self._finalized = True

    def get_pointer_to_function(self, name):
        return 0

    @property
    def codegen(self):
        return self

    def set_env(self, name, env):
        """Nothing here raises what has to be looked up."""


def _parts(library, seen):
    """Callers before whom they call: LLVM leaves out what nothing before it refers to."""
    below = []
    for each in library._linking_libraries:
        if each not in seen:
            seen.add(each)
            if isinstance(each, _Part):
                below = _parts(each, seen) + below
            below = [each] + below
    return below


class _Root(JITCodeLibrary):
    def finalize(self):
        self._linking_libraries = _parts(self, set())
        super().finalize()

    def _optimize_final_module(self):
        o = os.environ.get("JITO", "2,0,0,0").split(",")
        tuning = llvm.create_pipeline_tuning_options(speed_level=int(o[0]))
        tuning.loop_unrolling, tuning.loop_vectorization, tuning.slp_vectorization = (each == "1" for each in o[1:4])
        if len(o) > 4:
            tuning.inlining_threshold = int(o[4])
        builder = llvm.create_pass_builder(self._codegen._tm, tuning)
        if len(o) > 5:
            m = builder.getModulePassManager()
            m.add_loop_rotate_pass()
            m.add_instruction_combine_pass()
            m.add_jump_threading_pass()
            m.run(self._final_module, builder)
            builder = llvm.create_pass_builder(self._codegen._tm, tuning)
        builder.getModulePassManager().run(self._final_module, builder)


class _Compiler(Compiler):
    kind: Any

    def define_pipelines(self):
        state = self.state
        state.library = self.kind(state.targetctx.codegen(), state.func_id.func_qualname)
        state.library.enable_object_caching()
        return super().define_pipelines()


class _PartCompiler(_Compiler):
    kind = _Part


class _RootCompiler(_Compiler):
    kind = _Root


def _wide(kind):
    kind = types.unliteral(kind)
    return types.int64 if isinstance(kind, types.Integer) else kind


class _Once(CPUDispatcher):
    """Compiled once whatever integers it is called with (numba's own way: once for each kind, and for each number
    spelled out): a call widens them, which costs nothing where it becomes part of its caller."""

    def get_call_template(self, args, kws):
        return super().get_call_template(tuple(map(_wide, args)), {n: _wide(k) for n, k in kws.items()})


class _Choice(CPUDispatcher):
    @property
    def _numba_type_(self):
        return types.Dispatcher(self.part)


def _part(function, options):
    made = numba.njit(pipeline_class=_PartCompiler, **options)(function)
    if compiles():
        made.__class__ = _Once
    return made


def choice(function: F, **more) -> F:
    """Compile a function that machines call: the compiled loop (which inlines it), simpy, torch, a test."""
    root = numba.njit(forceinline=True, cache=True, pipeline_class=_RootCompiler, **_OPTIONS, **more)(function)
    if not compiles():
        return root
    root.__class__ = _Choice
    root.part = inlined(function)
    return root


def whole(function: F) -> F:
    """Compile a run from its first step to its last: other threads go on meanwhile (one says what is being done)."""
    return choice(function, nogil=True)


def inner(function: F) -> F:
    """Compile a function that only compiled code calls, as part of it where that is (numba lets it inherit that)."""
    return _part(function, _BARE)


def apart(function: F) -> F:
    """The same, never part of its caller unless LLVM thinks so: for what runs with core.rules alone call. It costs
    little speed and halves what there is to compile, for numba compiles what a function holds again with each caller.
    """
    return _part(function, {**_BARE, "forceinline": False})


def inlined(function: F) -> F:
    """The same for the few on the path of every request: always part of their caller."""
    return _part(function, {**_BARE, "forceinline": True})


def wrapping(function: F) -> F:
    """A choice whose integers wrap around: numpy, which runs it when the JIT is off, must not warn of that."""
    return choice(function) if compiles() else np.errstate(over="ignore")(function)


def frozen(array: Any) -> Any:
    """Read-only and contiguous, whatever it came as: one type for numba, one compiled version."""
    out = np.ascontiguousarray(array).view()
    out.flags.writeable = False
    return out
