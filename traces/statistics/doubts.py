"""What of a routing trace is unlikely to be true, a line for each: the damage that recordings have and that no format
can refuse, because a model *might* route so.

Five real captures of five models raise none of these (README of the captures): 0.8 % of one's cells are lost, no row
equals the one before it, and consecutive tokens share .10 to .27 more of their experts than popularity alone makes
them (`lift`). Each threshold lies well between what they have and what the damage makes. Figures are over recorded
slots: what is -1 is in neither side of a share. A line once written stays with a trace (`meta.doubts`).
"""

from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from traces.format.layout import Array, chunks, give_back
from traces.format.profile import Profile
from traces.format.trace import RoutingTrace
from traces.statistics.counts import expert_counts

Float = npt.NDArray[np.float64]
Int = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]

LOST, LOST_OF_A_LAYER = 0.01, 0.2  # shares of all cells, and of a layer's in a phase, from which a loss is said
FEW = 8  # rows that say nothing of a layer
PAIRS = 64  # of consecutive rows, from which an overlap is judged
LIFT = 0.05  # what real routing has at least (five captures: .096 to .272)
SAME = 0.9  # shared by chance, from which there is nothing more to share
STRIDES = 64  # rows apart at most, where a stride is looked for
SURE = 3.0  # standard errors
SLOTS = 1 << 19  # whose rows, from the first on, tell the overlap
LOOKED_AT = 1 << 24  # slots of a trace that nobody converted, where it is used
BLOCK = 1 << 17  # slots at a time
PER_EXPERT = 4  # uses of an expert, on average, from which experts that never occur are a part of the model


def known_doubts(trace: RoutingTrace | Profile) -> list[str]:
    """What was said of it when it was made (`meta.doubts`), else `doubts` of it, of a long trace's first requests."""
    said = trace.meta.get("doubts")
    if isinstance(said, list):
        return [str(line) for line in said]
    return doubts(_first_requests(trace) if isinstance(trace, RoutingTrace) else trace)


def _first_requests(trace: RoutingTrace) -> RoutingTrace:
    rows = LOOKED_AT // (trace.n_moe_layers * trace.top_k)
    if trace.n_tokens <= rows:
        return trace
    ends = trace.requests()[1]
    return trace.select(np.arange(ends[min(int(np.searchsorted(ends, rows)), len(ends) - 1)]))


def doubts(found: RoutingTrace | Profile) -> list[str]:
    """One line for each thing that is unlikely. Bounded memory; synthetic traces are not asked to be like real ones."""
    if isinstance(found, Profile):
        return list(_one_part(found.counts))
    lines = [*_lost(found), *_variable(found), *_phases(found)]
    if found.real:
        lines += [*_one_part(expert_counts(found)), *_repeats(found), *_overlap(_head(found))]
    return lines


def lost_cells(trace: RoutingTrace) -> tuple[Int, Int]:
    """int64 [2, L], generated and prompt: cells (a row in a layer) without any expert, of rows that have some; and
    int64 [2]: such rows."""
    lost, rows = np.zeros((2, trace.n_moe_layers), np.int64), np.zeros(2, np.int64)
    for lo, chunk in chunks(trace.experts):
        none = np.asarray((chunk < 0).all(axis=2))
        prompt = trace.prefill[lo : lo + len(chunk)]
        for phase in (0, 1):
            those = (prompt == bool(phase)) & ~none.all(axis=1)
            lost[phase] += none[those].sum(axis=0)
            rows[phase] += int(those.sum())
    return lost, rows


def _lost(trace: RoutingTrace) -> Iterator[str]:
    lost, rows = lost_cells(trace)
    without, layers = trace.n_tokens - int(rows.sum()), trace.meta["moe_layers"]
    if without:
        yield f"{without:,} of {trace.n_tokens:,} rows have no expert in any layer"
    of_layer = lost / np.maximum(rows, 1)[:, None]
    heavy = of_layer[rows >= FEW] >= LOST_OF_A_LAYER
    cells = int(rows.sum()) * trace.n_moe_layers
    if lost.sum() >= LOST * cells > 0 or heavy.any():
        yield f"{lost_words(trace, lost, rows)}; most in layer {_ranges(_heaviest(lost.sum(axis=0), layers))}"


