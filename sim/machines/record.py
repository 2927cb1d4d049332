"""The record: what one run decided and when, the same from every machine; and the summary computed from it alone.

A record always has its steps, its requests and its counters. With `full` it has every visit, execution, transfer and
answer too, as parallel int64 columns (made when they are read) with one event number over all groups.
"""

import json
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sim.core import state as st
from sim.core.log import COLUMNS, Log
from sim.core.plan import ANSWERS, CAUSES, GATES, LOSSY, OUTCOMES, PLACES, Plan
from sim.core.rules import RuleCount, Rules
from sim.errors import SpecError
from sim.machines.clock import Clock, Time
from sim.machines.columns import Columns, tables
from traces.command import replace

Int = npt.NDArray[np.int64]
# int64; float64 where it is router weight; int8 and int32 by step, int64 in a file
Group = dict[str, npt.NDArray[Any]] | Columns
VERSION = 1
COUNTERS = tuple(name for name in st.Count.fields() if name != "stopped")
CLOCK = Time.fields()[1:]
QUALITY = tuple(name for name in st.OfLayer.fields() if name.startswith("weight_"))  # router weight, by layer
LAYER = tuple(name for name in st.OfLayer.fields() if name not in QUALITY)


@dataclass(frozen=True)
class RunRecord:
    """What one run decided and when. Counters and layer count what came after the warm-up; times in ns.

    steps {prefill, begin_ns, end_ns, rows} [S] (and event with `full`; accepted, the rows that count, of runs that
    speculate). requests {request, admitted_ns, first_ns, last_ns, tokens, ...}, one row per admitted request: tokens
    counts its token times (from its last prefill step on), first_ns and last_ns are -1 where there is none;
    admitted_step, last_prefill_step, first_decode, generated say which steps they are. counters: name -> number. layer:
    name -> [L], int64, router weights float64. groups: visits, executions, transfers, answers, and chunks where
    transfers are cut, or empty. tokens {lost_weight} float64 [T], of lossy miss policies only: router weight that
    others answered for, or nobody, by trace token, when it last ran. windows {step, request, rows, accepted}, of runs
    that speculate only: plan.Windows.
    """

    steps: Group
    requests: Group
    counters: dict[str, Any]
    layer: Group
    groups: dict[str, Group]
    warmup_steps: int
    expert_bytes: int
    low_bytes: int = 0  # of a low-precision copy, 0 where there are none
    tokens: Group = field(default_factory=dict)
    windows: Group = field(default_factory=dict)

    @staticmethod
    def of(plan: Plan, s: st.State, log: Log | None, clock: Clock, rules: Rules | None = None) -> "RunRecord":
        """From what a machine ends with."""
        counters: dict[str, Any] = {name: getattr(s.count, name) for name in COUNTERS}
        speculates = plan.windows is not None
        counters |= {name: getattr(clock.time, name) for name in CLOCK if speculates or name != "draft_ns"}
        steps: Group = {
            "prefill": plan.step_prefill.view(np.int8),
            "begin_ns": clock.begin,
            "end_ns": clock.end,
            "rows": np.diff(plan.step_offset).astype(np.int32),
        }
        if speculates:
            steps["accepted"] = np.add.reduceat(plan.accepted, plan.step_offset[:-1], dtype=np.int32)
        if log is not None:
            steps["event"] = clock.event
        counters |= {f"stopped_{gate}": s.count.stopped[1 + i] for i, gate in enumerate(GATES)}
        if rules is not None:
            counters |= _of_rules(rules)
        layer: Group = {name: s.arrays["layer"][name].copy() for name in (*LAYER, *QUALITY)}
        counters |= {name: float(layer[name].sum()) for name in QUALITY}
        if plan.rerank is None:
            counters["wanted_before"] = int(sum(layer[name].sum() for name in ("hits", "late", "misses")))
        groups: dict[str, Group] = {} if log is None else dict(tables(plan, s, log))
        requests = requests_of(plan, clock.begin, clock.end)
        tokens = {"lost_weight": s.loss} if plan.miss.marks & LOSSY else {}
        low = 0 if plan.low is None else plan.low.bytes
        sizes = plan.warmup_steps, plan.expert_bytes, low
        windows = dict(vars(plan.windows)) if plan.windows is not None else {}
        return RunRecord(steps, requests, counters, layer, groups, *sizes, tokens, windows)

    def on_link(self) -> Group:
        """What crossed the link, of a full record: the columns of `chunks`, a row for each chunk and for each transfer
        that went whole (`number` -1; several experts in one have a row each)."""
        sent, cut = self.groups["transfers"], self.groups.get("chunks")
        rows = np.flatnonzero(sent["event_committed"] >= 0)
        if cut is not None:
            rows = rows[~np.isin(rows, cut["transfer"])]
        whole = {"transfer": rows, "number": np.full(len(rows), -1)}
        whole |= {name: sent[name][rows] for name in (*COLUMNS["chunks"], "bytes") if name not in whole}
        return whole if cut is None else {name: np.concatenate([whole[name], cut[name]]) for name in whole}


