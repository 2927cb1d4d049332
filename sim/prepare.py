"""From a spec to a plan, in stages: what is judged, its steps, costs, slots, what is fitted; all as arrays.

A stage is a frozen dataclass of all that its result depends on, and `make` sees nothing else: so its value, by its
repr, is the key under which a memo may keep the result for other specs, and nothing can be left out of a key that the
result is made from. A stage names earlier stages as its fields and gets their results from the same memo.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from sim import catalog
from sim.capacity import Fits, largest_run, largest_step, longest_context, shares, slots_by_layer, vram_bytes
from sim.core.miss import FETCH
from sim.core.plan import BY_LOGITS, FROM_FRESH, GROUPS, ONE_BY_ONE, ORDERS, Costs, Leaving, Low, Plan, Prefetch
from sim.costs.classes import StepShapes
from sim.costs.reserve import working_bytes
from sim.costs.roofline import costs, expert_bytes, host_memory, layers_bytes, low_copies, memory
from sim.engines import FIT
from sim.errors import CatalogError, SpecError
from sim.fit.answers import answer_fields
from sim.fit.buddies import BuddyLists, BuddyProfile
from sim.fit.placement import first_residents, popular_slots
from sim.fit.prediction import Prediction
from sim.fit.slots import spread_slots
from sim.layers import layer_numbers
from sim.memo import Memo, afresh, within
from sim.on_miss import Rules, on_miss, staged, whole_there
from sim.policies.kinds import BULK, Value
from sim.policies.policy import NONE, Policy
from sim.policies.registry import find
from sim.spec import ALL, WITHOUT_SLOTS, RunSpec, exact, memory_bytes, parse_cache, parse_requests
from sim.speculation import Speculation, draft_ns, within_ns
from sim.steps import Steps, first_steps, leaving, resets, schedule
from traces.errors import TraceError
from traces.format import npz, profile
from traces.format.groups import ordinals
from traces.format.trace import RoutingTrace, split
from traces.statistics.overlap import shared_requests

if TYPE_CHECKING:  # whoever only reads summaries needs no catalog
    from sim.catalog.engine_spec import Engine
    from sim.catalog.hardware_spec import Hardware
    from sim.catalog.model_spec import ModelSpec

Int = npt.NDArray[np.int64]
Made = TypeVar("Made", covariant=True)


class Stage(Protocol[Made]):
    """What all that `make` depends on can be told from by its repr. Numbers, text and other stages; of what is in
    memory, its content hash."""

    def make(self, memo: Memo) -> Made: ...


def made(stage: Stage[Made], memo: Memo) -> Made:
    """What a stage makes, once for all the specs that have it in common."""
    return memo(stage, lambda: stage.make(memo))


@dataclass(frozen=True)
class Opened:
    """A trace by name; or one in memory, `held`, whose hash is `content`. Makes (trace, content hash)."""

    name: str
    content: str = ""
    held: RoutingTrace | None = field(default=None, repr=False)

    @classmethod
    def of(cls, name: str, held: RoutingTrace | None) -> "Opened":
        return cls(name) if held is None else cls(name, npz.content_hash(held), held)

    @property
    def path(self) -> Path:
        """Where it lies. Where nothing does, opening it says so, unless it came some other way."""
        try:
            return npz.find(self.name)
        except TraceError:
            return Path(self.name)

    def make(self, memo: Memo) -> tuple[RoutingTrace, str]:
        if self.held is not None:
            return self.held, self.content
        trace = npz.read(npz.find(self.name))
        return trace, npz.content_hash(trace)


@dataclass(frozen=True)
class Described:
    """An entry of the catalog, or a file of one; kind: hardware, engine; changes: of a spec's hardware."""

    kind: str
    name: str
    changes: tuple[tuple[str, Any], ...] = ()

    @classmethod
    def of(cls, spec: RunSpec, kind: str) -> "Described":
        return cls(kind, getattr(spec, kind), tuple(spec.changes.items()) if kind == "hardware" else ())

    def make(self, memo: Memo) -> Any:
        return getattr(catalog, self.kind)(self.name, **dict(self.changes))


