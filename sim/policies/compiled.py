"""A user's function or class as the core takes it: one compiled function of (view, state, params).

A class is `__call__(self, view, state)`, whose `self` is a tuple of the numbers that its instance holds: its
constructor runs as Python once a run, with the run's parameters, and what it leaves behind is the params array.
"""

import dis
import inspect
import keyword
import re
import tempfile
from collections import namedtuple
from collections.abc import Callable, Container, Mapping
from functools import partial
from pathlib import Path
from types import FunctionType
from typing import Any

import numba
import numpy as np

import sim.compiling  # noqa: F401  # says it while numba compiles
from sim.core.hooks import Hook
from sim.core.user_code import compile_hook
from sim.errors import SpecError
from traces.errors import UserError

_PLAIN = re.compile(r"Untyped global name '(\w+)':?\s+Cannot determine Numba type of <class 'function'>")
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
NUMBERS = (int, float, np.integer, np.floating, np.bool_)  # bool is an int


def compiled(function: Callable[..., Any], size: int, kept: bool) -> Hook:
    """As the core calls it (sim.core.user_code.compile_hook); kept: numba may keep it on disk, beside its file. Raises
    SpecError, one line without its name: what numba says, less its colours, which it has where colorama is there."""
    try:
        return compile_hook(function, size) if kept else _afresh(function, size)
    except UserError as error:
        said = _COLOUR.sub("", str(error)).replace(":)", ")")
        plain = _PLAIN.search(_COLOUR.sub("", str(error.__context__)))  # numba buries what a class's __call__ calls
        if plain is not None:
            name = plain[1]
            said = f"cannot be compiled: {name} is plain Python; decorate it with @numba.njit where it is defined"
        raise SpecError(said) from None


def _refuse_self(made: type, call: FunctionType, names: Container[str]) -> None:
    """Raises SpecError where `__call__` wants more of `self` than the numbers that it has there."""
    has = "self is a tuple of numbers there"
    before = None
    for each in dis.get_instructions(call):
        if each.opname == "STORE_ATTR":
            raise SpecError(f"__call__: self.{each.argval} = ...: {has}; what changes goes into `state`")
        of_self = before is not None and before.argval == call.__code__.co_varnames[0]
        if of_self and each.opname in ("LOAD_ATTR", "LOAD_METHOD") and each.argval not in names:
            right = "a function with @numba.njit can be called" if callable(getattr(made, each.argval, None)) else ""
            raise SpecError(f"__call__: self.{each.argval}: {has}, those that __init__ leaves; {right}".rstrip("; "))
        before = each


def _afresh(function: Callable[..., Any], size: int) -> Hook:
    """With nothing kept on disk: numba tells functions apart by file and line there, and a function typed in has no
    file, and another body each time. For as long as it takes it is given one."""
    config: Any = numba.config
    before = config.CACHE_DIR
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "policy.py"
        place.write_text("# in memory\n")
        config.CACHE_DIR = folder
        try:
            return compile_hook(_in_file(function, str(place)), size)
        finally:
            config.CACHE_DIR = before


def _in_file(function: Any, path: str) -> FunctionType:
    parts = function.__globals__, function.__name__, function.__defaults__, function.__closure__
    return FunctionType(function.__code__.replace(co_filename=path), *parts)


def constructor(made: type) -> dict[str, Any]:
    """A class's parameters and their defaults (inspect's `empty`: none): what its constructor takes. Raises SpecError
    for one without a name."""
    try:
        parameters = inspect.signature(made).parameters.values()
    except (TypeError, ValueError) as error:  # of a class that is not Python's
        raise SpecError(f"__init__: {error}") from None
    for each in parameters:
        if each.kind in (each.POSITIONAL_ONLY, each.VAR_POSITIONAL, each.VAR_KEYWORD):
            raise SpecError(f"__init__: {each}: a parameter needs a name and a default")
    return {each.name: each.default for each in parameters}


def arguments(made: type) -> dict[str, Any]:
    """The same; raises SpecError for a parameter without a default, too."""
    out = constructor(made)
    for name in out:
        if without_default(made, name):
            right = "a parameter needs a name and a default, or an instance must be given"
            raise SpecError(f"__init__: {name}: {right}")
    return out


def without_default(made: type, name: str) -> bool:
    """Whether a constructor's argument has none."""
    return constructor(made)[name] is inspect.Parameter.empty


def with_defaults(made: Any, values: Mapping[str, Any]) -> Any:
    """The class with defaults for arguments that have none; without values it itself."""
    if not values:
        return made
    shown = inspect.signature(made)
    parameters = [each.replace(default=values.get(each.name, each.default)) for each in shown.parameters.values()]
    own = {
        "__module__": made.__module__,
        "__doc__": made.__doc__,
        "__signature__": shown.replace(parameters=parameters),
    }
    return type(made.__name__, (made,), own)


def built(made: type, given: Mapping[str, Any]) -> Any:
    """An instance. Raises SpecError, one line, for whatever its constructor raises."""
    try:
        return made(**{**arguments(made), **given})
    except UserError:
        raise
    except Exception as error:
        raise SpecError(f"__init__ raised {type(error).__name__}: {error}") from None


def of_class(made: type) -> tuple[FunctionType, Callable[[Mapping[str, Any]], list[float]]]:
    """(function of view, state and params; the params of an instance from its parameters). Raises SpecError."""
    call: Any = vars(made).get("__call__") or getattr(made, "__call__", None)  # noqa: B004  # the function, to compile it
    taken = list(inspect.signature(call).parameters) if inspect.isfunction(call) else []
    if len(taken) != 3:
        raise SpecError("has no __call__(self, view, state), which answers")
    names = list(_held(built(made, {})))
    _refuse_self(made, call, names)
    code: Any = numba.njit(boundscheck=True, error_model="numpy")(call)
    self = namedtuple("Self", names)  # type: ignore[misc]  # the names are the instance's
    scope: dict[str, Any] = {"call": code, "Self": self}
    values = ", ".join(f"params[{i}]" for i in range(len(names)))
    exec(f"def {made.__name__}(view, state, params):\n    return call(Self({values}), view, state)\n", scope)
    return scope[made.__name__], partial(_numbers, made, names)


def _numbers(made: type, names: list[str], given: Mapping[str, Any]) -> list[float]:
    held = _held(built(made, given))
    if list(held) != names:
        raise SpecError(
            f"{made.__name__}: holds {', '.join(held)} with these parameters, by default {', '.join(names)}"
        )
    return list(held.values())


def _held(instance: Any) -> dict[str, float]:
    """The numbers of an instance, by name. Raises SpecError for one that holds anything else."""
    out = {}
    for name, value in vars(instance).items():
        if not isinstance(value, NUMBERS):
            raise SpecError(f"self.{name} is {type(value).__name__}; must be a number (what changes goes into `state`)")
        if name.startswith("_") or keyword.iskeyword(name):
            raise SpecError(f"self.{name}: must not begin with _")
        out[name] = float(value)
    return out
