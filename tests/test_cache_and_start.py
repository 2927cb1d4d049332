"""What a run's object says of its cache and of its start, and how the printed table says it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analysis.pages import figures, tables
from analysis.reading.run import Run
from sim.outcome.table import BOUNDS, KEEPING, LIMITS, keeping, table
from sim.simulation import simulate
from sim.spec import RunSpec
from tests.gen import random_trace
from tests.runs_by_hand import FIXED
from traces.format import npz


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """3 layers of 8 experts of one byte each, 4 requests with prompts; transfers of 100 ns."""
    folder = tmp_path_factory.mktemp("result")
    trace = random_trace(np.random.default_rng(3), 40, 3, 8, 2, requests=4, prompt=0.3, weights=True)
    npz.write(folder / "t.npz", trace)
    (folder / "h.toml").write_text(FIXED)
    return folder


def ran(folder: Path, fixed: str = "", **fields: Any) -> dict[str, Any]:
    hardware = folder / ("h.toml" if not fixed else "own.toml")
    if fixed:
        hardware.write_text(FIXED + fixed)
    return simulate(RunSpec.of({"trace": str(folder / "t.npz"), "hardware": str(hardware), **fields}))[0]


# --- what --cache came to ---


@pytest.mark.parametrize(
    "cache, scope, slots, words",
    [
        # of 8 experts in each of 3 layers; bytes are shared equally, what is left over goes to the first layers
        (3, "layer", (9, 3, 3, 3), "cache 3 slots per layer,"),
        (1, "layer", (3, 3, 1, 1), "cache 1 slot per layer,"),
        (8, "layer", (24, 3, 8, 8), "cache 8 slots per layer,"),
        ("99B", "layer", (24, 3, 8, 8), "cache 99B (8 of 8 experts per layer),"),
        (0.5, "layer", (12, 3, 4, 4), "cache 0.5 (4 of 8 experts per layer),"),
        ("20B", "layer", (20, 3, 6, 7), "cache 20B (20 slots over 3 layers, 6 to 7 per layer),"),
        ("6B", "layer", (6, 3, 2, 2), "cache 6B (2 of 8 experts per layer),"),
        (5, "global", (5, 1, 5, 5), "cache pool of 5 slots,"),
        ("99B", "global", (24, 1, 24, 24), "cache 99B (pool of 24 slots for 24 experts),"),
        (0.5, "global", (12, 1, 12, 12), "cache 0.5 (pool of 12 slots for 24 experts),"),
        ("20B", "global", (20, 1, 20, 20), "cache 20B (pool of 20 slots for 24 experts),"),
    ],
)
def test_what_was_asked_and_what_it_came_to(
    folder: Path, cache: Any, scope: str, slots: tuple[int, ...], words: str
) -> None:
    out = ran(folder, cache=cache, cache_scope=scope)
    assert out["slots"] == dict(zip(("total", "scopes", "least", "most"), slots, strict=True)) | {"low": 0}
    assert words in table(out).splitlines()[1]
    assert tables.slots(Run("r", "", out)) == (slots[0], 0)


def test_slots_of_low_precision_copies_are_named_too(folder: Path) -> None:
    fixed = "low_transfer_ns = 30\nlow_expert_ns = 3\n"
    out = ran(folder, fixed, cache=3, miss="hobbit", set={"hobbit.slots": 2})
    assert (out["slots"]["total"], out["slots"]["low"]) == (9, 3 * 2)
    assert "cache 3 slots per layer, and 6 slots of low-precision copies," in table(out)
    assert tables.slots(Run("r", "", out)) == (9, 6)


# --- what is there at time 0 ---


@pytest.mark.parametrize(
    "fixed, load_ns",
    [
        # 9 residents, one transfer at a time: each begins a gap after its commit
        ("", 9 * 100),
        ("commit_gap_ns = 10\n", 9 * 110),
        # committed four at a time: behind the first each starts when the one before it lands
        ("commit_gap_ns = 10\ncommit_depth = 4\n", 110 + 8 * 100),
    ],
)
def test_what_loading_the_first_residents_would_take(folder: Path, fixed: str, load_ns: int) -> None:
    assert ran(folder, fixed, cache=3)["start"] == {"residents": 9, "bytes": 9, "load_ns": load_ns}


def test_an_empty_start_is_free_and_not_spoken_of(folder: Path) -> None:
    out = ran(folder, cache=3, placement="empty")
    assert out["start"] == {"residents": 0, "bytes": 0, "load_ns": 0}
    assert not started(out)


def started(out: dict[str, Any]) -> list[str]:
    return [line for line in table(out).splitlines() if line.startswith("start ")]


def test_the_start_is_said_where_it_flatters(folder: Path) -> None:
    out = ran(folder, cache=3)
    assert started(out) == [
        "start        9 experts (0.00 GB, placement first) are there at time 0; "
        "TTFT and hits do not pay the 0.000 s of loading them"
    ]
    assert not started(ran(folder, cache=3, warmup_steps=4))  # the figures begin later


@pytest.mark.parametrize(
    "load_ns, residents, said",
    [
        # ten TTFTs of 1 ms are 10 ms, 1 % of which are 100,000 ns; 1 % of 10,000 hits are 100
        (99_999, 99, False),
        (100_000, 99, True),
        (99_999, 100, True),
    ],
)
def test_from_one_percent_of_ttft_or_of_the_hits_on(folder: Path, load_ns: int, residents: int, said: bool) -> None:
    out = ran(folder, cache=3)
    out["ttft_ms"] |= {"mean": 1.0, "n": 10}
    out |= {"hits": 10_000, "start": {"residents": residents, "bytes": 0, "load_ns": load_ns}}
    assert bool(started(out)) == said


def test_without_ttft_and_hits_there_is_nothing_to_flatter(folder: Path) -> None:
    out = ran(folder, cache=3)
    out["ttft_ms"] |= {"mean": None, "n": 0}
    out["hits"] = 0
    assert not started(out)


# --- memory, bounds ---


def test_a_card_is_told_as_its_driver_names_it(folder: Path) -> None:
    # an RTX 4090: 24564 MiB x 2^20 = 25,757,220,864 bytes
    out = ran(folder, cache=3)
    assert "gpu -: unknown" in table(out)
    out["memory"]["gpu"] = 25_757_220_864
    assert "gpu 25.76 GB (24,564 MiB): unknown" in table(out)


def test_bounds_are_called_the_same_everywhere_and_its_own_work_is_no_bound_of_others(folder: Path) -> None:
    out = ran(folder, cache=3)
    printed = [line for line in table(out).splitlines() if ") for " in line]
    kept = [name for name in LIMITS if keeping(name, out["bounds"])]  # without stages what runs is kept for a while
    assert kept == list(BOUNDS)
    assert [line.partition(") for ")[2].removesuffix(KEEPING) for line in printed] == list(LIMITS.values())
    assert [line.endswith(KEEPING) for line in printed] == [name in kept for name in LIMITS]
    assert KEEPING not in table(ran(folder, cache=3, eviction="min"))
    assert [line.startswith("bound ") for line in printed] == [True, True, False]  # its own work is none
    drawn = figures.bounds(tables.bounds([Run("r", "", out)]))
    assert [trace.name for trace in drawn.data[1:]] == list(LIMITS.values())
    assert "this run's own" in LIMITS["executed_ns"] and "executed_ns" not in BOUNDS
