"""The closed loop: the machine driven visit by visit is the machine; the model computes what it is told."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from traces.errors import UserError

torch = pytest.importorskip("torch", reason="torch is not installed (extra: runtime)")
pytest.importorskip("tokenizers", reason="tokenizers is not installed (extra: train)")
pytest.importorskip("safetensors", reason="safetensors is not installed (extra: runtime)")

from hypothesis import given, settings  # noqa: E402 - after the skips
from hypothesis import strategies as some  # noqa: E402

from runtime import evaluate  # noqa: E402
from runtime.closed_loop import loop, visit_by_visit  # noqa: E402
from runtime.closed_loop.driver import rounded  # noqa: E402
from runtime.closed_loop.evaluation import captured, needs_calibration  # noqa: E402
from runtime.closed_loop.judged_model import TINY, JudgedModel, judged_model  # noqa: E402
from runtime.closed_loop.loop import ClosedLoop  # noqa: E402
from runtime.closed_loop.priced_as import priced_as  # noqa: E402
from runtime.closed_loop.quality import Sums, compared, figures  # noqa: E402
from runtime.closed_loop.routed import ModelShape, ordered_half  # noqa: E402
from runtime.closed_loop.runs import Baseline, free_running, judge, stepwise  # noqa: E402
from runtime.closed_loop.text_windows import TextWindows, is_judged, text_windows  # noqa: E402
from runtime.small_model.model import FOLDERS, KvCache, ModelConfig, MoeDecoder  # noqa: E402
from runtime.small_model.text import read_corpus  # noqa: E402
from sim.errors import SpecError  # noqa: E402
from sim.machines.compiled import run as compiled  # noqa: E402
from sim.prepare import prepare  # noqa: E402
from sim.spec import RunSpec  # noqa: E402
from tests.on_torch import fixed_hardware  # noqa: E402
from traces.format.trace import RoutingTrace  # noqa: E402

SHAPE = ModelShape("unnamed", 4, (0, 1, 2, 3), 12, 3)


@pytest.fixture(scope="module")
def hardware(tmp_path_factory: pytest.TempPathFactory) -> str:
    return fixed_hardware(tmp_path_factory.mktemp("hardware"), cpu_expert_ns=1700)


# --- the machine, with a router that is drawn at random


def said(seed: int, tokens: int) -> tuple[Any, Any, Any]:
    """Logits float32 [T, L, E], ids [T, L, K] best first, weights: what a softmax router says."""
    logits = np.random.default_rng(seed).normal(size=(tokens, 4, 12)).astype(np.float32)
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    ids = np.argsort(-logits, axis=-1)[..., :3]
    chosen = np.take_along_axis(p, ids, axis=-1)
    return logits, ids, chosen / chosen.sum(-1, keepdims=True)


def calibration(seed: int = 9) -> RoutingTrace:
    logits, ids, weights = said(seed, 400)
    each = np.repeat(np.arange(4), 100)
    return RoutingTrace(
        experts=ids.astype(np.int16),
        weights=weights.astype(np.float32),
        logits=logits.astype(np.float16),
        sequence=each.astype(np.int32),
        position=np.tile(np.arange(100), 4).astype(np.int32),
        prefill=np.zeros(400, np.bool_),
        meta=SHAPE.meta(),
    )


def drive(run: ClosedLoop, seed: int, steps: list[tuple[list[int], list[int], bool, Any]]) -> list[Any]:
    """Steps (requests, positions, prefill, then); what was served, visit by visit."""
    logits, ids, weights = said(seed, sum(len(step[0]) for step in steps))
    at, out = 0, []
    for requests, positions, prefill, then in steps:
        rows = slice(at, at + len(requests))
        run.begin(requests, positions, prefill, then)
        out += [run.visit(layer, ids[rows, layer], weights[rows, layer], logits[rows, layer]) for layer in range(4)]
        run.end()
        at += len(requests)
    return out


def one_by_one(requests: int, prompt: int, generated: int) -> list[tuple[list[int], list[int], bool, Any]]:
    """Batch 1: a prompt in one step, then one token a step, request after request."""
    steps: list[tuple[list[int], list[int], bool, Any]] = []
    for r in range(requests):
        following = None if r == requests - 1 else (r + 1,)
        if prompt:
            steps.append(([r] * prompt, list(range(prompt)), True, (r,)))
        for i in range(generated):
            steps.append(([r], [prompt + i], False, (r,) if i < generated - 1 else following))
    return steps


RUNS: list[dict[str, Any]] = [
    {},
    {"miss": "buddy", "cache": 0.4},
    {"miss": "buddy-first-fit", "rerank": "cache-prior", "set": {"cache-prior.strength": 0.2}},
    {"miss": "matched-next-ranked", "prefetch": "previous-token", "set": {"previous-token.distance": 3}},
    {"miss": "next-ranked", "prefetch": "popular", "set": {"popular.distance": 2}, "prefetch_budget": 1},
    {"prefetch": "transition", "set": {"transition.distance": 2}, "transfer_order": "probability"},
    {"miss": "drop", "rerank": "max-rank", "set": {"max-rank.among": 6, "drop.prefill": 1}},
    {"rerank": "cache-prior-mass", "set": {"cache-prior-mass.mass": 0.6}},
    {"rerank": "tolerance", "miss": "drop"},
    {"miss": "random", "eviction": "random", "seed": 5},
    {"miss": "fiddler", "eviction": "lfu", "expert_group": "ready"},
    {"miss": "mixed", "cache_scope": "global", "cache": 17, "expert_group": "all", "eviction": "decayed"},
    {"eviction": "window-score", "set": {"window-score.window": 3}, "miss": "buddy", "prefetch": "previous-token"},
    {"eviction": "activation-matrix", "cache_scope": "global", "cache": 11},
    {"miss": "hobbit", "set": {"hobbit.slots": 2, "hobbit.full": 0.3}, "cache": 3, "eviction": "layer-distance"},
    {"rerank": "adapmoe", "set": {"adapmoe.threshold": 0.04}, "warmup_steps": 3},
]


@pytest.mark.parametrize("fields", RUNS, ids=lambda fields: "-".join(map(str, fields.values())) or "fetch")
@pytest.mark.parametrize("prompt", [0, 5])
def test_what_went_by_replayed_is_the_same_record(
    fields: dict[str, Any], prompt: int, hardware: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Event by event, by the compiled machine that had the whole routing beforehand; room grows on the way."""
    monkeypatch.setattr(loop, "FIRST_ROOM", 2)
    spec = RunSpec.of({"trace": "loop", "hardware": hardware, **fields})
    run = ClosedLoop(spec, SHAPE, calibration(), keep_logits=True)
    drive(run, 3, one_by_one(3, prompt, 9))
    record, trace = run.record(), run.trace()
    beforehand = spec.model_copy(update={"calibration": "of the test"})
    want = compiled(prepare(beforehand, trace=trace, calibration=calibration()).plan, full=True)
    assert record.counters == want.counters
    for kind in ("steps", "layer", "requests", "tokens"):
        for name, column in getattr(want, kind).items():
            assert np.array_equal(getattr(record, kind)[name], column), f"{kind}.{name}"
    for kind, columns in want.groups.items():
        assert len(next(iter(columns.values()))) or kind in ("answers", "transfers")
        for name, column in columns.items():
            assert np.array_equal(record.groups[kind][name], column), f"{kind}.{name}"


