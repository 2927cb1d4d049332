"""The statistics of a validation, worked by hand, and against scipy's Kendall tau."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.stats import kendalltau

from runtime.measuring.agreement import (
    CaseTimes,
    Verdict,
    judge,
    judge_tau,
    kind,
    regime,
    separated,
    signed_error,
    spread,
    tau,
    verdicts,
    worst_of,
)

WITHIN, OUTSIDE, INCONCLUSIVE = Verdict


def case(measured: float, simulated: float, spread_: float = 0.0, group: str = "") -> CaseTimes:
    error = (simulated - measured) / measured
    return CaseTimes(error, spread_, measured, simulated, group, (error, spread_))


def test_spread_is_a_robust_standard_deviation_over_the_median() -> None:
    assert spread([9.0, 10.0, 12.0]) == pytest.approx((11 - 9.5) / 1.349 / 10)  # quartiles half way between
    normal = np.random.default_rng(0).normal(100, 7, 4001)
    assert spread(normal.tolist()) == pytest.approx(0.07, rel=0.05)
    assert spread([*normal.tolist(), 1e9]) == pytest.approx(0.07, rel=0.05)
    assert spread([5.0, 5.0]) == 0 and spread([0.0, 0.0, 0.0]) == 0
    assert spread([5.0]) == float("inf")  # one run says nothing of the next


def test_signed_error_and_regime() -> None:
    assert signed_error(9, 10) == pytest.approx(-0.1) and signed_error(12, 10) == pytest.approx(0.2)
    assert signed_error(3, 0) is None
    assert [regime(share) for share in (0, 0.19, 0.2, 0.5, 0.8, 0.81, 1)] == [
        "compute", "compute", "mixed", "mixed", "mixed", "stall", "stall",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("cases", "expected"),
    [
        ({"stall": 16}, "link-only"),
        ({"compute": 4}, "compute-only"),
        ({"mixed": 2}, "mixed-only"),
        ({"compute": 2, "stall": 2}, "full"),
        ({"compute": 1, "stall": 15}, "thin"),  # one case covers nothing
        ({"compute": 1, "mixed": 1}, "thin"),
        ({"compute": 1, "mixed": 3, "stall": 2}, "full"),
    ],
)
def test_a_record_is_what_its_regimes_are(cases: dict[str, int], expected: str) -> None:
    assert kind([name for name, n in cases.items() for _ in range(n)]) == expected


def test_two_arms_are_told_apart_by_more_than_both_spreads() -> None:
    assert separated(case(100, 0, 0.02), case(110, 0, 0.05))  # 10 > 2 + 5.5
    assert not separated(case(100, 0, 0.02), case(110, 0, 0.05), 2)  # 10 < 2 x 7.5
    assert not separated(case(100, 0, 0.05), case(110, 0, 0.05))  # 10 < 5 + 5.5
    assert not separated(case(100, 0), case(100, 0))  # equal times are never told apart


def test_tau_by_hand() -> None:
    # measured 1 2 3 4, simulated 1 3 2 4: of six pairs one is discordant: (5 - 1) / 6
    cases = [case(1, 1), case(2, 3), case(3, 2), case(4, 4)]
    assert tau(cases) == (pytest.approx(4 / 6), 6)
    # with a spread of 30 % the discordant pair (1 <= 0.6 + 0.9) is not told apart, nor (3, 4); (1, 2) is
    wide = [CaseTimes(0, 0.3, a.measured_ns, a.simulated_ns) for a in cases]
    assert tau(wide) == (1.0, 4) and tau(wide, 1.9) == (1.0, 1) and tau(wide, 2) == (None, 0)  # of (1, 4): 3 and 1.5
    # in two groups the two pairs within one are left, one of them a tie of the simulated times
    grouped = [case(1, 1, 0, "a"), case(2, 3, 0, "a"), case(3, 2, 0, "b"), case(4, 2, 0, "b")]
    assert tau(grouped) == (0.5, 2)
    assert tau([case(1, 1), case(1, 2)]) == (None, 0)


@given(st.lists(st.tuples(st.integers(1, 50), st.integers(1, 50)), min_size=2, max_size=12, unique_by=lambda p: p[0]))
def test_without_spread_tau_is_kendalls(pairs: list[tuple[int, int]]) -> None:
    assume(len({simulated for _, simulated in pairs}) == len(pairs))
    measured, simulated = np.array(pairs).T
    ours, n = tau([case(m, s) for m, s in pairs])
    assert ours == pytest.approx(kendalltau(measured, simulated).statistic) and n == len(pairs) * (len(pairs) - 1) / 2


@pytest.mark.parametrize(
    ("error", "spread_", "expected"),
    [
        (0.10, 0.05, WITHIN),  # the edge itself is within
        (0.05, 0.10, WITHIN),
        (0.05, 0.11, INCONCLUSIVE),  # a spread wider than the tolerance
        (0.11, 0.01, INCONCLUSIVE),  # over it by 0.01, not by more than 2 x 0.01
        (0.12, 0.01, INCONCLUSIVE),  # by exactly 2 x 0.01 (not more)
        (0.125, 0.01, OUTSIDE),
        (0.60, 0.15, OUTSIDE),  # wide spread, and still far outside
        (0.30, 0.15, INCONCLUSIVE),
        (0.01, float("inf"), INCONCLUSIVE),
        (0.2, 0.0, OUTSIDE),
    ],
)
def test_one_error_against_ten_percent(error: float, spread_: float, expected: Verdict) -> None:
    assert judge(error, spread_, 0.10) == expected


def test_the_worst_verdict_counts_and_is_the_exit_status() -> None:
    assert worst_of([WITHIN, INCONCLUSIVE, OUTSIDE, WITHIN]) == OUTSIDE == 1
    assert worst_of([WITHIN, INCONCLUSIVE]) == INCONCLUSIVE == 3
    assert worst_of([WITHIN]) == WITHIN == 0
    taus = [(0.9, None), (0.95, 0.5), (0.89, 0.89), (0.89, 0.9), (0.5, None), (None, None)]
    expected = [WITHIN, WITHIN, OUTSIDE, INCONCLUSIVE, INCONCLUSIVE, INCONCLUSIVE]
    assert [judge_tau(*both, 0.9) for both in taus] == expected


def test_all_statements_about_a_set_of_arms() -> None:
    good = [case(100, 104, 0.02), case(200, 194, 0.02), case(300, 345, 0.02)]  # 4 %, 3 %, 15 %
    assert set(verdicts(good, True).values()) == {WITHIN}
    assert verdicts(good, False)["equal"] == OUTSIDE
    # a median of 12 %, spread 0.5 %: outside; the worst of 15 % is still within 20 %
    off = [case(100, 112, 0.005), case(200, 222, 0.005), case(300, 345, 0.005)]
    found = verdicts(off, True)
    assert (found["median"], found["worst"], found["tau"]) == (OUTSIDE, WITHIN, WITHIN)
    # one case at 30 % +- 2 % is outside of the worst that is allowed; at 30 % +- 6 % nobody knows
    assert verdicts([*good, case(400, 520, 0.02)], True)["worst"] == OUTSIDE
    assert verdicts([*good, case(400, 520, 0.06)], True)["worst"] == INCONCLUSIVE
    # kernels off by 30 % in cases that wait for the link nine tenths of the time: 3 % of the whole
    hidden = [replace(a, awake=(10 * a.error, 0.02)) for a in good]
    found = verdicts(hidden, True)
    assert (found["median"], found["without_link"]) == (WITHIN, OUTSIDE)
    assert verdicts([replace(a, awake=None) for a in good], True)["without_link"] == INCONCLUSIVE
    assert verdicts([*hidden[:1], replace(good[1], awake=None)], True)["without_link"] == OUTSIDE
    # two policies in the wrong order
    assert verdicts([case(100, 106, 0.01), case(105, 101, 0.01)], True)["tau"] == OUTSIDE
