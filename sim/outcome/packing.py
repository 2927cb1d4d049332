"""The most experts that can stay: packing the intervals in which a wanted expert might remain resident.

What is packed. Visits that want something are numbered in the order they run. For an expert wanted in visit u
and next in visit w, the interval (u, w) may be *kept*: the expert stays resident from its execution in u to
its execution in w. In any lossless run three things hold for the kept intervals of one scope with C slots:

    between visits   the expert of every kept interval that is open there is resident: at most C;
    during a visit   the experts of the kept intervals that pass over it (u < v < w) are resident all through.
                     When an expert that it wants executes, that one is resident too, and is none of these (no
                     interval passes over a visit that wants its expert): at most C - 1;
    at the start     first residents, at most C, open an interval to their first want.

Where an expert may also run from a stage (plan.on_miss) a visit needs no slot for itself: at most C pass over it, and
C may be 0.

Nothing else is asked, so the largest set of intervals under these limits is at least what any run keeps. That
slots are claimed at the commit, that held experts stay, that a group releases its experts together, only
takes sets away.

Greedy. Visit after visit, nothing looks ahead: an interval (u, w) is accepted when it ends, in w, if nothing that it
covers is full. This keeps the most. Proof: take a largest set that agrees with ours for as long as one can, and look
at the first decision in which it differs. Everything decided later ends in w or later.
    We do not accept (u, w): both have what fills a place that it covers, so the other set does not either.
    We do, the other set does not: add it there. In the first place that is now too full there is an interval decided
    later, for ours fit. It covers all that (u, w) does from there on, so without it nothing is too full: as many as
    before.
Each time it agrees longer, so ours is a largest set. And it is one for *every* prefix of the run at once, for
the decisions up to there are those of the prefix alone. From the end backwards: for every suffix. (Yannakakis and
Gavril 1987, who take the vertices of a chordal graph in such an order; Carlisle and Lloyd 1995, Faigle and Nawijn 1995;
that the past alone tells what Belady's optimum hits: Jain and Lin 2016.)

How it is known what is full. Think of C slots, and of since when each has been free: as many have been free since u
or before as there is least room anywhere from u to now. So (u, w) fits if there is such a slot; it takes, until w,
the one of these that has been free for the shortest time. That keeps it so: from u on there is less room by one;
before u, at t, there is if no place between t and u had less room than all from u on, and then no slot became free
between t and u, so the one taken had been free since t. At most C - 1 pass over a visit that wants something: where no
interval ends in it, it takes the slot that has been free for the shortest time itself.

Open intervals. Of a suffix we ask how many wants have to land whoever is resident when it begins: intervals
that its begin cuts off may be kept too. Belady's greedy (1966) decides those as well: where too many are
open, drop the one that ends furthest, which leaves no more open at any point ahead than another would; here,
any that is cut off, they all reach equally far back. It keeps the most of every prefix of the walk too, so as
many that end in any one visit as ours; and so we know, without knowing which, how many it has open: a visit
ends those that are kept and opens one for each expert that it wants, and what is then beyond C has been
dropped, at the visit or behind it: the wants that have to land.
"""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from sim.core.jit import inlined, inner, whole
from sim.core.plan import Costs, Plan

Int = npt.NDArray[np.int64]

SHIFT = 6
WORD = 1 << SHIFT  # bits
MOVING = ("last", "words", "top", "oldest", "opened")  # what of a walk changes as it goes on