def test_a_batch_is_that_of_a_replay(hardware: str) -> None:
    spec = RunSpec.of({"trace": "loop", "hardware": hardware, "cache": 5, "miss": "next-ranked", "batch": 3})
    run = ClosedLoop(spec, SHAPE)
    steps = [([0, 1, 2], [i] * 3, False, None if i == 7 else (0, 1, 2)) for i in range(8)]
    drive(run, 4, steps)
    record, trace = run.record(), run.trace()
    assert trace.sequence.tolist() == [0] * 8 + [1] * 8 + [2] * 8 and trace.position.tolist() == [*range(8)] * 3
    want = compiled(prepare(spec, trace=trace).plan, full=True)
    assert record.counters == want.counters and record.counters["substituted"] > 0
    for name, column in want.groups["visits"].items():
        assert np.array_equal(record.groups["visits"][name], column), name


def test_what_is_served_is_what_was_answered(hardware: str) -> None:
    """By hand: two slots hold experts 0 and 1; the router wants 0, 5 and 7 in an order of its own."""
    spec = RunSpec.of({"trace": "loop", "hardware": hardware, "cache": 2, "miss": "next-ranked"})
    run = ClosedLoop(spec, SHAPE)
    run.begin([0], [0], False)
    logits = np.full((1, 12), -5.0)
    logits[0, [5, 0, 7, 1]] = [3.0, 2.0, 1.0, 0.5]
    got = run.visit(0, np.array([[7, 5, 0]]), np.array([[0.2, 0.5, 0.3]], np.float32), logits)
    # the heaviest slot chooses first: 5 -> 1; nobody is left for 7, which is fetched
    assert got.ids.tolist() == [[7, 1, 0]]
    assert got.answers.tolist() == [[visit_by_visit.FETCH, visit_by_visit.SUBSTITUTE, visit_by_visit.HIT]]
    assert got.weights is None and not got.untouched
    # both residents are held; when the first has run the GPU takes the second, and 7 the slot that is free
    assert got.ops == [
        visit_by_visit.Computed((1,)),
        visit_by_visit.Computed((0,)),
        visit_by_visit.Committed(7, 1),
        visit_by_visit.Computed((7,)),
    ]


