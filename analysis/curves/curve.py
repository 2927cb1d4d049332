"""How large a cache must be: LRU's hits and tokens/s at every capacity at once.

One pass over the trace (analysis.curves.stack_distances) gives LRU's misses at every number of slots, exactly those of
`python -m sim.run` with eviction lru, miss fetch and no prefetch; the spec's costs turn them into time. What a better
policy gains, `sim.run` and `analysis.compare` say; where more slots stop paying off, this curve does.

- **cliff**: the working set of one step, the most experts that a decode step wants of one layer (of all layers, in one
  pool). Below it no token finds room for its own experts, and a pool under LRU hits next to nothing: each
  layer pushes out what the next token wants first.
- **knee**: the capacity that lies furthest above the straight line from the cliff to all experts (Satopaa et al. 2011,
  "Finding a Kneedle in a Haystack"). `sharpness` is that distance, 0 for a straight line: without a real knee, there is
  no capacity at which to stop.

Misses are exact; **predicted tokens/s are an approximation**: dense parts, decisions, experts and heads of the decode
steps as in the plan, one transfer after another for every miss, and all experts of a visit but one beside its copies
(none where the engine waits for all of them). That is the machine's own time where each visit's experts together
compute no longer than one transfer lasts and have one token each; elsewhere it is near. At a few capacities the
simulator runs, too: its figure stands beside the predicted one, and its misses must equal the curve's.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from sim.core.plan import GROUPS
from sim.flags import OF_THE_HARDWARE
from sim.simulation import simulate
from sim.spec import RunSpec
from traces.errors import UserError

if TYPE_CHECKING:
    from sim.outcome.packing import Wants
    from sim.prepare import Setting

Int = npt.NDArray[np.int64]
Row = dict[str, Any]
FLAGS = (
    "model", "hardware", *OF_THE_HARDWARE, "engine", "precision", "cache_scope", "placement", "expert_group", "batch",
    "prefill_chunk", "as_decode", "context_offset", "max_steps", "seed",
)  # fmt: skip
HARDLY = 0.1  # sharpness of a knee that is none
PLACEMENTS = ("first", "random", "empty")  # those whose first residents at c slots are the first c of one order
DECODE, PREFILL = range(2)
ONE, READY, ALL = map(GROUPS.index, ("one", "ready", "all"))


@dataclass(frozen=True)
class Curve:
    """LRU at every capacity. n capacities, 1 up to all experts of a scope (a layer, or the pool).

    slots int64 [n]; misses int64 [2, scopes, n]: in decode and in prefill steps; wanted int64 [2]: distinct experts per
    visit, summed; tokens: generated; fixed_ns: what the decode steps take without a miss; transfer_ns: one miss;
    beside_ns int64 [n]: what of it is no loss, because experts run beside copies; cliff: slots of one decode step's
    working set; fits: the most slots that the GPU's memory holds, None where not known.
    """

    slots: Int
    misses: Int
    wanted: Int
    tokens: int
    fixed_ns: int
    transfer_ns: int
    beside_ns: Int
    cliff: int
    fits: int | None

    @property
    def decode_misses(self) -> Int:
        """[n], over all scopes."""
        return np.asarray(self.misses[DECODE].sum(axis=0))

    @property
    def hit_rate(self) -> npt.NDArray[np.float64]:
        """[n], of what decode steps want."""
        return np.asarray(1 - self.decode_misses / max(int(self.wanted[DECODE]), 1))

    @property
    def tokens_per_s(self) -> npt.NDArray[np.float64]:
        """[n], predicted, generated tokens."""
        ns = self.fixed_ns + self.decode_misses * self.transfer_ns - self.beside_ns
        return np.asarray(self.tokens / (np.maximum(ns, 1) / 1e9))

    def knee(self) -> tuple[int, float]:
        """(slots, sharpness) of the knee of the hit rate, from the cliff on."""
        x, y = self.slots[self.cliff - 1 :].astype(np.float64), self.hit_rate[self.cliff - 1 :]
        if len(x) < 3 or y[-1] <= y[0]:
            return int(x[0]), 0.0
        above = (y - y[0]) / (y[-1] - y[0]) - (x - x[0]) / (x[-1] - x[0])
        best = int(np.argmax(above))
        return int(x[best]), float(above[best])


@dataclass(frozen=True)
class Visits:
    """What a run's V visits want, and what the decode steps among them take beside their misses.

    wants; prefill bool [V]; wide int64 [V]: distinct experts; weight int64 [V] ns: what a visit that misses at all
    takes less than its misses one after another. fixed_ns, transfer_ns, tokens: as of a Curve.
    """

    wants: "Wants"
    prefill: npt.NDArray[np.bool_]
    wide: Int
    weight: Int
    fixed_ns: int
    transfer_ns: int
    tokens: int

    @staticmethod
    def of(setting: "Setting") -> "Visits":
        from sim.outcome.packing import Wants

        plan = setting.plan
        wants, prefill = Wants.of(plan), np.repeat(plan.step_prefill, plan.experts.shape[1])
        wide, (idle_ns, transfer_ns) = np.diff(wants.offset), plan.costs.in_a_row_ns
        experts_ns, groups = _experts_ns(setting, wants.tokens, wants.offset)
        weight = _beside_ns(setting, experts_ns, groups, wide, idle_ns) - (idle_ns - transfer_ns)
        fixed_ns = _fixed_ns(setting) + int((experts_ns + groups * plan.costs.group_ns)[~prefill].sum())
        tokens = plan.generated
        return Visits(wants, prefill, wide, weight, fixed_ns, transfer_ns, tokens)

    @property
    def wanted(self) -> int:
        """Distinct experts of decode visits, summed."""
        return int(self.wide[~self.prefill].sum())

    def tokens_per_s(self, misses: Int, beside_ns: Int) -> npt.NDArray[np.float64]:
        """Predicted, of so many misses in decode steps; beside_ns: the weight of the visits that miss."""
        ns = self.fixed_ns + misses * self.transfer_ns - beside_ns
        return np.asarray(self.tokens / (np.maximum(ns, 1) / 1e9))


def setting_of(fields: dict[str, Any], placements: Sequence[str] = PLACEMENTS) -> "Setting":
    """The run that the curve is about, at one slot. Raises UserError for what is wrong with it."""
    from sim.prepare import prepare

    placement = fields.get("placement", "first")
    if placement not in placements:
        raise UserError(
            f"placement {placement}: must be one of {', '.join(placements)}: their residents do not depend on slots"
        )
    # every size of one LRU, whoever has it: of an engine its costs alone
    setting = prepare(RunSpec.of({**fields, "engine_as_costs": True, "cache": 1}))
    if setting.plan.step_prefill.all():
        raise UserError(f"{fields['trace']}: has no generated tokens; --as-decode runs its prompts as decode steps")
    return setting


def curve(setting: "Setting") -> Curve:
    """One pass over the run's visits. Raises UserError for a setting with other policies than lru and fetch."""
    from analysis.curves.stack_distances import lru_misses

    plan = setting.plan
    if (plan.eviction.name, plan.miss.name) != ("lru", "fetch") or plan.prefetch or plan.rerank or plan.warmup_steps:
        raise UserError("the curve is LRU's: eviction lru, miss fetch, no prefetch, re-ranking or warm-up are required")
    if plan.resets is not None:
        raise UserError("the curve is of one cache from the first request to the last: no --reset")
    layers, n_experts = plan.experts.shape[1], plan.n_experts
    visits, rank = Visits.of(setting), _ranks(setting)
    kind, wants = visits.prefill.astype(np.int64), visits.wants
    misses, beside = lru_misses(wants.offset, wants.expert, kind, visits.weight, n_experts, layers, plan.pooled, rank)
    size = misses.shape[2] - 1
    return Curve(
        slots=np.arange(1, size + 1),
        misses=np.concatenate([misses, np.zeros_like(misses)])[:2, :, 1:],
        wanted=np.bincount(kind, visits.wide, 2).astype(np.int64),
        tokens=visits.tokens,
        fixed_ns=visits.fixed_ns,
        transfer_ns=visits.transfer_ns,
        beside_ns=beside[DECODE, :, 1:].sum(axis=0),
        cliff=cliff(setting, visits),
        fits=fits(setting, size),
    )