class Wants(NamedTuple):
    """The distinct experts wanted in each of some visits: visit v (of n) wants the global ids
    `expert[offset[v]:offset[v + 1]]` (int32 [N]), each for `tokens` (int32 [N]) rows; offset int64 [n + 1]."""

    offset: Int
    expert: npt.NDArray[np.int32]
    tokens: npt.NDArray[np.int32]

    @staticmethod
    def of(plan: Plan, first: int | None = None, last: int | None = None) -> "Wants":
        """The visits of the steps from `first` (default: plan.warmup_steps) to before `last` (default: the end)."""
        layers, top_k = plan.experts.shape[1:]
        steps = len(plan.step_prefill)
        first = min(plan.warmup_steps, steps) if first is None else first
        step_offset = plan.step_offset[first : (steps if last is None else last) + 1]
        most = int(np.minimum(np.diff(step_offset) * top_k, plan.n_experts).sum()) * layers
        offset = np.zeros((len(step_offset) - 1) * layers + 1, np.int64)
        expert, tokens = np.empty(most, np.int32), np.empty(most, np.int32)
        seen = np.full(layers * plan.n_experts, -1, np.int64)
        experts, step_offset, step_row = map(np.ascontiguousarray, (plan.experts, step_offset, plan.step_row))
        _distinct(experts, step_offset, step_row, plan.n_experts, seen, offset, expert, tokens)
        return Wants(offset, expert[: offset[-1]], tokens[: offset[-1]])

    def spent(self, costs: Costs, one: bool, each_ns: int, lag_ns: int) -> "Spent":
        """What the visits' experts take, in as few groups as may be. one: each expert has a group of its own; each_ns,
        lag_ns: see Spent; no each_ns, no parts."""
        n = len(self.offset) - 1
        total, sums, (ns, visits) = np.zeros(n, np.int64), np.zeros(3, np.int64), np.empty((2, n), np.int64)
        offset, tokens, expert_ns = map(np.ascontiguousarray, (self.offset, self.tokens, costs.expert_ns))
        _spent(offset, tokens, expert_ns, costs.group_ns, one, each_ns, lag_ns, total, ns, visits, sums)
        shortest, hidden, parts = sums.tolist()
        return Spent(total, shortest, hidden, ns[:parts], visits[:parts])


class Spent(NamedTuple):
    """experts_ns int64 [n]: the executions of each visit and its groups, 0 where it wants nothing. shortest_ns: the
    shortest group that any of them can run, 2^62 where none wants anything.

    What visits can hide of transfers of each_ns: room for all but the shortest group, less lag_ns. hidden: whole
    transfers, at most one for each wanted expert; of those visits that could need one more, what it takes beyond the
    room: part_ns [parts], of part_visits [parts] visits that follow each other.
    """

    experts_ns: Int
    shortest_ns: int
    hidden: int
    part_ns: Int
    part_visits: Int


@whole
def _distinct(
    experts: Any,
    step_offset: Any,
    step_row: Any,
    n_experts: int,
    seen: Any,
    offset: Any,
    expert: Any,
    tokens: Any,
) -> None:
    """Fill offset, expert and tokens. seen [G]: where each expert's latest want
    stands."""
    layers, top_k = experts.shape[1], experts.shape[2]
    n, v = 0, 0
    for step in range(len(step_offset) - 1):
        for layer in range(layers):
            begin, base = n, np.int64(layer * n_experts)
            for i in range(step_offset[step], step_offset[step + 1]):
                row = experts[np.uint64(step_row[np.uint64(i)]), np.uint64(layer)]
                for k in range(top_k):
                    if row[k] < 0:
                        continue
                    g = np.uint64(base + row[k])
                    if seen[g] >= begin:
                        tokens[seen[g]] += 1
                    else:
                        seen[g], expert[n], tokens[n] = n, g, 1
                        n += 1
            v += 1
            offset[v] = n