@dataclass(frozen=True)
class Modelled:
    """The model that the spec or the trace names (`model_of`), or one in memory, its KV entries at a precision. Makes a
    ModelSpec; with fixed durations an unknown one is no matter, and None."""

    model: "str | ModelSpec | None"
    trace: Opened
    hardware: Described
    kv_precision: str

    def make(self, memo: Memo) -> "ModelSpec | None":
        model = self._model(memo)
        return None if model is None else model.with_kv(self.kv_precision)

    def _model(self, memo: Memo) -> "ModelSpec | None":
        if not isinstance(self.model, str | None):
            return self.model
        trace = made(self.trace, memo)[0]
        fixed = made(self.hardware, memo).fixed is not None
        try:
            model = model_of(trace, self.trace.path.name, self.model)
        except CatalogError as error:
            if self.model is None and fixed:
                return None
            raise SpecError(f"model: {error}") from None
        top_k = max(trace.top_k, model.top_k)  # of fewer the notes say it: engines can be told to use fewer
        wrong = model.mismatch(trace.n_layers, tuple(trace.meta["moe_layers"]), trace.n_experts, top_k)
        if wrong is None:
            return model
        if self.model is None and fixed:
            return None
        raise SpecError(f"model: {self.model or trace.model} does not match {self.trace.path.name}: {wrong}")


def model_of(trace: RoutingTrace, where: str, asked: str | None = None) -> "ModelSpec":
    """The model of a trace: as asked for, else the catalog's of the name that the trace gives, else what the trace's
    meta says of it. where: names the trace. Raises CatalogError where nobody knows it, or what is said is wrong."""
    try:
        return catalog.model(asked or trace.model)
    except CatalogError as error:
        if asked is not None:
            raise
        unknown = str(error)
    try:
        found = catalog.captured(trace.meta, where)
    except CatalogError as error:
        raise CatalogError(f"{error}; --model NAME|FILE replaces it (docs/models.md)") from None
    if found is None:
        raise CatalogError(f"{unknown}; the trace names it, --model NAME|FILE replaces it")
    return found


@dataclass(frozen=True)
class Judged:
    """What is judged and what is set aside to fit on, by --calibration and the seed alone, whatever the policies; seed:
    of a fraction, else 0; requests: those of the trace that are there, None: all. Makes (calibration trace or None,
    judged trace, requests that the two share)."""

    trace: Opened
    calibration: Opened | float | None
    seed: int
    requests: str | None = None

    def make(self, memo: Memo) -> tuple[RoutingTrace | None, RoutingTrace, int]:
        """Raises SpecError for a file that shares any request, and for requests that are not there."""
        trace = made(self.trace, memo)[0]
        if self.requests is not None:
            trace = _of_requests(trace, self.requests, self.trace.path.name)
        if self.calibration is None:
            return None, trace, 0
        if isinstance(self.calibration, float):
            aside, judged = split(trace, self.calibration, self.seed)
            return aside, judged, len(shared_requests(judged, aside))
        other = made(self.calibration, memo)[0]
        if self.calibration.held is None:
            _refuse_calibration(self.calibration.path.name, other, trace)
        return other, trace, 0

    def judged(self, memo: Memo) -> RoutingTrace:
        """The trace that is judged."""
        return made(self, memo)[1]

    def fitted_on(self, memo: Memo) -> RoutingTrace:
        """The calibration trace of a run that has one (`_refuse_what_is_missing` has seen to it)."""
        calibration = made(self, memo)[0]
        assert calibration is not None
        return calibration


def _of_requests(trace: RoutingTrace, asked: str, name: str) -> RoutingTrace:
    """The requests that --requests asks for, alone."""
    try:
        return trace.take(ordinals(trace, parse_requests(asked)))
    except TraceError as error:
        raise SpecError(f"requests: {asked}: {error} ({name})") from None


def _refuse_calibration(name: str, other: RoutingTrace, trace: RoutingTrace) -> None:
    """A file of another shape than the judged trace, or with requests of it."""
    for size in ("n_moe_layers", "n_experts", "top_k"):
        if getattr(other, size) != getattr(trace, size):
            want = f"{getattr(trace, size)} in the trace"
            raise SpecError(f"calibration: {name}: {size} is {getattr(other, size)}, but {want}")
    shared, (first, _) = shared_requests(trace, other), other.requests()
    if len(shared):
        which = f"{len(shared)} of its {len(first)} requests (request {other.sequence[first[shared[0]]]} for one)"
        remedy = "must be other requests; a fraction (0.3) sets some of the trace aside"
        raise SpecError(f"calibration: {name}: {which} are judged too; {remedy}")


