"""Every counter of a run, counted again from its full record: a summary must follow from the record alone.

Counting starts at the end of the plan's warm-up: by event number for what is counted, by the clock for what
takes time.
"""

from collections import Counter
from typing import Any

import numpy as np

from sim.core.plan import ANSWERS, CAUSES, GATES, OUTCOMES, Plan
from sim.machines.record import COUNTERS, LAYER, RunRecord
from tests.groups import as_groups, rows
from tests.laws import FETCH, PREFETCH, Cache, Moment, begins_again, classes, entries, walk

Result = dict[str, Any]
COUNTED_AS = dict(
    zip(range(len(ANSWERS)), ("fetched", "substituted", "dropped", "cpu", "low", "streamed", "remote"), strict=True)
)
TIMES = ("dense_ns", "decide_ns", "experts_ns", "head_ns", "stall_ns", "cpu_wait_ns", "link_busy_ns")


class Recount:
    """`count`: name of a counter -> number; `layer`: name -> number per MoE layer."""

    def __init__(self, plan: Plan, record: RunRecord) -> None:
        self.plan, self.result = plan, as_groups(plan, record)
        self.steps = self.result["steps"]
        warm = plan.warmup_steps
        self.first_event = self.steps["event"][warm - 1] + 1 if warm else 0
        self.first_ns = self.steps["end_ns"][warm - 1] if warm else 0
        self.count: Counter[str] = Counter()
        self.weight: Counter[str] = Counter()  # router weight by answer
        self.layer = {name: np.zeros(plan.experts.shape[1], np.int64) for name in LAYER}
        self.answered = {(row["visit"], row["row"], row["slot"]): row for row in rows(self.result, "answers")}
        self.fresh: set[int] = set()  # landed by a prefetch, not wanted since
        self.late: set[int] = set()  # wanted on its way
        for moment, cache in walk(plan, self.result):
            self.see(moment, cache)
        self.add("prefetch_wasted", len(self.fresh), True)
        self.count["wanted_before"] = sum(int(self.layer[name].sum()) for name in ("hits", "late", "misses"))
        self.times()

    def add(self, name: str, n: int, counted: bool) -> None:
        self.count[name] += n if counted else 0

    def see(self, moment: Moment, cache: Cache) -> None:
        counted = moment.event >= self.first_event
        step = self.steps["event"].index(moment.event) + 1 if moment.what == "step" else 0
        if step and begins_again(self.plan, step):
            self.add("prefetch_wasted", len(self.fresh), moment.event + 1 >= self.first_event)
            self.fresh, self.late = set(), set()
        if moment.what == "visit":
            self.see_visit(cache, moment.row, counted)
        elif moment.what == "committed":
            victim = moment.row["victim"]
            self.add("evictions", victim >= 0, counted)
            self.add("prefetch_wasted", victim in self.fresh, counted)
            self.fresh.discard(victim)
        elif moment.what == "landed":
            self.add("landed_" + CAUSES[moment.row["cause"]], 1, counted)
            self.add("landed_low", moment.row["low"], counted)
            self.see_prefetch(moment, counted)
        elif moment.what in OUTCOMES:
            self.add(moment.what, 1, counted)

    def see_prefetch(self, moment: Moment, counted: bool) -> None:
        if moment.row["cause"] == PREFETCH:
            self.add("prefetch_late", moment.expert in self.late, counted)
            self.fresh |= {moment.expert} - self.late
        self.late.discard(moment.expert)

    def see_visit(self, cache: Cache, row: dict[str, int], counted: bool) -> None:
        visit = cache.visit + 1
        wanted = entries(self.plan, visit)
        kinds = classes(cache, wanted)
        for expert, kind in kinds.items():
            self.add("prefetch_used", kind == "hits" and expert in self.fresh, counted)
            self.fresh.discard(expert)
            self.late |= {expert} if kind == "late" else set()
        self.add("slots_wanted", len(wanted), counted)
        for token, slot, expert in wanted:
            answer = self.answered.get((visit, token, slot))
            if answer is None or (kinds[expert] == "late" and answer["answer"] == FETCH):
                self.add("slots_hit" if kinds[expert] == "hits" else "slots_late", 1, counted)
            else:
                self.add(COUNTED_AS[answer["answer"]], 1, counted)
            if answer is not None:
                self.add(f"stopped_{answer['gate']}", 1, counted)
                if counted and self.plan.weights is not None and self.plan.miss.name != "fetch":
                    self.weight[COUNTED_AS[answer["answer"]]] += float(self.plan.weights[token, row["layer"], slot])
        if counted:
            for name in self.layer:
                self.layer[name][row["layer"]] += row[name]
                self.add("stall_ns", row[name], name.endswith("_ns"))
            self.add("cpu_wait_ns", row["cpu_wait_ns"], True)
        self.see_promotions(visit, counted)

    def see_promotions(self, visit: int, counted: bool) -> None:
        """A promoted transfer became a demand in the first visit of its layer after it was queued."""
        layers = self.plan.experts.shape[1]
        for row in rows(self.result, "transfers"):
            first = row["visit"] + (row["layer"] - row["visit"] - 1) % layers + 1
            self.add("promoted", bool(row["promoted"]) and first == visit, counted)

    def times(self) -> None:
        costs, warm = self.plan.costs, self.plan.warmup_steps
        of_step = costs.cost_class[warm:]
        visits = [step for step in self.result["visits"]["step"] if step >= warm]
        self.count["dense_ns"] = int(costs.dense_ns[of_step].sum())
        self.count["head_ns"] = int(costs.head_ns[of_step].sum())
        self.count["decide_ns"] = costs.decide_ns * len(visits)
        groups = set()
        for row in rows(self.result, "executions"):
            if row["event"] >= self.first_event and not row["cpu"]:
                groups.add((row["visit"], row["group"]))
                self.count["experts_ns"] += row["end_ns"] - row["begin_ns"]
        self.count["experts_ns"] += costs.group_ns * len(groups)
        for row in rows(self.result, "transfers"):
            if row["started_ns"] >= 0:
                step = sum(event < row["event"] for event in self.steps["event"]) - 1  # at whose end it is unfinished
                ends = row["landed_ns"] if row["landed_ns"] >= 0 else self.steps["end_ns"][step]
                self.count["link_busy_ns"] += max(0, ends - max(row["started_ns"], self.first_ns))


def check_counters(plan: Plan, record: RunRecord) -> None:
    """Every counter, every time and every figure by layer equals its recount."""
    recount = Recount(plan, record)
    for name in (*COUNTERS, *TIMES, "unfinished"):
        assert record.counters[name] == recount.count[name], name
    for name in LAYER:
        assert record.layer[name].tolist() == recount.layer[name].tolist(), name
    for i, gate in enumerate(GATES):
        assert record.counters[f"stopped_{gate}"] == recount.count[f"stopped_{i + 1}"], gate
    for name in ("substituted", "dropped"):
        assert np.isclose(record.counters[f"weight_{name}"], recount.weight[name]), name
