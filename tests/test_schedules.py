"""Every schedule, cut by --max-steps and begun by --warmup-steps at every boundary: what is counted, counted again."""

import subprocess
import sys
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as some

from sim.machines.record import CLOCK, COUNTERS, LAYER, RunRecord, requests_of
from sim.outcome.per_request import per_request
from sim.outcome.summary import spread_ms, summarise
from sim.speculation import Speculation
from sim.steps import Steps, first_steps, schedule
from tests.gen import traces
from tests.reference import guessed
from traces.format.trace import RoutingTrace

ROOT = Path(__file__).parent.parent


@dataclass(eq=False)
class Told:
    """One request as this file lays it out: the step at whose begin it is admitted; the steps of its prompt and of its
    generated tokens, all of them, also those behind the cut; how many windows it had."""

    admitted: int
    prompt: list[int] = field(default_factory=list)
    decode: list[int] = field(default_factory=list)
    windows: int = 0

    def tokens(self, steps: int) -> list[int]:
        """The steps at whose ends it has a token: from its last prefill step, if that ran, on."""
        return [step for step in (*self.prompt[-1:], *self.decode) if step < steps]


def laid_out(
    trace: RoutingTrace, batch: int, chunk: int, as_decode: bool, speculation: Speculation | None = None
) -> list[Told]:
    """Design, section 6, Steps, as plain as can be."""
    starts, ends = trace.requests()
    lengths = [
        (0 if as_decode else int(trace.prefill[a:b].sum()), int(b - a)) for a, b in zip(starts, ends, strict=True)
    ]
    told: list[Told] = []
    active: list[tuple[Told, int]] = []  # and how many generated tokens are left
    step = 0
    while len(told) < len(lengths) or active:
        arrivals = lengths[len(told) :][: batch - len(active)]
        if arrivals:
            new = [Told(step) for _ in arrivals]
            for request, (prompt, every) in zip(new, arrivals, strict=True):
                chunks = -(-prompt // chunk)
                request.prompt = list(range(step, step + chunks))
                step += chunks
                active += [(request, every - prompt)] if every > prompt else []
            told += new
            continue
        for i, (request, left) in enumerate(active):
            n = 1
            if speculation is not None:
                chance, rows = Fraction(float(speculation.accept)), min(speculation.n, left)
                n = guessed(speculation.seed, chance, told.index(request), request.windows, rows)
            request.decode += [step] * n
            request.windows += 1
            active[i] = (request, left - n)
        active = [(request, left) for request, left in active if left > 0]
        step += 1
    return told


def record_of(steps: Steps, end: np.ndarray, warmup: int) -> RunRecord:
    """Of a run that took no notice of anything but the clock."""
    begin = np.append(0, end[:-1])
    plan: Any = SimpleNamespace(requests=steps.requests, step_prefill=steps.prefill, windows=steps.windows)
    accepted = np.add.reduceat(steps.accepted, steps.offset[:-1], dtype=np.int64)
    return RunRecord(
        steps={
            "prefill": steps.prefill.astype(np.int64), "begin_ns": begin, "end_ns": end, "rows": np.diff(steps.offset),
            "accepted": accepted,
        },
        requests=requests_of(plan, begin, end),
        counters=dict.fromkeys([*COUNTERS, *CLOCK], 0),
        layer={name: np.zeros(1, np.int64) for name in LAYER},
        groups={},
        warmup_steps=warmup,
        expert_bytes=1,
        windows={} if steps.windows is None else dict(vars(steps.windows)),
    )  # fmt: skip


@settings(max_examples=40)
@given(
    traces(), some.integers(1, 5), some.integers(1, 4), some.booleans(), some.integers(0, 2**32 - 1),
    some.sampled_from([None, Speculation(2, 0.5, 1), Speculation(3, 0.7, 2), Speculation(4, 1.0, 0)]),
)  # fmt: skip
def test_what_is_counted_at_every_cut_and_every_warm_up(
    trace: RoutingTrace, batch: int, chunk: int, as_decode: bool, seed: int, speculation: Speculation | None
) -> None:
    every = schedule(trace, batch, chunk, as_decode, speculation)
    told = laid_out(trace, batch, chunk, as_decode, speculation)
    rng = np.random.default_rng(seed)
    ends = np.cumsum(rng.integers(0, 1000, len(every)) * rng.choice([0, 1], len(every)))  # some steps take no time
    for n in range(1, len(every) + 2):
        steps = first_steps(every, n)
        assert len(steps) == min(n, len(every))
        for warmup in range(len(steps)):
            record = record_of(steps, ends[: len(steps)], warmup)
            check(told, record, len(steps), warmup)


def check(told: list[Told], record: RunRecord, steps: int, warmup: int) -> None:
    end = record.steps["end_ns"]
    began = 0 if warmup == 0 else end[warmup - 1]
    admitted = [request for request in told if request.admitted < steps]
    assert record.requests["request"].tolist() == list(range(len(admitted)))
    assert record.requests["tokens"].tolist() == [len(request.tokens(steps)) for request in admitted]
    times = [[int(end[step]) for step in request.tokens(steps)] for request in admitted]
    assert record.requests["first_ns"].tolist() == [each[0] if each else -1 for each in times]
    assert record.requests["last_ns"].tolist() == [each[-1] if each else -1 for each in times]

    out = summarise(record)
    counted = [any(warmup <= step < steps for step in (*request.prompt, *request.decode)) for request in told]
    assert out["requests"] == sum(counted)
    decoded = [step for request in told for step in request.decode if warmup <= step < steps]
    assert out["tokens"] == len(decoded)
    assert out["decode_ns"] + out["prefill_ns"] == out["time_ns"] == end[-1] - began
    steps_of = [request.tokens(steps) for request in admitted]  # a gap is counted where it begins when the warm-up ends
    pairs = [(a, b) for each in steps_of for a, b in pairwise(each) if a >= warmup - 1 and b >= warmup]
    gaps = [int(end[b] - end[a]) for a, b in pairs]
    assert out["itl_ms"] == spread_ms(np.array(gaps, np.int64))
    whole = [[int(end[s]) for s in each] for each in steps_of if len(each) > 1 and each[0] >= warmup - 1]
    assert out["tpot_ms"] == spread_ms(np.array([(each[-1] - each[0]) / (len(each) - 1) for each in whole]))
    waits = [
        each[0] - (int(end[request.admitted - 1]) if request.admitted else 0)
        for request, each in zip(admitted, times, strict=True)
        if each and request.admitted >= warmup
    ]
    assert out["ttft_ms"] == spread_ms(np.array(waits, np.int64))

    each = per_request(record)
    assert each.tokens.sum() == out["tokens"] and np.isclose(each.time_ns.sum(), out["decode_ns"])


def test_a_run_that_ends_within_its_first_prompt() -> None:
    command = [sys.executable, "-m", "sim.run", "--trace", "mixtral.npz", "--prefill-chunk", "3", "--max-steps", "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    # one step of three prompt tokens: one request has begun, none has a token
    assert "1 requests, 3 prompt + 0 generated tokens" in done.stdout
    latencies = [line.split() for line in done.stdout.splitlines() if line.startswith(("TPOT", "ITL", "TTFT"))]
    assert [line[-1] for line in latencies] == ["0"] * 3
