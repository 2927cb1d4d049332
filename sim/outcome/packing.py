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

The limits in slots. At most C intervals are open anywhere if and only if they fit into C slots, none of which
holds two at a time. So: each kept interval has a slot from after u to before w, and each visit that wants
something has one while it lasts, perhaps the one of an interval that ends or begins in it.

Greedy. Visit after visit, nothing looks ahead. An interval (u, w) is decided in w: it is kept if a slot has
been free since u or before, in the one of these that has been free for the shortest time. Then w takes, for
itself, the slot that has been free for the shortest time; any will do, all are free then. This keeps the
most. Proof: take a largest set, in slots, that agrees with ours for as long as one can, and look at the first
decision in which it differs. Everything decided later ends later, or at the same visit.
    We do not keep (u, w): every slot is taken after u, so the other set does not either.
    We give slot a, the other set slot b: b has been free for at least as long as a. Exchange, in the other
    set, all that a and b hold from here on: what begins after a is free begins after b is.
    We keep (u, w) in slot a, the other set nowhere: of what it puts into a from here on, one interval at most
    overlaps (u, w), for all of these end in w or later. Put (u, w) in its place: as many as before.
Each time it agrees longer, so ours is a largest set. And it is one for *every* prefix of the run at once, for
the decisions up to there are those of the prefix alone. From the end backwards: for every suffix. (Carlisle
and Lloyd 1995, Faigle and Nawijn 1995; that the past alone tells what Belady's optimum hits: Jain and Lin
2016.)

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

from sim.core.jit import choice, frozen, inlined, inner
from sim.core.plan import Plan

Int = npt.NDArray[np.int64]

SPARE = 16  # nodes of a scope beyond twice its slots: how often a walk numbers them anew
MOVING = ("last", "free", "below", "top", "opened")  # what of a walk changes as it goes on


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
        most = int(step_offset[-1] - step_offset[0]) * layers * top_k
        offset = np.zeros((len(step_offset) - 1) * layers + 1, np.int64)
        expert, tokens = np.empty(most, np.int32), np.empty(most, np.int32)
        seen = np.full(layers * plan.n_experts, -1, np.int64)
        experts, step_offset, step_row = map(frozen, (plan.experts, step_offset, plan.step_row))
        n = _distinct(experts, step_offset, step_row, plan.n_experts, seen, offset, expert, tokens)
        return Wants(offset, expert[:n], tokens[:n])

    def spent(self, expert_ns: Int) -> tuple[Int, Int]:
        """int64 [n] each, ns: the executions of each visit's experts, and the shortest of them; 0 where it wants
        nothing. expert_ns: by tokens."""
        total, least = np.zeros((2, len(self.offset) - 1), np.int64)
        _spent(frozen(self.offset), frozen(self.tokens), frozen(expert_ns), total, least)
        return total, least


@choice
def _distinct(
    experts: Any,
    step_offset: Any,
    step_row: Any,
    n_experts: int,
    seen: Any,
    offset: Any,
    expert: Any,
    tokens: Any,
) -> int:
    """Fill offset, expert and tokens; returns how many wants. seen [G]: where each expert's latest want
    stands."""
    layers, top_k = experts.shape[1], experts.shape[2]
    n, v = 0, 0
    for step in range(len(step_offset) - 1):
        for layer in range(layers):
            for i in range(step_offset[step], step_offset[step + 1]):
                for k in range(top_k):
                    g = experts[step_row[i], layer, k]
                    if g < 0:
                        continue
                    g += layer * n_experts
                    if seen[g] >= offset[v]:
                        tokens[seen[g]] += 1
                    else:
                        seen[g], expert[n], tokens[n] = n, g, 1
                        n += 1
            v += 1
            offset[v] = n
    return n


@choice
def _spent(offset: Any, tokens: Any, expert_ns: Any, total: Any, least: Any) -> None:
    for v in range(len(total)):
        for j in range(offset[v], offset[v + 1]):
            ns = expert_ns[tokens[j]]
            total[v] += ns
            least[v] = ns if j == offset[v] else min(least[v], ns)


