"""After every reader: rows that nobody recorded are left out, and what is unlikely of the rest is said."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from traces.errors import TraceError
from traces.foreign.ask import Ask
from traces.foreign.models import model
from traces.foreign.spill import BLOCK_ROWS, Spill
from traces.format.check import validate
from traces.format.layout import Array, chunks, give_back
from traces.format.profile import Profile
from traces.format.trace import RoutingTrace
from traces.statistics.doubts import doubts

NOT_RECORDED = "rows without an expert in any layer (-1: not recorded)"
Bool = npt.NDArray[np.bool_]


def recorded(path: Path, found: RoutingTrace | Profile, ask: Ask) -> RoutingTrace | Profile:
    """What a reader made, as it is kept: `meta.doubts` has what the reader and the general checks say of it.

    Raises TraceError where no row has an expert."""
    kept = found if isinstance(found, Profile) else _of_rows_with_experts(path, found, ask)
    said = dict.fromkeys([*kept.meta.get("doubts", ()), *_reduced(kept), *doubts(kept)])  # each once
    return replace(kept, meta=kept.meta | {"doubts": list(said)})


def _reduced(found: RoutingTrace | Profile) -> list[str]:
    """A top-k that is not the model's."""
    known, has = model(found.model).top_k, found.meta.get("top_k")
    if known is None or has in (None, known):
        return []
    what = "a reduced top-k" if int(has) < known else "more than it routes to"
    return [f"top-{has}; the catalog's {found.model} has top-{known}: {what}"]


def _of_rows_with_experts(path: Path, trace: RoutingTrace, ask: Ask) -> RoutingTrace:
    """Without the rows that are -1 in every layer. Those after them in their request move up, for positions rise by
    one; a request that began with them begins where its first recorded row stood."""
    there = np.concatenate([(chunk >= 0).any(axis=(1, 2)) for _, chunk in chunks(trace.experts)])
    lost = int((~there).sum())
    if not lost:
        return trace
    if not there.any():
        raise TraceError(f"{path}: all {lost} rows are without an expert (-1); nothing was recorded")
    arrays = {name: _kept(array, there, ask) for name, array in trace.arrays().items() if name != "lookahead"}
    moved = _close_up(arrays["sequence"], arrays["position"])
    dropped = dict(trace.meta.get("dropped", {}))
    gap = f"{lost:,} rows were not recorded and left out"
    if moved:
        gap += f"; {moved:,} behind them stand at lower positions than they had"
    meta = trace.meta | {
        "dropped": dropped | {NOT_RECORDED: dropped.get(NOT_RECORDED, 0) + lost},
        "doubts": [*trace.meta.get("doubts", ()), gap],
    }
    out = RoutingTrace(meta=meta, **arrays)
    validate(out, str(path))
    return out


def _kept(array: Array, rows: Bool, ask: Ask) -> Any:
    """Some rows of an array, on disk as the whole was."""
    spill = Spill(array.dtype, array.shape[1:], ask.scratch)
    for lo in range(0, len(array), BLOCK_ROWS):
        spill.append(np.asarray(array[lo : lo + BLOCK_ROWS])[rows[lo : lo + BLOCK_ROWS]])
        give_back(array)
    return spill.array()


def _close_up(sequence: Array, position: Array) -> int:
    """Positions without gaps inside a request, in place. Returns how many rows moved."""
    first = np.flatnonzero(np.append(True, sequence[1:] != sequence[:-1]))
    lengths = np.diff(np.append(first, len(sequence)))
    closed = np.repeat(position[first] - first, lengths) + np.arange(len(sequence))
    moved = int((closed != position).sum())
    position[:] = closed
    return moved
