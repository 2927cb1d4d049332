"""A user's own policies in the core: one is compiled alone, called by its address, its answers are checked.

The compiled loop takes addresses, so it is not compiled again for a function that it has never seen; the lean
version takes None in the place of Hooks and has none of this. The user's function is compiled with numba's
runtime (it may allocate) and with bounds checks (a wrong index is an error and no ruined memory).
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any

import numpy as np

from sim.core import state as st
from sim.core.half import half_to_float
from sim.core.jit import compiles, inner
from sim.core.memory import Memory, Struct, zeros
from sim.core.plan import Choice, Plan
from sim.core.state import COMMITTED, RESIDENT, State
from sim.core.view import CPU, Float, Int, View
from traces.errors import UserError

KINDS = ("eviction", "miss", "rerank")
EVICTION, MISS, RERANK = range(3)
NONE = np.int64(-1)
# rows of Hooks.of_each: the view's arrays over experts, in its order, and the token's ids
CANDIDATES, IS_RESIDENT, IS_COMMITTED, IS_HELD, IS_USED, RECENCY, LANDINGS, USED_TIMES, IDS, ROWS = range(10)
# rows of Hooks.floats; state and params: one of each kind
WEIGHTS, LOGITS, STATES, PARAMS, FLOAT_ROWS = 0, 1, 2, 5, 8
TRANSFER_NS, EXPERT_NS, CPU_NS = range(3)  # rows of Hooks.ns; CPU_NS: link idle, then busy
NOTHING_ASKED = -1
NO_INDEX, NO_EXPERT, NOT_RESIDENT, NO_CODE, NO_HOST, BAD_ID, TWICE, BAD_WEIGHT = np.arange(1, 9)
WHY: dict[Any, str] = {
    NO_INDEX: "answered {answer}: is no index into the candidates",
    NO_EXPERT: "answered {answer}: the layer has no such expert",
    NOT_RESIDENT: "answered {answer}: that expert is not resident",
    NO_CODE: "answered {answer}: must be an expert, or FETCH -1, DROP -2, CPU -3",
    NO_HOST: "answered CPU: the hardware has no durations for it",
    BAD_ID: "wrote {answer} into ids: the layer has no such expert",
    TWICE: "wrote expert {answer} into ids twice",
    BAD_WEIGHT: "wrote a weight that is negative or no number, beside expert {answer}",
}


class BadAnswer(Exception):
    """Raised within a run; `explained` says what was wrong."""


@dataclass(frozen=True)
class Hook:
    """A user's function, ready for the core: `size` of its state array; `address` of the compiled code (0
    where numba is switched off); `compiled` keeps that code alive; `host`: whether it may answer CPU."""

    function: Callable[..., int]
    size: int
    address: int
    compiled: Any
    host: bool = True


class Asked(Struct):
    # of the run
    state_len: Annotated[Int, len(KINDS)]  # of each kind's state
    params_len: Annotated[Int, len(KINDS)]  # and params
    expert_bytes: int
    no_cpu: int  # 1: nothing says what an answer CPU would cost
    # what goes on, for errors
    kind: int  # of the function that is asked, or NOTHING_ASKED
    visit: int
    token: int
    slot: int
    answer: int
    wrong: int  # a key of WHY, 0 nothing


class Hooks(Memory):
    """What user's functions are called with, and what views are made of, each row as long as it is needed."""

    functions: Any  # int64 [3] addresses, 0 none (without numba: the functions)
    asked: Asked
    of_each: Int  # [ROWS, ...]
    floats: Float  # [FLOAT_ROWS, ...]
    ns: Int  # [4, ...] plan.Costs' transfer_ns, expert_ns and the two of cpu_expert_ns


def new_hooks(plan: Plan) -> Hooks:
    """Fresh state for one run of a plan."""
    choices = _choices(plan)
    hooks = [None if choice is None else choice.function for choice in choices]
    sizes = [0 if hook is None else hook.size for hook in hooks]
    given = [np.zeros(0) if choice is None else choice.params for choice in choices]
    asked = zeros(dtype=Asked)
    asked["state_len"], asked["params_len"] = sizes, [len(values) for values in given]
    asked["kind"], asked["expert_bytes"] = NOTHING_ASKED, plan.expert_bytes
    asked["no_cpu"] = any(hook is not None and not hook.host for hook in hooks)
    layers, top_k = plan.experts.shape[1:]
    floats = np.zeros((FLOAT_ROWS, max(plan.n_experts, top_k, *sizes, *map(len, given))), np.float64)
    for kind, values in enumerate(given):
        floats[PARAMS + kind, : len(values)] = values
    if compiles():
        functions: Any = np.array([0 if hook is None else hook.address for hook in hooks], np.int64)
    else:
        functions = np.array([hook and hook.function for hook in hooks], object)
    of_each = np.zeros((ROWS, max(2 * layers * plan.n_experts, top_k)), np.int64)
    return Hooks(functions=functions, asked=asked, of_each=of_each, floats=floats, ns=_durations(plan))


