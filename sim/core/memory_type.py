"""What numba makes of core.memory: where it lies, and plain loads and stores of what lies there."""

# mypy: disable-error-code="import-untyped, no-untyped-call, untyped-decorator, override"

from functools import cache
from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.core.typing.templates import AttributeTemplate
from numba.extending import NativeValue, infer_getattr, lower_getattr_generic, models, register_model, unbox
from numba.np.arrayobj import populate_array
from numba.np.numpy_support import from_dtype

from sim.core.memory import ROW


class MemoryType(types.Type):
    """numba's type of a subclass of Memory; members: (name, type, how far behind the table) in the order of its
    table."""

    def __init__(self, name: str, members: tuple[tuple[str, Any, int | None], ...]) -> None:
        self.members = members
        super().__init__(name)

    @property
    def key(self) -> Any:
        """What makes two of them the same."""
        return self.name, self.members

    @property
    def literal_type(self) -> Any:
        """What numba compares with None where it prunes branches (numba.core.analysis): a memory is never None, so
        what a version does without is not even looked at."""
        return self


@cache
def memory_type(name: str, *arrays: tuple[str, np.dtype[Any], int, int | None]) -> MemoryType:
    """Of a Memory of that kind."""

    def kind(dtype: np.dtype[Any], ndim: int) -> Any:
        item = from_dtype(dtype)
        return types.Array(item, ndim, "C") if ndim else item

    return MemoryType(name, tuple((each, kind(dtype, ndim), far) for each, dtype, ndim, far in arrays))


@register_model(MemoryType)
class _Model(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: Any) -> None:
        super().__init__(manager, kind, ir.IntType(64).as_pointer())


@unbox(MemoryType)
def _unbox(kind: Any, memory: Any, c: Any) -> Any:
    address = c.pyapi.object_getattr_string(memory, "address")
    value = c.pyapi.long_as_ulonglong(address)
    c.pyapi.decref(address)
    return NativeValue(c.builder.inttoptr(value, c.context.get_value_type(kind)))


@infer_getattr
class _Members(AttributeTemplate):
    key = MemoryType

    def generic_resolve(self, memory: Any, name: str) -> Any:
        return next((kind for each, kind, _ in memory.members if each == name), None)


@lower_getattr_generic(MemoryType)
def _member(context: Any, builder: Any, memory: Any, table: Any, name: str) -> Any:
    """A record: where it lies. An array: as numba knows arrays, made of where it lies and how long it is."""
    place = [each for each, _, _ in memory.members].index(name)
    _, kind, far = memory.members[place]
    if far is not None:
        behind = builder.gep(builder.bitcast(table, cgutils.voidptr_t), [ir.IntType(64)(far)])
        return builder.bitcast(behind, context.get_value_type(kind))

    def load(column: int) -> Any:
        loaded = builder.load(builder.gep(table, [ir.IntType(64)(place * ROW + column)]))
        loaded.set_metadata("invariant.load", builder.module.add_metadata([]))  # a table never changes
        return loaded

    begin = builder.inttoptr(load(0), cgutils.voidptr_t)
    if isinstance(kind, types.Record):
        return builder.bitcast(begin, context.get_value_type(kind))
    item = ir.IntType(64)(context.get_abi_sizeof(context.get_data_type(kind.dtype)))
    shape, strides = [load(1 + i) for i in range(kind.ndim)], [item]
    for length in reversed(shape[1:]):
        strides.insert(0, builder.mul(strides[0], length))
    array = context.make_array(kind)(context, builder)
    populate_array(array, builder.bitcast(begin, array.data.type), shape, strides, item, None)
    return array._getvalue()
