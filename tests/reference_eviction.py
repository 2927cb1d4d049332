"""The independent reference's evictions: one small class for each, and what there is to remember of a run.

Like the rest of the reference it shares nothing with the machines but the plan. Experts are global ids here. A policy
belongs to one scope. Most are a function of the past, which is kept whole; a few keep lists of their own: those are
ordered old end first, and `coming` holds who is on its way, by the list that it will enter when it lands.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from itertools import pairwise, takewhile
from math import inf, pow
from typing import Any, NamedTuple

from sim.core.plan import MARKS, Choice, Plan
from tests.reference_miss import hash64, logits_of, softmax


class Moment(NamedTuple):
    """When something happened: visits routed by then, a running number, and visits routed of the expert's layer."""

    visit: int
    number: int
    of_layer: int


class Past:
    """Who is resident and since when, and every use of every expert."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.layers = plan.experts.shape[1]
        self.slots = [int(n) for n in plan.slots]
        if plan.low is not None:  # copies: experts behind all others, in scopes behind all others
            self.slots += [int(n) for n in plan.low.slots]
        self.landed_at: dict[int, Moment] = {}  # of residents
        self.seen_at: dict[int, Moment] = {}  # of residents: the last touch or landing
        self.uses: dict[int, list[Moment]] = {}
        self.uses_before: dict[int, int] = {}  # how many it had when it last landed
        self.numbers = 0
        self.visits_routed = 0
        self.layer_routed = [0] * self.layers
        self.begun = 0  # the step of time 0, or of the last reset
        self.draws = 0

    def is_copy(self, expert: int) -> bool:
        return expert >= self.layers * self.plan.n_experts

    def original(self, expert: int) -> int:
        return expert % (self.layers * self.plan.n_experts)

    def within(self, expert: int) -> int:
        return expert % self.plan.n_experts

    def layer(self, expert: int) -> int:
        return self.original(expert) // self.plan.n_experts

    def scope(self, expert: int) -> int:
        among = 0 if self.plan.pooled else self.layer(expert)
        return among + (len(self.plan.slots) if self.is_copy(expert) else 0)

    def residents_of(self, scope: int) -> list[int]:
        return sorted(expert for expert in self.landed_at if self.scope(expert) == scope)

    def now(self, expert: int) -> Moment:
        """Later than whatever was before."""
        self.numbers += 1
        return Moment(self.visits_routed, self.numbers, self.layer_routed[self.layer(expert)])

    def uses_of(self, expert: int) -> list[Moment]:
        return self.uses.get(expert, [])

    def uses_since_landing(self, expert: int) -> list[Moment]:
        """The last landing, for whoever is away."""
        return self.uses_of(expert)[self.uses_before.get(expert, 0) :]

    # The visit being served is number visits_routed - 1, until the next is routed.

    @property
    def step(self) -> int:
        return self.step_of(self.visits_routed)

    def step_of(self, routed: int) -> int:
        """The step that was served when so many visits were routed; -1 before the first."""
        return (routed - 1) // self.layers

    def steps_away(self, expert: int) -> int:
        """Visits until the expert's layer comes again, 1 for the layer behind the one being served."""
        away = 1
        while (self.visits_routed - 1 + away) % self.layers != self.layer(expert):
            away += 1
        return away

    @cached_property
    def wanted_at(self) -> dict[int, list[int]]:
        return wanted_visits(self.plan)

    def next_wanted(self, expert: int) -> float:
        """The next visit, behind the one being served, in which the trace wants it."""
        visits = self.wanted_at.get(self.original(expert), [])
        place = bisect_left(visits, self.visits_routed)
        return visits[place] if place < len(visits) else inf

    def rows_of_last(self, visits: int, layer: int) -> Iterable[int]:
        """The trace tokens of the last so many visits of a layer."""
        routed = self.layer_routed[layer]
        for step in range(max(self.begun, routed - visits), routed):
            yield from step_rows(self.plan, step)


def step_rows(plan: Plan, step: int) -> list[int]:
    """The trace tokens of a step, in order."""
    return [int(row) for row in plan.step_row[plan.step_offset[step] : plan.step_offset[step + 1]]]