@dataclass(frozen=True)
class Scheduled:
    """All steps of the judged trace."""

    judged: Judged
    batch: int
    prefill_chunk: int
    as_decode: bool
    skip_prompts: bool
    speculation: Speculation | None

    def make(self, memo: Memo) -> Steps:
        how = self.batch, self.prefill_chunk, self.as_decode, self.speculation, self.skip_prompts
        return schedule(self.judged.judged(memo), *how)


@dataclass(frozen=True)
class Stepped:
    """The steps that a run takes, at most `max_steps`."""

    scheduled: Scheduled
    max_steps: int | None

    def make(self, memo: Memo) -> Steps:
        every = made(self.scheduled, memo)
        return first_steps(every, self.max_steps or len(every))

    @property
    def judged(self) -> Judged:
        return self.scheduled.judged


@dataclass(frozen=True)
class Costed:
    """The cost tables of these steps, on the hardware that the model is run on; on_host: the layers, of all, whose
    dense part is the host's."""

    steps: Stepped
    model: Modelled
    engine: Described
    precision: str
    context_offset: int
    on_host: tuple[int, ...]
    draft_ns: int

    def make(self, memo: Memo) -> Costs:
        parts = (made(self.model, memo), made(self.model.hardware, memo), made(self.engine, memo))
        return self.on(*parts, self.steps.judged.judged(memo), self.steps.make(memo))

    def on(
        self, model: "ModelSpec | None", hardware: "Hardware", engine: "Engine", trace: RoutingTrace, steps: Steps
    ) -> Costs:
        """The tables of these steps on what is in memory."""
        positions = trace.position[steps.row].astype(np.int64) + self.context_offset
        moe_layers = np.asarray(trace.meta["moe_layers"], np.int64)
        shapes = StepShapes(steps.offset, positions, steps.prefill, trace.n_layers, moe_layers)
        found = costs(model, hardware, engine, self.precision, shapes, self.on_host)
        return replace(found, draft_ns=draft_ns(self.draft_ns, steps.windows, len(steps)))


@dataclass(frozen=True)
class Spread:
    """So many slots in all, moved between layers to where the calibration trace hits more: int64 [L]."""

    judged: Judged
    total: int
    as_decode: bool

    def make(self, memo: Memo) -> Int:
        trace = self.judged.judged(memo)
        shape = (trace.n_moe_layers, trace.n_experts)
        return spread_slots(self.judged.fitted_on(memo), self.total, *shape, as_decode=self.as_decode)


@dataclass(frozen=True)
class Chosen:
    """A policy of a run by name, with the parameters that were given it; sha256: of a user's own, which may change
    under its name."""

    kind: str
    name: str
    given: tuple[tuple[str, Value], ...]
    sha256: str = ""

    @classmethod
    def of(cls, spec: RunSpec, kind: str) -> "Chosen":
        name = getattr(spec, kind)
        return cls(kind, name, tuple(sorted(spec.params(kind).items())), find(kind, name).sha256)

    @property
    def policy(self) -> Policy:
        return find(self.kind, self.name)


@dataclass(frozen=True)
class Popular:
    """So many slots in all, for the most popular pairs of layer and expert: int64 [L]."""

    judged: Judged
    placement: Chosen
    total: int

    def make(self, memo: Memo) -> Int:
        calibration, trace, _ = made(self.judged, memo)
        counts = _counts(self.placement, trace)
        return popular_slots(self.total, trace.n_moe_layers, trace.n_experts, calibration, counts)


@dataclass(frozen=True)
class Buddies:
    """Buddy lists of the calibration trace; profile: its parameters, not fitted yet."""

    judged: Judged
    profile: BuddyProfile

    def make(self, memo: Memo) -> BuddyLists:
        return replace(self.profile).fit(self.judged.fitted_on(memo)).lists_


