"""What `import sim` offers (docs/python.md). Written by `python -m tests.stub`; not to be edited."""

from collections.abc import Callable, Iterable, Mapping
from os import PathLike
from typing import Any, Literal, Protocol, TypeVar

import pandas as pd
import plotly.graph_objects as go

from analysis.api.result import Result as Result
from sim.catalog.engine_spec import Engine
from sim.catalog.hardware_spec import Hardware
from sim.catalog.model_spec import ModelSpec
from sim.fit.prediction import Prediction
from sim.steps import Steps
from traces.errors import UserError as UserError
from traces.format.trace import RoutingTrace

class Predicts(Protocol):
    def predict(self, trace: RoutingTrace, steps: Steps, /) -> Prediction | tuple[Any, ...]: ...

T = TypeVar("T")
Axis = T | Iterable[T | None]
File = str | PathLike[str]
Trace = File | RoutingTrace
Policy = str | Callable[..., Any] | Predicts
Table = Mapping[str, Any]
Run = Result | File

__version__: str

def simulate(
    trace: Trace | None = None,
    *,
    name: str = "",
    record: Literal["summary", "full"] = "summary",
    model: File | Table | ModelSpec | None = None,
    hardware: File | Table | Hardware = "a100-pcie4",
    engine: File | Table | Engine = "ideal",
    precision: str = "bf16",
    cache: int | float | str | None = 0.5,
    cache_scope: Literal["layer", "global"] = "layer",
    cache_spread: Literal["even", "marginal"] = "even",
    eviction: Policy = "lru",
    prefetch: Policy = "none",
    prefetch_budget: int | None = None,
    miss: Policy = "fetch",
    rerank: Policy = "none",
    placement: str = "first",
    transfer_order: Literal["fifo", "nearest-layer", "probability"] = "fifo",
    transfer_chunk: str | None = None,
    expert_group: Literal["one", "ready", "all"] | None = None,
    batch: int = 1,
    prefill_chunk: int = 512,
    as_decode: bool = False,
    context_offset: int = 0,
    warmup_steps: int = 0,
    max_steps: int | None = None,
    calibration: float | Trace | None = None,
    seed: int = 0,
    machine: Literal["compiled", "simpy"] = "compiled",
    set: Mapping[str, float | int | str | bool] | None = None,
    bulk: Literal["none", "fetch", "cpu", "stream", "remote", "split"] = "none",
    bulk_rows: int | str | None = None,
    bulk_touch: bool = True,
    stages: int = 0,
    serial: bool = False,
    merge: Literal["none", "runs"] = "none",
    whole_layer: bool = False,
    ahead: int = 0,
    beside: bool = True,
    defer: int = 0,
    link_share: float | None = None,
    cpu_visit_us: float | None = None,
    n_cpu_moe: int | None = None,
    override_tensor: str | None = None,
    dense_on_host: str | None = None,
    engine_as_costs: bool = False,
    vram: str | None = None,
    context: int | None = None,
    kv_precision: str = "bf16",
    reset: Literal["none", "request"] = "none",
    skip_prompts: bool = False,
    requests: str | None = None,
    warmup_share: float | None = None,
    ram: str | None = None,
    host: str | None = None,
    host_gbps: float | None = None,
    speculate: int | None = None,
    accept: float | str = "all",
    draft_ns: int = 0,
    link_gbps: float | None = None,
    price_per_hour: float | None = None,
    watts: float | None = None,
    idle_watts: float | None = None,
) -> Result:
    """Simulate one run: `python -m sim.run` from Python. A flag is an argument, with underscores for hyphens.

        run = sim.simulate(trace="mixtral.npz", cache=6, miss="buddy", calibration=0.3, set={"buddy.tau": 0.6})
        run.tokens_per_s, run.interval, run.marks

    trace: a file, the name of a shipped sample, or a trace in memory (`traces.open`, `traces.capture`); calibration
    likewise, or the fraction of the requests that is set aside. eviction, miss, rerank, prefetch: a name, or a
    function, a class or an instance of your own (docs/policies.md), which is called by its `__name__`. model, hardware,
    engine: a name, a file, a table, or what sim.catalog gives. set: parameters of policies, `{"POLICY.PARAM": value}`.
    None is as good as not given.
    name: what tables and legends call it (default: its policies). record: "full" keeps every visit, execution, transfer
    and answer, which some figures and `python -m analysis.timeline` need.

    Times are simulated; what is lossy, synthetic or not calibrated stands in `marks` and `notes`. Raises UserError, one
    line, for whatever is wrong: SpecError for a field, TraceError for a trace, CatalogError for a description.

    Fields:
        trace: routing trace; a name that is no file is a shipped sample
        model: model whose sizes are charged (default: the trace's)
        hardware: GPU, link and host, or fixed durations (default: 'a100-pcie4')
        engine: what the inference engine does on a miss, and costs (default: 'ideal')
        precision: precision of the experts: bf16, q8, q4, mxfp4, ... (default: 'bf16')
        cache: share of the experts, slots per layer (of the pool), bytes, or what fits; all of the last (first)
            N MoE layers and none elsewhere; a number per MoE layer (default: 0.5)
        cache_scope: slots of each layer's own, or one pool (default: 'layer')
        cache_spread: slots of the layers alike, or where the calibration hits more (default: 'even')
        eviction: which resident makes room (default: 'lru')
        prefetch: what is fetched before it is wanted (default: 'none')
        prefetch_budget: prefetches that may join per visit (default: all)
        miss: what happens when a wanted expert is not there (default: 'fetch')
        rerank: re-ranking of the routed experts (default: 'none')
        placement: first residents (default: 'first')
        transfer_order: fifo, nearest-layer or probability, among prefetches (default: 'fifo')
        transfer_chunk: bytes after which a demand may pass what is fetched ahead (default: a whole transfer)
        expert_group: how the GPU takes experts (default: the engine's)
        batch: requests that decode together (default: 1)
        prefill_chunk: tokens of a prefill step (default: 512)
        as_decode: run prompt rows as decode steps (default: False)
        context_offset: added to every position (default: 0)
        warmup_steps: first steps that no figure counts (default: 0)
        max_steps: stop after so many steps
        calibration: what policies are fitted on; never judged
        seed: of everything random (default: 0)
        machine: which machine; they agree to the nanosecond (default: 'compiled')
        set: a parameter of a chosen policy (KIND where two policies have one name) (default: {})
        bulk: the rule of steps of many rows, in place of --miss (default: 'none')
        bulk_rows: many rows: so many, or (32E) rows x top-k >= 32 x experts
        bulk_touch: whether such steps touch and count the residents that they run (default: yes)
        stages: staging buffers of one expert each (default: 0, as many as needed)
        serial: nothing of a layer runs on the GPU until its streamed copies have landed (default: False)
        merge: streamed copies of consecutive ids are one transfer (default: 'none')
        whole_layer: where a layer streams, its unwanted experts are copied, too (default: False)
        ahead: MoE layers streamed ahead, whole (default: 0)
        beside: whether the GPU computes while the host does (default: yes)
        defer: host experts of a token, of least weight, that only the next layer waits for (default: 0)
        link_share: the link's rate while the host computes, as a share (default: the host's)
        cpu_visit_us: once per layer that computes on the host, us (default: the engine's)
        n_cpu_moe: the first N MoE layers have no slots, the others hold all experts
        override_tensor: the same by llama.cpp's tensor names
        dense_on_host: the MoE layers whose dense part is the host's, too
        engine_as_costs: of the engine its costs alone, not what it does on a miss (default: False)
        vram: memory of the GPU; without a --cache as much as fits is cached
        context: tokens of KV entries kept for each sequence (default: the longest request)
        kv_precision: precision of KV entries (default: 'bf16')
        reset: each request begins as the first one did (default: 'none')
        skip_prompts: prompt rows are not run: what a decoder alone sees (default: False)
        requests: the requests of the trace, from 0, or a group of its meta; the rest is not there
        warmup_share: share of the steps that no figure counts, in the place of --warmup-steps
        ram: memory of the host (default: what the hardware says)
        host: a host in the place of the hardware's (sim.run --list-hosts)
        host_gbps: what the host reads, sustained, 1e9 bytes/s (default: what the hardware says)
        speculate: rows of a request in a decode step, a window of which some are accepted
        accept: of a window: how likely each row behind the first is accepted; or a file of how many rows are,
            window by window (default: all)
        draft_ns: what the draft model takes for each row behind the first of a window, ns (default: 0)
        link_gbps: what the links send to the GPU, whatever the size; their set-up stays (default: the
            hardware's)
        price_per_hour: of the machine, in any currency: says what 1,000 tokens cost
        watts: that the GPU takes while it computes: says Wh per 1,000 tokens
        idle_watts: that it takes while it waits (default: as --watts)
    """

