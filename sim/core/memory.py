"""Arrays and numbers that belong together, behind one address: what compiled code is handed in place of each of them.

A `Memory` is a few named numpy arrays. One of a structured dtype is read by its fields, everywhere with the same words:
`s.expert[g].state`, and without dimensions, one record, `s.count.evictions`. In compiled code they are plain loads and
stores: it is passed the address of a table of where each array lies and how long it is. In plain Python structured
arrays are seen through ctypes and lists of ids through memoryview, because numpy takes many times as long for one
number.
"""

# mypy: disable-error-code="import-untyped, no-untyped-call, untyped-decorator, override"

import math
from ctypes import addressof, c_char
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba.core import cgutils, types
from numba.core.typing.templates import AttributeTemplate
from numba.extending import NativeValue, infer_getattr, lower_getattr_generic, models, register_model, unbox

Int = npt.NDArray[np.int64]
MOST_DIMENSIONS = 3


def zeros(*shape: int, dtype: Any = np.int64) -> Any:
    """Zeros that begin at a cache line: where the state lies would else change the speed from run to run."""
    memory = np.zeros(math.prod(shape) * np.dtype(dtype).itemsize + 64, np.uint8)
    return np.ndarray(shape, dtype, memory, -memory.ctypes.data % 64)


def together(**kinds: tuple[Any, ...]) -> tuple[dict[str, npt.NDArray[Any]], Int]:
    """Zeros of each (dtype, *shape) in one piece of memory, each from a cache line on, and that memory as int64.
    Between two lies a line of nothing: arrays a page apart are taken for each other by a processor that looks at
    addresses within pages (seven in a hundred of the speed where lists of ids are a page long)."""
    dtypes = {name: np.dtype(kind) for name, (kind, *_) in kinds.items()}
    line, begin = 0, {}
    for name, (_, *shape) in kinds.items():
        begin[name] = line
        line += 1 - (-math.prod(shape) * dtypes[name].itemsize // 64)
    words = zeros(8 * line)
    return {
        name: np.ndarray(shape, dtypes[name], words, 64 * begin[name]) for name, (_, *shape) in kinds.items()
    }, words


def _address(array: npt.NDArray[Any]) -> int:
    """`array.ctypes.data`, by a way that takes a quarter of the time where there is one."""
    plain = array.size and array.dtype.names is None
    return addressof(c_char.from_buffer(array.data)) if plain else array.ctypes.data


class Struct:
    """One record: a subclass names its fields, int64 where it says int, float64 where it says float, n int64 where it
    says `Annotated[Int, n]`, and int32 where it says `Annotated[int, np.int32]`; the narrow ones lie behind the others,
    so that nothing lies between. It stands for its structured dtype wherever numpy takes one."""

    dtype: ClassVar[np.dtype[Any]]

    def __init_subclass__(cls) -> None:
        fields = [(name, *_field(kind)) for name, kind in cls.__annotations__.items()]
        cls.dtype = np.dtype(sorted(fields, key=lambda field: -np.dtype(field[1]).itemsize), align=True)

    @classmethod
    def fields(cls) -> tuple[str, ...]:
        """Their names, in order."""
        return tuple(cls.__annotations__)


def _field(kind: Any) -> tuple[Any, ...]:
    if isinstance(kind, type):
        return (kind,)
    (said,) = kind.__metadata__
    return (said,) if isinstance(said, type) else (np.int64, said)


class Memory:
    """Contiguous arrays by name, of at most MOST_DIMENSIONS: `arrays` has them as numpy's, attributes as said above."""

    def __init__(self, **arrays: npt.NDArray[Any]) -> None:
        self.arrays = arrays
        self._table = np.array([(_address(a), *a.shape, *(0,) * (MOST_DIMENSIONS - a.ndim)) for a in arrays.values()])
        self.address = self._table.ctypes.data

    if not TYPE_CHECKING:  # a subclass says what there is

        def __getattr__(self, name: str) -> Any:
            if name == "arrays" or name not in self.arrays:
                raise AttributeError(name)
            made = self.__dict__[name] = _in_python(self.arrays[name])
            return made

    @cached_property
    def _numba_type_(self) -> "MemoryType":
        return _memory_type(type(self).__name__, *((name, a.dtype, a.ndim) for name, a in self.arrays.items()))

    def replaced(self, **arrays: npt.NDArray[Any]) -> Any:
        """The same with other arrays in the place of some; the rest is shared."""
        return type(self)(**self.arrays | arrays)


# --- in plain Python ------------------------------------------------------------------------------------------------


_record_of = cache(np.ctypeslib.as_ctypes_type)  # it makes a new class at every call


def _in_python(array: npt.NDArray[Any]) -> Any:
    if array.dtype.names is None:
        return array.data if array.dtype.kind == "u" else array
    kind = _record_of(array.dtype)
    return kind.from_buffer(array.data) if array.ndim == 0 else (kind * len(array)).from_buffer(array.data)


# --- in compiled code -----------------------------------------------------------------------------------------------


class MemoryType(types.Type):
    """numba's type of a subclass of Memory; members: (name, type) in the order of its table."""

    def __init__(self, name: str, members: tuple[tuple[str, Any], ...]) -> None:
        self.members = members
        super().__init__(name)

    @property
    def key(self) -> Any:
        """What makes two of them the same."""
        return self.name, self.members


@cache
def _memory_type(name: str, *arrays: tuple[str, np.dtype[Any], int]) -> MemoryType:
    from numba.np.numpy_support import from_dtype  # late, as below

    def kind(dtype: np.dtype[Any], ndim: int) -> Any:
        item = from_dtype(dtype)
        return types.Array(item, ndim, "C") if ndim else item

    return MemoryType(name, tuple((each, kind(dtype, ndim)) for each, dtype, ndim in arrays))


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
        return dict(memory.members).get(name)


@lower_getattr_generic(MemoryType)
def _member(context: Any, builder: Any, memory: Any, table: Any, name: str) -> Any:
    """A record: where it lies. An array: as numba knows arrays, made of where it lies and how long it is."""
    from numba.np.arrayobj import populate_array  # late: a twentieth of a second that --help does not need

    row = [each for each, _ in memory.members].index(name) * (1 + MOST_DIMENSIONS)
    kind = memory.members[row // (1 + MOST_DIMENSIONS)][1]

    def load(column: int) -> Any:
        loaded = builder.load(builder.gep(table, [ir.IntType(64)(row + column)]))
        loaded.set_metadata("invariant.load", builder.module.add_metadata([]))  # a table never changes
        return loaded

    place = builder.inttoptr(load(0), cgutils.voidptr_t)
    if isinstance(kind, types.Record):
        return builder.bitcast(place, context.get_value_type(kind))
    item = ir.IntType(64)(context.get_abi_sizeof(context.get_data_type(kind.dtype)))
    shape, strides = [load(1 + i) for i in range(kind.ndim)], [item]
    for length in reversed(shape[1:]):
        strides.insert(0, builder.mul(strides[0], length))
    array = context.make_array(kind)(context, builder)
    populate_array(array, builder.bitcast(place, array.data.type), shape, strides, item, None)
    return array._getvalue()
