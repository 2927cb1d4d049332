"""Law 10, against others: libCacheSim counts the same misses, layer by layer; and misses the same ones.

LRU is fed what the GPU executed, in that order (an eviction looks at recency when a transfer is committed,
so the order in which a visit's experts ran is part of the answer). FIFO and Belady are compared with one
wanted expert per visit, where nothing is held and the order is the trace's.
libCacheSim is GPL-3: an extra of the tests, imported nowhere else.

Evictions are compared apart, too: those of the brute-force reference, fed one expert a visit, miss at the same requests
as libCacheSim's. Where it means something else by a name, a subclass here says what, and then they are the same.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from sim.core.plan import Plan
from sim.machines import compiled
from tests.accesses import eviction, plan_of, serve
from tests.captures import capture, capture_names, synthetic, whole_trace
from tests.plans import plan, random_plan
from tests.reference import Cache
from tests.reference_eviction import EVICTIONS, Eviction, LruK, Past, S3Fifo, WTinyLfu
from tests.variants import lossless, one_expert_a_visit, per_layer, with_eviction
from traces.format.trace import RoutingTrace

lcs = pytest.importorskip("libcachesim", reason="the extra `test` is not installed")

THEIRS = {"lru": "LRU", "fifo": "FIFO", "belady": "Belady"}
NEVER = 2**63 - 1
SHARES = (0.1, 0.5, 0.8)
SYNTHETIC = ["mixtral-8x7b", "olmoe-1b-7b", "uniform", "cyclic"]
plans = settings(max_examples=150)


def next_uses(ids: list[int]) -> list[int]:
    """For each request the place of the next one for the same object."""
    seen: dict[int, int] = {}
    out = [NEVER] * len(ids)
    for place in range(len(ids) - 1, -1, -1):
        out[place] = seen.get(ids[place], NEVER)
        seen[ids[place]] = place
    return out


def their_misses(policy: str, slots: int, residents: list[int], order: list[int]) -> int:
    """libCacheSim's misses on `order`, with objects of size 1 and the first residents requested before."""
    cache = getattr(lcs, THEIRS[policy])(slots, hashpower=10)
    ids, misses = residents + order, -len(residents)
    for place, (expert, following) in enumerate(zip(ids, next_uses(ids), strict=True)):
        request = lcs.Request(
            obj_id=expert, obj_size=1, op=lcs.ReqOp.OP_GET, clock_time=place, next_access_vtime=following
        )
        misses += not cache.get(request)
    return misses


