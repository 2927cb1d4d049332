"""What the choices know and change: residency, queues and counters, as a few dense int64 arrays.

Nothing here has a time in it. A machine calls the choices (`visit.decide`, `link.next_commit`, `residency.land`,
`visit.take_group`, `visit.finish_group`) in the order in which things happen and keeps the clock to itself.

An expert is a global id g = layer * E + expert. Its life (`STATE`) is the table LEGAL; any other step raises
IllegalTransition with both names. "Held" is WORK > 0: the visit being served gave it GPU work that has not run.
"""

import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from sim.core.plan import SUBSTITUTE_PARAMS, SUBSTITUTION, Plan

Int = npt.NDArray[np.int64]
Ids = npt.NDArray[np.uint32]

# --- fields of one expert: columns of State.x ---------------------------------------------------------------------
# what most visits touch first, so that it shares a cache line or two
STATE = 0  # ABSENT ... RESIDENT
SEEN = 1  # 1 + the last visit that wanted it
TOKENS = 2  # (token, slot) entries of that visit that wanted it
CLASS = 3  # HIT, LATE or MISS in that visit
FRESH = 4  # landed by a prefetch and not wanted since
WORK = 5  # tokens of GPU work given by the visit being served; > 0 means held
STAND_IN = 6  # of these, tokens executed in another expert's place
STAMP = 7  # running number of its last touch or landing
USES = 8  # executions on the GPU over the whole run, kept across evictions (lfu)
SCOPE = 9  # whose slots it lives in: its layer's, or the one pool's (fixed for the run)
SLOT = 10  # its slot while COMMITTED or RESIDENT
ORIGIN = 11  # cause of its transfer: index into plan.CAUSES
WAITED = 12  # late in the visit being served, and waited for
TRANSFER = 13  # its row in the record's transfers (record only)
HOST = 14  # tokens of CPU work given by the visit being served
ASKED = 15  # bits of the answers it got in the visit being served
LAST = 16  # visits of its layer routed when its decayed score was last brought up to date
NEXT = 17  # next visit that wants it (belady only)
USED_BY = 18  # the last token (State.c TOKEN) whose set U it was in
LANDED = 19  # running number of its last landing (for a user's own eviction)
LAYER = 20  # its MoE layer (fixed for the run)
FIELDS = 24  # whole cache lines

# not literals: numba compiles a function anew for every number spelled out in a call, but not for an np.int64
ABSENT, QUEUED, DEMANDED, COMMITTED, RESIDENT = np.arange(5)
STATES = ("absent", "queued", "demanded", "committed", "resident")
HIT, LATE, MISS = range(3)

LEGAL = np.zeros((5, 5), np.bool_)
LEGAL[ABSENT, [QUEUED, DEMANDED]] = True  # joins a queue
LEGAL[QUEUED, [ABSENT, DEMANDED, COMMITTED]] = True  # withdrawn or rejected, promoted, on the link
LEGAL[DEMANDED, COMMITTED] = True
LEGAL[COMMITTED, RESIDENT] = True
LEGAL[RESIDENT, ABSENT] = True  # evicted

# --- rows of State.work: lists of global ids, filled up to their counter (FLIGHT: a ring) -----------------------
WANTED, READY, DEMAND, FIRST_ANSWERED, ON_HOST, FLIGHT, SCRATCH, RANKS = range(8)
# and the residents of each scope in a ring, by last touch (lru) or landing; entry G + scope begins and ends it
OLDER, NEWER, WORK_ROWS = range(8, 11)
# --- columns of State.scope ----------------------------------------------------------------------------------------
BASE, CAPACITY, USED, ARRIVING = range(4)  # first slot, slots, slots taken, of these committed and not landed
# --- columns of the prefetch queue ------------------------------------------------------------------------------
Q_EXPERT, Q_KEY, Q_LIST = range(3)  # Q_LIST: which merged list it joined from, -1 none

# --- State.c: one number each -----------------------------------------------------------------------------------
N_LAYERS, N_EXPERTS, POOLED, EVICTION, SEED, DEPTH, BUDGET, ORDER = range(8)  # fixed for the run
ROUTED, STAMPS, DRAWS, EVENTS = range(8, 12)  # visits routed, touches and landings, random draws, event numbers
N_WANTED, N_READY, N_RUN, N_WORK, N_WAITED, N_ANSWERED, N_HOST = range(12, 19)  # of the visit being served
DEMAND_HEAD, DEMAND_TAIL, QUEUE_LEN, FLIGHT_HEAD, FLIGHT_LEN = range(19, 24)
R_VISITS, R_EXECUTIONS, R_TRANSFERS, R_ANSWERS = range(24, 28)  # rows written to the record
# counters of the summary; warm-up sets them back to zero
EVICTIONS, SLOTS_WANTED, SLOTS_HIT, SLOTS_LATE = range(28, 32)
FETCHED, SUBSTITUTED, DROPPED, CPU, LOW = range(32, 37)
LANDED_DEMAND, LANDED_PREFETCH, LANDED_BACKGROUND, PROMOTED, WITHDRAWN, REJECTED = range(37, 43)
PREFETCH_USED, PREFETCH_LATE, PREFETCH_WASTED = range(43, 46)
WANTED_BEFORE = 46  # distinct experts per visit by the trace's own ids, where a policy re-ranks
STOPPED = 47  # (token, slot) entries by what stopped a substitution: index + miss.PREFILL ... miss.NOBODY
FIRST_COUNTER, LAST_COUNTER = EVICTIONS, STOPPED + 6
# of miss policies: tokens planned, random draws of this visit, ns this visit has given the host and the link by cost
TOKEN, MISS_DRAWS, HOST_NS, LINK_NS, NO_TOUCH, N_FULL, LANDED_LOW, EVICTION_MARKS, N_SCALARS = range(54, 63)

