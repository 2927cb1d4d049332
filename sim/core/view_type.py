"""What numba makes of sim.core.view: its type, and the call of a function that takes one, by its address."""

from typing import Any

import numba
import numpy as np
from numba.core import cgutils, types
from numba.core.registry import cpu_target
from numba.extending import intrinsic

from sim.core.view import Float, Int, View


def _types() -> tuple[Any, Any]:
    """numba's types of a view and of the other two arguments."""
    ints, floats = np.zeros(1, np.int64), np.zeros(1, np.float64)
    kinds: Any = {Int: ints, Float: floats, int: 1, float: 1.0}
    typeof: Any = numba.typeof
    return typeof(View(*(kinds[kind] for kind in View.__annotations__.values()))), typeof(floats)


VIEW, FLOATS = _types()


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
