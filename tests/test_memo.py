"""What a memo keeps is what would be made afresh: whatever specs were prepared before, in whatever they differ."""

import itertools
import os
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import sim.prepare
from sim.engines import FREE, behaving
from sim.fit.buddies import BuddyProfile
from sim.fit.buddies_file import write as write_buddies
from sim.memo import Kept, Memo, afresh
from sim.policies.registry import TABLES
from sim.prepare import prepare
from sim.spec import RunSpec
from tests.gen import random_trace
from tests.runs_by_hand import FIXED
from traces.errors import UserError
from traces.format import npz, profile

MODEL = """n_layers = 3
n_experts = 8
top_k = 2
hidden = {hidden}
expert_intermediate = 128
attn_params_per_layer = 20000
kv_bytes_per_token_per_layer = 512
n_heads = 4
qk_dim = 16
v_dim = 16
vocab = 1000
source = "made up for a test"
"""
SHAPE: dict[str, Any] = {"layers": 3, "experts": 8, "k": 2, "logits": True, "lookahead": 3, "distances": (1, 2)}

# Every field of a spec with the values that are tried; a parameter of a policy goes with its policy.
VALUES: dict[str, list[Any]] = {
    "trace": ["t.npz", "u.npz", "unknown.npz", "learned.npz"],
    "model": [None, "m.toml", "n.toml"],
    "hardware": ["h.toml", "g.toml", "rtx4090", "a100-pcie4"],
    "engine": ["ideal", "mixtral-offloading", "fiddler"],
    "engine_as_costs": [True, False],
    "vram": [None, "2MB", "1TB"],
    "context": [None, 20_000],
    "kv_precision": ["bf16", "q8"],
    "precision": ["bf16", "q4"],
    "cache": [0.5, 2, 3, 2.0 / 8, "2MB", "fit"],
    "cache_scope": ["layer", "global"],
    "cache_spread": ["even", "marginal"],
    "eviction": list(TABLES["eviction"]),
    "prefetch": ["none", *TABLES["prefetch"]],
    "prefetch_budget": [None, 0, 1],
    "miss": list(TABLES["miss"]),
    "rerank": ["none", *TABLES["rerank"]],
    "placement": list(TABLES["placement"]),
    "transfer_order": ["fifo", "nearest-layer", "probability"],
    "transfer_chunk": [None, "4KB", "40KB"],
    "expert_group": [None, "one", "all"],
    "batch": [1, 2],
    "prefill_chunk": [512, 2],
    "as_decode": [False, True],
    "speculate": [None, 1, 2, 3],
    "accept": ["all", 0.5, 0.0],
    "draft_ns": [0, 1000],
    "context_offset": [0, 10_000],
    "warmup_steps": [0, 1],
    "warmup_share": [None, 0.4],
    "reset": ["none", "request"],
    "skip_prompts": [False, True],
    "requests": [None, "1:", "3,0,2"],
    "max_steps": [None, 4, 9],
    "calibration": [None, 0.25, 0.5, "c.npz", "d.npz"],
    "seed": [0, 1, 2],
    "price_per_hour": [None, 1.5],  # of a summary alone, as the next two: what is prepared is the same
    "watts": [None, 300.0],
    "idle_watts": [None],  # goes with watts
    "machine": ["compiled", "simpy"],
    "bulk": ["none", "stream", "split"],
    "bulk_rows": [None, "2", "1E"],
    "bulk_touch": [True, False],
    "stages": [0, 8, 40],
    "serial": [False, True],
    "merge": ["none", "runs"],
    "whole_layer": [False, True],
    "ahead": [0, 1],
    "beside": [True, False],
    "defer": [0, 1],
    "link_share": [None, 0.5],
    "cpu_visit_us": [None, 4.0],
    "n_cpu_moe": [None, 1],
    "override_tensor": [None, "exps=CPU"],
    "dense_on_host": [None, "layers:1", "layers:first:2"],
    "ram": [None, "64GB"],
    "host": [None, "xeon-6126", "2x-epyc-9654"],
    "host_gbps": [None, 20.0],
    "link_gbps": [None, 6.0],
}
PARAMETERS: dict[str, list[Any]] = {
    "decayed.decay": [0.5, 0.9], "window-score.window": [2, 3], "popular.distance": [1, 2],
    "transition.smoothing": [0.0, 2.0], "activation-matrix.distance": [1, 2], "noisy-oracle.recall": [0.5, 0.9],
    "drop-by-weight.threshold": [0.1, 0.4], "buddy.tau": [0.3, 0.9], "buddy.k_max": [1, 2], "buddy.lists": ["l.npz"],
    "buddy.budget_mb": [1.0, 2.0], "fiddler.backlog": [0, 1], "hobbit.slots": ["1", "2"],
    "hobbit.precision": ["q4", "q2"], "similarity.matrix": ["s.npz", "r.npz"], "sere.matrix": ["s.npz", "r.npz"],
    "max-rank.among": [3, 4], "profile.file": ["p.npz", "q.npz"],
    "cpu-admit.inserts": [1, "unlimited"], "split.by": ["makespan", "table"], "split.table": ["0,1", "1"],
    "global-popular.file": ["p.npz", "q.npz"], "map-store.maps": [3, 9], "popular-per-request.tokens": [1, 4],
    "speculate.distance": [1, 2], "cache-prior-mass.mass": [0.5, 0.9], "tolerance.tolerance": [0.2, 0.6],
}  # fmt: skip
KINDS = ("eviction", "prefetch", "miss", "rerank", "placement")  # of policies, which have parameters
NEEDED = {"hobbit.slots": "2", "similarity.matrix": "s.npz", "sere.matrix": "s.npz", "profile.file": "p.npz"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The current folder, with every file that VALUES and PARAMETERS name."""
    before, out = Path.cwd(), tmp_path_factory.mktemp("memo")
    os.chdir(out)
    write_files()
    yield out
    os.chdir(before)


def write_files() -> None:
    """Two of each kind, of one shape and of other content, in the current folder."""
    rng = np.random.default_rng(5)
    models = {"t": "m.toml", "u": "n.toml", "unknown": "nobody's", "learned": "m.toml", "c": "m.toml", "d": "m.toml"}
    for name, model in models.items():
        source = {"lookahead_source": "learned by hand"} if name == "learned" else {}
        trace = random_trace(rng, tokens=40, requests=5, prompt=0.4, model=model, **SHAPE, **source)
        npz.write(f"{name}.npz", trace)
    for name, hidden in (("m", 64), ("n", 96)):
        Path(f"{name}.toml").write_text(MODEL.format(hidden=hidden))
    Path("h.toml").write_text(FIXED)
    Path("g.toml").write_text(FIXED.replace("100", "70"))
    for name in "pq":
        counts = rng.integers(0, 50, (3, 8)).astype(np.float64)
        meta = {"kind": profile.KIND, "format_version": 1, "model": "m", "n_experts": 8, "moe_layers": [0, 1, 2]}
        profile.write(Path(f"{name}.npz"), profile.Profile(counts, meta | {"real": False}))
    for name in "sr":
        about = {"kind": "similarity", "format_version": 1, "model": "m", "n_experts": 8, "moe_layers": [0, 1, 2]}
        npz.write_arrays(f"{name}.npz", about, {"similarity": rng.random((3, 8, 8)).astype(np.float32)})
    write_buddies("l.npz", BuddyProfile(seed=3).fit(npz.read(Path("d.npz"))).lists_)


def spec_of(values: Mapping[str, Any]) -> RunSpec:
    """A spec with the parameters that its policies cannot do without; others only where their policy is used."""
    chosen = {values[kind] for kind in KINDS}
    parameters = {key: value for key, value in NEEDED.items() if key.partition(".")[0] in chosen}
    parameters |= {key: value for key, value in values.items() if key.partition(".")[0] in chosen and "." in key}
    given = {key: value for key, value in values.items() if "." not in key and value is not None}
    if {"n_cpu_moe", "override_tensor"} & given.keys():
        del given["cache"]  # they say it
    if not given["engine_as_costs"] and behaving(given["engine"]) is not None:  # which says all but what is free
        given, parameters = {name: value for name, value in given.items() if name in FREE}, {}
    return RunSpec.of({**given, "set": parameters})


def bases() -> list[dict[str, Any]]:
    """Specs in which every policy occurs, with what it needs; one that spreads slots; one whose budget in MB depends on
    the size of an expert; one whose seed sets nothing aside; one that speculates; and two that leave the model to the
    trace, one of which names an unknown one."""
    plain = {name: values[0] for name, values in VALUES.items()}
    plain |= {"model": "m.toml", "hardware": "rtx4090", "calibration": 0.25}
    n = max(len(VALUES[kind]) for kind in KINDS)
    each = [plain | {kind: VALUES[kind][i % len(VALUES[kind])] for kind in KINDS} for i in range(n)]
    each = [base | ({"trace": "learned.npz"} if base["prefetch"] == "learned" else {}) for base in each]
    each = [base | ({"speculate": 2} if base["prefetch"] == "draft-window" else {}) for base in each]
    each += [plain | {"cache_spread": "marginal"}, plain | {"miss": "buddy", "buddy.budget_mb": 1.0}]
    each += [plain | {"miss": "buddy", "placement": "random", "calibration": "c.npz"}]
    each += [plain | {"miss": "cpu", "bulk": "stream", "bulk_rows": "2"}, plain | {"speculate": 3, "accept": 0.5}]
    return [*each, plain | {"model": None}, plain | {"model": None, "hardware": "h.toml", "trace": "unknown.npz"}]


def prepared(spec: RunSpec, memo: Memo) -> Any:
    """The setting, or the error in place of one."""
    try:
        return prepare(spec, memo)
    except UserError as error:
        return str(error)


def difference(a: Any, b: Any, where: str = "setting") -> str:
    """The first place in which two settings (or errors) differ, "" where they are equal: arrays by type and value."""
    if type(a) is not type(b):
        return f"{where}: {type(a).__name__}, {type(b).__name__}"
    if isinstance(a, np.ndarray):
        same = a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
        return "" if same else where
    if isinstance(a, Mapping):
        pairs = [(a.get(key), b.get(key), key) for key in {**a, **b}]
    elif is_dataclass(a):
        pairs = [(getattr(a, each.name), getattr(b, each.name), each.name) for each in fields(a)]
    elif isinstance(a, (tuple, list)) and len(a) == len(b):
        names = getattr(a, "_fields", range(len(a)))
        pairs = list(zip(a, b, names, strict=True))
    else:
        return "" if a == b else where
    return next((found for x, y, name in pairs if (found := difference(x, y, f"{where}.{name}"))), "")


def changes(base: Mapping[str, Any], number: int) -> Iterator[dict[str, Any]]:
    """The base of a number with one field, or one parameter of its policies, set to each other value (a third of the
    values, others in the next base; of a field with few, all of them in every third base); and every calibration with
    every seed: the seed says what is set aside, but only of a share of the requests."""
    for place, (name, values) in enumerate({**VALUES, **PARAMETERS}.items()):
        few = values if (place + number) % 3 == 0 else ()
        for value in values[number % 3 :: 3] if name in KINDS else few:
            if base.get(name) != value or type(base.get(name)) is not type(value):
                yield {**base, name: value}
    for calibration, seed in itertools.product(VALUES["calibration"], VALUES["seed"]):
        yield {**base, "calibration": calibration, "seed": seed}


def clash(base: Mapping[str, Any], number: int) -> str:
    """Where a run prepared after others, which differ from it in one field, is not what it is afresh."""
    memo = Kept(10**9)
    prepared(spec_of(base), memo)
    for changed in (*changes(base, number), dict(base)):
        spec = spec_of(changed)
        found = difference(prepared(spec, memo), prepared(spec, afresh))
        if found:
            return f"{found} of {spec} after {base}"
    return ""


def test_every_field_of_a_spec_is_tried() -> None:
    assert {*VALUES, "set"} == set(RunSpec.model_fields)
    assert all({b[kind] for b in bases()} == set(VALUES[kind]) for kind in KINDS)


def test_the_bases_can_be_run(folder: Path) -> None:
    """Or the law below would compare one error with another."""
    wrong = [found for base in bases() if isinstance(found := prepared(spec_of(base), afresh), str)]
    assert wrong == []


@pytest.mark.parametrize("number", range(len(bases())))
def test_a_memo_gives_what_is_made_afresh_after_a_change_of_one_field(folder: Path, number: int) -> None:
    assert clash(bases()[number], number) == ""


@settings(max_examples=30)
@given(st.data())
def test_a_memo_gives_what_is_made_afresh_after_any_other_runs(folder: Path, data: st.DataObject) -> None:
    """Runs that differ in several fields, one after the other on one memo."""
    memo, base = Kept(10**9), data.draw(st.sampled_from(bases()))
    for _ in range(4):
        names = data.draw(st.lists(st.sampled_from(sorted(VALUES)), max_size=4, unique=True))
        base = base | {name: data.draw(st.sampled_from(VALUES[name])) for name in names}
        spec = spec_of(base)
        assert difference(prepared(spec, memo), prepared(spec, afresh)) == ""


# --- no field of a key can be left out ---

# Fields that no two specs can differ in alone: what is in memory (below; a function: tests/test_policies_in_memory.py),
# and what its neighbours say as well.
SAID_ELSEWHERE = {"Opened.held", "Opened.content", "Chosen.sha256", "Described.kind", "Chosen.kind", "Placed.pooled"}


def fields_of_keys() -> set[str]:
    """STAGE.FIELD of every part of a memo's key."""
    here = [each for each in vars(sim.prepare).values() if is_dataclass(each) and each.__module__ == "sim.prepare"]
    parts = [part for part in here if part is not sim.prepare.Setting]
    return {f"{part.__name__}.{each.name}" for part in parts for each in fields(part)}


def without(key: Any, dropped: str) -> Any:
    """A key, spelled out, that does not say one field of its stages."""
    if not is_dataclass(key) or isinstance(key, type):
        return key
    name = type(key).__name__
    said = [each.name for each in fields(key) if each.repr and f"{name}.{each.name}" != dropped]
    return (name, *(without(getattr(key, each), dropped) for each in said))


def keys_of(spec: RunSpec, memo: Memo) -> tuple[dict[str, Any], Any]:
    """(every key that preparing a spec asks a memo for, by its repr; the setting, or the error in place of one). memo:
    behind it; what is afresh and what is from a memo is the same, as the tests above say."""
    seen: dict[str, Any] = {}

    def watch(key: Any, make: Any) -> Any:
        seen[repr(key)] = key
        return memo(key, make)

    return seen, prepared(spec, watch)


def suspects(a: Mapping[str, Any], b: Mapping[str, Any], left: set[str]) -> Iterator[str]:
    """The fields without which two specs' different keys are equal."""
    apart = [(a[x], b[y]) for x in a.keys() - b.keys() for y in b.keys() - a.keys() if type(a[x]) is type(b[y])]
    for name in sorted(left):
        if any(repr(without(x, name)) == repr(without(y, name)) for x, y in apart):
            yield name


def found_out(first: RunSpec, second: RunSpec, right: Any, dropped: str) -> bool:
    """Whether, on a memo whose keys do not say a field, the second spec gets something else than is right."""
    kept = Kept(10**9)
    memo = lambda key, make: kept(without(key, dropped), make)  # noqa: E731 - a def would say no more
    prepared(first, memo)
    try:
        return bool(difference(prepared(second, memo), right))
    except (IndexError, ValueError):  # arrays of two traces
        return True


def test_a_key_without_any_of_its_fields_is_found_out(folder: Path) -> None:
    """For each field of each stage there are two specs of which the second gets what is not its own, if the field is
    left out of the keys."""
    left, kept = fields_of_keys() - SAID_ELSEWHERE, Kept(10**9)
    assert len(left) > 30
    for base in reversed(bases()):  # those that are there for one field stand last
        mine, _ = keys_of(spec_of(base), kept)
        every = (changed for third in range(3) for changed in changes(base, third))
        for second in map(spec_of, every) if left else ():
            theirs, right = keys_of(second, kept)
            left -= {name for name in suspects(mine, theirs, left) if found_out(spec_of(base), second, right, name)}
    assert left == set()


def test_traces_in_memory_are_told_apart_by_what_they_hold(folder: Path) -> None:
    """Two of one name, on one memo; and each again."""
    memo, spec = Kept(10**9), RunSpec(trace="nowhere", model="m.toml", hardware="rtx4090", prefetch="oracle")
    one, other = npz.read(Path("t.npz")), npz.read(Path("u.npz"))
    for trace in (one, other, one):
        assert difference(prepare(spec, memo, trace=trace), prepare(spec, trace=trace)) == ""
        fitted = spec.model_copy(update={"prefetch": "popular", "calibration": "live"})
        for calibration in (one, other):
            given = {"trace": trace, "calibration": calibration}
            assert difference(prepare(fitted, memo, **given), prepare(fitted, **given)) == ""


def test_a_difference_is_found_wherever_it_is() -> None:
    a, b = np.arange(3), np.arange(3)
    assert difference({"x": (a, 1)}, {"x": (b, 1)}) == ""
    assert difference({"x": (a, 1)}, {"x": (b.astype(np.int32), 1)}) == "setting.x.0"
    assert difference({"x": (a, 1)}, {"x": (b, 2)}) == "setting.x.1"
    assert difference(a, None) == "setting: ndarray, NoneType" and difference("no", "never") == "setting"
