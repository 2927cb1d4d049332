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
* What reads the future, or a whole trace, is refused by name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from runtime.foresight import Foresight, foresight_of
from sim.catalog.model_spec import ModelSpec
from sim.core import log as lg
from sim.core import state as st
from sim.core.hooks import explained, new_hooks
from sim.core.inputs import inputs
from sim.core.jit import frozen
from sim.core.plan import ANSWERS, Costs, Leaving, Low, Plan
from sim.costs import StepShapes, costs, low_copies
from sim.errors import SpecError
from sim.machines.discrete import Machine, Process
from sim.plan import Setting, prepare
from sim.policies import EVICTION, MISS, RERANK, find
from sim.record import RunRecord
from sim.spec import RunSpec
from traces.trace import RoutingTrace

Array = npt.NDArray[Any]
Int = npt.NDArray[np.int64]
FETCH, SUBSTITUTE, DROP, CPU, LOW = range(len(ANSWERS))
HIT = -1
BY_RANK = ("cache-prior", "max-rank")  # re-ranking policies that choose all of a token's experts anew, by logit
FIRST_ROOM = 256  # tokens and steps there is room for at first; doubled whenever it is used up
WEIGHT_TOLERANCE = 0.01  # between a router's weights and a softmax over float16 logits


@dataclass(frozen=True)
class ModelShape:
    """What a closed loop must know of a model's routing. moe_layers: indices of its MoE layers among n_layers."""

    name: str
    n_layers: int
    moe_layers: tuple[int, ...]
    n_experts: int
    top_k: int
    norm_topk: bool = True
    score_function: str = "softmax"

    def meta(self, **more: Any) -> dict[str, Any]:
        """As a routing trace describes it."""
        return {
            "format_version": 1,
            "model": self.name,
            "n_experts": self.n_experts,
            "top_k": self.top_k,
            "n_layers": self.n_layers,
            "moe_layers": list(self.moe_layers),
            "norm_topk": self.norm_topk,
            "score_function": self.score_function,
            "real": True,
            **more,
        }

    def blank(self, tokens: int = 1) -> RoutingTrace:
        """A trace of this shape in which nothing is routed yet."""
        rows = (tokens, len(self.moe_layers))
        return RoutingTrace(
            experts=np.full((*rows, self.top_k), -1, np.int16),
            weights=np.zeros((*rows, self.top_k), np.float32),
            logits=np.zeros((*rows, self.n_experts), np.float16),
            sequence=np.zeros(tokens, np.int32),
            position=np.arange(tokens, dtype=np.int32),
            prefill=np.zeros(tokens, np.bool_),
            meta=self.meta(),
        )


class Copy(NamedTuple):
    """A transfer was committed: expert (global id) takes the slot, whose former resident is gone. Low-precision copies
    have ids and slots of their own, behind all others (sim.core.plan.Low)."""

    expert: int
    slot: int


class Run(NamedTuple):
    """The GPU computes these experts (global ids) in this order."""

    experts: tuple[int, ...]


class Served(NamedTuple):
    """What a visit's slots got, in the router's own order of slots; n rows, K slots.

    ids int64 [n, K]: the expert that answers (-1 nobody). weights float64 [n, K], or None: all as the router has
    them. reweighted bool [n]: rows whose `weights` count, the other rows keep the router's. answers int8 [n, K]:
    index into plan.ANSWERS of slots that missed, -1 of the others. ops: committed copies and groups that ran, since
    the visit before, in the machine's order.
    """

    ids: Int
    weights: npt.NDArray[np.float64] | None
    reweighted: npt.NDArray[np.bool_]
    answers: npt.NDArray[np.int8]
    ops: list[Copy | Run]

    @property
    def untouched(self) -> bool:
        """Every slot is answered by its own expert, wherever it is computed, with its own weight."""
        return self.weights is None and not (self.answers[self.answers != CPU] > FETCH).any()


