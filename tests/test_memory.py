"""A Memory is the same to plain Python, to compiled code and to numpy: one place, one spelling."""

from typing import Annotated, Any

import numpy as np
import pytest

from sim.core.jit import choice, compiles
from sim.core.memory import Int, Memory, Struct, between, together, zeros


class Small(Struct):
    n: int
    share: float
    each: Annotated[Int, 3]


class Two(Memory):
    one: Small
    many: Any  # Small [4]
    table: Any  # [2, 3]
    ids: Any  # uint32 [5]


def two() -> Two:
    many, table = zeros(4, dtype=Small), np.arange(6).reshape(2, 3)
    return Two(one=zeros(dtype=Small), many=many, table=table, ids=zeros(5, dtype=np.uint32))


@choice
def _write(m: Any) -> int:
    m.one.n += 7
    m.one.each[2] = 5
    m.many[3].share = m.one.n / 2
    m.ids[4] = m.table[1, 2] + len(m.many) + m.table.shape[0] * 10
    m.table[0, 1] = -1
    m.many[0] = m.many[3]
    return m.many[0].n


def test_what_a_choice_writes_everybody_reads() -> None:
    """7 into a counter; half of it, 3.5, into a row that is then copied; 5 + 4 + 2 x 10 = 29 into a list of ids."""
    m = two()
    m.many[3].n = 11
    assert _write(m) == 11
    assert (m.one.n, m.one.each[2], m.many[3].share, m.many[0].share, m.ids[4]) == (7, 5, 3.5, 3.5, 29)
    assert m.table.tolist() == [[0, -1, 2], [3, 4, 5]]
    assert m.arrays["one"]["n"] == 7
    assert m.arrays["many"]["share"].tolist() == [3.5, 0, 0, 3.5]
    m.arrays["many"]["n"][1] = 9
    assert m.many[1].n == 9


def test_numbers_in_plain_python_are_its_own() -> None:
    m = two()
    assert [type(each) for each in (m.one.n, m.one.share, m.one.each[0], m.many[0].n, m.ids[0])] == [
        int, float, int, int, int,
    ]  # fmt: skip
    m.one.n = np.int64(1)  # numpy's are taken, too
    assert m.one.n == 1
    with pytest.raises(TypeError):
        m.one.n = 1.5


def test_another_array_takes_a_place() -> None:
    """A longer list in the place of one: what compiled code then writes goes there, and the one before keeps its own.
    Another kind is refused, and so is a record."""
    m = two()
    _write(m)
    before = m.ids
    wide = zeros(9, dtype=np.uint32)
    m.replace(ids=wide)
    _write(m)
    assert (m.one.n, m.ids[4], len(m.ids), before[4]) == (14, 29, 9, 29)
    before[4] = 0
    assert wide[4] == 29
    for kind in (zeros(5, dtype=np.uint64), zeros(5, 1, dtype=np.uint32)):
        with pytest.raises(TypeError, match="ids"):
            m.replace(ids=kind)
    with pytest.raises(TypeError, match="one"):
        m.replace(one=zeros(dtype=Small))


def test_records_behind_the_table_are_the_same_record() -> None:
    """Found by how far they lie behind it, and not by where it says they are; arrays are found through it."""
    arrays, front = together(4, one=(Small,), ids=(np.uint32, 5), many=(Small, 4))
    m = Two(front, **arrays, table=np.arange(6).reshape(2, 3))
    assert m.kind[1][3] is not None and m.kind[1][3] % 64 == 0 and {far for *_, far in m.kind[2:]} == {None}
    assert m._numba_type_ != two()._numba_type_ if compiles() else True
    _write(m)
    assert (m.one.n, m.one.each[2], m.many[3].share, m.ids[4], m.table[0, 1]) == (7, 5, 3.5, 29, -1)
    assert arrays["one"]["n"] == 7 and front.ctypes.data == m.address
    words = between(front, arrays["one"], arrays["ids"])
    words[0] = 90
    assert m.one.n == 90


def test_there_are_no_other_names() -> None:
    with pytest.raises(AttributeError, match="three"):
        two().three  # noqa: B018


class Mixed(Struct):
    few: Annotated[int, np.int8]
    n: int
    number: Annotated[int, np.int32]


class Even(Struct):
    number: Annotated[int, np.int32]
    other: Annotated[int, np.int32]
    n: int


def test_narrow_fields_take_their_place_or_lie_behind() -> None:
    """As written 8 + 8 + 8 bytes, widest first 8 + 4 + 1 in 16; two halves before a whole are as small as behind."""
    assert Mixed.dtype.itemsize == 16 and [Mixed.dtype.fields[name][1] for name in Mixed.fields()] == [12, 0, 8]
    assert Even.dtype.itemsize == 16 and [Even.dtype.fields[name][1] for name in Even.fields()] == [0, 4, 8]


def test_fields_lie_one_after_another_in_the_order_they_are_written() -> None:
    """8 bytes each, 8 x 3 of the last: 40 bytes a record, and the first begins at a cache line."""
    assert Small.fields() == ("n", "share", "each")
    assert Small.dtype.itemsize == 40
    assert [Small.dtype.fields[name][1] for name in Small.fields()] == [0, 8, 16]
    assert two().many[0].n == 0 and two().arrays["many"].ctypes.data % 64 == 0


@pytest.mark.skipif(not compiles(), reason="nothing is compiled")
def test_another_layout_is_another_type() -> None:
    """Compiled code believes its types: with a narrower table it must be compiled anew."""
    m = two()
    narrow = Two(**m.arrays | {"ids": zeros(5, dtype=np.uint64)})
    assert m._numba_type_ == two()._numba_type_
    assert m._numba_type_ != narrow._numba_type_
    _write(narrow)
    assert narrow.ids[4] == 29