def simulate_many(
    cases: Mapping[str, Table] | None = None,
    /,
    *,
    record: Literal["summary", "full"] = "summary",
    errors: Literal["raise", "keep"] = "raise",
    trace: Axis[Trace] | None = None,
    model: Axis[File | Table | ModelSpec | None] = None,
    hardware: Axis[File | Table | Hardware] = "a100-pcie4",
    engine: Axis[File | Table | Engine] = "ideal",
    precision: Axis[str] = "bf16",
    cache: Axis[int | float | str | None] = 0.5,
    cache_scope: Axis[Literal["layer", "global"]] = "layer",
    cache_spread: Axis[Literal["even", "marginal"]] = "even",
    eviction: Axis[Policy] = "lru",
    prefetch: Axis[Policy] = "none",
    prefetch_budget: Axis[int | None] = None,
    miss: Axis[Policy] = "fetch",
    rerank: Axis[Policy] = "none",
    placement: Axis[str] = "first",
    transfer_order: Axis[Literal["fifo", "nearest-layer", "probability"]] = "fifo",
    transfer_chunk: Axis[str | None] = None,
    expert_group: Axis[Literal["one", "ready", "all"] | None] = None,
    batch: Axis[int] = 1,
    prefill_chunk: Axis[int] = 512,
    as_decode: Axis[bool] = False,
    context_offset: Axis[int] = 0,
    warmup_steps: Axis[int] = 0,
    max_steps: Axis[int | None] = None,
    calibration: Axis[float | Trace | None] = None,
    seed: Axis[int] = 0,
    machine: Axis[Literal["compiled", "simpy"]] = "compiled",
    set: Mapping[str, Axis[float | int | str | bool]] | None = None,
    bulk: Axis[Literal["none", "fetch", "cpu", "stream", "remote", "split"]] = "none",
    bulk_rows: Axis[int | str | None] = None,
    bulk_touch: Axis[bool] = True,
    stages: Axis[int] = 0,
    serial: Axis[bool] = False,
    merge: Axis[Literal["none", "runs"]] = "none",
    whole_layer: Axis[bool] = False,
    ahead: Axis[int] = 0,
    beside: Axis[bool] = True,
    defer: Axis[int] = 0,
    link_share: Axis[float | None] = None,
    cpu_visit_us: Axis[float | None] = None,
    n_cpu_moe: Axis[int | None] = None,
    override_tensor: Axis[str | None] = None,
    dense_on_host: Axis[str | None] = None,
    engine_as_costs: Axis[bool] = False,
    vram: Axis[str | None] = None,
    context: Axis[int | None] = None,
    kv_precision: Axis[str] = "bf16",
    reset: Axis[Literal["none", "request"]] = "none",
    skip_prompts: Axis[bool] = False,
    requests: Axis[str | None] = None,
    warmup_share: Axis[float | None] = None,
    ram: Axis[str | None] = None,
    host: Axis[str | None] = None,
    host_gbps: Axis[float | None] = None,
    speculate: Axis[int | None] = None,
    accept: Axis[float | str] = "all",
    draft_ns: Axis[int] = 0,
    link_gbps: Axis[float | None] = None,
    price_per_hour: Axis[float | None] = None,
    watts: Axis[float | None] = None,
    idle_watts: Axis[float | None] = None,
) -> pd.DataFrame:
    """Many runs in one process, which shares what they have in common (the trace, its steps, what is fitted).

        sim.simulate_many(cache=[2, 3, 4], eviction=["lru", "lfu", my_eviction], trace="mixtral.npz")
        sim.simulate_many({"fetch": {}, "buddy": {"miss": "buddy"}}, trace="mixtral.npz", calibration=0.3)

    cases: name -> fields of that run, which win over `common`. A list (range, array, whatever can be gone through) is
    an axis, as in a file of `python -m sim.sweep`: every combination is run, the last axis fastest; None in it is the
    default. `set={"buddy.tau": [0.4, 0.6]}` is one, too, and a parameter belongs to the runs that use its policy. Of
    functions with one name the second is NAME-2.

    Returns a row per run, its index the run's name: the settings that differ, tokens_per_s with its interval (what 80 %
    of real engines do, NaN where nobody knows), tpot_ms, hit_rate, lost_weight (of the router's, as a share), h2d_gb
    (1e9 bytes), ..., marks, and `result`, the `Result`. `.attrs["notes"]` says what must be said with them.
    errors: "raise" stops at the first run that cannot be; "keep" gives it a row with its `error`.
    One core: for thousands of runs `python -m sim.sweep` uses all, and goes on where it was killed. Needs pandas.
    Raises UserError, one line that begins with the run's name.
    """