def lost_words(trace: RoutingTrace, lost: Int, rows: Int) -> str:
    """How many cells are lost, of all, and of each phase that there is."""
    cells = int(rows.sum()) * trace.n_moe_layers
    names = ("generated", "prompt")
    shares = [f"{names[p]} {lost[p].sum() / (rows[p] * trace.n_moe_layers):.1%}" for p in (1, 0) if rows[p]]
    total = int(lost.sum())
    return (
        f"{total:,} of {cells:,} cells (a token in a layer) are lost, {total / max(cells, 1):.1%}: {', '.join(shares)}"
    )


def _heaviest(lost: Int, layers: list[int]) -> list[int]:
    """Layers that lost at least half as much as the one that lost most."""
    return [layer for layer, n in zip(layers, lost.tolist(), strict=True) if 2 * n >= lost.max()]


def _ranges(numbers: list[int]) -> str:
    """`0-3,7`, cut short."""
    cuts = [0, *(i + 1 for i, (a, b) in enumerate(pairwise(numbers)) if b != a + 1), len(numbers)]
    parts = [numbers[lo:hi] for lo, hi in pairwise(cuts)]
    words = [f"{part[0]}-{part[-1]}" if len(part) > 1 else str(part[0]) for part in parts]
    return ",".join(words[:6]) + (f",... ({len(numbers)} layers)" if len(words) > 6 else "")


def _variable(trace: RoutingTrace) -> Iterator[str]:
    """Tokens that have some of their slots alone."""
    width = np.zeros(trace.top_k + 1, np.int64)
    for _, chunk in chunks(trace.experts):
        width += np.bincount((chunk >= 0).sum(axis=2).ravel(), minlength=len(width))
    there = np.flatnonzero(width[1:]) + 1
    if len(there) == 1 and there[0] < trace.top_k:
        yield f"every token has {there[0]} experts where {trace.top_k} are routed: a reduced top-k, or slots lost"
    if len(there) > 1:
        partly = int(width[1:-1].sum()) / int(width[1:].sum())
        few = f"{there[0]} to {there[-1]} experts a token"
        yield f"top-k varies, {few}: {partly:.1%} of the cells are padded; figures are over the slots recorded"


def _phases(trace: RoutingTrace) -> Iterator[str]:
    """Requests that begin later than at their first token, and a trace without a prompt."""
    first, _ = trace.requests()
    at, n = trace.position[first].astype(np.int64), len(first)
    if not trace.prefill[first].any():
        yield f"no prompt rows: all tokens of its {n:,} requests count as generated"
    if (at > 0).any():
        late = f"{int((at > 0).sum()):,} of {n:,} requests begin late"
        why = "a prefix cache's, or not recorded"
        yield f"{late}: {at.sum():,} tokens before their first rows were not run here ({why})"


def _one_part(counts: Array) -> Iterator[str]:
    """Experts of a contiguous part alone, an equal share of all: what one rank of several sees. counts [L, E]."""
    experts, uses = counts.shape[1], counts.sum()
    used = np.flatnonzero(counts.sum(axis=0))
    if uses < PER_EXPERT * experts * len(counts) or not len(used):
        return
    size = int(used[-1] - used[0] + 1)
    ranks = experts // size
    if ranks >= 2 and used[0] // (experts // ranks) == used[-1] // (experts // ranks):
        part = f"experts {used[0]} to {used[-1]} of {experts}"
        yield f"only {part} occur, in every layer: one rank of {ranks} or more, where experts are divided among ranks?"


