"""The closed loop layer by layer is the closed loop visit by visit, and with fetch it is the unmodified model."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed (extra: runtime)")
pytest.importorskip("tokenizers", reason="tokenizers is not installed (extra: train)")
pytest.importorskip("safetensors", reason="safetensors is not installed (extra: runtime)")

from runtime.closed_loop.by_layer import LayerByLayer, forwarded  # noqa: E402
from runtime.closed_loop.evaluation import captured, means_of, shares  # noqa: E402
from runtime.closed_loop.judged_model import Own, judged_model  # noqa: E402
from runtime.closed_loop.loop import ClosedLoop  # noqa: E402
from runtime.closed_loop.runs import Baseline, judge  # noqa: E402
from runtime.closed_loop.text_windows import text_windows  # noqa: E402
from runtime.small_model.model import FOLDERS  # noqa: E402
from sim.errors import SpecError  # noqa: E402
from sim.outcome.summary import summarise  # noqa: E402
from sim.spec import RunSpec  # noqa: E402

WINDOWS, LENGTH = 3, 40
COMMON: dict[str, Any] = {"trace": "loop", "hardware": "a100-pcie4", "engine": "fused", "engine_as_costs": True}
RUNS: list[dict[str, Any]] = [
    {"miss": "buddy-b", "cache": 0.5},
    {"miss": "matched-random", "cache": 0.375, "seed": 3, "set": {"matched-random.percentile": 15.0}},
    {"miss": "next-ranked", "cache": 0.5, "eviction": "lfu"},
    {"miss": "drop-by-weight", "cache": 0.5, "set": {"drop-by-weight.threshold": 0.2}},
    {"miss": "random", "cache": 0.75, "eviction": "decayed"},
    {"miss": "mean-output", "cache": 0.375, "set": {"mean-output.threshold": 0.3}},
    {"miss": "matched-mean", "cache": 0.5, "set": {"matched-mean.percentile": 15.0}},
    {"rerank": "max-rank", "cache": 0.5, "set": {"max-rank.always": 1, "max-rank.among": 6}},
    {"rerank": "tolerance", "cache": 0.5},
    {"rerank": "cache-prior", "cache": 0.375},
]


@pytest.fixture(scope="module", params=FOLDERS)
def model(request: pytest.FixtureRequest) -> Own:
    found = judged_model(request.param)
    assert isinstance(found, Own)
    torch.set_num_threads(1)
    return found


def inputs(model: Own) -> Any:
    text = text_windows(model.tokens, WINDOWS, LENGTH, 1, lead=model.lead)
    return text, torch.from_numpy(text.tokens[:, :-1])


def test_without_answers_it_is_the_model_bitwise(model: Own) -> None:
    _, tokens = inputs(model)
    with torch.inference_mode():
        assert torch.equal(torch.cat(forwarded(model.model, tokens)), model.model(tokens)[0])


def test_fetch_is_the_model_bitwise_at_every_size(model: Own) -> None:
    _, tokens = inputs(model)
    unmodified = torch.cat(forwarded(model.model, tokens))
    for cache in (0.375, 0.75):
        run = LayerByLayer(RunSpec.of({**COMMON, "cache": cache}), model.shape, WINDOWS, LENGTH - 1)
        assert torch.equal(torch.cat(forwarded(model.model, tokens, run.answer)), unmodified)
        misses = run.record().layer["misses"].sum()
        assert 0 < misses < run.experts.size


@pytest.mark.parametrize("fields", RUNS, ids=lambda fields: "-".join(map(str, fields.values())))
def test_it_is_the_loop_that_goes_visit_by_visit(fields: dict[str, Any], model: Own) -> None:
    """The same routing, answers and counts, to the nanosecond; logits as far as sums in another order agree."""
    text, tokens = inputs(model)
    calibration = captured(model, 2048, 0, None)
    spec = RunSpec.of({**COMMON, **fields})
    means = means_of(model, spec, 2048, None)
    run = LayerByLayer(spec, model.shape, WINDOWS, LENGTH - 1, calibration, means=means)
    logp = torch.cat(forwarded(model.model, tokens, run.answer)).double().log_softmax(-1)
    loop = ClosedLoop(spec, model.shape, calibration, means=means)
    visited = judge(model, text, loop, Baseline(model, text, keep=True))
    assert np.array_equal(run.trace().experts, visited.trace.experts)
    record = run.record()
    mine, other = (summarise(each) for each in (record, visited.record))
    assert {k: mine[k] for k in ("time_ns", "wanted", "misses", "substituted", "dropped")} == {
        k: other[k] for k in ("time_ns", "wanted", "misses", "substituted", "dropped")
    }
    assert mine["substituted"] + mine["dropped"] + run.slots_reranked > 20, "nothing was changed: nothing is tested"
    said = shares(record, run.trace(), (run.slots_reranked, run.weight_reranked))
    assert said == pytest.approx(shares(visited.record, visited.trace, visited.reranked), abs=1e-5)
    targets = torch.from_numpy(text.tokens[:, 1:, None])
    nats = -logp.gather(-1, targets).sum((1, 2)).numpy()
    assert nats == pytest.approx(visited.sums.nats, abs=2e-3)


def test_what_looks_at_other_layers_is_found_out(model: Own) -> None:
    """One pool for all layers: a layer's misses are others once the other layers are asked, too. With fewer slots to a
    layer than a token wants there is not always a stand-in: something is fetched, and another layer's expert goes."""
    _, tokens = inputs(model)
    slots = len(model.shape.moe_layers) * (model.shape.top_k - 1)
    spec = RunSpec.of({**COMMON, "cache": slots, "cache_scope": "global", "miss": "next-ranked"})
    run = LayerByLayer(spec, model.shape, WINDOWS, LENGTH - 1)
    forwarded(model.model, tokens, run.answer)
    with pytest.raises(SpecError, match="is answered otherwise once the others are routed"):
        run.record()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"prefetch": "previous-token"}, "prefetch: previous-token: foretells other layers"),
        ({"rerank": "smoe"}, "rerank: smoe, miss: fetch: layer by layer cache-prior"),
        ({"rerank": "cache-prior", "miss": "drop"}, "rerank: cache-prior, miss: drop"),
        ({"eviction": "belady"}, "eviction belady"),
        ({"miss": "hobbit"}, "miss hobbit"),
    ],
)
def test_what_cannot_be_had_is_refused(fields: dict[str, Any], message: str, model: Own) -> None:
    with pytest.raises(SpecError, match=message):
        LayerByLayer(RunSpec.of({**COMMON, **fields}), model.shape, 1, 4)


def test_an_answer_that_is_not_the_replays_is_found_out(model: Own) -> None:
    """The check of the whole can fail: computed with other answers than the core's, the record is refused."""
    (_, tokens), fitted_on = inputs(model), captured(model, 2048, 0, None)
    run = LayerByLayer(
        RunSpec.of({**COMMON, "cache": 0.5, "miss": "buddy-b"}), model.shape, WINDOWS, LENGTH - 1, fitted_on
    )
    plan = run.setting.plan
    run.setting = replace(run.setting, plan=replace(plan, slots=plan.slots + 1))
    forwarded(model.model, tokens, run.answer)
    with pytest.raises(SpecError, match="layer 0 of 6 is answered otherwise"):
        run.record()