def hooked(plan: Plan) -> bool:
    """Whether any of its policies is a user's function."""
    return any(choice is not None for choice in _choices(plan))


def _durations(plan: Plan) -> Int:
    costs = plan.costs
    ns = np.zeros((4, max(2, len(costs.expert_ns))), np.int64)
    for row, values in enumerate((costs.transfer_ns, costs.expert_ns, *costs.cpu_expert_ns)):
        ns[row, : len(values)] = values
    return ns


def _choices(plan: Plan) -> tuple[Choice | None, ...]:
    """In the order of KINDS; None where the run's policy is not a user's."""
    chosen = (plan.eviction, plan.miss, plan.rerank)
    return tuple(None if choice is None or choice.function is None else choice for choice in chosen)


@contextmanager
def explained(plan: Plan, hooks: Hooks | None) -> Iterator[None]:
    """Whatever is raised while a user's function is asked becomes a UserError that names it."""
    try:
        yield
    except Exception as error:
        if hooks is None or hooks.asked.kind == NOTHING_ASKED:
            raise
        raise UserError(_explanation(plan, hooks, error)) from None


def _explanation(plan: Plan, hooks: Hooks, error: Exception) -> str:
    asked, layers = hooks.asked, plan.experts.shape[1]
    choice = _choices(plan)[asked.kind]
    assert choice is not None
    why = WHY[asked.wrong] if asked.wrong else f"raised {type(error).__name__}: {error}"
    where = f"step {asked.visit // layers}, layer {asked.visit % layers}"
    where += "".join(f", {name} {n}" for name, n in (("token", asked.token), ("slot", asked.slot)) if n >= 0)
    return f"{KINDS[asked.kind]}: {choice.name}: {why.replace('{answer}', str(asked.answer))} (at {where})"


# --- calling ---


def _call_function(function: Any, view: View, state: Float, params: Float) -> int:
    """Where numba is switched off."""
    answer = function(view, state, params)
    if not isinstance(answer, int | np.integer) or isinstance(answer, bool):
        raise TypeError(f"it returns {type(answer).__name__}; must return an int")
    return int(answer)


class _ByAddress:
    """What stands for sim.core.view_type.call_address until something is compiled."""

    @cached_property
    def _numba_type_(self) -> Any:
        from sim.core.view_type import type_of_call

        return type_of_call()


_call: Any = _ByAddress() if compiles() else _call_function


# --- asking ---


@inner
def _backlog(s: State, expert: int) -> int:
    """Transfers under way, demanded, or yet to be queued by this visit, but for `expert`'s (a global id)."""
    n = s.link.n_flight + s.link.n_behind
    for i in range(s.link.demand_head, s.link.demand_tail):
        n += s.demand[i] != expert
    if s.link.demand_tail == 0:  # while answers are given nothing is queued yet
        for i in range(s.visit.n_answered):
            g = s.answered[i]
            n += g != expert and s.expert[g].kind == st.MISS and s.expert[g].asked & 1 == 1
    return n


@inner
def _host_backlog(s: State, hooks: Any, busy: int) -> int:
    ns = 0
    for i in range(s.visit.n_host):
        ns += hooks.ns[CPU_NS + busy, s.expert[s.on_host[i]].host]
    return ns


@inner
def _ask(
    s: State,
    hooks: Any,
    kind: Any,
    visit: int,
    token: Any,
    slot: Any,
    expert: Any,
    weight: float,
    n: int,
    logits: Any,
    g: Any,
) -> int:
    """Call one function. n: length of the arrays over experts; logits: of the logits; g: whom it is about."""
    asked, each, floats, ns = hooks.asked, hooks.of_each, hooks.floats, hooks.ns
    asked.kind, asked.visit, asked.token, asked.slot, asked.wrong = kind, visit, token, slot, 0
    layers, busy = s.run.n_layers, 1 if s.link.n_flight > 0 else 0
    tokens = s.expert[g].tokens if kind == MISS else 1
    backlog = s.link.n_flight + s.link.n_behind if kind == RERANK else _backlog(s, g)
    host = 0 if kind == RERANK else _host_backlog(s, hooks, busy)
    k = 0 if kind == EVICTION else s.routed.shape[1]
    view = View(
        visit // layers, visit % layers, token, slot, expert, weight, tokens, s.run.n_experts, s.run.seed,
        each[IDS, :k], floats[WEIGHTS, :k], floats[LOGITS, :logits],
        each[CANDIDATES, : n if kind == EVICTION else 0], each[IS_RESIDENT, :n], each[IS_COMMITTED, :n],
        each[IS_HELD, :n], each[IS_USED, :n], each[RECENCY, :n], each[LANDINGS, :n], each[USED_TIMES, :n],
        backlog * asked.expert_bytes, host, asked.expert_bytes, ns[TRANSFER_NS, 1 if backlog > 0 else 0],
        ns[EXPERT_NS, tokens], ns[CPU_NS + busy, tokens],
    )  # fmt: skip
    state = floats[STATES + kind, : asked.state_len[kind]]
    params = floats[PARAMS + kind, : asked.params_len[kind]]
    asked.answer = _call(hooks.functions[kind], view, state, params)
    return asked.answer


