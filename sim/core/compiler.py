"""numba, as the core uses it: what only compiled code calls is compiled once, with whoever calls it from Python.

numba's own way optimises a function and makes machine code of it by itself and again with each caller, caller after
caller: two thirds of the time that it took. Here a *part* stops at LLVM's text, and a *root* (what Python calls) links
all of its parts once. What numba offers for that is a library class of one's own, given to it by a compiler pipeline;
numba.core is not an interface that it promises to keep, so tests/test_compiler.py holds what is used of it.
"""

# mypy: disable-error-code="import-untyped, no-untyped-call, untyped-decorator, no-untyped-def"

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import llvmlite.binding as llvm
import numba
from numba.core import types
from numba.core.base import BaseContext
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import Compiler
from numba.core.registry import CPUDispatcher
from numba.np import arrayobj
from numba.np.numpy_support import from_dtype

from sim.core import jit
from sim.core.memory_type import memory_type

_config: Any = numba.config  # its settings are made when it is imported, where mypy does not see them
_config.CACHE_DIR = str(jit.CACHE_DIR)
_contexts: Any = BaseContext

# Without numba's runtime nothing allocates and nothing counts references: 50 times faster here. See ARCHITECTURE.md.
_OPTIONS: dict[str, Any] = {"error_model": "numpy", "_nrt": False}
# What only compiled code calls needs no wrapper for Python, whose compile time is left out.
BARE: dict[str, Any] = {**_OPTIONS, "no_cpython_wrapper": True, "no_cfunc_wrapper": True}


class _PartLibrary(JITCodeLibrary):
    """A part: each function's own cheap passes, and no more."""

    def finalize(self) -> None:
        self._finalized = True

    def get_pointer_to_function(self, name: str) -> int:
        """There is none."""
        return 0

    @property
    def codegen(self) -> Any:
        """Who is asked to set the environment of the function below."""
        return self

    def set_env(self, name: str, env: Any) -> None:
        """It has none: without machine code there is nowhere to keep it, and nothing here looks it up."""

    def _optimize_functions(self, ll_module: Any) -> None:
        """numba's own, which does not spare what is only declared: two of three."""
        ll_module.data_layout = self._codegen._data_layout
        for function in ll_module.functions:
            if not function.is_declaration:
                passes, builder = self._codegen._function_pass_manager()
                passes.run(function, builder)


class _RootLibrary(JITCodeLibrary):
    """What Python calls, and all of its parts."""

    def finalize(self) -> None:
        self._linking_libraries = _callers_first(self, set())
        super().finalize()

    def _optimize_final_module(self) -> None:
        """Neither unrolling nor vectors: loops here run over a few experts, and half of the time went there."""
        tuning = llvm.create_pipeline_tuning_options(speed_level=2)
        tuning.loop_unrolling = tuning.loop_vectorization = tuning.slp_vectorization = False
        builder = llvm.create_pass_builder(self._codegen._tm, tuning)
        builder.getModulePassManager().run(self._final_module, builder)


def _callers_first(library: Any, seen: set[Any]) -> list[Any]:
    """All that it needs, each before whom it calls: LLVM leaves out what nothing before it refers to."""
    below: list[Any] = []
    for each in library._linking_libraries:
        if each not in seen:
            seen.add(each)
            below = [each, *(_callers_first(each, seen) if isinstance(each, _PartLibrary) else ()), *below]
    return below


@contextmanager
def _as_ours() -> Iterator[None]:
    """numba as the core needs it, for as long as it compiles something of the core, under a lock of its own.

    No index in the core counts from the end (tests/test_indices.py): without asking each of them whether it does, the
    loop takes a tenth less time. How large a type is LLVM is asked once, and not for every variable. And Python's
    collector would walk over all that numba has made again and again: a tenth of the time; what it would have found
    stays until then, a hundred MB or two.
    """
    collects, index, size = gc.isenabled(), arrayobj.fix_integer_index, _contexts.get_abi_sizeof
    gc.disable()
    arrayobj.fix_integer_index, _contexts.get_abi_sizeof = _as_it_is, _size
    try:
        yield
    finally:
        arrayobj.fix_integer_index, _contexts.get_abi_sizeof = index, size
        if collects:
            gc.enable()


def _as_it_is(context: Any, builder: Any, kind: Any, index: Any, size: Any) -> Any:
    return context.cast(builder, index, kind, types.intp)


_sizes: dict[Any, int] = {}


def _size(context: Any, kind: Any) -> int:
    if kind not in _sizes:
        _sizes[kind] = kind.get_abi_size(context.target_data)
    return _sizes[kind]


# Passes of numba's that cost time and change nothing here: the core has no function within a function.
NEEDLESS = ("inline_closure_likes", "inline_overloads")


class _Into(Compiler):
    """numba's own pipeline, into a library of ours."""

    library: Any

    def _compile_core(self) -> Any:
        with _as_ours():
            return super()._compile_core()

    def define_pipelines(self) -> Any:
        state = self.state
        state.library = self.library(state.targetctx.codegen(), state.func_id.func_qualname)
        state.library.enable_object_caching()
        (passes,) = super().define_pipelines()
        passes.passes = [each for each in passes.passes if each[0].name() not in NEEDLESS]
        return [passes]


class _PartCompiler(_Into):
    library = _PartLibrary


class _RootCompiler(_Into):
    library = _RootLibrary


class _Once(CPUDispatcher):
    """Compiled once whatever integers it is called with (numba's own: once for each kind, and each number spelled out):
    a call widens them, which costs nothing where it becomes part of its caller."""

    def get_call_template(self, args, kws):
        """As numba has it, of wider types."""
        return super().get_call_template(tuple(map(_wide, args)), {name: _wide(kind) for name, kind in kws.items()})


def _wide(kind: Any) -> Any:
    kind = types.unliteral(kind)
    return types.int64 if isinstance(kind, types.Integer) and kind != types.uint64 else kind


def part(function: Callable[..., Any], options: dict[str, bool]) -> Any:
    """numba's dispatcher of a function that compiled code calls."""
    njit: Any = numba.njit
    made = njit(pipeline_class=_PartCompiler, **BARE, **options)(function)
    made.__class__ = _Once
    return made


def root(function: Callable[..., Any], **options: Any) -> Any:
    """numba's dispatcher of a function that Python calls; what it compiles numba keeps."""
    return numba.njit(pipeline_class=_RootCompiler, cache=True, **_OPTIONS, **options)(function)


def bare(function: Callable[..., Any]) -> Any:
    """The same, to be called by its address."""
    return numba.njit(pipeline_class=_RootCompiler, **BARE)(function)


def types_of(kinds: tuple[Any, ...]) -> tuple[Any, ...]:
    """numba's types of what core.kept.Whole is called with."""
    return tuple(map(_type_of, kinds))


def _type_of(kind: Any) -> Any:
    if kind is None or kind is int:
        return types.none if kind is None else types.int64
    if isinstance(kind[0], str):
        return memory_type(*kind)
    return types.Array(from_dtype(kind[0]), kind[1], "C")
