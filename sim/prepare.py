"""From a spec to a plan: the trace in steps, the costs, the predictions, the slots and first residents, as arrays."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from sim import catalog
from sim.catalog import CatalogError
from sim.core.plan import GROUPS, ORDERS, Costs, Low, Plan, Prefetch
from sim.costs.roofline import StepShapes, costs, expert_bytes, low_copies, memory
from sim.errors import SpecError
from sim.fit.answers import answer_fields
from sim.memo import Memo, afresh
from sim.policies.registry import Policy, find, is_user, predictor
from sim.spec import RunSpec, cache_bytes, parse_cache, slots_of
from sim.steps import Steps, first_steps, leaving, schedule
from traces.errors import TraceError
from traces.format import npz, profile
from traces.format.trace import RoutingTrace, split
from traces.statistics.overlap import shared_requests

if TYPE_CHECKING:
    from sim.catalog.engine_spec import Engine
    from sim.catalog.hardware_spec import Hardware
    from sim.catalog.model_spec import ModelSpec
    from sim.fit.prediction import Prediction


@dataclass(frozen=True)
class Setting:
    """A plan and what it was made from, for the summary. `calibration` None: nothing was set aside; repeated: so many
    of its requests have the routing of a judged one (a fraction of a trace that repeats itself).
    policy_files: sha256 of the file of each policy that is a user's own. costs_key: equal where trace, steps and
    costs are."""

    spec: RunSpec
    plan: Plan
    trace: RoutingTrace
    trace_hash: str
    calibration: RoutingTrace | None
    steps: Steps
    model: "ModelSpec | None"
    hardware: "Hardware"
    engine: "Engine"
    policy_files: dict[str, str] = field(default_factory=dict)
    costs_key: tuple[Any, ...] = ()
    repeated: int = 0

    @property
    def longest_context(self) -> int:
        """Tokens, of any request at any step."""
        return int(self.trace.position[self.steps.row].max()) + 1 + self.spec.context_offset

    @property
    def memory(self) -> dict[str, Any]:
        """The summary's memory line: bytes on the GPU at the longest context."""
        total, low = int(self.plan.slots.sum()), self.plan.low
        copies = 0 if low is None else int(low.slots.sum()) * low.bytes
        sizes = (self.spec.precision, total, self.longest_context, self.spec.batch)
        return memory(self.model, *sizes, self.hardware, self.engine, copies)


def prepare(
    spec: RunSpec,
    memo: Memo = afresh,
    *,
    trace: RoutingTrace | None = None,
    calibration: RoutingTrace | None = None,
    model: "ModelSpec | None" = None,
) -> Setting:
    """Everything before the first nanosecond; `memo` may keep what other specs share with this one.

    trace, calibration, model: in memory, instead of what the spec names (a closed loop has no file).
    Raises SpecError, TraceError or CatalogError, one line each."""
    path = _place(spec.trace)
    whole, trace_hash = _opened(spec.trace, memo) if trace is None else (trace, npz.content_hash(trace))
    hardware = memo(("hardware", spec.hardware), lambda: catalog.hardware(spec.hardware))
    engine = memo(("engine", spec.engine), lambda: catalog.engine(spec.engine))
    model = model or memo(("model", spec.model, spec.trace, spec.hardware), lambda: _model(spec, whole, path, hardware))
    policies = _policies(spec)
    eviction, miss, rerank = policies["eviction"], policies["miss"], policies["rerank"]
    spec = _with_own_calibration(spec, path)
    judged = (spec.trace, spec.calibration, spec.seed if isinstance(spec.calibration, float) else 0)
    if calibration is None:
        calibration, trace, repeated = memo(("judged", *judged), lambda: _set_aside(spec, whole, memo))
    else:
        trace, repeated = whole, 0
    _refuse_what_is_missing(trace, path, spec, policies.values())
    _refuse_the_host(spec, miss, hardware)
    laid_out = (*judged, spec.batch, spec.prefill_chunk, spec.as_decode)
    steps = _steps(spec, trace, memo, laid_out)
    costed = (*laid_out, spec.max_steps, spec.model, spec.hardware, spec.engine, spec.precision, spec.context_offset)
    size = expert_bytes(model, hardware, spec.precision)
    slots = _slots(spec, trace, size, calibration, memo, judged)
    chosen = eviction.choice(spec.params("eviction"))
    answers = _answers(spec, eviction, miss, rerank, trace, calibration, size, hardware, memo, judged)
    forgets = (*laid_out, spec.max_steps, eviction.name, chosen.params.tolist())
    plan = Plan(
        experts=trace.experts,
        n_experts=trace.n_experts,
        step_offset=steps.offset,
        step_row=steps.row,
        step_prefill=steps.prefill,
        costs=memo(("costs", *costed), lambda: _costs(spec, trace, steps, model, hardware, engine)),
        slots=slots,
        pooled=spec.cache_scope == "global",
        residents=_residents(spec, trace, slots, calibration, memo, judged),
        expert_bytes=size,
        eviction=chosen,
        prefetch=_prefetch(spec, trace, steps, calibration, memo, laid_out),
        group=GROUPS.index(spec.expert_group or engine.expert_group),
        seed=spec.seed,
        warmup_steps=spec.warmup_steps,
        requests=steps.requests,
        low=_low(spec, trace, miss, model, hardware, engine, steps, size),
        leaving=memo(("leaving", *forgets), lambda: leaving(steps, chosen, trace.sequence)),
        **answers,
    )
    sources = (model, hardware, engine, _policy_files(spec))
    return Setting(spec, plan, trace, trace_hash, calibration, steps, *sources, costs_key=costed, repeated=repeated)


