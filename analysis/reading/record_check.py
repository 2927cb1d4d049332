"""A record read for analysis: of a bounded size, of the run that the summary tells of, and safe to index with."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sim.core.log import COLUMNS
from sim.core.plan import ANSWERS, CAUSES, MOST_CHUNKS, OUTCOMES, PLACES
from sim.machines.record import LAYER, Group, RunRecord, load
from traces.errors import UserError
from traces.format.members import find_members, open_zip

STEPS = ("prefill", "begin_ns", "end_ns", "rows")
REQUESTS = ("request", "admitted_ns", "first_ns", "last_ns", "tokens", "first_decode", "generated", "last_prefill_step")
WINDOWS = ("step", "request", "rows", "accepted")  # of runs that speculate
EXTRA = {"transfers": ("layer", "bytes", "low"), "chunks": ("bytes",)}
BY_RULES = {"transfers": ("place", "run"), "executions": ("place",)}  # of runs with plan.on_miss, all or none of them
STAGE, REMOTE, HOST = (PLACES.index(name) for name in ("stage", "remote", "host"))


def read_record(path: Path, summary: dict[str, Any]) -> RunRecord:
    """The record at `path`, the one that `summary` was made from. Raises UserError, one line."""
    _check_sizes(path)
    record, meta = load(path)
    if not isinstance(meta.get("spec"), dict) or meta["spec"] != summary["spec"]:
        raise UserError(f"{path}: is the record of another run than the summary.json beside it: spec differs")
    wrong = _wrong(record, summary, meta)
    if wrong:
        raise UserError(f"{path}: is no record of this run: {wrong}")
    return record


def _check_sizes(path: Path) -> None:
    """Every array declares what the file holds, before one of them is allocated."""
    with open_zip(path) as archive:
        names = tuple(info.filename.removesuffix(".npy") for info in archive.infolist())
        find_members(archive, path, names)


def _wrong(record: RunRecord, summary: dict[str, Any], meta: dict[str, Any]) -> str | None:
    """What is wrong with it, or None: a missing or uneven column, an index out of range, other sums."""
    layers, experts = summary["trace"]["moe_layers"], summary["trace"]["n_experts"]
    groups: list[tuple[str, Group, tuple[str, ...]]] = [
        ("steps", record.steps, STEPS),
        ("requests", record.requests, REQUESTS),
        ("layer", record.layer, LAYER),
    ]
    if record.windows:
        groups += [("steps", record.steps, (*STEPS, "accepted")), ("windows", record.windows, WINDOWS)]
    by_rules = any(column in record.groups.get(name, {}) for name in BY_RULES for column in BY_RULES[name])
    told = [name for name in COLUMNS if name != "chunks" or name in record.groups]  # which few runs have
    for name, written in [(name, COLUMNS[name]) for name in told] if record.groups else ():
        own = BY_RULES.get(name, ())
        always = (*(column for column in written if column not in own), *EXTRA.get(name, ()))
        groups.append((name, record.groups.get(name, {}), (*always, *(own if by_rules else ()))))
    for name, group, columns in groups:
        wrong = _uneven(name, group, columns)
        if wrong:
            return wrong
    if len(record.steps["end_ns"]) == 0 or not 0 <= record.warmup_steps < len(record.steps["end_ns"]):
        return f"warmup_steps is {record.warmup_steps} of {len(record.steps['end_ns'])} steps"
    spent = int(record.steps["end_ns"][-1] - record.steps["begin_ns"][record.warmup_steps])
    if spent != summary["time_ns"]:
        return f"its steps last {spent} ns; time_ns of summary.json is {summary['time_ns']}"
    if len(record.layer["hits"]) != layers:
        return f"layer.hits has {len(record.layer['hits'])} rows; trace.moe_layers is {layers}"
    for name, words, few in (("causes", CAUSES, CAUSES[:3]), ("answers", ANSWERS, ANSWERS[:5])):
        if meta.get(name) not in (list(words), list(few)):
            return f"meta: {name} is {ascii(meta.get(name))[:60]}; must be {', '.join(words)}, or the first {len(few)}"
    wrong = _outside(record, layers, experts, len(meta["causes"]), len(meta["answers"]))
    return wrong or (_torn(record.groups["transfers"]) if by_rules else None)


def _torn(transfers: Group) -> str | None:
    """The first transfer that does not fit its run: what is not committed has none, and only copies into stages share
    one, which goes and lands as one."""
    run, place = transfers["run"], transfers["place"]
    odd = np.flatnonzero((run >= 0) != (transfers["committed_ns"] >= 0))
    if len(odd):
        return f"transfers.run[{odd[0]}] is {run[odd[0]]}; a committed transfer has one, from 0 on, and no other"
    rows = np.flatnonzero(run >= 0)
    rows = rows[np.argsort(run[rows], kind="stable")]
    same = run[rows[1:]] == run[rows[:-1]]
    one, other = rows[:-1][same], rows[1:][same]
    odd = np.flatnonzero((place[one] != STAGE) | (place[other] != STAGE))
    if len(odd):
        return f"transfers.place[{other[odd[0]]}] is {place[other[odd[0]]]}; only copies into stages share a run"
    for name in ("layer", "committed_ns", "started_ns", "landed_ns", "outcome"):
        odd = np.flatnonzero(transfers[name][one] != transfers[name][other])
        if len(odd):
            row = other[odd[0]]
            return f"transfers.{name}[{row}] is {transfers[name][row]}; another of run {run[row]} says otherwise"
    return None


def _uneven(name: str, group: Mapping[str, Any], columns: tuple[str, ...]) -> str | None:
    sizes = set()
    for column in columns:
        if column not in group:
            return f"{name}.{column} is missing"
        values = group[column]
        if values.ndim != 1 or values.dtype.kind not in "iuf":
            return f"{name}.{column} has shape {values.shape}, dtype {values.dtype}; one number a row is required"
        sizes.add(len(values))
    return f"{name}: columns of {sorted(sizes)} rows; equal lengths are required" if len(sizes) > 1 else None


def _outside(record: RunRecord, layers: int, experts: int, causes: int, answered: int) -> str | None:
    """The first column that points outside what it points into; causes, answered: codes that the file names."""
    n_steps, decode = len(record.steps["prefill"]), int((record.steps["prefill"] == 0).sum())
    r = record.requests
    limits = [
        ("requests.first_decode", r["first_decode"], 0, decode + 1),
        ("requests.generated", r["generated"], 0, decode + 1),
        ("requests.generated", (r["first_decode"] + r["generated"])[r["generated"] > 0], 0, decode + 1),
    ]
    if (w := record.windows) and len(w["step"]):
        limits += [
            ("windows.step", w["step"], 0, n_steps),
            ("windows.request", w["request"], 0, len(r["request"])),
            ("windows.rows", w["rows"], 1, 1 + int(record.steps["rows"].max())),
            ("windows.accepted", w["accepted"], 1, 1 + int(w["rows"].max())),
            ("windows.accepted", w["accepted"] - w["rows"], -int(w["rows"].max()), 1),
            ("steps.rows of windows", record.steps["rows"][np.clip(w["step"], 0, n_steps - 1)], 1, 2**31),
        ]
    if record.groups:
        visits, executions = record.groups["visits"], record.groups["executions"]
        transfers, answers = record.groups["transfers"], record.groups["answers"]
        n = len(visits["step"])
        limits += [
            ("visits.step", visits["step"], 0, n_steps),
            ("visits.layer", visits["layer"], 0, layers),
            ("executions.visit", executions["visit"], 0, n),
            ("executions.expert", executions["expert"], 0, experts),
            ("transfers.layer", transfers["layer"], 0, layers),
            ("transfers.expert", transfers["expert"], 0, experts),
            ("transfers.cause", transfers["cause"], 0, causes),
            ("transfers.outcome", transfers["outcome"], 0, len(OUTCOMES)),
            ("transfers.victim", transfers["victim"], -1, 2 * layers * experts),
            ("transfers.low", transfers["low"], 0, 2),
            ("executions.low", executions["low"], 0, 2),
            ("answers.visit", answers["visit"], 0, n),
            ("answers.answer", answers["answer"], 0, answered),
        ]
        if "chunks" in record.groups:
            limits += [
                ("chunks.transfer", record.groups["chunks"]["transfer"], 0, len(transfers["event"])),
                ("chunks.number", record.groups["chunks"]["number"], 0, MOST_CHUNKS),
            ]
        if "run" in transfers:
            on_host = executions["cpu"] == 1
            limits += [
                ("transfers.place", transfers["place"], 0, REMOTE + 1),
                ("transfers.run", transfers["run"], -1, max(1, len(transfers["run"]))),
                ("executions.place", executions["place"], 0, len(PLACES)),
                ("executions.place on the host", executions["place"][on_host], HOST, len(PLACES)),
                ("executions.place on the GPU", executions["place"][~on_host], 0, HOST),
            ]
    for name, values, least, end in limits:
        bad = np.flatnonzero((values < least) | (values >= end))
        if len(bad):
            return f"{name}[{bad[0]}] is {values[bad[0]]}; it lies in [{least}, {end})"
    return None