def wanted_of(plan: Plan, step: int, layer: int) -> list[int]:
    """Whom the trace wants in a visit, distinct, in order of first appearance."""
    named = [int(expert) for row in step_rows(plan, step) for expert in plan.experts[row, layer] if expert >= 0]
    return [layer * plan.n_experts + expert for expert in dict.fromkeys(named)]


def wanted_visits(plan: Plan) -> dict[int, list[int]]:
    """For each expert the visits, ascending, in which the trace wants it."""
    layers = plan.experts.shape[1]
    visits: dict[int, list[int]] = {}
    for step in range(len(plan.step_prefill)):
        for layer in range(layers):
            for expert in wanted_of(plan, step, layer):
                visits.setdefault(expert, []).append(step * layers + layer)
    return visits


def is_marked(plan: Plan, word: str) -> bool:
    """Whether the run's eviction has a mark of sim.core.plan.MARKS."""
    return word in MARKS and bool(plan.eviction.marks >> MARKS.index(word) & 1)


def bypasses(chosen: Choice) -> bool:
    """Whether it may refuse a newcomer a slot: a miss is then streamed, anything else rejected."""
    kappa = chosen.params[1] if chosen.name == "decayed" and len(chosen.params) > 1 else -1
    return chosen.name in ("min", "belady-w") or kappa >= 0


class Eviction:
    """Who goes, in one scope. It is told of everything in the order in which it happens."""

    defaults: tuple[float, ...] = ()  # of its parameters, those that a plan may leave out

    def __init__(self, past: Past, scope: int) -> None:
        self.past, self.plan = past, past.plan
        self.slots = past.slots[scope]
        given = [float(value) for value in past.plan.eviction.params]
        self.params = [*given, *self.defaults[len(given) :]]
        self.by_id = is_marked(past.plan, "by-id")
        self.bypasses = bypasses(past.plan.eviction)

    def routed(self, step: int, layer: int) -> None:
        """A visit of a layer of its scope."""

    def committed(self, newcomer: int) -> None:
        """It has a slot and is on its way; first residents, too. Behind `victim`, if anybody had to go."""

    def landed(self, expert: int) -> None: ...

    def used(self, expert: int, first: bool) -> None:
        """first: the visit being served brought it itself. Also of who is not resident (behind cpu-admit)."""

    def victim(self, newcomer: int, candidates: list[int], demanded: bool) -> int | None:
        """Who of the candidates (ascending, at least one) goes for a newcomer; None: nobody, it is not let in."""
        raise NotImplementedError

    def left_out(self, misses: Sequence[int], others: Sequence[int], free: int) -> set[int]:
        """Who of the misses that a visit would fetch (in order of first appearance) gets no slot. others: residents of
        the scope that it does not want; free: slots not spoken for. Asked only of one that bypasses."""
        raise NotImplementedError


class Scored(Eviction):
    """The least score goes; of equals the older touch, or by id the larger one."""

    def score(self, expert: int) -> Any:
        raise NotImplementedError

    def when(self, moment: Moment) -> int:
        """Where moments are compared: by id a visit is one instant."""
        return moment.visit if self.by_id else moment.number

    def order(self, expert: int) -> tuple[Any, int]:
        return self.score(expert), -expert if self.by_id else self.past.seen_at[expert].number

    def victim(self, newcomer: int, candidates: list[int], demanded: bool) -> int | None:
        goes = min(candidates, key=self.order)
        if self.bypasses and not demanded and self.score(newcomer) < self.score(goes):
            return None
        return goes

    def score_when_used(self, newcomer: int) -> Any:
        """What it would be after the use that the visit being served wants it for."""
        return self.score(newcomer)

    def is_better(self, newcomer: Any, lowest: Any) -> bool:
        """Whether a newcomer of that score is kept for a resident of that score."""
        return bool(newcomer >= lowest)

    def left_out(self, misses: Sequence[int], others: Sequence[int], free: int) -> set[int]:
        out, stay = set[int](), list(others)
        for expert in sorted(misses, key=self.score_when_used, reverse=True):  # of equals the first stays the first
            if free > 0:
                free -= 1
            elif stay and self.is_better(self.score_when_used(expert), min(map(self.score, stay))):
                stay.remove(min(stay, key=self.order))
            else:
                out.add(expert)
        return out