def ordered_half(logits: npt.NDArray[np.floating[Any]], ids: Array) -> npt.NDArray[np.float16]:
    """float16 [n, E] of float logits [n, E] that rank as those do, exactly: where rounding made two equal, the lower
    steps down to the next float16. Equal logits rank as the core has it (the lower id first), but the router's own ids
    [n, K] before others."""
    chosen = np.zeros(logits.shape, np.bool_)
    np.put_along_axis(chosen, np.maximum(ids, 0), True, axis=1)
    out = np.clip(logits, -60000, 60000).astype(np.float16)
    order = np.lexsort((np.broadcast_to(np.arange(logits.shape[1]), logits.shape), ~chosen, -logits), axis=1)
    ranked = np.take_along_axis(out, order, axis=1)
    exact = np.take_along_axis(logits, order, axis=1)
    falls = (exact[:, 1:] < exact[:, :-1]) | (order[:, 1:] < order[:, :-1])  # must be strictly below the one before
    for row in np.flatnonzero((falls & (ranked[:, 1:] >= ranked[:, :-1])).any(axis=1)):
        for i in range(1, logits.shape[1]):
            before = ranked[row, i - 1]
            if falls[row, i - 1]:
                ranked[row, i] = min(ranked[row, i], np.nextafter(before, np.float16(-np.inf)))
            else:
                ranked[row, i] = min(ranked[row, i], before)
    np.put_along_axis(out, order, ranked, axis=1)
    return out


class Stepped(Machine):
    """The reference machine, driven one visit at a time; keeps what was copied and computed, in order."""

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan, full=True)
        self.ops: list[Copy | Run] = []
        self.step_ns: tuple[list[int], int] = ([], 0)  # of the step that runs: dense parts, head

    def durations(self, step: int) -> tuple[list[int], int]:
        return self.step_ns

    def commit(self, event: Any) -> None:
        s, before = self.s, int(self.s.c[st.FLIGHT_LEN])
        super().commit(event)
        for i in range(before, int(s.c[st.FLIGHT_LEN])):
            g = int(s.work[st.FLIGHT, (s.c[st.FLIGHT_HEAD] + i) % len(s.x)])
            self.ops.append(Copy(g, int(s.x[g, st.SLOT])))

    def run_group(self, n: int, group: int) -> Process:
        run = self.s.c[st.N_RUN]
        self.ops.append(Run(tuple(self.s.work[st.READY, run : run + n].tolist())))
        yield from super().run_group(n, group)

    def until(self, process: Process) -> None:
        """Let the clock run until this is done."""
        with explained(self.plan, self.hooks):
            self.env.run(until=self.env.process(process))


