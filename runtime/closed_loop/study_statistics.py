"""What the sums of a study's arms allow to be said: decisions on a claimed loss, controls, losses at equal bytes.

An arm is a policy with its parameters at one capacity; the rows of its seeds are one arm, of their mean. Its interval
is over files (`clusters`), at these seeds: what a seed draws anew at every token differs between files too, and is in
it; what a seed would change in all files alike is not, and is told apart as the spread between seeds.

Where several statements are made at once, the p values of them all are adjusted (`clusters.holm`), over all models.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from runtime.closed_loop.clusters import LEVEL, Estimate, Files, Float, holm
from runtime.closed_loop.quality import FIGURES

CLAIM_PERCENT = 0.3  # a web summary of BuddyMoE: "< 0.3 % accuracy loss"
LIMITS = (0.1, 0.3, 1.0, 3.0)  # percent of bits per byte that one may be ready to lose
RISE = "bits_per_byte_percent"
SUBJECTS = ("buddy", "similarity", "ours")  # groups that are put beside every other policy at equal bytes
AS_FAST = 0.01  # of the time per token: what differs by less is as fast
SAME = 1e-9  # relative: bytes that differ by less are the same bytes


@dataclass(frozen=True)
class Arm:
    """One arm at one capacity, the mean of its seeds. sums, tasks[name]: by file, float64 [F] each; percents: the rise
    of bits per byte of each seed, % (one where nothing is drawn); others: means of what a row says."""

    cache: float
    name: str
    group: str
    of: str | None
    policy: str
    sums: dict[str, Float]
    tasks: dict[str, dict[str, Float]]
    percents: tuple[float, ...]
    shares: dict[str, float]
    speed: dict[str, float]
    open_loop: dict[str, float]

    @property
    def n_bytes(self) -> float:
        """Moved to the device per token."""
        return self.speed["h2d_bytes_per_token"]

    @property
    def ns(self) -> float:
        """Simulated time per token."""
        return self.speed["time_ns_per_token"]

    @property
    def answered_otherwise(self) -> float:
        """Share of the slots whose expert another one answered, or none."""
        return self.shares["substituted_slots"] + self.shares["dropped_slots"]

    def figure(self, name: str) -> float:
        """One of FIGURES over all files."""
        return float(FIGURES[name]({key: each.sum() for key, each in self.sums.items()}))

    @property
    def idle(self) -> bool:
        """Whether it never answered otherwise than the router asked."""
        return not self.answered_otherwise and not self.shares["reranked_slots"]

    @staticmethod
    def of_rows(rows: Sequence[Mapping[str, Any]]) -> Arm:
        """The rows of one arm's seeds."""
        first, mean = rows[0], {name: _mean([row[name] for row in rows]) for name in MEANT}
        seeds = [{name: np.sum(each) for name, each in row["sums"].items()} for row in rows]
        return Arm(
            float(first["cache"]), first["arm"], first["group"], first["of"],
            first["rerank"] if first["rerank"] != "none" else first["miss"],
            percents=tuple(float(FIGURES[RISE](sums)) for sums in seeds), **mean,
        )  # fmt: skip


MEANT = ("sums", "tasks", "shares", "speed", "open_loop")


def _mean(parts: Sequence[Any]) -> Any:
    """The mean of numbers, of lists by place, of objects by key; what has no numbers is left out of objects."""
    if isinstance(parts[0], Mapping):
        kept = [name for name, value in parts[0].items() if isinstance(value, Mapping | list | int | float)]
        return {name: _mean([part[name] for part in parts]) for name in kept}
    found = np.mean(np.asarray(parts, np.float64), axis=0)
    return found if found.ndim else float(found)