class Lru(Scored):
    def score(self, expert: int) -> int:
        return self.when(self.past.seen_at[expert])


class Fifo(Scored):
    def score(self, expert: int) -> int:
        return self.when(self.past.landed_at[expert])


class Random(Eviction):
    def victim(self, newcomer: int, candidates: list[int], demanded: bool) -> int:
        drawn = hash64(self.plan.seed, self.past.visits_routed, self.past.draws) % len(candidates)
        self.past.draws += 1
        return candidates[drawn]


class Static(Eviction):
    def victim(self, newcomer: int, candidates: list[int], demanded: bool) -> None:
        return None


class Lfu(Scored):
    """since: 0 the last landing, 1 the run's begin."""

    defaults = (1.0,)

    def score(self, expert: int) -> float:
        ever = self.params[0] != 0
        return len(self.past.uses_of(expert) if ever else self.past.uses_since_landing(expert))


class Lfru(Lfu):
    """Uses as lfu counts them, by how long ago the last one was."""

    defaults = (0.0,)

    def score(self, expert: int) -> float:
        return super().score(expert) / (self.age(expert) + 1)

    def age(self, expert: int) -> int:
        """Visits of the scope since its last use, or since the run's begin."""
        last = self.past.uses_of(expert)[-1:]
        if self.plan.pooled:
            return self.past.visits_routed - (last[0].visit if last else 0)
        return self.past.layer_routed[self.past.layer(expert)] - (last[0].of_layer if last else 0)


class LruK(Scored):
    """k, since: as lfu."""

    defaults = (2.0, 1.0)

    def score(self, expert: int) -> int:
        k, ever = int(self.params[0]), self.params[1] != 0
        uses = self.past.uses_of(expert) if ever else self.past.uses_since_landing(expert)
        return self.when(uses[-k]) if len(uses) >= k else -1


class Decayed(Scored):
    """decay; kappa, below 0: every newcomer is let in."""

    defaults = (0.9, -1.0)

    def score(self, expert: int) -> float:
        return faded(self.past, expert, self.params[0])

    def score_when_used(self, newcomer: int) -> float:
        return self.score(newcomer) + 1.0

    def is_better(self, newcomer: float, lowest: float) -> bool:
        return newcomer - lowest > self.params[1]


def faded(past: Past, expert: int, decay: float) -> float:
    """Its uses, each multiplied by `decay` for every visit of its layer since."""
    score, before = 0.0, 0
    for use in past.uses_of(expert):
        score = score * pow(decay, float(use.of_layer - before)) + 1.0
        before = use.of_layer
    return score * pow(decay, float(past.layer_routed[past.layer(expert)] - before))


class Belady(Scored):
    def score(self, expert: int) -> float:
        return -self.past.next_wanted(expert)


class Min(Belady):
    """Belady's, with bypass."""


class BeladyW(Scored):
    """w steps of foresight; beyond them a half life in visits of the layer, and whoever is known is better."""

    defaults = (4.0, 16.0)

    def score(self, expert: int) -> tuple[bool, float]:
        return self.known(expert) or (False, self.faded(expert))

    def score_when_used(self, newcomer: int) -> tuple[bool, float]:
        return self.known(newcomer) or (False, self.faded(newcomer) + 1.0)

    def known(self, expert: int) -> tuple[bool, float] | None:
        visit = self.past.next_wanted(expert)
        near = visit // self.past.layers - self.past.step <= self.params[0] if visit < inf else False
        return (True, -visit) if near else None

    def faded(self, expert: int) -> float:
        return faded(self.past, expert, pow(0.5, 1.0 / self.params[1]))


class LayerDistance(Scored):
    def score(self, expert: int) -> int:
        return -self.past.steps_away(expert)


class LeastStale(Scored):
    """Touched in the step being served or not, then the last use."""

    def score(self, expert: int) -> tuple[bool, int]:
        last = self.past.uses_of(expert)[-1:]
        touched = self.past.step_of(self.past.seen_at[expert].visit) == self.past.step
        return touched, last[0].number if last else -1