# --- columns of State.layer: per MoE layer ------------------------------------------------------------------------
L_HITS, L_LATE, L_MISSES, L_STALL_DEMAND, L_STALL_LATE, L_STALL_HELD, LAYER_COLUMNS = range(7)

NEVER = np.iinfo(np.int64).max


class IllegalTransition(RuntimeError):
    """A law of the machine was about to be broken: args are the state an expert was in and the one refused."""

    def __str__(self) -> str:
        was, to = self.args
        return f"{STATES[was]} -> {STATES[to]} is not a legal transition"


class State(NamedTuple):
    """x [G, FIELDS] per expert; c [N_SCALARS]; work [WORK_ROWS, > G + scopes]; scope [scopes, 4];
    slot [slots] expert in each taken slot; queue [G + 1, 3] prefetches in order; layer [L, LAYER_COLUMNS];
    merged [lists, E + 1] the ranked lists of the last visits (length in column 0).
    score float64 [experts here + L]: decayed uses; or router weight x 2**24 in the window; or tokens of the requests
    being served, and behind them each layer's sum. With low-precision copies there are 2 G experts here, the copy of g
    being G + g, and twice as many scopes.

    Of runs that ask a miss policy or re-rank: routed [rows, K] and weight float64 [rows, K], the visit's experts and
    router weights by row of the step; reply [3, K], the answers planned for one token; order [2, G] scratch; quality
    float64 [L, 4] router weight wanted, substituted, dropped, and the last two times what the stand-in lacks in
    similarity; loss float64 [T] the last two by trace token; ranges float64 [L, 2] sum and number of logit ranges
    (cache-prior).

    Lists of ids are unsigned: numba then leaves out what Python's negative indices cost at every use of an id."""

    x: Int
    c: Int
    work: Ids
    scope: Int
    slot: Ids
    queue: Int
    layer: Int
    merged: Int
    score: npt.NDArray[np.float64]
    params: npt.NDArray[np.float64]
    routed: Int
    weight: npt.NDArray[np.float64]
    reply: Int
    order: Int
    quality: npt.NDArray[np.float64]
    loss: npt.NDArray[np.float64]
    ranges: npt.NDArray[np.float64]


def zeros(*shape: int, dtype: Any = np.int64) -> Any:
    """Zeros that begin at a cache line: where the state lies would else change the speed from run to run."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    memory = np.zeros(size + 64, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + size].view(dtype).reshape(shape)


def new_state(plan: Plan) -> State:
    """The state before anything: empty slots, empty queues (first residents are landed by `residency.place`)."""
    layers = plan.experts.shape[1]
    full = layers * plan.n_experts
    n = full if plan.low is None else 2 * full
    slots = plan.slots if plan.low is None else np.concatenate((plan.slots, plan.low.slots))
    depth = min(plan.costs.commit_depth, n)
    distances = 0 if plan.prefetch is None else plan.prefetch.row.shape[0]
    rows = int(np.diff(plan.step_offset).max(initial=0))
    c = zeros(N_SCALARS)
    c[[N_LAYERS, N_EXPERTS, POOLED, EVICTION]] = layers, plan.n_experts, plan.pooled, plan.eviction.kind
    c[[SEED, DEPTH]] = plan.seed, depth
    touch = plan.miss.kind != SUBSTITUTION or plan.miss.params[SUBSTITUTE_PARAMS.index("touch")]
    c[NO_TOUCH], c[N_FULL], c[EVICTION_MARKS] = 0 if touch else 1, full, plan.eviction.marks
    if plan.prefetch is not None:
        c[[BUDGET, ORDER]] = plan.prefetch.budget, plan.prefetch.order
    scope = zeros(len(slots), 4)
    scope[:, CAPACITY] = slots
    scope[1:, BASE] = np.cumsum(slots)[:-1]
    x = zeros(n, FIELDS)
    x[:, [SLOT, TRANSFER]] = -1
    x[:, NEXT] = NEVER
    x[:, LAYER] = np.arange(n) // plan.n_experts % layers
    x[:, SCOPE] = np.arange(n) // (full if plan.pooled else plan.n_experts)
    work = zeros(WORK_ROWS, n + len(slots) + 16, dtype=np.uint32)
    work[OLDER:, n : n + len(slots)] = np.arange(n, n + len(slots))
    return State(
        x=x,
        c=c,
        work=work,
        scope=scope,
        slot=zeros(int(slots.sum()), dtype=np.uint32),
        queue=zeros(n + 1, 3),
        layer=zeros(layers, LAYER_COLUMNS),
        merged=zeros(distances * (distances + 1), plan.n_experts + 1),
        score=zeros(n + layers, dtype=np.float64),
        params=np.asarray(plan.eviction.params, np.float64),
        routed=np.zeros((rows, plan.experts.shape[2]), np.int64),
        weight=np.zeros((rows, plan.experts.shape[2]), np.float64),
        reply=np.zeros((3, plan.experts.shape[2]), np.int64),
        order=np.zeros((2, n), np.int64),
        quality=np.zeros((layers, 4), np.float64),
        loss=np.zeros(plan.experts.shape[0], np.float64),
        ranges=np.zeros((layers, 2), np.float64),
    )