class ClosedLoop:
    """One run: the machine, and room for what the router says. `spec.trace` is a label only.

    charged: the model whose sizes are charged (None: the catalog's of that name). calibration: what fitted policies are
    fitted on. keep_logits: for `trace()`, also where no policy reads them.

    Raises SpecError, CatalogError or FitError, one line, for what
    does not fit or cannot be had in a closed loop.
    """

    def __init__(
        self,
        spec: RunSpec,
        shape: ModelShape,
        calibration: RoutingTrace | None = None,
        charged: ModelSpec | None = None,
        keep_logits: bool = False,
    ) -> None:
        _refuse_oracles(spec)
        self.spec, self.shape = spec, shape
        self.foresight: Foresight | None = foresight_of(spec, shape.blank(), calibration)
        own = {key: value for key, value in spec.set.items() if key.rpartition(".")[0] != spec.prefetch}
        used = calibration is not None and "calibration"
        plain = spec.model_copy(
            update={"prefetch": "none", "set": own, "calibration": used or None, "warmup_steps": 0}  # one blank step
        )
        self.setting: Setting = prepare(plain, trace=shape.blank(), calibration=calibration, model=charged)
        self.needs_logits = keep_logits or self.setting.plan.logits is not None
        self.rerank = None if spec.rerank == "none" else find("rerank", RERANK, spec.rerank).name
        self._room = _Room(shape, self.foresight)
        self._prices: dict[tuple[Any, ...], tuple[list[int], int]] = {}
        self._costs = self.setting.plan.costs
        self._grow(FIRST_ROOM, FIRST_ROOM, 1)
        self.machine = Stepped(self._plan())
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
        if self.foresight is not None:
            self.foresight.begin(self.rows, requests, {r: self.tokens + i for i, r in enumerate(ahead)})
        known = self.step + (1 if then is None else 2)
        self.machine.route = self.machine.route._replace(step_prefill=frozen(room.prefill[:known]))
        self.machine.step_ns = self._price(tuple(positions), prefill)
        self.machine.begin_step(self.step)

    def _leaving(self, here: set[int]) -> Array:
        """The rows that an eviction policy that looks back forgets now (sim.steps.leaving): those of the step `window`
        steps ago, or of the requests that no longer have a row."""
        room, eviction = self._room, self.setting.plan.eviction
        if eviction.name == "window-score":
            gone = self.step - int(eviction.params[0])
            return np.arange(*room.offset[gone : gone + 2]) if gone >= 0 else np.zeros(0, np.int64)
        left = [request for request in self._active if request not in here]
        self._active = here
        return np.flatnonzero(np.isin(room.request[: self.rows.start], left))

    def visit(self, layer: int, ids: Array, weights: Array, logits: Array | None = None, hidden: Any = None) -> Served:
        """The router of MoE layer `layer` (0 ...) has spoken: ids [n, K], weights [n, K], raw logits [n, E]; hidden is
        what its router saw, for a prefetcher that asks later routers."""
        room, rows, step, machine = self._room, self.rows, self.step, self.machine
        order = _slot_order(ids, weights)
        room.experts[rows, layer] = _taken(order, ids)
        room.weights[rows, layer] = _taken(order, weights)
        if self.needs_logits and logits is not None:
            room.logits[rows, layer] = ordered_half(logits.astype(np.float64), ids)
        elif self.needs_logits:
            raise SpecError(f"{self.spec.miss}, {self.spec.rerank}: need router logits, which this model does not give")
        if self.foresight is not None:
            self.foresight.visit(layer, room.experts, hidden)
        before = int(machine.s.c[st.R_ANSWERS])
        machine.until(machine.layer_of(step, layer))
        return self._served(order, ids, weights, logits, before)

    def end(self) -> None:
        """The forward pass is over."""
        self.machine.until(self.machine.end_step(self.step))
        self._ended = True

    def first_residents(self) -> list[Copy]:
        """What is in the slots before the first step."""
        s = self.machine.s
        return [Copy(int(g), int(s.x[g, st.SLOT])) for g in self.setting.plan.residents]

    # --- what came of a visit ------------------------------------------------------------------------------------

    def _served(self, order: Int | None, ids: Array, weights: Array, logits: Array | None, before: int) -> Served:
        machine, n = self.machine, len(ids)
        s, log = machine.s, machine.log
        assert log is not None
        got, slot = _taken(order, ids).astype(np.int64), order
        new_weights, reweighted = None, np.zeros(n, np.bool_)
        if self.rerank is not None:
            if self.rerank in BY_RANK and self.step == 0:
                self._check_router(ids, weights, logits)
            got, slot, reweighted = self._reranked(got, _taken(order, weights), ids, order)
            if reweighted.any():
                new_weights = _scattered(slot, s.weight[:n].copy())
        answers = np.full(got.shape, HIT, np.int8)
        rows = log.answers[before : s.c[st.R_ANSWERS]]
        if len(rows):
            at = (rows[:, lg.A_ROW] - self.rows.start, rows[:, lg.A_SLOT])
            answers[at] = rows[:, lg.A_ANSWER]
            got[at] = np.where(rows[:, lg.A_ANSWER] == SUBSTITUTE, rows[:, lg.A_STAND_IN], got[at])
            got[answers == DROP] = -1
        ops, machine.ops = machine.ops, []
        return Served(_scattered(slot, got), new_weights, reweighted, _scattered(slot, answers), ops)

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

    def _shapes(self, positions: Sequence[int], prefill: bool) -> StepShapes:
        at = np.asarray(positions, np.int64) + self.spec.context_offset
        offset, kind = np.array([0, len(at)]), np.array([prefill])
        return StepShapes(offset, at, kind, self.shape.n_layers, np.asarray(self.shape.moe_layers, np.int64))

    def _costs_of(self, positions: Sequence[int], prefill: bool) -> Costs:
        made = self.setting
        return costs(made.model, made.hardware, made.engine, self.spec.precision, self._shapes(positions, prefill))

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
        found = low_copies(made.model, made.hardware, made.engine, self.low_precision, made.plan.low.slots, rows)
        return found

    @property
    def low_precision(self) -> str:
        """The precision of the low-precision copies."""
        miss = find("miss", MISS, self.spec.miss)
        return str(miss.values(self.spec.params(self.spec.miss))["precision"])

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
            prefetch=None if self.foresight is None else self.foresight.prefetch(self.spec),
            warmup_steps=self.spec.warmup_steps,
            low=self._low(),
            leaving=None if plan.leaving is None else Leaving(room.leaving_offset, room.leaving_row),
        )

    def _adopt(self, rows: int = 1) -> None:
        """Give the machine the room and the costs as they are now; what it knows stays."""
        machine = getattr(self, "machine", None)
        if machine is None:
            return
        plan, s = self._plan(), machine.s
        low = plan.low or plan.costs
        rows = max(rows, len(s.routed), len(self._costs.expert_ns) - 1)
        wide = {name: _longer(getattr(s, name), rows) for name in ("routed", "weight")}
        machine.s = s._replace(loss=_longer(s.loss, len(plan.experts)), **wide)
        machine.plan, machine.costs, machine.expert_ns = plan, plan.costs, (plan.costs.expert_ns, low.expert_ns)
        machine.log = lg.Log(*(_longer(a, len(b)) for a, b in zip(machine.log, lg.new_log(plan), strict=True)))
        n = len(plan.step_prefill)
        machine.clock = machine.clock._replace(
            **{name: _longer(getattr(machine.clock, name), n) for name in ("begin", "end", "event")}
        )
        machine.route, miss, machine.ahead = inputs(plan, machine.s, True)
        assert miss is not None  # a full record always has it
        # Miss.of copies the weights; what is filled in later must be seen
        machine.miss = miss if plan.weights is None else miss._replace(weights=frozen(self._room.weights))
        machine.hooks = machine.hooks._replace(ns=new_hooks(plan).ns)

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
        clock = machine.clock
        clock = clock._replace(begin=clock.begin[:steps], end=clock.end[:steps], event=clock.event[:steps])
        return RunRecord.of(plan, machine.s._replace(loss=machine.s.loss[: self.tokens]), machine.log, clock)

    def trace(self, **meta: Any) -> RoutingTrace:
        """What the routers said, as a routing trace (before re-ranking): request by request."""
        return self._room.trace(self.tokens, self.step + 1, self.shape.meta(**meta), self.needs_logits)