class ReuseInterval(Scored):
    """alpha: what the newest interval weighs. The furthest predicted next use goes."""

    defaults = (0.5,)

    def score(self, expert: int) -> float:
        return -self.distance(expert)

    def distance(self, expert: int) -> float:
        uses, mean = self.past.uses_of(expert), self.mean(expert)
        if mean is None:
            return inf
        age = self.past.visits_routed - uses[-1].visit
        return mean - age if mean >= age else age

    def mean(self, expert: int) -> float | None:
        mean, alpha = None, self.params[0]
        for before, use in pairwise(self.past.uses_of(expert)):
            interval = float(use.visit - before.visit)
            mean = interval if mean is None else alpha * interval + (1.0 - alpha) * mean
        return mean


class WindowScore(Scored):
    """In 2^-24ths, the router weight of the last `window` visits of its layer."""

    def score(self, expert: int) -> int:
        layer, within, total = self.past.layer(expert), self.past.within(expert), 0
        for row in self.past.rows_of_last(int(self.params[0]), layer):
            for slot, wanted in enumerate(self.plan.experts[row, layer]):
                if wanted == within and self.plan.weights is not None:
                    total += round(float(self.plan.weights[row, layer, slot]) * 2**24)
        return total


class ActivationMatrix(Scored):
    """Its share of its layer's tokens so far, of rows that have not left, early layers worth more."""

    def score(self, expert: int) -> float:
        layer, within = self.past.layer(expert), self.past.within(expert)
        leaving = self.plan.leaving
        assert leaving is not None
        begun, end = (leaving.offset[step] for step in (self.past.begun, self.past.step + 1))
        gone = Counter(int(row) for row in leaving.row[begun:end])
        own = everyone = 0
        for row in self.past.rows_of_last(self.past.layer_routed[layer], layer):
            if gone[row]:
                gone[row] -= 1
                continue
            own += sum(int(wanted) == within for wanted in self.plan.experts[row, layer])
            everyone += sum(int(wanted) >= 0 for wanted in self.plan.experts[row, layer])
        return ((own / everyone if everyone else 0.0) + 1e-6) * (1.0 - layer / self.past.layers)


class Mrs(Scored):
    """HybriMoE. alpha: what the newest visit weighs."""

    defaults = (0.3,)

    def __init__(self, past: Past, scope: int) -> None:
        super().__init__(past, scope)
        self.kept: dict[int, float] = {}  # of originals

    def score(self, expert: int) -> float:
        return self.kept.get(self.past.original(expert), 0.0)

    def routed(self, step: int, layer: int) -> None:
        alpha, n, rows = self.params[0], self.plan.n_experts, step_rows(self.plan, step)
        sums = [0.0] * n
        for row in rows:
            probability = softmax(logits_of(self.plan, row, layer))
            ranked = sorted(range(n), key=lambda expert: (-probability[expert], expert))
            for expert in ranked[: 2 * self.plan.experts.shape[2]]:
                sums[expert] += probability[expert]
        for within, total in enumerate(sums):
            expert = layer * n + within
            self.kept[expert] = alpha * (total / len(rows)) + (1.0 - alpha) * self.score(expert)


class HobbitPriority(Scored):
    """low: what a use of the low-precision copy weighs."""

    defaults = (0.25,)

    def score(self, expert: int) -> float:
        past, original = self.past, self.past.original(expert)
        full = self.uses_since_reset(original)
        low = self.uses_since_reset(original + past.layers * self.plan.n_experts)
        count = len(full) + self.params[0] * len(low)
        lately = any(use.of_layer >= self.last_pass(past.layer(expert)) for use in (*full, *low))
        return count / (past.step - self.last_reset + 1) + lately / (past.steps_away(expert) + 0.1)

    @property
    def last_reset(self) -> int:
        """The step, the first where there was none."""
        return max(self.past.begun, *(step for step in fresh_steps(self.plan) if step <= self.past.step), 0)

    def uses_since_reset(self, expert: int) -> list[Moment]:
        return [use for use in self.past.uses_of(expert) if use.visit > self.last_reset * self.past.layers]

    def last_pass(self, layer: int) -> int:
        """The number, among those of its layer, of the latest visit that is over."""
        is_served = (self.past.visits_routed - 1) % self.past.layers == layer
        return self.past.layer_routed[layer] - (1 if is_served else 0)


