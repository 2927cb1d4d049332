"""Arrays and numbers that belong together, behind one address: what compiled code is handed in place of each of them.

A `Memory` is a few named numpy arrays. One of a structured dtype is read by its fields, everywhere with the same words:
`s.expert[g].state`, and without dimensions, one record, `s.count.evictions`. In compiled code they are plain loads and
stores: it is passed the address of a table of where each array lies and how long it is. Records that lie behind the
table in one piece of memory are found without it, so many bytes on. In plain Python structured arrays are seen through
ctypes and lists of ids through memoryview, because numpy takes many times as long for one number.
"""

import math
from ctypes import addressof, c_char
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt

from sim.core.jit import compiler

Int = npt.NDArray[np.int64]
MOST_DIMENSIONS = 4
ROW = 1 + MOST_DIMENSIONS  # words of a table's row: where an array lies, and its shape


def zeros(*shape: int, dtype: Any = np.int64) -> Any:
    """Zeros that begin at a cache line: where the state lies would else change the speed from run to run."""
    memory = np.zeros(math.prod(shape) * np.dtype(dtype).itemsize + 64, np.uint8)
    return np.ndarray(shape, dtype, memory, -memory.ctypes.data % 64)


def together(table: int = 0, /, **kinds: tuple[Any, ...]) -> tuple[dict[str, npt.NDArray[Any]], Int]:
    """Zeros of each (dtype, *shape) in one piece of memory, each from a cache line on, and that memory as int64. In
    front, room for the table of a Memory of so many arrays. Between two lies a line of nothing: arrays a page apart are
    taken for each other by a processor that looks at addresses within pages (seven in a hundred of the speed where
    lists of ids are a page long)."""
    dtypes = {name: np.dtype(kind) for name, (kind, *_) in kinds.items()}
    line, begin = -(-table * ROW // 8), {}
    for name, (_, *shape) in kinds.items():
        begin[name] = line
        line += 1 - (-math.prod(shape) * dtypes[name].itemsize // 64)
    words = zeros(8 * line)
    return {
        name: np.ndarray(shape, dtypes[name], words, 64 * begin[name]) for name, (_, *shape) in kinds.items()
    }, words


def between(words: Int, first: npt.NDArray[Any], behind: npt.NDArray[Any]) -> Int:
    """Of memory the part from where one array begins to where another does."""
    begin, end = ((_address(each) - words.ctypes.data) // 8 for each in (first, behind))
    return words[begin:end]


def _address(array: npt.NDArray[Any]) -> int:
    """`array.ctypes.data`, by a way that takes a quarter of the time where there is one."""
    plain = array.size and array.dtype.names is None and array.flags.writeable
    return addressof(c_char.from_buffer(array.data)) if plain else array.ctypes.data


class Struct:
    """One record: a subclass names its fields, int64 where it says int, float64 where it says float, n int64 where it
    says `Annotated[Int, n]`, and int32 or narrower where it says `Annotated[int, np.int32]`. They lie in that order
    where it takes no more memory than the widest first. It stands for its structured dtype wherever numpy takes one."""

    dtype: ClassVar[np.dtype[Any]]

    def __init_subclass__(cls) -> None:
        fields = [(name, *_field(kind)) for name, kind in cls.__annotations__.items()]
        tight = np.dtype(sorted(fields, key=lambda field: -np.dtype(field[1]).itemsize), align=True)
        cls.dtype = min(np.dtype(fields, align=True), tight, key=lambda dtype: dtype.itemsize)

    @classmethod
    def fields(cls) -> tuple[str, ...]:
        """Their names, in order."""
        return tuple(cls.__annotations__)


def _field(kind: Any) -> tuple[Any, ...]:
    if isinstance(kind, type):
        return (kind,)
    (said,) = kind.__metadata__
    return (said,) if isinstance(said, type) else (np.int64, said)


def record(kind: type[Struct], /, **fields: Any) -> npt.NDArray[Any]:
    """One record with these values; the rest is 0."""
    return fill(zeros(dtype=kind), **fields)


def fill(record: npt.NDArray[Any], **fields: Any) -> npt.NDArray[Any]:
    """The same record, with these values."""
    for name, value in fields.items():
        record[name] = value
    return record


def packed(**kinds: tuple[Any, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
    """Each (dtype, array) contiguous and of its dtype, copied only where it is not yet: a Memory of one type, so one
    compiled version of what is given it."""
    return {name: np.ascontiguousarray(array, dtype) for name, (dtype, array) in kinds.items()}


class Memory:
    """Contiguous arrays by name, of at most MOST_DIMENSIONS: `arrays` has them as numpy's, attributes as said above.
    front: memory with room for their table before some of them (`together`)."""

    def __init__(self, front: Int | None = None, /, **arrays: npt.NDArray[Any]) -> None:
        self.arrays = arrays
        rows = np.array([(_address(a), *a.shape, *(0,) * (MOST_DIMENSIONS - a.ndim)) for a in arrays.values()])
        self._table = rows.reshape(-1) if front is None else front
        self._table[: rows.size] = rows.reshape(-1)
        self.address = self._table.ctypes.data

    if not TYPE_CHECKING:  # a subclass says what there is

        def __getattr__(self, name: str) -> Any:
            if name == "arrays" or name not in self.arrays:
                raise AttributeError(name)
            made = self.__dict__[name] = _in_python(self.arrays[name])
            return made

    @cached_property
    def kind(self) -> tuple[Any, ...]:
        """What compiled code must know of it beforehand: its class, and each array's name, dtype and dimensions, or of
        a record behind the table how far from its begin."""
        return type(self).__name__, *((name, a.dtype, a.ndim, self._behind(a)) for name, a in self.arrays.items())

    def _behind(self, array: npt.NDArray[Any]) -> int | None:
        if array.ndim:
            return None
        far = _address(array) - self.address
        return far if 0 < far < self._table.nbytes else None

    @cached_property
    def _numba_type_(self) -> Any:
        return compiler().memory_type(*self.kind)

    def replace(self, **arrays: npt.NDArray[Any]) -> None:
        """Other arrays in the place of some, of the same dtype and dimensions. Raises TypeError for another kind, and
        for a record: compiled code may know where it lies."""
        names = list(self.arrays)
        for name, a in arrays.items():
            if (a.dtype, a.ndim) != (self.arrays[name].dtype, self.arrays[name].ndim) or a.ndim == 0:
                raise TypeError(f"{name}: {a.dtype} of {a.ndim} dimensions cannot take this place")
            at = ROW * names.index(name)
            self._table[at : at + 1 + a.ndim] = _address(a), *a.shape
            self.arrays[name] = a
            self.__dict__.pop(name, None)


# --- in plain Python ------------------------------------------------------------------------------------------------


_record_of = cache(np.ctypeslib.as_ctypes_type)  # it makes a new class at every call


def _in_python(array: npt.NDArray[Any]) -> Any:
    if array.dtype.names is None:
        return array.data if array.dtype.kind == "u" and array.ndim == 1 else array  # of several it gives no rows
    kind = _record_of(array.dtype)
    return kind.from_buffer(array.data) if array.ndim == 0 else (kind * len(array)).from_buffer(array.data)
