"""The contract of sim.sweeps.dispatch.Pool, held by every engine there is: who writes another puts it into POOLS."""

import importlib
import pkgutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from sim import sweeps
from sim.sweeps import session
from sim.sweeps.config import Configuration, expand
from sim.sweeps.dispatch import KILLED, Dispatcher, Pool, WorkerEvent
from sim.sweeps.local import LocalPool
from sim.sweeps.rows import Row
from sim.sweeps.worker import Setup, Task, Worker
from tests.copied import ROOT
from tests.processes import PATIENCE_S, eventually, gone

Runs = Sequence[Configuration]
Rows = Sequence[Row]
OWN = """
import os, pathlib, time

def dies(trace, steps):
    os.kill(os.getpid(), 9)

def stays(trace, steps):
    pathlib.Path("pid").write_text(str(os.getpid()))
    time.sleep(600)
"""


@contextmanager
def on_ray(setup: Setup) -> Iterator[Pool]:
    """A cluster of one node, its own."""
    pytest.importorskip("ray", reason="ray is not installed: pip install 'moe-offload-sim[ray]'")
    from ray.cluster_utils import Cluster

    from sim.sweeps.cluster import RayPool

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 6, "include_dashboard": False})
    try:
        with closing(RayPool(replace(setup, check_traces=True), cluster.address)) as pool:
            yield pool
    finally:
        cluster.shutdown()


@contextmanager
def here(setup: Setup) -> Iterator[Pool]:
    with closing(LocalPool(setup)) as pool:
        yield pool


POOLS: dict[str, Callable[[Setup], AbstractContextManager[Pool]]] = {"local": here, "ray": on_ray}


def test_every_engine_is_held_to_the_contract() -> None:
    """Whatever class of sim.sweeps can start workers is one of POOLS, and there is one for each word of --engine."""
    from sim.sweep import ENGINES

    there = set()
    for module in pkgutil.iter_modules(sweeps.__path__):
        found = vars(importlib.import_module(f"{sweeps.__name__}.{module.name}")).values()
        there |= {kind for kind in found if isinstance(kind, type) and hasattr(kind, "give") and kind is not Pool}
    assert {kind.__name__ for kind in there} == {f"{name.capitalize()}Pool" for name in POOLS}
    assert tuple(POOLS) == ENGINES


def runs_of(*lines: str) -> list[Configuration]:
    import tomllib

    return expand(tomllib.loads("\n".join(('trace = "mixtral.npz"\nmax_steps = 3', *lines))))


def events(pool: Pool, n: int) -> list[WorkerEvent]:
    """The next n that happen."""
    found: list[WorkerEvent] = []
    end = time.monotonic() + PATIENCE_S
    while len(found) < n:
        assert time.monotonic() < end, f"{len(found)} of {n} events happened"
        found += pool.events(0.2)
    return found


def rows_of(event: WorkerEvent) -> Rows:
    assert event.done is not None
    return event.done.rows


@pytest.mark.machine
@pytest.mark.parametrize("name", POOLS)
def test_a_pool_keeps_its_contract(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # of workers, wherever they start
    Path("own.py").write_text(OWN)
    fine = runs_of('cache = [2, 3, "none of these"]', "repeats = 2")
    dies, stays = (runs_of(f'prefetch = "own.py:{word}"') for word in ("dies", "stays"))
    setup = session.inspect([*fine, *dies, *stays])[0]
    right = Worker(setup).run(Task(fine)).rows
    assert [bool(row["error"]) for row in right] == [False] * 4 + [True] * 2
    with POOLS[name](setup) as pool:
        one, other = a_worker_counts_once_it_is_ready(pool)
        rows_come_as_they_were_asked_for(pool, one, other, fine, right)
        who_dies_takes_nobody_with_it(pool, one, other, dies, fine, right)
        every_run_is_a_row(pool, [*fine, *dies], {row["id"]: row for row in right})
        closed_nobody_is_left(pool, other, stays)


def a_worker_counts_once_it_is_ready(pool: Pool) -> tuple[int, int]:
    one, other = pool.start(), pool.start()
    assert one != other
    ready = events(pool, 2)
    assert sorted(event.worker for event in ready) == sorted((one, other))
    assert all(event == WorkerEvent(event.worker) for event in ready)
    began = time.monotonic()
    assert list(pool.events(0.05)) == [] and time.monotonic() - began < PATIENCE_S  # nobody has anything to do
    return one, other


def rows_come_as_they_were_asked_for(pool: Pool, one: int, other: int, runs: Runs, right: Rows) -> None:
    pool.give(one, Task(runs))
    pool.give(other, Task(runs[:1], warm_up=True))
    done = {event.worker: event.done for event in events(pool, 2) if event.done}
    assert done[one].rows == right and done[one].requests > 0 and done[one].busy_s > 0
    assert done[other].rows == () and done[other].requests > 0  # of what compiles no rows come


def who_dies_takes_nobody_with_it(pool: Pool, one: int, other: int, dies: Runs, runs: Runs, right: Rows) -> None:
    pool.give(one, Task(dies))
    pool.give(other, Task(runs))
    found = {event.worker: event for event in events(pool, 2)}
    assert found[one].dead and found[one].done is None and found[one].why
    assert found[other] == WorkerEvent(other, found[other].done) and rows_of(found[other]) == right
    new = pool.start()
    assert new not in (one, other) and events(pool, 1) == [WorkerEvent(new)]
    pool.give(new, Task(runs[:1]))
    assert rows_of(events(pool, 1)[0]) == right[:1]


def every_run_is_a_row(pool: Pool, runs: Runs, right: dict[str, Row]) -> None:
    """Under the dispatcher; who kills a worker twice is a row that says so."""
    rows = [row for batch in Dispatcher(pool, 1).run(runs) for row in batch]
    assert sorted(row["id"] for row in rows) == sorted(run.id for run in runs)
    assert [row["error"] for row in rows if row["id"] not in right] == [KILLED]
    assert all(row == right[row["id"]] for row in rows if row["id"] in right)


def closed_nobody_is_left(pool: Pool, worker: int, stays: Runs) -> None:
    """Not even who is at work."""
    pool.give(worker, Task(stays))
    eventually(lambda: Path("pid").exists() and Path("pid").read_text())
    pid = int(Path("pid").read_text())
    assert list(pool.events(0.05)) == [] and Path(f"/proc/{pid}").exists()
    pool.close()
    eventually(lambda: gone(pid))
