"""Plans from whole traces: real captures, which lie beside the project, and synthetic ones."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sim.core.plan import Plan
from sim.steps import schedule
from tests.plans import plan
from traces.format.npz import read
from traces.format.trace import RoutingTrace
from traces.synthetic import PRESETS, generate

FOLDER = Path(__file__).resolve().parents[2] / "shared" / "traces"


def capture_names() -> list[Any]:
    """Names for `pytest.mark.parametrize`: one skipped case that says why where the folder is absent."""
    names: list[Any] = sorted(path.stem for path in FOLDER.glob("*.npz"))
    absent = pytest.param("none", marks=pytest.mark.skip(reason="no captures in ../shared/traces"))
    return names or [absent]


def capture(name: str) -> RoutingTrace:
    return read(FOLDER / f"{name}.npz")


def synthetic(preset: str, seed: int = 0) -> RoutingTrace:
    """A preset's trace of three requests, each of at most about a hundred tokens."""
    return generate(replace(PRESETS[preset], requests=3, prompt=(10, 30), generation=(30, 60)), seed)


def whole_trace(trace: RoutingTrace, slots: int, batch: int = 1) -> Plan:
    """The trace with `slots` in every layer, lru and fetch, the durations of tests.plans."""
    steps = schedule(trace, batch)
    rows = [steps.row[a:b].tolist() for a, b in zip(steps.offset[:-1], steps.offset[1:], strict=True)]
    experts = np.asarray(trace.experts)
    return plan(experts, trace.n_experts, [slots] * experts.shape[1], rows, steps.prefill)