@dataclass(frozen=True)
class Placed:
    """First residents, int64 [n]; slots: of each scope."""

    judged: Judged
    placement: Chosen
    seed: int
    pooled: bool
    slots: tuple[int, ...]

    def make(self, memo: Memo) -> Int:
        (calibration, trace, _), policy = made(self.judged, memo), self.placement.policy
        counts = _counts(self.placement, trace)
        lists = made(Buddies(self.judged, BuddyProfile(seed=self.seed)), memo) if policy.lists else None
        sizes = (trace.n_moe_layers, trace.n_experts, np.array(self.slots), self.pooled)
        return first_residents(policy.name, *sizes, calibration, self.seed, lists=lists, counts=counts)


def _counts(placement: Chosen, trace: RoutingTrace) -> npt.NDArray[np.float64] | None:
    """Uses [L, E] of the frequency profile that the placement names; None of one that reads none, or is fitted where
    it names none. Raises SpecError where the profile is missing or of another shape."""
    name, file, policy = placement.name, dict(placement.given).get("file"), placement.policy
    if "file" not in policy.parameters or (policy.fitted and not file):
        return None
    if not isinstance(file, str):
        raise SpecError(f"placement {name}: needs --set {name}.file=P.npz, a frequency profile")
    found = profile.read(npz.find(file))
    if found.counts.shape == (trace.n_moe_layers, trace.n_experts):
        return found.counts
    layers, counted = trace.meta["moe_layers"], found.meta["moe_layers"]
    if found.n_experts != trace.n_experts or not set(counted) <= set(layers):
        have, want = list(found.counts.shape), [trace.n_moe_layers, trace.n_experts]
        raise SpecError(f"set: {name}.file={file}: counts {have}; the trace has [MoE layers, experts] {want}")
    counts = np.zeros((trace.n_moe_layers, trace.n_experts))  # a layer that was not counted: nobody is more popular
    counts[np.searchsorted(layers, counted)] = found.counts
    return counts


@dataclass(frozen=True)
class Predicted:
    """What a prefetcher predicts for these steps."""

    steps: Stepped
    prefetch: Chosen

    def make(self, memo: Memo) -> Prediction:
        predictor = self.prefetch.policy.predictor(dict(self.prefetch.given))
        if predictor.fitted:
            predictor.fit(self.steps.judged.fitted_on(memo))
        found: Prediction = predictor.predict(self.steps.judged.judged(memo), self.steps.make(memo))
        return found


@dataclass(frozen=True)
class Weighed:
    """The judged trace's router weights as the core reads them, float32 [T, L, K]; None where it has none."""

    judged: Judged

    def make(self, memo: Memo) -> npt.NDArray[np.float32] | None:
        weights = self.judged.judged(memo).weights
        return None if weights is None else np.ascontiguousarray(weights, np.float32)


@dataclass(frozen=True)
class Answered:
    """The plan's fields that answers depend on (sim.fit.answers); weighs: the eviction reads router weights, by_logits:
    logits."""

    judged: Judged
    miss: Chosen
    rerank: Chosen
    weighs: bool
    by_logits: bool
    expert_bytes: int
    seed: int

    def make(self, memo: Memo) -> dict[str, Any]:
        calibration, trace, _ = made(self.judged, memo)
        return answer_fields(
            self.miss.policy,
            dict(self.miss.given),
            self.rerank.policy,
            dict(self.rerank.given),
            trace=trace,
            calibration=calibration,
            expert_bytes=self.expert_bytes,
            seed=self.seed,
            weighs=self.weighs,
            by_logits=self.by_logits,
            weights=lambda: made(Weighed(self.judged), memo),
            fit=lambda profile: made(Buddies(self.judged, profile), memo),
        )


@dataclass(frozen=True)
class Forgotten:
    """What an eviction that looks back forgets at each step, None of any other."""

    steps: Stepped
    eviction: Chosen
    reset: str

    def make(self, memo: Memo) -> Leaving | None:
        choice, steps = self.eviction.policy.choice(dict(self.eviction.given)), self.steps.make(memo)
        return leaving(steps, choice, self.steps.judged.judged(memo).sequence, resets(self.reset, steps))


