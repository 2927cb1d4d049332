"""The independent reference: the simulated machine of the design, spelled as plainly as Python allows.

It shares nothing with the machines but the plan (`sim.core.plan`). The answers to missing experts are in
`tests.reference_miss`, re-ranking is in `tests.reference_rerank`. It is a discrete-event simulation over
dicts and lists. At one instant the first thing in this list that can happen does, and the list is then read
again from its top:

1. the transfer at the head of the link lands;
2. the GPU work that ends takes effect (a group; a step);
3. a visit is decided;
4. the free GPU takes its next group, or leaves a layer whose work is done;
5. transfers are committed (or prefetches rejected) as far as the link and the slots allow;
6. with `all`: a group of what is ready, as nothing more can land while it is held.

When nothing in it can happen the clock moves on to the next thing due.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import inf, pow
from typing import Any

from sim.core.plan import ANSWERS, CAUSES, GROUPS, ORDERS, OUTCOMES, SUBSTITUTE_PARAMS, Plan, Prefetch
from tests import reference_miss
from tests.reference_miss import GATES, Answer, Token, hash64
from tests.reference_rerank import Reranker

Row = dict[str, Any]
DEMAND, PREFETCH, BACKGROUND = (CAUSES.index(name) for name in ("demand", "prefetch", "background"))
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
    transfer order (lower first, then by joining) and `listed` the whole list that it came from."""

    expert: int
    row: Row
    key: int = 0
    listed: frozenset[int] = frozenset()
    land_ns: float = inf
    was_late: bool = False
    was_hit: bool = False


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

    def use(self, expert: int) -> None:
        """The end of one execution on the GPU: a touch and a use."""
        self.seen_at[expert] = self.numbers
        self.numbers += 1
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
    """The visit being served: who still has work on the GPU (in the order given), who of them is ready."""

    number: int
    row: Row
    work: dict[int, int] = field(default_factory=dict)  # expert -> tokens; gone once its group has ended
    stand_in_tokens: dict[int, int] = field(default_factory=dict)  # how many of them it serves as a stand-in
    ready: list[int] = field(default_factory=list)
    late: set[int] = field(default_factory=set)
    on_cpu: list[Row] = field(default_factory=list)
    cpu_end_ns: int = 0
    groups: int = 0


