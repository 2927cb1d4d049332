"""The independent reference: the simulated machine of the design, spelled as plainly as Python allows.

It shares nothing with the machines but the plan (`sim.core.plan`). The answers to missing experts are in
`tests.reference_miss`, re-ranking is in `tests.reference_rerank`, the parts of what engines do beyond one rule
for every visit (stages, admissions, splits, host work) in `tests.reference_on_miss`. It is a discrete-event
simulation over dicts and lists. At one instant the first thing in this list that can happen does, and the list
is then read again from its top:

1. the transfer at the head of the link lands;
2. the GPU work that ends takes effect (a group; a step);
3. a visit is decided;
4. the free GPU leaves a layer whose work is done, or takes its next group or a remote expert;
5. with `all`: it takes a group of what is ready, as nothing more can land while it is held;
6. transfers are committed (or rejected) as far as the link, the slots and the stages allow.

When nothing in it can happen the clock moves on to the next thing due.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from math import ceil, inf, pow
from typing import Any

from sim.core.plan import (
    ANSWERS,
    CAUSES,
    GROUPS,
    ORDERS,
    OUTCOMES,
    PLACES,
    SUBSTITUTE_PARAMS,
    Plan,
    Prefetch,
)
from tests import reference_miss, reference_on_miss
from tests.reference_miss import GATES, Answer, Token, hash64
from tests.reference_on_miss import Admissions, Stages, is_bulk, on_miss_of, rule_of, slowed, streams, takes_no_slot
from tests.reference_rerank import Reranker

Row = dict[str, Any]
DEMAND, PREFETCH, BACKGROUND, ADMISSION, STREAM = range(len(CAUSES))
SLOT, STAGE, REMOTE, HOST, DEFERRED = range(len(PLACES))
LANDED, WITHDRAWN, REJECTED, UNFINISHED = (
    OUTCOMES.index(name) for name in ("landed", "withdrawn", "rejected", "unfinished")
)
COLUMNS = {
    "steps": "event prefill begin_ns end_ns rows",
    "visits": "event step layer routed_ns end_ns wanted hits late misses"
    " stall_demand_ns stall_late_ns stall_held_ns cpu_wait_ns",
    "executions": "event visit expert tokens stand_in_tokens begin_ns end_ns group cpu low",
    "transfers": "visit layer expert low cause promoted bytes queued_ns committed_ns started_ns landed_ns"
    " victim outcome event_queued event_committed event",
    "answers": "event visit row slot wanted answer stand_in gate",
}
CHUNK_COLUMNS = "event event_committed transfer number committed_ns started_ns landed_ns"  # where transfers are cut
ON_MISS_COLUMNS = {"transfers": " place run", "executions": " place"}  # of plans with `on_miss`
TOTALS = (
    "time_ns evictions decide_ns dense_ns experts_ns stall_ns cpu_wait_ns head_ns link_busy_ns"
    " prefetched_used prefetched_late prefetched_wasted"
    " slots_wanted slots_hit slots_late fetched substituted dropped cpu low wanted_before"
)
QUALITY = ("weight_wanted", "weight_substituted", "weight_dropped")
COUNTED_AS = dict(zip(ANSWERS, ("fetched", "substituted", "dropped", "cpu", "low", "streamed", "remote"), strict=True))


def reference_steps(
    sequence: Sequence[int], prefill: Sequence[bool], batch: int, prefill_chunk: int, as_decode: bool = False
) -> list[tuple[bool, list[int]]]:
    """The steps of a trace: (is prefill, trace rows in order). One entry of the arguments per trace row."""
    prompts: dict[int, list[int]] = {}
    answers: dict[int, list[int]] = {}
    for row, request in enumerate(sequence):
        prompts.setdefault(int(request), [])
        answers.setdefault(int(request), [])
        is_prompt = bool(prefill[row]) and not as_decode
        (prompts if is_prompt else answers)[int(request)].append(row)
    waiting, active, steps = list(prompts), list[int](), list[tuple[bool, list[int]]]()
    while waiting or active:
        admitted, waiting = waiting[: batch - len(active)], waiting[batch - len(active) :]
        for request in admitted:
            rows = prompts[request]
            steps += [(True, rows[i : i + prefill_chunk]) for i in range(0, len(rows), prefill_chunk)]
        active += [request for request in admitted if answers[request]]
        if waiting and len(active) < batch:
            continue  # one of the admitted had nothing to decode: its place is filled again first
        if active:
            steps.append((False, [answers[request].pop(0) for request in active]))
        active = [request for request in active if answers[request]]
    return steps


@dataclass(eq=False)
class Transfer:
    """A transfer on its way; `row` is its line of the record. For a prefetch, `key` is its place in the
    transfer order (lower first, then by joining) and `listed` the whole list that it came from. For a copy into a
    stage, `joined_for` is the visit that it joined (or was promoted) for, and whether that was ahead of it."""

    expert: int
    row: Row
    key: int = 0
    listed: frozenset[int] = frozenset()
    joined_for: tuple[int, bool] = (-1, False)
    was_late: bool = False
    was_hit: bool = False
    chunks_left: int = 0  # not committed yet, of one that is cut

    def goes_to_stage(self) -> bool:
        return bool(self.row["place"] == STAGE)

    def promote(self) -> None:
        """It is a demand from now on; of a prefetch the list no longer counts."""
        self.row |= {"cause": DEMAND, "promoted": True}
        self.key, self.listed = 0, frozenset()


@dataclass(eq=False)
class Shipment:
    """What crosses the link as one: one expert, or copies of consecutive ids, or (`chunk`, its line of the record) a
    part of one expert."""

    transfers: list[Transfer]
    land_ns: float = inf
    chunk: Row | None = None

    def is_first(self) -> bool:
        return self.chunk is None or self.chunk["number"] == 0

    def is_last(self, of: int) -> bool:
        return self.chunk is None or self.chunk["number"] == of - 1


class Cache:
    """Who is resident, who is on the way, and who must go. Experts are global ids here."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.slots = [int(n) for n in plan.slots]
        if plan.low is not None:  # copies: experts behind all others, in scopes behind all others
            self.slots += [int(n) for n in plan.low.slots]
        self.claimed = [0] * len(self.slots)  # slots of each scope that hold a resident or await a transfer
        self.landed_at: dict[int, int] = {}  # resident -> number of its landing
        self.seen_at: dict[int, int] = {}  # resident -> number of its last touch or landing
        self.uses: dict[int, int] = {}
        self.score: dict[int, float] = {}
        self.score_at: dict[int, int] = {}
        self.numbers = 0
        self.visits_routed = 0
        self.layer_routed = [0] * plan.experts.shape[1]
        self.draws = 0
        self.wanted_at = wanted_visits(plan) if plan.eviction.name == "belady" else {}
        for expert in map(int, plan.residents):
            self.claimed[self.scope(expert)] += 1
            self.land(expert)

    def is_copy(self, expert: int) -> bool:
        return expert >= self.plan.experts.shape[1] * self.plan.n_experts

    def original(self, expert: int) -> int:
        return expert % (self.plan.experts.shape[1] * self.plan.n_experts)

    def layer(self, expert: int) -> int:
        return self.original(expert) // self.plan.n_experts

    def scope(self, expert: int) -> int:
        among = 0 if self.plan.pooled else self.layer(expert)
        return among + (len(self.plan.slots) if self.is_copy(expert) else 0)

    def has_free_slot(self, scope: int) -> bool:
        return self.claimed[scope] < self.slots[scope]

    def residents_of(self, scope: int) -> list[int]:
        return sorted(expert for expert in self.landed_at if self.scope(expert) == scope)

    def routed(self, layer: int) -> None:
        self.visits_routed += 1
        self.layer_routed[layer] += 1
        self.draws = 0

    def land(self, expert: int) -> None:
        self.landed_at[expert] = self.seen_at[expert] = self.numbers
        self.numbers += 1

    def touch_and_use(self, expert: int) -> None:
        """The end of one execution from a slot."""
        self.seen_at[expert] = self.numbers
        self.numbers += 1
        self.use(expert)

    def use(self, expert: int) -> None:
        self.uses[expert] = self.uses.get(expert, 0) + 1
        if self.plan.eviction.name == "decayed":
            self.score[expert] = self.decayed(expert) + 1.0
            self.score_at[expert] = self.layer_routed[self.layer(expert)]

    def evict(self, expert: int) -> None:
        del self.landed_at[expert], self.seen_at[expert]
        self.claimed[self.scope(expert)] -= 1

    def decayed(self, expert: int) -> float:
        params = self.plan.eviction.params
        decay = float(params[0]) if len(params) else 0.9
        age = self.layer_routed[self.layer(expert)] - self.score_at.get(expert, 0)
        return self.score.get(expert, 0.0) * pow(decay, float(age))

    def next_wanted(self, expert: int) -> float:
        visits = self.wanted_at.get(self.original(expert), [])
        place = bisect_left(visits, self.visits_routed)
        return visits[place] if place < len(visits) else inf

    def worth(self, expert: int) -> float:
        """The score of an eviction policy that keeps one, of anybody, resident or not."""
        scores: dict[str, Callable[[int], float]] = {
            "lfu": lambda expert: self.uses.get(expert, 0),
            "decayed": self.decayed,
            "window-score": self.window_weight,
            "activation-matrix": self.activation,
        }
        return float(scores[self.plan.eviction.name](expert))

    def victim(self, candidates: list[int]) -> int:
        """Which of the candidates (ascending, at least one) goes."""
        name = self.plan.eviction.name
        if name == "random":
            drawn = hash64(self.plan.seed, self.visits_routed, self.draws) % len(candidates)
            self.draws += 1
            return candidates[drawn]
        goes_first: dict[str, Callable[[int], tuple[float, int]]] = {
            "lru": lambda expert: (0, self.seen_at[expert]),
            "fifo": lambda expert: (0, self.landed_at[expert]),
            "lfu": lambda expert: (self.uses.get(expert, 0), self.seen_at[expert]),
            "decayed": lambda expert: (self.decayed(expert), self.seen_at[expert]),
            "belady": lambda expert: (-self.next_wanted(expert), self.seen_at[expert]),
            "least-stale": lambda expert: (-self.steps_away(expert), self.seen_at[expert]),
            "window-score": lambda expert: (self.window_weight(expert), self.seen_at[expert]),
            "activation-matrix": lambda expert: (self.activation(expert), self.seen_at[expert]),
        }
        return min(candidates, key=goes_first[name])

    # Policies that look back. The visit being served is number visits_routed - 1.

    def steps_away(self, expert: int) -> int:
        """Visits until the expert's layer comes again, 1 for the layer behind the one being served."""
        layers, away = self.plan.experts.shape[1], 1
        while (self.visits_routed - 1 + away) % layers != self.layer(expert):
            away += 1
        return away

    def window_weight(self, expert: int) -> int:
        """In 2^-24ths, the router weight of the last `window` visits of its layer."""
        layer, within = self.layer(expert), self.original(expert) % self.plan.n_experts
        window, routed, total = int(self.plan.eviction.params[0]), self.layer_routed[layer], 0
        for step in range(max(0, routed - window), routed):
            for row in step_rows(self.plan, step):
                for slot, wanted in enumerate(self.plan.experts[row, layer]):
                    if wanted == within and self.plan.weights is not None:
                        total += round(float(self.plan.weights[row, layer, slot]) * 2**24)
        return total

    def activation(self, expert: int) -> float:
        """Its share of its layer's tokens so far, of rows that have not left, early layers worth more."""
        layer, within = self.layer(expert), self.original(expert) % self.plan.n_experts
        layers, step = self.plan.experts.shape[1], (self.visits_routed - 1) // self.plan.experts.shape[1]
        leaving = self.plan.leaving
        assert leaving is not None
        gone = Counter(int(row) for row in leaving.row[: leaving.offset[step + 1]])
        own = everyone = 0
        for earlier in range(self.layer_routed[layer]):
            for row in step_rows(self.plan, earlier):
                if gone[row]:
                    gone[row] -= 1
                    continue
                own += sum(int(wanted) == within for wanted in self.plan.experts[row, layer])
                everyone += sum(int(wanted) >= 0 for wanted in self.plan.experts[row, layer])
        return ((own / everyone if everyone else 0.0) + 1e-6) * (1.0 - layer / layers)