@given(some.integers(0, 2**32 - 1), some.integers(2, 40), some.floats(0.001, 100))
@settings(max_examples=60)
def test_half_precision_logits_keep_their_order(seed: int, n: int, scale: float) -> None:
    rng = np.random.default_rng(seed)
    logits = rng.choice(rng.normal(0, scale, n).astype(np.float32), (3, n)) + rng.choice([0, 1e-6], (3, n))
    ids = np.argsort(-logits, axis=1, kind="stable")[:, : n // 2 + 1]
    ids[0] = ids[0][::-1]  # a router's own order of slots does not matter
    half = ordered_half(logits.astype(np.float64), ids).astype(np.float64)
    chosen = np.zeros(logits.shape, np.bool_)
    np.put_along_axis(chosen, ids, True, axis=1)
    for row in range(3):
        for i in range(n):
            above = logits[row] > logits[row, i]
            assert (half[row][above] > half[row, i]).all()
            tied = (logits[row] == logits[row, i]) & (np.arange(n) != i)
            assert not chosen[row, i] or (half[row][tied & ~chosen[row]] <= half[row, i]).all()
    assert np.abs(half - logits).max() <= 2e-3 * n * max(1e-6, np.abs(logits).max())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"eviction": "belady"}, "eviction: belady: reads the future"),
        ({"speculate": 2}, "speculate: 2: a closed loop's model says one token after another"),
        ({"prefetch": "oracle"}, "prefetch: oracle: reads the future; a closed loop has previous-token, popular"),
        ({"prefetch": "learned"}, "prefetch: learned: is made from a whole trace"),
        ({"prefetch": "popular"}, "popular: is fitted and needs --calibration"),
        (
            {"prefetch": "previous-token", "set": {"previous-token.distance": 9}},
            "distance 9; the model has 4 MoE layers",
        ),
        ({"prefetch": "map-store"}, "prefetch: map-store: "),
        ({"miss": "speculate"}, "speculate: needs `lookahead`, which loop does not have"),
        ({"miss": "buddy"}, "buddy: is fitted and needs --calibration"),
        ({"set": {"lru.x": 1}}, "set: parameter of lru: 'x' is unknown; known: atomic, ties, touches"),
        ({"set": {"random.x": 1}}, "set: random.x: must be POLICY.PARAM"),
    ],
)
def test_what_a_closed_loop_does_not_have_is_refused_by_name(
    fields: dict[str, Any], message: str, hardware: str
) -> None:
    with pytest.raises(SpecError) as refused:
        ClosedLoop(RunSpec.of({"trace": "loop", "hardware": hardware, **fields}), SHAPE)
    assert message in str(refused.value) and "\n" not in str(refused.value)


