"""What two runs of a plan decided, compared row by row while one of them runs."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from sim.core import log as lg
from sim.core import state as st
from sim.core.plan import ONE_BY_ONE, PLACES, Plan
from sim.errors import SpecError
from sim.machines.record import RunRecord

# columns of each group that hold decisions; the others hold times, or are made of these
DECISIONS = {
    "visits": ("event", "step", "layer", "wanted", "hits", "late", "misses"),
    "answers": ("event", "visit", "row", "slot", "wanted", "answer", "stand_in", "gate"),
    "transfers": (
        "visit",
        "expert",
        "cause",
        "promoted",
        "victim",
        "outcome",
        "event",
        "event_queued",
        "event_committed",
    ),
    "executions": ("event", "visit", "expert", "tokens", "stand_in_tokens", "group", "cpu", "low"),
}
CHUNKS = ("event", "event_committed", "transfer", "number")  # of a plan that cuts transfers
RUN = ("run",)  # of transfers too, where the record has it
STAGE, DEFERRED = PLACES.index("stage"), PLACES.index("deferred")
# what is known of a transfer when it is queued, of a chunk when it is committed, and of a visit that serves its experts
# one by one when it is routed
AT_ONCE = {"transfers": ("visit", "expert", "event_queued"), "chunks": ("event_committed", "transfer", "number")}
ONE_BY_ONE_AT_ONCE = {"visits": ("event", "step", "layer", "wanted")}


def global_ids(plan: Plan, record: RunRecord, name: str) -> Any:
    """int64 [n]: by which id the core knows the expert of each row of `transfers` or `executions`, a copy in a stage by
    its own (core.rules)."""
    group, full = record.groups[name], plan.experts.shape[1] * plan.n_experts
    layer = group["layer"] if name == "transfers" else record.groups["visits"]["layer"][group["visit"]]
    ids = group["expert"] + layer * plan.n_experts + group["low"] * full
    if plan.on_miss is None:
        return ids
    return ids + np.where(group["place"] == STAGE, full * (1 if plan.low is None else 2), 0)


class Difference(NamedTuple):
    """Where two runs decided differently: row and column of a group of the record."""

    group: str
    row: int
    column: str
    recorded: int
    replayed: int

    def __str__(self) -> str:
        return f"{self.group}[{self.row}].{self.column}: {self.recorded} in the record, {self.replayed} in the replay"


@dataclass
class Outcome:
    """What a lock-step came to. compared: decisions (values) by group; difference: the first, None where all are equal;
    error: what the replay could not do, e.g. a choice that the core refuses."""

    compared: dict[str, int] = field(default_factory=dict)
    difference: Difference | None = None
    error: str | None = None

    @property
    def equal(self) -> bool:
        return self.difference is None and self.error is None

    def as_dict(self) -> dict[str, Any]:
        """For a summary."""
        return {
            "equal": self.equal,
            "compared": dict(self.compared),
            "decisions": sum(self.compared.values()),
            "difference": None if self.difference is None else str(self.difference),
            "error": self.error,
        }


class Unequal(RuntimeError):
    """The replay cannot go on: it decided differently, or the record is none of this plan."""


class DecisionCheck:
    """Rows that a running log has, against the record's, as they are written."""

    def __init__(self, plan: Plan, record: RunRecord) -> None:
        """Raises SpecError for a record of other groups than the plan's."""
        self.decisions = dict(DECISIONS)
        if plan.on_miss is not None:
            self.decisions["transfers"] += RUN
        if plan.chunks > 1:
            self.decisions["chunks"] = CHUNKS
        if record.groups.keys() != self.decisions.keys():
            have, want = ", ".join(record.groups), ", ".join(self.decisions)
            raise SpecError(f"lock-step: the record has {have}; a run of the plan has {want}")
        self.recorded: dict[str, dict[str, Any]] = {}
        for name, group in record.groups.items():
            columns = {column: group[column] for column in self.decisions[name]}
            if name in ("transfers", "executions"):
                columns["expert"] = global_ids(plan, record, name)
            if name == "executions" and plan.on_miss is not None:
                columns["cpu"] = group["cpu"] + (group["place"] == DEFERRED)  # as the log has it
            self.recorded[name] = columns
        self.at_once = AT_ONCE | (ONE_BY_ONE_AT_ONCE if plan.eviction.marks & ONE_BY_ONE else {})
        self.rows = dict.fromkeys(self.decisions, 0)
        self.outcome = Outcome()

    def look(self, s: st.State, log: lg.Log) -> None:
        """The rows written since the last look, but for what of a transfer is not known yet. Raises Unequal."""
        for name, every in self.decisions.items():
            first, last = self.rows[name], getattr(s.rows, name)
            columns = self.at_once.get(name, every)
            if last > first:
                self._compare(name, first, last, columns, log)
                self.rows[name] = last

    def finish(self, s: st.State, log: lg.Log) -> None:
        """Everything, in full, and that nothing is missing. Raises Unequal."""
        for name, columns in self.decisions.items():
            recorded, rows = self.recorded[name], getattr(s.rows, name)
            if rows < len(recorded["event"]):
                self._differs(Difference(name, rows, "event", int(recorded["event"][rows]), -1))
            self._compare(name, 0, rows, columns, log)
            self.outcome.compared[name] = rows * len(columns)

    def _compare(self, name: str, first: int, last: int, columns: tuple[str, ...], log: lg.Log) -> None:
        written, recorded = log.arrays[name][first:last], self.recorded[name]
        for column in columns:
            here = written[column]
            there = recorded[column][first:last]
            if len(there) < len(here):
                self._differs(Difference(name, len(recorded[column]), column, -1, int(here[len(there)])))
            wrong = np.flatnonzero(here != there)
            if len(wrong):
                i = int(wrong[0])
                self._differs(Difference(name, first + i, column, int(there[i]), int(here[i])))

    @contextmanager
    def noting(self, again: bool = False) -> Iterator[None]:
        """What is raised of a replay that cannot go on is noted in the outcome; `again`: and raised."""
        try:
            yield
        except Unequal as error:
            if self.outcome.difference is None:
                self.outcome.error = self.outcome.error or str(error)
            if again:
                raise
        except RuntimeError as error:  # IllegalTransition and its kin
            self.outcome.error = f"{type(error).__name__}: {error}"
            if again:
                raise

    def _differs(self, difference: Difference) -> None:
        self.outcome.difference = self.outcome.difference or difference
        raise Unequal(str(difference))
