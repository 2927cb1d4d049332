"""A user's policy: compiled alone, with numba's runtime and bounds checks, and called by its address."""

import inspect
from collections.abc import Callable
from typing import Any

import numba
from numba.core import types

from sim.core import compiler  # noqa: F401  # which says where numba keeps what it compiles
from sim.core.hooks import Hook
from sim.core.jit import compiles
from sim.core.view_type import FLOATS, VIEW
from traces.errors import UserError

NAMES = ("view", "state", "params")


def compile_hook(function: Callable[..., Any], size: int) -> Hook:
    """Compile a user's function alone. Raises UserError, one line without its name, if it cannot be."""
    if len(inspect.signature(function).parameters) != len(NAMES):
        raise UserError(f"takes {inspect.signature(function)}; must take (view, state, params)")
    if not compiles():
        return Hook(function, size, 0, None)
    dispatcher = numba.njit(cache=True, boundscheck=True, error_model="numpy")(function)
    try:
        dispatcher.compile((VIEW, FLOATS, FLOATS))  # without a return type: numba would convert to the one it is given
        found: Any = dispatcher.overloads[(VIEW, FLOATS, FLOATS)]
    except Exception as error:  # numba raises more than its own classes
        raise UserError(f"cannot be compiled: {_essence(error)}") from None
    returned: Any = types.unliteral(found.signature.return_type)  # type: ignore[no-untyped-call]
    if returned != types.int64:
        raise UserError(f"returns {returned}; must return an int on every path")
    address = found.library.get_pointer_to_function(found.fndesc.llvm_func_name)
    return Hook(function, size, address, dispatcher)


def _essence(error: Exception) -> str:
    """What numba has to say, without its pipeline, its candidates and the spelling of the view's type."""
    text = str(error).replace(str(VIEW), "View")
    lines = [line.strip() for line in text.splitlines()]
    said = [line for line in lines if line and not line.startswith(("Failed in", "File ", "During:", "- "))]
    places = [line for line in lines if line.startswith("File ")]
    where = f" ({places[-1].rpartition(', ')[2].rstrip(':')})" if places else ""
    return (said[0] if said else type(error).__name__) + where
