"""What a full record is kept in: rows no wider than they must be, columns of int64, memory that is nobody else's."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sim.core import log as lg
from sim.core import spare
from sim.core.plan import Plan
from sim.machines import compiled
from sim.machines.columns import Columns
from sim.machines.record import load, save
from tests.copied import ROOT
from tests.forked import Forks
from tests.groups import fingerprint
from tests.on_miss_plans import plan_of
from tests.plans import any_plan, plan

SEEDS = range(40)


def drawn() -> list[Plan]:
    return [any_plan(seed) for seed in SEEDS] + [plan_of(seed) for seed in SEEDS]


@pytest.fixture
def every_table_is_lent(monkeypatch: pytest.MonkeyPatch) -> None:
    """However small; and what earlier runs have left is not there."""
    monkeypatch.setattr(spare, "LEAST", 0)
    monkeypatch.setattr(spare, "_spare", {})


# --- memory


def address(array: Any) -> int:
    return int(array.ctypes.data)


@pytest.mark.usefixtures("every_table_is_lent")
def test_memory_is_lent_again_when_no_view_of_it_is_left() -> None:
    rows = spare.lent("visits", 10, lg.VisitRow)
    place, column = address(rows), rows[2:]["event"]
    column[:] = 7
    del rows
    other = spare.lent("visits", 10, lg.VisitRow)
    other["event"] = 1
    assert address(other) != place and column.tolist() == [7] * 8
    del column
    again = spare.lent("visits", 9, lg.VisitRow)  # fewer rows fit too, of another dtype as well
    assert address(again) == place
    del again
    assert address(spare.lent("visits", 11, lg.VisitRow)) != place


@pytest.mark.usefixtures("every_table_is_lent")
def test_of_two_pieces_the_larger_is_kept_and_none_above_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = spare.lent("answers", 100, np.int64), spare.lent("answers", 10, np.int64)
    large = address(one)
    del one, two
    assert address(spare.lent("answers", 10, np.int64)) == large
    monkeypatch.setattr(spare, "MOST", 799)
    monkeypatch.setattr(spare, "_spare", {})
    held = spare.lent("answers", 100, np.int64)
    del held
    assert spare._spare == {}


@pytest.mark.usefixtures("every_table_is_lent")
def test_a_record_that_is_held_is_not_changed_by_later_runs() -> None:
    """Its columns are read when all the others have run."""
    plans = drawn()
    known = [fingerprint(compiled.run(each, full=True)) for each in plans]
    held = [compiled.run(each, full=True) for each in plans[::2]]
    for each in plans:
        compiled.run(each, full=True)
    assert [fingerprint(record) for record in held] == known[::2]


@pytest.mark.usefixtures("every_table_is_lent")
def test_nor_by_those_of_other_threads() -> None:
    plans = drawn()[::8]
    known = [fingerprint(compiled.run(each, full=True)) for each in plans]

    def every(_: int) -> list[bytes]:
        return [fingerprint(record) for record in [compiled.run(each, full=True) for each in plans]]

    with ThreadPoolExecutor(4) as pool:
        assert all(found == known for found in pool.map(every, range(8)))


# --- widths


def test_no_number_is_above_what_is_reckoned_nor_a_table_longer() -> None:
    nearest = {2: 0.0, 4: 0.0}  # by bytes of a number, the largest over what is reckoned
    for each in drawn():
        rows, (number, few) = lg.most_rows(each), lg.largest(each)
        most = {1: 127, 2: few, 4: number, 8: 2**63 - 1}
        for name, group in compiled.run(each, full=True).groups.items():
            assert len(group["event"]) <= rows[name], name
            for column in set(lg.COLUMNS[name]) & set(group):
                size, found = lg.TABLES[name].dtype[column].itemsize, int(group[column].max(initial=-1))
                assert -1 <= found <= most[size], (name, column)
                nearest[size] = max(nearest.get(size, 0), found / most[size])
    assert nearest[4] > 0.3 and nearest[2] > 0.2  # which is no wild guess


def test_numbers_are_narrow_as_long_as_every_one_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    each = plan([[[0, 1]], [[2, 1]]], 3, [2])
    number, few = lg.largest(each)  # 2 steps + visits 2, executions 4, transfers 3 x 4, answers 4; 4 ids of 3 experts
    assert (number, few) == (24, 12)

    def widths() -> set[int]:
        dtypes = [table.dtype for table in lg.new_log(each).arrays.values()]
        return {dtype[name].itemsize for dtype in dtypes for name in dtype.names or ()}

    assert widths() == {1, 2, 4, 8}
    for name, limit in (("MOST_NUMBER", number), ("MOST_FEW", few)):
        monkeypatch.setattr(lg, name, limit)
        assert widths() == {1, 2, 4, 8}
        monkeypatch.setattr(lg, name, limit - 1)
        assert widths() == {8}
        monkeypatch.setattr(lg, name, limit)


WIDE = """
from sim.core import log
from sim.machines import compiled, discrete
from tests.groups import fingerprint
from tests.on_miss_plans import plan_of
from tests.plans import any_plan

for made in (any_plan, plan_of):
    for seed in range(6):
        each = made(seed)
        narrow = fingerprint(compiled.run(each, True))
        log.MOST_NUMBER = 5
        assert log.new_log(each).arrays["visits"].dtype["event"].itemsize == 8
        assert fingerprint(compiled.run(each, True)) == fingerprint(discrete.run(each, True)) == narrow, seed
        log.MOST_NUMBER = 2**31 - 1
print("the same")
"""


def test_a_run_whose_numbers_do_not_fit_has_the_same_record(forks: Forks) -> None:
    assert forks.run(ROOT, WIDE) == (0, "the same\n")


# --- columns


def test_columns_are_int64_made_once_and_written_as_they_are_read(tmp_path: Path) -> None:
    """Also where sums of what is written narrow would not be: bytes of a chunk, ids of copies."""
    for each in drawn()[::5]:
        record = compiled.run(each, full=True)
        save(record, tmp_path / "record.npz", {})
        read, _ = load(tmp_path / "record.npz")
        assert {name: list(group) for name, group in read.groups.items()} == {
            name: list(group) for name, group in record.groups.items()
        }
        for name, group in record.groups.items():
            for column, values in group.items():
                assert values.dtype == np.int64 and values is group[column]
                assert np.array_equal(values, read.groups[name][column]), (name, column)
    big = replace(each, expert_bytes=2**40)
    assert (compiled.run(big, full=True).groups["transfers"]["bytes"] == 2**40).all()


def test_a_column_is_not_made_before_it_is_read_and_a_copy_with_another_makes_none() -> None:
    made: list[str] = []

    def column(name: str) -> Any:
        return lambda: made.append(name) or np.arange(3, dtype=np.int16)

    columns = Columns({name: column(name) for name in ("a", "b")})
    other = columns | {"b": np.zeros(3, np.int64)}
    assert made == [] and list(other) == ["a", "b"] and "a" in columns and len(columns) == 2
    assert other["b"].tolist() == [0, 0, 0] and columns["a"].tolist() == [0, 1, 2] and made == ["a"]
    assert {**columns}.keys() == {"a", "b"} and made == ["a", "b"] and columns["a"] is columns["a"]