class Study:
    """One model's result: its arms, all judged by one set of draws of its files."""

    def __init__(self, result: Mapping[str, Any]) -> None:
        self.result = result
        self.model = str(result["model"])
        self.files = Files(len(result["text"]["files"]), int(result["settings"]["seed"]))
        rows: dict[tuple[float, str], list[Any]] = {}
        for row in result["rows"]:
            rows.setdefault((float(row["cache"]), row["arm"]), []).append(row)
        self.arms = {key: Arm.of_rows(same) for key, same in rows.items()}

    @cached_property
    def rises(self) -> dict[tuple[float, str], Estimate]:
        """The rise of bits per byte of each arm, % of the unmodified model's."""
        return {key: self.files.estimate(FIGURES[RISE], arm.sums) for key, arm in self.arms.items()}

    def rise(self, arm: Arm) -> Estimate:
        return self.rises[arm.cache, arm.name]

    @property
    def caches(self) -> list[float]:
        return list(dict.fromkeys(cache for cache, _ in self.arms))

    def at(self, cache: float, *groups: str) -> list[Arm]:
        """The arms at a capacity, of these groups (none: of all)."""
        return [arm for arm in self.arms.values() if arm.cache == cache and (not groups or arm.group in groups)]

    def gain(self, arm: Arm) -> float:
        """How many more tokens per second than fetching at the same capacity, %."""
        return 100 * (self.arms[arm.cache, "fetch"].ns / arm.ns - 1)

    def difference(self, mixed: Sequence[tuple[float, Arm]], arm: Arm) -> Estimate:
        """How much more a mixture of arms (weights that add up to 1) costs than `arm`, points of `RISE`."""
        other = sum(weight * part.sums["nats"] for weight, part in mixed)
        sums = {"nats": other - arm.sums["nats"], "base_nats": arm.sums["base_nats"]}
        return self.files.estimate(lambda s: 100 * s["nats"] / s["base_nats"], sums)


# --- the claim -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Decision:
    """Whether a buddy setting's loss lies above or below the claimed one. p: adjusted; verdict: above, below, open, or
    idle, where nothing was substituted (no member of the family); windows: where open, about how many of the same kind
    of text would decide it, None where none would (the loss is what is claimed)."""

    study: Study
    arm: Arm
    rise: Estimate
    p: float | None
    verdict: str
    windows: int | None = None


def decisions(studies: Sequence[Study], claim: float = CLAIM_PERCENT) -> list[Decision]:
    """Of every buddy setting of all models, one family."""
    settings = [(study, arm) for study in studies for arm in study.arms.values() if arm.group == "buddy"]
    busy = [(study, arm) for study, arm in settings if not arm.idle]
    adjusted = holm([study.rise(arm).p(claim) for study, arm in busy])
    left = sum(p > 1 - LEVEL for p in adjusted)  # Holm's next step compares with the error rate / this many
    found = dict(zip([(study.model, arm.cache, arm.name) for study, arm in busy], adjusted, strict=True))
    return [_decided(study, arm, found.get((study.model, arm.cache, arm.name)), claim, left) for study, arm in settings]


def _decided(study: Study, arm: Arm, p: float | None, claim: float, left: int) -> Decision:
    rise = study.rise(arm)
    if p is None:
        return Decision(study, arm, rise, None, "idle")
    if p <= 1 - LEVEL:
        return Decision(study, arm, rise, p, "above" if rise.value > claim else "below")
    return Decision(study, arm, rise, p, "open", _windows(study, rise, claim, 1 - (1 - LEVEL) / left))


def _windows(study: Study, rise: Estimate, claim: float, level: float) -> int | None:
    """The half of the interval that points to the claim shrinks with the root of the text, files and all."""
    (low, high), off = rise.wider(level), abs(rise.value - claim)
    half = rise.value - low if rise.value > claim else high - rise.value
    if off == 0 or not math.isfinite(half / off):
        return None
    have = int(study.result["text"]["windows"])
    return max(have + 1, math.ceil(have * (half / off) ** 2))


# --- controls, and other policies at equal bytes ---------------------------------------------------------------------


@dataclass(frozen=True)
class Comparison:
    """An arm beside another way: `difference` is what the other way costs more, points of the rise
    of bits per byte. mixed: the other way, arms with weights; p: adjusted over all comparisons of the kind; verdict:
    what the arm is beside the other, better, worse or open."""

    study: Study
    arm: Arm
    other: str
    mixed: list[tuple[float, Arm]]
    difference: Estimate
    p: float
    verdict: str

    def of_other(self, amount: Callable[[Arm], float]) -> float:
        """An amount of the other way, by the weights."""
        return sum(weight * amount(part) for weight, part in self.mixed)


