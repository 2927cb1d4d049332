"""Misses of LRU at every number of slots, in one pass over a run's visits.

Theory. For an LRU that takes requests one by one, the resident set of c slots is the c experts used last, so a use hits
exactly when fewer than c others were used since (the stack distance; Mattson et al. 1970), and one pass tells all c.

The machine takes whole visits, and the order in which a visit leaves its experts depends on c: hits run first, in the
order wanted, then misses, in the order fetched (design section 6, 3). An expert that hits with many slots and misses
with few therefore stands at another place in the two cases, and the machine's LRU is, strictly, no stack algorithm: a
visit can miss more with one slot more. The pass stays exact by keeping the two things that decide:

- `n`, the distinct experts used in visits *after* the last one that wanted the expert. It does not depend on c: whoever
  was used in a later visit is more recent.
- its *mates*: experts of that last visit that no later one wanted. Which of them is more recent depends on c by the
  hits and misses of that visit.

So a use misses where c <= n, hits where c > n + mates, and between them (fewer capacities than the visit has experts)
the mates are looked at one by one, with the hits and misses that were found for that visit.

Where it is exact, capacity by capacity, at every c >= 1: eviction lru, miss fetch, no prefetch, no re-ranking, first
residents `first`, `random` or `empty`; any batch, prefill or decode steps, per-layer slots or one pool, any expert
group, commit depth and durations. Why: without prefetch a visit begins with nothing queued or in flight, and all that
it wants lands within it. A victim is the least recent that is not held. Those not wanted are older than everything
that has run in the visit, so they go first, the oldest first; then, where the visit wants more than c, those that have
run, in the order in which they ran, which is hits first, then landings, whatever the timing. What stays is the c most
recent. tests/test_miss_curve.py holds this against the simulator, over random plans. Eviction at the commit and held
experts change no count here; they would with a prefetcher, whose transfers land in other visits.

OPT (belady) is not offered this way. Its stack needs one order of priority (next use) that all capacities share;
experts next wanted by the same visit tie, the machine breaks ties by recency, and that depends on c.
"""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from sim.core.jit import choice, inlined, inner

Int = npt.NDArray[np.int64]
NEVER = -1
# rows of `table` [5, G]: the visit that last wanted an expert, its place in it, the most slots with which that use
# surely missed, the most with which it may have missed, its place among first residents (untouched experts only)
LAST, PLACE, SURE, MAYBE, RANK, ROWS = range(6)


class Misses(NamedTuple):
    """int64 [kinds, scopes, c]: column c is for c slots in each scope (column 0: every use misses).

    uses: wanted experts that miss. weight: sum of the weights of the visits in which any does.
    """

    uses: Int
    weight: Int


def lru_misses(
    offset: Int, expert: Any, kind: Int, weight: Int, n_experts: int, layers: int, pooled: bool, rank: Int
) -> Misses:
    """One pass over the visits v = step * layers + layer of a run.

    offset int64 [V + 1], expert int32 [N]: visit v wants the distinct global ids `expert[offset[v]:offset[v + 1]]` in
    order of first appearance (sim.packing.Wants). kind int64 [V]: which row of the result it counts for. weight int64
    [V]. rank int64 [layers * n_experts]: at c slots of its scope an expert is a first resident where its rank is below
    c, landed in the order of rank; -1 everywhere: nothing is resident.
    """
    scopes, size = (1, layers * n_experts) if pooled else (layers, n_experts)
    kinds, widest = int(kind.max(initial=0)) + 1, 1 + int(np.diff(offset).max(initial=0))
    shape = (scopes, kinds, 2, size + 1)  # uses, weight
    surely, perhaps = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    table, doubt = np.zeros((ROWS, layers * n_experts), np.int64), np.zeros((layers * n_experts, widest), np.int8)
    table[LAST], table[RANK] = NEVER, rank
    for scope in range(scopes):
        visits = np.arange(scope, len(offset) - 1, scopes)
        tree, marks = np.zeros(len(visits) + 1, np.int64), np.zeros((3, widest), np.int64)
        state = (table, doubt, tree, marks, np.zeros((widest, widest), np.int8))
        _pass(offset, expert, kind, weight, visits, state, scope * n_experts, surely[scope], perhaps[scope])
    found = np.cumsum(surely[..., ::-1], axis=-1)[..., ::-1] + perhaps
    return Misses(*np.moveaxis(found, (2, 1), (0, 1)))


@inner
def _add(tree: Any, at: int, by: int) -> None:
    """Fenwick 1994: tree[i] holds the sum of a block that ends at i."""
    i = at + 1
    while i < len(tree):
        tree[i] += by
        i += i & -i


@inner
def _sum_upto(tree: Any, at: int) -> int:
    """Experts whose last visit is `at` or earlier."""
    i, total = at + 1, 0
    while i > 0:
        total += tree[i]
        i -= i & -i
    return total


@inlined
def _missed(table: Any, doubt: Any, g: int, slots: int) -> bool:
    """Whether the last use of expert g missed with so many slots."""
    if slots <= table[SURE, g] or slots > table[MAYBE, g]:
        return slots <= table[SURE, g]
    return doubt[g, slots - table[SURE, g] - 1] == 1


