"""Misses of LRU at every number of slots, in one pass over a run's visits.

Theory. For an LRU that takes requests one by one, the resident set of c slots is the c experts used last, so a use hits
exactly when fewer than c others were used since (the stack distance; Mattson et al. 1970), and one pass tells all c.

The machine takes whole visits, and the order in which a visit leaves its experts depends on c: hits run first, in the
order wanted, then misses, in the order fetched (design section 6, 3). An expert that hits with many slots and misses
with few therefore stands at another place in the two cases, and the machine's LRU is, strictly, no stack algorithm: a
visit can miss more with one slot more. The pass stays exact by keeping of an expert's last use the two things that
decide: the visit u that it was in, and its *turns*, the numbers of slots at which it goes over from missing (with 0)
to hitting, perhaps back, and to hitting again.

- n experts were used in visits after u. They are more recent, whatever c is.
- s experts of u *stay*: no later visit wanted them. With c slots the c - n most recent of them are there, none up to
  c = n and all from c = n + s on. The most recent are those that missed in u, the one wanted last in front, then those
  that hit, likewise; who missed depends on c by the turns.

So the coming uses of all that stay turn within n + 1 .. n + s, and one *walk* over these c finds where: the staying
experts stand in one order, the hits of u before its misses; at each c those with a turn there change sides, then the
border between gone and there moves to the (c - n)th from the end, and whoever is on the other side of it than before
turns. A visit takes one walk for each u that it wants from. They lie apart: the older u, the more slots.

An expert never used before is there if it is a first resident (its rank r < c; lower ranks are older) and fewer than c
are more recent: all that were touched, and the untouched of a rank between r and c. With t of the ranks between r and c
touched that says r + 1 + t > touched. So it turns once, and a search finds where: r + 1, or as soon as t suffices.

Work: O(log) of the visits for a use, O(log) of the experts for a first use, O((s + turns) log s) for a walk, where s is
at most what one visit wants and a use turns at most s times, in practice once or a few. Memory: one int32 for each
expert and each expert that a visit may want, 10 MB for a pool of 10,240 and visits that want 256.

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


class Misses(NamedTuple):
    """int64 [kinds, scopes, c]: column c is for c slots in each scope (column 0: every use misses).

    uses: wanted experts that miss. weight: sum of the weights of the visits in which any does.
    """

    uses: Int
    weight: Int


class State(NamedTuple):
    """The past of the G experts before a visit. Visits want at most W.

    last [G]: the visit, by number within the scope, that last wanted an expert, or NEVER. rank [G]: as in lru_misses.
    turns int32 [G, W], n_turns [G]: of its last use, ascending. recent, touched: Fenwick trees that count the scope's
    experts by last visit, and by rank those ever wanted.
    """

    last: Int
    rank: Int
    turns: Any
    n_turns: Int
    recent: Int
    touched: Int


class Room(NamedTuple):
    """What one visit is worked out in.

    latest [G]: the place in `expert` where an expert is wanted latest. turns int32 [W, W], n_turns [W]: of the visit's
    uses, by place in the visit, before they take effect.

    Of one walk, in the order in which its visit wanted them: stays, passed, following [W]: an expert, how many of its
    turns lie behind, who else turns where it turns next. due [W + 1]: the first who turns there, by c - n; also where
    `_count` counts. order [2 W + 1]: a Fenwick tree over the keys of `_key`.
    """

    latest: Int
    turns: Any
    n_turns: Int
    stays: Int
    passed: Int
    following: Int
    due: Int
    order: Int


def lru_misses(
    offset: Int, expert: Any, kind: Int, weight: Int, n_experts: int, layers: int, pooled: bool, rank: Int
) -> Misses:
    """One pass over the visits v = step * layers + layer of a run.

    offset int64 [V + 1], expert int32 [N]: visit v wants the distinct global ids `expert[offset[v]:offset[v + 1]]` in
    order of first appearance (sim.outcome.packing.Wants). kind int64 [V]: which row of the result it counts for. weight
    int64 [V]. rank int64 [layers * n_experts]: at c slots of its scope an expert is a first resident where its rank is
    below c, landed in the order of rank: 0 .. size - 1, each once in a scope; -1 everywhere: nothing is resident.
    """
    scopes, size = (1, layers * n_experts) if pooled else (layers, n_experts)
    kinds, widest = int(kind.max(initial=0)) + 1, max(1, int(np.diff(offset).max(initial=0)))
    state, room = _state(rank, (len(offset) - 1) // scopes, size, widest), _room(len(rank), widest)
    change = np.zeros((scopes, kinds, 2, size + 2), np.int64)  # of uses and weight, with one slot more
    for scope in range(scopes):
        _pass(offset, expert, kind, weight, np.arange(scope, len(offset) - 1, scopes), state, room, change[scope])
    found = np.cumsum(change[..., :-1], axis=-1)
    return Misses(*np.moveaxis(found, (2, 1), (0, 1)))


def _state(rank: Int, visits: int, size: int, widest: int) -> State:
    return State(
        last=np.full(len(rank), NEVER),
        rank=rank,
        turns=np.zeros((len(rank), widest), np.int32),
        n_turns=np.zeros(len(rank), np.int64),
        recent=np.zeros(visits + 1, np.int64),
        touched=np.zeros(size + 1, np.int64),
    )


def _room(experts: int, widest: int) -> Room:
    return Room(
        latest=np.full(experts, NEVER),
        turns=np.zeros((widest, widest), np.int32),
        n_turns=np.zeros(widest, np.int64),
        stays=np.zeros(widest, np.int64),
        passed=np.zeros(widest, np.int64),
        following=np.zeros(widest, np.int64),
        due=np.zeros(widest + 1, np.int64),
        order=np.zeros(2 * widest + 1, np.int64),
    )


@inner
def _add(tree: Any, at: int, by: int) -> None:
    """Fenwick 1994: tree[i] holds the sum of a block that ends at i."""
    i = at + 1
    while i < len(tree):
        tree[i] += by
        i += i & -i


@inner
def _sum_below(tree: Any, at: int) -> int:
    """Of what was added at 0 .. at - 1."""
    i, total = at, 0
    while i > 0:
        total += tree[i]
        i -= i & -i
    return total


@inner
def _find(tree: Any, k: int) -> int:
    """Where the k-th one was added that was added, in ascending order, from 0."""
    step, at = 1, 0
    while 2 * step < len(tree):
        step *= 2
    while step > 0:
        if at + step < len(tree) and tree[at + step] <= k:
            at += step
            k -= tree[at]
        step //= 2
    return at


@inner
def _first_turn(state: State, g: int, touched: int, size: int) -> int:
    """Where the first use of expert g goes over to hitting; size + 1, which is nowhere, for no first resident."""
    rank = state.rank[g]
    if rank < 0:
        return size + 1
    lacking = touched - rank
    if lacking <= 0:
        return rank + 1
    return _find(state.touched, lacking + _sum_below(state.touched, rank) - 1) + 1


@inlined
def _key(room: Room, j: int, n: int) -> int:
    """Where the j-th of n staying experts stands in the order of their visit: those that hit in it, then the others."""
    return j if room.passed[j] % 2 == 1 else n + j


@inlined
def _await(state: State, room: Room, j: int, n: int, sure: int) -> None:
    """Put the j-th staying expert down for its next turn, if that lies in the walk."""
    g, passed = room.stays[j], room.passed[j]
    if passed < state.n_turns[g] and state.turns[g, passed] <= sure + n:
        at = state.turns[g, passed] - sure
        room.following[j], room.due[at] = room.due[at], j


@inner
def _staying(offset: Any, expert: Any, u: int, last: int, state: State, room: Room) -> int:
    """The experts that visit u was the last to want, in the order wanted; returns how many."""
    n = 0
    for i in range(offset[u], offset[u + 1]):
        if state.last[expert[i]] == last:
            room.stays[n] = expert[i]
            n += 1
    return n


@inner
def _line_up(state: State, room: Room, n: int, sure: int) -> None:
    """The n staying experts as they stand with `sure` slots."""
    room.order[: 2 * n + 1], room.due[: n + 1] = 0, NEVER
    for j in range(n):
        g, passed = room.stays[j], 0
        while passed < state.n_turns[g] and state.turns[g, passed] <= sure:
            passed += 1
        room.passed[j] = passed
        _add(room.order[: 2 * n + 1], _key(room, j, n), 1)
        _await(state, room, j, n, sure)


@inlined
def _turn(room: Room, at: int, slots: int) -> None:
    """The visit's use at this place turns here."""
    room.turns[at, room.n_turns[at]] = slots
    room.n_turns[at] += 1