class _Room:
    """The arrays that fill as the run goes: T tokens, S steps there is room for, each row by row."""

    def __init__(self, shape: ModelShape, foresight: Foresight | None) -> None:
        none = shape.blank(1)
        self.foresight = foresight
        self.experts, self.weights, self.logits = (np.empty((0, *a.shape[1:]), a.dtype) for a in _routed(none))
        self.row, self.request, self.position = (np.zeros(0, np.int32) for _ in range(3))
        self.offset, self.prefill = np.zeros(1, np.int64), np.zeros(0, np.bool_)
        self.leaving_offset, self.leaving_row = np.zeros(1, np.int64), np.zeros(0, np.int32)

    def grow(self, tokens: int, steps: int) -> bool:
        """Room for at least so many; False where there was."""
        if tokens <= len(self.row) and steps <= len(self.prefill):
            return False
        tokens, steps = (max(have, 2 * have * (need > have), need) for need, have in (
            (tokens, len(self.row)), (steps, len(self.prefill)),
        ))  # fmt: skip
        self.experts, self.weights, self.logits = (
            _longer(a, tokens) for a in (self.experts, self.weights, self.logits)
        )
        self.request, self.position = _longer(self.request, tokens), _longer(self.position, tokens)
        self.row = np.arange(tokens, dtype=np.int32)
        self.leaving_offset, self.leaving_row = (
            _longer(self.leaving_offset, steps + 1),
            _longer(self.leaving_row, tokens),
        )
        self.offset, self.prefill = _longer(self.offset, steps + 1), _longer(self.prefill, steps)
        if self.foresight is not None:
            self.foresight.grow(tokens)
        return True

    def begin(self, step: int, rows: slice, requests: Sequence[int], positions: Sequence[int], prefill: bool) -> None:
        self.request[rows], self.position[rows] = requests, positions
        self.offset[step], self.offset[step + 1], self.prefill[step] = rows.start, rows.stop, prefill

    def leave(self, step: int, rows: Array) -> None:
        """These rows are forgotten at this step by an eviction policy that looks back."""
        first = self.leaving_offset[step]
        self.leaving_row[first : first + len(rows)] = rows
        self.leaving_offset[step + 1] = first + len(rows)

    def foretell(self, step: int, first: int, rows: int) -> None:
        """The step after this one will have so many rows."""
        self.offset[step + 2] = first + rows

    def requests(self, tokens: int, steps: int) -> Int:
        """int64 [n, 5], as sim.steps has them: request, admitted, last_prefill, first_decode, generated."""
        step_of = np.repeat(np.arange(steps), np.diff(self.offset[: steps + 1]))
        prefill = self.prefill[:steps]
        decode_number = np.cumsum(~prefill) - 1
        out = []
        for request in dict.fromkeys(self.request[:tokens].tolist()):
            own = np.unique(step_of[self.request[:tokens] == request])
            prompt, decode = own[prefill[own]], own[~prefill[own]]
            last = int(prompt[-1]) if len(prompt) else -1
            first = int(decode_number[decode[0]]) if len(decode) else int((~prefill[: last + 1]).sum())
            out.append((request, int(own[0]), last, first, len(decode)))
        return np.array(out, np.int64).reshape(-1, 5)

    def trace(self, tokens: int, steps: int, meta: dict[str, Any], with_logits: bool) -> RoutingTrace:
        request = self.request[:tokens]
        place = {r: i for i, r in enumerate(dict.fromkeys(request.tolist()))}
        order = np.argsort([place[r] for r in request.tolist()], kind="stable")
        prefill = np.repeat(self.prefill[:steps], np.diff(self.offset[: steps + 1]))
        return RoutingTrace(
            experts=self.experts[:tokens][order],
            weights=self.weights[:tokens][order],
            logits=self.logits[:tokens][order] if with_logits else None,
            sequence=request[order],
            position=self.position[:tokens][order],
            prefill=prefill[order],
            meta=meta,
        )