@dataclass(frozen=True)
class Setting:
    """A plan and what it was made from, for the summary. `calibration` None: nothing was set aside; repeated: so many
    of its requests have the routing of a judged one (a fraction of a trace that repeats itself).
    policy_files: sha256 of the file of each policy that is a user's own. costed: equal where trace, steps and
    costs are. rules: what the plan's `on_miss` was made from, beside what the plan says."""

    spec: RunSpec
    plan: Plan
    trace: RoutingTrace
    trace_hash: str
    calibration: RoutingTrace | None
    steps: Steps
    model: "ModelSpec | None"
    hardware: "Hardware"
    engine: "Engine"
    policy_files: dict[str, str]
    costed: Costed
    rules: Rules
    repeated: int = 0

    def on(self, hardware: "Hardware", engine: "Engine") -> Plan:
        """The plan on other costs than the spec's: the same engine and hardware, durations and rates changed."""
        costs = self.costed.on(self.model, hardware, engine, self.trace, self.steps)
        return replace(self.priced(costs), on_miss=on_miss(self.rules, self.plan, hardware, engine))

    def priced(self, costs: Costs) -> Plan:
        """The plan with other durations, and with what a prefetcher expects of them."""
        prefetch = self.plan.prefetch
        if prefetch is not None and prefetch.within_ns is not None:
            prefetch = replace(prefetch, within_ns=_within(costs, self.steps, prefetch))
        return replace(self.plan, costs=costs, prefetch=prefetch)

    @property
    def policy_from(self) -> dict[str, str]:
        """Where the policies came from that are neither built in nor of a file that their name says."""
        every = (find(kind, name) for kind, name in self.spec.policies.items())
        return {policy.name: policy.origin for policy in every if policy.origin}

    @property
    def context(self) -> int:
        """Tokens of KV entries that each sequence has memory for: as asked, else of the longest request at any step."""
        return self.spec.context or longest_context(self.spec, self.trace, self.steps)

    @property
    def memory(self) -> dict[str, Any]:
        """The summary's memory line: bytes on the GPU; and on the host, where its size is known
        or the run does on a miss what earlier ones could not."""
        total, low = int(self.plan.slots.sum()), self.plan.low
        copies = 0 if low is None else int(low.slots.sum()) * low.bytes
        sizes = (self.spec.precision, total, self.context, self.spec.batch)
        rows, on_host = largest_step(self.spec, self.steps), self.costed.on_host
        stages, room = staged(self.rules, self.plan, rows), vram_bytes(self.spec, self.hardware)
        more: Any = (copies, stages, on_host, rows, room, self._working)
        line, spec = memory(self.model, *sizes, self.hardware, self.engine, *more), self.spec
        asked = self.ram is not None or self.plan.on_miss is not None or spec.dense_on_host is not None or spec.behaves
        return line | ({"host": self.host_memory} if asked and not self.hardware.unified else {})

    @property
    def _working(self) -> int:
        """CUDA context and buffers, of a run that is to fit into memory: told its size, or filling it."""
        if self.spec.vram is None and self.spec.cache != FIT:
            return 0
        return working_bytes(self.model, self.hardware, self.engine, largest_run(self.steps), self.context)

    @property
    def host_memory(self) -> dict[str, Any]:
        """Bytes on the host (sim.costs.roofline.host_memory)."""
        spec, experts, low = self.spec, self.plan.experts.shape[1] * self.plan.n_experts, self.plan.low
        if spec.behaves is not None and not self.engine.host_copy:
            experts -= self.plan.n_experts * int(whole_there(self.plan).sum())
        more = 0 if low is None else experts * low.bytes
        if self.costed.on_host and self.model is not None:
            sizes = (self.costed.on_host, self.context, spec.batch)
            more += sum(layers_bytes(self.model, self.engine, spec.precision, *sizes))
        return host_memory(self.model, self.hardware, self.engine, spec.precision, experts, self.ram, more)

    @property
    def ram(self) -> int | None:
        """Bytes of the host's memory; None where nobody says."""
        if self.spec.ram is not None:
            return memory_bytes(self.spec.ram)
        return None if self.hardware.host is None else self.hardware.host.ram_bytes


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
    memo = within(memo)
    opened = Opened.of(spec.trace, trace)
    trace_hash = made(opened, memo)[1]
    hardware, engine = (Described.of(spec, kind) for kind in ("hardware", "engine"))
    machine: Hardware = made(hardware, memo)
    served: Engine = made(engine, memo)
    modelled = Modelled(model or spec.model, opened, hardware, spec.kv_precision)
    known = made(modelled, memo)
    chosen = {kind: Chosen.of(spec, kind) for kind in spec.policies}
    policies = {kind: each.policy for kind, each in chosen.items()}
    spec = _with_own_calibration(spec, opened.path)
    judged = _judged(spec, opened, calibration)
    aside, trace, repeated = made(judged, memo)
    _refuse_what_is_missing(trace, opened.path, spec, policies.values())
    _refuse_the_host(spec, policies["miss"], machine)
    rows = spec.batch, spec.prefill_chunk, spec.as_decode, spec.skip_prompts, _speculation(spec)
    stepped = Stepped(Scheduled(judged, *rows), spec.max_steps)
    steps = stepped.make(memo)
    warmup = _warmup_steps(spec, len(steps))
    if spec.speculate is not None and made(stepped.scheduled, memo).prefill.all():
        wrong = f"{opened.path.name} has no generated tokens; --as-decode runs its prompts as decode steps"
        raise SpecError(f"speculate: {spec.speculate}: {wrong}")
    size = expert_bytes(known, machine, spec.precision)
    _refuse_context(spec, trace, steps)
    weighs = "weights" in policies["eviction"].keeps or spec.defer > 0
    eviction = policies["eviction"].choice(spec.params("eviction"))
    by_logits = bool(eviction.marks & BY_LOGITS)
    answers = made(Answered(judged, chosen["miss"], chosen["rerank"], weighs, by_logits, size, spec.seed), memo)
    rules = Rules.of(spec)
    fits = Fits(spec, trace, steps, known, machine, served, rules, answers["miss"], eviction)
    slots = _slots(spec, trace, size, judged, chosen["placement"], fits, memo)
    if policies["miss"].user and not machine.answers_cpu:  # giving such an answer is an error
        answers |= {"miss": replace(answers["miss"], function=replace(answers["miss"].function, host=False))}
    on_host = _on_host(spec, trace, machine, slots)
    costed = Costed(stepped, modelled, engine, spec.precision, spec.context_offset, on_host, spec.draft_ns)
    placed = Placed(judged, chosen["placement"], spec.seed, spec.cache_scope == "global", tuple(slots.tolist()))
    plan = Plan(
        experts=trace.experts,
        n_experts=trace.n_experts,
        step_offset=steps.offset,
        step_row=steps.row,
        step_prefill=steps.prefill,
        costs=made(costed, memo),
        slots=slots,
        pooled=placed.pooled,
        residents=made(placed, memo),
        expert_bytes=size,
        eviction=eviction,
        prefetch=_prefetch(spec, Predicted(stepped, chosen["prefetch"]), costed, memo),
        group=GROUPS.index(spec.expert_group or served.expert_group),
        seed=spec.seed,
        warmup_steps=warmup,
        requests=steps.requests,
        resets=resets(spec.reset, steps),
        windows=steps.windows,
        low=_low(spec, trace, policies["miss"], known, machine, served, steps, size),
        leaving=made(Forgotten(stepped, chosen["eviction"], spec.reset), memo),
        fresh=steps.fresh if eviction.marks & FROM_FRESH else np.zeros(0, np.bool_),
        **answers,
    )
    plan = replace(plan, on_miss=on_miss(rules, plan, machine, served))
    _refuse_one_by_one(spec, plan)
    files = {policy.name: policy.sha256 for policy in policies.values() if policy.user}
    return Setting(spec, plan, trace, trace_hash, aside, steps, known, machine, served, files, costed, rules, repeated)