@inlined
def _judge(room: Room, j: int, n: int, border: int, begin: int, slots: int) -> None:
    """Note whether the j-th staying expert's use turns here, if the visit that begins at `begin` wants it."""
    at = room.latest[room.stays[j]] - begin
    if at >= 0 and (_key(room, j, n) >= border) != (room.n_turns[at] % 2 == 1):
        _turn(room, at, slots)


@inlined
def _change_sides(order: Any, room: Room, j: int, n: int) -> None:
    """Whoever turns where the j-th staying expert does, and it, between the hits and the misses of their visit."""
    while j >= 0:
        _add(order, _key(room, j, n), -1)
        room.passed[j] += 1
        _add(order, _key(room, j, n), 1)
        j = room.following[j]


@inner
def _walk(state: State, room: Room, n: int, sure: int, begin: int) -> None:
    """The turns of this visit's uses among the n staying experts of one visit, after which `sure` others were used."""
    _line_up(state, room, n, sure)
    order, border = room.order[: 2 * n + 1], 2 * n
    for there in range(1, n + 1):
        slots, gone = sure + there, n - there
        _change_sides(order, room, room.due[there], n)
        below, border = _sum_below(order, border), _find(order, gone)
        for k in range(min(gone, below), max(gone, below)):  # those that the border has passed
            _judge(room, _find(order, k) % n, n, border, begin, slots)
        j = room.due[there]
        while j >= 0:
            following = room.following[j]
            _judge(room, j, n, border, begin, slots)
            _await(state, room, j, n, sure)
            j = following


