"""The independent reference's answers to missing experts: one for all (fetch, drop, cpu, stream, remote, cpu-admit),
split, drop-by-weight, substitution.

Like the rest of the reference it shares nothing with the machines but the plan. Experts are numbered within
their layer here. An answer is (answer, stand-in or -1, gate code); the gate codes are GATES.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import exp, log, pow
from typing import NamedTuple

from sim.core.plan import SPLIT_PARAMS, SUBSTITUTE_PARAMS, Plan

# none, prefill rule, token-adaptive entropy, margin, distribution (with budget), rho, no stand-in found
GATES = ("none", "prefill", "tae", "margin", "distribution", "rho", "nobody")
SELECTORS = ("list", "random", "next-ranked", "drop", "nobody")
FALLBACKS = ("fetch", "drop", "cpu", "cheaper")
SAME_FOR_ALL = {name: name for name in ("fetch", "drop", "cpu", "stream", "remote")} | {"cpu-admit": "cpu"}


class Answer(NamedTuple):
    answer: str
    stand_in: int = -1
    gate: int = 0


class Token(NamedTuple):
    """One token at one layer: its trace row, the experts of its slots (-1 none) and their router weights."""

    row: int
    ids: list[int]
    weights: list[float]


def mix(z: int) -> int:
    """The splitmix64 finaliser (Steele, Lea and Flood 2014), modulo 2^64."""
    mask = 2**64 - 1
    z = (z + 0x9E3779B97F4A7C15) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return z ^ (z >> 31)


def hash64(seed: int, visit: int, ordinal: int) -> int:
    """The counter-based hash that every random choice is drawn from."""
    return mix(mix(mix(seed % 2**64) ^ visit) ^ ordinal)


def softmax(scores: Sequence[float]) -> list[float]:
    """Over all experts, in id order."""
    highest = max(scores)
    powers = [exp(score - highest) for score in scores]
    total = 0.0
    for value in powers:
        total += value
    return [value / total for value in powers]


def logits_of(plan: Plan, row: int, layer: int) -> list[float]:
    if plan.logits is None:
        raise ValueError("the policy needs logits, the plan has none")
    return [float(logit) for logit in plan.logits[row, layer]]


def adaptive_entropy(weights: Sequence[float], top_k: int, temperature: float) -> float:
    """BuddyMoE, Eq. 1: the entropy of the token's router weights, as a share of what it can be."""
    powers = [pow(weight, 1.0 / temperature) for weight in weights if weight > 0]
    total = 0.0
    for value in powers:
        total += value
    if top_k < 2 or total == 0:
        return 0.0
    entropy = 0.0
    for value in powers:
        if value > 0:  # 0 ln 0 = 0
            entropy += value / total * log(value / total)
    return -entropy / log(top_k)


def margin(weights: Sequence[float]) -> float:
    """The distance between the two largest weights, as a share of all."""
    total = 0.0
    for weight in weights:
        total += weight
    first, second = sorted([*weights, 0.0], reverse=True)[:2]  # no second one counts as 0
    return (first - second) / total if total else 0.0


