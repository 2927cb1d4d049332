"""The few constants of an engine and of machines that timings can tell: what each multiplies, and what is thought of it
before any timing is seen."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sim import catalog

if TYPE_CHECKING:
    from sim.catalog.engine_spec import Engine
    from sim.catalog.hardware_spec import Hardware

Logs = Mapping[str, float]  # of terms by name: natural logarithms of what multiplies them


@dataclass(frozen=True)
class Term:
    """A constant that is fitted: what it stands for, its fields of the engine, their values before any timing by how
    the engine's operations are launched, and the factor that those may be off by (one standard deviation)."""

    what: str
    fields: tuple[str, ...]
    value: Mapping[str, tuple[float, ...]]
    factor: Mapping[str, float]


COMPILED, PYTHON = "compiled", "python"
TERMS: dict[str, Term] = {
    "layer": Term(
        "once per layer on the GPU",
        ("layer_ns", "mla_layer_ns"),
        # a dozen kernels at CUDA's 4.5 us; with MLA what DeepSeek-V2-Lite all on GH200 and A100 takes beside its bytes
        # (190 and 290 us; two machines that the evidence has not); 30 to 200 PyTorch operations at 20 us
        {COMPILED: (50e3, 240e3), PYTHON: (1.5e6, 3e6)},
        {COMPILED: 1.08, PYTHON: 2.5},
    ),
    "host_layer": Term(
        "once per layer whose dense part the host computes",
        ("host_layer_ns", "mla_host_layer_ns"),
        # a dozen operations, each with a barrier of all threads of some 20 us
        {COMPILED: (250e3, 700e3), PYTHON: (1e6, 2e6)},
        {COMPILED: 1.8, PYTHON: 2.5},
    ),
    "cpu_visit": Term(
        "once per layer that computes experts on the host",
        ("cpu_visit_ns",),
        # two copies of activations with a synchronisation each, and waking the threads
        {COMPILED: (100e3,), PYTHON: (200e3,)},
        {COMPILED: 1.3, PYTHON: 2.0},
    ),
    "transfer": Term(
        "once per transfer beside the link's own set-up",
        ("transfer_ns",),
        {COMPILED: (10e3,), PYTHON: (300e3,)},  # a call and an event; fifteen PyTorch operations
        {COMPILED: 2.0, PYTHON: 4.0},
    ),
    "cpu_read": Term(
        "share of the host's sustained read rate",
        ("cpu_read_share",),
        {COMPILED: (1.0,), PYTHON: (0.8,)},
        {COMPILED: 1.05, PYTHON: 1.25},  # a probe with the engine's threads reads what the engine does
    ),
    "cpu_compute": Term(
        "share of the arithmetic of the precision's kernels on the host",
        ("cpu_compute_share",),
        {COMPILED: (1.0,), PYTHON: (1.0,)},
        {COMPILED: 1.5, PYTHON: 2.0},
    ),
    "cpu_batch": Term(
        "how much longer the first token's arithmetic takes than a further one's, on the host",
        ("cpu_batch_gain",),
        {COMPILED: (2.0,), PYTHON: (2.0,)},  # expanding a weight takes about what multiplying it does
        {COMPILED: 2.0, PYTHON: 2.0},
    ),
    "gpu_memory": Term(
        "share of what kernels of one token read on that GPU",
        ("memory_efficiency",),
        {COMPILED: (1.0,), PYTHON: (1.0,)},
        {COMPILED: 1.05, PYTHON: 1.2},
    ),
    "kv": Term(
        "share of that bandwidth that attention reaches on the KV cache",
        ("kv_read_share",),
        {COMPILED: (0.5,), PYTHON: (0.5,)},  # heads of a group read the same entries, once each without sharing
        {COMPILED: 1.3, PYTHON: 1.3},
    ),
    "gpu_compute": Term(
        "share of the GPU's peak operations",
        (),
        {COMPILED: (1.0,), PYTHON: (1.0,)},
        {COMPILED: 1.5, PYTHON: 1.5},
    ),
    "link": Term("share of the link's rate", (), {COMPILED: (1.0,), PYTHON: (1.0,)}, {COMPILED: 1.12, PYTHON: 1.2}),
}


def with_terms(hardware: "Hardware", engine: "Engine", logs: Logs, start: str = "prior") -> tuple["Hardware", "Engine"]:
    """Hardware and engine whose terms are as before any timing (start `prior`), or their own (`own`), times e^logs."""
    changes: dict[str, Any] = {}
    for name, term in TERMS.items():
        factor = math.exp(logs.get(name, 0.0))
        for field, prior in zip(term.fields, term.value[engine.dispatch or COMPILED], strict=bool(term.fields)):
            own = getattr(engine, field)
            base = own if start == "own" else prior if name in free(engine) else own
            if base is not None:
                changes[field] = _kept(field, base * factor)
    if start == "prior" and hardware.gpu is not None and hardware.gpu.name in catalog.written("gpu"):
        before = hardware.gpu.model_copy(update={"hbm_efficiency": share_before(hardware.gpu.name)})
        hardware = hardware.model_copy(update={"gpu": before})
    link, compute = (math.exp(logs.get(name, 0.0)) for name in ("link", "gpu_compute"))
    hardware = hardware if link == 1 else _linked(hardware, link)
    if compute != 1 and hardware.gpu is not None:
        share = min(1.0, hardware.gpu.flops_efficiency * compute)
        hardware = hardware.model_copy(update={"gpu": hardware.gpu.model_copy(update={"flops_efficiency": share})})
    return hardware, engine.model_copy(update=changes)


def share_before(gpu: str) -> float:
    """What kernels of one token read of a GPU's bandwidth before any timing."""
    from sim.catalog.hardware_spec import Gpu

    entry = catalog.written("gpu")[gpu]
    return float(entry.get("hbm_efficiency", Gpu.model_fields["hbm_efficiency"].default))


def _kept(field: str, value: float) -> float | int:
    """As the field holds it: whole ns, or a share."""
    if field.endswith("_ns"):
        return round(value)
    return value


def _linked(hardware: "Hardware", factor: float) -> "Hardware":
    links = {name: getattr(hardware, name) for name in ("link", "pageable_link")}
    return hardware.model_copy(update={name: link.scaled(factor) for name, link in links.items() if link is not None})


def free(engine: "Engine") -> tuple[str, ...]:
    """The terms of an engine that timings may tell: those of what it does."""
    every = ("layer", "gpu_memory", "gpu_compute", "kv", "link")
    host = (
        ("cpu_visit", "cpu_read", "cpu_compute", "cpu_batch", "host_layer")
        if engine.dispatch == COMPILED or engine.cpu_visit_ns
        else ()
    )
    return (*every, *host, *(("transfer",) if engine.transfer_ns or engine.dispatch == PYTHON else ()))
