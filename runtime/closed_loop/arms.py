"""The arms of the closed-loop study: policies with their settings, each buddy beside the controls that it is judged by.

A control has the gates, the budget and the reach of its buddy (a stand-in only where the buddy list has a resident) and
takes another stand-in: any resident, the one the token's own router ranks best, or nobody. What a buddy list is worth
is what separates its arm from these.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from sim.policies.policy import MANY
from sim.spec import RunSpec

MATRIX, LISTS = "MATRIX", "LISTS"  # stand for files made of the model: similarities, and lists of them
A: dict[str, Any] = {}  # reading A of the paper's tau, the gate on a token's entropy, is what `buddy` does by itself
B: dict[str, Any] = {"alpha": 0.95, "percentile": 15.0}  # reading B, the coverage of the lists
FIRST_FIT: dict[str, Any] = {"tau": -1.0, "beta": 2.0, "rho": MANY}  # Algorithm 1 alone
SEEDS = 5


@dataclass(frozen=True)
class Arm:
    """One setting. family: arms that differ in how far they go; of: the arm whose control it is; seed: of its draws,
    None where nothing is drawn."""

    name: str
    group: str
    family: str
    miss: str = "fetch"
    rerank: str = "none"
    params: dict[str, Any] = field(default_factory=dict)
    of: str | None = None
    seed: int | None = None

    def spec(self, files: dict[str, str] | None = None, **common: Any) -> RunSpec:
        """The run of this arm; files: what MATRIX and LISTS stand for."""
        policy = self.rerank if self.rerank != "none" else self.miss
        given = {f"{policy}.{key}": (files or {}).get(value, value) for key, value in self.params.items()}
        more = {} if self.seed is None else {"seed": self.seed}
        return RunSpec.of({**common, **more, "miss": self.miss, "rerank": self.rerank, "set": given})


def arms(top_k: int, n_experts: int, seeds: int = SEEDS) -> list[Arm]:
    """All arms for a model of so many experts, top-k; fetch first."""
    return [Arm("fetch", "fetch", "fetch"), *_buddies(top_k, seeds), *_ungated(seeds), *_others(top_k, n_experts)]


def _buddies(top_k: int, seeds: int) -> Iterator[Arm]:
    """Every preset of the buddy and the lists by similarity, each before its controls."""
    yield Arm("buddy, reading A", "buddy", "buddy A", "buddy")
    yield from _controls("buddy, reading A", "reading A", A, seeds)
    for tau in (0.9, 0.8):
        yield Arm(f"buddy, reading A, tau {tau}", "buddy", "buddy A", "buddy", params={"tau": tau})
    for rho in range(1, min(3, top_k - 1)):  # a token all of whose experts are missing gets none: beta is 1
        yield Arm(f"buddy, reading B, rho {rho}", "buddy", "buddy B", "buddy-b", params={"rho": rho})
    yield Arm("buddy, reading B", "buddy", "buddy B", "buddy-b")
    yield from _controls("buddy, reading B", "reading B", B, seeds)
    yield Arm("buddy, first fit", "buddy", "buddy, first fit", "buddy-first-fit")
    yield from _controls("buddy, first fit", "first fit", FIRST_FIT, seeds)
    gates = {"percentile": B["percentile"]}
    yield Arm("similarity", "similarity", "similarity", "similarity", params={"matrix": MATRIX, **gates})
    yield from _controls("similarity", "similarity", {"lists": LISTS, **gates}, seeds)


def _controls(of: str, where: str, params: dict[str, Any], seeds: int) -> Iterator[Arm]:
    """The controls of an arm, and what we would put in its place, the missing expert's mean output; the random one
    once for every seed."""
    drawn = [("random", seed) for seed in range(seeds)]
    for name, seed in [("next-ranked", None), ("drop", None), ("mean", None), *drawn]:
        family = f"matched-{name}"
        yield Arm(f"{family}, {where}", "matched", family, family, params=params, of=of, seed=seed)


def _ungated(seeds: int) -> Iterator[Arm]:
    """No gate, no list: every miss is answered without a transfer while somebody is there."""
    yield Arm("next-ranked, no gate", "ungated", "next-ranked", "next-ranked")
    yield Arm("drop", "ungated", "drop", "drop")
    for seed in range(seeds):
        yield Arm("random, no gate", "ungated", "random", "random", seed=seed)


def _others(top_k: int, n_experts: int) -> Iterator[Arm]:
    """What else gives up some of the router's choice for fewer transfers, from gentle to rough."""
    for share in (0.2, 0.4, 0.6, 0.8, 1.2):
        given = {"threshold": share / top_k}
        name = f"below {given['threshold']:g}"
        yield Arm(f"drop {name}", "by weight", "drop-by-weight", "drop-by-weight", params=given)
        yield Arm(f"mean output {name}", "ours", "mean-output", "mean-output", params=given)
    for strength in (0.05, 0.1, 0.2, 0.3, 0.5):
        name = f"cache-prior {strength}"
        yield Arm(name, "re-ranking", "cache-prior", rerank="cache-prior", params={"strength": strength})
    for always, among in ((max(1, top_k - 1), top_k + top_k // 2), (max(1, top_k // 2), 2 * top_k), (1, 3 * top_k)):
        settings = {"always": always, "among": min(among, n_experts)}
        name = f"max-rank {always} of {settings['among']}"
        yield Arm(name, "re-ranking", "max-rank", rerank="max-rank", params=settings)
    for tolerance in (0.2, 0.35, 0.6):
        name = f"tolerance {tolerance}"
        yield Arm(name, "re-ranking", "tolerance", rerank="tolerance", params={"tolerance": tolerance})