@inner
def _first_use(table: Any, g: int, base: int, size: int, touched: int) -> int:
    """The most slots with which the first use of expert g misses; all where it is no first resident.

    With c slots those of rank below c are resident, the lower ranks older. g is still there when fewer than c are more
    recent: all that were touched, and the untouched of a rank between its own and c. One more slot adds at most one of
    these, so there is one threshold.
    """
    if table[RANK, g] < 0:
        return size
    for slots in range(table[RANK, g] + 1, size + 1):
        newer = touched
        for e in range(base, base + size):
            newer += table[LAST, e] == NEVER and table[RANK, g] < table[RANK, e] < slots
        if newer < slots:
            return slots - 1
    return size


@inner
def _mates(offset: Any, expert: Any, visits: Any, table: Any, g: int, mates: Any) -> int:
    """The other experts whose last visit is that of expert g, into `mates`; returns how many."""
    v, n = visits[table[LAST, g]], 0
    for i in range(offset[v], offset[v + 1]):
        if expert[i] != g and table[LAST, expert[i]] == table[LAST, g]:
            mates[n] = expert[i]
            n += 1
    return n


@inner
def _hits(table: Any, doubt: Any, g: int, newer: int, mates: Any, n: int, slots: int) -> bool:
    """Whether expert g is among the last `slots` used: newer ones, and of its n mates those that ran after it."""
    missed = _missed(table, doubt, g, slots)
    for j in range(n):
        mate = mates[j]
        other = _missed(table, doubt, mate, slots)
        newer += (other and not missed) or (other == missed and table[PLACE, mate] > table[PLACE, g])
    return newer < slots


@inner
def _look(offset: Any, expert: Any, visits: Any, number: int, state: Any, base: int, size: int, touched: int) -> None:
    """Classify every use of a visit at every number of slots; nothing takes effect yet."""
    table, doubt, tree, marks, found = state
    mates, v = marks[0], visits[number]
    for i in range(offset[v], offset[v + 1]):
        g, at = expert[i], i - offset[v]
        if table[LAST, g] == NEVER:
            marks[1, at] = marks[2, at] = _first_use(table, g, base, size, touched)
            continue
        sure = touched - _sum_upto(tree, table[LAST, g])
        n = _mates(offset, expert, visits, table, g, mates)
        marks[1, at], marks[2, at] = sure, min(sure + n, size)
        for slots in range(sure + 1, marks[2, at] + 1):
            found[at, slots - sure - 1] = not _hits(table, doubt, g, sure, mates, n, slots)


@inner
def _count(uses: int, state: Any, weight: int, surely: Any, perhaps: Any) -> None:
    """Add what the visit's uses came to, and its weight where any of them missed."""
    marks, found = state[3], state[4]
    first, last = np.int64(0), np.int64(0)
    for at in range(uses):
        surely[0, marks[1, at]] += 1
        first, last = max(first, marks[1, at]), max(last, marks[2, at])
        for j in range(marks[2, at] - marks[1, at]):
            perhaps[0, marks[1, at] + 1 + j] += found[at, j]
    if uses > 0:
        surely[1, first] += weight
    for slots in range(first + 1, last + 1):
        for at in range(uses):
            if slots <= marks[2, at] and found[at, slots - marks[1, at] - 1] == 1:
                perhaps[1, slots] += weight
                break


@inner
def _use(offset: Any, expert: Any, v: int, number: int, state: Any) -> int:
    """The visit has run: its experts are the most recent now. Returns how many were never used before."""
    table, doubt, tree, marks, found = state
    new = 0
    for i in range(offset[v], offset[v + 1]):
        g, at = expert[i], i - offset[v]
        if table[LAST, g] == NEVER:
            new += 1
        else:
            _add(tree, table[LAST, g], -1)
        _add(tree, number, 1)
        table[LAST, g], table[PLACE, g] = number, at
        table[SURE, g], table[MAYBE, g] = marks[1, at], marks[2, at]
        for j in range(marks[2, at] - marks[1, at]):
            doubt[g, j] = found[at, j]
    return new


@choice
def _pass(
    offset: Any, expert: Any, kind: Any, weight: Any, visits: Any, state: Any, base: int, surely: Any, perhaps: Any
) -> None:
    """One scope's visits in order.

    state: the table; doubt [G, widest + 1], by slots - SURE - 1: whether an expert's last use missed, between SURE and
    MAYBE; a Fenwick tree over the visits; and, for what a visit's uses come to before they take effect, marks
    [3, widest + 1] (mates; SURE and MAYBE by place) and rows of `doubt`. surely, perhaps int64 [kinds, 2, size + 1]:
    uses (and weights of visits) that miss up to so many slots, and those that miss with exactly so many beyond; both
    are added to.
    """
    touched, size = 0, surely.shape[2] - 1
    for number in range(len(visits)):
        v = visits[number]
        _look(offset, expert, visits, number, state, base, size, touched)
        _count(offset[v + 1] - offset[v], state, weight[v], surely[kind[v]], perhaps[kind[v]])
        touched += _use(offset, expert, v, number, state)
