"""What a full record says of durations, worked by hand where a device differs from the simulated link."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np

from runtime.measuring.durations import TimedRun, decide_of, transfers_of
from sim.machines import compiled
from tests.plans import plan


def fetching() -> TimedRun:
    """One visit that wants experts 0, 1, 2 of an empty cache, over a link two deep: 110 ns idle, 100 following, gap 2.

    Routed at 10: 0 and 1 are committed. 0 starts at 12 and lands at 122, when 2 is committed; 1 follows on and lands at
    222, 2 at 322."""
    wanting = plan([[[0, 1, 2]]], 4, [4], residents=[], transfer=(110, 100), gap=2, depth=2)
    setting: Any = SimpleNamespace(plan=wanting)  # of a setting transfers_of looks at the plan alone
    return TimedRun(setting, compiled.run(wanting, True))


def test_on_the_simulated_link_a_transfer_lasts_what_the_plan_says() -> None:
    run = fetching()
    sent = run.record.groups["transfers"]
    assert [sent[name].tolist() for name in ("committed_ns", "started_ns", "landed_ns")] == [
        [10, 10, 122], [12, 122, 222], [122, 222, 322],
    ]  # fmt: skip
    seen = transfers_of(run)
    assert (seen.gap_ns.tolist(), seen.idle_ns.tolist(), seen.following_ns.tolist()) == ([2], [110], [100, 100])


def test_what_a_device_adds_between_two_transfers_is_part_of_the_second() -> None:
    """Here every transfer starts 3 ns later and lasts that much less. What follows on still lasts from landing to
    landing, 100 ns; what finds the link idle lasts from its start, 107, and has waited 5 for it."""
    run = fetching()
    sent = run.record.groups["transfers"]
    later = replace(run.record, groups=run.record.groups | {"transfers": sent | {"started_ns": sent["started_ns"] + 3}})
    seen = transfers_of(replace(run, record=later))
    assert (seen.gap_ns.tolist(), seen.idle_ns.tolist(), seen.following_ns.tolist()) == ([5], [107], [100, 100])


def test_transfers_queued_in_the_warm_up_are_not_observed() -> None:
    run = fetching()
    steps = run.record.steps | {"begin_ns": np.array([0, 11])}
    seen = transfers_of(replace(run, record=replace(run.record, warmup_steps=1, steps=steps)))
    assert not len(seen.gap_ns) and not len(seen.idle_ns) and not len(seen.following_ns)


def test_a_decision_is_observed_in_decode_steps_and_only_without_them_in_prompts() -> None:
    """Two visits in each of three steps: a warm-up, a prompt (300 ns from its dense part to the routed instant), a
    decode step (100 and 110 ns)."""
    visits = {
        "step": np.array([0, 0, 1, 1, 2, 2]),
        "dense_end_ns": np.array([0, 1000, 2000, 3000, 4000, 5000]),
        "routed_ns": np.array([900, 1900, 2300, 3300, 4100, 5110]),
    }
    record: Any = SimpleNamespace(groups={"visits": visits}, warmup_steps=1)
    for phases, expected in (([True, True, False], [100, 110]), ([False, True, True], [300, 300, 100, 110])):
        setting: Any = SimpleNamespace(steps=SimpleNamespace(prefill=np.array(phases)))
        assert decide_of(TimedRun(setting, record)).tolist() == expected