def fresh_steps(plan: Plan) -> list[int]:
    """First steps of requests that are admitted while no other is being served."""
    if len(plan.fresh):
        return [step for step, fresh in enumerate(plan.fresh) if fresh]
    decodes = [step for step, prefill in enumerate(plan.step_prefill) if not prefill]
    served: list[tuple[int, int]] = []  # first and last step of each
    for _, admitted, last_prefill, first_decode, generated in plan.requests.tolist():
        last = decodes[first_decode + generated - 1] if generated else last_prefill
        served.append((admitted, last if last >= 0 else len(plan.step_prefill)))  # the run ends before it does
    firsts = {first for first, _ in served}
    return sorted(step for step in firsts if not any(first < step <= last for first, last in served))


class WindowSwap(Eviction):
    """Every `window` visits of a layer the `swap` best outsiders replace the worst residents, if they are better."""

    defaults = (8.0, 2.0)

    def entries(self, expert: int) -> int:
        """(token, slot) pairs that wanted it in the last visits of its layer."""
        layer, within = self.past.layer(expert), self.past.within(expert)
        rows = self.past.rows_of_last(int(self.params[0]), layer)
        return sum(int(wanted) == within for row in rows for wanted in self.plan.experts[row, layer])

    def order(self, resident: int) -> tuple[int, int]:
        return self.entries(resident), self.past.seen_at[resident].number

    def victim(self, newcomer: int, candidates: list[int], demanded: bool) -> int | None:
        worst = min(candidates, key=self.order)
        return worst if self.entries(worst) < self.entries(newcomer) else None

    def outsiders_to_queue(
        self, layer: int, outsiders: Sequence[int], residents: Sequence[int], free: int
    ) -> list[int]:
        """Who of the outsiders joins at the end of a visit's decisions, best first. Free slots are filled first, by
        whoever was wanted at all."""
        window, swap = int(self.params[0]), int(self.params[1])
        if self.past.layer_routed[layer] % window or not self.slots:
            return []
        limits = [*[0] * free, *sorted(map(self.entries, residents))]
        best = sorted(outsiders, key=lambda expert: (-self.entries(expert), expert))[:swap]
        pairs = zip(best, limits, strict=False)
        return [expert for expert, _ in takewhile(lambda pair: self.entries(pair[0]) > pair[1], pairs)]


# Queues. A re-use is a use that is no first one.


def first_of(queue: Iterable[int], candidates: Sequence[int]) -> int | None:
    """The oldest evictable one."""
    return next((expert for expert in queue if expert in candidates), None)


def to_new_end(queue: list[int], expert: int) -> None:
    queue.remove(expert)
    queue.append(expert)


class Clock(Eviction):
    """In order of landings, at first; who was used again has a second chance."""

    def __init__(self, past: Past, scope: int) -> None:
        super().__init__(past, scope)
        self.queue: list[int] = []
        self.again: set[int] = set()  # whose bit is set

    def landed(self, expert: int) -> None:
        self.queue.append(expert)

    def used(self, expert: int, first: bool) -> None:
        if expert in self.queue and not first:
            self.again.add(expert)

    def victim(self, newcomer: int, candidates: list[int], demanded: bool) -> int:
        place = 0
        while True:
            expert = self.queue[place]
            if expert not in candidates:
                place = (place + 1) % len(self.queue)
            elif expert in self.again:
                self.again.remove(expert)
                to_new_end(self.queue, expert)
            else:
                self.queue.remove(expert)
                return expert


class Sieve(Clock):
    """The queue stays as it is, and a hand moves over it."""

    def __init__(self, past: Past, scope: int) -> None:
        super().__init__(past, scope)
        self.hand: int | None = None  # at whom it stands; None: it begins at the old end

    def victim(self, newcomer: int, candidates: list[int], demanded: bool) -> int:
        place = 0 if self.hand is None else self.queue.index(self.hand)
        while self.queue[place] not in candidates or self.queue[place] in self.again:
            self.again -= {self.queue[place]} & set(candidates)
            place = (place + 1) % len(self.queue)
        goes = self.queue.pop(place)
        self.hand = self.queue[place] if place < len(self.queue) else None
        return goes