@inner
def _refuse(hooks: Any, wrong: Any, answer: int) -> None:
    hooks.asked.wrong, hooks.asked.answer = wrong, answer
    raise BadAnswer


@inner
def _show(s: State, hooks: Any, i: int, g: int) -> None:
    """Expert g (global) into place i of the view's arrays."""
    each, now = hooks.of_each, s.expert[g].state
    each[CANDIDATES, i] = g
    each[IS_RESIDENT, i] = 1 if now == RESIDENT else 0
    each[IS_COMMITTED, i] = 1 if now == COMMITTED else 0
    each[IS_HELD, i] = 1 if s.expert[g].work > 0 else 0
    each[IS_USED, i] = 0
    each[RECENCY, i] = s.expert[g].stamp
    each[LANDINGS, i] = s.expert[g].landed
    each[USED_TIMES, i] = s.expert[g].uses


@inner
def _show_token(s: State, hooks: Any, logits: Any, t: int, layer: int, row: int) -> int:
    """The layer and one token of it; returns how many logits it has."""
    n, scores = s.run.n_experts, logits.shape[2]
    for e in range(n):
        _show(s, hooks, e, layer * n + e)
    for e in range(scores):
        hooks.floats[LOGITS, e] = half_to_float(logits[t, layer, e])
    for k in range(s.routed.shape[1]):
        hooks.of_each[IDS, k], hooks.floats[WEIGHTS, k] = s.routed[row, k], s.weight[row, k]
    return scores


@inner
def ask_victim(s: State, hooks: Any, n: Any, g: Any) -> int:
    """The one of n candidates (in of_each[CANDIDATES]) that goes, to make room for expert g."""
    for i in range(n):
        _show(s, hooks, i, hooks.of_each[CANDIDATES, i])
    answer = _ask(s, hooks, EVICTION, s.run.routed - 1, NONE, NONE, g, 0.0, n, np.int64(0), g)
    if answer < 0 or answer >= n:
        _refuse(hooks, NO_INDEX, answer)
    hooks.asked.kind = NOTHING_ASKED
    return hooks.of_each[CANDIDATES, answer]


@inner
def ask_miss(s: State, hooks: Any, logits: Any, visit: int, t: int, layer: int, row: int, k: int) -> int:
    """The answer for slot k of row: a resident, or a code. State.reply has those for the earlier slots."""
    n, e = s.run.n_experts, s.routed[row, k]
    scores = _show_token(s, hooks, logits, t, layer, row)
    used = hooks.of_each[IS_USED]
    for j in range(s.routed.shape[1]):
        if s.routed[row, j] >= 0:
            used[s.routed[row, j]] = 1
        if j < k and s.reply[j].other >= 0:
            used[s.reply[j].other] = 1
    answer = _ask(s, hooks, MISS, visit, np.int64(t), np.int64(k), e, s.weight[row, k], n, scores, layer * n + e)
    if answer >= n:
        _refuse(hooks, NO_EXPERT, answer)
    if answer < CPU:
        _refuse(hooks, NO_CODE, answer)
    if answer == CPU and hooks.asked.no_cpu == 1:
        _refuse(hooks, NO_HOST, answer)
    if answer >= 0 and s.expert[layer * n + answer].state != RESIDENT:
        _refuse(hooks, NOT_RESIDENT, answer)
    hooks.asked.kind = NOTHING_ASKED
    return answer


@inner
def ask_rerank(s: State, hooks: Any, logits: Any, visit: int, t: int, layer: int, row: int) -> None:
    """One token's experts and weights as the function wants them."""
    n = s.run.n_experts
    scores = _show_token(s, hooks, logits, t, layer, row)
    _ask(s, hooks, RERANK, visit, np.int64(t), NONE, NONE, 0.0, n, scores, NONE)
    ids, weights = hooks.of_each[IDS], hooks.floats[WEIGHTS]
    for k in range(s.routed.shape[1]):
        if ids[k] < -1 or ids[k] >= n:
            _refuse(hooks, BAD_ID, ids[k])
        for j in range(k):
            if ids[k] >= 0 and ids[j] == ids[k]:
                _refuse(hooks, TWICE, ids[k])
        if not (math.isfinite(weights[k]) and weights[k] >= 0.0):
            _refuse(hooks, BAD_WEIGHT, ids[k])
        s.routed[row, k], s.weight[row, k] = ids[k], weights[k]
    hooks.asked.kind = NOTHING_ASKED