def _routed(trace: RoutingTrace) -> tuple[Array, Array, Array]:
    assert trace.weights is not None and trace.logits is not None
    return trace.experts, trace.weights, trace.logits


def _longer(array: Array, n: int) -> Array:
    """The array with zeros behind it up to a length of n; the same one where it is as long."""
    if len(array) >= n:
        return array
    out = np.zeros((n, *array.shape[1:]), array.dtype)
    out[: len(array)] = array
    return out


def _slot_order(ids: Array, weights: Array) -> Int | None:
    """The slots [n, K] as a trace has them: by descending weight, ties by id; None where they stand so already."""
    if (weights[:, :-1] > weights[:, 1:]).all():
        return None
    return np.lexsort((ids, -weights), axis=1)


def _taken(order: Int | None, values: Array) -> Array:
    """Values [n, K] of the router's slots, in the core's order."""
    return values if order is None else np.take_along_axis(values, order, axis=1)


def _scattered(slot: Int | None, values: Array) -> Array:
    """Values [n, K] of slots in the core's order, put where the router has them."""
    if slot is None:
        return values
    out = np.empty_like(values)
    np.put_along_axis(out, slot, values, axis=1)
    return out


def _refuse_oracles(spec: RunSpec) -> None:
    policy = find("eviction", EVICTION, spec.eviction)
    if policy.oracle:
        raise SpecError(f"eviction: {spec.eviction}: reads the future, which a closed loop does not have")
