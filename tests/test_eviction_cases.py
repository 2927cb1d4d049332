"""Evictions worked by hand: small strings of visits, and who goes at each.

A case is data. It runs through the reference's cache alone (tests.accesses), through the whole reference, and through
every machine whose registry has the policy with these parameters. In the comments v3 is the third visit; lists stand
old end first. What holds for all: a visit's misses land before anything of it runs, hits run before misses.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pytest

from sim.core.plan import ADMIT_PARAMS, MARKS, Choice, Low, OnMiss, Plan
from sim.policies.registry import EVICTION, MISS
from tests import groups, laws, laws_on_miss, reference_eviction
from tests.accesses import WORDS, eviction, plan_of, serve
from tests.groups import lines, run_groups
from tests.on_miss_plans import plan_of as on_miss_plan
from tests.plans import random_plan
from tests.reference import BACKGROUND, DEMAND, LANDED, REJECTED, SLOT, STAGE, Cache, simulate
from tests.reference_eviction import bypasses, fresh_steps
from tests.test_looking_back_and_low import hobbit
from tests.test_reference import make, predicted, top1


class Case(NamedTuple):
    """One string. params: in declared order; marks: what its settings add; visits: the experts of each, numbered within
    its layer (layers take turns; a bare number is one expert); victims: global ids, in order."""

    name: str
    params: tuple[float, ...]
    slots: int
    visits: Sequence[int | tuple[int, ...]]
    victims: Sequence[int]
    misses: int
    marks: tuple[str, ...] = ()
    residents: tuple[int, ...] = ()
    more: dict[str, Any] = {}  # noqa: RUF012 - of the plan; nobody changes it

    @property
    def plan(self) -> Plan:
        visits = [visit if isinstance(visit, tuple) else (visit,) for visit in self.visits]
        chosen = eviction(self.name, self.params, self.marks)
        given: dict[str, Any] = {"n_experts": 1 + max(max(visit) for visit in visits), **self.more}
        return plan_of(visits, self.slots, chosen, residents=self.residents, **given)


BY_ID, LISTED, ONE_BY_ONE = ("by-id",), ("listed",), ("one-by-one",)
LANDING, EVER = 0.0, 1.0
SAME_VISIT = ((0, 1), (2, 0), (1, 2), 0, 1, (2, 1))
ROUTER_ORDER = ((3, 0), 4, 5, 0, 3, 0)


def routed_to(*hot: tuple[int, ...]) -> np.ndarray:
    """Logits of four experts whose softmax is shared by these, nothing for the others."""
    logits = np.full((len(hot), 1, 4), -100, np.float16)
    for row, experts in enumerate(hot):
        logits[row, 0, list(experts)] = 0
    return logits


CASES = {
    # {0,1}; v3 touches 0, so v4 takes 1; v5 takes 0 (v3) before 2 (v4).
    "lru": Case("lru", (), 2, [0, 1, 0, 2, 1], [1, 0], 4),
    # v1 takes 1, for 0 is held; 0 runs, then 3, so 2 0 3. v2 takes 2, v3 0, v4 3 (for 0), v5 4 (for 3); v6 hits.
    "lru run": Case("lru", (), 3, ROUTER_ORDER, [1, 2, 0, 3, 4], 5, residents=(0, 1, 2)),
    # v1 takes 1; the router named 3 before 0, so 2 3 0. v2 takes 2, v3 3; v4 hits: 4 5 0; v5 takes 4; v6 hits.
    "lru listed": Case("lru", (), 3, ROUTER_ORDER, [1, 2, 3, 4], 4, LISTED, (0, 1, 2)),
    # v3 takes 0, touched before 1 in v1: 1 2 3. v4 takes 1, v5 2, v6 3.
    "lru older": Case("lru", (), 3, [(0, 1), 2, 3, 0, 1, 2], [0, 1, 2, 3], 7),
    # v1 is one instant: the larger, 1, goes at v3. v4 hits 0: 2@2 3@3 0@4. v5 takes 2, v6 3.
    "lru by id": Case("lru", (), 3, [(0, 1), 2, 3, 0, 1, 2], [1, 2, 3], 6, BY_ID),
    # v2: 1, for 0 is held; 0 runs, then 2. v3: 0, for 2 is held; 2 1. v4: 2; 1 0. v5 hits: 0 1. v6: 0, for 1 is held.
    "lru atomic": Case("lru", (), 2, SAME_VISIT, [1, 0, 2, 0], 6),
    # v2: 2 takes 0, which the visit wants: 1 2; 0 takes 1: 2 0. v3: 1 takes 2, which it wants: 0 1; 2 takes 0: 1 2. v4
    # takes 1: 2 0. v5 takes 2: 0 1. v6: 2 takes 0, 1 hits.
    "lru one by one": Case("lru", (), 2, SAME_VISIT, [0, 1, 2, 0, 1, 2, 0], 9, ONE_BY_ONE),
    # v2 takes 0, v3 1 (for 0), v4 2 (for 1), v5 0 (for 2), v6 1 (for 0).
    "fifo older": Case("fifo", (), 2, [(0, 1), 2, 0, 1, 2, 0], [0, 1, 2, 0, 1], 7),
    # 0 and 1 landed in one visit: v2 takes 1. v3 hits. v4 takes 0 (landed v1; 2: v2). v5 hits. v6 takes 2.
    "fifo by id": Case("fifo", (), 2, [(0, 1), 2, 0, 1, 2, 0], [1, 0, 2], 5, BY_ID),
    # v3: one use each, 0 is older. v4 hits 1. v5: 1 has two, 2 one: 2 goes. v6: 1 and 0 have two, 1 is older.
    "lfu older": Case("lfu", (EVER,), 2, [0, 1, 2, 1, 0, 2], [0, 2, 1], 5),
    # v3: of equals 1 goes. v4: 0 and 2 have one: 2 goes. v5 hits. v6: 0 and 1 have two: 1 goes.
    "lfu by id": Case("lfu", (EVER,), 2, [0, 1, 2, 1, 0, 2], [1, 2, 1], 5, BY_ID),
    # v4: 0 has two, 1 one. v5 hits 2. v6: both have two, 0 is older; 1 lands and is used: its second, counted for ever.
    # v7: 2 and 1 have two, 2 is older.
    "lfu ever": Case("lfu", (EVER,), 2, [0, 0, 1, 2, 2, 1, 0], [1, 0, 2], 5),
    # v7: 1 has one since it landed again.
    "lfu landing": Case("lfu", (LANDING,), 2, [0, 0, 1, 2, 2, 1, 0], [1, 0, 1], 5),
    # f / (age + 1). v5: 0 3/3, 1 1/2: 1. v6: 0 3/4, 2 1/2: 2. v7: 0 3/5, 3 1/2: 3. v8: 0 3/6, 4 1/2: equal, 0 is older.
    # v9: 4 1/3, 5 1/2: 4; 0 is back with f = 1. v10: 5 1/3, 0 1/2: 5. v11: 0 1/3, 6 1/2: 0.
    "lfru landing": Case("lfru", (LANDING,), 2, [0, 0, 0, 1, 2, 3, 4, 5, 0, 6, 7], [1, 2, 3, 0, 4, 5, 0], 9),
    # At v9 0 is back with f = 4. v10: 5 1/3, 0 4/2: 5. v11: 0 4/3, 6 1/2: 6.
    "lfru ever": Case("lfru", (EVER,), 2, [0, 0, 0, 1, 2, 3, 4, 5, 0, 6, 7], [1, 2, 3, 0, 4, 5, 6], 9),
    # v5: 0 2/4 and 1 1/2 are equal: by age 0 goes, by id 1.
    "lfru older": Case("lfru", (LANDING,), 2, [0, 0, 2, 1, 3], [2, 0], 4),
    "lfru by id": Case("lfru", (LANDING,), 2, [0, 0, 2, 1, 3], [2, 1], 4, BY_ID),
    # v4: 1 has one use, 0 two: 1. v5: 2 has one: 2. v6: 3 has one: 3; 2 has v4 and v6. v7: last but one: 0 v1, 2 v4: 0;
    # 3 has v5 and v7. v8: 2 v4, 3 v5: 2.
    "lru-k ever": Case("lru-k", (2, EVER), 2, [0, 1, 0, 2, 3, 2, 3, 0], [1, 2, 3, 0, 2], 7),
    # v6: 2 has one since it landed, and goes at v7. v8 hits 0.
    "lru-k landing": Case("lru-k", (2, LANDING), 2, [0, 1, 0, 2, 3, 2, 3, 0], [1, 2, 3, 2], 6),
    # Both have fewer than three: 1, touched at v2, before 0, touched at v3.
    "lru-k few": Case("lru-k", (3, EVER), 2, [0, 1, 0, 2], [1], 3),
    # v3: last but one 0, then 1, both in v1: 0. v4: 2 has one: 2. v5 hits. v6: last but one 0, then 1, in v2: 0.
    "lru-k older": Case("lru-k", (2, EVER), 2, [(0, 1), (0, 1), 2, 0, 1, 2], [0, 2, 0], 5),
    # v3: equal: 1. v4 hits. v5: 2 has one: 2. v6: 0 and 1 in v2: 1.
    "lru-k by id": Case("lru-k", (2, EVER), 2, [(0, 1), (0, 1), 2, 0, 1, 2], [1, 2, 1], 5, BY_ID),
    # The hand | stands before the next. v4 sets 0. v5: |0* 1 2: 0 is cleared, 1 goes: 0 |2 3. v6: 2: 0 |3 4. v7, v8 set
    # 3 and 4. v9: both are cleared, around to 0, which goes: |3 4 5. v10: 3: |4 5 6. v11, v12 set 4 and 5. v13: both
    # are cleared, 6 goes: 4 5 7 with the hand beyond 6's end. v14 begins at the old end, not at 7: 4.
    "sieve": Case("sieve", (), 3, [0, 1, 2, 0, 3, 4, 3, 4, 5, 6, 4, 5, 7, 8], [1, 2, 0, 3, 6, 4], 9),
    # v2: 0 is held and passed over, 1 goes; 0 is used again. v3: 0* is cleared, 2 goes.
    "sieve atomic": Case("sieve", (), 2, [(0, 1), (2, 0), 3], [1, 2], 4),
    # v2: 2 takes 0: |1 2; 0 takes 1: |2 0, both first uses. v3: 2.
    "sieve one by one": Case("sieve", (), 2, [(0, 1), (2, 0), 3], [0, 1, 2], 5, ONE_BY_ONE),
    # v5: 0* goes to the new end: 1 2 0; 1: 2 0 3. v6: 2: 0 3 4. v7 to v9 set all. v10: each to the new end in turn,
    # then 0 again, now clear: 3 4 5. v11 sets 3. v12: 4 5 3; 4: 5 3 6. v13: 5 is held and stays where it is, 3 goes: 5
    # 6 7; 5 was used again. v14: 6 7 5; 6.
    "clock": Case("clock", (), 3, [0, 1, 2, 0, 3, 4, 0, 3, 4, 5, 3, 6, (5, 7), 8], [1, 2, 0, 4, 3, 6], 9),
    # One slot is small's, three ghosts. small 0 1 2 3. v5: 0 goes, a ghost. v6: 0 was one: 1 goes, 0 lands in main. v7,
    # v8: 2 counts two. v9: 2 to main with 0, 3 goes: main 0 2, ghosts 1 3. v10: 4, v11: 5: ghosts 1 3 4 5 but for 1,
    # forgotten. v12: so 1 lands in small; 6 goes: ghosts 4 5 6, small 7 1. v13: ghost 4 to main; 7: ghosts 5 6 7. v14:
    # ghost 5 to main; 1: ghosts 6 7 1, main 0 2 4 5, small empty. v15: 0 counts one. v16: small is below its slot: 0 to
    # the new end, 2 goes and is no ghost. v17: so 2 lands in small, where 8 goes: main 4 5 0.
    "s3-fifo": Case(
        "s3-fifo", (0.25,), 4, [0, 1, 2, 3, 4, 0, 2, 2, 5, 6, 7, 1, 4, 5, 0, 8, 2], [0, 1, 3, 4, 5, 6, 7, 1, 2, 8], 14
    ),
    # A slot for small, one for main, one ghost. v3, v4: 0 counts two. v5: it moves to main; 1 goes. v6 to v9: 0 counts
    # three. From v10 on a ghost comes back to main, for small's one, and a stranger to small, for main's other one,
    # while 0 goes round: v11 with two left, v13 one, v15 none. v17: 0.
    "s3-fifo three": Case(
        "s3-fifo", (0.5,), 2, [0, 1, 0, 0, 2, 0, 0, 0, 0, 1, 3, 2, 4, 3, 5, 4, 6], [1, 2, 1, 3, 2, 4, 3, 5, 0], 11
    ),
    # One slot: small has it, nobody is remembered. 0 counts two, moves to main and goes from there; then 1 from small.
    "s3-fifo alone": Case("s3-fifo", (0.1,), 1, [0, 0, 0, 1, 0], [0, 1], 3),
    # v6: small 1 is its oldest evictable, for 0 is held.
    "s3-fifo held": Case("s3-fifo", (0.5,), 2, [0, 1, (0, 2), 1], [1, 0], 4),
    # v3: T1 1, T2 0. v4: T1 1 > p = 0: 1 to B1. v5: 1 in B1: p = 1; T1 2 is not above: 0 to B2; T1 2, T2 1. v6: 0 in
    # B2: p = 0; 2 to B1; T2 1 0. v7: 2 in B1: p = 1; T1 is empty: 1 to B2; T2 0 2. v8: 0 to B2: T1 3, T2 2, B2 1 0. v9:
    # four remembered: 1 is forgotten; T1 3 is not above 1: 2 to B2; T1 3 4, B2 0 2. v10: T1 has all, B1 nothing: 3
    # goes, no ghost. v11: 0 in B2: p = 0; 4 to B1; T1 5, T2 0, B2 2. v12: T1 and B1 have two: 4 is forgotten; 5 to B1.
    # v13: so 4 is no ghost: 5 is forgotten, 6 to B1.
    "arc": Case("arc", (), 2, [0, 1, 0, 2, 1, 0, 2, 3, 4, 5, 0, 6, 4], [1, 0, 2, 1, 0, 2, 3, 4, 5, 6], 12),
    # To v9 as above: 1 is forgotten; T1 3 4. v10: so 1 is no ghost, and 3 no ghost either: v11: 4.
    "arc forgets": Case("arc", (), 2, [0, 1, 0, 2, 1, 0, 2, 3, 4, 1, 3], [1, 0, 2, 1, 0, 2, 3, 4], 10),
    # v4: T1 3 1, T2 0. v5: 3 to B1; T1 1 2. v6: 3 in B1: p = 1; T1 is above: 1 to B1; T1 2, T2 0 3. v7: 1 in B1: p = 2;
    # 0 to B2; T2 3 1. v8: 0 in B2: p = 1; T1 is no more than that, but the same, and 0 was in B2: so 2.
    "arc tie": Case("arc", (), 3, [0, 3, 0, 1, 2, 3, 1, 0], [3, 1, 0, 2], 7),
    # v2: T1 1, T2 0. v3: 1 to B1; T1 2. v4: 1 in B1: p = 1; T1 2 is not above, but T2's 0 is held: so 2 to B1. T2 0 1.
    # v5: 2 in B1: p = 2; T1 is empty: 0 to B2; T2 1 2. v6: 0 in B2: p = 1; 1.
    "arc held": Case("arc", (), 2, [(0, 1), 0, 2, (0, 1), 2, 0], [1, 2, 0, 1], 6),
    # v3: 2 takes 1, which the visit wants: B1 1; T1 2, T2 0. Then 1 in B1: p = 1; T1 is not above: 0 to B2; T2 1. v4: 0
    # in B2: p = 0: 2 to B1.
    "arc one by one": Case("arc", (), 2, [(0, 1), 0, (2, 1), 0], [1, 0, 2], 5, ONE_BY_ONE),
    # One slot is the window's, two of three are protected's. window 3, probation 0 1 2, each used once. v5: 0 to
    # protected. v6: 3 once, 1 once: 3 goes, not let in. v7: 4 twice. v8: 4 twice, 1 once: 1 goes, 4 to probation: 2 4.
    # v9: 2 to protected: 0 2. v10: 4 too, so 0 back to probation: 0, protected 2 4. v11: 5 once, 0 twice: 5 goes.
    "w-tinylfu": Case("w-tinylfu", (0.25, 0.67), 4, [0, 1, 2, 3, 0, 4, 4, 5, 2, 4, 6], [3, 1, 5], 7),
    # Window 1, probation 0. v6: 1 is held, so 0 goes though it was used thrice and 1 twice.
    "w-tinylfu held": Case("w-tinylfu", (0.5, 0.0), 2, [0, 1, 0, 0, 1, (1, 2)], [0], 3),
    # Probation 0, window 1, nothing protected. v3 to v19: 0 is used 18 times and counts 15. v20 is the 20th use: all
    # halve: 0 7, 1 1. v21 to v28: 1 9. v29: 9 > 7: 0 goes, 1 to probation; 2 once, the 19th. v30 is the 20th, for the
    # halving counted ten: 0 3, 1 4, 2 1. v31: 2 1, 1 4: 2 goes; 0 4, for it kept its 3. v32: 0 5. v33: 5 > 4: 1 goes.
    "w-tinylfu halved": Case(
        "w-tinylfu", (0.01, 0.8), 2, [0, 1, *[0] * 17, *[1] * 9, 2, 2, 0, 0, 3], [0, 2, 1], 5
    ),
    # v1, v2: window 3, probation 0 1 2: that they are used first behind the window protects nobody. v3: 3 once, 0 once:
    # 3. v5: 4 twice: 0.
    "w-tinylfu first": Case("w-tinylfu", (0.25, 0.67), 4, [(0, 1), (2, 3), 4, 4, 5], [3, 0], 6),
    # Window 4, probation 0 1 2 3. v6, v7: 0 and 1 are protected; v8: 2, for 0: probation 3 0. v9: 4 once, 3 once: 4.
    # v11: 5 twice: 3.
    "w-tinylfu demoted": Case("w-tinylfu", (0.2, 0.5), 5, [0, 1, 2, 3, 4, 0, 1, 2, 5, 5, 6], [4, 3], 7),
    # Of 0 1 2 3 the scores, with alpha 1/2: v1 .5. v2 .25 .5. v3 (0 and 2 share) .375 .25 .25: 1 goes. v4 .19 .63 .13:
    # 2 goes. v5 .09 .31 .06 .5: 0 goes.
    "mrs": Case(
        "mrs", (0.5,), 2, [0, 1, 2, 1, 3], [1, 2, 0], 5, more={"logits": routed_to((0,), (1,), (0, 2), (1,), (3,))}
    ),
    # h / T + u / 1.1. v4: 0 2/4 + 0, 1 1/4 + .91: 0. v5: 1 1/5 + 0, 2 1/5 + .91: 1; 0 has three. v6: 2 1/6 + 0, 0 3/6 +
    # .91: 2.
    "hobbit-priority": Case("hobbit-priority", (0.25,), 2, [0, 0, 1, 2, 0, 1], [0, 1, 2], 5),
    # v7: 0 3/7, 1 1/7, 2 2/7 + .91: 1.
    "hobbit-priority no reset": Case("hobbit-priority", (0.25,), 3, [0, 0, 0, 1, 2, 2, 3], [1], 4),
    # Another request begins at v4: v7: 0 0/4, 1 1/4, 2 2/4 + .91: 0.
    "hobbit-priority reset": Case(
        "hobbit-priority", (0.25,), 3, [0, 0, 0, 1, 2, 2, 3], [0], 4,
        more={"requests": np.array([[0, 0, -1, 0, 3], [1, 3, -1, 3, 4]])},
    ),
    # A request begins at v11. v52: 0 40/42, 1 1/42 + .91: 1.
    "hobbit-priority since reset": Case(
        "hobbit-priority", (0.25,), 2, [*[0] * 50, 1, 2], [1], 3,
        more={"requests": np.array([[0, 0, -1, 0, 10], [1, 10, -1, 10, 42]])},
    ),
    # Global ids 0 1 | 2 3 | 4 5 in one pool of three. v4 serves layer 0: layer 1 comes next, then 2, then 0: 0 goes. v5
    # hits 2. v6 serves layer 2: 1 is one away, 2 two, 4 three: 4. v7 serves layer 0: 2 one, 5 two, 1 three: 1.
    "layer-distance": Case(
        "layer-distance", (), 3, [0, 0, 0, 1, 0, 1, 0, 0, 0], [0, 4, 1, 5], 7, more={"layers": 3, "pooled": True}
    ),
    # Global ids 0 1 2 | 3 4 5 in one pool of three, two visits a step. v4: 0 (v1) and 3 (v2) were not touched in step
    # 1: 0. v5: 3 (v2) is the oldest: 3. v6: 0 was touched in this step; 1 (v3), then 4 (v4): 1.
    "least-stale": Case(
        "least-stale", (), 3, [0, 0, 1, 1, 0, 0], [0, 3, 1], 6, more={"layers": 2, "pooled": True, "n_experts": 3}
    ),
    # v2: 0 every 1. v4: 0 was used 2 ago, longer than its 1: 2; 1 has no mean: 1 goes. v5: 2 every 1. v6: 0: 4; 2: 1 -
    # 1: 0 goes; 1 every 3. v7: 2: 2, beyond its 1; 1: 3 - 1 = 2: equal, 2 is older; 0 every (5 + 1) / 2 = 3. v8: 1: 3 -
    # 2, 0: 3 - 1: 0.
    "reuse-interval": Case("reuse-interval", (0.5,), 2, [0, 0, 1, 2, 2, 1, 0, 2], [1, 0, 2, 0], 6),
    # v2: 1 has two entries, 0 none: swapped. v4: one each: not. v6: 0 two, 1 none: swapped. Else misses are streamed.
    "window-swap": Case("window-swap", (2, 1), 1, [1, 1, 2, 1, 0, 0, 0], [0, 1], 5, residents=(0,)),
    # v2: outsiders 2 two, 3 one; residents 1 none, 0 one: 2 for 1, but not 3 for 0. v4: outsiders 3 two, 1 one (and 4);
    # residents none: both; 3 takes 0, touched at v1, 1 takes 2, which landed at v2.
    "window-swap two": Case(
        "window-swap", (2, 2), 2, [(2, 0), (2, 3), (3, 4), (3, 1)], [1, 0, 2], 7, residents=(0, 1)
    ),
    # v1: 1 has one entry and takes the free slot, though 0 has as many; 2, without any, joins nobody. v3: 2 takes 0,
    # older than 1.
    "window-swap free": Case("window-swap", (1, 2), 2, [(0, 1), 1, 2], [0], 2, residents=(0,)),
    # v3: 0 comes at v4, 1 at v5: 1. v5: neither comes again: 2 is older than 0.
    "belady": Case("belady", (), 2, [0, 1, 2, 0, 1], [1, 2], 4),
    # Neither 1 nor 0 comes again, and 0 is older; by id 1 goes.
    "belady older": Case("belady", (), 2, [0, 1, 2], [0], 3),
    "belady by id": Case("belady", (), 2, [0, 1, 2], [1], 3, BY_ID),
    # v3: 2 never comes again: it is not kept.
    "min": Case("min", (), 2, [0, 1, 2, 0, 1], [], 3),
    # v3: 2 comes at v4, 1 at v6: kept. v6: 1, 0 and 2 never: kept; 2 is older than 0.
    "min kept": Case("min", (), 2, [0, 1, 2, 2, 0, 1], [1, 2], 4),
    # v1: 3 comes at v2, 2 at v4; 0 at v3, 1 at v5. First 3: better than 1, kept; then 2: worse than 0, the only one
    # left. v4: 2, 0 and 3 never: kept; 3 (v2). v5: 1, 0 and 2 never: kept; 0 (v3).
    "min best first": Case("min", (), 2, [(2, 3), 3, 0, 2, 1], [1, 3, 0], 4, residents=(0, 1)),
    # v1: one slot is free: for 1 (v2); 2 (v4) is worse than 0 (v3). v4: 2, 0 and 1 never: kept; 1 (v2).
    "min free": Case("min", (), 2, [(1, 2), 1, 0, 2], [1], 3, residents=(0,)),
    # One step of foresight, half gone each visit. v3: 2 comes at v6, unknown, after its use 1; 0 at v5, unknown, 1/4; 1
    # at v4: known. 0 goes. v5: 0 never, 1/16 + 1; 1 never, (1/4 + 1) / 2; 2 at v6, known. 1 goes.
    "belady-w": Case("belady-w", (1, 1), 2, [0, 1, 2, 1, 0, 2], [0, 1], 4),
    # v3: 0 is known for v4: 1 is not kept.
    "belady-w bypass": Case("belady-w", (1, 1), 1, [0, 0, 1, 0], [], 2),
    # v2: 0 1 1/2. v3: 1 would be 1, 0 is 3/4: no more than 1/4 more: not kept, and not used from a slot. v4: against
    # 3/8.
    "decayed kappa": Case("decayed", (0.5, 0.25), 1, [0, 0, 1, 1], [0], 3),
    "decayed kappa 0": Case("decayed", (0.5, 0.0), 1, [0, 0, 1, 1], [0], 2),
    # v4: 0 is 2.71 x .9: more than 1 would be.
    "decayed bypass": Case("decayed", (0.9, 0.0), 1, [0, 0, 0, 1], [], 2),
    # 0: 1, 1.9, 2.71, then 2.439, 2.195, 1.975; 1 is not kept at 1 and 1.9, and at 0.9 x 1.9 + 1 = 2.71 it is
    "decayed streamed": Case("decayed", (0.9, 0.0), 1, [0, 0, 0, 1, 1, 1], [0], 4),
    "decayed none": Case("decayed", (0.9, -1.0), 1, [0, 0, 0, 1], [0], 2),
    "static": Case("static", (), 1, [1, 0, 1], [], 2, residents=(0,)),
}  # fmt: skip


def who_goes(result: dict[str, Any]) -> list[int]:
    """Global ids, in order."""
    commits = sorted(lines(result, "transfers", "event_committed", "victim"))
    return [victim for event, victim in commits if event >= 0 and victim >= 0]


MACHINES: dict[str, Callable[[Plan], dict[str, Any]]] = {"reference": simulate}
MACHINES |= {name: partial(run_groups, name) for name in groups.MACHINES}


def machines(name: str, n_params: int = 0, marks: Sequence[str] = ()) -> list[str]:
    """Those that have the policy as it is meant here."""
    known = EVICTION.get(name)
    settled = "layer-distance" in EVICTION or name != "least-stale"
    taken = known is not None and settled and len(known.params) >= n_params and set(marks) <= set(MARKS)
    return [*MACHINES] if taken else ["reference"]


RUNS = [(key, machine) for key, c in CASES.items() for machine in machines(c.name, len(c.params), c.marks)]


@pytest.fixture(autouse=True)
def words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference_eviction, "MARKS", WORDS)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_over_the_cache_alone(case: Case) -> None:
    served = serve(case.plan)
    assert (len(served.missed), served.victims) == (case.misses, list(case.victims))


@pytest.mark.parametrize(("key", "machine"), RUNS)
def test_on_a_machine(key: str, machine: str) -> None:
    case = CASES[key]
    result = MACHINES[machine](case.plan)
    assert (sum(result["visits"]["misses"]), who_goes(result)) == (case.misses, list(case.victims))


# --- what no string shows: who may not go, who is on its way, prefetches, copies, instants ---


def cache_of(name: str, params: Sequence[float], slots: int, residents: Sequence[int], **more: Any) -> Cache:
    """A cache whose slots the residents fill, before the first visit."""
    return Cache(plan_of([(0,)] * 6, slots, eviction(name, params), residents=residents, **{"n_experts": 9} | more))


def commit(cache: Cache, newcomer: int, candidates: Sequence[int]) -> int | None:
    """Who goes for it; then it is on its way."""
    goes = cache.victim(newcomer, list(candidates), True)
    assert goes is not None
    cache.evict(goes)
    cache.claim(newcomer)
    return goes


def use(cache: Cache, *experts: int) -> None:
    for expert in experts:
        cache.touch(expert)
        cache.use(expert, first=False)


@pytest.mark.parametrize("name", ["sieve", "clock"])
def test_who_is_passed_over_keeps_its_bit(name: str) -> None:
    # 0 was used again and may not go: 1 goes, and 0 is still set. When both may go, 0 is cleared and 2 goes.
    cache = cache_of(name, (), 2, (0, 1))
    use(cache, 0)
    assert commit(cache, 2, [1]) == 1
    cache.land(2)
    assert commit(cache, 3, [0, 2]) == 2


def test_who_is_on_its_way_to_small_counts_there() -> None:
    # Two slots are small's. 0 and 1 counted two: to main; 2 goes for 4. Small has 3 and awaits 4, so two: 3 goes for 5.
    cache = cache_of("s3-fifo", (0.5,), 4, (0, 1, 2, 3))
    use(cache, 0, 0, 1, 1)
    assert commit(cache, 4, [0, 1, 2, 3]) == 2
    assert commit(cache, 5, [0, 1, 3]) == 3


def test_a_ghost_is_off_the_list_before_anybody_joins_it() -> None:
    # Three ghosts at most. 0 1 2 are remembered; 1 comes back, so 3 joins 0 2 and nobody is forgotten.
    cache = cache_of("s3-fifo", (0.25,), 4, (0, 1, 2, 3))
    assert [commit(cache, newcomer, [0, 1, 2, 3][i:]) for i, newcomer in enumerate((4, 5, 6))] == [0, 1, 2]
    assert commit(cache, 1, [3]) == 3
    assert cache.evictions[0].ghosts == [0, 2, 3]


def test_who_is_on_its_way_to_t1_counts_there() -> None:
    # T1 1, T2 0. 1 goes to B1 for 2. T1 (2 on its way) and B1 have two: for 3 B1 forgets 1; T1 is above p = 0, but
    # nobody of it is there: T2's 0 goes.
    cache = cache_of("arc", (), 2, (0, 1))
    use(cache, 0)
    assert commit(cache, 2, [0, 1]) == 1
    assert commit(cache, 3, [0]) == 0
    assert (cache.evictions[0].b1, cache.evictions[0].b2) == ([], [0])


def test_p_moves_by_how_many_more_ghosts_the_other_list_has() -> None:
    # T1 0 1 2 3, p = 0. 4 of B1: p = 3/1; T1 is above, 0 joins B1 and 4 leaves it. Then with two in B1, 5 of B2: p = 3
    # - 2/1.
    cache = cache_of("arc", (), 4, (0, 1, 2, 3), n_experts=12)
    arc = cache.evictions[0]
    arc.b1, arc.b2 = [4], [5, 6, 7]
    assert commit(cache, 4, [0, 1, 2, 3]) == 0
    assert (arc.p, arc.b1, arc.b2) == (3, [0], [5, 6, 7])
    arc.b1, arc.b2 = [0, 8], [5]
    assert commit(cache, 5, [1, 2, 3]) == 1
    assert (arc.p, arc.b1, arc.b2) == (1, [0, 8, 1], [])


def test_whoever_is_let_in_leaves_the_window_at_the_commit() -> None:
    # Window 3, probation 0 1 2, nothing protected; 3 counts two, 1 and 2 three. 4: 3 > 0: 0 goes, 3 to probation. 5:
    # nobody is left in the window: 1.
    cache = cache_of("w-tinylfu", (0.25, 0.0), 4, (0, 1, 2, 3))
    use(cache, 3, 3, 1, 1, 1, 2, 2, 2)
    assert commit(cache, 4, [0, 1, 2, 3]) == 0
    assert commit(cache, 5, [1, 2, 3]) == 1


def test_reuse_interval_is_a_moving_mean() -> None:
    # Used at 1, 2 and 7: every 5/4 + 3/4 = 2. At 8 in 1 more; at 10 it waited 3, beyond that.
    cache, scores = cache_of("reuse-interval", (0.25,), 1, (0,)), {}
    for visit in range(1, 11):
        cache.routed(visit - 1, 0)
        if visit in (1, 2, 7):
            use(cache, 0)
        scores[visit] = cache.evictions[0].score(0)
    assert (scores[8], scores[9], scores[10]) == (-1, 0, -3)


def test_who_is_on_its_way_to_the_window_counts_there() -> None:
    # Two slots are the window's: window 2 3, probation 0 1, nobody used. 2 goes for 4; 3 with 4 on its way are two: 3.
    cache = cache_of("w-tinylfu", (0.5, 0.8), 4, (0, 1, 2, 3))
    assert commit(cache, 4, [0, 1, 2, 3]) == 2
    assert commit(cache, 5, [0, 1, 3]) == 3


def test_a_window_below_its_size_is_spared() -> None:
    # Window 2 3, probation 0 1; 2 may not go, so 3 goes for 4, which lands: window 2 4. Neither may go: 0, though used.
    cache = cache_of("w-tinylfu", (0.5, 0.8), 4, (0, 1, 2, 3))
    use(cache, 0)
    assert commit(cache, 4, [0, 1, 3]) == 3
    cache.land(4)
    assert commit(cache, 5, [0]) == 0


def test_least_stale_spares_what_this_step_touched_and_then_goes_by_use() -> None:
    # 0 is used in step 0; 1 lands in step 1, unused. In step 1 it was touched: 0 goes. In step 2 neither was: 1, never
    # used, goes, though it is the younger.
    cache = cache_of("least-stale", (), 2, (0,))
    cache.routed(0, 0)
    use(cache, 0)
    cache.routed(1, 0)
    cache.claim(1)
    cache.land(1)
    assert cache.victim(2, [0, 1], True) == 0
    cache.routed(2, 0)
    assert cache.victim(2, [0, 1], True) == 1


@pytest.mark.parametrize(("low", "goes"), [(0.25, 1), (0.75, 0)])
def test_hobbit_counts_a_copy_with_its_original(low: float, goes: int) -> None:
    # 0 was used once, the copy of 1 (number 9 + 1) twice, two visits before: h is 1 and 2 low. So among copies, too.
    cache = cache_of(
        "hobbit-priority", (low,), 2, (0, 1), low=Low(np.array([2]), 1, np.array([1, 1]), np.array([0, 1]))
    )
    for copy in (9, 10):
        cache.claim(copy)
        cache.land(copy)
    cache.routed(0, 0)
    use(cache, 0, 10, 10)
    cache.routed(1, 0)
    cache.routed(2, 0)
    assert cache.victim(2, [0, 1], True) == goes
    assert cache.victim(11, [9, 10], True) == 9 + goes


def test_hobbit_divides_by_the_visits_until_the_layer_comes_again() -> None:
    # Two layers in one pool: 0 | 9. Both were used in their latest visit; served is layer 1: 1 / 2 + 1 / 1.1 against
    # 1 / 2 + 1 / 2.1: 9 goes.
    cache = cache_of("hobbit-priority", (0.25,), 2, (0, 9), layers=2, pooled=True)
    for step, layer, expert in ((0, 0, 0), (0, 1, 9), (1, 0, 0), (1, 1, 9)):
        cache.routed(step, layer)
        if step == 1:
            use(cache, expert)
    assert cache.evictions[0].score(0) == pytest.approx(1 / 2 + 1 / 1.1)
    assert cache.evictions[0].score(9) == pytest.approx(1 / 2 + 1 / 2.1)
    assert cache.victim(1, [0, 9], True) == 9


def test_mrs_is_the_mean_of_rows_and_of_equals_the_lower_id_counts() -> None:
    # Two of four count. Row 0: all equal, so 0 and 1 have 1/4. Row 1: 2 has all; of the others 0 has next to nothing.
    # The mean, of which 1/2 is new: 1/16, 1/16, 1/4, and 3 never counted.
    logits = np.concatenate([routed_to((0, 1, 2, 3)), routed_to((2,))])
    cache = cache_of("mrs", (0.5,), 2, (0, 1), n_experts=4, logits=logits, steps=[[0, 1], [2], [3], [4], [5]])
    cache.routed(0, 0)
    scores = [cache.evictions[0].score(expert) for expert in range(4)]
    assert scores[:3] == pytest.approx([1 / 16, 1 / 16, 1 / 4]) and scores[3] == 0


def test_a_request_is_fresh_where_no_other_is_served() -> None:
    # Steps p p d d d p d d. Request 0: prompt in step 0, decodes 0 and 1 (steps 2, 3). Request 1: prompt in step 1,
    # decodes 0 to 2 (to step 4), admitted with it. Request 2: admitted at 5, when both have left. Request 3: at 6,
    # beside.
    requests = [[0, 0, 0, 0, 2], [1, 0, 1, 0, 3], [2, 5, 5, 3, 2], [3, 6, -1, 3, 2]]
    prefill = [True, True, False, False, False, True, False, False]
    plan = plan_of([(0,)] * 8, 1, eviction("lru"), 1, requests=np.array(requests), prefill=prefill)
    assert fresh_steps(plan) == [0, 5]


@pytest.mark.parametrize("machine", machines("lru", marks=ONE_BY_ONE))
def test_one_by_one_takes_turns(machine: str) -> None:
    # {0, 1}. Routed at 10: 2 is missed and takes 0, older; lands 110, runs to 115. Then 0 is missed and takes 1; lands
    # 215, runs to 220. 2 and 0 stay.
    plan = make([[[2, 0]]], 3, [2], [0, 1])
    result = MACHINES[machine](replace(plan, eviction=eviction("lru", marks=ONE_BY_ONE)))
    assert lines(result, "visits", "routed_ns", "end_ns", "wanted", "hits", "misses", "stall_demand_ns") == [
        (10, 220, 2, 0, 2, 200)
    ]
    assert lines(result, "transfers", "expert", "queued_ns", "landed_ns", "victim") == [
        (2, 10, 110, 0),
        (0, 115, 215, 1),
    ]
    assert lines(result, "executions", "expert", "begin_ns", "end_ns") == [(2, 110, 115), (0, 215, 220)]
    assert result["totals"]["residents"] == [2, 0]


@pytest.mark.parametrize("machine", machines("lru", marks=ONE_BY_ONE))
def test_one_by_one_waits_for_a_prefetch_and_promotes_one(machine: str) -> None:
    # One layer, four slots {0}. Lists at visit 0: 1 and 2 for visit 1, which wants 2, 1. Visit 0: routed 10; 1 is
    # committed at 10, lands 110; 2 is queued. Visit 1: routed 25: 2 is missed, the queued one is a demand now: 110 to
    # 210, runs to 215. Then 1, there since 110, is a hit: to 220.
    plan = make(
        [[[0, -1]], [[2, 1]]], 3, [4], [0], prefetch=predicted((2, 1), {(1, 1, 0): [1, 2]}),
    )  # fmt: skip
    result = MACHINES[machine](replace(plan, eviction=eviction("lru", marks=ONE_BY_ONE)))
    assert lines(result, "visits", "end_ns", "hits", "misses", "late") == [(15, 1, 0, 0), (220, 1, 1, 0)]
    assert lines(result, "transfers", "expert", "promoted", "landed_ns") == [(1, 0, 110), (2, 1, 210)]


@pytest.mark.parametrize("machine", machines("sieve"))
def test_a_copy_that_a_visit_brought_is_used_first(machine: str) -> None:
    # 0 is there in full. Copies of 1 and 2 are brought, that of 1 is used again: |1* 2. For that of 3: 1 is cleared, 2
    # goes.
    plan = hobbit([[[0, each]] for each in (1, 2, 1, 3)], [[[0.75, 0.25]]] * 4)
    assert plan.low is not None
    plan = replace(plan, eviction=eviction("sieve"), low=replace(plan.low, slots=np.array([2])))
    assert lines(MACHINES[machine](plan), "transfers", "expert", "low", "victim") == [
        (1, 1, -1),
        (2, 1, -1),
        (3, 1, 4 + 2),
    ]


@pytest.mark.parametrize("machine", machines("lru", marks=LISTED))
def test_bulk_visits_that_do_not_touch_do_not_touch_as_listed(machine: str) -> None:
    # {0, 1, 2}. Visit 0, bulk, uses 0 and does not touch it: it is still the oldest, and goes for 3.
    on = OnMiss(np.array([[0, 100, 200, 300, 400]] * 2), np.array([True, False]), MISS["fetch"].choice({}), False)
    plan = replace(make(top1(0, 3), 4, [3], [0, 1, 2], on_miss=on), eviction=eviction("lru", marks=LISTED))
    assert lines(MACHINES[machine](plan), "transfers", "expert", "victim") == [(3, 0)]


@pytest.mark.parametrize("machine", machines("min"))
def test_a_miss_that_is_not_kept_is_streamed(machine: str) -> None:
    # One slot, {0}. Routed at 10: 1 never comes again: a copy into a stage, lands 110, runs to 115. Then 0 is a hit.
    plan = make(top1(1, 0), 2, [1], [0], on_miss=OnMiss(np.array([[0, 100, 200]] * 2), np.zeros(2, np.bool_)))
    result = MACHINES[machine](replace(plan, eviction=eviction("min")))
    assert lines(result, "visits", "end_ns", "hits", "misses") == [(115, 0, 1), (130, 1, 0)]
    assert lines(result, "transfers", "expert", "place", "landed_ns", "victim") == [(1, STAGE, 110, -1)]
    assert lines(result, "executions", "expert", "place") == [(1, STAGE), (0, SLOT)]
    assert (result["totals"]["streamed"], result["totals"]["residents"]) == (1, [0])


@pytest.mark.parametrize(("wants", "outcome", "victim"), [(1, REJECTED, -1), (2, LANDED, 1)])
@pytest.mark.parametrize("machine", machines("min"))
def test_a_prefetch_comes_in_if_somebody_is_worse(machine: str, wants: int, outcome: int, victim: int) -> None:
    # {0, 1}. Visit 0 holds 0 and prefetches 2. Where visit 1 wants 1, 2 never comes and is worse; where it wants 2, 1
    # is.
    on = OnMiss(np.array([[0, 100, 200, 300]] * 2), np.zeros(3, np.bool_))
    plan = make(top1(0, wants, 0), 3, [2], [0, 1], prefetch=predicted((3, 1), {(1, 1, 0): [2]}), on_miss=on)
    result = MACHINES[machine](replace(plan, eviction=eviction("min")))
    assert lines(result, "transfers", "expert", "outcome", "victim") == [(2, outcome, victim)]


@pytest.mark.parametrize("machine", machines("window-swap"))
def test_a_swap_crosses_in_the_background(machine: str) -> None:
    # One slot, {0}; every visit swaps one. Routed at 10: 1 is streamed, 10 to 110; it has one entry, 0 none: it joins
    # the background, committed at 110, when 0 goes, lands 210. It runs from its stage to 115. Visit 1, routed at 125: 1
    # is late, lands 210, runs to 215.
    plan = make(top1(1, 1), 2, [1], [0], on_miss=OnMiss(np.array([[0, 100, 200]] * 2), np.zeros(2, np.bool_)))
    result = MACHINES[machine](replace(plan, eviction=eviction("window-swap", (1, 1))))
    assert lines(result, "visits", "end_ns", "misses", "late") == [(115, 1, 0), (215, 0, 1)]
    columns = ("expert", "cause", "place", "committed_ns", "landed_ns", "victim")
    assert lines(result, "transfers", *columns) == [(1, DEMAND, STAGE, 10, 110, -1), (1, BACKGROUND, SLOT, 110, 210, 0)]


@pytest.mark.parametrize("machine", machines("window-swap"))
def test_a_swap_is_rejected_where_nobody_has_fewer(machine: str) -> None:
    # Two slots, {0, 1}; every visit swaps two. Visit 0 streams 2 and 3, 10 to 210; both join, one entry each against
    # none. 2 is committed at 210, when 0 goes, and lands 310. By then visits want 1: 3 has no entry left, 2 none
    # either.
    on = OnMiss(np.array([[0, 100, 200, 300, 400]] * 2), np.zeros(10, np.bool_))
    plan = make([[[2, 3]], *[[[1, -1]]] * 9], 4, [2], [0, 1], on_miss=on)
    result = MACHINES[machine](replace(plan, eviction=eviction("window-swap", (1, 2))))
    swaps = [row for row in lines(result, "transfers", "cause", "expert", "outcome", "victim") if row[0] == BACKGROUND]
    assert swaps == [(BACKGROUND, 2, LANDED, 0), (BACKGROUND, 3, REJECTED, -1)]


# --- laws ---


def fewest_misses(string: Sequence[int], slots: int, bypass: bool) -> int:
    """Of every way to serve one expert a visit, from empty slots."""
    after = {frozenset[int](): 0}
    for expert in string:
        before, after = after, {}
        for residents, misses in before.items():
            choices = {residents} if bypass or expert in residents else set()
            if expert not in residents:
                room = len(residents) < slots
                choices |= {residents | {expert}} if room else {residents - {e} | {expert} for e in residents}
            for chosen in choices:
                found = misses + (expert not in residents)
                after[chosen] = min(found, after.get(chosen, found))
    return min(after.values())


@pytest.mark.parametrize(("name", "bypass"), [("belady", False), ("min", True)])
def test_nobody_misses_less(name: str, bypass: bool) -> None:
    for seed in range(60):
        rng = np.random.default_rng(seed)
        slots, string = int(rng.integers(1, 4)), rng.integers(0, 6, 16).tolist()
        served = serve(plan_of([(expert,) for expert in string], slots, eviction(name), 6))
        assert len(served.missed) == fewest_misses(string, slots, bypass), seed


def under(plan: Plan, chosen: Choice, seed: int) -> Plan:
    """The plan with that eviction and what it looks at."""
    logits = np.random.default_rng(seed).normal(size=(*plan.experts.shape[:2], plan.n_experts)).astype(np.float16)
    margin = ADMIT_PARAMS.index("margin")
    if plan.miss.name == "cpu-admit":  # an eviction that keeps no score has none to compare
        params = np.where(np.arange(len(ADMIT_PARAMS)) == margin, 0, plan.miss.params)
        plan = replace(plan, miss=replace(plan.miss, params=params))
    return replace(plan, eviction=chosen, rerank=None, logits=logits if plan.logits is None else plan.logits)


ANY = sorted({(c.name, c.params, c.marks) for c in CASES.values() if c.marks != ONE_BY_ONE})  # laws classify at once


@pytest.mark.parametrize("chosen", ANY, ids=str)
def test_the_laws_hold_on_any_plan(chosen: tuple[str, tuple[float, ...], tuple[str, ...]]) -> None:
    policy = eviction(*chosen)
    streams = bypasses(policy) or policy.name in ("static", "window-swap")
    for seed in range(6):
        new = under(on_miss_plan(seed), policy, seed)
        if policy.name != "window-swap" or not new.pooled:
            laws_on_miss.check_all(new, simulate(new))
        if not streams:
            old = under(random_plan(seed), policy, seed)
            laws.check_all(old, simulate(old))