class S3Fifo(Eviction):
    """small: what share of the slots is the small queue's."""

    defaults = (0.1,)

    def __init__(self, past: Past, scope: int) -> None:
        super().__init__(past, scope)
        self.small_target = max(1, int(self.params[0] * self.slots))
        self.small: list[int] = []
        self.main: list[int] = []
        self.ghosts: list[int] = []
        self.coming: dict[int, list[int]] = {}
        self.count: dict[int, int] = {}

    def committed(self, newcomer: int) -> None:
        self.coming.setdefault(newcomer, self.small)

    def landed(self, expert: int) -> None:
        self.coming.pop(expert).append(expert)
        self.count[expert] = 0

    def used(self, expert: int, first: bool) -> None:
        if expert in self.count and not first:
            self.count[expert] = min(3, self.count[expert] + 1)

    def victim(self, newcomer: int, candidates: list[int], demanded: bool) -> int:
        if newcomer in self.ghosts:
            self.ghosts.remove(newcomer)
            self.coming[newcomer] = self.main
        goes = None
        while goes is None:
            in_small, in_main = first_of(self.small, candidates), first_of(self.main, candidates)
            if in_small is not None and (self.small_is_full() or in_main is None):
                goes = self.leave_small(in_small)
            else:
                assert in_main is not None
                goes = self.leave_main(in_main)
        del self.count[goes]
        return goes

    def small_is_full(self) -> bool:
        coming = sum(queue is self.small for queue in self.coming.values())
        return len(self.small) + coming >= self.small_target

    def leave_small(self, expert: int) -> int | None:
        self.small.remove(expert)
        if self.count[expert] >= 2:
            self.count[expert] = 0
            self.main.append(expert)
            return None
        self.ghosts.append(expert)
        del self.ghosts[: max(0, len(self.ghosts) - (self.slots - self.small_target))]
        return expert

    def leave_main(self, expert: int) -> int | None:
        if self.count[expert] > 0:
            self.count[expert] -= 1
            to_new_end(self.main, expert)
            return None
        self.main.remove(expert)
        return expert


class Arc(Eviction):
    """Megiddo and Modha 2003, Fig. 4."""

    def __init__(self, past: Past, scope: int) -> None:
        super().__init__(past, scope)
        self.t1: list[int] = []
        self.t2: list[int] = []
        self.b1: list[int] = []
        self.b2: list[int] = []
        self.coming: dict[int, list[int]] = {}
        self.p = 0.0

    def size(self, queue: list[int]) -> int:
        return len(queue) + sum(entered is queue for entered in self.coming.values())

    def committed(self, newcomer: int) -> None:
        self.coming.setdefault(newcomer, self.t1)

    def landed(self, expert: int) -> None:
        self.coming.pop(expert).append(expert)

    def used(self, expert: int, first: bool) -> None:
        for queue in (self.t1, self.t2):
            if expert in queue:
                queue.remove(expert)
                (queue if first else self.t2).append(expert)
                return

    def victim(self, newcomer: int, candidates: list[int], demanded: bool) -> int:
        if newcomer in self.b1:
            self.p = min(float(self.slots), self.p + max(1.0, len(self.b2) / len(self.b1)))
        elif newcomer in self.b2:
            self.p = max(0.0, self.p - max(1.0, len(self.b1) / len(self.b2)))
        else:
            return self.victim_for_a_stranger(candidates)
        goes = self.replace(candidates, for_b2=newcomer in self.b2)
        (self.b1 if newcomer in self.b1 else self.b2).remove(newcomer)
        self.coming[newcomer] = self.t2
        return goes

    def victim_for_a_stranger(self, candidates: list[int]) -> int:
        oldest = first_of(self.t1, candidates)
        if self.size(self.t1) + len(self.b1) >= self.slots:
            if not self.b1 and oldest is not None:
                self.t1.remove(oldest)
                return oldest
            del self.b1[:1]
        elif sum(map(self.size, (self.t1, self.t2, self.b1, self.b2))) >= 2 * self.slots:
            del self.b2[:1]
        return self.replace(candidates)

    def replace(self, candidates: list[int], for_b2: bool = False) -> int:
        size = self.size(self.t1)
        from_t1 = size >= 1 and (size > self.p or (for_b2 and size == self.p))
        lists = [(self.t1, self.b1), (self.t2, self.b2)]
        for queue, ghosts in lists if from_t1 else lists[::-1]:
            goes = first_of(queue, candidates)
            if goes is not None:
                queue.remove(goes)
                ghosts.append(goes)
                return goes
        raise AssertionError("every resident stands in a list")


