"""Which cases: the capacities that a link is calibrated at, and long requests chained of short ones."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.measuring.cases import (
    CALIBRATING_PROMPT,
    JUDGED_PROMPT,
    BenchLink,
    Traces,
    apart,
    calibrating,
    chain,
    long_prompts,
)
from runtime.measuring.durations import LANDED, simulated, transfers_of
from runtime.measuring.judged import longest_prompt
from sim.core.plan import CAUSES
from sim.spec import slots_of
from tests.test_validate import MODEL
from traces.format import npz
from traces.format.check import validate
from traces.format.trace import split
from traces.synthetic import Preset, generate


@pytest.mark.parametrize(
    ("judged", "experts", "expected"),
    [
        ([2, 4, 6, 8], 8, (3, 7)),  # the middles
        ([0.25, 0.5, 0.9, 1.0], 8, (3, 6)),  # 2, 4, 7, 8: 7.5 lies between judged ones, 6 is the nearest free
        ([16, 32, 48, 64], 64, (24, 56)),
        ([4, 7, 8], 8, (5, 6)),  # 5.5 and 7.5; of two alike the first takes the smaller
        ([6, 7], 8, (4, 5)),  # 8 is no choice: nothing crosses the link there
        ([3, 5], 8, (4, 6)),  # one middle: 4, then 2 or 6, and the second takes the larger
        ([5], 8, (4, 6)),
        ([1, 2, 3, 4], 8, (5, 6)),
        ([1, 2, 3, 4, 5, 6, 8], 8, (6, 7)),  # one is free: the other is judged
        ([1, 2, 3, 4], 4, (1, 3)),  # none is free: nearest to 1.5 and to 3.5
        ([1, 2], 2, (1, 1)),
        ([9], 8, (6, 7)),  # whoever asks for more than there are is told so elsewhere
    ],
)
def test_capacities_to_calibrate_at_by_hand(judged: list[Any], experts: int, expected: tuple[int, int]) -> None:
    assert apart(judged, experts) == expected


@given(st.integers(3, 70), st.data())
def test_what_is_calibrated_is_not_judged_as_long_as_others_are_free(experts: int, data: st.DataObject) -> None:
    sizes = st.one_of(st.integers(1, experts), st.floats(0.01, 1.0))
    judged = data.draw(st.lists(sizes, min_size=1, max_size=12))
    small, large = apart(judged, experts)
    assert 1 <= small < large < experts
    taken = {slots_of(cache, experts) for cache in judged}
    free = set(range(1, experts)) - taken
    assert len({small, large} & taken) == max(0, 2 - len(free))


def recording(folder: Path) -> Path:
    """A trace of four short requests, with weights and a lookahead, beside its model."""
    (folder / "tiny.toml").write_text(MODEL)
    preset = Preset("tiny", 8, 2, 4, tuple(range(4)), requests=4, noise=(0.24,), prompt=(5, 9), generation=(10, 20))
    npz.write(folder / "t.npz", generate(preset, 0))
    return folder / "t.npz"


def test_what_calibrates_sees_demands_at_one_capacity_and_prefetches_at_the_other(tmp_path: Path) -> None:
    recording(tmp_path)
    traces = Traces.of(str(tmp_path / "t.npz"), 0.5, 0, tmp_path, 1)
    common = {"model": str(tmp_path / "tiny.toml"), "as_decode": True, "warmup_steps": 1}
    seen = []
    for case in calibrating(BenchLink("link"), apart([2, 7, 8], 8), [1]):
        run = simulated(traces.setting(case, common, "a100-pcie4"))
        sent, transfers = run.record.groups["transfers"], transfers_of(run)
        landed = sent["cause"][sent["outcome"] == LANDED]
        seen.append((case.fields["cache"], *(int((landed == CAUSES.index(c)).sum()) for c in ("demand", "prefetch"))))
        assert len(transfers.gap_ns) > 10 and len(transfers.idle_ns) > 10
    (small, demands, none), (large, _, prefetches) = seen
    assert (small, large) == (4, 6) and demands > 10 < prefetches and none == 0


def test_short_requests_are_chained_to_one_long_prompt(tmp_path: Path) -> None:
    trace = npz.read(recording(tmp_path))
    one, n = chain(trace, 200, 8), trace.n_tokens
    validate(one)
    assert one.n_tokens == 208 > 2 * n and len(one.requests()[0]) == 1
    assert (one.position == np.arange(208)).all() and (np.flatnonzero(one.prefill) == np.arange(200)).all()
    for again in (0, n):  # the same rows twice over
        assert (one.experts[again : again + n] == trace.experts).all()
        assert one.lookahead is not None and trace.lookahead is not None
        assert (one.lookahead[:, again : again + n] == trace.lookahead).all()


@pytest.mark.parametrize("calibrates", [False, True])
def test_a_long_prompt_runs_in_prefill_steps_of_its_own_requests(tmp_path: Path, calibrates: bool) -> None:
    trace = npz.read(recording(tmp_path))
    traces = Traces.of(str(tmp_path / "t.npz"), 0.5, 0, tmp_path, 1)
    case = long_prompts(BenchLink("link"), [3], calibrates)[0]
    common = {"model": str(tmp_path / "tiny.toml"), "as_decode": True, "max_steps": 4, "warmup_steps": 1}
    setting = traces.setting(case, common, "a100-pcie4")
    # 1,280 = 2 x 512 + 256 and 1,600 = 3 x 512 + 64 rows, then 8 decode steps
    rows = [512, 512, 512, 64] if calibrates else [512, 512, 256]
    assert np.diff(setting.plan.step_offset).tolist() == [*rows, *[1] * 8]
    assert setting.plan.step_prefill.tolist() == [True] * len(rows) + [False] * 8
    assert longest_prompt(setting) == sum(rows) == (CALIBRATING_PROMPT if calibrates else JUDGED_PROMPT)
    assert setting.context == sum(rows) + 8 > 1000
    own = split(trace, 0.5, 0)[0 if calibrates else 1]
    assert (setting.trace.experts[: own.n_tokens] == own.experts).all()
    plain = replace(case, chained=False, fields={"cache": 3, "batch": 1})
    assert longest_prompt(traces.setting(plain, common, "a100-pcie4")) == 0
    assert case.name.endswith("lru, cache 3, batch 1, chained prompt") and plain.name != case.name