def check(plan: Plan) -> None:
    """Every layer's misses, counted by them on what we executed."""
    record = compiled.run(plan, full=True)
    layers, done = plan.experts.shape[1], record.groups["executions"]
    for layer in range(layers):
        here = plan.residents[plan.residents // plan.n_experts == layer] % plan.n_experts
        order = done["expert"][done["visit"] % layers == layer].tolist()
        theirs = their_misses(plan.eviction.name, int(plan.slots[layer]), here.tolist(), order)
        assert theirs == record.layer["misses"][layer], layer


def first_choice(trace: RoutingTrace, slots: int) -> Plan:
    """Top-1, one token a step: prompt rows too."""
    experts = np.asarray(trace.experts)[:, :, :1]
    return plan(experts, trace.n_experts, [slots] * experts.shape[1])


@plans
@given(some.integers(0, 2**32 - 1).map(random_plan))
def test_lru_on_random_plans_of_any_top_k_and_batch(plan: Plan) -> None:
    check(per_layer(lossless(plan)))


@pytest.mark.parametrize("policy", THEIRS)
@plans
@given(some.integers(0, 2**32 - 1).map(one_expert_a_visit))
def test_one_expert_a_visit(policy: str, plan: Plan) -> None:
    check(with_eviction(per_layer(plan), policy))


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("name", capture_names())
def test_lru_on_captures(name: str, share: float) -> None:
    trace = capture(name)
    check(whole_trace(trace, max(1, int(share * trace.n_experts))))


@pytest.mark.parametrize("policy", THEIRS)
@pytest.mark.parametrize("name", capture_names())
def test_the_first_choice_of_captures(name: str, policy: str) -> None:
    trace = capture(name)
    check(with_eviction(first_choice(trace, trace.n_experts // 3), policy))


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("preset", SYNTHETIC)
def test_lru_on_synthetic_traces(preset: str, share: float, batch: int) -> None:
    trace = synthetic(preset)
    check(whole_trace(trace, max(1, int(share * trace.n_experts)), batch))


@pytest.mark.parametrize("policy", THEIRS)
@pytest.mark.parametrize("preset", SYNTHETIC)
def test_the_first_choice_of_synthetic_traces(preset: str, policy: str) -> None:
    check(with_eviction(first_choice(synthetic(preset), 2), policy))


# --- the reference's evictions, one expert a visit ---


def string_of(seed: int) -> tuple[int, list[int]]:
    """Slots, from 10, and requests: favourites, then others, and runs through everything in between."""
    rng = np.random.default_rng(seed)
    slots, n, length = int(rng.integers(10, 25)), int(rng.integers(12, 60)), int(rng.integers(100, 500))
    favourites = (rng.random(length) ** rng.choice([1, 2, 4]) * n).astype(int)
    drawn = (favourites + (np.arange(length) > length // 2) * int(rng.integers(n))) % n
    scans = np.repeat(rng.random(length // 20 + 1) < rng.choice([0, 0.3]), 20)[:length]
    return slots, np.where(scans, np.arange(length) % n, drawn).tolist()


def our_missed(
    name: str, params: tuple[float, ...], slots: int, string: list[int], made: type[Eviction] | None = None
) -> list[int]:
    """The requests at which the reference misses; `made`: by another class than its own."""
    plan = plan_of([(expert,) for expert in string], slots, eviction(name, params), 1 + max(string))
    cache = Cache(plan)
    cache.evictions = [(made or EVICTIONS[name])(cache, 0)]
    return serve(plan, cache).missed


def their_missed(cache: Any, string: list[int]) -> list[int]:
    """The same of one of libCacheSim's."""
    missed = []
    for place, (expert, following) in enumerate(zip(string, next_uses(string), strict=True)):
        request = lcs.Request(
            obj_id=expert, obj_size=1, op=lcs.ReqOp.OP_GET, clock_time=place, next_access_vtime=following
        )
        missed += [] if cache.get(request) else [place]
    return missed


class LruKByLanding(LruK):
    """Theirs takes those used fewer than k times in order of landings, ours in that of touches: one for k = 2."""

    def order(self, expert: int) -> tuple[Any, int]:
        score = self.score(expert)
        return score, self.past.landed_at[expert].number if score < 0 else 0


class S3FifoOfTheirs(S3Fifo):
    """Two things are not ours. Until the first eviction a newcomer enters main once small has its share. And an
    eviction that began in small stays there until somebody goes, though moves to main may leave small below its share,
    or until it is empty."""

    filling = True
    stays = False

    def committed(self, newcomer: int) -> None:
        if self.filling and self.small_is_full():
            self.coming.setdefault(newcomer, self.main)
        super().committed(newcomer)

    def victim(self, newcomer: int, candidates: list[int], demanded: bool) -> int:
        self.filling, self.stays = False, super().small_is_full()
        return super().victim(newcomer, candidates, demanded)

    def small_is_full(self) -> bool:
        return super().small_is_full() if self.filling else self.stays


def xxh64(number: int, seed: int) -> int:
    """The window fills the cache, and empties into what is behind it not before the first eviction. Probation has
    a size, what protected leaves, beyond which whoever comes from the window is protected at once."""
    primes = (0x9E3779B185EBCA87, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0x85EBCA77C2B2AE63, 0x27D4EB2F165667C5)
    first, second, third, fourth, fifth = primes
    end = 2**64
    turned = lambda value, by: (value << by | value >> 64 - by) % end  # noqa: E731 - a def would say no more
    lane = turned(number * second % end, 31) * first % end
    value = (turned((seed + fifth + 8) ^ lane, 27) * first + fourth) % end
    for shift, prime in ((33, second), (29, third)):
        value = (value ^ value >> shift) * prime % end
    return (value ^ value >> 32) % 2**32


class Sketch:
    """Their count of uses: counters shared by hash, of which an expert's least counts."""

    def __init__(self, entries: int) -> None:
        per_entry = -math.log(0.001) / 0.480453013918201
        self.hashes = math.ceil(0.693147180559945 * per_entry)
        self.counters = [0] * math.ceil(per_entry * entries)

    def places(self, expert: int) -> list[int]:
        a, b = xxh64(expert, 0x12345678), xxh64(expert, 0x12344321)
        return [(a + i * b) % 2**32 % len(self.counters) for i in range(self.hashes)]

    def get(self, expert: int, _: int) -> int:
        return min(self.counters[place] for place in self.places(expert))

    def add(self, expert: int) -> None:
        for place in self.places(expert):
            self.counters[place] += 1


class WTinyLfuOfTheirs(WTinyLfu):
    """Four things are not ours. Uses are counted by a sketch, without a cap, and halved at every 32 hits per slot
    behind the window. Counted are landings, hits behind the window but none in it, and once more whoever leaves the
    window. The window fills the cache, and empties into what is behind it not before the first eviction. Probation has
    a size, what protected leaves, beyond which whoever comes from the window is protected at once."""

    def __init__(self, past: Past, scope: int) -> None:
        super().__init__(past, scope)
        self.behind = self.slots - self.most_in_window
        self.frequency: Any = Sketch(self.behind)

    def landed(self, expert: int) -> None:
        self.coming.remove(expert)
        self.window.append(expert)
        self.frequency.add(expert)

    def used(self, expert: int, first: bool) -> None:
        if not first:
            super().used(expert, first)

    def count(self, expert: int) -> None:
        if expert in self.window:
            return
        self.frequency.add(expert)
        self.counted += 1
        if self.counted == 32 * self.behind:
            self.frequency.counters = [n // 2 for n in self.frequency.counters]
            self.counted = 0

    def victim(self, newcomer: int, candidates: list[int], demanded: bool) -> int:
        while len(self.probation) + len(self.protected) < self.behind:
            self.frequency.add(self.window[0])
            self.enter(self.window.pop(0))
        ours = self.window[0]
        goes = super().victim(newcomer, candidates, demanded)
        if goes != ours:
            self.enter(self.probation.pop())
        self.frequency.add(ours)
        return goes

    def enter(self, expert: int) -> None:
        has_room = len(self.probation) < self.behind - self.most_protected
        (self.probation if has_room else self.protected).append(expert)


@settings(max_examples=100)
@given(some.integers(0, 2**32 - 1))
@pytest.mark.parametrize(
    ("name", "params", "theirs"),
    [
        ("lru", (), lcs.LRU),
        ("fifo", (), lcs.FIFO),
        ("sieve", (), lcs.Sieve),
        ("clock", (), lcs.Clock),
        ("arc", (), lcs.ARC),
        ("lfu", (0.0,), lcs.LFU),  # uses since the landing, as theirs
        ("lru-k", (2.0, 0.0), lcs.LRUK),
        ("belady", (), lcs.Belady),
    ],
)
def test_the_same_requests_miss(name: str, params: tuple[float, ...], theirs: Callable[..., Any], seed: int) -> None:
    slots, string = string_of(seed)
    assert our_missed(name, params, slots, string) == their_missed(theirs(slots, hashpower=10), string)


@settings(max_examples=100)
@given(some.integers(0, 2**32 - 1), some.sampled_from([1, 3, 8]))
def test_lru_k_by_landing(seed: int, k: int) -> None:
    slots, string = string_of(seed)
    theirs = lcs.LRUK(slots, hashpower=10, k=k)
    assert our_missed("lru-k", (k, 0.0), slots, string, LruKByLanding) == their_missed(theirs, string)


@settings(max_examples=100)
@given(some.integers(0, 2**32 - 1), some.sampled_from([0.2, 0.3, 0.5]))
def test_s3_fifo_as_theirs(seed: int, small: float) -> None:
    # Theirs does not insert at all where small has one slot; its ghosts are as many as main's slots only if told so.
    slots, string = string_of(seed)
    ghosts = (slots - int(small * slots) + 0.5) / slots
    theirs = lcs.S3FIFO(slots, hashpower=10, small_size_ratio=small, ghost_size_ratio=ghosts)
    assert our_missed("s3-fifo", (small,), slots, string, S3FifoOfTheirs) == their_missed(theirs, string)


@settings(max_examples=100)
@given(some.integers(0, 2**32 - 1), some.sampled_from([(11, 1), (12, 2), (16, 1), (20, 5), (23, 3)]))
def test_w_tinylfu_as_theirs(seed: int, sizes: tuple[int, int]) -> None:
    # Behind the window stands a multiple of five, of which theirs protects four fifths: else parts of slots are lost.
    slots, window = sizes
    share = (window + 0.5) / slots
    theirs = lcs.WTinyLFU(slots, hashpower=10, window_size=share)
    string = string_of(seed)[1]
    assert our_missed("w-tinylfu", (share, 0.8), slots, string, WTinyLfuOfTheirs) == their_missed(theirs, string)


@pytest.mark.parametrize(
    ("name", "params", "theirs"),
    [
        ("lru-k", (3.0, 0.0), LruKByLanding),
        ("s3-fifo", (0.3,), S3FifoOfTheirs),
        ("w-tinylfu", (0.1, 0.8), WTinyLfuOfTheirs),
    ],
)
def test_what_theirs_does_otherwise_shows(name: str, params: tuple[float, ...], theirs: type[Eviction]) -> None:
    missed = [
        (our_missed(name, params, *string_of(seed)), our_missed(name, params, *string_of(seed), theirs))
        for seed in range(20)
    ]
    assert any(ours != others for ours, others in missed)
