"""The most experts that can stay: packing the intervals in which a wanted expert might remain resident.

What is packed. Visits that want something are numbered in the order they run. For an expert wanted in visit u
and next in visit w, the interval (u, w) may be *kept*: the expert stays resident from its execution in u to
its execution in w. In any lossless run three things hold for the kept intervals of one scope with C slots:

    between visits   the expert of every kept interval that is open there is resident: at most C;
    during a visit   the experts of the kept intervals that pass over it (u < v < w) are resident all through.
                     When an expert that it wants executes, that one is resident too, and is none of these (no
                     interval passes over a visit that wants its expert): at most C - 1;
    at the start     first residents, at most C, open an interval to their first want.

Nothing else is asked, so the largest set of intervals under these limits is at least what any run keeps. That
slots are claimed at the commit, that held experts stay, that a group releases its experts together, only
takes sets away.

Greedy. Go through the points in order; where too many intervals are open, drop the one that ends furthest.
This keeps the most, whatever the limits are: some open one has to go, the points behind are satisfied
already, and dropping the furthest leaves at every point ahead no more than dropping any other would (Carlisle
and Lloyd 1995, Faigle and Nawijn 1995; for a cache, Belady 1966). It keeps the most for *every* prefix of the
run at once: intervals that end beyond the prefix are dropped before any that does not, so those inside fare
as if the others were not there. The same walk from the end backwards does so for every suffix: intervals cut
off by the suffix's begin all reach equally far back.
"""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from sim.core.jit import choice
from sim.core.plan import Plan

Int = npt.NDArray[np.int64]


class Wants(NamedTuple):
    """The distinct experts wanted in each visit from the first counted step on: visit v (of n) wants the
    global ids `expert[offset[v]:offset[v + 1]]` (int32 [N]), each for `tokens` (int32 [N]) rows; offset int64
    [n + 1]."""

    offset: Int
    expert: npt.NDArray[np.int32]
    tokens: npt.NDArray[np.int32]

    @staticmethod
    def of(plan: Plan) -> "Wants":
        """From step `plan.warmup_steps` on."""
        layers, top_k = plan.experts.shape[1:]
        step_offset = plan.step_offset[min(plan.warmup_steps, len(plan.step_prefill)) :]
        most = int(step_offset[-1] - step_offset[0]) * layers * top_k
        offset = np.zeros((len(step_offset) - 1) * layers + 1, np.int64)
        expert, tokens = np.empty(most, np.int32), np.empty(most, np.int32)
        seen = np.full(layers * plan.n_experts, -1, np.int64)
        experts, step_offset, step_row = map(_frozen, (plan.experts, step_offset, plan.step_row))
        n = _distinct(experts, step_offset, step_row, plan.n_experts, seen, offset, expert, tokens)
        return Wants(offset, expert[:n], tokens[:n])