def _judged(spec: RunSpec, trace: Opened, calibration: RoutingTrace | None) -> Judged:
    """The stage; a calibration trace in memory takes the place of what the spec names."""
    given = spec.calibration
    if calibration is not None:
        return Judged(trace, Opened.of(str(given), calibration), 0, spec.requests)
    if isinstance(given, str):
        return Judged(trace, Opened(given), 0, spec.requests)
    return Judged(trace, given, 0 if given is None else spec.seed, spec.requests)


def _with_own_calibration(spec: RunSpec, path: Path) -> RunSpec:
    """Where a run with something fitted names no calibration, that of its sample. The spec then says so, and no request
    is set aside."""
    own = own_calibration(path)
    if spec.calibration is not None or own is None or not fitted(spec):
        return spec
    return spec.model_copy(update={"calibration": own})


def own_calibration(path: Path) -> str | None:
    """A shipped sample may bring a second one, of other requests, to fit on: `NAME-calibration` beside NAME."""
    own = f"{path.stem}-calibration"
    return own if path.parent == npz.SAMPLES and own in npz.sample_names() else None


def fitted(spec: RunSpec) -> list[str]:
    """What of the run is fitted on a calibration trace, by name; not a policy that is given its lists or counts."""
    kinds = [kind for kind, name in spec.policies.items() if find(kind, name).fitted]
    out = [kind for kind in kinds if not any(spec.params(kind).get(given) for given in ("lists", "file"))]
    said = [f"{kind} {spec.placement}" if kind == "placement" else getattr(spec, kind) for kind in out]
    return [*said, *(["cache_spread marginal"] if spec.cache_spread == "marginal" else [])]