def step_rows(plan: Plan, step: int) -> list[int]:
    """The trace tokens of a step, in order."""
    return [int(row) for row in plan.step_row[plan.step_offset[step] : plan.step_offset[step + 1]]]


def wanted_visits(plan: Plan) -> dict[int, list[int]]:
    """For each expert the visits, ascending, in which the trace wants it."""
    layers = plan.experts.shape[1]
    visits: dict[int, list[int]] = {}
    for step in range(len(plan.step_prefill)):
        for layer in range(layers):
            named = {int(e) for row in step_rows(plan, step) for e in plan.experts[row, layer] if e >= 0}
            for expert in named:
                visits.setdefault(layer * plan.n_experts + expert, []).append(step * layers + layer)
    return visits


def merged_list(prefetch: Prefetch, distance: int, rows: list[int], layer: int) -> dict[int, int]:
    """Expert within the layer -> the rank in which it was first seen; in order: rank by rank, row by row."""
    lists = prefetch.lists[min(distance, len(prefetch.lists)) - 1]
    lines = [int(prefetch.row[distance - 1, row]) for row in rows]
    first_rank: dict[int, int] = {}
    for rank in range(lists.shape[2]):
        for line in lines:
            expert = int(lists[line, layer, rank]) if line >= 0 else -1
            if expert >= 0:
                first_rank.setdefault(expert, rank)
    return first_rank


@dataclass
class Visit:
    """The visit being served: who still has work on the GPU (in the order given), who of them is ready, and what
    else the layer waits for."""

    number: int
    row: Row
    bulk: bool = False
    place: dict[int, int] = field(default_factory=dict)  # expert -> where it runs from
    work: dict[int, int] = field(default_factory=dict)  # expert -> tokens; gone once its group has ended
    remotes: dict[int, int] = field(default_factory=dict)  # the same of those that never come; gone once begun
    stand_in_tokens: dict[int, int] = field(default_factory=dict)  # how many of them it serves as a stand-in
    ready: list[int] = field(default_factory=list)
    late: set[int] = field(default_factory=set)
    on_cpu: list[Row] = field(default_factory=list)
    cpu_end_ns: int = 0  # the layer ends no earlier
    gpu_from_ns: int = 0  # nothing of it runs on the GPU before
    awaited: list[Transfer] = field(default_factory=list)  # serial: nor before these copies have landed
    reads: dict[int, Transfer] = field(default_factory=dict)  # of the remotes
    groups: int = 0
    ended: bool = False

    def held(self) -> set[int]:
        """Who must stay in its slot."""
        return {expert for expert in self.work if self.place[expert] == SLOT}


