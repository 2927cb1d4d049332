"""Requests that a calibration trace shares with the judged one, against a plain comparison of rows."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as some

from sim import run
from tests.gen import random_trace, traces
from tests.on_torch import fixed_hardware
from traces import npz
from traces.overlap import LEAST, shared_requests
from traces.trace import RoutingTrace


def plainly(trace: RoutingTrace, other: RoutingTrace) -> list[int]:
    """Row by row."""
    mine = [trace.experts[a:b] for a, b in zip(*trace.requests(), strict=True)]
    theirs = [other.experts[a:b] for a, b in zip(*other.requests(), strict=True)]

    def same(a: Any, b: Any) -> bool:
        n = min(len(a), len(b))
        return (len(a) == len(b) or n >= LEAST) and bool((a[:n] == b[:n]).all())

    return [i for i, b in enumerate(theirs) if (b >= 0).any() and any(same(a, b) for a in mine)]


@given(traces(max_tokens=60, max_layers=2, max_k=2), some.integers(0, 2**32 - 1))
def test_against_a_comparison_of_rows(trace: RoutingTrace, seed: int) -> None:
    """Of a trace with itself, mixed with other rows, cut at the end, and with other names and weights."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, trace.n_tokens + 1))
    cut = _first_rows(trace, n)
    changed = replace(cut, experts=np.where(rng.random(cut.experts.shape) < 0.02, -1, cut.experts))
    for other in (cut, changed):
        assert shared_requests(trace, other).tolist() == plainly(trace, other)
        assert shared_requests(other, trace).tolist() == plainly(other, trace)


def _first_rows(trace: RoutingTrace, n: int) -> RoutingTrace:
    named = ("experts", "sequence", "position", "prefill", "weights", "logits", "token_ids")
    rows = {name: None if (array := getattr(trace, name)) is None else array[:n] for name in named}
    return replace(trace, **rows, lookahead=None, meta={k: v for k, v in trace.meta.items() if "lookahead" not in k})


def test_a_system_prompt_is_no_copy_but_a_cut_recording_is() -> None:
    rng = np.random.default_rng(0)
    trace = random_trace(rng, 60, 2, 8, 2, requests=1)
    prompt, rest = trace.experts[:40], rng.permutation(trace.experts[40:])
    assert shared_requests(trace, replace(trace, experts=np.concatenate([prompt, rest]))).tolist() == []
    assert shared_requests(trace, _first_rows(trace, LEAST)).tolist() == [0]
    assert shared_requests(trace, _first_rows(trace, LEAST - 1)).tolist() == []


# --- the command ---


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(3)
    judged, others = (random_trace(rng, 60, 2, 8, 2, requests=6) for _ in range(2))
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