def compare(
    results: pd.DataFrame | Run | Iterable[Run] | Mapping[str, Table],
    /,
    *,
    baseline: str | int = 0,
    seed: int = 0,
    **common: Any,
) -> pd.DataFrame:
    """Each run against one of them: `python -m analysis.compare` from Python.

        sim.compare([sim.simulate("mixtral.npz", cache=n, name=f"cache {n}") for n in (2, 4)])
        sim.compare({"lru": {}, "mine": {"eviction": my_eviction}}, trace="mixtral.npz", cache=3)

    results: a frame of `simulate_many`, results, folders of `python -m sim.run --out`, or cases to be run first, with
    what they have in `common`. baseline: a name, or a place from 0. seed: of the bootstrap's draws.

    Returns a row per run, as simulate_many has it, with differences from the baseline: `*_change` (tokens/s and h2d
    relative, 0.1 = a tenth more; tpot in ms), their `*_low` and `*_high` (95 % interval, paired over requests; NaN
    where runs cannot be paired, and `not_paired` says why), pareto_best, conditions (runs of one number are
    alternatives of each other), marks. `.attrs` has notes, which must be read with it, baseline and statistic.
    Needs pandas. Raises UserError, one line.
    """

def figure(results: pd.DataFrame | Run | Iterable[Run], kind: str = "speed", **options: Any) -> go.Figure:
    """A figure of runs: those of the report, by the name of its kind (an unknown one lists them).

        sim.figure(frame, "along", x="cache")    sim.figure([run, other], "time")

    results: a frame of `simulate_many` or `compare`, results, or folders of `python -m sim.run --out`. options: of
    "speed" and "pareto" the baseline (a name, or a place from 0); of "along" x (the setting along the axis, default:
    the first number that differs), y (a column, default tokens_per_s) and by (what has a line of its own, default: the
    policies). What must be said of the runs stands above the figure. Needs pandas and plotly. Raises UserError.
    """

def open_run(path: File) -> Result:
    """The run in a folder that `python -m sim.run --out DIR` or `Result.save` wrote, with its record. Raises UserError
    where there is none.
    """
