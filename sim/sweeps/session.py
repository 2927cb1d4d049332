"""One process's work on a sweep: what is missing is run, kept and reported."""

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from hashlib import sha256
from pathlib import Path
from typing import IO, Any

from sim import __version__
from sim.memo import afresh
from sim.policies.kinds import KINDS as POLICIES
from sim.policies.policy import is_user
from sim.prepare import Described
from sim.sweeps.config import Configuration
from sim.sweeps.dispatch import Dispatcher, Pool, Totals
from sim.sweeps.local import LocalPool
from sim.sweeps.store import Store, require_pyarrow
from sim.sweeps.worker import Setup
from traces.errors import UserError
from traces.format import npz

KINDS = ("hardware", "engine")  # of the catalog: what sim.prepare asks for


class Session:
    """Takes the sweep's folder and runs on. safe: configurations whose rows are kept. Raises UserError, one line."""

    def __init__(self, folder: Path, tables: Mapping[str, Any], runs: Sequence[Configuration], out: IO[str]) -> None:
        require_pyarrow()
        self.runs = runs
        self.out = out
        self.store = Store(folder)
        self.setup, files = inspect(runs)
        self.identity = {"version": __version__, "core": _core(), "files": files, "config": dict(tables)}
        self.store.open(self.identity, [run.id for run in runs])

    @property
    def safe(self) -> int:
        return len(self.store.done)

    def close(self) -> None:
        self.store.close()

    def run(self, engine: str, address: str, workers: int | None, retry_failed: bool) -> Any:
        """The table of all rows (pyarrow), in the order of the configurations: those that were there, those run now."""
        done = self.store.done
        missing = [run for run in self.runs if run.id not in done or (retry_failed and done[run.id] is not None)]
        if done:
            print(f"{len(done):,} of {len(self.runs):,} runs are done; {len(missing):,} to go", file=self.out)
        about: dict[str, Any] = {}
        if missing:
            about = self._work(missing, engine, address, workers)
        ids = [run.id for run in self.runs]
        whole = self.store.finish(ids)
        if missing:
            self.store.describe({**self.identity, "ids": ids, "last": about})
        self._complain()
        return whole

    def _work(self, missing: Sequence[Configuration], engine: str, address: str, workers: int | None) -> dict[str, Any]:
        begin = time.monotonic()
        pool, workers = _pool(self.setup, engine, address, workers, len(missing))
        try:
            dispatcher = Dispatcher(pool, workers)
            for rows in dispatcher.run(missing):
                self.store.add(rows)
        finally:
            pool.close()
        about = _account(dispatcher.totals, time.monotonic() - begin, workers)
        print(_told(about), file=self.out)
        return {"engine": engine, **about}

    def _complain(self) -> None:
        failed = [error for run in self.runs if (error := self.store.done[run.id]) is not None]
        if failed:
            print(f"{len(failed):,} of {len(self.runs):,} runs failed; the first: {failed[0]}", file=self.out)


def _account(totals: Totals, wall_s: float, workers: int) -> dict[str, Any]:
    """What the workers' time went to: shares of wall_s x workers. requests_per_cpu_s: per second that a core was ours,
    whoever else used the machine."""
    all_s = wall_s * workers
    return {
        **asdict(totals),
        "workers": workers,
        "wall_s": wall_s,
        "runs_per_s": totals.runs / wall_s,
        "requests_per_s_per_worker": totals.requests / all_s,
        "requests_per_cpu_s": totals.requests / totals.cpu_s if totals.cpu_s else None,
        "overhead_share": 1 - totals.loop_s / all_s,
        "prepare_share": totals.prepare_s / all_s,
        "summary_share": (totals.busy_s - totals.prepare_s - totals.loop_s) / all_s,
        "waiting_share": 1 - totals.busy_s / all_s,
    }


def _told(about: Mapping[str, Any]) -> str:
    rate = about["requests_per_cpu_s"]
    per_core = "" if rate is None else f" ({rate / 1e6:.2f} M per second of CPU)"
    return (
        f"{about['runs']:,} runs in {about['wall_s']:.1f} s on {about['workers']} workers: {about['runs_per_s']:.1f} "
        f"runs/s, {about['requests_per_s_per_worker'] / 1e6:.2f} M expert requests/s per worker{per_core}; overhead "
        f"{about['overhead_share']:.0%} of the time (preparing {about['prepare_share']:.0%}, summaries "
        f"{about['summary_share']:.0%}, starting and waiting {about['waiting_share']:.0%})"
    )


def _pool(setup: Setup, engine: str, address: str, workers: int | None, runs: int) -> tuple[Pool, int]:
    """A pool and how many workers it shall have: never more than there are runs."""
    if engine == "local":
        return LocalPool(setup), min(workers or cores(), runs)
    from sim.sweeps.cluster import RayPool

    pool = RayPool(replace(setup, check_traces=True), address)
    return pool, min(workers or pool.cpus, runs)


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _core() -> str:
    """Names the sources that decide what a run comes to: rows of other ones do not belong beside its rows."""
    from sim.core.jit import CACHE_DIR

    return CACHE_DIR.name


def inspect(runs: Sequence[Configuration]) -> tuple[Setup, dict[str, str]]:
    """(what workers are told, digest by name of every file that the runs read).

    A trace is read through once, here. What is wrong with a file is not said here: the runs that need it say so.
    """
    specs = [run.spec for run in runs if run.spec is not None]
    hashes: dict[str, str] = {}
    for name in sorted({s.trace for s in specs} | {s.calibration for s in specs if isinstance(s.calibration, str)}):
        try:
            hashes[name] = npz.content_hash(npz.read(npz.find(name)))
        except UserError:
            continue
    parts: dict[Described, Any] = {}
    files: set[str] = set()
    for part in {Described.of(s, kind) for s in specs for kind in KINDS}:
        found = [name for name in (part.name, dict(part.changes).get("host")) if name and os.path.isfile(name)]
        files.update(found)
        try:
            parts |= {part: part.make(afresh)} if found else {}
        except UserError:
            continue
    for s in specs:
        named = [getattr(s, kind).rpartition(":")[0] for kind in POLICIES if is_user(getattr(s, kind))]
        named += [
            s.model or "",
            str(s.cache),
            s.dense_on_host or "",
            *(value for value in s.set.values() if isinstance(value, str)),
        ]
        files |= {name for name in named if os.path.isfile(name)}
    digests = {name: sha256(Path(name).read_bytes()).hexdigest() for name in sorted(files)}
    return Setup(os.getcwd(), hashes, parts), {**hashes, **digests}