def _policies(spec: RunSpec) -> dict[str, Any]:
    """The policy of each kind: policies.Policy, a user's own, a predictor's class, None for `none`. Raises SpecError,
    also for a parameter that none of them has."""
    spec.params("eviction")  # whichever kind: all are looked at
    return {kind: find(kind, name) for kind, name in spec.policies.items()}


def _steps(spec: RunSpec, trace: RoutingTrace, memo: Memo, laid_out: tuple[Any, ...]) -> Steps:
    """The steps that a run takes, at most `max_steps`. Raises SpecError where the warm-up leaves none."""
    every = memo(("steps", *laid_out), lambda: schedule(trace, spec.batch, spec.prefill_chunk, spec.as_decode))
    steps = first_steps(every, spec.max_steps or len(every))
    if spec.warmup_steps >= len(steps):
        raise SpecError(f"warmup_steps: {spec.warmup_steps}: the run has {len(steps)} steps; must be fewer")
    return steps


def _refuse_the_host(spec: RunSpec, miss: Policy, hardware: "Hardware") -> None:
    """A miss policy that may answer cpu, on hardware without times for it."""
    if miss.may_answer_cpu(spec.params("miss")) and not (miss.user or hardware.answers_cpu):
        wrong = "has no cpu_expert_ns or measured.cpu_expert"
        raise SpecError(f"hardware: {spec.hardware}: {wrong}, which miss {miss.name} needs")


def _place(name: str) -> Path:
    """Where the trace of that name lies. Where nothing does, opening it says so, unless it came some other way."""
    try:
        return npz.find(name)
    except TraceError:
        return Path(name)


def _opened(name: str, memo: Memo) -> tuple[RoutingTrace, str]:
    """The trace of that name, checked, and its content hash."""

    def open_it() -> tuple[RoutingTrace, str]:
        trace = npz.read(npz.find(name))
        return trace, npz.content_hash(trace)

    return memo(("trace", name), open_it)


def _answers(
    spec: RunSpec, eviction: Policy, miss: Any, rerank: Policy | None, trace: RoutingTrace,
    calibration: RoutingTrace | None, size: int, hardware: "Hardware", memo: Memo, judged: tuple[Any, ...],
) -> dict[str, Any]:  # fmt: skip
    """The plan's fields that answers depend on (sim.fit.answers)."""
    given, given_rerank = spec.params("miss"), spec.params("rerank")
    chosen = (spec.eviction, spec.miss, *sorted(given.items()), spec.rerank, *sorted(given_rerank.items()))
    found = memo(
        ("answers", *judged, spec.seed, size, *chosen),
        lambda: answer_fields(eviction, miss, given, rerank, given_rerank, trace, calibration, size, spec.seed),
    )
    if miss.user and not hardware.answers_cpu:
        return {**found, "miss": miss.without_host(found["miss"])}
    return found


def _policy_files(spec: RunSpec) -> dict[str, str]:
    """sha256 by name, of the policies that are a user's own."""
    return {name: find(kind, name).sha256 for kind, name in spec.policies.items() if is_user(name)}


def _model(spec: RunSpec, trace: RoutingTrace, path: Path, hardware: "Hardware") -> "ModelSpec | None":
    """The model that the spec or the trace names; with fixed durations an unknown one is no matter."""
    fixed = hardware.fixed is not None
    try:
        model = catalog.model(spec.model or trace.model)
    except CatalogError as error:
        if spec.model is None and fixed:
            return None
        hint = "" if spec.model else "; the trace names it, --model NAME|FILE replaces it"
        raise SpecError(f"model: {error}{hint}") from None
    wrong = model.mismatch(trace.n_layers, tuple(trace.meta["moe_layers"]), trace.n_experts, trace.top_k)
    if wrong is None:
        return model
    if spec.model is None and fixed:
        return None
    raise SpecError(f"model: {spec.model or trace.model} does not match {path.name}: {wrong}")


