"""Rounds under a deadline, on a clock that only replays move: every number of seconds is worked by hand."""

from typing import Any

import pytest

from runtime.device.port import DeviceError
from runtime.measuring import rounds
from runtime.measuring.rounds import Budget, Deadline, complete, measured, sweep
from tests.clocks import Clock

CASES = ["a", "b", "c", "d"]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock().install(monkeypatch)


def taking(clock: Clock, *seconds: float) -> Any:
    """A replay that lasts the next of the seconds, then the last of them for ever; it gives its own number."""
    left, count = list(seconds), iter(range(10**6))

    def replay(case: str) -> int:
        clock.tick(left.pop(0) if len(left) > 1 else left[0])
        return next(count)

    return replay


def rounds_of(replay: Any, seconds: float, repeats: int | None, round_s: float, *after: float) -> Any:
    return measured(CASES, replay, Budget(Deadline(seconds), round_s, *after), repeats, 0)


def test_rounds_until_another_one_and_what_comes_after_it_would_not_fit(clock: Clock) -> None:
    # a round of four replays of 2 s: 8 s; another one takes 8.8 s with its margin, then half a round and 3 s: 15.8 s.
    # After four rounds 16 s of 48 are left, after five 8
    found = rounds_of(taking(clock, 2.0), 48.0, None, 8.0, 0.5, 3.0)
    assert len(found) == 5 and clock.now == 40 and [set(f) for f in found] == [set(CASES)] * 5
    assert len({tuple(f) for f in found}) > 1  # orders of their own


def test_the_deadline_holds_whatever_number_of_rounds_is_asked_for(clock: Clock) -> None:
    assert len(rounds_of(taking(clock, 2.0), 48.0, 2, 8.0)) == 2
    clock.now = 0
    assert len(rounds_of(taking(clock, 2.0), 48.0, 100, 8.0)) == 5 and clock.now == 40
    clock.now = 0
    assert len(rounds_of(taking(clock, 1e-6), 48.0, None, 8.0)) == rounds.MOST


def test_fewer_rounds_than_a_spread_needs_are_kept_when_the_time_is_over(clock: Clock) -> None:
    # 20 s a round of a deadline of 30: one, though three were asked for
    assert len(rounds_of(taking(clock, 5.0), 30.0, 3, 1.0)) == 1 and clock.now == 20


def test_a_round_that_cannot_be_finished_is_dropped_whole(clock: Clock) -> None:
    # a first round of 4 s; the second begins with 96 s left, its first replay takes 94: three of 1 s would not fit
    found = rounds_of(taking(clock, 1, 1, 1, 1, 94, 1), 100.0, None, 4.0)
    assert len(found) == 1 and clock.now == 98
    # what is reserved for afterwards (60 s) is not used up by a slow round either
    clock.now = 0
    found = rounds_of(taking(clock, 1, 1, 1, 1, 40, 1), 100.0, None, 4.0, 0, 60.0)
    assert len(found) == 1 and clock.now == 44


def test_without_a_complete_round_one_line_says_how_far_it_was(clock: Clock) -> None:
    with pytest.raises(DeviceError, match=r"^seconds: 10: over after 3 of the 4 replays of the first round, .*--steps"):
        rounds_of(taking(clock, 4.0), 10.0, None, 1.0)
    assert clock.now == 12  # the third began before the deadline; none after it


def test_a_first_round_that_cannot_be_done_is_not_begun(clock: Clock) -> None:
    with pytest.raises(DeviceError, match=r"over after 0 of the 4 .* would take about 11 s"):
        rounds_of(taking(clock, 1.0), 10.0, None, 11.0)
    assert clock.now == 0


def test_a_sweep_ends_with_the_time(clock: Clock) -> None:
    deadline = Deadline(5.0)
    assert list(sweep(CASES, taking(clock, 2.0), deadline, "the test")) == ["a", "b", "c"] and clock.now == 6
    assert sweep(CASES, taking(clock, 2.0), deadline, "the test") == {}
    with pytest.raises(DeviceError, match="after 0 of the 4 replays of the warm-up"):
        complete(CASES, taking(clock, 2.0), deadline, "the warm-up")
    clock.now = 0
    assert complete(CASES, taking(clock, 1.0), deadline, "the warm-up") == {"a": 0, "b": 1, "c": 2, "d": 3}


def test_every_round_says_the_time_that_is_left(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    rounds_of(taking(clock, 2.5), 60.0, 2, 8.0)
    assert capsys.readouterr().err.splitlines() == [
        "round 1 of 2, which takes about 8 s: 0 s gone, 60 s left of 60 s",
        "round 2 of 2, which takes about 10 s: 10 s gone, 50 s left of 60 s",
        "2 rounds done: 20 s gone, 40 s left of 60 s",
    ]


def test_what_fits(clock: Clock) -> None:
    deadline = Deadline(20.0)
    clock.now = 5.0
    fits = lambda *after: Budget(deadline, 0.0, *after).fits(10.0)  # noqa: E731 - another round of 10 s
    assert fits() and not fits(0.5)  # 11 and 16 of 15 s
    assert fits(0.2, 2.0) and not fits(0.2, 2.1)  # 11 + 2 + 2 and 2.1