class Walk(NamedTuple):
    """Where the greedy stands: all that it has to know of what lies behind it, so much for any number of visits.

    A scope s has room for nodes from base[s] to before base[s + 1], and some to before top[s]: visits behind the walk
    that wanted something, oldest first. free int32 [nodes]: slots that have been free since then. below int32 [nodes]:
    the node itself if it has any; else an older one, not beyond the nearest that has (union-find: Tarjan 1975). The
    first node never has any and ends a search, the second is the begin of the walk. last int32 [G]: the node of the
    visit that wanted each expert last. slots, opened int64 [scopes]: how many, and how many intervals Belady's greedy
    has open. stages: a visit needs no slot for itself.
    """

    last: npt.NDArray[np.int32]
    free: npt.NDArray[np.int32]
    below: npt.NDArray[np.int32]
    base: Int
    top: Int
    slots: Int
    opened: Int
    backward: bool
    stages: bool

    @staticmethod
    def begin(plan: Plan, initial: Int, backward: bool = False) -> "Walk":
        """A walk that has not begun. initial: global ids, each at most once, that may be resident then."""
        scope_of = np.arange(plan.experts.shape[1] * plan.n_experts) // plan.n_experts * (not plan.pooled)
        slots = np.array(plan.slots, np.int64)
        base = np.concatenate([[0], np.cumsum(2 * slots + SPARE)])
        last, free = base[scope_of].astype(np.int32), np.zeros(base[-1], np.int32)
        last[initial] += 1
        free[base[:-1] + 1] = slots
        opened = np.minimum(slots, np.bincount(scope_of[initial], minlength=len(slots)))
        below = np.arange(base[-1], dtype=np.int32)
        below[base[:-1] + 1] -= slots == 0
        return Walk(last, free, below, base, base[:-1] + 2, slots, opened, backward, plan.on_miss is not None)

    @property
    def nbytes(self) -> int:
        """What a copy takes."""
        return sum(getattr(self, name).nbytes for name in MOVING)

    def copy(self) -> "Walk":
        """The same place, to walk on from later."""
        return self._replace(**{name: getattr(self, name).copy() for name in MOVING})

    def over(self, wants: Wants) -> tuple[Int, Int]:
        """Walk on over the n visits of some whole steps; backward, over the last of them first.

        Returns (missing, dropped), int64 [n] each. missing[v]: wants of visit v before which no interval is kept;
        dropped[v]: open intervals given up when the walk was at visit v or had just left it. Forward, the sum of
        missing over all visits behind the walk is the least number of loads for them. Backward (initial empty), the
        sum of dropped is the least number for them whoever is resident when they begin.
        """
        missing, dropped = np.zeros((2, len(wants.offset) - 1), np.int64)
        _keep(frozen(wants.offset), frozen(wants.expert), self, missing, dropped)
        return missing, dropped


@inlined
def _find(below: Any, node: int) -> int:
    """The nearest node, not newer, that has a free slot; the first of its scope if there is none."""
    while below[node] != node:
        below[node] = below[below[node]]
        node = below[node]
    return node


@inlined
def _take(free: Any, below: Any, node: int) -> None:
    """One of the slots that have been free since then."""
    free[node] -= 1
    below[node] = node - (free[node] == 0)


@inner
def _renumber(walk: Any, scope: int) -> None:
    """Only nodes with free slots are told apart any more: at most as many as slots."""
    first, experts = walk.base[scope], len(walk.last) // len(walk.slots)
    to = first
    for node in range(first + 1, walk.top[scope]):
        if walk.free[node] > 0:
            to += 1
            walk.free[to] = walk.free[node]
        walk.below[node] = to
    for g in range(scope * experts, (scope + 1) * experts):
        walk.last[g] = walk.below[walk.last[g]]
    for node in range(first, to + 1):
        walk.below[node] = node
    walk.top[scope] = to + 1


@choice
def _keep(offset: Any, expert: Any, walk: Any, missing: Any, dropped: Any) -> None:
    """The greedy over some visits; see Walk.over."""
    last, free, below, slots, opened = walk.last, walk.free, walk.below, walk.slots, walk.opened
    n, scope = len(missing), len(slots) - 1 if walk.backward else 0
    for i in range(n):
        v = n - 1 - i if walk.backward else i
        begin, end, kept = offset[v], offset[v + 1], 0
        if begin < end:
            if walk.top[scope] == walk.base[scope + 1]:
                _renumber(walk, scope)
            here, none = walk.top[scope], walk.base[scope]
            for j in range(begin, end):
                node = _find(below, last[expert[j]])
                if node != none:
                    _take(free, below, node)
                    kept += 1
                last[expert[j]] = here
            own = kept == 0 and not walk.stages
            if own:  # for the visit itself; else it has one of theirs
                _take(free, below, _find(below, here - 1))
            free[here] = kept + own
            below[here] = here - (free[here] == 0)
            walk.top[scope] = here + 1
            missing[v] = end - begin - kept
            asked = opened[scope] + missing[v]
            opened[scope] = min(asked, slots[scope])
            dropped[v] = asked - opened[scope]
        scope += -1 if walk.backward else 1
        if scope < 0 or scope == len(slots):
            scope = len(slots) - 1 if walk.backward else 0