@inner
def _look(offset: Any, expert: Any, visits: Any, v: int, state: State, room: Room, touched: int, size: int) -> None:
    """The turns of every use of visit v; nothing takes effect yet."""
    begin = offset[v]
    for i in range(begin, offset[v + 1]):
        room.latest[expert[i]], room.n_turns[i - begin] = i, 0
    for at in range(offset[v + 1] - begin):
        last = state.last[expert[begin + at]]
        if last == NEVER:
            _turn(room, at, _first_turn(state, expert[begin + at], touched, size))
        elif room.n_turns[at] == 0:
            sure = touched - _sum_below(state.recent, last + 1)
            n = _staying(offset, expert, visits[last], last, state, room)
            if n == 1:  # most of them, where few experts are wanted at a time
                _turn(room, at, sure + 1)
            else:
                _walk(state, room, n, sure, begin)


@inner
def _count(uses: int, room: Room, weight: int, change: Any) -> None:
    """Add the visit's uses, and its weight where any of them misses.

    With fewer slots than `first` some use has not turned yet; what turns later lies in one walk, that of the oldest.
    """
    first, last = np.int64(0), np.int64(0)
    for at in range(uses):
        first = max(first, room.turns[at, 0])
        last = max(last, room.turns[at, room.n_turns[at] - 1])
    room.due[: last - first + 1] = 0
    for at in range(uses):
        for i in range(room.n_turns[at]):
            by, slots = 2 * (i % 2) - 1, room.turns[at, i]
            change[0, slots] += by
            room.due[max(slots - first, 0)] += by
    change[0, 0] += uses
    change[1, 0] += weight * int(uses > 0)
    missing = uses
    for slots in range(first, last + 1):
        before, missing = missing, missing + room.due[slots - first]
        change[1, slots] += weight * (int(missing > 0) - int(before > 0))


@inner
def _use(offset: Any, expert: Any, v: int, number: int, state: State, room: Room) -> int:
    """The visit has run: its experts are the most recent now. Returns how many were never used before."""
    new = 0
    for i in range(offset[v], offset[v + 1]):
        g, at = expert[i], i - offset[v]
        if state.last[g] != NEVER:
            _add(state.recent, state.last[g], -1)
        else:
            new += 1
            if state.rank[g] >= 0:
                _add(state.touched, state.rank[g], 1)
        _add(state.recent, number, 1)
        state.last[g], state.n_turns[g] = number, room.n_turns[at]
        for j in range(room.n_turns[at]):
            state.turns[g, j] = room.turns[at, j]
    return new


@choice
def _pass(offset: Any, expert: Any, kind: Any, weight: Any, visits: Any, state: State, room: Room, change: Any) -> None:
    """One scope's visits in order. change int64 [kinds, 2, size + 2]: uses (and weights of visits) that miss, as the
    difference to one slot fewer; added to."""
    state.recent[:], state.touched[:] = 0, 0
    touched, size = 0, change.shape[2] - 2
    for number in range(len(visits)):
        v = visits[number]
        _look(offset, expert, visits, v, state, room, touched, size)
        _count(offset[v + 1] - offset[v], room, weight[v], change[kind[v]])
        touched += _use(offset, expert, v, number, state, room)
