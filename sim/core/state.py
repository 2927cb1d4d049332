"""What the choices know and change: residency, queues and counters, as records and a few dense arrays.

Nothing here has a time in it. A machine calls the choices (`visit.decide`, `link.next_commit`, `residency.land`,
`visit.take_group`, `visit.finish_group`) in the order in which things happen and keeps the clock to itself.

An expert is a global id g = layer * E + expert. Its life (`expert[g].state`) is the table LEGAL; any other step raises
IllegalTransition with both names. "Held" is work > 0: the visit being served gave it GPU work that has not run.
"""

from collections.abc import MutableSequence
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt

from sim.core.jit import inlined
from sim.core.memory import Memory, Struct, between, together, zeros
from sim.core.plan import (
    BY_SLOT,
    GATES,
    REMEMBERS,
    SUBSTITUTE_PARAMS,
    SUBSTITUTION,
    TOLD_OF_LANDINGS,
    TOLD_OF_USES,
    Plan,
)

Int = npt.NDArray[np.int64]
Ids = npt.NDArray[np.uint32]
Float = npt.NDArray[np.float64]
Number = Annotated[int, np.int32]  # of events, of rows, of ids, of tokens
Word = Annotated[int, np.int8]  # a place in one of plan's lists of words, or a yes

ABSENT, QUEUED, DEMANDED, COMMITTED, RESIDENT = range(5)
STATES = ("absent", "queued", "demanded", "committed", "resident")
HIT, LATE, MISS = range(3)
POWERS = 256  # looked up, not computed
LISTS = 4  # rings of a scope, at most (core.queues)
NEVER = np.iinfo(np.int64).max

LEGAL = np.zeros((5, 5), np.bool_)
LEGAL[ABSENT, [QUEUED, DEMANDED]] = True  # joins a queue
LEGAL[QUEUED, [ABSENT, DEMANDED, COMMITTED]] = True  # withdrawn or rejected, promoted, on the link
LEGAL[DEMANDED, COMMITTED] = True
LEGAL[COMMITTED, RESIDENT] = True
LEGAL[RESIDENT, ABSENT] = True  # evicted
_BEFORE = LEGAL.T @ (1 << np.arange(5))  # of each state those that may become it, a bit each: one test, and no look-up


@inlined
def may_become(was: int, to: Any) -> bool:
    """Whether the table allows a step."""
    return _BEFORE[to] >> was & 1 == 1


class Expert(Struct):
    # what every visit touches, in a cache line of its own
    seen: int  # 1 + the last visit that wanted it
    stamp: int  # running number of its last touch or landing
    uses: int  # executions on the GPU over the whole run, kept across evictions (lfu)
    tokens: Number  # (token, slot) entries of that visit that wanted it
    work: Number  # tokens of GPU work given by the visit being served; > 0 means held
    stand_in: Number  # of the work, tokens executed in another expert's place
    host: Number  # tokens of CPU work given by the visit being served
    scope: Number  # whose slots it lives in: its layer's, or the one pool's (fixed for the run)
    slot: Number  # its slot while COMMITTED or RESIDENT
    layer: Number  # its MoE layer (fixed for the run)
    state: Word  # ABSENT ... RESIDENT
    kind: Word  # HIT, LATE or MISS in that visit
    fresh: Word  # 1 landed by a prefetch and not wanted since; 2 wanted on its way
    origin: Word  # cause of its transfer: index into plan.CAUSES
    waited: Word  # late in the visit being served, and waited for
    asked: Annotated[int, np.int16]  # bits of the answers it got in the visit being served
    # and what fewer do, in another
    listed: int  # the last of the merged lists (run.lists) that names it
    transfer: int  # its row in the record's transfers (record only)
    scored: int  # visits of its layer routed when its decayed score was last brought up to date
    next_use: int  # next visit that wants it (belady only)
    used_by: int  # the last token (run.token) whose set U it was in
    landed: int  # running number of its last landing (for a user's own eviction)
    score: float  # decayed uses; or router weight x 2**24, or tokens, of what an eviction looks back on
    spare: int  # whole cache lines


class Kept(Struct):  # of an expert, for evictions that are told of uses and landings
    list: int  # which of its scope's lists it stands in (core.queues); -1 none
    enters: int  # which one it enters when it lands
    count: int  # uses, or re-uses, or a bit, or a frequency
    clock: int  # visits of its scope routed at its last use (lfru), or of its layer (hobbit-priority)
    used: int  # visits routed at its last use, 0 never
    touched: int  # visits routed at its last touch,
    landed: int  # and at its last landing
    used_stamp: int  # running number behind its last use, 0 never
    mean: float  # interval between uses, in visits routed; -1 none yet