class Machine:
    """One run. `gpu` says what the GPU does until `gpu_ns`: dense (and the decision after it), group, tail
    (of a step), or nothing (it waits)."""

    def __init__(self, plan: Plan) -> None:
        self.plan, self.cache, self.on = plan, Cache(plan), on_miss_of(plan)
        self.layers = plan.experts.shape[1]
        self.visits = len(plan.step_prefill) * self.layers
        size = self.on.chunk_bytes
        self.chunks = 1 if size == 0 else ceil(plan.expert_bytes / size)  # of an expert that is cut
        self.copies = self.layers * plan.n_experts  # the number of the first low-precision copy
        self.now = self.events = 0
        self.record: dict[str, list[Row]] = {group: [] for group in (*COLUMNS, "chunks")}
        self.totals: Row = dict.fromkeys((TOTALS + " " + reference_on_miss.TOTALS).split(), 0)
        self.busy_ns = [0] * len(CAUSES)  # of the link, by cause
        self.quality = {name: [0.0] * plan.experts.shape[1] for name in QUALITY}  # by layer
        self.gates = [0] * len(GATES)  # answers by gate code
        self.reranker = Reranker(plan)
        self.stages, self.admission = Stages(plan), Admissions(plan)
        self.demands: list[Transfer] = []
        self.streams: list[Transfer] = []
        self.prefetches: list[Transfer] = []
        self.admissions: list[Transfer] = []
        self.backgrounds: list[Transfer] = []
        self.link: list[Shipment] = []  # committed, not yet landed
        self.rests: list[Transfer] = []  # of which chunks are not committed, in the order of their first ones
        self.shipped = 0
        self.joined_ahead: set[int] = set()  # visits that have not ended
        self.brought: dict[int, Transfer] = {}  # resident -> the prefetch it came with
        self.prefetched: list[Transfer] = []  # every one that landed
        self.visit = Visit(-1, {}, ended=True)
        self.step, self.step_begin, self.layer = 0, 0, 0
        self.gpu, self.gpu_ns = "nothing", 0
        self.group: list[Row] = []
        self.deferred_until_ns = 0  # end of the host work that the last visit deferred
        self.host_until_ns = 0  # the host works, and slows the link

    # The clock

    def run(self) -> None:
        if len(self.plan.step_prefill) == 0:
            return
        for visit in range(self.on.ahead):
            self.join_ahead(visit)
        self.begin_dense()
        while self.step < len(self.plan.step_prefill):
            if not self.something_happens():
                self.wait()
        self.finish()

    def something_happens(self) -> bool:
        """Does the first thing that can happen at this instant; False when nothing can."""
        return (
            self.land()
            or self.gpu_work_ends()
            or self.decide()
            or self.leave_layer()
            or self.take_group()
            or self.take_remote()
            or self.take_what_is_ready()
            or self.commit()
        )

    def wait(self) -> None:
        """Moves the clock to the next thing due, and says what the GPU spent the time on."""
        due = [self.link[0].land_ns] if self.link else []
        if self.gpu != "nothing":
            due.append(self.gpu_ns)
        due += [ns for ns in (self.visit.cpu_end_ns, self.visit.gpu_from_ns) if ns > self.now]
        if not due:
            raise RuntimeError(f"visit {self.visit.number} waits at {self.now} ns for what can never come")
        passed = int(min(due)) - self.now
        if self.gpu == "nothing":
            cause = self.waits_for()
            self.visit.row[cause] += passed
            self.totals["cpu_wait_ns" if cause == "cpu_wait_ns" else "stall_ns"] += passed
        self.now += passed

    def waits_for(self) -> str:
        """What the GPU waits for, beginning with what holds back the whole visit."""
        visit = self.visit
        if visit.gpu_from_ns > self.now:
            return "cpu_wait_ns"
        if self.awaits_copies() or (visit.remotes and not visit.work):
            return "stall_demand_ns"
        return self.stall_cause() if visit.work else "cpu_wait_ns"

    def stall_cause(self) -> str:
        if self.visit.late & set(self.visit.work) - set(self.visit.ready):
            return "stall_late_ns"
        has_room = len(self.link) < self.plan.costs.commit_depth
        return "stall_held_ns" if self.demands and has_room else "stall_demand_ns"

    def event(self) -> int:
        self.events += 1
        return self.events - 1

    # The GPU

    def cost_class(self) -> int:
        return int(self.plan.costs.cost_class[self.step])

    def begin_dense(self) -> None:
        dense = int(self.plan.costs.dense_ns[self.cost_class(), self.layer])
        self.totals["dense_ns"] += dense
        self.totals["decide_ns"] += self.plan.costs.decide_ns
        self.gpu, self.gpu_ns = "dense", self.now + dense + self.plan.costs.decide_ns

    def begin_tail(self) -> None:
        dense = int(self.plan.costs.dense_ns[self.cost_class(), self.layers])
        head = int(self.plan.costs.head_ns[self.cost_class()])
        self.totals["dense_ns"] += dense
        self.totals["head_ns"] += head
        self.gpu, self.gpu_ns = "tail", self.now + dense + head

    def gpu_work_ends(self) -> bool:
        if self.gpu_ns != self.now or self.gpu not in ("group", "tail"):
            return False
        self.end_group() if self.gpu == "group" else self.end_step()
        return True

    def end_group(self) -> None:
        self.gpu = "nothing"
        for row in self.group:
            row["event"] = self.event()
            self.record["executions"].append(row)
            expert = self.global_id(row["expert"]) + (self.copies if row["low"] else 0)
            if row["place"] == SLOT:
                self.ran_from_slot(expert, row)
            elif row["place"] == STAGE:
                self.stages.holding.remove(expert)
            self.visit.work.pop(expert, None)

    def ran_from_slot(self, expert: int, row: Row) -> None:
        if self.visit.bulk and not self.on.bulk_touch:
            return
        if row["tokens"] > row["stand_in_tokens"] or self.param("touch"):
            self.cache.touch_and_use(expert)
            self.admission.executed_at[expert] = self.cache.layer_routed[self.layer]

    def end_step(self) -> None:
        rows = len(step_rows(self.plan, self.step))
        prefill = bool(self.plan.step_prefill[self.step])
        times = {"begin_ns": self.step_begin, "end_ns": self.now}
        self.record["steps"].append({"event": self.event(), "prefill": prefill, "rows": rows, **times})
        self.step, self.step_begin, self.layer = self.step + 1, self.now, 0
        if self.step < len(self.plan.step_prefill):
            self.begin_dense()

    def leave_layer(self) -> bool:
        visit = self.visit
        if self.gpu != "nothing" or visit.work or visit.remotes or visit.cpu_end_ns > self.now or self.is_held_back():
            return False
        for row in visit.on_cpu:
            row["event"] = self.event()
            self.record["executions"].append(row)
        visit.row["end_ns"] = self.now
        visit.ended = True
        self.joined_ahead.discard(visit.number)
        self.stages.free_layer(self.layer, self.plan.n_experts)
        self.layer += 1
        self.begin_dense() if self.layer < self.layers else self.begin_tail()
        return True

    def is_held_back(self) -> bool:
        """Nothing of the visit may run on the GPU yet: the host goes first, or (serial) copies do."""
        return self.visit.gpu_from_ns > self.now or self.awaits_copies()

    def awaits_copies(self) -> bool:
        return any(copy.row["landed_ns"] < 0 for copy in self.visit.awaited)

    def take_group(self) -> bool:
        """At `one` and `ready` whenever something is ready; at `all` when everything is."""
        ready = self.visit.ready
        if self.gpu != "nothing" or not ready or self.is_held_back():
            return False
        kind = GROUPS[self.plan.group]
        if kind == "all" and len(ready) < len(self.visit.work):
            return False
        self.start_group(ready[:1] if kind == "one" else list(ready))
        return True

    def take_remote(self) -> bool:
        """Behind all that is ready (at `all`, behind all other work), once nothing is committed."""
        visit = self.visit
        if not self.remotes_wait() or self.link or self.awaited_rest() or self.is_held_back():
            return False
        if GROUPS[self.plan.group] == "all" and visit.work:
            return False
        expert = next(iter(visit.remotes))
        tokens = visit.remotes.pop(expert)
        link_ns = self.slowed(int(self.plan.costs.transfer_ns[0]), self.now)
        end = self.now + max(int(self.plan.costs.expert_ns[tokens]), link_ns)
        read = Shipment([visit.reads[expert]])
        self.put_on_link(read)
        self.start(read, 0, end - self.now)
        self.group = [self.execution(expert, tokens, self.now, end, visit.groups, REMOTE)]
        self.begin_group(end)
        return True

    def remotes_wait(self) -> bool:
        return self.gpu == "nothing" and bool(self.visit.remotes) and not self.visit.ready

    def take_what_is_ready(self) -> bool:
        """At `all`: nothing more can land while the rest is held."""
        if self.gpu != "nothing" or not self.visit.ready or not self.demands or self.is_held_back():
            return False
        if self.brings_something(self.demands[0]):
            return False
        self.start_group(list(self.visit.ready))
        return True

    def brings_something(self, head: Transfer) -> bool:
        """Whether the first demand may still find its slot or stage while all that is ready is held."""
        if head.goes_to_stage():
            awaited = [t for t in self.on_link() if t.expert in self.visit.work]
            return self.stages.free() > 0 or any(self.visit.place[t.expert] == t.row["place"] for t in awaited)
        scope, n = self.cache.scope(head.expert), len(self.plan.slots)
        coming = [t.expert for t in self.on_link() if not t.goes_to_stage()]
        if self.cache.has_free_slot(scope) or any(self.cache.scope(expert) % n == scope % n for expert in coming):
            return True
        return not set(self.cache.residents_of(scope)) <= self.visit.held()

    def start_group(self, experts: list[int]) -> None:
        begin, self.group = self.now + self.plan.costs.group_ns, []
        for expert in experts:
            tokens = self.visit.work[expert]
            low = self.plan.low if self.cache.is_copy(expert) else None
            end = begin + int((low or self.plan.costs).expert_ns[tokens])
            place = self.visit.place[expert]
            self.group.append(self.execution(expert, tokens, begin, end, self.visit.groups, place))
            self.visit.ready.remove(expert)
            begin = end
        self.begin_group(begin)

    def begin_group(self, end: int) -> None:
        self.visit.groups += 1
        self.totals["experts_ns"] += end - self.now
        self.gpu, self.gpu_ns = "group", end

    def execution(self, expert: int, tokens: int, begin: int, end: int, group: int, place: int) -> Row:
        stand_in_tokens = self.visit.stand_in_tokens.get(expert, 0) if group >= 0 else 0
        who: Row = {"visit": self.visit.number, "expert": expert % self.plan.n_experts, "place": place}
        who |= {"stand_in_tokens": stand_in_tokens, "low": self.cache.is_copy(expert)}
        return who | {"tokens": tokens, "begin_ns": begin, "end_ns": end, "group": group, "cpu": group < 0}

    # A visit's decisions

    def global_id(self, expert: int) -> int:
        return self.layer * self.plan.n_experts + expert

    def decide(self) -> bool:
        if self.gpu != "dense" or self.gpu_ns != self.now:
            return False
        self.gpu = "nothing"
        self.cache.routed(self.layer)
        tokens = self.routed_tokens()
        experts = [self.global_id(expert) for token in tokens for expert in token.ids if expert >= 0]
        self.begin_visit()
        self.withdraw_unwanted(set(experts))
        kinds = self.classify(experts)
        by_link = self.split(kinds, Counter(experts))
        answered = self.answer(tokens, kinds, Counter(experts), by_link)
        self.visit.ready = [expert for expert in self.visit.work if self.is_there(expert)]
        self.queue_demands({expert: answered[expert] for expert in answered if kinds.get(expert) != "late"}, by_link)
        self.queue_backgrounds(answered)
        self.count_uses(kinds)
        self.queue_admissions(kinds)
        self.join_ahead(self.visit.number + self.on.ahead)
        self.queue_prefetches()
        self.visit.awaited = self.copies_of_visit() if self.on.serial else []
        return True

    def rule(self) -> str:
        return rule_of(self.plan, self.step).name

    def streams_here(self) -> bool:
        return streams(self.plan, self.step, self.layer)

    def param(self, name: str) -> float:
        """A parameter of the substitution family; the plan of any other miss policy does without."""
        without = {"touch": 1.0, "background": 0.0}
        params = self.plan.miss.params
        if len(params) != len(SUBSTITUTE_PARAMS):
            return without[name]
        return float(params[SUBSTITUTE_PARAMS.index(name)])

    def residents_here(self) -> set[int]:
        """Who of this layer is resident, numbered within the layer."""
        cache, n = self.cache, self.plan.n_experts
        return {e % n for e in cache.landed_at if cache.layer(e) == self.layer and not cache.is_copy(e)}

    def routed_tokens(self) -> list[Token]:
        """What the tokens of this step want at this layer, after re-ranking."""
        tokens = []
        for row in step_rows(self.plan, self.step):
            ids = [int(expert) for expert in self.plan.experts[row, self.layer]]
            given = None if self.plan.weights is None else self.plan.weights[row, self.layer]
            weights = [0.0] * len(ids) if given is None else [float(weight) for weight in given]
            tokens.append(Token(row, ids, weights))
        self.totals["wanted_before"] += len({e for token in tokens for e in token.ids if e >= 0})
        return self.reranker.rerank(self.layer, tokens, self.residents_here())

    def begin_visit(self) -> None:
        row: Row = dict.fromkeys(COLUMNS["visits"].split(), 0)
        row |= {"event": self.event(), "step": self.step, "layer": self.layer, "routed_ns": self.now}
        self.record["visits"].append(row)
        self.visit = Visit(self.step * self.layers + self.layer, row, is_bulk(self.plan, self.step))

    def withdraw_unwanted(self, wanted: set[int]) -> None:
        for transfer in self.prefetches_in_line():
            if self.cache.layer(transfer.expert) == self.layer and transfer.expert not in wanted:
                self.withdraw(transfer)

    def withdraw(self, transfer: Transfer) -> None:
        self.prefetches.remove(transfer)
        self.close(transfer, WITHDRAWN)

    def close(self, transfer: Transfer, outcome: int) -> None:
        transfer.row["outcome"], transfer.row["event"] = outcome, self.event()

    def classify(self, experts: list[int]) -> dict[int, str]:
        kinds: dict[int, str] = {}
        for expert in dict.fromkeys(experts):
            kinds[expert] = self.classify_one(expert)
            self.visit.row[kinds[expert]] += 1
            self.visit.row["wanted"] += 1
            if kinds[expert] == "misses" and self.admission.counts(self.visit.bulk):
                self.admission.misses[expert] += 1
        return kinds

    def classify_one(self, expert: int) -> str:
        """Its class; a hit or a late expert has its place."""
        on_link = {t.row["place"]: t for t in self.on_link() if t.expert == expert}
        if expert in self.cache.landed_at:
            if expert in self.brought:
                self.brought[expert].was_hit = True
            self.visit.place[expert] = SLOT
            return "hits"
        if expert in self.stages.holding:
            self.visit.place[expert] = STAGE
            return "hits"
        if SLOT in on_link:
            if self.rule() == "cpu-admit" and on_link[SLOT].row["cause"] == ADMISSION:
                return "misses"
            on_link[SLOT].was_late = True
        if on_link:
            self.visit.place[expert] = SLOT if SLOT in on_link else STAGE
            return "late"
        return "misses"

    def is_there(self, expert: int) -> bool:
        """Whether an expert that has work on the GPU is where it will run."""
        return expert in (self.cache.landed_at if self.visit.place[expert] == SLOT else self.stages.holding)

    def split(self, kinds: dict[int, str], entries: dict[int, int]) -> list[int]:
        """Who of the misses goes over the link, under a split rule."""
        if self.rule() != "split":
            return []
        hits = sum(int(self.plan.costs.expert_ns[entries[e]]) for e, kind in kinds.items() if kind == "hits")
        misses = [expert for expert, kind in kinds.items() if kind == "misses"]
        return reference_on_miss.over_the_link(self.plan, rule_of(self.plan, self.step), misses, entries, hits)

    def answer(
        self, tokens: list[Token], kinds: dict[int, str], entries: dict[int, int], by_link: list[int]
    ) -> dict[int, set[str]]:
        """Gives out the work of every (token, slot). Returns the answers to each expert asked about, in the
        order of their first answers."""
        answered: dict[int, set[str]] = {}
        on_cpu: list[list[tuple[int, int, float]]] = []  # of each token: slot, expert, weight
        asked = self.asked(kinds, entries, by_link)
        for token in tokens:
            answers = asked.answers(token)
            on_cpu.append([])
            for slot, within in enumerate(token.ids):
                if within < 0:
                    continue
                expert, answer = self.global_id(within), answers.get(slot)
                if answer:
                    self.note(token.row, slot, within, answer)
                    answered.setdefault(expert, set()).add(answer.answer)
                    if answer.answer == "low":  # what is fetched is the copy
                        answered.setdefault(self.copies + expert, set()).add("fetch")
                    if answer.answer == "cpu":
                        on_cpu[-1].append((slot, expert, token.weights[slot]))
                self.give_work(expert, kinds[expert], answer)
                self.count(kinds[expert], answer.answer if answer else "", token.weights[slot])
        self.start_cpu(on_cpu, busy=bool(self.link or by_link))
        return answered

    def asked(self, kinds: dict[int, str], entries: dict[int, int], by_link: list[int]) -> reference_miss.Visit:
        """The visit as the miss policies see it. Of late experts only the plan's own (a lossy one) is asked."""
        n, rule = self.plan.n_experts, rule_of(self.plan, self.step)
        late = self.plan.late_counts_as_missing and not self.visit.bulk
        return reference_miss.Visit(
            plan=replace(self.plan, miss=rule, late_counts_as_missing=late),
            layer=self.layer,
            prefill=bool(self.plan.step_prefill[self.step]),
            classes={name: [e % n for e, k in kinds.items() if k == name] for name in ("hits", "late", "misses")},
            entries={expert % n: count for expert, count in entries.items()},
            resident=self.residents_here(),
            routed=self.cache.visits_routed,
            busy=bool(self.link),
            by_link=frozenset(expert % n for expert in by_link),
            no_slot=takes_no_slot(self.plan, self.layer),
        )

    def give_work(self, expert: int, kind: str, answer: Answer | None) -> None:
        visit = self.visit
        if answer is None or answer.answer in ("fetch", "stream"):
            visit.work[expert] = visit.work.get(expert, 0) + 1
            visit.place.setdefault(expert, STAGE if answer and answer.answer == "stream" else SLOT)
            if kind == "late":
                visit.late.add(expert)
        elif answer.answer == "substitute":
            stand_in, served = self.global_id(answer.stand_in), visit.stand_in_tokens
            visit.work[stand_in] = visit.work.get(stand_in, 0) + 1
            visit.place[stand_in] = SLOT
            served[stand_in] = served.get(stand_in, 0) + 1
        elif answer.answer == "low":
            copy = self.copies + expert
            visit.work[copy] = visit.work.get(copy, 0) + 1
            visit.place[copy] = SLOT
        elif answer.answer == "remote":
            visit.remotes[expert] = visit.remotes.get(expert, 0) + 1

    def count(self, kind: str, answer: str, weight: float) -> None:
        self.totals["slots_wanted"] += 1
        executed = {"hits": "slots_hit", "late": "slots_late", "misses": "fetched"}[kind]
        as_itself = answer in ("", "fetch") or (kind == "late" and answer == "stream")
        self.totals[executed if as_itself else COUNTED_AS[answer]] += 1
        self.quality["weight_wanted"][self.layer] += weight
        if answer in ("substitute", "drop"):
            self.quality[f"weight_{COUNTED_AS[answer]}"][self.layer] += weight

    def note(self, row: int, slot: int, wanted: int, answer: Answer) -> None:
        where = {"event": self.event(), "visit": self.visit.number, "row": row, "slot": slot}
        what = {"wanted": wanted, "answer": ANSWERS.index(answer.answer)}
        self.record["answers"].append(where | what | {"stand_in": answer.stand_in, "gate": answer.gate})
        self.gates[answer.gate] += 1

    # The host

    def start_cpu(self, on_cpu: list[list[tuple[int, int, float]]], busy: bool) -> None:
        """The host computes what was answered so, first what does not wait. It begins behind what the last visit
        deferred, and no layer ends before that."""
        tokens = Counter(expert for entries in on_cpu for _, expert, _ in entries)
        may_defer = not self.plan.step_prefill[self.step] and self.layer < self.layers - 1
        deferred = reference_on_miss.deferred(on_cpu, self.on.defer if may_defer else 0)
        begin = at = self.visit.cpu_end_ns = max(self.now, self.deferred_until_ns)
        at += self.on.cpu_visit_ns if tokens else 0
        for expert in sorted(tokens, key=lambda expert: expert in deferred):  # else in the order first answered
            end = at + int(self.plan.costs.cpu_expert_ns[1 if busy else 0, tokens[expert]])
            place = DEFERRED if expert in deferred else HOST
            self.visit.on_cpu.append(self.execution(expert, tokens[expert], at, end, -1, place))
            at = end
            if place == HOST:
                self.visit.cpu_end_ns = end
            else:
                self.deferred_until_ns = end
        if set(tokens) - deferred and not self.on.beside:
            self.visit.gpu_from_ns = self.visit.cpu_end_ns
        if tokens:
            self.totals["host_ns"] += at - begin
            self.slow_link(at)

    def slow_link(self, until_ns: int) -> None:
        """While the host works the link is slower, for the transfer under way, too."""
        self.host_until_ns = max(self.host_until_ns, until_ns)
        if self.link:
            self.link[0].land_ns = self.now + self.slowed(int(self.link[0].land_ns) - self.now, self.now)

    def slowed(self, full_ns: int, start_ns: int) -> int:
        """What so much time of the link at its full rate lasts from then on."""
        return slowed(self.plan, full_ns, self.host_until_ns - start_ns)

    # What a visit queues

    def queue_demands(self, answered: dict[int, set[str]], by_link: list[int]) -> None:
        """Fetches and copies join in the order first answered, or as split; or copies in ascending id."""
        if by_link:
            for expert, answers in answered.items():
                self.withdraw_prefetch(expert, answers)
            answered = {expert: answered[expert] for expert in by_link}
        whole = self.streams_here() and (self.on.whole_layer or self.on.ahead > 0)
        ascending = whole or self.on.merge_runs
        copies = set[int]()
        for expert, answers in answered.items():
            self.withdraw_prefetch(expert, answers)
            if "fetch" in answers:
                self.fetch(expert)
            if "stream" in answers and not ascending:
                self.stream(expert)
            copies |= {expert} if "stream" in answers else set()
            if "remote" in answers:
                self.visit.reads[expert] = Transfer(expert, self.transfer_row(expert, DEMAND, REMOTE))
        if whole:
            copies |= {expert for expert in self.experts_of(self.layer) if not self.has_copy_or_resides(expert)}
        if ascending:
            for expert in sorted(copies):
                self.stream(expert)

    def withdraw_prefetch(self, expert: int, answers: set[str]) -> None:
        """By any answer but fetch."""
        for transfer in self.prefetches_in_line():
            if transfer.expert == expert and "fetch" not in answers:
                self.withdraw(transfer)

    def fetch(self, expert: int) -> None:
        for queue in (self.prefetches, self.backgrounds, self.admissions):
            for transfer in [transfer for transfer in queue if transfer.expert == expert]:
                queue.remove(transfer)
                transfer.promote()
                self.demands.append(transfer)
        if not self.has_slot_or_will(expert):
            self.demands.append(Transfer(expert, self.transfer_row(expert, DEMAND)))

    def stream(self, expert: int) -> None:
        """A copy of it is a demand now, if it is not one already (left over from the layer's last visit)."""
        for copy in [copy for copy in self.streams if copy.expert == expert]:
            self.streams.remove(copy)
            copy.promote()
            copy.joined_for = (self.visit.number, False)
            self.demands.append(copy)
        if not any(transfer.goes_to_stage() and transfer.expert == expert for transfer in self.demands):
            row = self.transfer_row(expert, DEMAND, STAGE)
            self.demands.append(Transfer(expert, row, joined_for=(self.visit.number, False)))

    def queue_backgrounds(self, answered: dict[int, set[str]]) -> None:
        for expert, answers in answered.items():
            if self.param("background") and "substitute" in answers and not self.has_slot_or_will(expert):
                self.backgrounds.append(Transfer(expert, self.transfer_row(expert, BACKGROUND)))

    def count_uses(self, kinds: dict[int, str]) -> None:
        """Behind cpu-admit a wanted expert is used wherever it runs; from a slot, when it has run."""
        if self.admission.on and (self.on.bulk_touch or not self.visit.bulk):
            for expert in kinds:
                if self.visit.place.get(expert) != SLOT:
                    self.cache.use(expert)

    def queue_admissions(self, kinds: dict[int, str]) -> None:
        rule, joined = self.admission, 0
        rows = len(step_rows(self.plan, self.step))
        if takes_no_slot(self.plan, self.layer) or not rule.takes_candidates(self.visit.bulk, rows):
            return
        for expert, kind in kinds.items():
            if joined >= rule.limit("inserts") or len(self.admissions) >= rule.limit("queue"):
                return
            if kind == "misses" and not self.has_slot_or_will(expert) and rule.is_candidate(expert, self.free(expert)):
                self.admissions.append(Transfer(expert, self.transfer_row(expert, ADMISSION)))
                joined += 1

    def free(self, expert: int) -> int:
        """Slots of its scope that nobody has and that no queued admission may take."""
        scope = self.cache.scope(expert)
        queued = sum(self.cache.scope(transfer.expert) == scope for transfer in self.admissions)
        return self.cache.slots[scope] - self.cache.claimed[scope] - queued

    def join_ahead(self, visit: int) -> None:
        """What the layer of a coming visit lacks joins the stream queue, if that visit streams."""
        step, layer = divmod(visit, self.layers)
        if not self.on.ahead or visit >= self.visits or not streams(self.plan, step, layer):
            return
        self.joined_ahead.add(visit)
        for expert in self.experts_of(layer):
            if not self.is_here_or_coming(expert):
                row = self.transfer_row(expert, STREAM, STAGE)
                self.streams.append(Transfer(expert, row, joined_for=(visit, True)))

    def copies_of_visit(self) -> list[Transfer]:
        """Copies of its layer that are queued or under way, but for those that joined for a later visit and are still
        in the stream queue."""
        streams = [copy for copy in self.streams if copy.joined_for[0] <= self.visit.number]
        copies = [transfer for transfer in [*self.on_link(), *self.demands, *streams] if transfer.goes_to_stage()]
        return [copy for copy in copies if self.cache.layer(copy.expert) == self.layer]

    def queue_prefetches(self) -> None:
        prefetch, here = self.plan.prefetch, self.visit.number
        if prefetch is None:
            return
        left = prefetch.budget if prefetch.budget >= 0 else inf
        for distance in range(1, len(prefetch.row) + 1):
            step, layer = divmod(here + distance, self.layers)
            if step >= len(self.plan.step_prefill):
                return
            first_rank = merged_list(prefetch, distance, step_rows(self.plan, step), layer)
            listed = {layer * self.plan.n_experts + expert: rank for expert, rank in first_rank.items()}
            for expert, rank in listed.items():
                if left == 0:
                    return
                if self.is_here_or_coming(expert):
                    continue
                key = {"fifo": 0, "nearest-layer": here + distance}.get(ORDERS[prefetch.order])
                if key is None:
                    key = int(prefetch.rank_key[distance - 1, rank])
                row = self.transfer_row(expert, PREFETCH)
                self.prefetches.append(Transfer(expert, row, key, frozenset(listed)))
                left -= 1

    def experts_of(self, layer: int) -> range:
        return range(layer * self.plan.n_experts, (layer + 1) * self.plan.n_experts)

    def is_here_or_coming(self, expert: int) -> bool:
        return self.has_slot_or_will(expert) or self.has_copy_or_resides(expert)

    def has_slot_or_will(self, expert: int) -> bool:
        """Resident, or queued or committed for a slot."""
        waiting = [*self.demands, *self.prefetches, *self.admissions, *self.backgrounds]
        coming = {transfer.expert for transfer in [*self.on_link(), *waiting] if transfer.row["place"] == SLOT}
        return expert in self.cache.landed_at or expert in coming

    def has_copy_or_resides(self, expert: int) -> bool:
        """Resident, in a stage, committed for either, or queued for a stage: a whole layer's copies leave it out."""
        queued = {transfer.expert for transfer in [*self.demands, *self.streams] if transfer.goes_to_stage()}
        committed = {transfer.expert for transfer in self.on_link()}
        return expert in self.cache.landed_at or expert in self.stages.holding | queued | committed

    def transfer_row(self, expert: int, cause: int, place: int = SLOT) -> Row:
        row: Row = dict.fromkeys((COLUMNS["transfers"] + ON_MISS_COLUMNS["transfers"]).split(), -1)
        layer, within = divmod(self.cache.original(expert), self.plan.n_experts)
        low = self.plan.low if self.cache.is_copy(expert) else None
        row |= {"visit": self.visit.number, "layer": layer, "expert": within, "cause": cause, "place": place}
        row |= {"promoted": False, "low": low is not None, "bytes": low.bytes if low else self.plan.expert_bytes}
        row |= {"queued_ns": self.now, "event_queued": self.event()}
        self.record["transfers"].append(row)
        return row

    # The link

    def on_link(self) -> list[Transfer]:
        """Committed, if only in part, and not landed; each once."""
        sent = [transfer for shipment in self.link for transfer in shipment.transfers]
        return list(dict.fromkeys([*sent, *self.rests]))

    def prefetches_in_line(self) -> list[Transfer]:
        return sorted(self.prefetches, key=lambda transfer: transfer.key)

    def commit(self) -> bool:
        """Commits what the link, the slots and the stages allow; False when that is nothing."""
        something = False
        while self.commit_one():
            something = True
        return something

    def commit_one(self) -> bool:
        """Commits the first transfer or chunk in line, or rejects it; False when the link is full, idle or blocked.

        In line: the rest of what this visit waits for; demand; other rests; what else is queued. Nothing but a rest
        passes a demand that finds no room."""
        if len(self.link) >= self.plan.costs.commit_depth:
            return False
        rest = self.awaited_rest()
        if rest is None and not self.demands and not self.remotes_wait():
            rest = next(iter(self.rests), None)
        if rest is not None:
            self.send_chunk(rest)
            return True
        if self.commit_queued():
            return True
        if self.demands and self.rests and not self.remotes_wait():
            self.send_chunk(self.rests[0])
            return True
        return False

    def awaited_rest(self) -> Transfer | None:
        """The first rest that the visit being served waits for: of a late expert, or (serial) a copy of its layer."""
        visit = self.visit
        for transfer in self.rests:
            late = transfer.expert in visit.late and visit.place[transfer.expert] == transfer.row["place"]
            if (late and transfer.expert in visit.work) or transfer in visit.awaited:
                return transfer
        return None

    def is_cut(self, transfer: Transfer) -> bool:
        """What a demand may pass goes in chunks, but for copies that may share a transfer."""
        in_a_run = transfer.goes_to_stage() and self.on.merge_runs
        return self.chunks > 1 and transfer.row["cause"] != DEMAND and not in_a_run

    def send_chunk(self, transfer: Transfer) -> None:
        """Its next chunk is committed; the first one, whose slot or stage is claimed, with the transfer."""
        number = self.chunks - transfer.chunks_left
        transfer.chunks_left -= 1
        row: Row = dict.fromkeys(CHUNK_COLUMNS.split(), -1)
        row |= {"transfer": self.record["transfers"].index(transfer.row), "number": number, "committed_ns": self.now}
        shipment = Shipment([transfer], chunk=row)
        if number == 0:
            self.claim_for(shipment)
            self.rests.append(transfer)
        if transfer.chunks_left == 0:
            self.rests.remove(transfer)
        self.put_on_link(shipment)
        self.record["chunks"].append(row)
        if len(self.link) == 1:
            self.start_copying(shipment, self.plan.costs.commit_gap_ns, follows_on=False)

    def commit_queued(self) -> bool:
        """The same of the first in the queues."""
        queues = [self.demands, self.streams, self.prefetches, self.admissions, self.backgrounds]
        queue = next(filter(None, queues[:1] if self.remotes_wait() else queues), None)
        if queue is None:
            return False
        head = min(queue, key=lambda transfer: transfer.key)
        has_room = self.stages.free() > 0 if head.goes_to_stage() else self.find_slot(head)
        if has_room:
            if self.is_cut(head):
                queue.remove(head)
                head.chunks_left = self.chunks
                self.send_chunk(head)
                return True
            shipment = Shipment(self.run_from(queue) if head.goes_to_stage() else [head])
            for transfer in shipment.transfers:
                queue.remove(transfer)
            self.claim_for(shipment)
            self.put_on_link(shipment)
            if len(self.link) == 1:
                self.start_copying(shipment, self.plan.costs.commit_gap_ns, follows_on=False)
        elif queue is self.demands or queue is self.streams:
            return False
        else:
            queue.remove(head)
            self.close(head, REJECTED)
            self.totals["admission_rejected"] += head.row["cause"] == ADMISSION
        return True

    def run_from(self, queue: list[Transfer]) -> list[Transfer]:
        """The copy at the head of a queue, with merge_runs those of one visit and consecutive ids behind it."""
        run = queue[:1]
        for copy in queue[1:] if self.on.merge_runs else []:
            follows = (
                copy.goes_to_stage() and copy.expert == run[-1].expert + 1 and copy.row["layer"] == run[0].row["layer"]
            )
            if not follows or copy.joined_for != run[0].joined_for or self.stages.free() <= len(run):
                break
            run.append(copy)
        return run

    def find_slot(self, transfer: Transfer) -> bool:
        """Whether there is a free slot for it, somebody evicted if need be."""
        expert, cause = transfer.expert, transfer.row["cause"]
        scope = self.cache.scope(expert)
        if cause != DEMAND and takes_no_slot(self.plan, self.cache.layer(expert)):
            return False
        if self.cache.has_free_slot(scope):
            return True
        if cause == ADMISSION and not self.admission.may_replace(expert):
            return False
        kept = transfer.listed | self.visit.held()
        candidates = [other for other in self.cache.residents_of(scope) if other not in kept]
        if cause == ADMISSION:
            candidates = [other for other in candidates if self.may_go_for(expert, other)]
        if candidates:
            self.evict_for(transfer, candidates)
        return bool(candidates)

    def may_go_for(self, newcomer: int, resident: int) -> bool:
        """Whether a resident is a victim for an admission: neither spared nor worth too much."""
        if self.admission.spares(resident, self.cache.layer_routed[self.cache.layer(resident)]):
            return False
        if not self.admission.params["margin"]:
            return True
        return self.admission.params["margin"] * self.cache.worth(resident) < self.cache.worth(newcomer)

    def evict_for(self, transfer: Transfer, candidates: list[int]) -> None:
        victim = self.cache.victim(candidates)
        self.cache.evict(victim)
        self.brought.pop(victim, None)
        transfer.row["victim"] = victim
        self.totals["evictions"] += 1
        self.totals["admission_replaced"] += transfer.row["cause"] == ADMISSION

    def claim_for(self, shipment: Shipment) -> None:
        for transfer in shipment.transfers:
            if transfer.goes_to_stage():
                self.stages.claim()
            else:
                self.cache.claimed[self.cache.scope(transfer.expert)] += 1

    def put_on_link(self, shipment: Shipment) -> None:
        if shipment.is_first():
            for transfer in shipment.transfers:
                transfer.row |= {"committed_ns": self.now, "event_committed": self.event(), "run": self.shipped}
            self.shipped += 1
        if shipment.chunk is not None:
            own = shipment.transfers[0].row["event_committed"] if shipment.is_first() else self.event()
            shipment.chunk["event_committed"] = own
        self.link.append(shipment)

    def start(self, shipment: Shipment, gap_ns: int, lasts_ns: int) -> None:
        """It is under way from now on, for so long, the gap included."""
        for row in self.rows_that_start(shipment):
            row["started_ns"] = self.now + gap_ns
        shipment.land_ns = self.now + lasts_ns

    def rows_that_start(self, shipment: Shipment) -> list[Row]:
        own = [transfer.row for transfer in shipment.transfers] if shipment.is_first() else []
        return own + ([shipment.chunk] if shipment.chunk is not None else [])

    def start_copying(self, shipment: Shipment, gap_ns: int, follows_on: bool) -> None:
        low = self.plan.low if self.cache.is_copy(shipment.transfers[0].expert) else None
        lasts = low.transfer_ns if low else self.on.run_ns[:, len(shipment.transfers)]
        if shipment.chunk is not None:
            lasts = self.on.chunk_ns[:, 1 if shipment.is_last(self.chunks) else 0]
        self.start(shipment, gap_ns, self.slowed(gap_ns + int(lasts[1 if follows_on else 0]), self.now))

    def land(self) -> bool:
        if not self.link or self.link[0].land_ns != self.now:
            return False
        shipment = self.link.pop(0)
        self.was_busy(shipment)
        if shipment.is_last(self.chunks):
            self.totals["link_transfers"] += 1
            for transfer in shipment.transfers:
                transfer.row["landed_ns"] = self.now
                self.close(transfer, LANDED)
                self.totals[f"landed_{CAUSES[transfer.row['cause']]}"] += 1
                self.arrive(transfer)
        if shipment.chunk is not None:
            self.totals["chunks"] += 1
            event = shipment.transfers[0].row["event"] if shipment.is_last(self.chunks) else self.event()
            shipment.chunk |= {"landed_ns": self.now, "event": event}
        if self.link:
            self.start_copying(self.link[0], 0, follows_on=True)
        return True

    def arrive(self, transfer: Transfer) -> None:
        """Where it goes: into its slot, or its stage, or (remote) nowhere."""
        expert, place = transfer.expert, transfer.row["place"]
        if place == SLOT:
            self.cache.land(expert)
            self.admission.misses[expert] = 0
            self.totals["admitted"] += transfer.row["cause"] == ADMISSION
        if place == STAGE:
            self.totals["staged"] += 1
            self.stages.land(expert, self.has_owner(self.cache.layer(expert)))
        if transfer.row["cause"] == PREFETCH:
            self.brought[expert] = transfer
            self.prefetched.append(transfer)
        if expert in self.visit.work and self.visit.place[expert] == place:
            self.visit.ready.append(expert)

    def has_owner(self, layer: int) -> bool:
        """Whether a visit of the layer is being served, or was joined for ahead of it."""
        owners = self.joined_ahead | (set() if self.visit.ended else {self.visit.number})
        return any(visit % self.layers == layer for visit in owners)

    def was_busy(self, shipment: Shipment) -> None:
        """The link was, with this one, until now."""
        row = shipment.transfers[0].row
        started = self.rows_that_start(shipment)[0]["started_ns"]
        self.totals["link_busy_ns"] += self.now - started
        self.busy_ns[row["cause"]] += self.now - started

    # The end

    def finish(self) -> None:
        queued = [*self.demands, *self.streams, *self.prefetches_in_line(), *self.backgrounds, *self.admissions]
        committed = [transfer for transfer in self.on_link() if transfer not in self.rests]
        for transfer in [*committed, *self.rests, *queued]:
            self.close(transfer, UNFINISHED)
        for shipment in self.link:
            for row in self.rows_that_start(shipment):
                row["started_ns"] = -1 if row["started_ns"] > self.now else row["started_ns"]
            if self.rows_that_start(shipment)[0]["started_ns"] >= 0:
                self.was_busy(shipment)
        for transfer in self.prefetched:
            fate = "late" if transfer.was_late else "used" if transfer.was_hit else "wasted"
            self.totals[f"prefetched_{fate}"] += 1
        self.totals["time_ns"] = self.now