def _repeats(trace: RoutingTrace) -> Iterator[str]:
    """Rows equal to the one before them in every layer: of experts and weights; or of experts, more of them than layers
    that repeat by themselves make."""
    pairs, whole, by_layer = 0, 0, np.zeros(trace.n_moe_layers, np.int64)
    step = max(1, BLOCK // (trace.n_moe_layers * trace.top_k))
    for lo in range(0, trace.n_tokens - 1, step):
        rows = slice(lo, min(trace.n_tokens, lo + step + 1))
        same = np.asarray(trace.sequence[rows][1:] == trace.sequence[rows][:-1])
        equal = _equal(trace.experts[rows])[same]
        pairs, by_layer = pairs + len(equal), by_layer + equal.sum(axis=0)
        if trace.weights is not None:
            equal &= _equal(trace.weights[rows])[same]
        whole += int(equal.all(axis=1).sum())
        give_back(trace.experts)
        give_back(trace.weights)
    expected = 0.0 if trace.weights is not None else pairs * float(np.prod(by_layer / max(pairs, 1)))
    if whole > 2 + 3 * expected:
        what = "a stale buffer, or rows written again?"
        yield f"{whole:,} of {pairs:,} rows equal the row before them in every layer: {what}"


def _equal(values: Array) -> Bool:
    """bool [n - 1, L]: whether a row has the same as the next, in whatever order."""
    ordered = np.sort(np.asarray(values), axis=2)
    return np.asarray((ordered[1:] == ordered[:-1]).all(axis=2))


class _Head(NamedTuple):
    """The first rows of a trace: ids int16 [n, L, K], sequence [n]."""

    ids: Array
    sequence: Array

    def same(self, stride: int) -> Bool:
        """bool [n - stride]: a row and the one `stride` rows on are of one request."""
        return np.asarray(self.sequence[stride:] == self.sequence[:-stride])


def _head(trace: RoutingTrace) -> _Head:
    rows = max(2 * STRIDES, SLOTS // (trace.n_moe_layers * trace.top_k))
    return _Head(np.asarray(trace.experts[:rows], np.int16), np.asarray(trace.sequence[:rows]))


def _overlap(head: _Head) -> Iterator[str]:
    """Consecutive tokens that share no more than popularity makes them, and how far apart rows share more."""
    by_chance = _by_chance(head.ids)
    lift, error, pairs = _lift(head, 1, by_chance)
    if pairs < PAIRS or by_chance > SAME or lift + SURE * error >= LIFT:
        return
    shared = by_chance + lift * (1 - by_chance)
    words = f"a token shares {shared:.2f} of its experts with the one before it; popularity alone makes {by_chance:.2f}"
    best, stride = _best_stride(head, by_chance)
    if best >= max(LIFT, 2 * lift):
        again = by_chance + best * (1 - by_chance)
        flag = f"--interleave {stride}, of formats that take it"
        words += f"; with the one {stride} rows before {again:.2f}: {stride} sequences side by side ({flag})?"
    else:
        words += ": rows out of order, several requests in one, or ids that mean something else?"
    yield words


def _best_stride(head: _Head, by_chance: float) -> tuple[float, int]:
    """(lift, stride) of 2 to STRIDES rows apart: the most of those that are surely more than nothing, or the least
    divisor of that stride that does nearly as well (what holds for a stride holds for its multiples, too)."""
    lifts: dict[int, float] = {}
    for stride in range(2, min(STRIDES, len(head.ids) - 1) + 1):
        lift, error, _ = _lift(head, stride, by_chance)
        if lift - SURE * error > LIFT / 2:
            lifts[stride] = lift
    if not lifts:
        return 0.0, 0
    most = max(lifts, key=lambda s: lifts[s])
    stride = next(s for s in lifts if most % s == 0 and lifts[s] >= 0.8 * lifts[most])
    return lifts[stride], stride


def _by_chance(ids: Array) -> float:
    """The share of its experts that a row has in common with another one, mean over all pairs of different rows."""
    shared = slots = 0.0
    for layer in range(ids.shape[1]):
        there = ids[:, layer]
        counts = np.bincount(there[there >= 0].astype(np.int64)).astype(np.float64)
        rows = float((there >= 0).any(axis=1).sum())
        shared += float((counts * (counts - 1)).sum()) / max(rows - 1, 1)
        slots += float(counts.sum())
    return shared / slots if slots else 0.0


def _lift(head: _Head, stride: int, by_chance: float) -> tuple[float, float, int]:
    """(how much more rows so far apart share than by chance, of what is left; its standard error; pairs)."""
    same = head.same(stride)
    now, before = head.ids[stride:][same], head.ids[:-stride][same]
    both = np.asarray((now >= 0).any(axis=2) & (before >= 0).any(axis=2))
    wanted = ((now >= 0) & both[:, :, None]).sum(axis=(1, 2))
    shared = np.zeros(len(now), np.int64)
    for slot in range(now.shape[2]):
        own = now[:, :, slot : slot + 1]
        shared += ((own == before) & (own >= 0)).sum(axis=(1, 2))
    usable = wanted > 0
    if not usable.any():
        return 0.0, 1.0, 0
    share: Float = shared[usable] / wanted[usable]
    error = float(share.std()) / len(share) ** 0.5
    left = max(1 - by_chance, 1e-9)
    return (float(share.mean()) - by_chance) / left, error / left, len(share)
