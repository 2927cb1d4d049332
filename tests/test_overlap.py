"""Requests that a calibration trace shares with the judged one, against a plain comparison of rows."""

import math
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as some

from sim import run
from tests.gen import random_trace, traces
from tests.on_torch import fixed_hardware
from traces.format import npz
from traces.format.trace import RoutingTrace
from traces.statistics.overlap import BITS, RECENT, WINDOW, shared_requests


def plainly(trace: RoutingTrace, other: RoutingTrace) -> list[int]:
    """Row by row, each row a set of (layer, expert)."""
    mine, theirs = _requests(trace), _requests(other)
    bits = min(_bits(trace, mine), _bits(other, theirs))
    if bits == 0:
        return []
    enough = math.ceil(BITS / bits)
    window = max(WINDOW, enough)
    runs = {run for a in mine for run, _ in _runs(a, window)}

    def copied(b: list[Any]) -> bool:
        for a in mine:
            n = min(len(a), len(b))
            if a[:n] == b[:n] and n >= (enough if len(a) == len(b) else window):
                return any(b)
        return any(run in runs and not any(a[:end] == b[:end] for a in mine) for run, end in _runs(b, window))

    return [i for i, b in enumerate(theirs) if copied(b)]


def _runs(rows: list[Any], n: int) -> list[tuple[Any, int]]:
    """Each run of n rows that tell something, and the place behind it."""
    tells = [i for i, row in enumerate(rows) if row and row not in rows[max(0, i - RECENT) : i]]
    return [(tuple(rows[i] for i in tells[k : k + n]), tells[k + n - 1] + 1) for k in range(len(tells) - n + 1)]


def _bits(trace: RoutingTrace, requests: list[Any]) -> float:
    most = trace.n_moe_layers * math.log2(math.comb(trace.n_experts, trace.top_k))
    rows = [row for request in requests for row in request]
    pairs = sum(a == b for a, b in combinations(rows, 2))
    return min(most, -math.log2(pairs / (len(rows) * (len(rows) - 1) / 2))) if pairs else most


def _requests(trace: RoutingTrace) -> list[list[frozenset[Any]]]:
    """The rows of each request."""
    return [
        [
            frozenset((layer, e) for layer, k in enumerate(row.tolist()) for e in k if e >= 0)
            for row in trace.experts[a:b]
        ]
        for a, b in zip(*trace.requests(), strict=True)
    ]


@given(traces(max_tokens=90, max_layers=2, max_k=2), some.integers(0, 2**32 - 1))
def test_against_a_comparison_of_rows(trace: RoutingTrace, seed: int) -> None:
    """Of a trace with itself cut at both ends, some rows of it changed, and slots in another order."""
    rng = np.random.default_rng(seed)
    first, last = sorted(rng.integers(0, trace.n_tokens + 1, 2))
    cut = rows_of(trace, slice(int(min(first, trace.n_tokens - 1)), int(max(last, first + 1))))
    gone = rng.random(cut.experts.shape[0]) < rng.choice([0.02, 0.2])
    changed = replace(cut, experts=np.where(gone[:, None, None], -1, cut.experts[:, :, ::-1]))
    for other in (cut, changed):
        assert shared_requests(trace, other).tolist() == plainly(trace, other)
        assert shared_requests(other, trace).tolist() == plainly(other, trace)


def rows_of(trace: RoutingTrace, rows: Any) -> RoutingTrace:
    """Some rows, whether or not requests are cut."""
    named = ("experts", "sequence", "position", "prefill")
    meta = {key: value for key, value in trace.meta.items() if "lookahead" not in key}
    return RoutingTrace(**{name: getattr(trace, name)[rows] for name in named}, meta=meta)


@pytest.fixture
def recording() -> RoutingTrace:
    """One request of 60 rows, 20 of them prompt."""
    return random_trace(np.random.default_rng(0), 60, 2, 8, 2, requests=1, prompt=1 / 3)


