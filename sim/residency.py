"""Command line: `python -m sim.residency --trace T [the flags of sim.run]`: does a run hit what the engine hit?

A trace from an engine that says of each routed expert whether its cache had it (`resident`) is run, and every routing
that the run's figures count is compared: both hit, both miss, engine only, simulated only. Simulated: whatever the miss
policy was not asked about; an expert that is on its way counts as there. `--out FILE.npz` has it routing by routing.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sim.core.plan import Plan
from sim.errors import SpecError
from sim.flags import spec_of
from sim.machines.record import RunRecord
from sim.prepare import prepare
from sim.run import parser
from sim.simulation import announce_compiling, machine
from traces.command import guarded, typed
from traces.format import npz
from traces.format.trace import RoutingTrace

Kinds = npt.NDArray[np.int8]
NOT_COUNTED, KINDS = -1, ("both_miss", "engine_only", "simulated_only", "both_hit")  # as engine's hit + 2 * simulated


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    return guarded(_command, argv)


def _command(argv: list[str]) -> None:
    flags = parser()
    flags.prog = typed("python -m sim.residency")
    flags.description = "Compare the hits of a run with those that the engine of its trace recorded."
    args = flags.parse_args(argv)
    setting = prepare(spec_of(args))
    if setting.trace.resident is None:
        raise SpecError(f"{setting.spec.trace}: has no `resident`: it does not say what its engine found in its cache")
    announce_compiling()
    kinds = compare(setting.trace, setting.plan, machine(setting.spec.machine)(setting.plan, True))
    if args.out is not None:
        meta = {"kind": "residency-comparison", "format_version": 1, "kinds": KINDS, "spec": setting.spec.saved(())}
        npz.write_arrays(Path(args.out), meta, {"kinds": kinds})
    found = totals(kinds)
    print(json.dumps(found) if args.json else _table(found, kinds, setting.trace))


def compare(trace: RoutingTrace, plan: Plan, record: RunRecord) -> Kinds:
    """int8 [T, L, K]: places in KINDS, NOT_COUNTED where a routing was not run, or in the warm-up. record: full."""
    engine = trace.resident
    assert engine is not None
    rows = plan.step_row[plan.step_offset[plan.warmup_steps] :]
    answers = record.groups["answers"]
    hit = np.ones(engine.shape, np.bool_)
    hit[answers["row"], record.groups["visits"]["layer"][answers["visit"]], answers["slot"]] = False
    kinds = np.full(engine.shape, NOT_COUNTED, np.int8)
    kinds[rows] = np.where(trace.experts[rows] >= 0, engine[rows] + 2 * hit[rows], NOT_COUNTED)
    return kinds


def totals(kinds: Kinds) -> dict[str, Any]:
    """How many routings of each kind, and what follows; agree: the share of alike ones, None where none is counted."""
    count = {name: int((kinds == place).sum()) for place, name in enumerate(KINDS)}
    counted, hits = sum(count.values()), count["both_hit"]
    found = {"counted": counted, "engine_hits": hits + count["engine_only"]}
    found |= {"simulated_hits": hits + count["simulated_only"]}
    return found | count | {"agree": (hits + count["both_miss"]) / counted if counted else None}


def _table(found: dict[str, Any], kinds: Kinds, trace: RoutingTrace) -> str:
    of = found["counted"] or 1
    lines = [f"{name.replace('_', ' '):<15} {n:>10,} {n / of:8.2%}" for name, n in found.items() if name != "agree"]
    different = np.argwhere((kinds == KINDS.index("engine_only")) | (kinds == KINDS.index("simulated_only")))
    if not len(different):
        return "\n".join([*lines, "no routing differs"])
    t, layer, slot = (int(place) for place in different[0])
    where = f"request {trace.sequence[t]}, position {trace.position[t]}, layer {trace.meta['moe_layers'][layer]}"
    what = f"slot {slot}, expert {trace.experts[t, layer, slot]}: {KINDS[kinds[t, layer, slot]].replace('_', ' ')}"
    return "\n".join([*lines, f"first to differ: {where}, {what}"])


if __name__ == "__main__":
    sys.exit(main())
