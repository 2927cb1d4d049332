"""Intervals over requests: the figures under compare's and recommend's, worked by hand."""

import numpy as np
import pytest

from sim.outcome.per_request import DRAWS, PerRequest, drawn, interval


def of(tokens: list[int], time_ns: list[float]) -> PerRequest:
    n = len(tokens)
    return PerRequest(np.arange(n), np.array(tokens), np.array(time_ns), np.full(n, np.nan))


def test_an_interval_is_the_middle_95_percent() -> None:
    # of 0, 1, ... 1000 in any order 2.5 % lie below 25 and as many above 975
    values = np.random.default_rng(0).permutation(1001).astype(np.float64)
    assert interval(values) == pytest.approx((25, 975))


def test_rates_are_those_of_the_draws() -> None:
    # 3 tokens in 10 ns, 1 in 40: drawn twice alone 0.3 and 0.025 per ns, together 4 in 50; 1e9 ns are a second
    rates = of([3, 1], [10.0, 40.0]).rates(np.array([[0, 0], [1, 1], [0, 1]]))
    assert np.allclose(rates, [0.3e9, 0.025e9, 0.08e9], rtol=1e-12)


def test_requests_without_a_counted_token_are_left_out() -> None:
    left = of([3, 0, 1], [10.0, 0.0, 40.0]).with_tokens()
    assert (left.request.tolist(), left.tokens.tolist(), left.time_ns.tolist()) == ([0, 2], [3, 1], [10.0, 40.0])


def test_draws_are_the_seed_s_and_every_request_may_be_drawn() -> None:
    draws = drawn(3, 7)
    assert draws.shape == (DRAWS, 3) and (draws == drawn(3, 7)).all() and (draws != drawn(3, 8)).any()
    assert np.bincount(draws.ravel(), minlength=3).min() > 0.9 * DRAWS and draws.max() == 2
