"""The sweep of README: 1,000 configurations of a million requests each, and what each policy of its grid costs."""

import csv
import json
import os
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sim.memo import Kept
from sim.simulation import simulate
from sim.spec import RunSpec
from tests.bench.figures import Ask, Figure
from tests.bench.plans import ROOT
from tests.bench.starts import nothing_compiled
from traces.format import npz
from traces.format.trace import RoutingTrace

GRID = tomllib.loads((ROOT / "tests" / "grid.toml").read_text())
REQUESTS = 1e6  # that are judged


def longer(trace: RoutingTrace, requests: float) -> RoutingTrace:
    """The trace's requests over and over until there are so many expert requests, each time as requests of their own,
    groups left out."""
    times = max(1, round(requests / (trace.experts >= 0).sum()))
    first = np.cumsum(np.diff(trace.sequence, prepend=trace.sequence[0]) != 0)
    sequence = np.concatenate([first + i * (1 + first[-1]) for i in range(times)]).astype(np.int32)
    arrays = {name: np.concatenate([array] * times) for name, array in trace.arrays().items() if name in KEPT}
    if trace.lookahead is not None:
        arrays["lookahead"] = np.concatenate([trace.lookahead] * times, axis=1)
    return RoutingTrace(meta=dict(trace.meta) | {"groups": {}}, **{**arrays, "sequence": sequence})


KEPT = ("experts", "position", "prefill", "weights", "logits")


def sweep(ask: Ask, grid: Mapping[str, Any] = GRID, requests: float = REQUESTS) -> Iterator[Figure]:
    """M requests/s of each worker and the wall, warm and with nothing compiled; then the policies one by one. It takes
    minutes."""
    with tempfile.TemporaryDirectory(prefix="bench-sweep-") as folder:
        config = written(Path(folder), grid, requests)
        yield from one_by_one(ask, config)
        swept(
            config, Path(folder) / "small", ask.workers, {}, ("--max-steps", "1")
        )  # compiles what there is to compile
        yield from _told("warm", swept(config, Path(folder) / "warm", ask.workers, {}), "< 40 s on 2 quiet cores")
        with nothing_compiled() as (where, _):
            yield from _told("cold", swept(config, Path(folder) / "cold", ask.workers, where), "< 60 s")


def written(folder: Path, grid: Mapping[str, Any], requests: float) -> dict[str, Any]:
    """The sweep's tables; its file `sweep.toml` and its trace lie in the folder."""
    sample = npz.read(npz.find("mixtral.npz"))
    npz.write(folder / "trace.npz", longer(sample, requests / (1 - grid["calibration"])))
    tables = {**grid, "trace": str(folder / "trace.npz")}
    lines = [f"{key} = {json.dumps(value)}" for key, value in tables.items() if key != "zip"]
    for together in tables.get("zip", ()):
        lines += ["[[zip]]", *(f"{key} = {json.dumps(value)}" for key, value in together.items())]
    (folder / "sweep.toml").write_text("\n".join(lines) + "\n")
    return tables


def swept(
    tables: Mapping[str, Any], out: Path, workers: int, where: Mapping[str, str], more: Sequence[str] = ()
) -> dict[str, Any]:
    """What the sweep said of itself, and its wall_s from the first import to the last byte."""
    config = Path(tables["trace"]).with_name("sweep.toml")
    command = ["-m", "sim.sweep", "--config", str(config), "--out", str(out), "--workers", str(workers), *more]
    begin = time.perf_counter()
    environment = {**os.environ, "MOE_OFFLOAD_SIM_QUIET": "1", **where}
    told = {"cwd": ROOT, "env": environment, "check": True, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    subprocess.run([sys.executable, *command], **told)
    wall_s = time.perf_counter() - begin
    with (out / "results.csv").open(newline="") as rows:
        wrong = [row["error"] for row in csv.DictReader(rows) if row["error"]]
    assert not wrong, f"{len(wrong):,} configurations did not run: {wrong[0]}"
    found: dict[str, Any] = json.loads((out / "sweep.json").read_text())["last"]
    return {**found, "command_s": wall_s}


def _told(how: str, found: Mapping[str, Any], asked: str) -> Iterator[Figure]:
    runs, workers = f"{found['runs']:,} configurations", found["workers"]
    rate = found["requests_per_s_per_worker"] / 1e6
    parts = f"overhead {found['overhead_share']:.0%} (preparing {found['prepare_share']:.0%})"
    yield Figure(f"sweep/{how}: wall", "s", (found["command_s"],), asked, f"{runs} on {workers} workers")
    warm = ">= 14 on quiet cores" if how == "warm" else ""
    yield Figure(f"sweep/{how}: each worker", "M requests/s", (rate,), warm, parts)
    cpu = found["requests_per_cpu_s"] or 0.0
    yield Figure(f"sweep/{how}: per CPU second", "M requests/s", (cpu / 1e6,), warm)


def one_by_one(ask: Ask, tables: Mapping[str, Any]) -> Iterator[Figure]:
    """CPU time of a configuration with each value of the grid, over that of the first of each axis, run just before."""
    axes = {axis: values for axis, values in tables.items() if axis != "zip" and isinstance(values, list)}
    for together in tables.get("zip", ()):
        axes |= {axis: tuple(dict.fromkeys(values)) for axis, values in together.items()}
    plain = {axis: values[len(values) // 2] if axis == "cache" else values[0] for axis, values in axes.items()}
    common = {"trace": tables["trace"], "calibration": tables["calibration"]}
    memo = Kept(1_000_000_000)
    specs = {f"{axis} {value}": {**common, **plain, axis: value} for axis, values in axes.items() for value in values}
    took: dict[str, list[tuple[float, float]]] = {name: [] for name in specs}
    base: dict[str, list[tuple[float, float]]] = {name: [] for name in specs}
    for _ in range(ask.runs + 1):
        for name, fields in specs.items():
            base[name].append(_parts({**common, **plain}, memo))
            took[name].append(_parts(fields, memo))
    for name in specs:
        pairs = list(zip(took[name], base[name], strict=True))[1:]
        loop = np.median([each[1] for each, _ in pairs]) / np.median([each[1] for _, each in pairs])
        yield Figure(
            f"sweep/one by one/{name}", "x the plain one", tuple(sum(a) / sum(b) for a, b in pairs),
            note=f"the machine alone {loop:.2f} x, the rest {np.median([each[0] for each, _ in pairs]) * 1e3:.1f} ms",
        )  # fmt: skip


def _parts(fields: Mapping[str, Any], memo: Kept) -> tuple[float, float]:
    """CPU seconds of (preparing and summing up, the machine)."""
    marks = [time.process_time()]
    simulate(RunSpec.of(dict(fields)), memo=memo, reached=lambda stage: marks.append(time.process_time()))
    return marks[1] - marks[0] + time.process_time() - marks[2], marks[2] - marks[1]