class WTinyLfu(Eviction):
    """window: what share of the slots is the window's; protected: what share of the others is protected."""

    defaults = (0.01, 0.8)

    def __init__(self, past: Past, scope: int) -> None:
        super().__init__(past, scope)
        self.most_in_window = max(1, int(self.params[0] * self.slots))
        self.most_protected = int(self.params[1] * (self.slots - self.most_in_window))
        self.window: list[int] = []
        self.probation: list[int] = []
        self.protected: list[int] = []
        self.coming: set[int] = set()
        self.frequency: dict[int, int] = {}
        self.counted = 0

    def committed(self, newcomer: int) -> None:
        self.coming.add(newcomer)

    def landed(self, expert: int) -> None:
        self.coming.remove(expert)
        self.window.append(expert)
        while len(self.window) > self.most_in_window:
            self.probation.append(self.window.pop(0))

    def used(self, expert: int, first: bool) -> None:
        self.count(expert)
        queue = next((q for q in (self.window, self.probation, self.protected) if expert in q), None)
        if queue is None:
            return
        queue.remove(expert)
        (self.protected if queue is self.probation and not first else queue).append(expert)
        while len(self.protected) > self.most_protected:
            self.probation.append(self.protected.pop(0))

    def count(self, expert: int) -> None:
        self.frequency[expert] = min(15, self.frequency.get(expert, 0) + 1)
        self.counted += 1
        if self.counted >= 10 * self.slots:
            self.frequency = {each: n // 2 for each, n in self.frequency.items()}
            self.counted = 10 * self.slots // 2

    def victim(self, newcomer: int, candidates: list[int], demanded: bool) -> int:
        ours = first_of(self.window, candidates)
        theirs = first_of([*self.probation, *self.protected], candidates)
        goes = theirs if ours is None else ours if theirs is None else self.loser(ours, theirs)
        assert goes is not None
        for queue in (self.window, self.probation, self.protected):
            queue[:] = [expert for expert in queue if expert != goes]
        return goes

    def loser(self, ours: int, theirs: int) -> int:
        if len(self.window) + len(self.coming) < self.most_in_window:
            return theirs
        if self.frequency.get(ours, 0) <= self.frequency.get(theirs, 0):
            return ours
        self.window.remove(ours)
        self.probation.append(ours)
        return theirs


EVICTIONS: Mapping[str, type[Eviction]] = {
    "lru": Lru,
    "fifo": Fifo,
    "random": Random,
    "static": Static,
    "lfu": Lfu,
    "lfru": Lfru,
    "lru-k": LruK,
    "decayed": Decayed,
    "belady": Belady,
    "min": Min,
    "belady-w": BeladyW,
    "layer-distance": LayerDistance,
    "least-stale": LeastStale,
    "reuse-interval": ReuseInterval,
    "window-score": WindowScore,
    "activation-matrix": ActivationMatrix,
    "mrs": Mrs,
    "hobbit-priority": HobbitPriority,
    "window-swap": WindowSwap,
    "sieve": Sieve,
    "clock": Clock,
    "s3-fifo": S3Fifo,
    "arc": Arc,
    "w-tinylfu": WTinyLfu,
}


def eviction_of(past: Past, scope: int) -> Eviction:
    """A scope's own. Raises ValueError for one that the reference does not spell."""
    name = past.plan.eviction.name
    if name not in EVICTIONS:
        raise ValueError(f"the reference knows no eviction {name}")
    return EVICTIONS[name](past, scope)