@dataclass
class Visit:
    """What the miss policies of one visit see and remember.

    classes   "hits", "late" and "misses" -> the wanted experts of that class
    entries   wanted expert -> the (token, slot) pairs that want it
    resident  of this layer, at the routed instant
    routed    visits routed in the run, this one included
    busy      something is in flight at the routed instant
    by_link   which misses a split rule sends over the link
    no_slot   nobody new gets a slot: what would be fetched is streamed
    """

    plan: Plan
    layer: int
    prefill: bool
    classes: dict[str, list[int]]
    entries: dict[int, int]
    resident: set[int]
    routed: int
    busy: bool
    by_link: frozenset[int] = frozenset()
    no_slot: bool = False
    draws: int = 0
    cheaper: dict[int, str] = field(default_factory=dict)

    def answers(self, token: Token) -> dict[int, Answer]:
        """The answers to the token's missing slots, by slot."""
        away = {*self.classes["misses"], *(self.classes["late"] if self.plan.late_counts_as_missing else [])}
        missing = [slot for slot, expert in enumerate(token.ids) if expert in away]
        found = self.plan_token(token, missing)
        if self.prefill and not self.plan.lossy_prefill:
            lossless = ("fetch", "cpu", "stream", "remote")
            found = {s: a if a.answer in lossless else Answer("fetch", -1, 1) for s, a in found.items()}
        if self.no_slot:
            found = {s: a._replace(answer="stream") if a.answer == "fetch" else a for s, a in found.items()}
        return found

    def plan_token(self, token: Token, missing: list[int]) -> dict[int, Answer]:
        name, params = self.plan.miss.name, self.plan.miss.params
        if name in SAME_FOR_ALL:
            return {slot: Answer(SAME_FOR_ALL[name]) for slot in missing}
        if name == "split":
            kept = params[SPLIT_PARAMS.index("keep")]
            copied = Answer("fetch" if kept else "stream")
            return {slot: copied if token.ids[slot] in self.by_link else Answer("cpu") for slot in missing}
        if name in ("drop-by-weight", "mean-output"):
            light = {slot: token.weights[slot] < float(params[0]) for slot in missing}
            return {slot: Answer("drop" if light[slot] else "fetch") for slot in missing}
        if name == "speculate":
            return self.speculated(token, missing)
        if name == "hobbit":
            return {slot: Answer(self.precision_of(token, slot)) for slot in missing}
        if len(params) != len(SUBSTITUTE_PARAMS):
            raise ValueError(f"the reference knows no miss policy {name}")
        return Substitution(self, token).answers(missing) if missing else {}

    def speculated(self, token: Token, missing: list[int]) -> dict[int, Answer]:
        """Speculating Experts: the predicted ones that the token lacks, one after another, if all are there."""
        if self.plan.predicted is None:
            raise ValueError("speculate needs what was predicted, the plan has none")
        listed = [int(expert) for expert in self.plan.predicted[token.row, self.layer] if expert >= 0]
        if not listed or not set(listed) <= self.resident:
            return {slot: Answer("fetch", -1, GATES.index("nobody")) for slot in missing}
        spare = [expert for expert in dict.fromkeys(listed) if expert not in token.ids]
        found = {slot: Answer("substitute", other) for slot, other in zip(missing, spare, strict=False)}
        return {slot: found.get(slot, Answer("fetch", -1, GATES.index("nobody"))) for slot in missing}

    def precision_of(self, token: Token, slot: int) -> str:
        """HOBBIT: how much of the token's weight is served before this slot, the heavier and the earlier first."""
        full, low = (float(limit) for limit in self.plan.miss.params)
        slots = sorted((s for s, e in enumerate(token.ids) if e >= 0), key=lambda s: (-token.weights[s], s))
        total = before = 0.0
        for weight in (token.weights[s] for s, e in enumerate(token.ids) if e >= 0):
            total += weight
        for heavier in slots[: slots.index(slot)]:
            before += token.weights[heavier]
        share = before / total if total > 0 else 0.0
        return "fetch" if share <= full else "low" if share <= low else "drop"

    def draw(self, count: int) -> int:
        drawn = hash64(self.plan.seed, self.routed, 2**32 + self.draws) % count
        self.draws += 1
        return drawn

    def cheaper_of(self, expert: int, backlog: bool) -> str:
        """Fiddler's comparison; made once per expert and visit."""
        if expert not in self.cheaper:
            costs = self.plan.costs
            cpu_ns = self.cpu_ns(expert)
            gpu_ns = int(costs.transfer_ns[0]) + int(costs.expert_ns[self.entries[expert]])
            if backlog:
                before = self.cheaper.items()
                cpu_ns += sum(self.cpu_ns(other) for other, answer in before if answer == "cpu")
                gpu_ns += int(costs.transfer_ns[0]) * sum(answer == "fetch" for _, answer in before)
            self.cheaper[expert] = "cpu" if cpu_ns < gpu_ns else "fetch"
        return self.cheaper[expert]

    def cpu_ns(self, expert: int) -> int:
        return int(self.plan.costs.cpu_expert_ns[1 if self.busy else 0, self.entries[expert]])