def test_a_copy_is_found_whatever_it_has_lost(recording: RoutingTrace) -> None:
    rows = np.arange(60)
    halves = replace(recording, sequence=(rows // 30).astype(np.int32), position=(rows % 30).astype(np.int32))
    assert shared_requests(recording, halves).tolist() == [0, 1]
    sparse = replace(recording, experts=np.where((rows % 7 == 3)[:, None, None], -1, recording.experts))
    assert shared_requests(sparse, rows_of(sparse, rows[5:])).tolist() == [0]  # a seventh of its rows were lost
    kept = {"its first row": rows[1:], "its prompt": rows[20:], "its end": rows[:WINDOW], "a row": rows[rows != 40]}
    for what, some_rows in kept.items():
        assert shared_requests(recording, rows_of(recording, some_rows)).tolist() == [0], what
        assert shared_requests(rows_of(recording, some_rows), recording).tolist() == [0], what
    assert shared_requests(recording, replace(recording, experts=recording.experts[:, :, ::-1])).tolist() == [0]


def test_what_is_no_copy(recording: RoutingTrace) -> None:
    """A common beginning, fewer rows than tell a copy from chance, and a toy in which everything looks alike."""
    rng = np.random.default_rng(1)
    prompt, rest = recording.experts[:40], rng.permutation(recording.experts[40:])
    assert shared_requests(recording, replace(recording, experts=np.concatenate([prompt, rest]))).tolist() == []
    assert shared_requests(recording, rows_of(recording, slice(20, 20 + WINDOW - 1))).tolist() == []
    ones = [random_trace(rng, 50, 1, 8, 1, requests=50) for _ in range(2)]  # 3 bits a request: most are equal by chance
    assert shared_requests(*ones).tolist() == []
    skewed = [replace(each, experts=np.where(rng.random(each.experts.shape) < 0.9, 0, each.experts)) for each in ones]
    alike = [rows_of(each, np.resize(np.arange(50), 400)) for each in skewed]
    first = [replace(each, sequence=np.repeat(np.arange(2), 200).astype(np.int32)) for each in alike]
    numbered = [replace(each, position=np.tile(np.arange(200), 2).astype(np.int32)) for each in first]
    assert shared_requests(*numbered).tolist() == []  # nine rows in ten are expert 0
    every = random_trace(rng, 40, 2, 2, 2, requests=2)  # top-2 of 2: no row tells anything
    assert shared_requests(every, every).tolist() == []


# --- the command ---


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(3)
    judged, others = (random_trace(rng, 60, 4, 64, 8, requests=6) for _ in range(2))
    npz.write(tmp_path / "judged.npz", judged)
    npz.write(tmp_path / "others.npz", others)
    first, ends = judged.requests()
    both = np.concatenate([others.experts, judged.experts[first[2] : ends[2]]])
    n, size = others.n_tokens, int(ends[2] - first[2])
    mixed = RoutingTrace(
        experts=both,
        sequence=np.append(others.sequence, np.full(size, 99)).astype(np.int32),
        position=np.append(others.position, np.arange(size)).astype(np.int32),
        prefill=np.append(others.prefill, np.zeros(size, bool)),
        meta=others.meta,
    )
    assert len(mixed.experts) == n + size
    npz.write(tmp_path / "mixed.npz", mixed)
    fixed_hardware(tmp_path, 700)
    return tmp_path


def status(folder: Path, trace: str, calibration: Any) -> int:
    hardware = ["--hardware", str(folder / "fixed.toml"), "--prefetch", "popular"]
    return run.main(["--trace", str(folder / trace), "--calibration", str(calibration), *hardware])


def test_what_is_judged_is_never_fitted_on(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert status(folder, "judged.npz", folder / "others.npz") == 0
    capsys.readouterr()
    for name, said in (("judged.npz", "6 of its 6 requests"), ("mixed.npz", "1 of its 7 requests")):
        assert status(folder, "judged.npz", folder / name) == 2
        out, err = capsys.readouterr()
        assert out == "" and err.count("\n") == 1 and f"calibration: {name}: {said}" in err
    assert "request 99" in err


def test_a_sample_is_not_judged_on_what_it_is_fitted_on(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--trace", "tiny-moe-calibration.npz", "--miss", "buddy", "--calibration", "tiny-moe-calibration.npz"]
    assert run.main(flags) == 2
    assert "are judged too" in capsys.readouterr().err


def test_a_fraction_of_a_trace_with_repeated_requests_says_so(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    once = npz.read(folder / "judged.npz")
    twice = [np.concatenate([array, array]) for array in (once.experts, once.position, once.prefill)]
    names = np.concatenate([once.sequence, once.sequence + 100]).astype(np.int32)
    npz.write(folder / "twice.npz", RoutingTrace(twice[0], names, twice[1], twice[2], once.meta))
    assert status(folder, "twice.npz", 0.5) == 0
    assert "have the routing of a request that is judged" in capsys.readouterr().out
    assert status(folder, "judged.npz", 0.5) == 0
    assert "have the routing" not in capsys.readouterr().out