def _with_own_calibration(spec: RunSpec, path: Path) -> RunSpec:
    """A shipped sample may bring a second one, of other requests, to fit on: `NAME-calibration` is the calibration of
    NAME where a run with something fitted names none. The spec then says so, and no request is set aside."""
    own = f"{path.stem}-calibration"
    shipped = path.parent == npz.SAMPLES and own in npz.sample_names()
    if spec.calibration is not None or not shipped or not fitted(spec):
        return spec
    return spec.model_copy(update={"calibration": own})


def fitted(spec: RunSpec) -> list[str]:
    """What of the run is fitted on a calibration trace, by name; not a policy that is given its lists."""
    kinds = [kind for kind, policy in _policies(spec).items() if policy is not None and policy.fitted]
    out = [kind for kind in kinds if not spec.params(kind).get("lists")]
    said = [f"{kind} {spec.placement}" if kind == "placement" else getattr(spec, kind) for kind in out]
    return [*said, *(["cache_spread marginal"] if spec.cache_spread == "marginal" else [])]


def _set_aside(spec: RunSpec, trace: RoutingTrace, memo: Memo) -> tuple[RoutingTrace | None, RoutingTrace, int]:
    """(what is fitted on, what is judged, requests that the two share): by --calibration and the seed alone, whatever
    the policies. Raises SpecError for a file that shares any."""
    if spec.calibration is None:
        return None, trace, 0
    if isinstance(spec.calibration, float):
        aside, judged = split(trace, spec.calibration, spec.seed)
        return aside, judged, len(shared_requests(judged, aside))
    path = npz.find(spec.calibration)
    other = _opened(spec.calibration, memo)[0]
    for name in ("n_moe_layers", "n_experts", "top_k"):
        if getattr(other, name) != getattr(trace, name):
            raise SpecError(
                f"calibration: {path.name}: {name} is {getattr(other, name)}, but {getattr(trace, name)} in the trace"
            )
    shared, (first, _) = shared_requests(trace, other), other.requests()
    if len(shared):
        which = f"{len(shared)} of its {len(first)} requests (request {other.sequence[first[shared[0]]]} for one)"
        remedy = "must be other requests; a fraction (0.3) sets some of the trace aside"
        raise SpecError(f"calibration: {path.name}: {which} are judged too; {remedy}")
    return other, trace, 0


def _refuse_what_is_missing(trace: RoutingTrace, path: Path, spec: RunSpec, policies: Iterable[Any]) -> None:
    """Arrays that the trace lacks, and a calibration that the run lacks, by the name of the policy that needs them."""
    for policy in policies:
        for array in () if policy is None else policy.needs:
            if not trace.has(array):
                raise SpecError(f"{policy.name}: needs `{array}`, which {path.name} does not have")
    for name in fitted(spec) if spec.calibration is None else ():
        raise SpecError(f"{name}: is fitted and needs --calibration FILE|FRACTION")


def _costs(
    spec: RunSpec, trace: RoutingTrace, steps: Steps, model: "ModelSpec | None", hardware: "Hardware", engine: "Engine"
) -> Costs:
    """The cost tables of these steps."""
    positions = trace.position[steps.row].astype(np.int64) + spec.context_offset
    moe_layers = np.asarray(trace.meta["moe_layers"], np.int64)
    shapes = StepShapes(steps.offset, positions, steps.prefill, trace.n_layers, moe_layers)
    return costs(model, hardware, engine, spec.precision, shapes)


def _slots(
    spec: RunSpec, trace: RoutingTrace, size: int, calibration: RoutingTrace | None, memo: Memo, judged: tuple[Any, ...]
) -> npt.NDArray[np.int64]:
    """Slots of each scope; `marginal` moves them between layers to where the calibration trace hits more."""
    slots = _shares("cache", spec.cache, spec, trace, size)
    if spec.cache_spread == "even":
        return slots
    if spec.cache_scope == "global":
        raise SpecError("cache_spread: marginal: spreads slots over layers; --cache-scope layer is required")
    from sim.fit.slots import spread_slots

    assert calibration is not None  # _refuse_what_is_missing has seen to it
    fitted_on, total, shape = calibration, int(slots.sum()), (trace.n_moe_layers, trace.n_experts)
    return memo(
        ("spread", *judged, total, spec.as_decode),
        lambda: spread_slots(fitted_on, total, *shape, as_decode=spec.as_decode),
    )