def test_a_router_that_does_not_choose_by_logit_is_not_re_ranked(hardware: str) -> None:
    spec = RunSpec.of({"trace": "loop", "hardware": hardware, "rerank": "cache-prior"})
    logits, ids, weights = said(1, 1)
    for wrong in ((ids[0], weights[0] * 2.5), (np.roll(ids[0], 3, axis=1) * 0 + [[9, 10, 11]], weights[0])):
        run = ClosedLoop(spec, SHAPE)
        run.begin([0], [0], False)
        with pytest.raises(SpecError, match="cache-prior: takes the router for a softmax"):
            run.visit(0, wrong[0][:1], wrong[1][:1], logits[0, :1] * 0.01 - wrong[0].sum() * 0)


# --- the model


@pytest.fixture(scope="module")
def tiny() -> JudgedModel:
    return judged_model(TINY)


@pytest.fixture(scope="module")
def judged(tiny: JudgedModel) -> TextWindows:
    return text_windows(tiny.tokens, 2, 14, 0, lead=tiny.lead)


@pytest.fixture(scope="module")
def fitted_on(tiny: JudgedModel) -> RoutingTrace:
    return captured(tiny, 512, 0, None)


def test_decoding_with_a_cache_equals_the_whole_pass() -> None:
    model = MoeDecoder(ModelConfig(vocab_size=300, hidden_size=32, num_hidden_layers=2, num_attention_heads=2))
    tokens = torch.randint(0, 300, (3, 20), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole, _ = model(tokens)
        for cuts in ([1] * 20, [7, 1, 12], [20]):
            cache = KvCache(model, 3)
            parts = [model(part, cache)[0] for part in tokens.split(cuts, dim=1)]
            assert cache.length == 20
            torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=1e-4, atol=1e-5)


def run_of(tiny: JudgedModel, text: TextWindows, fitted: RoutingTrace | None, **fields: Any) -> Any:
    spec = RunSpec.of({"trace": TINY, **fields})
    base = Baseline(tiny, text, keep=True)
    loop_ = ClosedLoop(
        spec, tiny.shape, fitted, priced_as(tiny.model, tiny.shape, "deepseek-v2-lite"), keep_logits=True
    )
    return base, judge(tiny, text, loop_, base), loop_


@pytest.mark.parametrize(
    "fields",
    [
        {"cache": 3},
        {"cache": 0.3, "prefetch": "gate-lookahead", "set": {"gate-lookahead.distance": 2}, "eviction": "lfu"},
        {"cache": 4, "miss": "cpu"},
        *({"cache": 1.0, "miss": name} for name in (
            "buddy", "buddy-b", "buddy-first-fit", "matched-random", "matched-next-ranked", "matched-drop",
            "next-ranked", "random", "drop", "drop-by-weight", "hobbit",
        )),
        {"cache": 1.0, "rerank": "cache-prior"},
        {"cache": 1.0, "rerank": "max-rank"},
        {"cache": 1.0, "rerank": "cache-prior-mass"},
        {"cache": 1.0, "rerank": "tolerance"},
        {"cache": 1.0, "rerank": "smoe"},
    ],
    ids=lambda fields: "-".join(map(str, fields.values())),
)  # fmt: skip
def test_what_takes_nothing_away_changes_no_bit(
    fields: dict[str, Any], tiny: JudgedModel, judged: TextWindows, fitted_on: RoutingTrace
) -> None:
    loop_ = ClosedLoop(RunSpec.of({"trace": TINY, **fields}), tiny.shape, fitted_on, priced_as(tiny.model, tiny.shape))
    tokens = torch.from_numpy(judged.tokens[0])
    with tiny.looped(loop_) as driver:
        assert torch.equal(stepwise(tiny, tokens, driver), stepwise(tiny, tokens))
    record = loop_.record()
    assert record.counters["slots_wanted"] == 13 * 6 * 4
    assert (record.layer["misses"].sum() > 0) == (fields["cache"] != 1.0)