_AGAIN = "python -m traces capture records it"
_HOW_TO_GET = {  # an array that a trace lacks
    "weights": f"{_AGAIN}, python -m traces info FILE says what a trace has",
    "logits": f"{_AGAIN} (without --no-logits)",
    "lookahead": f"{_AGAIN}; --prefetch previous-token needs none",
    "token_ids": _AGAIN,
}


def _refuse_what_is_missing(trace: RoutingTrace, path: Path, spec: RunSpec, policies: Iterable[Policy]) -> None:
    """Arrays that the trace lacks, and a calibration that the run lacks, by the name of the policy that needs them."""
    for policy in policies:
        for array in policy.needs:
            if not trace.has(array):
                wrong = f"needs `{array}`, which {path.name} does not have"
                raise SpecError(f"{policy.name}: {wrong}; {_HOW_TO_GET[array]}")
    if spec.defer and not trace.has("weights"):
        raise SpecError(f"defer: {spec.defer}: needs `weights`, which {path.name} does not have")
    for name in fitted(spec) if spec.calibration is None else ():
        theirs = f"; engine {spec.engine} has it" if spec.behaves is not None else ""
        raise SpecError(f"{name}: is fitted and needs --calibration FILE|FRACTION, such as 0.3{theirs}")


def _refuse_the_host(spec: RunSpec, miss: Policy, hardware: "Hardware") -> None:
    """A miss policy or a bulk rule that may answer cpu, on hardware without times for it; a size of the host's memory
    where there is one memory."""
    if spec.ram is not None and hardware.unified:
        raise SpecError(f"ram: {spec.ram}: {spec.hardware} has one memory, the GPU's; give --vram")
    wrong = f"hardware: {spec.hardware}: has no cpu_expert_ns or measured.cpu_expert, which"
    if miss.may_answer_cpu(spec.params("miss")) and not (miss.user or hardware.answers_cpu):
        raise SpecError(f"{wrong} miss {miss.name} needs")
    if spec.bulk != NONE.name and find(BULK, spec.bulk).answers_cpu and not hardware.answers_cpu:
        raise SpecError(f"{wrong} bulk {spec.bulk} needs")


def _warmup_steps(spec: RunSpec, steps: int) -> int:
    """The first of so many steps, which no figure counts: as many as asked for, or the whole ones of a share."""
    if spec.warmup_share is not None:
        return int(exact(spec.warmup_share) * steps)
    if spec.warmup_steps >= steps:
        raise SpecError(f"warmup_steps: {spec.warmup_steps}: the run has {steps} steps; must be fewer")
    return spec.warmup_steps


def _refuse_one_by_one(spec: RunSpec, plan: Plan) -> None:
    """What an eviction needs of the rest of the run: one after another all misses must be fetched, and swaps are of a
    layer's own slots."""
    if plan.eviction.marks & ONE_BY_ONE and (plan.miss.kind != FETCH or plan.rerank or plan.on_miss):
        others = "no re-ranking, and nothing that an engine does beyond it"
        raise SpecError(f"set: {spec.eviction}.atomic=no: needs --miss fetch, {others}")
    if plan.pooled and "swap" in find("eviction", spec.eviction).params:
        raise SpecError(f"eviction: {spec.eviction}: keeps a set per layer; --cache-scope layer is required")


def _speculation(spec: RunSpec) -> Speculation | None:
    """None where a run does not speculate. Raises SpecError for what is said of windows without any."""
    if spec.speculate is not None:
        chance = 1.0 if spec.accept == ALL else spec.accept
        drawn = isinstance(chance, float) and 0 < chance < 1
        return Speculation(spec.speculate, chance, spec.seed if drawn else 0)
    for name, default in (("accept", ALL), ("draft_ns", 0)):
        if (value := getattr(spec, name)) != default:
            raise SpecError(f"{name}: {value}: is of speculative windows; needs --speculate N")
    return None


