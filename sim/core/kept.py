"""The machine code of whole runs, kept by ourselves: a warm run needs numba for nothing.

numba compiles (sim.core.compiler); its object code is written to jit.CACHE_DIR and loaded from there by llvmlite alone,
in milliseconds where importing numba takes half a second. A file is used only if all of this holds, else it is as if
there were none and is written anew: its name is the hash of all that the code depends on (the sources of the core by
its folder, the function's own file, types, versions, processor, numba's settings); it is ours, and nobody else may
write it; its bytes hash to what it says; and every function that it needs from outside is there. Where that cannot be
had (anything but Linux on x86-64) it is called as numba calls it, and numba keeps it.
"""

import ctypes
import functools
import hashlib
import inspect
import json
import os
import platform
import stat
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from sim.core import jit
from sim.core.memory import Memory
from traces.command import write_bytes

POSSIBLE = sys.platform == "linux" and platform.machine() == "x86_64"
DONE = (0, -2)  # what compiled code returns (numba.core.callconv): done, None
ONE = threading.RLock()  # one thread at a time loads or compiles: all of them take the code of the first
LIBRARY = {"memset": "memset", "memcpy": "memcpy", "memmove": "memmove"}  # what LLVM's intrinsics may call


class Whole:
    """A function that takes a Memory, an array, an integer or None in each place, and returns nothing."""

    def __init__(self, function: Callable[..., None]) -> None:
        functools.update_wrapper(self, function)
        self.py_func = function
        self._code: dict[Any, Callable[..., None]] = {}

    def __call__(self, *args: Any) -> None:
        """Raises what the function raises."""
        if not POSSIBLE:
            self._by_numba(*args)
            return
        kinds = tuple(map(_kind, args))
        code = self._code.get(kinds) or self._first(kinds)
        code(*args)

    def _first(self, kinds: tuple[Any, ...]) -> Callable[..., None]:
        with ONE:
            if kinds not in self._code:
                self._code[kinds] = self._kept(kinds) or self._compiled(kinds)
        return self._code[kinds]

    @functools.cached_property
    def _by_numba(self) -> Any:
        return jit.compiler().root(self.py_func, nogil=True)

    def _file(self, kinds: tuple[Any, ...]) -> Path:
        own = Path(inspect.getfile(self.py_func)).read_bytes()
        words = (self.py_func.__module__, self.py_func.__qualname__, *map(str, kinds), *_circumstances())
        name = hashlib.sha256("\n".join(words).encode() + own).hexdigest()
        return jit.CACHE_DIR / f"{self.py_func.__name__.strip('_')}-{name[:32]}.o"

    def _kept(self, kinds: tuple[Any, ...]) -> Callable[..., None] | None:
        """None: there is none that may be used."""
        with suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
            needs, name, code = _read(self._file(kinds))
            if all(_llvm()[0].address_of_symbol(each) for each in needs):
                return _callable(_load(code, name), kinds, code)
        return None

    def _compiled(self, kinds: tuple[Any, ...]) -> Callable[..., None]:
        dispatcher = jit.compiler().bare(self.py_func)
        types = jit.compiler().types_of(kinds)
        dispatcher.compile(types)
        found = dispatcher.overloads[types]
        library, name = found.library, found.fndesc.llvm_func_name
        needs = _needs(library._final_module)
        try:
            code = library._get_compiled_object()
        except RuntimeError:  # Ctrl-C within LLVM's call of Python is lost there, and the object with it
            raise KeyboardInterrupt from None
        with suppress(OSError):
            _write(self._file(kinds), needs, name, code)
        return _callable(library.get_pointer_to_function(name), kinds, library)


def _kind(arg: Any) -> Any:
    if isinstance(arg, Memory):
        return arg.kind
    if isinstance(arg, np.ndarray):
        if not arg.flags.c_contiguous:
            raise TypeError("an array that is not contiguous")
        return arg.dtype, arg.ndim
    return None if arg is None else int


@functools.cache
def _llvm() -> tuple[Any, Any]:
    """llvmlite, and what loads object code; with it the functions of this process are known. Of one thread: an engine
    that another one's took the place of would go, and the code that it loaded."""
    llvm: Any = import_module("llvmlite.binding")
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    machine = llvm.Target.from_default_triple().create_target_machine()
    return llvm, llvm.create_mcjit_compiler(llvm.parse_assembly(""), machine)