@pytest.mark.parametrize("name", FOLDERS)
def test_fetch_step_by_step_is_the_model_bitwise(name: str) -> None:
    own = judged_model(name)
    loop_ = ClosedLoop(RunSpec.of({"trace": name, "cache": 0.375}), own.shape, None, priced_as(own.model, own.shape))
    tokens = torch.from_numpy(text_windows(own.tokens, 1, 40, 0, lead=own.lead).tokens[0])
    with own.looped(loop_) as driver:
        assert torch.equal(stepwise(own, tokens, driver), stepwise(own, tokens))
    assert loop_.record().layer["misses"].sum() > 0


def test_open_loop_is_closed_loop_for_fetch_and_not_for_a_lossy_policy(
    tiny: JudgedModel, judged: TextWindows, fitted_on: RoutingTrace
) -> None:
    _, unmodified, loop_ = run_of(tiny, judged, fitted_on, cache=0.375)
    spec = RunSpec.of({"trace": TINY, "cache": 0.375, "as_decode": True})
    model = loop_.setting.model
    replay = compiled(prepare(spec, trace=unmodified.trace, calibration=fitted_on, model=model).plan)
    assert replay.counters == unmodified.record.counters
    _, lossy, _ = run_of(tiny, judged, fitted_on, cache=0.375, miss="next-ranked")
    again = RunSpec.of({**spec.model_dump(), "miss": "next-ranked"})
    replayed = compiled(prepare(again, trace=unmodified.trace, calibration=fitted_on, model=model).plan)
    assert replayed.counters["substituted"] != lossy.record.counters["substituted"] > 0
    assert not np.array_equal(lossy.trace.experts, unmodified.trace.experts)
    assert np.array_equal(lossy.trace.experts[0, 0], unmodified.trace.experts[0, 0])  # nothing had changed yet
    assert (lossy.sums.kl > 0).all() and (unmodified.sums.kl == 0).all()


def test_a_stand_in_is_what_the_model_computes(tiny: JudgedModel, judged: TextWindows, fitted_on: RoutingTrace) -> None:
    """Against the same model whose routers' choice is replaced by what was served, without any loop."""
    loop_ = ClosedLoop(
        RunSpec.of({"trace": TINY, "cache": 0.3, "miss": "buddy-first-fit"}), tiny.shape, fitted_on,
        priced_as(tiny.model, tiny.shape),
    )  # fmt: skip
    served: list[Any] = []
    visit = loop_.visit
    loop_.visit = lambda *a, **k: served.append(visit(*a, **k)) or served[-1]  # type: ignore[func-returns-value, method-assign, assignment]
    tokens = torch.from_numpy(judged.tokens[0])
    with tiny.looped(loop_) as driver:
        got = stepwise(tiny, tokens, driver)
    answers = iter(served)
    hooks = [
        layer.mlp.experts.register_forward_pre_hook(
            lambda _m, args: (args[0], torch.from_numpy(next(answers).ids), args[2])
        )
        for layer in tiny.model.layers
    ]
    want = stepwise(tiny, tokens)
    for hook in hooks:
        hook.remove()
    assert torch.equal(got, want) and not torch.equal(got, stepwise(tiny, tokens))


