"""The summary object of a run, worked by hand where it says more than the record: quality, the trace, what fits."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import BaseModel

from analysis.reading.load import load
from sim import __version__
from sim.outcome.closed_loop import words
from sim.outcome.marks import OPEN_LOOP, SYNTHETIC, marks_without
from sim.outcome.summary import Summary, check_summary, columns
from sim.outcome.table import table
from sim.simulation import simulate
from sim.spec import RunSpec
from tests.gen import random_trace, trace_of
from traces.format import npz

HARDWARE = "[fixed]\ndense_ns = 10\nexpert_ns = 5\ntransfer_ns = 100\ndecide_ns = 0\nexpert_bytes = 100\n"


def result(folder: Path, **fields: Any) -> dict[str, Any]:
    """Of `t.npz` on fixed hardware; experts 0 and 1 of every layer are resident at first."""
    (folder / "h.toml").write_text(HARDWARE)
    given = {"trace": str(folder / "t.npz"), "hardware": str(folder / "h.toml"), "cache": 2, **fields}
    return simulate(RunSpec.of(given))[0]


# Residents 0 and 1 stay, because nothing is ever fetched: 2 and 3 are dropped wherever they are wanted.
EXPERTS = [[[0, 2], [1, 0]], [[2, 3], [3, 1]], [[0, 1], [0, 1]], [[1, 3], [-1, 2]]]
WEIGHTS = [[[0.75, 0.25], [0.5, 0.5]], [[0.5, 0.5], [0.75, 0.25]], [[0.5, 0.5], [0.5, 0.5]], [[0.5, 0.25], [0.0, 0.5]]]


def test_dropped_weight_by_hand(tmp_path: Path) -> None:
    # layer 0 wants 1 + 1 + 1 + .75, of which .25 + 1 + 0 + .25 is dropped; layer 1 wants 1 + 1 + 1 + .5, of which
    # 0 + .75 + 0 + .5 is. Token by token .25 of 2, 1.75 of 2, 0 of 2, .75 of 1.25: the largest of four is their p95
    npz.write(tmp_path / "t.npz", trace_of(EXPERTS, 4, WEIGHTS))
    found = result(tmp_path, miss="drop")["quality"]
    assert found["dropped_weight"] == pytest.approx(2.75 / 7.25) and found["substituted_weight"] == 0
    assert found["dropped_weight_by_layer"] == pytest.approx([1.5 / 3.75, 1.25 / 3.5])
    assert found["substituted_weight_by_layer"] == [0, 0]
    assert found["per_token_p95"] == pytest.approx(0.875) and found["expected_error"] is None
    # distinct experts: 2 in every visit but the last, which wants one
    assert found["wanted"] == found["wanted_before_rerank"] == 15
    # after two steps of warm-up the third and the fourth token are left: .75 of 3.25, p95 of 0 and .6
    later = result(tmp_path, miss="drop", warmup_steps=2)["quality"]
    assert later["dropped_weight"] == pytest.approx(0.75 / 3.25) and later["per_token_p95"] == pytest.approx(0.6)


def test_of_twenty_tokens_the_p95_is_the_nineteenth(tmp_path: Path) -> None:
    # token i wants the resident 0 and, by weight i / 20 of its 1, the absent 2
    lost = np.arange(20) / 20
    npz.write(
        tmp_path / "t.npz", trace_of(np.tile([[[0, 2]]], (20, 1, 1)), 4, np.stack([1 - lost, lost], axis=1)[:, None])
    )
    assert result(tmp_path, miss="drop")["quality"]["per_token_p95"] == pytest.approx(18 / 20)
    # ten steps of warm-up leave ten tokens, of which the tenth
    assert result(tmp_path, miss="drop", warmup_steps=10)["quality"]["per_token_p95"] == pytest.approx(19 / 20)


def test_prompts_lose_nothing_and_count_in_what_was_wanted(tmp_path: Path) -> None:
    # as a prompt the first two tokens are fetched: 2 and 3 evict 0 and 1 in both layers. What is lost depends on that:
    # layer 0: 2, then 2 and 3 are there; the third token wants 0 and 1, the fourth 1: all dropped but its 3 (.25)
    npz.write(
        tmp_path / "t.npz",
        trace_of([row[:1] for row in EXPERTS], 4, [row[:1] for row in WEIGHTS], prefill=[True, True, False, False]),
    )
    found = result(tmp_path, miss="drop")
    assert found["quality"]["dropped_weight"] == pytest.approx((1 + 0.5) / 3.75)
    assert (found["fetched"], found["dropped"]) == (3, 3)  # the prompt is one visit, for two slots of 2 and one of 3


def test_substituted_weight_and_what_similarity_makes_of_it(tmp_path: Path) -> None:
    # 2 is .8 like 0, and 3 is .5 like 1. Wanted: 2 by .5, 3 by .25, 0 by 1, 2 by .25: half of 2 is substituted, and
    # (.5 + .25) x .2 + .25 x .5 = .275 of 2 is the error to expect
    npz.write(tmp_path / "t.npz", trace_of([[[2]], [[3]], [[0]], [[2]]], 4, [[[0.5]], [[0.25]], [[1.0]], [[0.25]]]))
    alike = np.zeros((1, 4, 4))
    alike[0, 2, 0], alike[0, 3, 1] = 0.8, 0.5
    np.savez(tmp_path / "s.npz", similarity=alike + np.eye(4))
    every_gate_open = {"similarity.tau": -1, "similarity.beta": 2, "similarity.rho": 99}
    found = result(tmp_path, miss="similarity", set=every_gate_open | {"similarity.matrix": str(tmp_path / "s.npz")})
    assert (found["substituted"], found["slots_hit"]) == (3, 1)
    assert found["quality"]["substituted_weight"] == pytest.approx(0.5) and found["quality"]["dropped_weight"] == 0
    assert found["quality"]["expected_error"] == pytest.approx(0.1375)
    assert found["quality"]["per_token_p95"] == 1


def test_lossless_runs_lose_nothing_and_runs_without_weights_do_not_know(tmp_path: Path) -> None:
    npz.write(tmp_path / "t.npz", trace_of(EXPERTS, 4, WEIGHTS))
    found = result(tmp_path)["quality"]
    assert found == {"wanted_before_rerank": 15, "wanted": 15, "substituted_weight": 0.0, "dropped_weight": 0.0}
    npz.write(tmp_path / "t.npz", trace_of(EXPERTS, 4, np.zeros((4, 2, 2))))
    unknown = result(tmp_path, miss="drop")["quality"]
    assert [unknown[name] for name in ("dropped_weight", "dropped_weight_by_layer", "per_token_p95")] == [None] * 3


def test_bytes_by_cause(tmp_path: Path) -> None:
    # HOBBIT at full 0: every miss but a token's first asks for a copy of 25 bytes; experts are of 100
    npz.write(tmp_path / "t.npz", trace_of([[[2, 3]], [[2, 3]]], 4, [[[0.75, 0.25]], [[0.75, 0.25]]]))
    low = "low_transfer_ns = 50\nlow_expert_ns = 5\nlow_bytes = 25\n"
    (tmp_path / "low.toml").write_text(HARDWARE + low)
    given = {"hobbit.full": 0.5, "hobbit.low": 0.99, "hobbit.slots": "1"}
    found = result(tmp_path, miss="hobbit", hardware=str(tmp_path / "low.toml"), set=given)
    # 2 has nothing in front of it: fetched, once; 3 has .75 in front of it: a copy, once
    assert found["transfers"]["demand"] == 2 and found["h2d_bytes"] == {"demand": 125, "prefetch": 0, "background": 0}


def test_what_is_said_of_the_trace_and_of_what_does_not_fit() -> None:
    given = {"trace": "mixtral.npz", "hardware": "rtx4090", "max_steps": 3, "calibration": 0.25}
    found = simulate(RunSpec.of(given))[0]
    about, whole = found["trace"], npz.read(npz.find("mixtral.npz"))
    assert about["tokens"] + about["calibration_tokens"] == whole.n_tokens
    assert (about["moe_layers"], about["n_experts"], about["top_k"], about["real"]) == (32, 8, 2, False)
    # 4 of 8 slots in 32 layers are 45.1 GB, the rest of Mixtral 3.2 GB; there are 24,080 MiB
    memory = found["memory"]
    need = (memory["dense"] + memory["kv"] + memory["slots"] + memory["staging"]) / 1e9
    assert 48.3 < need < 48.6 and memory["fits"] is False
    assert f"DOES NOT FIT: needs {need:.1f} GB of GPU memory, has 25.2 GB; times as if it did" in found["notes"]


RECALL = "the recall of this trace's lookahead is an assumption of its generator"
FUTURE = "ORACLE: {} reads the future; no engine can"


@pytest.mark.parametrize(
    ("real", "fields", "notes"),
    [
        (True, {}, []),
        (True, {"prefetch": "gate-lookahead"}, []),
        (True, {"miss": "drop"}, [OPEN_LOOP]),
        (True, {"rerank": "adapmoe"}, [OPEN_LOOP]),
        (False, {}, [SYNTHETIC]),
        (False, {"prefetch": "gate-lookahead", "miss": "drop"}, [SYNTHETIC, RECALL, OPEN_LOOP]),
        (False, {"prefetch": "previous-token"}, [SYNTHETIC]),
        (True, {"eviction": "min", "prefetch": "oracle"}, [FUTURE.format("min"), FUTURE.format("oracle")]),
    ],
)
def test_what_must_be_said(tmp_path: Path, real: bool, fields: dict[str, Any], notes: list[str]) -> None:
    trace = random_trace(np.random.default_rng(0), 6, 2, 4, 2, lookahead=2, prompt=0.5)
    npz.write(tmp_path / "t.npz", replace(trace, meta=trace.meta | {"real": real}))
    out = result(tmp_path, **fields)
    closed = [words(out["closed_loop"], "rerank" in fields)] if OPEN_LOOP in notes else []
    assert out["notes"] == notes + closed and ("closed_loop" in out) == bool(closed)


def test_of_nothing_there_is_text_too(tmp_path: Path) -> None:
    npz.write(tmp_path / "t.npz", trace_of(EXPERTS, 4, WEIGHTS))
    out = result(tmp_path, miss="drop", rerank="adapmoe", prefetch="previous-token")
    zero = {key: dict.fromkeys(out[key], 0) for key in ("breakdown_ns", "stall_ns_by_cause", "prefetched")}
    counts = dict.fromkeys(("time_ns", "wanted", "hits", "late", "misses", "slots_wanted", "link_busy_ns"), 0)
    text = table(out | zero | counts)
    assert "miss drop, rerank adapmoe, batch 1" in text and text.count(" 0 (0.0%)") == 6
    for fits, said in ((True, "gpu -: fits"), (False, "gpu -: DOES NOT FIT"), (None, "gpu -: unknown whether it fits")):
        assert said in table(out | {"memory": out["memory"] | {"fits": fits}})


def test_the_same_figures_as_text(tmp_path: Path) -> None:
    npz.write(tmp_path / "t.npz", trace_of(EXPERTS, 4, WEIGHTS))
    spread = {"mean": 1.0, "p50": 2.0, "p95": 1234.5678, "p99": None, "n": 7}
    lost = {"substituted_weight": 0.0125, "dropped_weight": 0.5, "per_token_p95": None}
    made = {
        "time_ns": 2_000_000_000, "tokens_per_s": 1234.567, "total_tokens_per_s": None, "tpot_ms": spread,
        "breakdown_ns": {
            "dense": 10**9, "decide": 0, "experts": 5 * 10**8, "stall": 4 * 10**8, "cpu_wait": 10**8, "head": 0,
        },
        "stall_ns_by_cause": {"demand": 10**8, "late": 3 * 10**8, "held": 0},
        "wanted": 4000, "hits": 3000, "late": 400, "misses": 600, "evictions": 1001, "link_busy_ns": 500_000_000,
        "h2d_bytes": {"demand": 1_234_500_000_000, "prefetch": 60_000_000, "background": 0},
        "prefetched": {"used": 30, "late": 10, "wasted": 40}, "slots_wanted": 8000,
        "transfers": {"promoted": 1, "withdrawn": 2000, "rejected": 3, "unfinished": 4},
        "substituted": 800, "dropped": 4, "cpu": 0, "low": 0, "quality": lost | {"stopped": {"tae": 3, "rho": 0}},
    }  # fmt: skip
    out = result(tmp_path, miss="drop", prefetch="previous-token")
    lines = [line.split(maxsplit=1) for line in table(out | made).splitlines() if line and line[0].isalpha()]
    text = {words[0]: " ".join(words[1].split()) for words in lines}
    assert text["tokens/s"] == "1,234.57 generated, - with prompts"
    assert text["TPOT"] == "1.000 2.000 1,234.568 - 7"
    assert text["time"] == "2.000 s: dense 50.0% decide 0.0% experts 25.0% stall 20.0% cpu_wait 5.0% head 0.0%"
    assert text["stall"] == "by demand 25.0% late 75.0% held 0.0%"
    assert text["wanted"] == "4,000: hits 3,000 (75.0%), late 400 (10.0%), misses 600 (15.0%); 1,001 evictions"
    assert text["H2D"] == "demand 1,234.5 GB, prefetch 0.1 GB, background 0.0 GB; link busy 25.0%"
    assert text["prefetched"] == (
        "used 30 (37.5%), late 10 (12.5%), wasted 40 (50.0%); promoted 1, withdrawn 2,000, rejected 3"
    )
    assert text["answers"] == "substituted 800 (10.00% of slots), dropped 4 (0.05% of slots)"
    assert text["router"] == "weight substituted 1.25%, dropped 50.00%; a token's p95 -"
    assert text["stopped"] == "by tae 3"


def keys_of(value: Any, model: type[BaseModel], front: str = "") -> tuple[set[str], set[str]]:
    """(keys that an object has and the model does not name, keys that the model asks for and the object lacks)."""
    named = model.model_fields
    more = {front + key for key in value if key not in named}
    less = {front + key for key, field in named.items() if field.is_required() and key not in value}
    for key, field in named.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel) and key in value:
            inner = keys_of(value[key], kind, f"{front}{key}.")
            more, less = more | inner[0], less | inner[1]
    return more, less


OF_RULES = {
    "streamed", "remote", "deferred", "link_busy_ns_by_cause", "link_transfers", "admission", "stages", "host",
    "remote_reads",
}  # fmt: skip
UNKNOWN = {"calibrated": None, "catalog_costs": None}  # of a summary without marks
OF_ENGINES = {"engine", "prompt_tokens_per_s", "prompt_tokens_per_s_interval"}
OF_A_PRICE = {"cost", "energy"}


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"miss": "drop"},
        {"rerank": "adapmoe"},
        {"eviction": "belady"},
        {"miss": "stream", "ram": "64GB"},
        {"speculate": 2, "as_decode": True},
    ],
)
def test_the_typed_summary_names_every_key_that_a_run_writes(tmp_path: Path, fields: dict[str, Any]) -> None:
    npz.write(tmp_path / "t.npz", trace_of(EXPERTS, 4, WEIGHTS))
    found = result(tmp_path, **fields)
    check_summary(found, "here", __version__)
    more, less = keys_of(found, Summary)
    assert not less and {key for key in more if not key.startswith("spec.")} == set()
    # what a sweep shows of it has a column, and no column is of a key that nobody writes
    written = {f"bounds.{name}" for name in ("best_ns", "best_share")}
    lacking = {name for name in columns() if name.split(".")[0] not in found} - written
    of_some = (OF_RULES if "ram" not in fields else set()) | ({"speculation"} if "speculate" not in fields else set())
    of_some |= set() if found["marks"]["open_loop"] else {"closed_loop"}
    assert {name.split(".")[0] for name in lacking} == OF_ENGINES | OF_A_PRICE | of_some


def test_marks_are_told_of_a_summary_without_them(tmp_path: Path) -> None:
    npz.write(tmp_path / "t.npz", trace_of(EXPERTS, 4, WEIGHTS))
    for fields, mark in (({}, None), ({"miss": "drop"}, "open_loop"), ({"eviction": "belady"}, "oracle")):
        found = result(tmp_path, **fields)
        marks = found.pop("marks")
        assert {name for name in ("open_loop", "oracle") if marks[name]} == ({mark} if mark else set())
        assert marks["synthetic"] is True and marks["calibrated"] is False
        assert marks_without(found) == marks | UNKNOWN
        found["spec"]["miss"] = "own.py:mine"  # of which nobody knows
        assert marks_without(found)["open_loop"] is True


def test_a_summary_whose_marks_are_null_has_none(tmp_path: Path) -> None:
    npz.write(tmp_path / "t.npz", trace_of(EXPERTS, 4, WEIGHTS))
    found = result(tmp_path, miss="drop")
    (tmp_path / "summary.json").write_text(json.dumps(found | {"marks": None}))
    assert load([tmp_path / "summary.json"])[0].summary["marks"] == found["marks"] | UNKNOWN