class InSlot(Struct):  # of a resident, by slot: what lfru and decayed compare, side by side
    count: int  # Kept.count
    clock: int  # Kept.clock, or Expert.scored
    score: float  # Expert.score


class Lists(Struct):  # of a scope (core.queues)
    size: Annotated[Int, 4]  # experts of each list, those on their way to it included
    hand: int  # where a walk goes on; -1: at the old end
    uses: int  # since the frequencies were halved
    target: float  # of arc


class OfRun(Struct):
    n_layers: int
    n_experts: int  # of a layer
    n_full: int  # ids of experts; those from here on are low-precision copies,
    stage_base: int  # and from here on those without a slot (core.rules)
    eviction: int  # its kind
    eviction_marks: int  # bits of plan.MARKS
    pooled: int  # 1: one pool of slots for all layers
    seed: int
    depth: int  # transfers that may be under way at once
    budget: int  # prefetches that may join per visit, -1 no limit
    order: int  # of prefetches: index into plan.ORDERS
    no_touch: int  # 1: standing in is no touch
    # and what counts on over the whole run
    routed: int  # visits routed, the last of them
    step: int  # in this step,
    layer: int  # at this MoE layer
    stamps: int  # touches and landings
    events: int  # event numbers given
    step_stamp: int  # stamps when the first visit of the step was routed
    fresh_step: int  # the step at which a policy began again
    token: int  # tokens planned by a miss policy
    lists: int  # ranked lists merged
    turn: int  # of the visits whose lists State.merged has, the place of the last


class OfVisit(Struct):  # the one being served
    n_wanted: int  # how many ids are in State.wanted,
    n_ready: int  # ready,
    n_answered: int  # answered,
    n_host: int  # and on_host
    n_work: int  # experts with GPU work, ready or not
    n_run: int  # of the ready ones, those that ran
    n_waited: int  # late ones that are waited for
    n_turns: int  # of the wanted ones, those whose turn it has been, where they are served one by one
    draws: int  # random draws of the eviction
    miss_draws: int  # and of the miss policy
    host_ns: int  # what the cheaper rule has given the host
    link_ns: int  # and the link


class OfLink(Struct):
    demand_head: int  # State.demand[demand_head : demand_tail] are queued
    demand_tail: int
    n_queued: int  # prefetches in State.queue
    flight_head: int  # where in State.flight the oldest is
    n_flight: int
    n_behind: int  # of transfers in chunks: how many more are under way than n_flight says, or (below 0) fewer


class Written(Struct):  # written to each table of the log
    visits: int
    executions: int
    transfers: int
    answers: int
    chunks: int


class Count(Struct):  # of the summary
    evictions: int
    slots_wanted: int  # (token, slot) entries, and what became of them
    slots_hit: int
    slots_late: int
    fetched: int
    substituted: int
    dropped: int
    cpu: int
    low: int
    landed_demand: int  # transfers by cause
    landed_prefetch: int
    landed_background: int
    landed_low: int  # of all these, low-precision copies
    promoted: int
    withdrawn: int
    rejected: int
    prefetch_used: int
    prefetch_late: int
    prefetch_wasted: int
    wanted_before: int  # distinct experts per visit by the trace's own ids, where a policy re-ranks
    stopped: Annotated[Int, 1 + len(GATES)]  # (token, slot) entries by what stopped a substitution: 0 nothing


class OfLayer(Struct):  # of the summary, per MoE layer
    hits: int  # distinct experts per visit
    late: int
    misses: int
    stall_demand_ns: int  # by what the GPU waited for
    stall_late_ns: int
    stall_held_ns: int
    weight_wanted: float  # router weight
    weight_substituted: float
    weight_dropped: float
    weight_missed: float  # of these two, what the stand-in lacks in similarity


class Past(Struct):  # per MoE layer, over the whole run
    score: float  # sum of its experts' scores, of evictions that look back
    logit_range: float  # sum of max - min router logit (cache-prior)
    n_ranges: float  # of how many tokens
    left: float  # 1 - layer / layers (fixed for the run)


class Scope(Struct):
    base: int  # first slot
    capacity: int  # slots
    used: int  # slots taken
    arriving: int  # of these, committed and not landed


class Queued(Struct):  # a prefetch
    expert: int
    key: int  # the lowest goes first
    list: int  # which merged list it joined from, -1 none


class Reply(Struct):
    answer: int  # index into plan.ANSWERS; -1 not yet
    other: int  # who stands in, -1 nobody
    gate: int  # what stopped a substitution
    turn: int  # [i] of the slots asked about, the one whose turn is i-th


