"""Visits served one after another by the reference's cache alone: no clock, no link.

What a visit misses lands before anything of it runs, then hits run, then misses: as on a machine whose transfers are
short and whose experts take long (`timeless`), which therefore evicts the same.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from sim.core.plan import FORGETS_ROWS, MARKS, Choice, OnMiss, Plan
from sim.policies.registry import EVICTION
from tests.plans import leaving_within
from tests.plans import plan as plan_with
from tests.reference import Cache
from tests.reference_eviction import WindowSwap, bypasses, fresh_steps, is_marked, wanted_of
from tests.reference_on_miss import takes_no_slot

timeless = {"transfer": 1, "expert": 100, "dense": 10}
WORDS = MARKS
COUNTED = {"by-id": ("ties", 1.0), "listed": ("touches", 1.0), "one-by-one": ("atomic", 0.0)}  # marks, as parameters


def eviction(name: str, params: Sequence[float] = (), marks: Sequence[str] = ()) -> Choice:
    """A policy with parameters in declared order, counted as `marks` say, with the marks that all of this adds."""
    policy = EVICTION[name]
    given = dict(zip(policy.params, params, strict=False)) | {COUNTED[mark][0]: COUNTED[mark][1] for mark in marks}
    added = () if policy.adds is None else policy.adds(given)
    bits = sum(1 << WORDS.index(mark) for mark in {*added, *marks, *policy.keeps})
    return replace(policy.choice({}), params=np.array(params, np.float64), marks=bits)


def plan_of(
    visits: Sequence[Sequence[int]], slots: int, chosen: Choice, n_experts: int, layers: int = 1, **rest: Any
) -> Plan:
    """Each visit's experts, numbered within its layer; one token a step. Slots of each layer, or of the pool."""
    width = max(map(len, visits))
    wanted = np.array([[*visit, *[-1] * (width - len(visit))] for visit in visits]).reshape(-1, layers, width)
    scopes = [slots] if rest.get("pooled") else [slots] * layers
    on_miss = OnMiss(np.arange(n_experts + 1) * np.ones((2, 1), np.int64), np.zeros(len(wanted), np.bool_))
    streams = bypasses(chosen) or chosen.name in ("static", "window-swap")
    rest.setdefault("on_miss", on_miss if streams else None)
    made = plan_with(wanted, n_experts, scopes, residents=rest.pop("residents", ()), **timeless, **rest)
    made = replace(made, eviction=chosen)
    looks_back = leaving_within(made, int(chosen.params[0])) if chosen.marks & FORGETS_ROWS else None
    return replace(made, leaving=looks_back, fresh=np.isin(np.arange(len(made.step_prefill)), fresh_steps(made)))


@dataclass
class Served:
    """What came of it: for each miss its visit, and global ids in the order in which they went."""

    missed: list[int] = field(default_factory=list)
    victims: list[int] = field(default_factory=list)


def serve(plan: Plan, cache: Cache | None = None) -> Served:
    """All visits of a plan."""
    cache, served = cache or Cache(plan), Served()
    for visit in range(len(plan.step_prefill) * cache.layers):
        step, layer = divmod(visit, cache.layers)
        wanted = wanted_of(plan, step, layer)
        cache.routed(step, layer)
        for experts in [[expert] for expert in wanted] if is_marked(plan, "one-by-one") else [wanted]:
            _serve_at_once(cache, layer, experts, served)
        if is_marked(plan, "listed"):
            _touch_again(cache, wanted)
    return served


def _serve_at_once(cache: Cache, layer: int, experts: list[int], served: Served) -> None:
    hits = [expert for expert in experts if expert in cache.landed_at]
    misses = [expert for expert in experts if expert not in hits]
    out = set(misses) if takes_no_slot(cache.plan, layer) else cache.left_out(misses, set(experts))
    kept = [expert for expert in misses if expert not in out]
    served.missed += [cache.visits_routed - 1] * len(misses)
    for expert in kept:
        _bring(cache, expert, set(experts), True, served)
    for expert in _swapped(cache, layer):
        _bring(cache, expert, set(experts), False, served)
    for expert in [*hits, *kept]:
        cache.touch(expert)
        cache.use(expert, first=expert in kept)


def _touch_again(cache: Cache, wanted: list[int]) -> None:
    for expert in wanted:
        if expert in cache.landed_at:
            cache.touch(expert)


def _swapped(cache: Cache, layer: int) -> list[int]:
    ours, n = cache.evictions[0 if cache.plan.pooled else layer], cache.plan.n_experts
    if not isinstance(ours, WindowSwap):
        return []
    residents = cache.residents_of(layer)
    outsiders = [expert for expert in range(layer * n, (layer + 1) * n) if expert not in residents]
    return ours.outsiders_to_queue(layer, outsiders, residents, cache.slots[layer] - cache.claimed[layer])


def _bring(cache: Cache, expert: int, held: set[int], demanded: bool, served: Served) -> None:
    scope = cache.scope(expert)
    if not cache.has_free_slot(scope):
        candidates = [other for other in cache.residents_of(scope) if other not in held]
        goes = cache.victim(expert, candidates, demanded)
        if goes is None:
            return
        cache.evict(goes)
        served.victims.append(goes)
    cache.claim(expert)
    cache.land(expert)