def _frozen(array: Any) -> Any:
    """Read-only and contiguous, whatever it came as: one type for numba, one compiled version."""
    out = np.ascontiguousarray(array).view()
    out.flags.writeable = False
    return out


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
def _push(heap: Any, size: int, key: int) -> int:
    """Into a heap whose largest key is in front; returns the new size."""
    i = size
    while i > 0 and heap[(i - 1) // 2] < key:
        heap[i] = heap[(i - 1) // 2]
        i = (i - 1) // 2
    heap[i] = key
    return size + 1


@choice
def _pop(heap: Any, size: int) -> int:
    """Take the front away; returns the new size."""
    size -= 1
    key, i, child = heap[size], 0, 1
    while child < size:
        if child + 1 < size and heap[child + 1] > heap[child]:
            child += 1
        if heap[child] <= key:
            break
        heap[i] = heap[child]
        i, child = child, 2 * child + 1
    heap[i] = key
    return size


@choice
def _open(heap: Any, size: int, is_open: Any, g: int, end: int) -> int:
    is_open[g] = True
    return _push(heap, size, end * len(is_open) + g)


@choice
def _trim(heap: Any, size: int, is_open: Any, excess: int) -> int:
    """Drop the `excess` open intervals that end furthest. Closed ones still in the heap end before any open
    one."""
    for _ in range(excess):
        is_open[heap[0] % len(is_open)] = False
        size = _pop(heap, size)
    return size


@choice
def _next_wants(offset: Any, expert: Any, backward: bool, following: Any, first: Any) -> None:
    """following [N]: the place (in walking order) where the same expert is wanted next, n for never; first
    [G] likewise."""
    n = len(offset) - 1
    for i in range(n - 1, -1, -1):
        v = n - 1 - i if backward else i
        for j in range(offset[v], offset[v + 1]):
            following[j] = first[expert[j]]
            first[expert[j]] = i


@choice
def _pack(
    offset: Any, expert: Any, slots: int, start: int, stride: int, backward: bool,
    following: Any, heap: Any, size: int, is_open: Any, count: int, missing: Any, dropped: Any,
) -> None:  # fmt: skip
    """One scope: the places start, start + stride, ... of the walk. Intervals open before it: `count`, in
    heap and is_open."""
    n = len(offset) - 1
    for i in range(start, n, stride):
        v = n - 1 - i if backward else i
        if offset[v] == offset[v + 1]:
            continue
        for j in range(offset[v], offset[v + 1]):
            if is_open[expert[j]]:
                is_open[expert[j]] = False
                count -= 1
            else:
                missing[v] += 1
        excess = max(0, count - max(0, slots - 1))  # what passes over this visit
        size = _trim(heap, size, is_open, excess)
        dropped[v] += excess
        count -= excess
        for j in range(offset[v], offset[v + 1]):
            size = _open(heap, size, is_open, expert[j], following[j])
            count += 1
        excess = max(0, count - slots)  # what is open between this visit and the next
        size = _trim(heap, size, is_open, excess)
        dropped[v] += excess
        count -= excess


@choice
def _start(heap: Any, is_open: Any, first: Any, initial: Any, slots: int) -> int:
    """The intervals of the experts resident at first, at most `slots` of them; returns how many (the size of
    the heap)."""
    size = 0
    for g in initial:
        size = _open(heap, size, is_open, g, first[g])
    return _trim(heap, size, is_open, max(0, size - slots))


def pack(plan: Plan, wants: Wants, initial: Int, backward: bool = False) -> tuple[Int, Int]:
    """(missing, dropped), int64 [n] each. missing[v]: wants of visit v before which no interval was kept;
    dropped[v]: intervals given up when the walk was at visit v or had just left it. initial: global ids, each
    at most once, that may be resident when a forward walk begins.

    Forward, missing[:b].sum() is the least number of loads for the first b visits, for every b. Backward
    (initial empty), dropped[b:].sum() is the least number for the visits from b on, whoever is resident when
    they begin.
    """
    n, layers = len(wants.offset) - 1, plan.experts.shape[1]
    n_global = layers * plan.n_experts
    following, first = np.empty(len(wants.expert), np.int64), np.full(n_global, n, np.int64)
    _next_wants(wants.offset, wants.expert, backward, following, first)
    is_open = np.zeros(n_global, np.bool_)
    missing, dropped = np.zeros(n, np.int64), np.zeros(n, np.int64)
    stride = 1 if plan.pooled else layers
    opened = np.diff(wants.offset).reshape(-1, stride).sum(axis=0).max(initial=0)
    heap = np.empty(opened + n_global, np.int64)
    for scope, slots in enumerate(plan.slots.tolist()):
        mine = initial if plan.pooled else initial[initial // plan.n_experts == scope]
        size = _start(heap, is_open, first, mine, slots)
        start = stride - 1 - scope if backward else scope
        _pack(
            wants.offset, wants.expert, slots, start, stride, backward,
            following, heap, size, is_open, size, missing, dropped,
        )  # fmt: skip
    return missing, dropped
