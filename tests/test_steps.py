"""Steps: against the reference's own scheduler, and one case by hand."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as some

from sim.steps import schedule
from tests.gen import traces
from tests.reference import reference_steps
from traces.format.trace import RoutingTrace


@given(traces(), some.integers(1, 5), some.integers(1, 4), some.booleans())
def test_the_reference_lays_the_same_steps(trace: RoutingTrace, batch: int, chunk: int, as_decode: bool) -> None:
    steps = schedule(trace, batch, chunk, as_decode)
    mine = [
        (bool(steps.prefill[s]), steps.row[steps.offset[s] : steps.offset[s + 1]].tolist()) for s in range(len(steps))
    ]
    theirs = reference_steps(trace.sequence.tolist(), trace.prefill.tolist(), batch, chunk, as_decode)
    assert mine == [(bool(kind), list(rows)) for kind, rows in theirs]


@given(traces(), some.integers(1, 3), some.integers(1, 4))
def test_previous_rows_lie_in_an_earlier_step_of_the_same_request(trace: RoutingTrace, batch: int, chunk: int) -> None:
    steps = schedule(trace, batch, chunk)
    of_row = np.zeros(trace.n_tokens, np.int64)
    of_row[steps.row] = np.repeat(np.arange(len(steps)), np.diff(steps.offset))
    previous = np.empty(trace.n_tokens, np.int32)
    previous[steps.row] = steps.previous_rows(trace.sequence)
    for t in range(trace.n_tokens):
        earlier = [u for u in range(t) if trace.sequence[u] == trace.sequence[t] and of_row[u] < of_row[t]]
        first = not any(trace.sequence[u] == trace.sequence[t] and of_row[u] == of_row[t] for u in range(t))
        assert previous[t] == (earlier[-1] if earlier and first else -1)


def test_two_places_three_requests() -> None:
    # requests a (2 prompt, 2 generated), b (1 prompt only), c (1 generated); batch 2, chunks of 1.
    # a and b are admitted at once: a0 | a1 | b0; b leaves, c is admitted at step 3: decode a2 c0 | a3.
    trace = RoutingTrace(
        experts=np.zeros((6, 1, 1), np.int16),
        sequence=np.array([0, 0, 0, 0, 1, 2], np.int32),
        position=np.array([0, 1, 2, 3, 0, 0], np.int32),
        prefill=np.array([1, 1, 0, 0, 1, 0], bool),
        meta={
            "format_version": 1,
            "model": "m",
            "n_experts": 1,
            "top_k": 1,
            "n_layers": 1,
            "moe_layers": [0],
            "real": False,
        },
    )
    steps = schedule(trace, 2, 1)
    assert steps.row.tolist() == [0, 1, 4, 2, 5, 3]
    assert np.diff(steps.offset).tolist() == [1, 1, 1, 2, 1]
    assert (steps.admitted.tolist(), steps.last_prefill.tolist()) == ([0, 0, 3], [1, 2, -1])
