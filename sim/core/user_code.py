"""A user's policy: compiled alone, with numba's runtime and bounds checks, and called by its address."""

import inspect
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from numba.core import cgutils, types
from numba.core.registry import cpu_target
from numba.extending import intrinsic

from sim.core import compiler  # noqa: F401  # which says where numba keeps what it compiles
from sim.core.hooks import Hook
from sim.core.jit import compiles
from sim.core.view import Float, Int, View
from traces.errors import UserError


def _types() -> tuple[Any, Any]:
    """numba's types of a view and of the other two arguments."""
    ints, floats = np.zeros(1, np.int64), np.zeros(1, np.float64)
    kinds: Any = {Int: ints, Float: floats, int: 1, float: 1.0}
    typeof: Any = numba.typeof
    return typeof(View(*(kinds[kind] for kind in View.__annotations__.values()))), typeof(floats)


VIEW, FLOATS = _types()
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


@intrinsic
def call_address(context: Any, address: Any, view: Any, state: Any, params: Any) -> Any:
    """Call compiled code by its address, as numba calls its own functions: what it raises goes on here."""
    if (view, state, params) != (VIEW, FLOATS, FLOATS):
        raise numba.TypingError(f"a view of another type: {view}, {state}, {params}")

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kinds = signature.args[1:]
        kind = context.call_conv.get_function_type(signature.return_type, kinds)
        function = builder.inttoptr(args[0], kind.as_pointer())
        status, answer = context.call_conv.call_function(builder, function, signature.return_type, kinds, args[1:])
        with cgutils.if_unlikely(builder, status.is_error):  # type: ignore[no-untyped-call]
            context.call_conv.return_status_propagate(builder, status)
        return answer

    return types.int64(types.int64, VIEW, FLOATS, FLOATS), code


def type_of_call() -> Any:
    """numba's type of `call_address`, as a global of compiled code."""
    context: Any = cpu_target.typing_context
    context.refresh()  # it has not heard of what was made since it was asked last
    return context.resolve_value_type(call_address)
