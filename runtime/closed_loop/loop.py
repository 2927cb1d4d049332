"""The closed loop: the core's decisions for routing that becomes known only while a model runs.

A replay has its routing beforehand; here a model speaks visit by visit, and what a visit is answered (a stand-in, a
dropped slot, another set of experts) changes what the model says next. So the plan's trace arrays are blank and are
filled row by row; the reference machine (`sim.machines.discrete`) is driven one visit at a time on its own virtual
clock; its choices are those of `sim.core`, unchanged. One step is

    loop.begin(requests, positions, prefill)        which request each row belongs to
    served = loop.visit(layer, ids, weights, logits)  for every MoE layer, in order; then compute just what it says
    loop.end()

The machine's time is that of the hardware asked for, not of the host that computes. The routing that went by is kept
(`loop.trace()`): replayed by `sim.run` with the same policies it gives the same record, event by event.

What is different from a replay, and how it is settled:

* The core reads router logits as float16. They are handed over rounded so that their order is that of the model's own
  (`ordered_half`), with the router's choice first among equals.
* A re-ranking policy that leaves a token its set of experts leaves it the model's own weights, to the last bit; for a
  set that changed the weights are the policy's.
* The next step is foretold for prefetchers that look beyond this one: one row for each request named `then`.
* What reads the future, or a whole trace, is refused by name; so is what an engine does on a miss beyond one rule and
  slots everywhere (plan.OnMiss), whose arrays are of steps that are not known here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from runtime.closed_loop.live_prefetch import LivePrefetch, live_prefetch_of
from runtime.closed_loop.mean_outputs import MeanOutputs
from runtime.closed_loop.routed import Array, Int, ModelShape, Room, longer, ordered_half, scattered, slot_order, taken
from runtime.closed_loop.visit_by_visit import DROP, HIT, SUBSTITUTE, Committed, Served, VisitByVisit
from sim.catalog.model_spec import ModelSpec
from sim.core import log as lg
from sim.core.inputs import inputs
from sim.core.plan import FORGETS_ROWS, KEEPS_OUT, Costs, Leaving, Low, Plan
from sim.costs.classes import StepShapes
from sim.costs.roofline import costs, low_copies
from sim.errors import SpecError
from sim.flags import OF_THE_HARDWARE
from sim.machines.record import RunRecord
from sim.on_miss import OWN
from sim.policies.registry import find
from sim.prepare import Setting, low_precision, prepare
from sim.spec import RunSpec, came_later
from traces.format.trace import RoutingTrace

# re-ranking policies that choose all of a token's experts anew, by logit
BY_RANK = ("cache-prior", "max-rank", "cache-prior-mass", "tolerance")
FIRST_ROOM = 256  # tokens and steps there is room for at first; doubled whenever it is used up
WEIGHT_TOLERANCE = 0.01  # between a router's weights and a softmax over float16 logits


OF_A_TRACE = (  # what is asked of requests that are known beforehand
    "requests", "reset", "skip_prompts", "warmup_share",
)  # fmt: skip
NO_MATTER = (
    *OF_THE_HARDWARE, "dense_on_host", "vram", "context", "kv_precision", "engine_as_costs", *OF_A_TRACE,
)  # fmt: skip  # to what comes on a miss
COSTS_ALONE = "; --engine-as-costs takes an engine's costs alone"


def _refuse_on_miss(spec: RunSpec, plan: Plan) -> None:
    """Raises SpecError for a plan with an OnMiss; it names the first field that asked for it."""
    if plan.on_miss is None:
        return
    asked = {name: getattr(spec, name) != field.default for name, field in RunSpec.model_fields.items()}
    because = {name: asked[name] for name in asked if came_later(name) and name not in NO_MATTER} | {
        "miss": plan.miss.kind in OWN,
        "eviction": bool(plan.eviction.marks & KEEPS_OUT),
        "cache": bool((plan.slots == 0).any()),
        "hardware": True,  # what its host costs
    }
    name = next(name for name, is_so in because.items() if is_so)
    raise SpecError(
        f"{name}: {getattr(spec, name)}: what an engine does on a miss needs the steps of the run, which a closed loop "
        f"learns as it goes; sim.run and runtime.replay can, from a trace{COSTS_ALONE if spec.behaves else ''}"
    )


def _refuse_of_a_trace(spec: RunSpec) -> None:
    """Raises SpecError for what is asked of a whole trace."""
    if spec.speculate is not None:
        raise SpecError(f"speculate: {spec.speculate}: a closed loop's model says one token after another")
    for name in OF_A_TRACE:
        if (given := getattr(spec, name)) != RunSpec.model_fields[name].default:
            raise SpecError(f"{name}: {given}: needs all requests beforehand, which a closed loop learns as it goes")


def means_for(spec: RunSpec, means: MeanOutputs | None) -> MeanOutputs | None:
    """The mean outputs, None where the miss policy has no use for them. Raises SpecError where it needs them."""
    if not find("miss", spec.miss).mean:
        return None
    if means is None:
        raise SpecError(f"miss: {spec.miss}: needs the mean outputs of the model's experts (means), which nobody gave")
    return means


class ClosedLoop:
    """One run: the machine, and room for what the router says. `spec.trace` is a label only.

    charged: the model whose sizes are charged (None: the catalog's of that name). calibration: what fitted policies are
    fitted on. keep_logits: for `trace()`, also where no policy reads them. means: what some miss policies answer by.

    Raises SpecError, CatalogError or SpecError, one line, for what
    does not fit or cannot be had in a closed loop.
    """

    def __init__(
        self,
        spec: RunSpec,
        shape: ModelShape,
        calibration: RoutingTrace | None = None,
        priced_as: ModelSpec | None = None,
        keep_logits: bool = False,
        means: MeanOutputs | None = None,
    ) -> None:
        if find("eviction", spec.eviction).oracle:
            raise SpecError(f"eviction: {spec.eviction}: reads the future, which a closed loop does not have")
        _refuse_of_a_trace(spec)
        self.spec, self.shape, self.means = spec, shape, means_for(spec, means)
        self.live_prefetch: LivePrefetch | None = live_prefetch_of(spec, shape.blank(), calibration)
        own = {key: value for key, value in spec.set.items() if key.rpartition(".")[0] != spec.prefetch}
        used = calibration is not None and "calibration"
        plain = spec.model_copy(
            update={"prefetch": "none", "set": own, "calibration": used or None, "warmup_steps": 0}  # one blank step
        )
        self.setting: Setting = prepare(plain, trace=shape.blank(), calibration=calibration, model=priced_as)
        _refuse_on_miss(spec, self.setting.plan)
        self.needs_logits = keep_logits or self.setting.plan.logits is not None
        self.rerank = None if self.setting.plan.rerank is None else spec.rerank
        self._room = Room(shape, self.live_prefetch)
        self._prices: dict[tuple[Any, ...], tuple[list[int], int]] = {}
        self._costs = self.setting.plan.costs
        self._grow(FIRST_ROOM, FIRST_ROOM, 1)
        self.machine = VisitByVisit(self._plan())
        self._adopt()
        self.step, self.tokens, self.slots_reranked, self.weight_reranked = -1, 0, 0, 0.0
        self._ended = True
        self._record: RunRecord | None = None
        self._active: set[int] = set()  # requests of the step before

    # --- one step ------------------------------------------------------------------------------------------------

    def begin(
        self, requests: Sequence[int], positions: Sequence[int], prefill: bool, then: Sequence[int] | None = ()
    ) -> None:
        """A forward pass over these rows. requests [n]: whose each row is (those of one stand together);
        positions [n]; then: whose rows the next step will have, one each (default: those of this step; None: the
        run ends here)."""
        if not self._ended or self._record is not None:
            raise RuntimeError("no step can follow: the one before was broken off, or the run has ended")
        n, room = len(requests), self._room
        self._grow(self.tokens + n + max(n, len(then or ())), self.step + 3, n)
        self.step, self._ended = self.step + 1, False
        self.rows = slice(self.tokens, self.tokens + n)
        self.tokens += n
        room.begin(self.step, self.rows, requests, positions, prefill)
        if self.setting.plan.leaving is not None:
            room.leave(self.step, self._leaving(set(requests)))
        ahead = () if then is None else tuple(then) or tuple(dict.fromkeys(requests))
        room.foretell(self.step, self.tokens, len(ahead))
        if self.live_prefetch is not None:
            self.live_prefetch.begin(self.rows, requests, {r: self.tokens + i for i, r in enumerate(ahead)})
        known = self.step + (1 if then is None else 2)
        self.machine.route.replace(step_prefill=room.prefill[:known])
        self.machine.step_ns = self._price(tuple(positions), prefill)
        self.machine.begin_step(self.step)

    def _leaving(self, here: set[int]) -> Array:
        """The rows that an eviction policy that looks back forgets now (sim.steps.leaving): those of the step `window`
        steps ago, or of the requests that no longer have a row."""
        room, eviction = self._room, self.setting.plan.eviction
        if eviction.marks & FORGETS_ROWS:
            gone = self.step - int(eviction.params[0])
            return np.arange(*room.offset[gone : gone + 2]) if gone >= 0 else np.zeros(0, np.int64)
        left = [request for request in self._active if request not in here]
        self._active = here
        return np.flatnonzero(np.isin(room.request[: self.rows.start], left))

    def visit(self, layer: int, ids: Array, weights: Array, logits: Array | None = None, hidden: Any = None) -> Served:
        """The router of MoE layer `layer` (0 ...) has spoken: ids [n, K], weights [n, K], raw logits [n, E]; hidden is
        what its router saw, for a prefetcher that asks later routers."""
        room, rows, step, machine = self._room, self.rows, self.step, self.machine
        order = slot_order(ids, weights)
        room.experts[rows, layer] = taken(order, ids)
        room.weights[rows, layer] = taken(order, weights)
        if self.needs_logits and logits is not None:
            room.logits[rows, layer] = ordered_half(logits.astype(np.float64), ids)
        elif self.needs_logits:
            raise SpecError(f"{self.spec.miss}, {self.spec.rerank}: need router logits, which this model does not give")
        if self.live_prefetch is not None:
            self.live_prefetch.visit(layer, room.experts, hidden)
        before = int(machine.s.rows.answers)
        machine.until(machine.layer_of(step, layer))
        return self._served(order, ids, weights, logits, before)

    def end(self) -> None:
        """The forward pass is over."""
        self.machine.until(self.machine.end_step(self.step))
        self._ended = True

    def first_residents(self) -> list[Committed]:
        """What is in the slots before the first step."""
        s = self.machine.s
        return [Committed(int(g), int(s.expert[g].slot)) for g in self.setting.plan.residents]

    # --- what came of a visit ------------------------------------------------------------------------------------

    def _served(self, order: Int | None, ids: Array, weights: Array, logits: Array | None, before: int) -> Served:
        machine, n = self.machine, len(ids)
        s, log = machine.s, machine.log
        assert log is not None
        got, slot = taken(order, ids).astype(np.int64), order
        new_weights, reweighted = None, np.zeros(n, np.bool_)
        if self.rerank is not None:
            if self.rerank in BY_RANK and self.step == 0:
                self._check_router(ids, weights, logits)
            got, slot, reweighted = self._reranked(got, taken(order, weights), ids, order)
            if reweighted.any():
                new_weights = scattered(slot, s.weight[:n].copy())
        answers = np.full(got.shape, HIT, np.int8)
        if s.rows.answers > before:
            given = log.arrays["answers"][before : s.rows.answers]
            at = (given["row"] - self.rows.start, given["slot"])
            answers[at] = given["answer"]
            got[at] = np.where(given["answer"] == SUBSTITUTE, given["stand_in"], got[at])
            got[answers == DROP] = -1
        ops, machine.ops = machine.ops, []
        return Served(scattered(slot, got), new_weights, reweighted, scattered(slot, answers), ops)

    def _reranked(self, routed: Int, weights: Array, ids: Array, order: Int | None) -> tuple[Int, Int | None, Any]:
        """(ids after re-ranking, the router's slot that each belongs to, rows whose weights are the policy's)."""
        s, n = self.machine.s, len(routed)
        new = s.routed[:n].copy()
        kept = (routed[:, :, None] == new[:, None, :]).any(axis=2)
        self.slots_reranked += int((~kept).sum())
        self.weight_reranked += float(weights[~kept].sum())
        if self.rerank not in BY_RANK:
            return new, order, (new != routed).any(axis=1) | (s.weight[:n] != weights).any(axis=1)
        changed = ~kept.all(axis=1)
        own = (new[:, :, None] == ids[:, None, :]).argmax(axis=2)  # of rows that keep their set
        return new, np.where(changed[:, None], np.arange(new.shape[1]), own), changed

    def _check_router(self, ids: Array, weights: Array, logits: Array | None) -> None:
        """Raises SpecError where the model's router is not what re-ranking by logit takes it for."""
        assert logits is not None
        p = np.exp(logits - logits.max(axis=1, keepdims=True)).astype(np.float64)
        p /= p.sum(axis=1, keepdims=True)
        mine = np.take_along_axis(p, ids, axis=1)
        others = p.copy()
        np.put_along_axis(others, ids, 0.0, axis=1)
        if self.shape.norm_topk:
            mine = mine / mine.sum(axis=1, keepdims=True)
        if (np.take_along_axis(p, ids, axis=1).min(axis=1) < others.max(axis=1)).any() or not np.allclose(
            mine, weights, rtol=WEIGHT_TOLERANCE, atol=WEIGHT_TOLERANCE / 10
        ):
            raise SpecError(
                f"rerank: {self.rerank}: takes the router for a softmax whose top-k are chosen; {self.shape.name}'s "
                "chooses or weighs otherwise, so that it would change the model even with everything resident"
            )

    # --- what a step costs ---------------------------------------------------------------------------------------

    def _costs_of(self, positions: Sequence[int], prefill: bool) -> Costs:
        made, at = self.setting, np.asarray(positions, np.int64) + self.spec.context_offset
        moe_layers = np.asarray(self.shape.moe_layers, np.int64)
        shapes = StepShapes(np.array([0, len(at)]), at, np.array([prefill]), self.shape.n_layers, moe_layers)
        return costs(made.model, made.hardware, made.engine, self.spec.precision, shapes, made.costed.on_host)

    def _price(self, positions: tuple[int, ...], prefill: bool) -> tuple[list[int], int]:
        """(dense parts, head) of a step in ns."""
        key = (positions, prefill)
        if key not in self._prices:
            found = self._costs_of(positions, prefill)
            self._prices[key] = (found.dense_ns[0].tolist(), int(found.head_ns[0]))
        return self._prices[key]

    # --- room ----------------------------------------------------------------------------------------------------

    def _grow(self, tokens: int, steps: int, rows: int) -> None:
        """Room for at least so many tokens, steps, and rows in a step."""
        wider = rows > len(self._costs.expert_ns) - 1
        if wider:
            self._costs = self._costs_of(range(rows), False)
        if self._room.grow(tokens, steps) or wider:
            self._adopt(rows)

    def _low(self) -> Low | None:
        """The low-precision copies, with durations for as many rows as a step may have."""
        made = self.setting
        if made.plan.low is None:
            return None
        rows = len(self._costs.expert_ns) - 1
        return low_copies(made.model, made.hardware, made.engine, self.low_precision, made.plan.low.slots, rows)

    @property
    def low_precision(self) -> str:
        """The precision of the low-precision copies."""
        return low_precision(self.setting.spec)

    def _plan(self) -> Plan:
        """The plan over the room there is now."""
        room, plan = self._room, self.setting.plan
        return replace(
            plan,
            experts=room.experts,
            weights=None if plan.weights is None else room.weights,
            logits=None if plan.logits is None else room.logits,
            step_offset=room.offset,
            step_row=room.row,
            step_prefill=room.prefill,
            costs=self._costs,
            prefetch=None if self.live_prefetch is None else self.live_prefetch.prefetch(self.spec),
            warmup_steps=self.spec.warmup_steps,
            low=self._low(),
            leaving=None if plan.leaving is None else Leaving(room.leaving_offset, room.leaving_row),
            fresh=room.fresh,
        )

    def _adopt(self, rows: int = 1) -> None:
        """Give the machine the room and the costs as they are now; what it knows stays."""
        machine = getattr(self, "machine", None)
        if machine is None:
            return
        plan, s, had = self._plan(), machine.s, machine.log.arrays
        low = plan.low or plan.costs
        rows = max(rows, len(s.routed), len(self._costs.expert_ns) - 1)
        wide = {name: longer(getattr(s, name), rows) for name in ("routed", "weight")}
        of_tokens = {
            name: longer(s.arrays[name], len(plan.experts)) for name in ("loss", "gates") if len(s.arrays[name])
        }
        s.replace(**of_tokens, **wide)
        machine.plan, machine.costs, machine.expert_ns = plan, plan.costs, (plan.costs.expert_ns, low.expert_ns)
        log = {name: longer(had[name].astype(new.dtype), len(new)) for name, new in lg.new_log(plan).arrays.items()}
        machine.log = lg.Log(**log)
        n = len(plan.step_prefill)
        machine.clock.replace(**{name: longer(getattr(machine.clock, name), n) for name in ("begin", "end", "event")})
        route, machine.miss, machine.ahead, hooks = inputs(plan, machine.s)
        # it has copied the weights; what is filled in later must be seen
        if plan.weights is not None:
            route.replace(weights=self._room.weights)
        machine.route = route
        if hooks is not None:
            machine.hooks.replace(ns=hooks.ns)

    # --- what came of the run ------------------------------------------------------------------------------------

    def record(self) -> RunRecord:
        """The record, like that of a replay; transfers under way are unfinished. The run ends with it."""
        if self._record is None:
            self._record = self._recorded()
        return self._record

    def _recorded(self) -> RunRecord:
        assert self._ended, "a step is under way"
        room, steps, machine = self._room, self.step + 1, self.machine
        if steps <= self.spec.warmup_steps:
            raise SpecError(f"warmup_steps: {self.spec.warmup_steps}: the run has {steps} steps; must be fewer")
        machine.end_run()
        plan = replace(
            machine.plan,
            experts=room.experts[: self.tokens],
            step_offset=room.offset[: steps + 1],
            step_row=room.row[: self.tokens],
            step_prefill=room.prefill[:steps],
            requests=room.requests(self.tokens, steps),
        )
        s, clock = machine.s, machine.clock
        clock.replace(begin=clock.begin[:steps], end=clock.end[:steps], event=clock.event[:steps])
        s.replace(loss=s.loss[: self.tokens])
        return RunRecord.of(plan, s, machine.log, clock)

    def trace(self, **meta: Any) -> RoutingTrace:
        """What the routers said, as a routing trace (before re-ranking): request by request."""
        return self._room.trace(self.tokens, self.step + 1, self.shape.meta(**meta), self.needs_logits)
