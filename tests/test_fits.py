"""Fits on made-up measurements with known answers, noise, outliers and disturbed replays."""

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.measuring.fits import Observations, constant, fit, hats, knots_of, residual, robust

Float = npt.NDArray[np.float64]


def test_hats_are_the_weights_of_straight_lines() -> None:
    # knots 1, 3, 7: two tokens lie half way, 5 half way, 9 on the last line drawn out by half its length
    assert hats([0, 1, 2, 3, 5, 9], [1, 3, 7]).tolist() == [
        [0, 0, 0], [1, 0, 0], [0.5, 0.5, 0], [0, 1, 0], [0, 0.5, 0.5], [0, -0.5, 1.5],
    ]  # fmt: skip
    assert hats([1, 4], [1]).tolist() == [[1], [1]]


@given(st.lists(st.integers(1, 40), min_size=1, max_size=5, unique=True), st.integers(0, 100))
def test_a_fitted_curve_costs_in_the_simulator_what_it_costs_here(more: list[int], tokens: int) -> None:
    from sim.catalog.measured_spec import Knots
    from sim.costs.measured import interpolated

    knots = sorted({1, *more})
    ns = np.cumsum(np.arange(len(knots)) * 7 + 3)
    table = interpolated(Knots(tokens=tuple(knots), ns=tuple(ns.tolist())), [tokens])
    assert (hats([tokens], knots) @ ns)[0] == pytest.approx(table[0])


def test_knots_are_seen_often_and_spread_evenly() -> None:
    tokens = [1] * 500 + [2] * 300 + [4] * 100 + [5] * 2 + [64] * 50
    assert knots_of(tokens) == [1, 2, 4, 64]
    assert knots_of([2] * 9) == [1] == knots_of([1] * 9)  # nothing tells how they rise
    assert knots_of([2] * 9 + [5] * 9) == [1, 5]
    many = np.repeat(np.arange(1, 65), 50)
    assert knots_of(many, 6) == [1, 2, 5, 11, 27, 64]


def expert_times(rng: np.random.Generator, n: int, outliers: float) -> tuple[Float, Float]:
    """(tokens [n], ns [n]): 1000 ns and 50 a token, 2 % noise, and a share of executions 20 times as long."""
    tokens = rng.integers(1, 9, n)
    ns = (1000 + 50 * tokens) * rng.normal(1, 0.02, n)
    ns[rng.random(n) < outliers] *= 20
    return tokens.astype(float), ns


def test_the_shape_survives_outliers() -> None:
    rng = np.random.default_rng(0)
    tokens, ns = expert_times(rng, 2000, 0.05)
    found = robust(hats(tokens, [1, 8]), ns, [(0, 2)])
    assert found == pytest.approx([1050, 1400], rel=0.02)
    plain = np.linalg.lstsq(hats(tokens, [1, 8]), ns, rcond=None)[0]
    assert plain.min() > 1.5 * 1050  # what least squares would have said


def test_the_level_keeps_the_jitter_that_every_round_pays_and_drops_a_disturbed_round() -> None:
    rng = np.random.default_rng(1)
    rounds = []
    for i in range(5):
        tokens, ns = expert_times(rng, 1000, 0.01)  # one execution in a hundred 20 times as long: the sum is 19 % more
        rounds.append(Observations(hats(tokens, [1, 8]), ns * (3 if i == 2 else 1)))
    term = fit(rounds, [(0, 2)])
    mean = np.median([r.ns.sum() / len(r.ns) for r in rounds])
    assert (rounds[0].design @ term.coefficients).mean() == pytest.approx(mean, rel=0.05)
    assert term.coefficients == pytest.approx(1.19 * np.array([1050, 1400]), rel=0.06)
    assert term.spread > 1  # the disturbed round is told
    assert (term.rounds, term.samples) == (5, 5000)


def test_dense_time_by_rows_and_entries() -> None:
    rng = np.random.default_rng(2)
    rows, entries = rng.integers(1, 5, 3000), rng.integers(10, 900, 3000)
    ns = 5000 + 300 * rows + 0.7 * entries + rng.normal(0, 20, 3000)
    ns[::50] += 40_000
    design = np.column_stack([hats(rows, [1, 4]), entries])
    assert robust(design, ns, [(0, 2)]) == pytest.approx([5300, 6200, 0.7], rel=0.02)


def test_what_cannot_be_negative_is_not_and_times_never_fall() -> None:
    tokens = np.tile([1.0, 2.0, 3.0], 100)
    falling = robust(hats(tokens, [1, 2, 3]), 100 - 10 * tokens, [(0, 3)])
    assert (np.diff(falling) >= 0).all() and falling[0] > 0
    entries = np.tile([1.0, 5.0], 150)
    found = robust(np.column_stack([np.ones(300), entries]), 50 - 2 * entries, [(0, 1)])
    assert found[1] == pytest.approx(0, abs=1e-6)


def test_a_column_that_nothing_touches_costs_nothing() -> None:
    design = np.column_stack([np.ones(50), np.zeros(50)])
    assert robust(design, np.full(50, 7.0)) == pytest.approx([7, 0])


def test_a_constant_is_the_median_round_s_mean() -> None:
    # means 10, 12, 30; the spread is (30 - 10) / 12
    term = constant([np.array([9.0, 10, 11]), np.array([11.0, 12, 13]), np.array([29.0, 30, 31])])
    assert term.coefficients == pytest.approx([12], rel=1e-6)
    assert term.spread == pytest.approx(20 / 12, rel=1e-6)
    still = constant([np.zeros(4), np.zeros(4)])
    assert still.coefficients.tolist() == [0] and (still.spread, still.residual) == (0, 0)


def test_residuals_are_medians_and_nothing_to_fit_is_refused() -> None:
    assert residual(np.array([11.0, 8, 10, 5]), np.array([10.0, 10, 10, 0])) == pytest.approx(0.1)
    with pytest.raises(ValueError, match="nothing was observed"):
        fit([Observations(np.zeros((0, 1)), np.zeros(0))])