def cliff(setting: "Setting", visits: Visits) -> int:
    """The most experts that a decode step wants of one scope."""
    plan = setting.plan
    decode = visits.wide.reshape(-1, plan.experts.shape[1])[~plan.step_prefill]
    return max(1, int((decode.sum(axis=1) if plan.pooled else decode).max()))


def residents(setting: "Setting", slots: int) -> Int:
    """First residents at so many slots of each scope, as global ids in the order in which they land."""
    from sim.fit.placement import first_residents

    plan, spec = setting.plan, setting.spec
    shape = (plan.experts.shape[1], plan.n_experts)
    return first_residents(spec.placement, *shape, np.full(len(plan.slots), slots), plan.pooled, None, spec.seed)


def _ranks(setting: "Setting") -> Int:
    """Each expert's place among the first residents of its scope, [layers * n_experts]; -1: none is resident."""
    plan = setting.plan
    rank = np.full(plan.experts.shape[1] * plan.n_experts, -1, np.int64)
    size = len(rank) // len(plan.slots)
    order = residents(setting, size)
    rank[order] = np.arange(len(order)) % size
    return rank


def _fixed_ns(setting: "Setting") -> int:
    """What the decode steps of the plan take without their experts."""
    plan, costs = setting.plan, setting.plan.costs
    classes = costs.cost_class[~plan.step_prefill]
    decisions = len(classes) * plan.experts.shape[1] * costs.decide_ns
    return int(costs.dense_ns[classes].sum() + costs.head_ns[classes].sum()) + decisions