def test_a_low_precision_copy_is_computed_with_rounded_weights(tiny: JudgedModel, judged: TextWindows) -> None:
    experts = tiny.model.layers[0].mlp.experts  # type: ignore[union-attr, index]
    coarse, fine = (rounded(experts.down_proj.data, precision) for precision in ("q4", "q8"))
    whole = experts.down_proj.data
    errors = [float((w - whole).norm() / whole.norm()) for w in (coarse, fine)]
    assert 0.05 < errors[0] < 0.15 and errors[1] < 0.01 and coarse.shape == experts.down_proj.shape
    assert len(coarse.flatten()[:32].unique()) <= 15
    kl = []
    for precision in ("q8", "q4"):
        given = {"hobbit.precision": precision, "hobbit.full": -1.0, "hobbit.low": 1.0, "hobbit.slots": 32}
        _, run, _ = run_of(tiny, judged, None, cache=1, miss="hobbit", set=given)
        assert run.record.counters["low"] > 0.8 * run.record.counters["slots_wanted"] > 0
        assert run.record.counters["dropped"] == 0
        kl.append(run.sums.kl.sum() / run.sums.tokens.sum())
    assert 0 < kl[0] < 0.01 * kl[1] < 0.01


def test_free_running_with_fetch_generates_the_same(
    tiny: JudgedModel, judged: TextWindows, fitted_on: RoutingTrace
) -> None:
    spec = RunSpec.of({"trace": TINY, "cache": 3})
    facts = free_running(tiny, judged, ClosedLoop(spec, tiny.shape, None, priced_as(tiny.model, tiny.shape)))
    assert facts["same_tokens"] == facts["same_generations"] == 1.0
    assert facts["tokens_until_first_difference"] == facts["generated_tokens"] == 7
    assert facts["perplexity_of_own"] == facts["perplexity_of_modified"]
    assert facts["h2d_bytes"] > 0 and facts["tpot_ms"] > 0


# --- quality


def test_compared_by_hand() -> None:
    base, other = (
        torch.log(torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1]])),
        torch.log(torch.tensor([[0.25, 0.5, 0.25], [0.1, 0.8, 0.1]])),
    )
    both = torch.stack([base, base]), torch.stack([other, base])  # the second sequence is the same twice
    found = compared(*both, torch.tensor([[0, 1], [2, 1]]), np.array([5, 6]))
    assert found.base_nats == pytest.approx([-np.log(0.5) - np.log(0.8), -np.log(0.25) - np.log(0.8)])
    assert found.nats == pytest.approx([-np.log(0.25) - np.log(0.8), -np.log(0.25) - np.log(0.8)])
    assert found.kl == pytest.approx([0.5 * np.log(2) - 0.25 * np.log(2), 0.0]) and found.kl[1] == 0
    assert (found.base_right.tolist(), found.right.tolist(), found.agree.tolist()) == ([2, 1], [1, 1], [1, 2])
    assert (found.tokens.tolist(), found.n_bytes.tolist()) == ([2, 2], [5, 6])
    assert found.by(np.array([1, 1]), 3)["tokens"] == [0, 4, 0]


def test_intervals_are_paired_seeded_and_hold_the_value() -> None:
    rng = np.random.default_rng(0)
    base = rng.normal(300, 60, 40)
    sums = Sums(
        *(np.full(40, each) for each in (100.0, 300.0)),
        base,
        base + rng.normal(5, 1, 40),
        *(np.full(40, each) for each in (1.0, 50.0, 49.0, 90.0)),
    )
    found, again = figures(sums, 3), figures(sums, 3)
    assert found == again != figures(sums, 4)
    assert all(f["low"] <= f["value"] <= f["high"] for f in found.values())
    delta, level = found["bits_per_byte_delta"], found["bits_per_byte"]
    assert delta["high"] - delta["low"] < 0.1 * (level["high"] - level["low"])  # what texts share is not in it
    assert found["accuracy_delta"] == {"value": -0.01, "low": -0.01, "high": -0.01}