class IllegalTransition(RuntimeError):
    """A law of the machine was about to be broken: args are the state an expert was in and the one refused."""

    def __str__(self) -> str:
        was, to = self.args
        return f"{STATES[was]} -> {STATES[to]} is not a legal transition"


class State(Memory):
    """G experts; with low-precision copies twice as many, the copy of g being G + g, and twice as many scopes; with
    core.rules twice G more, without scopes.

    Lists of ids are unsigned: numba then leaves out what Python's negative indices cost at every use of an id."""

    run: OfRun
    visit: OfVisit
    link: OfLink
    rows: Written
    count: Count
    layer: MutableSequence[OfLayer]  # [L]
    totals: Int  # the memory of count,
    of_layers: Int  # and of layer, to be set to zero
    past: MutableSequence[Past]  # [L]
    expert: MutableSequence[Expert]  # [G]
    scope: MutableSequence[Scope]  # [scopes]
    slot: Ids  # [slots] expert in each taken slot
    wanted: Ids  # [G] lists of ids, filled up to their counter: wanted by the visit being served,
    ready: Ids  # with work and resident,
    demand: Ids  # demanded,
    answered: Ids  # in the order first answered,
    on_host: Ids  # with work on the CPU
    flight: Ids  # [G, or more of transfers in chunks] a ring: committed, and not landed
    older: Ids  # [G + 4 scopes] the residents of each scope in a ring, by last touch (lru) or landing:
    newer: Ids  # the neighbours of each; entry G + scope begins and ends it. Of core.queues four rings a scope
    kept: MutableSequence[Kept]  # [G] where the eviction is told of uses or landings, else [0]
    in_slot: MutableSequence[InSlot]  # [slots] where the eviction compares what stands there, else [0]
    lists: MutableSequence[Lists]  # [scopes]
    history: Int  # [G, k] running numbers of the last k uses, the newest first; -1 none (lru-k)
    queue: MutableSequence[Queued]  # [G + 1] in order
    merged: Int  # [lists, E + 2] the ranked lists of the last visits (in front how long, behind which: run.lists)
    params: Float  # of the eviction
    powers: Float  # [POWERS] of the factor by which its scores decay per visit, or zeros
    routed: Int  # [rows, K] of runs that ask a miss policy or re-rank: the visit's experts by row of the step
    weight: Float  # [rows, K] and their router weights
    reply: MutableSequence[Reply]  # [K] the answers planned for one token
    gates: Any  # int8 [T, L] 1 + the gate that a token's own weights shut; 0: not asked yet. Else [0, 0]
    loss: Float  # [T] router weight that others answered for, or nobody, by trace token, when it last ran
    marked: Int  # [G + 1] scratch: flags, or ids, perhaps behind how many
    order: Int  # [G] scratch: ranks
    chances: Float  # [E] scratch: probabilities, or other figures
    logit: Float  # [E] scratch: a token's router logits
    odds: Float  # [E] scratch: their exponentials (core.softmax)
    forgotten: Int  # the memory of all of this but of what is `_kept`
    at_start: Int  # the same as it was at time 0; empty in a run that is never reset
    first: MutableSequence[Expert]  # [G] and the experts in it


ALWAYS: dict[str, Any] = dict(run=(OfRun,), rows=(Written,), count=(Count,))  # not to be forgotten, of one size


def new_state(plan: Plan) -> State:
    """The state before anything: empty slots, empty queues (first residents are landed by `residency.place`)."""
    forgets = _forgotten(plan)
    arrays, words = together(len(State.__annotations__), **ALWAYS, **forgets, **_kept(plan))
    arrays["forgotten"] = between(words, arrays["visit"], arrays["layer"])
    arrays["totals"] = arrays["count"].reshape(1).view(np.int64)
    arrays["of_layers"] = arrays["layer"].view(np.int64)
    again = plan.resets is not None
    image, start = together(**forgets) if again else ({"expert": zeros(0, dtype=Expert)}, zeros(0))
    _begin(plan, arrays)
    return State(words, **arrays, at_start=start, first=image["expert"])


def _sizes(plan: Plan) -> tuple[int, int, int]:
    """Ids of experts with slots and of all, and how many scopes."""
    layers, low = plan.experts.shape[1], plan.low is not None
    with_slots = layers * plan.n_experts * (1 + low)
    n = with_slots + (0 if plan.on_miss is None else 2 * layers * plan.n_experts)
    return with_slots, n, len(plan.slots) + (len(plan.low.slots) if plan.low is not None else 0)