def _on_host(spec: RunSpec, trace: RoutingTrace, hardware: "Hardware", slots: Int) -> tuple[int, ...]:
    """Which layers, of all, have their dense part on the host; slots: of each scope."""
    if spec.dense_on_host is None:
        return ()
    if hardware.host is None:
        wrong = "gives durations outright; needs hardware with a host"
        raise SpecError(f"dense_on_host: {spec.dense_on_host}: {spec.hardware} {wrong}")
    if spec.dense_on_host == WITHOUT_SLOTS:
        chosen = np.broadcast_to(slots == 0, trace.n_moe_layers)
    else:
        chosen = layer_numbers("dense_on_host", spec.dense_on_host, trace.n_moe_layers, 1)
    return tuple(layer for layer, there in zip(trace.meta["moe_layers"], chosen, strict=True) if there)


def _refuse_context(spec: RunSpec, trace: RoutingTrace, steps: Steps) -> None:
    longest = longest_context(spec, trace, steps)
    if spec.context is not None and spec.context < longest:
        raise SpecError(f"context: {spec.context}: the run has requests of {longest} tokens; must be as many")


def _slots(
    spec: RunSpec, trace: RoutingTrace, size: int, judged: Judged, placement: Chosen, fits: Fits, memo: Memo
) -> Int:
    """int64 [scopes]: slots of each; experts of `size` bytes."""
    own = slots_by_layer(spec, trace, fits.engine)
    if own is not None:
        slots = own[1]
    else:
        assert spec.cache is not None  # who says what is resident otherwise is asked above
        slots = fits.slots() if spec.cache == FIT else shares("cache", spec.cache, spec, trace, size)
    spreads = [f"placement: {placement.name}"] if placement.policy.spreads else []
    spreads += ["cache_spread: marginal"] if spec.cache_spread == "marginal" else []
    for each in spreads:
        if spec.cache_scope == "global":
            raise SpecError(f"{each}: spreads slots over layers; --cache-scope layer is required")
        others = [name for name in spreads if name != each] if own is None else [own[0]]
        if others:
            wrong = f"spreads slots over layers, of which {others[0]} says the slots, too; give one of the two"
            raise SpecError(f"{each}: {wrong}")
    if not spreads:
        return slots
    total = int(slots.sum())
    popular = placement.policy.spreads
    return made(Popular(judged, placement, total) if popular else Spread(judged, total, spec.as_decode), memo)


def low_precision(spec: RunSpec) -> str:
    """Of the low-precision copies of a miss policy that has them. Raises CatalogError for one that is not known."""
    return catalog.precision(str(find("miss", spec.miss).values(spec.params("miss"))["precision"]))


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
    rows = int(np.diff(steps.offset).max())
    low = low_copies(model, hardware, engine, low_precision(spec), np.zeros(0, np.int64), rows)
    if low.bytes >= size and hardware.fixed is None:
        wrong = f"{low.bytes} bytes; must be fewer than the {size} of a full copy"
        raise SpecError(f"set: {miss.name}.precision={values['precision']}: {wrong}")
    return replace(low, slots=shares(field, cache, spec, trace, low.bytes))


def _prefetch(spec: RunSpec, predicted: Predicted, costed: Costed, memo: Memo) -> Prefetch | None:
    """What is predicted, with the budget and the order of transfers, and what comes in time where that is asked."""
    policy = predicted.prefetch.policy
    if policy is NONE:
        return None
    if policy.drafts and spec.speculate is None:
        raise SpecError(f"prefetch: {policy.name}: lists what speculative windows want; needs --speculate N")
    found = made(predicted, memo)
    budget = -1 if spec.prefetch_budget is None else spec.prefetch_budget
    order = ORDERS.index(spec.transfer_order)
    within = _within(made(costed, memo), made(predicted.steps, memo), found) if policy.drafts else None
    return Prefetch(found.lists, found.row, budget, order, found.rank_key, within)


def _within(costs: Costs, steps: Steps, found: Prediction | Prefetch) -> Int:
    return within_ns(costs, steps.prefill, len(found.row))
