"""A run again with one part of its durations changed: exact, because what overlaps is simulated and not divided."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from sim.core.plan import Plan
from sim.on_miss import on_miss

if TYPE_CHECKING:
    from sim.prepare import Setting

Int = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Part:
    """One part. plan: of a setting and a factor on its times (of `once per step` ms that are added). rate: whether it
    is told as a speed, whose factor is one over that of its times. added: the factor is ms. more: of a part that a run
    may have next to nothing of, which no factor makes long: plan with ms added to each of it."""

    name: str
    what: str
    plan: Callable[["Setting", float], Plan]
    rate: bool = False
    added: bool = False
    more: Callable[["Setting", float], Plan] | None = None


def _times(values: Any, factor: float) -> Any:
    """ns, rounded half-even once."""
    scaled = np.rint(np.asarray(values, np.float64) * factor).astype(np.int64)
    return scaled if scaled.ndim else int(scaled)


def set_up_ns(setting: "Setting") -> Int:
    """int64 [2]: what a transfer takes whatever its bytes, on an idle link and following on; 0 where the hardware's
    durations do not say it apart."""
    hardware, engine, size = setting.hardware, setting.engine, setting.plan.expert_bytes
    if hardware.fixed is not None:
        return np.full(2, hardware.fixed.transfer_setup_ns or 0)
    if hardware.measured is not None:
        return np.zeros(2, np.int64)
    ways = 2 if engine.write_back else 1
    moving = ways * size / hardware.link_for(engine.page_locked).rate(size / engine.copies_per_expert)
    found: Int = np.maximum(setting.plan.costs.transfer_ns - _times(moving, 1.0), 0)
    return found


def _transfers(setting: "Setting", change: Callable[[Int, Int], Int]) -> Plan:
    """The plan with other transfers. change: of (ns, set-up ns among them), of arrays whose first axis is [idle,
    following on]."""
    up = set_up_ns(setting)
    plan = setting.priced(replace(setting.plan.costs, transfer_ns=change(setting.plan.costs.transfer_ns, up)))
    if plan.low is not None:
        plan = replace(plan, low=replace(plan.low, transfer_ns=change(plan.low.transfer_ns, up)))
    if plan.on_miss is not None:
        on = plan.on_miss
        runs = np.where(on.run_ns > 0, change(on.run_ns, up[:, None]), 0)
        chunks = np.where(on.chunk_ns > 0, change(on.chunk_ns, up[:, None]), 0)
        plan = replace(plan, on_miss=replace(on, run_ns=runs, chunk_ns=chunks))
    return plan


def _link_rate(setting: "Setting", factor: float) -> Plan:
    return _transfers(setting, lambda ns, up: np.minimum(ns, up) + _times(np.maximum(ns - up, 0), factor))


def _link_set_up(setting: "Setting", factor: float) -> Plan:
    return _transfers(setting, lambda ns, up: np.maximum(ns - up, 0) + _times(np.minimum(ns, up), factor))


def _of_costs(*names: str) -> Callable[["Setting", float], Plan]:
    """Scales fields of `plan.Costs`."""

    def plan(setting: "Setting", factor: float) -> Plan:
        costs = setting.plan.costs
        return setting.priced(replace(costs, **{name: _times(getattr(costs, name), factor) for name in names}))

    return plan


def _gpu_experts(setting: "Setting", factor: float) -> Plan:
    plan = _of_costs("expert_ns")(setting, factor)
    return (
        plan if plan.low is None else replace(plan, low=replace(plan.low, expert_ns=_times(plan.low.expert_ns, factor)))
    )


def _more_set_up(setting: "Setting", ms: float) -> Plan:
    return _transfers(setting, lambda ns, up: ns + round(ms * 1e6))


def _more_per_layer(setting: "Setting", ms: float) -> Plan:
    costs = setting.plan.costs
    return setting.priced(replace(costs, decide_ns=costs.decide_ns + round(ms * 1e6)))


def _host_visit(setting: "Setting", factor: float) -> Plan:
    on = setting.plan.on_miss
    if on is None:
        return setting.plan
    return replace(setting.plan, on_miss=replace(on, cpu_visit_ns=_times(on.cpu_visit_ns, factor)))


def _more_host_visit(setting: "Setting", ms: float) -> Plan:
    """The same run where nothing was charged yet, and so no rules were needed."""
    on, plan = setting.plan.on_miss, setting.plan
    if on is None and setting.rules.on_host and ms:
        rules = replace(setting.rules, cpu_visit_us=ms * 1e3)
        return replace(plan, on_miss=on_miss(rules, plan, setting.hardware, setting.engine))
    return plan if on is None else replace(plan, on_miss=replace(on, cpu_visit_ns=on.cpu_visit_ns + round(ms * 1e6)))


def _per_step(setting: "Setting", ms: float) -> Plan:
    costs = setting.plan.costs
    return setting.priced(replace(costs, head_ns=np.maximum(0, costs.head_ns + round(ms * 1e6))))


PARTS = (
    Part("link rate", "bytes per second over the link", _link_rate, rate=True),
    Part("link set-up", "once per transfer, whatever its bytes", _link_set_up, more=_more_set_up),
    Part("host memory rate", "experts that the host computes", _of_costs("cpu_expert_ns"), rate=True),
    Part("GPU expert time", "experts that the GPU computes", _gpu_experts),
    Part("dense part", "attention and what else every layer has", _of_costs("dense_ns")),
    Part("per layer", "deciding, launching groups", _of_costs("decide_ns", "group_ns"), more=_more_per_layer),
    Part("host visit", "once per layer that goes to the host and back", _host_visit, more=_more_host_visit),
    Part("head", "the end of a step", _of_costs("head_ns")),
    Part("per step", "something once per step that is not modelled", _per_step, added=True),
)