Asked = tuple[Study, Arm, str, list[tuple[float, Arm]]]


def _compared(asked: Sequence[Asked]) -> list[Comparison]:
    differences = [study.difference(mixed, arm) for study, arm, _, mixed in asked]
    out = []
    for each, found, p in zip(asked, differences, holm([d.p() for d in differences]), strict=True):
        verdict = "open" if p > 1 - LEVEL else "better" if found.value > 0 else "worse"
        out.append(Comparison(*each, found, p, verdict))
    return out


def controls(studies: Sequence[Study]) -> list[Comparison]:
    """Each arm beside the arms that differ from it in the choice of the stand-in alone (`of`)."""
    return _compared([
        (study, study.arms[other.cache, other.of], other.name, [(1.0, other)])
        for study in studies
        for other in study.arms.values()
        if other.of is not None
    ])  # fmt: skip


def at_equal_bytes(studies: Sequence[Study]) -> list[Comparison]:
    """Each arm of SUBJECTS beside every other policy at the bytes that the arm moves, where that policy gets so low.

    Which settings of a policy are mixed is chosen on the text that is judged: that flatters a policy of many settings.
    """
    asked = []
    for study in studies:
        for arm in (arm for arm in study.arms.values() if arm.group in SUBJECTS and not arm.idle):
            for policy, settings in families(study, arm.cache).items():
                mixed = None if policy == arm.policy else mixture(study, settings, arm.n_bytes)
                if mixed is not None:
                    asked.append((study, arm, policy, mixed))
    return _compared(asked)


def families(study: Study, cache: float) -> dict[str, list[Arm]]:
    """By policy its settings at a capacity, fetch, the end without loss, among them."""
    fetch = study.arms[cache, "fetch"]
    out: dict[str, list[Arm]] = {}
    for arm in study.at(cache):
        if arm.group != "fetch":
            out.setdefault(arm.policy, [fetch]).append(arm)
    return out


def mixture(study: Study, settings: Sequence[Arm], n_bytes: float) -> list[tuple[float, Arm]] | None:
    """Of the settings of one policy the one, or the mixture of two (each on a part of the text), that loses least while
    it moves at most `n_bytes` per token: the lower convex envelope of loss against bytes. None where all move more.
    """
    most = n_bytes * (1 + SAME)
    within = [arm for arm in settings if arm.n_bytes <= most]
    beyond = [arm for arm in settings if arm.n_bytes > most]
    mixed = [[(1.0, arm)] for arm in within]
    for a in within:
        for b in beyond:
            share = max(0.0, n_bytes - a.n_bytes) / (b.n_bytes - a.n_bytes)
            mixed.append([(1 - share, a), (share, b)])
    return min(mixed, key=lambda parts: sum(weight * study.rise(arm).value for weight, arm in parts), default=None)


# --- speed at a loss -------------------------------------------------------------------------------------------------


def fastest(study: Study, cache: float, limit: float, *groups: str) -> Arm | None:
    """The fastest arm at a capacity whose rise lies within `limit` %, the interval's upper end and all; of those that
    are as fast, to AS_FAST, that which loses least. The upper ends hold for all arms of the capacity together
    (Bonferroni), because the fastest is picked among them. None where there is none; fetch, which loses nothing, is one
    if groups let it."""
    arms, level = study.at(cache, *groups), 1 - (1 - LEVEL) / max(1, len(study.at(cache)) - 1)
    within = [arm for arm in arms if arm.group == "fetch" or study.rise(arm).wider(level)[1] <= limit]
    least = min((arm.ns for arm in within), default=0.0)
    as_fast = [arm for arm in within if arm.ns <= least * (1 + AS_FAST)]
    return min(as_fast, key=lambda arm: (study.rise(arm).value, arm.ns), default=None)
