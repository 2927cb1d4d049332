"""Hand-worked cases of low-precision copies (HOBBIT) and of the evictions that look back or around.

As in test_reference: dense part 10, one expert 5 whatever its tokens, a transfer 100, all else 0; one token a step.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sim.core.plan import ANSWERS, Leaving, Low, Plan
from sim.policies.registry import MISS
from sim.run import main
from sim.steps import leaving, schedule
from tests.gen import random_trace
from tests.plans import evicting, named
from tests.test_reference import MACHINES, Run, lines, make
from traces.format import npz

FETCH, _, DROP, _, LOW, _, _ = range(len(ANSWERS))
WEIGHTS = [0.625, 0.25, 0.125]  # in front of the slots: 0, 0.625, 0.875


@pytest.fixture(params=sorted(MACHINES))
def run(request: pytest.FixtureRequest) -> Run:
    return MACHINES[request.param]


def hobbit(experts: Any, weights: Any, full: float = 0.6, low: float = 0.8, **given: Any) -> Plan:
    """One full slot that holds expert 0, one slot of copies that cross in 30 and run in 2."""
    plan = make(experts, 4, [1], [0], weights=np.array(weights, np.float32), **given)
    copies = Low(np.array([1]), 250, np.array([30, 30]), np.array([0, 2]))
    policy = named(MISS["hobbit"], [full, low])
    return Plan(**{**vars(plan), "low": copies, "miss": policy})


def test_one_token_fetches_one_takes_a_copy_and_drops_one(run: Run) -> None:
    # Routed at 10. 1 has nothing in front of it: fetched, lands 110 in the place of 0, runs to 115. In front of 2 is
    # 0.625: a copy, committed when 1 has landed, lands 140 in its own slot, runs to 142. In front of 3 is 0.875 > 0.8.
    result = run(hobbit([[[1, 2, 3]]], [[WEIGHTS]]))
    assert lines(result, "answers", "wanted", "answer") == [(1, FETCH), (2, LOW), (3, DROP)]
    columns = ("expert", "low", "bytes", "committed_ns", "landed_ns", "victim")
    assert lines(result, "transfers", *columns) == [(1, 0, 1000, 10, 110, 0), (2, 1, 250, 110, 140, -1)]
    assert lines(result, "executions", "expert", "low", "begin_ns", "end_ns") == [(1, 0, 110, 115), (2, 1, 140, 142)]
    totals = result["totals"]
    assert totals["time_ns"] == 142 and totals["stall_ns"] == 100 + 25 and totals["experts_ns"] == 7
    assert (totals["fetched"], totals["low"], totals["dropped"]) == (1, 1, 1)
    assert totals["residents"] == [1, 4 + 2]  # the copy of 2 is number 4 + 2


def test_a_copy_that_is_there_is_used_and_a_full_answer_does_not_take_it(run: Run) -> None:
    # Step 0 as above without 3, at 142. Step 1 from 152: 1 is a hit, 2 is not, and its copy is there: 5 + 2.
    # Step 2 from 169: 2 comes first now, so it is fetched although its copy is there; 269, runs to 274.
    plan = hobbit([[[1, 2]], [[1, 2]], [[2, -1]]], [[[0.75, 0.25]], [[0.75, 0.25]], [[1, 0]]])
    result = run(plan)
    assert lines(result, "transfers", "expert", "low", "landed_ns") == [(1, 0, 110), (2, 1, 140), (2, 0, 269)]
    assert lines(result, "steps", "end_ns") == [(142,), (159,), (274,)]
    assert (result["totals"]["low"], result["totals"]["slots_hit"], result["totals"]["fetched"]) == (2, 1, 2)


def test_a_copy_makes_room_among_copies_alone(run: Run) -> None:
    # The copy of 2 goes for that of 3; expert 1 in the full slot stays.
    result = run(hobbit([[[1, 2]], [[1, 3]]], [[[0.75, 0.25]]] * 2))
    assert lines(result, "transfers", "expert", "low", "victim") == [(1, 0, 0), (2, 1, -1), (3, 1, 4 + 2)]


def test_least_stale_takes_the_layer_that_comes_again_last(run: Run) -> None:
    # One pool of three; ids 0 1 | 2 3 | 4 5 by layer; 0 is the most recent. At layer 0 who is of layer 0 comes again
    # last: 0 goes for 1. At layer 2, 4 goes for 5. lru would have begun with 4, the oldest.
    experts = [[[1], [0], [1]]]
    result = run(make(experts, 2, [3], [4, 2, 0], pooled=True, eviction="layer-distance"))
    assert [victim for (victim,) in lines(result, "transfers", "victim")] == [0, 4]
    assert lines(run(make(experts, 2, [3], [4, 2, 0], pooled=True)), "transfers", "victim")[0] == (4,)


@pytest.mark.parametrize(("gone", "victim"), [([], 0), ([0], 1)])
def test_window_score_takes_the_least_weight_of_the_last_visits(run: Run, gone: list[int], victim: int) -> None:
    # Experts 1, 0, 2 are wanted with 0.9, 0.1, 1. With three visits in the window 0 weighs least; with two the visit of
    # 1 has left before 2 is wanted, and 1 weighs nothing.
    left = Leaving(np.array([0, 0, 0, len(gone)]), np.array(gone, np.int32))
    weights = np.array([[[0.9]], [[0.1]], [[1.0]]], np.float32)
    plan = make(
        [[[1]], [[0]], [[2]]],
        3,
        [2],
        [0, 1],
        eviction="window-score",
        params=[3 - len(gone)],
        leaving=left,
        weights=weights,
    )
    assert lines(run(plan), "transfers", "expert", "victim") == [(2, victim)]


@pytest.mark.parametrize(("gone", "victim"), [([], 1), ([0, 1, 2], 2)])
def test_activation_matrix_takes_the_least_of_the_requests_being_served(run: Run, gone: list[int], victim: int) -> None:
    # One pool with 0, 1 (layer 0) and 2 (layer 1). Three tokens want 0 and 2, then one wants 1 and 3. As one request:
    # 3/4, 1/4, and 3/4 of layer 1 which counts half: 1 goes. As another request: 0, 1, 0, and half of nothing: 2 goes.
    left = Leaving(np.array([0, 0, 0, 0, len(gone)]), np.array(gone, np.int32))
    experts = [[[0], [0]]] * 3 + [[[1], [1]]]
    plan = make(experts, 2, [3], [0, 1, 2], pooled=True, eviction="activation-matrix", leaving=left)
    assert lines(run(plan), "transfers", "expert", "victim") == [(1, victim)]


def test_who_leaves_when() -> None:
    # Two requests of a prompt of two and two generated tokens, one after another: steps [0 1] [2] [3] [4 5] [6] [7].
    sequence = np.repeat(np.arange(2, dtype=np.int32), 4)
    prompt = np.array([True, True, False, False] * 2)
    trace = replace(random_trace(np.random.default_rng(0), 8), sequence=sequence, prefill=prompt)
    steps = schedule(trace, 1, 512, False)
    window = leaving(steps, evicting("window-score"), sequence)
    assert window is not None
    assert window.offset.tolist() == [0, 0, 0, 2, 3, 4, 6] and window.row.tolist() == [0, 1, 2, 3, 4, 5]
    requests = leaving(steps, evicting("activation-matrix"), sequence)
    assert requests is not None
    assert requests.offset.tolist() == [0, 0, 0, 0, 4, 4, 4] and requests.row.tolist() == [0, 1, 2, 3]
    assert leaving(steps, evicting("lru"), sequence) is None


def summary(capsys: pytest.CaptureFixture[str], *flags: str) -> dict[str, Any]:
    assert main(["--trace", "mixtral.npz", "--max-steps", "40", "--json", *flags]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_hobbit_from_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    """Copies are charged: bytes by precision, slots of their own in the memory line, answers in the summary."""
    fetch = summary(capsys, "--cache", "2")
    found = summary(capsys, "--cache", "2", "--miss", "hobbit", "--set", "hobbit.slots=3", "--set", "hobbit.low=1")
    assert (
        found["low"] > 0
        and found["fetched"] + found["low"] + found["slots_hit"] + found["slots_late"] == (fetch["slots_wanted"])
    )
    full, low = 3 * 4096 * 14336 * 2, found["memory"]["slots"] - fetch["memory"]["slots"]
    assert low % (32 * 3) == 0 and low // (32 * 3) < full // 3
    demands = found["transfers"]["demand"]
    assert demands * (low // 96) < found["h2d_bytes"]["demand"] < demands * full
    assert "open-loop" in json.dumps(found).lower() or found["quality"] is not None


@pytest.mark.parametrize("name", ["layer-distance", "window-score", "activation-matrix"])
def test_the_evictions_run_on_the_sample(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ("--cache", "64", "--cache-scope", "global", "--eviction", name)
    both = [summary(capsys, *flags, "--machine", machine) for machine in ("compiled", "simpy")]
    assert [one.pop("machine") for one in both] == ["compiled", "simpy"]
    assert both[0] == both[1] and both[0]["evictions"] > 0


BAD = [
    (["--miss", "hobbit", "--set", "hobbit.precision=bf16"], "must be fewer than the"),
    (["--miss", "hobbit", "--set", "hobbit.slots=0"], "hobbit.slots"),
    (["--eviction", "window-score", "--set", "window-score.window=0"], "whole number from 1"),
    (["--cache-spread", "marginal", "--calibration", "0.2", "--cache-scope", "global"], "cache_spread"),
]


@pytest.mark.parametrize(("flags", "says"), BAD)
def test_bad_settings(flags: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--trace", "mixtral.npz", *flags]) == 2
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1


def test_fixed_durations_need_their_own_for_copies(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "f.toml"
    fixed = "[fixed]\ndense_ns = 10\nexpert_ns = 5\ntransfer_ns = 100\ndecide_ns = 0\n"
    file.write_text(fixed)
    flags = ["--trace", "mixtral.npz", "--hardware", str(file), "--miss", "hobbit", "--max-steps", "3", "--json"]
    assert main(flags) == 2
    assert "low_transfer_ns" in capsys.readouterr().err
    file.write_text(fixed + "low_transfer_ns = 30\nlow_expert_ns = 2\nlow_bytes = 7\n")
    assert main([*flags, "--set", "hobbit.full=-1", "--set", "hobbit.low=2", "--set", "hobbit.prefill=1"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["fetched"] == 0 and found["low"] > 0
    assert found["link_busy_ns"] == 30 * found["transfers"]["demand"]
    assert found["h2d_bytes"]["demand"] == 7 * found["transfers"]["demand"]


def test_marginal_spread_gives_more_slots_where_they_hit_more(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ("--cache", "3", "--calibration", "0.25")
    even, spread = summary(capsys, *flags), summary(capsys, *flags, "--cache-spread", "marginal")
    assert even["memory"]["slots"] == spread["memory"]["slots"]
    assert even["by_layer"]["hits"] != spread["by_layer"]["hits"]
    assert npz.find("mixtral.npz").exists()