def _shares(
    field: str, cache: int | float | str, spec: RunSpec, trace: RoutingTrace, size: int
) -> npt.NDArray[np.int64]:
    """int64 [scopes]. Bytes: as many whole experts as fit, in equal shares, what is left over one each to the first
    layers, at most all there are. Raises SpecError where a scope would have none, and for more slots than experts."""
    pooled, layers = spec.cache_scope == "global", trace.n_moe_layers
    most = trace.n_experts * (layers if pooled else 1)
    scopes = 1 if pooled else layers
    if isinstance(cache, str):
        total = min(cache_bytes(cache) // size, most * scopes)
        if total < scopes:
            raise SpecError(f"{field}: {cache}: holds {total} experts of {size} bytes; needs at least {scopes}")
        shares = total // scopes + (np.arange(scopes) < total % scopes)
        return np.asarray(np.minimum(shares, most), np.int64)
    if cache > most:
        has = f"the pool is of {most} experts" if pooled else f"a layer has {most} experts"
        raise SpecError(f"{field}: {cache}: {has}; must be at most {most} slots, a fraction (0.5) or bytes (20GB)")
    return np.full(scopes, slots_of(cache, most), np.int64)


def _low(
    spec: RunSpec, trace: RoutingTrace, miss: Policy, model: "ModelSpec | None", hardware: "Hardware",
    engine: "Engine", steps: Steps, size: int,
) -> Low | None:  # fmt: skip
    """The low-precision copies of a miss policy that answers `low`, with slots of their own in every scope."""
    if "slots" not in miss.prepared:
        return None
    values = miss.values(spec.params("miss"))
    field = f"set: {miss.name}.slots"
    try:
        cache = parse_cache(values["slots"])
    except ValueError as error:
        raise SpecError(f"{field}={values['slots']}: {error}") from None
    precision, rows = str(values["precision"]), int(np.diff(steps.offset).max())
    low = low_copies(model, hardware, engine, precision, np.zeros(0, np.int64), rows)
    if low.bytes >= size and hardware.fixed is None:
        wrong = f"{low.bytes} bytes; must be fewer than the {size} of a full copy"
        raise SpecError(f"set: {miss.name}.precision={precision}: {wrong}")
    return replace(low, slots=_shares(field, cache, spec, trace, low.bytes))


def _residents(
    spec: RunSpec, trace: RoutingTrace, slots: npt.NDArray[np.int64], calibration: RoutingTrace | None,
    memo: Memo, judged: tuple[Any, ...],
) -> npt.NDArray[np.int64]:  # fmt: skip
    from sim.fit.placement import first_residents

    def place() -> npt.NDArray[np.int64]:
        lists, counts, policy = None, None, find("placement", spec.placement)
        if "file" in policy.parameters:
            counts = _profile_counts(spec, trace)
        if policy.lists:
            from sim.fit.buddies import BuddyProfile

            assert calibration is not None  # _refuse_what_is_missing has seen to it
            lists = BuddyProfile(seed=spec.seed).fit(calibration).lists_
        sizes = (trace.n_moe_layers, trace.n_experts, slots, spec.cache_scope == "global")
        return first_residents(spec.placement, *sizes, calibration, spec.seed, lists=lists, counts=counts)

    chosen = (spec.placement, *sorted(spec.params("placement").items()))
    return memo(("residents", *judged, *chosen, spec.seed, spec.cache_scope, slots.tolist()), place)


def _profile_counts(spec: RunSpec, trace: RoutingTrace) -> npt.NDArray[np.float64]:
    """Uses [L, E] of the frequency profile that the placement names. Raises SpecError where it is of another shape."""
    file = spec.params("placement").get("file")
    if not isinstance(file, str):
        raise SpecError(f"placement {spec.placement}: needs --set {spec.placement}.file=P.npz, a frequency profile")
    found = profile.read(npz.find(file))
    if found.counts.shape != (trace.n_moe_layers, trace.n_experts):
        have, want = list(found.counts.shape), [trace.n_moe_layers, trace.n_experts]
        raise SpecError(f"set: {spec.placement}.file={file}: counts {have}; the trace has [MoE layers, experts] {want}")
    return found.counts


def _prefetch(
    spec: RunSpec, trace: RoutingTrace, steps: Steps, calibration: RoutingTrace | None, memo: Memo, key: tuple[Any, ...]
) -> Prefetch | None:
    if spec.prefetch == "none":
        return None
    given = spec.params("prefetch")

    def predict() -> "Prediction":
        method = predictor(spec.prefetch, given)
        if method.fitted:
            method.fit(calibration)
        out: Prediction = method.predict(trace, steps)
        return out

    found = memo(("prefetch", *key, spec.max_steps, spec.prefetch, *sorted(given.items())), predict)
    budget = -1 if spec.prefetch_budget is None else spec.prefetch_budget
    return Prefetch(found.lists, found.row, budget, ORDERS.index(spec.transfer_order), found.rank_key)