def _kept(plan: Plan) -> dict[str, tuple[Any, ...]]:
    """The dtype and shape of what a reset (sim.core.reset) leaves alone beside ALWAYS: figures."""
    tokens, layers, _ = plan.experts.shape
    gates = (tokens, layers) if plan.miss.kind == SUBSTITUTION and plan.rerank is None else (0, 0)
    return dict(layer=(OfLayer, layers), loss=(np.float64, tokens), gates=(np.int8, *gates))


def _forgotten(plan: Plan) -> dict[str, tuple[Any, ...]]:
    """And of the rest."""
    _, layers, top_k = plan.experts.shape
    _, n, scopes = _sizes(plan)
    slots = int(plan.slots.sum()) + (0 if plan.low is None else int(plan.low.slots.sum()))
    distances = 0 if plan.prefetch is None else plan.prefetch.row.shape[0]
    rows = int(np.diff(plan.step_offset).max(initial=0))
    marks, params = plan.eviction.marks, len(plan.eviction.params)
    ids, ring = (np.uint32, n), (np.uint32, n + LISTS * scopes)
    remembered = int(plan.eviction.params[0]) if marks & REMEMBERS else 0
    return dict(
        visit=(OfVisit,),
        link=(OfLink,),
        past=(Past, layers),
        expert=(Expert, n),
        scope=(Scope, scopes),
        slot=(np.uint32, slots),
        **dict.fromkeys(("wanted", "ready", "demand", "answered", "on_host"), ids),
        flight=(np.uint32, max(n, _depth(plan, n))),
        older=ring,
        newer=ring,
        kept=(Kept, n if marks & (TOLD_OF_USES | TOLD_OF_LANDINGS) else 0),
        in_slot=(InSlot, slots if marks & BY_SLOT else 0),
        lists=(Lists, scopes),
        history=(np.int64, n if remembered else 0, remembered),
        queue=(Queued, n + 1),
        merged=(np.int64, distances * (distances + 1), plan.n_experts + 2),
        params=(np.float64, params),
        powers=(np.float64, POWERS),
        routed=(np.int64, rows, top_k),
        weight=(np.float64, rows, top_k),
        reply=(Reply, top_k),
        marked=(np.int64, n + 1),
        order=(np.int64, n),
        **dict.fromkeys(("chances", "logit", "odds"), (np.float64, plan.n_experts)),
    )


def _begin(plan: Plan, arrays: dict[str, Any]) -> None:
    """What is not zero before anything."""
    _begin_run(plan, arrays["run"])
    _begin_experts(plan, arrays["expert"])
    layers, kept = plan.experts.shape[1], arrays["kept"]
    arrays["past"]["left"] = 1.0 - np.arange(layers) / layers
    arrays["older"][:] = arrays["newer"][:] = np.arange(len(arrays["older"]))
    kept["list"] = kept["mean"] = -1
    arrays["lists"]["hand"] = -1
    arrays["history"][:] = -1
    arrays["params"][:] = plan.eviction.params
    scope = arrays["scope"]
    scope["capacity"] = plan.slots if plan.low is None else np.concatenate((plan.slots, plan.low.slots))
    scope["base"][1:] = np.cumsum(scope["capacity"])[:-1]


def _begin_run(plan: Plan, run: Any) -> None:
    with_slots, n, _ = _sizes(plan)
    touch = plan.miss.kind != SUBSTITUTION or plan.miss.params[SUBSTITUTE_PARAMS.index("touch")]
    run["n_layers"], run["n_experts"] = plan.experts.shape[1], plan.n_experts
    run["n_full"], run["stage_base"] = plan.experts.shape[1] * plan.n_experts, with_slots
    run["eviction"], run["eviction_marks"] = plan.eviction.kind, plan.eviction.marks
    run["pooled"] = plan.pooled
    run["step"], run["layer"] = -1, plan.experts.shape[1] - 1
    run["seed"], run["depth"], run["no_touch"] = plan.seed, _depth(plan, n), not touch
    if plan.prefetch is not None:
        run["budget"], run["order"] = plan.prefetch.budget, plan.prefetch.order


def _depth(plan: Plan, n: int) -> int:
    """What may be under way at once: at most all that there is to send."""
    return min(plan.costs.commit_depth, n * plan.chunks)


def _begin_experts(plan: Plan, expert: Any) -> None:
    g, layers = np.arange(len(expert)), plan.experts.shape[1]
    expert["slot"] = expert["transfer"] = -1
    expert["next_use"] = NEVER
    expert["layer"] = g // plan.n_experts % layers
    expert["scope"] = g // (layers * plan.n_experts if plan.pooled else plan.n_experts)  # of ids with slots