def plain(value: Any) -> int | bool:
    """The plan holds numpy's integers, the record Python's."""
    return value if isinstance(value, bool) else int(value)


def columns(rows: list[Row], names: Sequence[str]) -> dict[str, list[int | bool]]:
    return {name: [plain(row[name]) for row in rows] for name in names}


def simulate(plan: Plan) -> dict[str, Any]:
    """Runs the plan. Returns the record, group -> column -> list of Python ints and bools (in ns); under
    `totals` the figures over the whole run, among them `residents`: who is resident at the end (global ids),
    the least recently touched or landed first; `gates`: how many answers carry each gate code; floats
    `weight_wanted`, `weight_substituted`, `weight_dropped`, and lists of them by layer under `by_layer`. With
    `plan.on_miss` also the columns of ON_MISS_COLUMNS and the totals of `tests.reference_on_miss`, and
    `busy_ns_by_cause`: how long the link was busy, by the cause of the first expert of each transfer.

    Raises:
        RuntimeError: a demand can never get a slot (a scope without slots).
        ValueError: a policy that the reference does not spell, or that lacks what it needs.
    """
    machine = Machine(plan)
    machine.run()
    further = ON_MISS_COLUMNS if plan.on_miss is not None else {}
    names = {group: (names + further.get(group, "")).split() for group, names in COLUMNS.items()}
    names |= {"chunks": CHUNK_COLUMNS.split()} if machine.chunks > 1 else {}
    result: dict[str, Any] = {group: columns(machine.record[group], names[group]) for group in names}
    recency = machine.cache.seen_at
    left_out = ["chunks"] if machine.chunks == 1 else []
    left_out += [] if plan.on_miss is not None else reference_on_miss.TOTALS.split()
    totals: Row = {name: plain(value) for name, value in machine.totals.items() if name not in left_out}
    totals |= {name: sum(by_layer) for name, by_layer in machine.quality.items()}
    lists: Row = {"gates": machine.gates, "by_layer": machine.quality}
    if plan.on_miss is not None:
        lists["busy_ns_by_cause"] = machine.busy_ns
    result["totals"] = totals | lists | {"residents": sorted(recency, key=recency.__getitem__)}
    return result
