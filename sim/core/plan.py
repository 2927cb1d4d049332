"""The plan: everything a run depends on, as dense arrays, for any machine.

`sim.prepare` builds it from a spec and a trace; a machine reads it and never asks for more. Sizes used below:
T trace tokens, L MoE layers, K top-k, E experts per layer, S steps, R rows (one row = one token of one step),
V = S * L visits, numbered step * L + layer. A *global expert id* is `layer * E + expert`. Times are int64 ns.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

Int = npt.NDArray[np.int64]

# Codes shared by the plan, the core and the record.
GROUPS = ("one", "ready", "all")
ORDERS = ("fifo", "nearest-layer", "probability")
CAUSES = ("demand", "prefetch", "background", "admission", "stream")  # the queue that a transfer joined
OUTCOMES = ("landed", "withdrawn", "rejected", "unfinished")
ANSWERS = ("fetch", "substitute", "drop", "cpu", "low", "stream", "remote")
PLACES = ("slot", "stage", "remote", "host", "deferred")  # where a transfer goes, and where an expert is executed
GATES = ("prefill", "tae", "margin", "distribution", "rho", "nobody")  # why nobody stood in, from code 1 on

# Marks of a policy, bits of `Choice.marks`: all that the core, the record and the bounds know of a policy beside what
# its own code does. `sim.policies.policy.Policy` says them in words, once; nobody lists codes or names.
MARKS = (
    "landings", "scores", "uses", "window", "requests", "weights", "next-use", "lossy", "cpu",
    "told", "lists", "history", "logits", "slots", "fresh", "bypass", "fixed", "by-id", "listed", "one-by-one",
)  # fmt: skip
BY_LANDING, BY_SCORE, TOLD_OF_USES, FORGETS_ROWS, FORGETS_REQUESTS, BY_WEIGHT, BY_NEXT_USE, LOSSY, ANSWERS_CPU = (
    1 << i for i in range(9)
)
TOLD_OF_LANDINGS, OWN_LISTS, REMEMBERS, BY_LOGITS, BY_SLOT, FROM_FRESH, BYPASSES, FIXED, BY_ID, LISTED, ONE_BY_ONE = (
    1 << i for i in range(9, len(MARKS))
)
LOOKS_BACK = FORGETS_ROWS | FORGETS_REQUESTS | BY_LOGITS | FROM_FRESH
NOT_BY_TOUCH = BY_LANDING | BY_SCORE | BY_NEXT_USE | OWN_LISTS  # nobody asks for the order of touches: it is not kept
NOT_ALL_FETCHED = LOSSY | ANSWERS_CPU
KEEPS_OUT = FIXED | BYPASSES  # what a visit fetches may have to be streamed instead
TOLD_MORE = LOOKS_BACK | LISTED | ONE_BY_ONE | BYPASSES  # evictions that do more at a visit than choose a victim
BY_WORTH = BY_SCORE | OWN_LISTS  # those that keep more than an order or a count of uses

# What `Plan.miss.params` holds, in this order, for every miss policy of the substitution family.
# selector: 0 list, 1 random, 2 next-ranked, 3 drop, 4 nobody; fallback: 0 fetch, 1 drop, 2 cpu, 3 cheaper.
SUBSTITUTION = 4  # the miss policies' kind that takes them
REMOTE = 8  # and the one that reads over the link where the experts lie
SUBSTITUTE_PARAMS = (
    "selector",
    "matched",
    "temperature",
    "gamma",
    "beta",
    "budget",
    "rho",
    "search",
    "lowest_first",
    "fallback",
    "eta",
    "kappa",
    "partitions",
    "background",
    "touch",
    "backlog",
)

# What `params` of the miss policies cpu-admit and split hold, in this order. inserts, queue, max_rows: -1 no limit;
# margin: 0 none; warm, keep: 0 or 1; by: index into SPLITS.
ADMIT_PARAMS = ("inserts", "queue", "admit_after", "replace_after", "max_rows", "warm", "spare", "margin")
SPLIT_PARAMS = ("by", "least", "keep")
SPLITS = ("share", "makespan", "table")

MOST_CHUNKS = 1 << 16  # of one expert


@dataclass(frozen=True)
class Costs:
    """Durations in ns, each rounded half-even once, zero allowed.

    dense_ns      int64 [classes, L + 1]: dense part before each MoE layer's routing (dense layers in front of it
                  included); the last column is what follows the last MoE layer (dense layers at the end).
    head_ns       int64 [classes]: end of step.
    cost_class    int32 [S]: which row of the two tables a step uses.
    decide_ns     from the end of the dense part to the routed instant.
    group_ns      once per expert group.
    expert_ns     int64 [max rows in a step + 1]: one expert, by the tokens it executes.
    cpu_expert_ns int64 [2, max rows + 1]: one expert on the host; row 0 link idle, 1 link busy at the routed instant.
    transfer_ns   int64 [2]: one expert over the link; [0] with the idle set-up, [1] following on.
    draft_ns      int64 [S]: of each step, the draft model's time before the dense part; empty where nobody drafts.
    """

    dense_ns: Int
    head_ns: Int
    cost_class: npt.NDArray[np.int32]
    decide_ns: int
    group_ns: int
    expert_ns: Int
    cpu_expert_ns: Int
    transfer_ns: Int
    commit_gap_ns: int = 0
    commit_depth: int = 1
    draft_ns: Int = field(default_factory=lambda: np.zeros(0, np.int64))

    @property
    def in_a_row_ns(self) -> tuple[int, int]:
        """Of transfers one after another: the first, from its commit on an idle link to its landing, and each that
        follows, from landing to landing; it follows on only where the link commits several at once."""
        idle, following = self.transfer_ns.tolist()
        first = idle + self.commit_gap_ns
        return first, first if self.commit_depth == 1 else following


@dataclass(frozen=True)
class Low:
    """Low-precision copies of every expert, with slots of their own (miss policies that answer `low`).

    slots int64 [scopes]; bytes of one copy; transfer_ns int64 [2] and expert_ns int64 [max rows + 1] as in Costs.
    The copy of global expert g is global id L * E + g.
    """

    slots: Int
    bytes: int
    transfer_ns: Int
    expert_ns: Int


@dataclass(frozen=True)
class Leaving:
    """Which trace rows an eviction policy that looks back forgets at each step: row[offset[s] : offset[s + 1]]
    at step s. offset int64 [S + 1], row int32."""

    offset: Int
    row: npt.NDArray[np.int32]


@dataclass(frozen=True)
class Choice:
    """One policy as the core takes it: `name` of the registry, integer `kind`, float64 `params` in declared order.

    marks: bits of MARKS. Of evictions: landings: the ring of residents stays in the order of landings, else of touches;
    scores: the resident of the least score goes (core.worth); uses: it is told of executions (told: of landings, too);
    window, requests: the score looks back on what was routed, the rows of the last steps or of the requests being
    served, by router weight (weights) or by count; logits: on the router's logits; fresh: it is told of steps, and
    whether one begins a request that is served alone; next-use: the next visit that wants each expert is looked up;
    lists: it keeps lists of its own (core.queues); history: it remembers its last uses, as many as its first parameter
    says; slots: what it compares of residents stands by slot, too; bypass: a newcomer worth less than every resident is
    not kept; fixed: no visit's newcomer is. Of how it counts: by-id: of equals the larger id goes, and a visit is one
    instant; listed: a visit's experts are touched in the router's order; one-by-one: they are served one after another,
    and the others may go meanwhile. Of miss policies: lossy: a wanted expert may be left out or replaced; cpu: the host
    may compute it.
    """

    name: str
    kind: int
    params: npt.NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    function: Any = None
    marks: int = 0


@dataclass(frozen=True)
class OnMiss:
    """What an engine does beyond one rule for every visit and slots in every layer; None where a run uses none of it.

    bulk          the rule of visits in steps of `step_bulk` (fetch, cpu, stream, remote or split), None: no bulk rule.
    step_bulk     bool [S].
    bulk_touch    whether bulk visits touch and count the residents that they execute.
    table         int64 [n], n > 0: of split by table, how many of m misses go over the link: entry m, the last beyond.
    stages        staging buffers of one expert each, 0: as many as needed, with `ahead` (ahead + 1) x experts.
    serial        nothing of a visit runs on the GPU until its last streamed copy has landed.
    merge_runs    consecutive ids of a visit's copies are one transfer.
    whole_layer   a visit that streams copies what it does not want, too.
    ahead         so many MoE layers ahead are streamed; with it, whole_layer.
    run_ns        int64 [2, E + 1]: n experts as one transfer, [0] with the idle set-up, [1] following on; [:, 1] is
                  Costs.transfer_ns.
    cpu_visit_ns  once per visit that computes anything on the host.
    beside        whether the GPU computes while the host does.
    defer         entries of each token, answered `cpu`, that wait until the visit's other host work is done.
    link_share    (n, d): the link moves at n / d of its rate while the host computes; (1, 1) at all of it.
    chunk_bytes   what a demand may pass crosses the link in chunks of so many bytes (core.chunks); 0: whole.
    chunk_ns      int64 [2, 2]: a chunk, [0] with the idle set-up, [1] following on; [:, 0] a full one, [:, 1] an
                  expert's last.
    """

    run_ns: Int
    step_bulk: npt.NDArray[np.bool_]
    bulk: Choice | None = None
    bulk_touch: bool = True
    table: Int = field(default_factory=lambda: np.zeros(1, np.int64))
    stages: int = 0
    serial: bool = False
    merge_runs: bool = False
    whole_layer: bool = False
    ahead: int = 0
    cpu_visit_ns: int = 0
    beside: bool = True
    defer: int = 0
    link_share: tuple[int, int] = (1, 1)
    chunk_bytes: int = 0
    chunk_ns: Int = field(default_factory=lambda: np.zeros((2, 2), np.int64))


PLAIN = OnMiss(np.zeros((2, 0), np.int64), np.zeros(0, np.bool_))  # what it comes to where a run uses none of it


@dataclass(frozen=True)
class Prefetch:
    """Ranked lists of predicted experts, best first, -1 = no entry.

    lists   int16 [D or 1, rows, L, m]: `lists[d - 1, row[d - 1, i], l]` is what is predicted, d MoE layers ahead, for
            row i of the plan at MoE layer l (i is a row of the *target* step); one entry in front serves all distances.
    row     int32 [D, R or more]: which row of the lists of that distance belongs to a row of the plan; -1 = none.
    budget  transfers that may join the prefetch queue per visit, over all targets; -1 = no limit.
    order   index into ORDERS.
    rank_key int64 [D, m]: for order `probability`, the key of list rank r at distance d (lower goes first).
    within_ns int64 [D, L]: the least from the routed instant of a visit of that layer to that of the target at that
            distance, no expert's time in it; an entry joins only where what is queued and under way and itself, at
            transfer_ns[1] each, take no longer. None: whatever is listed joins.
    """

    lists: npt.NDArray[np.int16]
    row: npt.NDArray[np.int32]
    budget: int = -1
    order: int = 0
    rank_key: Int = field(default_factory=lambda: np.zeros((0, 0), np.int64))
    within_ns: Int | None = None


@dataclass(frozen=True)
class Windows:
    """Speculative windows of the decode steps, int32 [W] each, in run order: within a step by order of admission. The
    rows of a decode step are those of its windows, one window after another.

    step      its step.
    request   whose it is: a line of Plan.requests.
    rows      that it runs.
    accepted  of these, from the first on, so many count, one at least; the others run again in the next window.
    """

    step: npt.NDArray[np.int32]
    request: npt.NDArray[np.int32]
    rows: npt.NDArray[np.int32]
    accepted: npt.NDArray[np.int32]

    def accepted_rows(self, step_offset: Int, step_prefill: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
        """bool [R]: the rows that count; all of a prefill step do."""
        out = np.ones(int(step_offset[-1]), np.bool_)
        place = np.arange(int(self.rows.sum())) - np.repeat(np.cumsum(self.rows) - self.rows, self.rows)
        out[np.repeat(~step_prefill, np.diff(step_offset))] = place < np.repeat(self.accepted, self.rows)
        return out


@dataclass(frozen=True)
class Plan:
    """experts int16 [T, L, K] (-1 none); step_offset int64 [S + 1] and step_row int32 [R]: step s runs the trace
    tokens `step_row[step_offset[s]:step_offset[s + 1]]` in that order; step_prefill bool [S];
    slots int64 [L] (or [1], one pool, when `pooled`); residents int64 [n]: global ids in the order they land before
    time 0; group: index into GROUPS; requests int64 [n, 5]: the columns request, admitted, last_prefill, first_decode,
    generated of sim.steps.Steps (for the record only); lossy_prefill: lossy answers allowed in prefill steps;
    warmup_steps: steps no figure counts; resets bool [S], None never: steps at whose begin all is as at time 0 again
    (sim.core.reset).

    What lossy answers and re-ranking read, empty or None where the policies of the run need none of it:

    weights     float16/32 [T, L, K]: router weights.
    logits      float16 [T, L, E]: raw router logits.
    tau         float64 [L]: threshold of the TAE gate; off where negative, and everywhere when the array is empty.
    peers       int16 [L, E, n]: possible stand-ins of each expert of the layer, best first, -1 padded.
    peer_q      float32 [L, E, n]: their q(j|i).
    rerank      the re-ranking policy.
    similarity  float32 [L, E, E]: of the outputs of two experts of a layer.
    predicted   int16 [T, L, K]: experts predicted for a token some layers before, best first, -1 = no entry.
    norm_topk   whether the model renormalises the weights of the experts it chose.
    low         the low-precision copies, None where no answer is `low`.
    leaving     of evictions that look back.
    fresh       bool [S]: the first step of a request that is admitted while no other is served.
    windows     of runs that speculate: a decode step then runs several rows of a request, and rows may run again.
    on_miss     what an engine does beyond one rule and slots everywhere (layers may then have no slots).
    """

    experts: npt.NDArray[np.int16]
    n_experts: int
    step_offset: Int
    step_row: npt.NDArray[np.int32]
    step_prefill: npt.NDArray[np.bool_]
    costs: Costs
    slots: Int
    pooled: bool
    residents: Int
    expert_bytes: int
    eviction: Choice
    miss: Choice
    prefetch: Prefetch | None = None
    weights: npt.NDArray[np.floating[Any]] | None = None
    group: int = 0
    seed: int = 0
    lossy_prefill: bool = False
    warmup_steps: int = 0
    late_counts_as_missing: bool = False
    requests: Int = field(default_factory=lambda: np.zeros((0, 5), np.int64))
    resets: npt.NDArray[np.bool_] | None = None
    logits: npt.NDArray[np.float16] | None = None
    tau: npt.NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    peers: npt.NDArray[np.int16] = field(default_factory=lambda: np.zeros((0, 0, 0), np.int16))
    peer_q: npt.NDArray[np.float32] = field(default_factory=lambda: np.zeros((0, 0, 0), np.float32))
    rerank: Choice | None = None
    similarity: npt.NDArray[np.float32] | None = None
    predicted: npt.NDArray[np.int16] | None = None
    norm_topk: bool = True
    low: Low | None = None
    leaving: Leaving | None = None
    on_miss: OnMiss | None = None
    fresh: npt.NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, np.bool_))
    windows: Windows | None = None

    @property
    def accepted(self) -> npt.NDArray[np.bool_]:
        """bool [R]: the rows that count."""
        if self.windows is None:
            return np.ones(len(self.step_row), np.bool_)
        return self.windows.accepted_rows(self.step_offset, self.step_prefill)

    @property
    def generated(self) -> int:
        """Rows of decode steps that count: the tokens that the run generates."""
        return int(self.accepted.sum()) - int(np.diff(self.step_offset)[self.step_prefill].sum())

    @property
    def chunks(self) -> int:
        """Into how many chunks a transfer of one expert is cut that a demand may pass; 1: it goes whole."""
        size = 0 if self.on_miss is None else self.on_miss.chunk_bytes
        return 1 if size == 0 else -(-self.expert_bytes // size)