# --- text


def test_judged_and_calibrating_files_are_apart_and_held_out(tiny: JudgedModel) -> None:
    files = read_corpus().heldout
    both = [sum(is_judged(f.path) == side for f in files) for side in (True, False)]
    assert min(both) > len(files) // 4
    one, other = (text_windows(tiny.tokens, 4, 20, 0, judged=side, lead=tiny.lead) for side in (True, False))
    assert not set(map(tuple, one.tokens.tolist())) & set(map(tuple, other.tokens.tolist()))
    spelt = [tiny.tokens.tokenizer.decode(row[1:]).encode() for row in one.tokens.tolist()]  # type: ignore[attr-defined]
    assert [len(text) for text in spelt] == one.n_bytes.tolist()
    assert np.array_equal(one.tokens, text_windows(tiny.tokens, 4, 20, 0, lead=tiny.lead).tokens)
    assert not np.array_equal(one.tokens, text_windows(tiny.tokens, 4, 20, 1, lead=tiny.lead).tokens)
    with pytest.raises(UserError, match="passages of 256 tokens; 99999 are asked for"):
        text_windows(tiny.tokens, 99999, 256, 0)


def test_only_what_is_fitted_is_calibrated() -> None:
    for fields, fitted in (
        ({}, False),
        ({"miss": "buddy"}, True),
        ({"miss": "random"}, False),
        ({"prefetch": "transition"}, True),
        ({"placement": "popular"}, True),
        ({"miss": "similarity", "set": {"similarity.percentile": 15.0}}, True),
        ({"cache_spread": "marginal"}, True),
    ):
        assert needs_calibration(RunSpec.of({"trace": "x", **fields})) is fitted


# --- the command


def test_the_command_prints_one_object_and_keeps_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [
        "--sequences",
        "2",
        "--length",
        "8",
        "--miss",
        "buddy-b",
        "--set",
        "buddy-b.rho=2",
        "--calibration-tokens",
    ]
    assert evaluate.main([*command, "512", "--out", str(tmp_path), "--json", "--charge", "deepseek-v2-lite"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result == json.loads((tmp_path / "evaluation.json").read_text())
    assert result["loop"] == "closed" and result["batch"] == 1 and result["calibration_tokens"] == 512
    assert result["spec"]["set"] == {"buddy-b.rho": 2} and result["spec"]["miss"] == "buddy-b"
    assert result["charged"] == "deepseek-v2-lite layers in the counts of tiny-moe"
    assert set(result["quality"]) >= {"perplexity", "bits_per_byte_delta", "accuracy", "kl_nats", "agreement"}
    assert 0 < result["shares"]["substituted_slots"] <= 0.5 and result["speed"]["time_ns_per_token"] > 0
    from traces.format import npz

    assert npz.read(tmp_path / "routed.npz").n_tokens == 14


def test_the_command_says_what_is_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate.main(["--sequences", "1", "--length", "4", "--cache", "1.0"]) == 0
    out = capsys.readouterr().out
    assert "CLOSED LOOP, batch 1" in out and "kl_nats" in out and "simulated on a100-pcie4" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "tiny-mo"], "model: tiny-mo: no such folder"),
        (["--length", "2"], "--length is 2; it must be at least 3"),
        (["--length", "999"], "--length is 999; the model has 256 positions"),
        (["--miss", "budy"], "did you mean"),
        (["--calibration", "0.5"], "calibration: a fraction"),
        (["--text", "/nowhere.txt"], "/nowhere.txt"),
        (["--batch", "4"], "--batch"),
        (["--charge", "nobody"], "not in the catalog"),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate.main(arguments) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1 and message in err