def left_ns(record: RunRecord) -> Int:
    """int64 [transfers], of a full record: when what is unfinished was left, which is at the end of a step."""
    ends, events = record.steps["end_ns"], record.groups["transfers"]["event"]
    found: Int = ends[np.maximum(np.searchsorted(record.steps["event"], events) - 1, 0)]
    return found


def _of_rules(rules: Rules) -> dict[str, Any]:
    """What only a run with them counts."""
    left_out = ("stages_used",) if rules.run.chunks > 1 else ("stages_used", "chunks")
    found = {name: getattr(rules.count, name) for name in RuleCount.fields() if name not in left_out}
    busy = {f"busy_{cause}_ns": int(ns) for cause, ns in zip(CAUSES, rules.busy_ns, strict=True)}
    return {**found, **busy, "host_ns": int(rules.host_ns[0]), "remote_ns": int(rules.remote_ns[0])}


def requests_of(plan: Plan, begin: Int, end: Int) -> Group:
    """Each request's admission, first and last token."""
    request, admitted, prompt_end, first, generated = plan.requests.T
    decode_ends = end[~plan.step_prefill]
    has_prompt, has_decode = prompt_end >= 0, generated > 0
    last = np.full(len(request), -1)
    last[has_prompt] = end[prompt_end[has_prompt]]
    began, decode_only = last.copy(), has_decode & (prompt_end == -1)
    began[decode_only] = decode_ends[first[decode_only]]
    last[has_decode] = decode_ends[(first + generated - 1)[has_decode]]
    tokens = generated
    if plan.windows is not None:
        tokens = np.zeros(len(request), np.int64)
        np.add.at(tokens, plan.windows.request, plan.windows.accepted)
    return {
        "request": request,
        "admitted_ns": begin[admitted],
        "first_ns": began,
        "last_ns": last,
        "tokens": tokens + has_prompt,
        "admitted_step": admitted,
        "last_prefill_step": prompt_end,
        "first_decode": first,
        "generated": generated,
    }


class _Member:
    """A column of a file, which is made when it is written: all of them at once would be twice the record."""

    def __init__(self, group: Group, column: str) -> None:
        self.group, self.column = group, column

    def __array__(self, dtype: Any = None, copy: Any = None) -> npt.NDArray[Any]:
        group, column = self.group, self.column
        values = group.once(column) if isinstance(group, Columns) else group[column]
        return values if values.dtype.kind == "f" else values.astype(np.int64, copy=False)


def save(record: RunRecord, path: Path, meta: dict[str, Any]) -> None:
    """Write a record as `.npz`: one member `group.column` per column, counters and `meta` as JSON in member `meta`."""
    ruled = "link_transfers" in record.counters
    facts = {
        "record_version": VERSION,
        "causes": CAUSES if ruled else CAUSES[:3],
        "outcomes": OUTCOMES,
        "answers": ANSWERS if ruled else ANSWERS[:5],
        "warmup_steps": record.warmup_steps,
        "expert_bytes": record.expert_bytes,
        "low_bytes": record.low_bytes,
        "counters": record.counters,
        **({"places": PLACES} if ruled else {}),
        **meta,
    }
    members: dict[str, Any] = {"meta": np.array(json.dumps(facts, sort_keys=True))}
    fixed = {name: getattr(record, name) for name in ("steps", "requests", "layer", "tokens", "windows")}
    for name, group in (record.groups | fixed).items():
        members |= {f"{name}.{column}": _Member(group, column) for column in group}
    replace(path, lambda file: np.savez(file, **members))


def load(path: Path) -> tuple[RunRecord, dict[str, Any]]:
    """(record, meta) of a file written by `save`. Raises SpecError, one line, if it is none."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            members = {name: archive[name] for name in archive.files}
        meta = json.loads(str(members.pop("meta")))
        if meta["record_version"] != VERSION:
            raise SpecError(f"{path}: meta: record_version is {meta['record_version']!r}; must be {VERSION}")
        groups: dict[str, Group] = {}
        for name, values in members.items():
            group, _, column = name.partition(".")
            groups.setdefault(group, {})[column] = values
        steps, requests, layer = (groups.pop(name) for name in ("steps", "requests", "layer"))
        more = groups.pop("tokens", {}), groups.pop("windows", {})
        sizes = meta["warmup_steps"], meta["expert_bytes"], meta["low_bytes"]
        return RunRecord(steps, requests, meta["counters"], layer, groups, *sizes, *more), meta
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        if isinstance(error, SpecError):
            raise
        raise SpecError(f"{path}: is no record of a run: {error}") from None
