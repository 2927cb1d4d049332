"""The learned predictor: what it may see, what it learns from routing that can be learned, and what it
writes."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sim.errors import SpecError
from sim.fit.predictors import PREDICTORS
from sim.steps import schedule
from tests.gen import random_trace
from traces.format import npz
from traces.format.trace import RoutingTrace

QUICK: dict[str, Any] = {"distances": 2, "hidden": 16, "history": 2, "epochs": 2}


@pytest.fixture(scope="module")
def made() -> Any:
    """The module runtime.predictor; these tests skip where torch is not installed."""
    pytest.importorskip("torch")
    import runtime.predictor

    return runtime.predictor


def pair(**more: Any) -> tuple[RoutingTrace, RoutingTrace]:
    """A calibration trace and another of the same shape: 4 layers, 6 experts, top-2."""
    shape = {"tokens": 50, "layers": 4, "experts": 6, "requests": 4, "prompt": 0.5} | more
    first, second = (random_trace(np.random.default_rng(seed), **shape) for seed in (1, 2))
    return first, second


def chained(seed: int, tokens: int = 200) -> RoutingTrace:
    """Layer l + 1 wants the successor of what layer l wants; layer 0 the successor of what the token before
    wanted.

    Requests start anywhere, so that which experts are popular tells nothing.
    """
    trace = random_trace(np.random.default_rng(seed), tokens, 4, 6, 1, requests=tokens // 10, prompt=0.0)
    first, ends = trace.requests()
    experts = np.empty((tokens, 4, 1), np.int16)
    begin = np.random.default_rng(seed + 100).integers(0, 6, len(first))
    for start, end, at in zip(first, ends, begin, strict=True):
        experts[start:end, :, 0] = (at + np.arange(end - start)[:, None] + np.arange(4)) % 6
    return RoutingTrace(experts, trace.sequence, trace.position, trace.prefill, trace.meta)


# --- the entry in the registry (no torch) -------------------------------------------------------------------


def test_learned_is_gate_lookahead_on_a_trace_that_a_model_made() -> None:
    plain = random_trace(np.random.default_rng(0), lookahead=3, distances=(1, 2))
    run = replace(plain, meta=plain.meta | {"lookahead_source": "learned: somewhere"})
    steps = schedule(run, batch=2)
    for options in ({}, {"distance": 2, "width": 1}, {"width": 3}):
        p, q = (PREDICTORS[name](**options).predict(run, steps) for name in ("learned", "gate-lookahead"))
        assert np.array_equal(p.lists, q.lists) and np.array_equal(p.row, q.row)
        assert np.array_equal(p.rank_key, q.rank_key)
        assert run.lookahead is not None and p.lists.flags.c_contiguous  # as the core takes them
        assert p.lists.shape[-1] < 3 or np.shares_memory(p.lists, run.lookahead)


@pytest.mark.parametrize(
    "trace",
    [
        random_trace(np.random.default_rng(0)),
        random_trace(np.random.default_rng(0), lookahead_source="learned: but the lists are gone"),
        random_trace(np.random.default_rng(0), lookahead=2),
        random_trace(np.random.default_rng(0), lookahead=2, lookahead_source="gates"),
        random_trace(np.random.default_rng(0), lookahead=2, lookahead_source=7),
    ],
)
def test_learned_refuses_other_lists_and_names_the_command(trace: RoutingTrace) -> None:
    message = (
        "learned: the trace's lookahead is not of a learned model; make one: "
        "python -m runtime.predictor --calibration A.npz --trace B.npz --out B-learned.npz"
    )
    with pytest.raises(SpecError) as raised:
        PREDICTORS["learned"]().predict(trace, schedule(trace))
    assert str(raised.value) == message


def test_lists_for_decode_steps_are_refused_in_a_prefill_step() -> None:
    about = {"lookahead_source": "learned: x", "lookahead_model": {"as_decode": True}}
    run = random_trace(np.random.default_rng(0), prompt=0.5, lookahead=2, **about)
    PREDICTORS["learned"]().predict(run, schedule(run, as_decode=True))
    with pytest.raises(SpecError, match=r"^learned: the lists were made --as-decode and the run has prefill st"):
        PREDICTORS["learned"]().predict(run, schedule(run))


# --- the model ----------------------------------------------------------------------------------------------


def test_what_is_written_is_a_valid_trace_with_lists(made: Any, tmp_path: Path) -> None:
    first, second = pair(missing=0.2)
    found = made.with_predictions(first, second, made.LearnOptions(**QUICK, width=3), "A.npz")
    npz.write(tmp_path / "b.npz", found)
    back = npz.read(tmp_path / "b.npz")  # checks every value
    assert back.lookahead is not None and back.lookahead.shape == (2, 50, 4, 3)
    assert back.lookahead_distances == (1, 2)
    for d in (1, 2):
        assert (back.lookahead[d - 1, :, :d] == -1).all() and (back.lookahead[d - 1, :, d:] >= 0).all()
    assert (np.diff(np.sort(back.lookahead[1, :, 2:]), axis=2) > 0).all()  # nobody twice
    for name in ("experts", "weights", "sequence", "position", "prefill"):
        assert np.array_equal(getattr(back, name), getattr(second, name))
    assert {k: back.meta[k] for k in second.meta} == second.meta
    assert back.meta["lookahead_source"].startswith("learned: ")
    model = back.meta["lookahead_model"]
    assert model["calibration"] == {"name": "A.npz", "content_hash": npz.content_hash(first)}
    assert (model["hidden"], model["epochs"], model["seed"], model["as_decode"]) == (16, 2, 0, False)
    PREDICTORS["learned"](distance=2).predict(back, schedule(back))


def test_the_same_seed_gives_the_same_lists_and_another_one_others(made: Any) -> None:
    first, second = pair()
    a, b, c = (made.with_predictions(first, second, made.LearnOptions(**QUICK, seed=s)).lookahead for s in (3, 3, 4))
    assert np.array_equal(a, b) and not np.array_equal(a, c)


@pytest.mark.parametrize("as_decode", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_no_list_depends_on_the_future(made: Any, as_decode: bool, seed: int) -> None:
    """Routing behind layer `at` of token `cut` is drawn anew: all lists asked for by then stay as they are.

    A list for layer l at distance d is asked for at layer l - d of its own token. In a prefill step every
    token of a layer is routed before any of the next layer: there the cut is the layer, for all tokens of the
    prompt.
    """
    rng = np.random.default_rng(seed)
    first, second = pair(prompt=None)
    options = made.LearnOptions(**QUICK, as_decode=as_decode)
    weights = {d: made.learn(first, d, options) for d in (1, 2)}
    cut, at = int(rng.integers(0, 50)), int(rng.integers(0, 4))
    starts, ends = second.requests()
    side_by_side = np.zeros(50, bool)
    if second.prefill[cut] and not as_decode:
        request = int(np.searchsorted(starts, cut, side="right")) - 1
        side_by_side[starts[request] : ends[request]] = second.prefill[starts[request] : ends[request]]
    rows = np.arange(50)
    last = np.where(rows < cut, 3, np.where(rows == cut, at, -1))  # the last layer routed of each token
    last[side_by_side] = at
    future = np.arange(4) > last[:, None]
    drawn = np.argsort(rng.random((50, 4, 6)), axis=2)[..., :2].astype(np.int16)
    other = replace(second, experts=np.where(future[..., None], drawn, second.experts))
    changed = 0
    for d, networks in weights.items():
        p, q = (made.foretell(trace, networks, d, options) for trace in (second, other))
        asked = np.arange(4) - d <= last[:, None]
        assert np.array_equal(p[asked], q[asked])
        changed += int((p != q).any(axis=2).sum())
    assert changed or not future[:, :-1].any() or cut == 49


def test_a_prompt_token_sees_no_neighbour_and_a_generated_one_does(made: Any) -> None:
    _, second = pair(requests=2, prompt=0.5)
    for as_decode in (False, True):
        before = made.TokenRows.of(second, as_decode).before.tolist()
        for t in range(50):
            known = t > 0 and second.sequence[t] == second.sequence[t - 1]
            assert before[t] == (t - 1 if known and (as_decode or not second.prefill[t]) else -1)


def test_inputs_by_hand(made: Any) -> None:
    experts = np.array([[[0], [1], [2]], [[2], [-1], [0]]], np.int16)
    meta = {"format_version": 1, "model": "m", "n_experts": 3, "top_k": 1, "n_layers": 3, "real": False}
    run = RoutingTrace(
        experts,
        np.zeros(2, np.int32),
        np.arange(2, dtype=np.int32),
        np.zeros(2, bool),
        meta | {"moe_layers": [0, 1, 2]},
    )
    seen, target = made.TokenRows.of(run, False).seen(np.array([0, 1]), 1, 2)
    # layer 1, then 2; tokens 0 and 1: [layer l - 1 | layer l - 2 | the token before at layer l]
    assert seen.int().tolist() == [
        [[1, 0, 0, 0, 0, 0, 0, 0, 0], [0, 0, 1, 0, 0, 0, 0, 1, 0]],
        [[0, 1, 0, 1, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 1, 0, 0, 1]],
    ]
    assert target.int().tolist() == [[[0, 1, 0], [0, 0, 0]], [[0, 0, 1], [1, 0, 0]]]


def test_it_learns_what_can_be_learned(made: Any) -> None:
    first, second = chained(0), chained(1)
    found = made.with_predictions(first, second, made.LearnOptions(distances=3, hidden=64, width=2))
    assert found.lookahead is not None
    for d in (1, 2, 3):
        best = found.lookahead[d - 1, :, d:, 0]
        assert (best == second.experts[:, d:, 0]).mean() > 0.95  # and it is the first of the list
        assert made.recall(found, d) > 0.95
    popular = PREDICTORS["popular"]().fit(first).predict(second, schedule(second))
    right = (popular.lists[0, 0][None] == second.experts)[:, 1:].mean()
    assert right < 0.4  # nothing of it lies in popularity


def test_recall_by_hand(made: Any) -> None:
    run = random_trace(np.random.default_rng(0), lookahead=2, missing=0.3)
    assert run.lookahead is not None
    wanted = [
        (int(e), run.lookahead[0, t, layer].tolist())
        for t in range(run.n_tokens)
        for layer in range(1, 3)
        for e in run.experts[t, layer]
        if e >= 0
    ]
    assert made.recall(run, 1) == pytest.approx(sum(e in guess for e, guess in wanted) / len(wanted))


# --- the command line ---------------------------------------------------------------------------------------


def test_the_command_writes_a_trace_that_a_run_takes(made: Any, tmp_path: Path) -> None:
    for name, trace in zip("ab", pair(), strict=True):
        npz.write(tmp_path / f"{name}.npz", trace)
    files = ["--calibration", "a.npz", "--trace", "b.npz", "--out", "out.npz"]
    command = [sys.executable, "-m", "runtime.predictor", *files, "--distances", "2", "--epochs", "1"]
    root = Path(__file__).resolve().parent.parent
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, env={"PYTHONPATH": str(root), "PATH": ""}
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("out.npz: 50 tokens, learned from 50\ndistance 1: ")
    back = npz.read(tmp_path / "out.npz")
    p = PREDICTORS["learned"](distance=2).predict(back, schedule(back))
    assert p.lists.shape == (2, 50, 4, 2)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"--trace": "a.npz"}, "the calibration trace is the trace itself; other requests are required"),
        (
            {"--trace": "c.npz"},
            "the calibration trace has 4 MoE layers, 6 experts, top-2; the trace has 3 MoE",
        ),
        ({"--trace": "none.npz"}, "none.npz: no such file or shipped sample"),
        ({"--distances": "4"}, "distances is 4; fewer than the trace's 4 MoE layers are required"),
        ({"--epochs": "0"}, "epochs is 0; a whole number from 1 is required"),
        ({"--width": "0"}, "width is 0; a whole number from 1 is required"),
        ({"--seed": "-1"}, "seed is -1; a whole number from 0 to 2^40 is required"),
        ({"--threads": "0"}, "--threads 0: a whole number from 1 is required"),
        (
            {"--hidden": "x"},
            "--hidden: 'x': must be a whole number; see python -m runtime.predictor --help",
        ),
        ({"--out": "b.npz"}, "--out b.npz is an input; another path is required"),
        ({"--out": "no/out.npz"}, "--out no/out.npz: no such folder"),
    ],
)
def test_bad_input_is_one_line(
    made: Any,
    flags: dict[str, str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, trace in zip("ab", pair(), strict=True):
        npz.write(f"{name}.npz", trace)
    npz.write("c.npz", random_trace(np.random.default_rng(0)))
    given = {"--calibration": "a.npz", "--trace": "b.npz", "--out": "out.npz"} | flags
    assert made.main([word for item in given.items() for word in item]) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith(f"error: {message}") and said.err.count("\n") == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.npz", "b.npz", "c.npz"]