def _experts_ns(setting: "Setting", tokens: npt.NDArray[np.int32], offset: Int) -> tuple[Int, Int]:
    """(what the experts of each visit compute, its groups without a miss), [V] each."""
    plan = setting.plan
    sums = np.append(0, np.cumsum(plan.costs.expert_ns[tokens]))
    wide = np.diff(offset)
    return sums[offset[1:]] - sums[offset[:-1]], wide if plan.group == ONE else np.minimum(wide, 1)


def _beside_ns(setting: "Setting", experts_ns: Int, groups: Int, wide: Int, transfer_ns: int) -> Int:
    """What of a visit's experts runs beside its copies, if it has any, [V]: all but one, no longer than a copy."""
    if setting.plan.group == ALL:
        return np.zeros_like(experts_ns)
    busy = experts_ns + np.where(groups > 1, groups, 0) * setting.plan.costs.group_ns
    return np.minimum(busy * np.maximum(wide - 1, 0) // np.maximum(wide, 1), transfer_ns)


def fits(setting: "Setting", size: int) -> int | None:
    """The most slots of each scope that fit the GPU's memory beside the rest, at most `size`."""
    line, expert = setting.memory, setting.plan.expert_bytes
    if line["fits"] is None or not expert:
        return None
    free = line["gpu"] - line["dense"] - line["kv"] - line["staging"]
    return int(min(max(0, free // (expert * len(setting.plan.slots))), size))


def simulated(setting: "Setting", slots: int) -> dict[str, Any]:
    """The simulator's own figures at one capacity: tokens_per_s (None without decode time) and misses of all steps."""
    found, _ = simulate(setting.spec.model_copy(update={"cache": slots}))
    return {"tokens_per_s": found["tokens_per_s"], "misses": found["misses"]}


def to_check(found: Curve) -> list[int]:
    """Capacities worth a look: the cliff, the knee, half of the experts, and one short of all."""
    n = len(found.slots)
    return sorted({found.cliff, found.knee()[0], max(1, n // 2), max(1, n - 1)})


def rows(setting: "Setting", found: Curve, checked: Iterable[int]) -> list[Row]:
    """One row per capacity, in the order of slots; the simulator's figures in those `checked`.

    Raises RuntimeError if the simulator does not count the misses that the curve has: one of the two is wrong.
    """
    scopes, size = len(setting.plan.slots), setting.plan.expert_bytes
    knee, sharpness = found.knee()
    each = zip(found.slots, found.hit_rate, found.decode_misses, found.tokens_per_s, strict=True)
    out = []
    for slots, hit_rate, misses, tokens_per_s in ((x.item() for x in row) for row in each):
        sharp = slots == knee and sharpness >= HARDLY  # where there is none, there is nothing to be marked
        marks = {"cliff": slots == found.cliff, "knee": sharp, "fits": slots == found.fits}
        out.append(
            {
                "slots": slots,
                "share": slots / len(found.slots),
                "gb": slots * scopes * size / 1e9,
                "hit_rate": hit_rate,
                "misses": misses,
                "misses_per_token": misses / found.tokens,
                "tokens_per_s": tokens_per_s,
                "simulated_tokens_per_s": None,
                "error": None,
                "marks": [name for name, here in marks.items() if here],
            }
        )
    for slots in checked:
        said, row = simulated(setting, slots), out[slots - 1]
        if said["misses"] != found.misses[:, :, slots - 1].sum():
            raise RuntimeError(f"{slots} slots: the simulator missed {said['misses']} times, the curve says otherwise")
        row["simulated_tokens_per_s"] = said["tokens_per_s"]
        row["error"] = row["tokens_per_s"] / said["tokens_per_s"] - 1 if said["tokens_per_s"] else None
    return out