class Machine:
    """One run. `gpu` says what the GPU does until `gpu_ns`: dense (and the decision after it), group, tail
    (of a step), or nothing (it waits)."""

    def __init__(self, plan: Plan) -> None:
        self.plan, self.cache = plan, Cache(plan)
        self.layers = plan.experts.shape[1]
        self.copies = self.layers * plan.n_experts  # the number of the first low-precision copy
        self.now = self.events = 0
        self.record: dict[str, list[Row]] = {group: [] for group in COLUMNS}
        self.totals: Row = dict.fromkeys(TOTALS.split(), 0)
        self.quality = {name: [0.0] * plan.experts.shape[1] for name in QUALITY}  # by layer
        self.gates = [0] * len(GATES)  # answers by gate code
        self.reranker = Reranker(plan)
        self.demands: list[Transfer] = []
        self.prefetches: list[Transfer] = []
        self.backgrounds: list[Transfer] = []
        self.link: list[Transfer] = []  # committed, not yet landed
        self.brought: dict[int, Transfer] = {}  # resident -> the prefetch it came with
        self.prefetched: list[Transfer] = []  # every one that landed
        self.visit = Visit(-1, {})
        self.step, self.step_begin, self.layer = 0, 0, 0
        self.gpu, self.gpu_ns = "nothing", 0
        self.group: list[Row] = []

    # The clock

    def run(self) -> None:
        if len(self.plan.step_prefill) == 0:
            return
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
            or self.commit()
            or self.take_what_is_ready()
        )

    def wait(self) -> None:
        """Moves the clock to the next thing due, and says what the GPU spent the time on."""
        due = [self.link[0].land_ns] if self.link else []
        if self.gpu != "nothing":
            due.append(self.gpu_ns)
        if self.visit.cpu_end_ns > self.now:
            due.append(self.visit.cpu_end_ns)
        if not due:
            raise RuntimeError(f"visit {self.visit.number} waits at {self.now} ns for what can never come")
        passed = int(min(due)) - self.now
        if self.gpu == "nothing":
            cause = self.stall_cause() if self.visit.work else "cpu_wait_ns"
            self.visit.row[cause] += passed
            self.totals["stall_ns" if self.visit.work else "cpu_wait_ns"] += passed
        self.now += passed

    def stall_cause(self) -> str:
        on_link = {transfer.expert for transfer in self.link}
        if on_link & self.visit.late & set(self.visit.work):
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
            if row["tokens"] > row["stand_in_tokens"] or self.param("touch"):
                self.cache.use(expert)
            del self.visit.work[expert]

    def end_step(self) -> None:
        rows = len(step_rows(self.plan, self.step))
        prefill = bool(self.plan.step_prefill[self.step])
        times = {"begin_ns": self.step_begin, "end_ns": self.now}
        self.record["steps"].append({"event": self.event(), "prefill": prefill, "rows": rows, **times})
        self.step, self.step_begin, self.layer = self.step + 1, self.now, 0
        if self.step < len(self.plan.step_prefill):
            self.begin_dense()

    def leave_layer(self) -> bool:
        if self.gpu != "nothing" or self.visit.work or self.visit.cpu_end_ns > self.now:
            return False
        for row in self.visit.on_cpu:
            row["event"] = self.event()
            self.record["executions"].append(row)
        self.visit.row["end_ns"] = self.now
        self.layer += 1
        self.begin_dense() if self.layer < self.layers else self.begin_tail()
        return True

    def take_group(self) -> bool:
        """At `one` and `ready` whenever something is ready; at `all` when everything is."""
        ready = self.visit.ready
        if self.gpu != "nothing" or not ready:
            return False
        kind = GROUPS[self.plan.group]
        if kind == "all" and len(ready) < len(self.visit.work):
            return False
        self.start_group(ready[:1] if kind == "one" else list(ready))
        return True

    def take_what_is_ready(self) -> bool:
        """At `all`: nothing more can land while the rest is held."""
        if self.gpu != "nothing" or not self.visit.ready or not self.demands:
            return False
        scope, n = self.cache.scope(self.demands[0].expert), len(self.plan.slots)
        if self.cache.has_free_slot(scope) or any(self.cache.scope(t.expert) % n == scope % n for t in self.link):
            return False
        if not set(self.cache.residents_of(scope)) <= set(self.visit.work):
            return False
        self.start_group(list(self.visit.ready))
        return True

    def start_group(self, experts: list[int]) -> None:
        begin, self.group = self.now + self.plan.costs.group_ns, []
        for expert in experts:
            tokens = self.visit.work[expert]
            low = self.plan.low if self.cache.is_copy(expert) else None
            end = begin + int((low or self.plan.costs).expert_ns[tokens])
            self.group.append(self.execution(expert, tokens, begin, end, self.visit.groups))
            self.visit.ready.remove(expert)
            begin = end
        self.visit.groups += 1
        self.totals["experts_ns"] += begin - self.now
        self.gpu, self.gpu_ns = "group", begin

    def execution(self, expert: int, tokens: int, begin: int, end: int, group: int) -> Row:
        stand_in_tokens = self.visit.stand_in_tokens.get(expert, 0) if group >= 0 else 0
        who: Row = {"visit": self.visit.number, "expert": expert % self.plan.n_experts}
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
        answered = self.answer(tokens, kinds, Counter(experts))
        self.visit.ready = [expert for expert in self.visit.work if expert in self.cache.landed_at]
        self.queue_demands(answered, kinds)
        self.queue_backgrounds(answered)
        self.queue_prefetches()
        return True

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
        self.visit = Visit(self.step * self.layers + self.layer, row)

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
        on_link = {transfer.expert: transfer for transfer in self.link}
        kinds: dict[int, str] = {}
        for expert in dict.fromkeys(experts):
            if expert in self.cache.landed_at:
                kinds[expert] = "hits"
                if expert in self.brought:
                    self.brought[expert].was_hit = True
            elif expert in on_link:
                kinds[expert] = "late"
                on_link[expert].was_late = True
            else:
                kinds[expert] = "misses"
            self.visit.row[kinds[expert]] += 1
            self.visit.row["wanted"] += 1
        return kinds

    def answer(self, tokens: list[Token], kinds: dict[int, str], entries: dict[int, int]) -> dict[int, set[str]]:
        """Gives out the work of every (token, slot). Returns the answers to each expert asked about, in the
        order of their first answers."""
        answered: dict[int, set[str]] = {}
        cpu_tokens: dict[int, int] = {}
        asked = self.asked(kinds, entries)
        for token in tokens:
            answers = asked.answers(token)
            for slot, within in enumerate(token.ids):
                if within < 0:
                    continue
                expert, answer = self.global_id(within), answers.get(slot)
                if answer:
                    self.note(token.row, slot, within, answer)
                    answered.setdefault(expert, set()).add(answer.answer)
                    if answer.answer == "low":  # what is fetched is the copy
                        answered.setdefault(self.copies + expert, set()).add("fetch")
                self.give_work(expert, kinds[expert], answer, cpu_tokens)
                self.count(kinds[expert], answer.answer if answer else "", token.weights[slot])
        self.start_cpu(cpu_tokens)
        return answered

    def asked(self, kinds: dict[int, str], entries: dict[int, int]) -> reference_miss.Visit:
        """The visit as the miss policies see it."""
        n = self.plan.n_experts
        return reference_miss.Visit(
            plan=self.plan,
            layer=self.layer,
            prefill=bool(self.plan.step_prefill[self.step]),
            classes={name: [e % n for e, k in kinds.items() if k == name] for name in ("hits", "late", "misses")},
            entries={expert % n: count for expert, count in entries.items()},
            resident=self.residents_here(),
            routed=self.cache.visits_routed,
            busy=bool(self.link),
        )

    def give_work(self, expert: int, kind: str, answer: Answer | None, cpu_tokens: dict[int, int]) -> None:
        if answer is None or answer.answer == "fetch":
            self.visit.work[expert] = self.visit.work.get(expert, 0) + 1
            if kind == "late":
                self.visit.late.add(expert)
        elif answer.answer == "substitute":
            stand_in, served = self.global_id(answer.stand_in), self.visit.stand_in_tokens
            self.visit.work[stand_in] = self.visit.work.get(stand_in, 0) + 1
            served[stand_in] = served.get(stand_in, 0) + 1
        elif answer.answer == "low":
            copy = self.copies + expert
            self.visit.work[copy] = self.visit.work.get(copy, 0) + 1
        elif answer.answer == "cpu":
            cpu_tokens[expert] = cpu_tokens.get(expert, 0) + 1

    def count(self, kind: str, answer: str, weight: float) -> None:
        self.totals["slots_wanted"] += 1
        executed = {"hits": "slots_hit", "late": "slots_late", "misses": "fetched"}[kind]
        self.totals[executed if answer in ("", "fetch") else COUNTED_AS[answer]] += 1
        self.quality["weight_wanted"][self.layer] += weight
        if answer in ("substitute", "drop"):
            self.quality[f"weight_{COUNTED_AS[answer]}"][self.layer] += weight

    def note(self, row: int, slot: int, wanted: int, answer: Answer) -> None:
        where = {"event": self.event(), "visit": self.visit.number, "row": row, "slot": slot}
        what = {"wanted": wanted, "answer": ANSWERS.index(answer.answer)}
        self.record["answers"].append(where | what | {"stand_in": answer.stand_in, "gate": answer.gate})
        self.gates[answer.gate] += 1

    def start_cpu(self, cpu_tokens: dict[int, int]) -> None:
        begin = self.now
        for expert, tokens in cpu_tokens.items():
            end = begin + int(self.plan.costs.cpu_expert_ns[1 if self.link else 0, tokens])
            self.visit.on_cpu.append(self.execution(expert, tokens, begin, end, -1))
            begin = end
        self.visit.cpu_end_ns = begin

    def queue_demands(self, answered: dict[int, set[str]], kinds: dict[int, str]) -> None:
        for expert, answers in answered.items():
            if kinds.get(expert) == "late":
                continue  # it comes anyway
            for queue in (self.prefetches, self.backgrounds):
                queued = [transfer for transfer in queue if transfer.expert == expert]
                if queued and "fetch" in answers:
                    queue.remove(queued[0])
                    queued[0].row |= {"cause": DEMAND, "promoted": True}
                    self.demands.append(queued[0])
                elif queued and queue is self.prefetches:
                    self.withdraw(queued[0])
            if "fetch" in answers and not self.is_here_or_coming(expert):
                self.demands.append(Transfer(expert, self.transfer_row(expert, DEMAND)))

    def queue_backgrounds(self, answered: dict[int, set[str]]) -> None:
        for expert, answers in answered.items():
            if self.param("background") and "substitute" in answers and not self.is_here_or_coming(expert):
                self.backgrounds.append(Transfer(expert, self.transfer_row(expert, BACKGROUND)))

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

    def is_here_or_coming(self, expert: int) -> bool:
        coming = [*self.link, *self.demands, *self.prefetches, *self.backgrounds]
        return expert in self.cache.landed_at or any(transfer.expert == expert for transfer in coming)

    def transfer_row(self, expert: int, cause: int) -> Row:
        row: Row = dict.fromkeys(COLUMNS["transfers"].split(), -1)
        layer, within = divmod(self.cache.original(expert), self.plan.n_experts)
        low = self.plan.low if self.cache.is_copy(expert) else None
        row |= {"visit": self.visit.number, "layer": layer, "expert": within, "cause": cause}
        row |= {"promoted": False, "low": low is not None, "bytes": low.bytes if low else self.plan.expert_bytes}
        row |= {"queued_ns": self.now, "event_queued": self.event()}
        self.record["transfers"].append(row)
        return row

    # The link

    def prefetches_in_line(self) -> list[Transfer]:
        return sorted(self.prefetches, key=lambda transfer: transfer.key)

    def commit(self) -> bool:
        """Commits what the link and the slots allow; False when that is nothing."""
        something = False
        while self.commit_one():
            something = True
        return something

    def commit_one(self) -> bool:
        """Commits the first transfer in line, or rejects it; False when the link is full, idle or blocked."""
        line = [*self.demands, *self.prefetches_in_line(), *self.backgrounds]
        if len(self.link) >= self.plan.costs.commit_depth or not line:
            return False
        transfer, spared = line[0], line[0].listed
        queue = self.demands or self.prefetches or self.backgrounds
        if queue is self.demands:
            spared = frozenset()  # of a promoted prefetch the list no longer counts
        scope = self.cache.scope(transfer.expert)
        if not self.cache.has_free_slot(scope):
            kept = spared | set(self.visit.work)
            candidates = [expert for expert in self.cache.residents_of(scope) if expert not in kept]
            if candidates:
                self.evict_for(transfer, candidates)
            elif queue is self.demands:
                return False
        queue.remove(transfer)
        if self.cache.has_free_slot(scope):
            self.put_on_link(transfer, scope)
        else:
            self.close(transfer, REJECTED)
        return True

    def evict_for(self, transfer: Transfer, candidates: list[int]) -> None:
        victim = self.cache.victim(candidates)
        self.cache.evict(victim)
        self.brought.pop(victim, None)
        transfer.row["victim"] = victim
        self.totals["evictions"] += 1

    def put_on_link(self, transfer: Transfer, scope: int) -> None:
        self.cache.claimed[scope] += 1
        transfer.row["committed_ns"], transfer.row["event_committed"] = self.now, self.event()
        if not self.link:
            self.start(transfer, self.now + self.plan.costs.commit_gap_ns, follows_on=False)
        self.link.append(transfer)

    def start(self, transfer: Transfer, at: int, follows_on: bool) -> None:
        transfer.row["started_ns"] = at
        low = self.plan.low if self.cache.is_copy(transfer.expert) else None
        transfer.land_ns = at + int((low or self.plan.costs).transfer_ns[1 if follows_on else 0])

    def land(self) -> bool:
        if not self.link or self.link[0].land_ns != self.now:
            return False
        transfer = self.link.pop(0)
        transfer.row["landed_ns"] = self.now
        self.close(transfer, LANDED)
        self.totals["link_busy_ns"] += self.now - transfer.row["started_ns"]
        self.cache.land(transfer.expert)
        if transfer.row["cause"] == PREFETCH:
            self.brought[transfer.expert] = transfer
            self.prefetched.append(transfer)
        if transfer.expert in self.visit.work:
            self.visit.ready.append(transfer.expert)
        if self.link:
            self.start(self.link[0], self.now, follows_on=True)
        return True

    # The end

    def finish(self) -> None:
        for transfer in [*self.link, *self.demands, *self.prefetches_in_line(), *self.backgrounds]:
            self.close(transfer, UNFINISHED)
            if transfer.row["started_ns"] > self.now:
                transfer.row["started_ns"] = -1
            elif transfer.row["started_ns"] >= 0:
                self.totals["link_busy_ns"] += self.now - transfer.row["started_ns"]
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
    `weight_wanted`, `weight_substituted`, `weight_dropped`, and lists of them by layer under `by_layer`.

    Raises:
        RuntimeError: a demand can never get a slot (a scope without slots).
        ValueError: a policy that the reference does not spell, or that lacks what it needs.
    """
    machine = Machine(plan)
    machine.run()
    result: dict[str, Any] = {group: columns(machine.record[group], names.split()) for group, names in COLUMNS.items()}
    recency = machine.cache.seen_at
    totals: Row = {name: plain(value) for name, value in machine.totals.items()}
    totals |= {name: sum(by_layer) for name, by_layer in machine.quality.items()}
    lists = {"gates": machine.gates, "by_layer": machine.quality}
    result["totals"] = totals | lists | {"residents": sorted(recency, key=recency.__getitem__)}
    return result