@functools.cache
def _circumstances() -> tuple[str, ...]:
    """All that machine code depends on beside its sources."""
    llvm, _ = _llvm()
    settings = {name: x for name, x in jit.settings().items() if name != "NUMBA_CACHE_DIR"}
    processor = llvm.get_host_cpu_name(), llvm.get_host_cpu_features().flatten()
    return version("numba"), version("llvmlite"), llvm.get_process_triple(), *processor, json.dumps(settings)


def _needs(module: Any) -> list[str]:
    """What its object code may call from outside."""
    names = {each.name for each in module.functions if each.is_declaration}
    inside = {name for name in names if name.startswith("llvm.")}
    return sorted(names - inside | {LIBRARY.get(part, part) for part in (n.split(".")[1] for n in inside)} & CALLED)


ELF = b"\x7fELF"  # how object code begins
CALLED = {*LIBRARY, "pow", "exp", "exp2", "log", "log2", "log10", "sin", "cos", "fma", "floor", "ceil", "rint", "round"}


def _write(file: Path, needs: list[str], name: str, code: bytes) -> None:
    head = json.dumps({"sha256": hashlib.sha256(code).hexdigest(), "needs": needs, "name": name}).encode()
    file.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(file, head + b"\n" + code)
    file.chmod(0o600)


def _read(file: Path) -> tuple[list[str], str, bytes]:
    """Raises OSError, ValueError, KeyError, TypeError or RecursionError where it is not what was written."""
    with open(os.open(file, os.O_RDONLY | os.O_NONBLOCK), "rb") as opened:  # of a pipe nobody waits for the other end
        about = os.fstat(opened.fileno())
        ours = about.st_uid == os.geteuid() and not about.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
        if not ours or not stat.S_ISREG(about.st_mode):
            raise ValueError("not a file of ours alone")
        head, _, code = opened.read().partition(b"\n")
    said = json.loads(head)
    if hashlib.sha256(code).hexdigest() != said["sha256"] or not code.startswith(ELF):
        raise ValueError("damaged")
    return [str(each) for each in said["needs"]], str(said["name"]), code


def _load(code: bytes, name: str) -> int:
    """The address of a function of that object code, for as long as the process lives."""
    llvm, engine = _llvm()
    engine.add_object_file(llvm.ObjectFileRef.from_data(code))
    engine.finalize_object()
    return int(engine.get_function_address(name))


def _callable(address: int, kinds: tuple[Any, ...], alive: Any) -> Callable[..., None]:
    """Compiled code by its address, in numba's calling convention; ctypes lets other threads go on meanwhile."""
    if address == 0:
        raise ValueError("no such function")
    takes = [each for kind in kinds for each in _c_types(kind)]
    code = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_void_p, ctypes.c_void_p, *takes)(address)

    def call(*args: Any, alive: Any = alive) -> None:
        result, raised = ctypes.c_int64(), ctypes.c_void_p()
        given = [value for arg in args for value in _c_values(arg)]
        if code(ctypes.addressof(result), ctypes.addressof(raised), *given) not in DONE:
            _raise(raised.value)

    return call


def _c_types(kind: Any) -> tuple[Any, ...]:
    if kind is int:
        return (ctypes.c_int64,)
    if kind is None or isinstance(kind[0], str):
        return (ctypes.c_void_p,)
    whole = (ctypes.c_int64,) * (2 + 2 * kind[1])
    return ctypes.c_void_p, ctypes.c_void_p, *whole[:2], ctypes.c_void_p, *whole[2:]


def _c_values(arg: Any) -> tuple[Any, ...]:
    """As numba passes it: of an array (numba.core.datamodel) owners, length, size of an item, place, shape, strides."""
    if isinstance(arg, Memory):
        return (arg.address,)
    if isinstance(arg, np.ndarray):
        return None, None, arg.size, arg.itemsize, arg.ctypes.data, *arg.shape, *arg.strides
    return (arg if arg is None else int(arg),)


class _Raised(ctypes.Structure):  # numba.core.callconv.excinfo_t
    _fields_ = (
        ("pickled", ctypes.c_void_p),
        ("size", ctypes.c_int32),
        ("values", ctypes.c_void_p),
        ("unwrap", ctypes.c_void_p),
        ("dynamic", ctypes.c_int32),
    )


def _raise(address: int | None) -> NoReturn:
    """What compiled code raised, a user's own included."""
    numbas: Any = import_module("numba.core.serialize")
    told = _Raised.from_address(address or 0)
    pickled = ctypes.string_at(told.pickled, told.size)
    if told.dynamic:
        values = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p)(told.unwrap)(told.values)
        kind, args, _ = numbas.runtime_build_excinfo_struct(pickled, values)
    else:
        kind, args, _ = numbas.cloudpickle.loads(pickled)
    raise kind(*(args or ()))