@whole
def _spent(
    offset: Any,
    tokens: Any,
    expert_ns: Any,
    group_ns: int,
    one: bool,
    each_ns: int,
    lag_ns: int,
    total: Any,
    part_ns: Any,
    part_visits: Any,
    sums: Any,
) -> None:
    """Fill total, part_ns, part_visits, and sums: the shortest group, what is hidden, how many parts."""
    shortest, hidden, parts = 2**62, 0, 0
    for v in range(len(total)):
        begin, end = offset[v], offset[v + 1]
        if begin == end:
            continue
        ns, least = group_ns * (end - begin if one else 1), 2**62
        for j in range(begin, end):
            expert = expert_ns[tokens[np.uint64(j)]]
            ns += expert
            if expert < least:
                least = expert
        total[v] = ns
        if least + group_ns < shortest:
            shortest = least + group_ns
        room = ns - least - group_ns - lag_ns
        if each_ns > 0:
            whole = 0 if room < each_ns else min(room // each_ns, end - begin)  # a division takes its time
            hidden += whole
            if whole < end - begin:
                ns = (whole + 1) * each_ns - (room if room > 0 else 0)
                if parts == 0 or part_ns[parts - 1] != ns:
                    part_ns[parts], part_visits[parts] = ns, 0
                    parts += 1
                part_visits[parts - 1] += 1
    sums[0], sums[1], sums[2] = shortest, hidden, parts


class Walk(NamedTuple):
    """Where the greedy stands: all that it has to know of what lies behind it, so much for any number of visits.

    A scope s has places, the bits of words[base[s]] to before words[base[s + 1]] (int64 each). Visits take theirs from
    the topmost down, so a set bit is a slot, and the higher it stands the longer it has been free. The topmost is never
    set; from top[s] on places are taken; beyond word oldest[s] of the scope none is set. last int64 [G]: the lowest
    place of the visit that wanted each expert last, the topmost for one that cannot be resident. opened int64
    [scopes]: how many intervals Belady's greedy has open. above int32 [places of a scope]: room to count in.
    stages: a visit needs no slot for itself.
    """

    last: Int
    words: Int
    top: Int
    oldest: Int
    opened: Int
    slots: Int
    base: Int
    above: npt.NDArray[np.int32]
    backward: bool
    stages: bool

    @staticmethod
    def begin(plan: Plan, initial: Int, backward: bool = False) -> "Walk":
        """A walk that has not begun. initial: global ids, each at most once, that may be resident then."""
        slots = np.array(plan.slots, np.int64)
        experts, scopes = plan.experts.shape[1] * plan.n_experts, len(slots)
        scope = np.arange(experts) * scopes // experts
        words = (2 * slots + experts // scopes) // WORD + 1
        base, topmost = np.append(0, np.cumsum(words)), words * WORD - 1
        last = topmost[scope]
        last[initial] -= slots[scope[initial]]
        opened = np.minimum(slots, np.bincount(scope[initial], minlength=scopes))
        free = np.concatenate([np.arange(-n, 0) + end * WORD - 1 for n, end in zip(slots, base[1:], strict=True)])
        bits = np.zeros(base[-1] * WORD, np.bool_)
        bits[free] = True
        set_bits = np.packbits(bits, bitorder="little").view("<i8")
        room = np.zeros(words.max() * WORD, np.int32)
        return Walk(
            last, set_bits, topmost - slots, words - 1, opened, slots, base, room, backward, plan.on_miss is not None
        )

    def forget(self, experts: npt.NDArray[np.int32]) -> None:
        """None of these (global ids) can have stayed."""
        scope = experts.astype(np.int64) * len(self.slots) // len(self.last)
        self.last[experts] = np.diff(self.base)[scope] * WORD - 1

    @property
    def nbytes(self) -> int:
        """What a copy takes."""
        return sum(getattr(self, name).nbytes for name in MOVING)

    def copy(self) -> "Walk":
        """The same place, to walk on from later."""
        return self._replace(**{name: getattr(self, name).copy() for name in MOVING})

    def over(self, wants: Wants) -> Int:
        """Walk on over the n visits of some whole steps; backward, over the last of them first.

        Returns int64 [n]. Forward, the wants of each visit before which no interval is kept: their sum over all visits
        behind the walk is the least number of loads for them. Backward (initial empty), the open intervals given up
        when the walk was at a visit or had just left it: their sum is the least number of loads for all visits behind
        the walk, whoever is resident when they begin.
        """
        loads = np.empty(len(wants.offset) - 1, np.int64)
        _keep(wants.offset, wants.expert, loads, *self)
        return loads


@inner
def _free(words: Any, first: int, place: int, n: int) -> None:
    """Set the n bits from a place on, of places that begin with word `first`."""
    while n > 0:
        at = place & (WORD - 1)
        more = min(n, WORD - at)
        bits = -1 << at
        if at + more < WORD:
            bits ^= -1 << (at + more)
        words[np.uint64(first + (place >> SHIFT))] |= bits
        place, n = place + more, n - more


@inner
def _renumber(last: Any, words: Any, above: Any, first: int, end: int, scope: int, experts: int, slots: int) -> None:
    """The set bits of a scope, one for each slot, go to the top side by side, and its experts with them: only what lies
    between two of them is told apart."""
    n, topmost = 0, (end - first) * WORD - 1
    for place in range(topmost, -1, -1):
        n += (words[np.uint64(first + (place >> SHIFT))] >> (place & (WORD - 1))) & 1
        above[np.uint64(place)] = n
    for g in range(scope * experts, scope * experts + experts):
        last[g] = topmost - above[last[g]]
    words[first:end] = 0
    _free(words, first, topmost - slots, slots)


@inner
def _one(words: Any, first: int, place: int) -> None:
    """The slot that has been free for the shortest time is taken; some is."""
    word = np.uint64(first + (place >> SHIFT))
    while words[word] == 0:
        word += np.uint64(1)
    words[word] &= words[word] - 1


@inlined
def _accept(
    expert: Any, begin: int, end: int, last: Any, words: Any, first: int, here: int, oldest: int
) -> tuple[int, int]:
    """(how many intervals that end in a visit are accepted, the word beyond which no bit is set any more)."""
    kept, word = 0, here >> SHIFT
    bits = words[np.uint64(first + word)]
    for j in range(begin, end):
        g = np.uint64(expert[np.uint64(j)])
        since = last[g] >> SHIFT
        if since != word:
            words[np.uint64(first + word)], word = bits, since
            bits = words[np.uint64(first + word)]
        older = bits & (-1 << (last[g] & (WORD - 1)))
        while older == 0 and word < oldest:
            words[np.uint64(first + word)], word = bits, word + 1
            bits = words[np.uint64(first + word)]
            older = bits
        if older == 0:  # something that it covers is full
            oldest = min(oldest, since)
        bits ^= older & -older
        kept += older != 0
        last[g] = here
    words[np.uint64(first + word)] = bits
    return kept, oldest


@whole
def _keep(
    offset: Any,
    expert: Any,
    loads: Any,
    last: Any,
    words: Any,
    top: Any,
    oldest: Any,
    opened: Any,
    slots: Any,
    base: Any,
    above: Any,
    backward: bool,
    stages: bool,
) -> None:
    """The greedy over some visits; see Walk.over."""
    scopes, experts = len(slots), len(last) // len(slots)
    v, by, scope = (len(loads) - 1, -1, scopes - 1) if backward else (0, 1, 0)
    for _ in range(len(loads)):
        begin, end, first = offset[v], offset[v + 1], base[scope]
        room = min(end - begin, slots[scope])
        if top[scope] < room:
            _renumber(last, words, above, first, base[scope + 1], scope, experts, slots[scope])
            oldest[scope] = base[scope + 1] - first - 1
            top[scope] = (oldest[scope] + 1) * WORD - 1 - slots[scope]
        here = top[scope] - room
        kept, oldest[scope] = _accept(expert, begin, end, last, words, first, here, oldest[scope])
        own = begin < end and kept == 0 and not stages
        if own:  # for the visit itself; else it has one of theirs
            _one(words, first, here)
        _free(words, first, here, kept + own)
        top[scope] = here
        loads[v] = end - begin - kept
        if backward:
            asked = opened[scope] + loads[v]
            opened[scope] = min(asked, slots[scope])
            loads[v] = asked - opened[scope]
        v, scope = v + by, scope + by
        if scope < 0 or scope == scopes:
            scope = scopes - 1 if backward else 0