class Substitution:
    """The substitution family for one token at one layer (BuddyMoE, Algorithm 1 and its gates)."""

    def __init__(self, visit: Visit, token: Token) -> None:
        self.visit, self.plan, self.token = visit, visit.plan, token
        params = visit.plan.miss.params
        self.params = {name: float(value) for name, value in zip(SUBSTITUTE_PARAMS, params, strict=True)}
        self.selector = SELECTORS[int(self.params["selector"])]
        self.fallback = FALLBACKS[int(self.params["fallback"])]
        self.used = {expert for expert in token.ids if expert >= 0}
        self.done = 0

    def answers(self, missing: list[int]) -> dict[int, Answer]:
        sign = 1 if self.params["lowest_first"] else -1
        gate = self.shut_gate()
        found: dict[int, Answer] = {}
        for slot in sorted(missing, key=lambda slot: (sign * self.token.weights[slot], slot)):
            found[slot] = self.answer(self.token.ids[slot], gate)
        return found

    def answer(self, expert: int, gate: int) -> Answer:
        if gate:
            return self.without_stand_in(expert, gate)
        if self.done >= self.params["rho"]:
            return self.without_stand_in(expert, GATES.index("rho"))
        if self.params["matched"] and self.buddy(expert) is None:
            return self.without_stand_in(expert, GATES.index("nobody"))
        if self.selector == "drop":
            self.done += 1
            return Answer("drop")
        stand_in = self.stand_in(expert)
        if stand_in is None:
            return self.without_stand_in(expert, GATES.index("nobody"))
        self.done += 1
        self.used.add(stand_in)
        return Answer("substitute", stand_in)

    def without_stand_in(self, expert: int, gate: int) -> Answer:
        if self.fallback == "drop":
            return Answer("drop" if gate == GATES.index("nobody") else "fetch", -1, gate)
        if self.fallback == "cheaper":
            return Answer(self.visit.cheaper_of(expert, bool(self.params["backlog"])), -1, gate)
        return Answer(self.fallback, -1, gate)

    # Gates

    def shut_gate(self) -> int:
        """The code of the first gate that is shut; 0 when all are open."""
        weights = [w for w, expert in zip(self.token.weights, self.token.ids, strict=True) if expert >= 0]
        tau = float(self.plan.tau[self.visit.layer]) if len(self.plan.tau) else -1.0
        top_k = len(self.token.ids)
        if tau >= 0 and adaptive_entropy(weights, top_k, self.params["temperature"]) <= tau:
            return GATES.index("tae")
        if self.params["gamma"] <= 1 and margin(weights) >= self.params["gamma"]:
            return GATES.index("margin")
        away = len(self.visit.classes["late"]) + len(self.visit.classes["misses"])
        wanted = away + len(self.visit.classes["hits"])
        over_budget = self.params["budget"] > 0 and away > self.params["budget"]
        return GATES.index("distribution") if away >= self.params["beta"] * wanted or over_budget else 0

    # Selectors

    def stand_in(self, expert: int) -> int | None:
        if self.selector == "list":
            return self.buddy(expert)
        candidates = sorted(self.visit.resident - self.used)
        if self.selector == "nobody" or not candidates:
            return None
        if self.selector == "random":
            return candidates[self.visit.draw(len(candidates))]
        logits = logits_of(self.plan, self.token.row, self.visit.layer)
        return min(candidates, key=lambda candidate: (-logits[candidate], candidate))

    def buddy(self, expert: int) -> int | None:
        for place, peer in enumerate(self.peers(expert)):
            if place < self.params["search"] and peer in self.visit.resident and peer not in self.used:
                return peer
        return None

    def peers(self, expert: int) -> list[int]:
        """B(i): in the list's order, or by psi (BuddyMoE, Eq. 3)."""
        if self.plan.peers.shape[2] == 0:
            return []
        listed = [int(peer) for peer in self.plan.peers[self.visit.layer, expert]]
        if self.params["eta"] == 0 and self.params["kappa"] == 0:
            return [peer for peer in listed if peer >= 0]
        psi = {peer: self.psi(expert, place, peer) for place, peer in enumerate(listed) if peer >= 0}
        return sorted(psi, key=lambda peer: -psi[peer])

    def psi(self, expert: int, place: int, peer: int) -> float:
        eta, kappa, n_experts = self.params["eta"], self.params["kappa"], self.plan.n_experts
        value = float(self.plan.peer_q[self.visit.layer, expert, place])
        if eta != 0:
            value *= 1 + eta * softmax(logits_of(self.plan, self.token.row, self.visit.layer))[peer]
        if kappa != 0:
            parts = int(self.params["partitions"])
            value *= 1 - kappa * abs(peer * parts // n_experts - expert * parts // n_experts)
        return value
