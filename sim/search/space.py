"""What a recommendation searches: the policies that say so (`Policy.search`), with the values of their parameters.

A candidate is a choice for every knob that matters to it: `{"eviction": "decayed", "decayed.decay": 0.8, "prefetch":
"none", ...}`. A knob with a dot is a parameter of a policy. Which knobs matter depends on the policies chosen.
Left out on purpose: oracles and `random` (nobody would build them), re-ranking and low-precision copies (the weight
that they cost is not counted as lost), policies that need a file of their own (similarity, sere).
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import numpy as np

from sim.fit.prediction import DISTANCES
from sim.policies.policy import NONE
from sim.policies.registry import TABLES
from traces.format.trace import RoutingTrace

Candidate = dict[str, Any]
Values = tuple[Any, ...]

AHEAD = ("gate-lookahead", "learned")  # both read one array, which is a model's own gates' or learned
QUEUE: dict[str, Values] = {
    "prefetch_budget": (None, 1, 2, 4),
    "transfer_order": ("fifo", "nearest-layer", "probability"),
}  # of runs with a prefetcher
POLICIES = ("eviction", "prefetch", "miss")
BASELINE: Candidate = {
    "cache_scope": "layer", "eviction": "lru", "prefetch": NONE.name, "miss": "fetch", "placement": "first",
}  # fmt: skip


@dataclass(frozen=True)
class Space:
    """knobs: the choices that every candidate makes, the plainest value of each first; queue: those of candidates with
    a prefetcher; spread: those of candidates with slots per layer; parameters: of the policies of each kind."""

    knobs: Mapping[str, Values]
    queue: Mapping[str, Values]
    spread: Mapping[str, Values]
    parameters: Mapping[str, Mapping[str, Mapping[str, Values]]]

    @staticmethod
    def of(
        trace: RoutingTrace,
        calibrated: bool,
        host: bool,
        lossy: bool,
        fixed: Mapping[str, Any],
        decodes: bool = True,
        lacking: Collection[str] = (),
    ) -> "Space":
        """Everything that the trace has the arrays for. calibrated: fitted policies have something to be fitted on;
        host: answers by the CPU have a cost; lossy: wanted experts may be replaced or left out; fixed: field -> its one
        value; decodes: the calibration has decode steps, which the marginal spread counts hits of; lacking: arrays that
        the calibration does not have, which a fitted prefetcher may need."""
        named = {kind: _searched(kind, trace, calibrated, host, lossy) for kind in POLICIES}
        named["prefetch"] = {name: values for name, values in named["prefetch"].items() if not _unfit(name, lacking)}
        knobs: dict[str, Values] = {
            "cache_scope": ("layer", "global"),
            "eviction": tuple(named["eviction"]),
            "prefetch": (NONE.name, *named["prefetch"]),
            "miss": tuple(named["miss"]),
            "placement": ("first", *(("popular",) if calibrated else ())),
        }
        spread: dict[str, Values] = {"cache_spread": ("even", *(("marginal",) if calibrated and decodes else ()))}
        knobs, queue, spread = (_as_fixed(part, fixed) for part in (knobs, QUEUE, spread))
        return Space(knobs, queue, spread, named)

    def mattering(self, candidate: Candidate) -> dict[str, Values]:
        """Every knob of a candidate with such policies, and what it may be set to."""
        out = dict(self.knobs)
        if candidate["prefetch"] != NONE.name:
            out |= self.queue
        if candidate["cache_scope"] == "layer":
            out |= self.spread
        names = [candidate[kind] for kind in POLICIES]
        for kind, name in zip(POLICIES, names, strict=True):
            if names.count(name) == 1:  # `set` could not say which of two policies of one name is meant
                out |= {f"{name}.{p}": values for p, values in self.parameters[kind].get(name, {}).items()}
        return out

    def whole(self, candidate: Candidate) -> Candidate:
        """With exactly the knobs that matter, those that were not set at their plainest value."""
        return {knob: candidate.get(knob, values[0]) for knob, values in self.mattering(candidate).items()}

    def fields(self, candidate: Candidate) -> dict[str, Any]:
        """The candidate as fields of a RunSpec."""
        return fields_of(candidate)

    def plain(self) -> list[Candidate]:
        """The baseline, and what differs from it in one choice: the floor of any comparison. The second value of every
        knob comes before the third of any, so that the first few differ in as much as they can."""
        base = {knob: values[0] for knob, values in self.knobs.items()}
        turned = zip_longest(*([{knob: value} for value in values[1:]] for knob, values in self.knobs.items()))
        changed = [{**base, **knob} for each in turned for knob in each if knob]
        return _distinct([self.whole(candidate) for candidate in (base, *changed)])

    def sample(self, n: int, seed: int) -> list[Candidate]:
        """n different candidates: the plain ones first, as many as there is room for, the others drawn at random (fewer
        where there are no more)."""
        rng, found = np.random.default_rng(seed), {name_of(each): each for each in self.plain()[:n]}
        for _ in range(20 * n):
            if len(found) >= n:
                break
            draft = {knob: values[rng.integers(len(values))] for knob, values in self.knobs.items()}
            drawn = {knob: values[rng.integers(len(values))] for knob, values in self.mattering(draft).items()}
            candidate = self.whole({**drawn, **draft})
            found.setdefault(name_of(candidate), candidate)
        return list(found.values())

    def neighbours(self, candidate: Candidate) -> list[Candidate]:
        """What differs in one knob (and in the parameters that come and go with it)."""
        changed = [
            self.whole({**candidate, knob: value})
            for knob, values in self.mattering(candidate).items()
            for value in values
            if value != candidate[knob]
        ]
        return _distinct(changed)


def _searched(
    kind: str, trace: RoutingTrace, calibrated: bool, host: bool, lossy: bool
) -> dict[str, dict[str, Values]]:
    """What the policies of a kind say is worth trying, of those that the trace and the machine have what they need."""
    found = {}
    for policy in TABLES[kind].values():
        lacks = (policy.fitted and not calibrated) or (policy.lossy and not lossy)
        lacks |= (policy.may_answer_cpu({}) and not host) or not all(trace.has(array) for array in policy.needs)
        if policy.search is not None and not lacks:
            found[policy.name] = dict(policy.search)
    if kind == "prefetch":
        found = {name: values for name, values in found.items() if name not in AHEAD} | _ahead(trace)
    return found


def _unfit(prefetch: str, lacking: Collection[str]) -> bool:
    """Whether a prefetcher is fitted on arrays that the calibration lacks."""
    policy = TABLES["prefetch"][prefetch]
    return policy.fitted and not set(lacking).isdisjoint(policy.needs)


def _ahead(trace: RoutingTrace) -> dict[str, dict[str, Values]]:
    """The prefetcher that reads the trace's lookahead, at the distances that it has."""
    learned = str(trace.meta.get("lookahead_source", "")).startswith("learned")
    has = set(trace.lookahead_distances)
    there = tuple(d for d in DISTANCES if set(range(1, d + 1)) <= has)
    return {AHEAD[learned]: {"distance": there}} if there else {}


def _as_fixed(knobs: Mapping[str, Values], fixed: Mapping[str, Any]) -> dict[str, Values]:
    return {knob: (fixed[knob],) if knob in fixed else values for knob, values in knobs.items()}


def fields_of(candidate: Candidate) -> dict[str, Any]:
    """The candidate as fields of a RunSpec."""
    fields = {knob: value for knob, value in candidate.items() if "." not in knob and value is not None}
    given = {knob: value for knob, value in candidate.items() if "." in knob}
    return {**fields, **({"set": given} if given else {})}


def _distinct(candidates: list[Candidate]) -> list[Candidate]:
    return list({name_of(each): each for each in candidates}.values())


def name_of(candidate: Candidate) -> str:
    """Equal for equal candidates."""
    return repr(sorted(candidate.items(), key=lambda item: item[0]))
