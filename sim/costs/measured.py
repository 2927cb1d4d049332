"""The cost tables of a run on hardware whose durations were measured (`sim.catalog.measured_spec`).

Every entry is a straight line between two measured points, computed in float64 and rounded half-even once; a table
entry of several layers is the sum of the rounded layers, as for hardware of catalog terms.
"""

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from sim.catalog.files import find
from sim.core.plan import Costs, Int
from sim.costs.classes import CostClasses, StepShapes, classify, dense_table
from sim.errors import CatalogError

if TYPE_CHECKING:
    from sim.catalog.measured_spec import DenseKnots, Knots, Measured
    from sim.catalog.model_spec import ModelSpec


def measured_costs(model: "ModelSpec", measured: "Measured", precision: str, steps: StepShapes) -> Costs:
    """The tables. Raises CatalogError for another model or precision than was measured, or a kind of layer or step
    that was not."""
    _refuse_another(model, measured, precision)
    classes, moe = classify(steps, model.window), set(steps.moe_layers.tolist())
    tokens = np.arange(steps.max_rows + 1, dtype=np.float64)
    on_host = np.zeros((2, len(tokens)), np.int64)
    if measured.cpu_expert is not None:
        rows = (measured.cpu_expert.ns, measured.cpu_expert.busy_ns)
        on_host = np.stack([_of_tokens(measured.cpu_expert, tokens, ns) for ns in rows])
    return Costs(
        dense_ns=dense_table(
            steps,
            classes,
            lambda layer: ("moe" if layer in moe else "ffn", model.attention_kind(layer)),
            lambda kind: _layer_ns(measured, classes, *kind),
        ),
        head_ns=_of_tokens(measured.head, np.where(classes.prefill, np.minimum(classes.rows, 1), classes.rows)),
        cost_class=classes.of_step,
        decide_ns=measured.decide_ns,
        group_ns=measured.group_ns,
        expert_ns=_of_tokens(measured.expert, tokens),
        cpu_expert_ns=on_host,
        transfer_ns=np.array([measured.transfer_idle_ns, measured.transfer_following_ns], np.int64),
        commit_gap_ns=measured.commit_gap_ns,
        commit_depth=measured.commit_depth,
    )


def _refuse_another(model: "ModelSpec", measured: "Measured", precision: str) -> None:
    if model.name != measured.model:
        raise CatalogError(f"hardware: measured with model {measured.model}, not {model.name}; calibrate with that one")
    if find("precision", precision) != find("precision", measured.precision):
        raise CatalogError(f"hardware: measured at --precision {measured.precision}, not {precision}")


def interpolated(knots: "Knots", tokens: npt.ArrayLike, ns: tuple[int, ...] | None = None) -> npt.NDArray[np.float64]:
    """float64 ns by tokens (any shape): between the knots on straight lines, beyond the last on the last line; below
    one token 0. `ns` replaces the knots' own."""
    x, y = np.array(knots.tokens, np.float64), np.array(knots.ns if ns is None else ns, np.float64)
    at = np.asarray(tokens, np.float64)
    out = np.interp(at, x, y)
    if len(x) > 1:
        out += np.maximum(at - x[-1], 0) * ((y[-1] - y[-2]) / (x[-1] - x[-2]))
    return np.where(at < 1, 0.0, out)


def _of_tokens(knots: "Knots", tokens: npt.ArrayLike, ns: tuple[int, ...] | None = None) -> Int:
    return _rounded(interpolated(knots, tokens, ns))


def _layer_ns(measured: "Measured", classes: CostClasses, layer: str, attention: str) -> Int:
    """int64 [classes] of one kind of layer."""
    out = np.zeros(len(classes.rows), np.int64)
    for phase, where in (("decode", ~classes.prefill), ("prefill", classes.prefill)):
        if where.any():
            knots = _table(measured, layer, attention, phase)
            # a layer without a cache of its own scores none
            entries = 0 if attention in ("linear", "none") else classes.scored[attention][where]
            out[where] = _rounded(interpolated(knots, classes.rows[where]) + knots.entry_ns * entries)
    return out


def _table(measured: "Measured", layer: str, attention: str, phase: str) -> "DenseKnots":
    for table in measured.dense:
        if table.kind == (layer, attention, phase):
            return table
    have = ", ".join(" ".join(table.kind) for table in measured.dense)
    raise CatalogError(f"hardware: measured.dense: nothing for {layer} {attention} {phase}; it has {have}")


def _rounded(ns: npt.NDArray[np.float64]) -> Int:
    return np.rint(ns).astype(np.int64)
