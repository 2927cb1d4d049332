"""The recorder against what Hugging Face models say themselves, and against the same requests run in another way."""

from typing import Any

import numpy as np
import pytest

from tests.tiny_models import COMMON, FAMILIES, GREEDY, build, prompts, torch, transformers  # skips without them
from traces.capturing.recorder import Recorder
from traces.capturing.routers import find_moe_layers
from traces.errors import UserError
from traces.format.check import validate
from traces.format.trace import RoutingTrace

Recorded = dict[str, np.ndarray]
SCORES = {"deepseek-v3": "sigmoid", "glm4-moe": "sigmoid", "gpt-oss": "softmax-topk", "phimoe": "other"}
NORMALISED = {"mixtral": True, "qwen2-moe": False, "deepseek-v2": False, "deepseek-v3": True, "gpt-oss": True}


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> tuple[str, Any]:
    return request.param, build(request.param)


@pytest.fixture(scope="module")
def qwen() -> Any:
    return build("qwen3-moe")


def recorded(model: Any, ids: Any, n: int = 6, **options: Any) -> RoutingTrace:
    """A trace of greedy generation from prompts [B, P]."""
    with Recorder(model) as recorder:
        recorder_generate(model, ids, n, **options)
    return recorder.trace()


def recorder_generate(model: Any, ids: Any, n: int, **options: Any) -> Any:
    return model.generate(ids, max_new_tokens=n, **{"attention_mask": (ids != 1).long(), **GREEDY, **options})


def of(trace: RoutingTrace, request: int) -> Recorded:
    rows = trace.sequence == request
    return {n: a[:, rows] if n == "lookahead" else a[rows] for n, a in trace.arrays().items() if n != "sequence"}


def same(a: Recorded, b: Recorded) -> None:
    """Equal routing, and what rounds differently in another batch nearly equal."""
    for name in ("position", "prefill", "token_ids", "experts", "lookahead"):
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)
    for name in ("weights", "logits"):
        np.testing.assert_allclose(a[name].astype(np.float32), b[name].astype(np.float32), rtol=5e-3, atol=5e-3)


def alone(model: Any, tokens: np.ndarray, prompt: int) -> Recorded:
    """The same tokens in one forward pass of their own."""
    with Recorder(model) as recorder, torch.no_grad():
        recorder.begin(prompt_lengths=prompt)
        model(torch.from_numpy(tokens[None].astype(np.int64)))
    return of(recorder.trace(), 0)


# --- each family against what it says itself


def test_logits_are_those_that_the_model_puts_out(family: tuple[str, Any]) -> None:
    _, model = family
    ids = prompts(2, 9)
    with Recorder(model) as recorder, torch.no_grad():
        out = model(ids, output_router_logits=True)
    trace = recorder.trace()
    told = [t for t in out.router_logits] if "router_logits" in out else gate_outputs(model, ids)
    for place, logits in enumerate(told):
        found = trace.logits[:, place].astype(np.float32)
        np.testing.assert_allclose(found, logits.float().numpy().reshape(18, -1), rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("name", FAMILIES)
def test_ids_and_weights_follow_from_the_logits_by_the_familys_formula(name: str) -> None:
    """Section by section of each family's router, spelt in numpy over the logits that were recorded."""
    model = build(name, seed=3)
    with Recorder(model) as recorder, torch.no_grad():
        model(prompts(4, 16))
    trace = recorder.trace()
    layers = find_moe_layers(model)
    for place, layer in enumerate(layers):
        bias = getattr(layer.router, "e_score_correction_bias", None)
        logits = trace.logits[:, place].astype(np.float64)
        ids, weights = chosen(name, logits, trace.top_k, None if bias is None else bias.numpy())
        dense = np.zeros((2, *logits.shape))
        np.put_along_axis(dense[0], ids, weights, axis=1)
        np.put_along_axis(dense[1], trace.experts[:, place].astype(np.int64), trace.weights[:, place], axis=1)
        # Where float16 logits tie, or lie at PhiMoE's threshold, a token may differ.
        assert np.isclose(*dense, rtol=0.02, atol=2e-3).all(axis=1).mean() >= 0.95


def chosen(name: str, logits: np.ndarray, k: int, bias: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """(ids, weights) [N, K] of a family's router from its raw logits [N, E]."""
    softmax = np.exp(logits - logits.max(axis=1, keepdims=True))
    softmax /= softmax.sum(axis=1, keepdims=True)
    if name == "phimoe":
        return sparsemixer(logits)
    if name in ("deepseek-v3", "glm4-moe"):
        scores = 1 / (1 + np.exp(-logits))
        choice = grouped(scores + bias, lambda group: np.sort(group, axis=2)[:, :, -2:].sum(axis=2))
    elif name == "deepseek-v2":
        scores, choice = softmax, grouped(softmax, lambda group: group.max(axis=2))
    else:
        scores = choice = softmax
    ids = np.argsort(-choice, axis=1, kind="stable")[:, :k]
    weights = np.take_along_axis(scores, ids, axis=1)
    if NORMALISED.get(name, name == "glm4-moe"):
        weights = weights / weights.sum(axis=1, keepdims=True)
    return ids, weights * {"deepseek-v3": 2.5}.get(name, 1.0)


def grouped(scores: np.ndarray, of_group: Any) -> np.ndarray:
    """-inf outside the best 2 of 4 groups."""
    parts = scores.reshape(len(scores), 4, -1)
    best = np.argsort(-of_group(parts), axis=1)[:, :2]
    keep = np.zeros((len(scores), 4), bool)
    np.put_along_axis(keep, best, True, axis=1)
    return np.where(keep[:, :, None], parts, -np.inf).reshape(scores.shape)


def sparsemixer(logits: np.ndarray, jitter: float = 0.01) -> tuple[np.ndarray, np.ndarray]:
    """PhiMoE: twice the best, its weight a softmax over those within 2 x jitter of it."""
    ids, weights, left = [], [], logits.copy()
    for _ in range(2):
        top = left.max(axis=1, keepdims=True)
        far = (top - logits) / np.maximum(np.abs(logits), top) > 2 * jitter
        odds = np.where(far | np.isinf(left), 0, np.exp(logits - top))
        ids.append(left.argmax(axis=1))
        weights.append(np.take_along_axis(odds, ids[-1][:, None], axis=1)[:, 0] / odds.sum(axis=1))
        np.put_along_axis(left, ids[-1][:, None], -np.inf, axis=1)
    return np.stack(ids, axis=1), np.stack(weights, axis=1)


def gate_outputs(model: Any, ids: Any) -> list[Any]:
    """Router logits from a router module called again with what it was called with."""
    seen: list[Any] = []
    gates = [layer.router for layer in find_moe_layers(model)]
    hooks = [g.register_forward_pre_hook(lambda m, args: seen.append((m, args[0].clone()))) for g in gates]
    with torch.no_grad():
        model(ids)
        for hook in hooks:
            hook.remove()
        return [gate(hidden)[0] for gate, hidden in seen]


def test_ids_and_weights_are_what_the_experts_are_given(family: tuple[str, Any]) -> None:
    """A dense recomputation: every token's weight of every expert, from the call of the experts itself."""
    _, model = family
    ids, dense = prompts(2, 9), []

    def spy(module: Any, args: Any, kwargs: Any) -> None:
        _, index, weight = [*args, *kwargs.values()]
        dense.append(torch.zeros(len(index), module.down_proj.shape[0]).scatter_(1, index, weight.float()).numpy())

    hooks = [layer.experts.register_forward_pre_hook(spy, with_kwargs=True) for layer in find_moe_layers(model)]
    with Recorder(model) as recorder, torch.no_grad():
        model(ids)
    for hook in hooks:
        hook.remove()
    trace = recorder.trace()
    assert (np.diff(trace.weights.astype(np.float32), axis=2) <= 0).all()
    for place, wanted in enumerate(dense):
        found = np.zeros_like(wanted)
        np.put_along_axis(found, trace.experts[:, place].astype(np.int64), trace.weights[:, place], axis=1)
        np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-4)


def test_lookahead_is_the_later_router_on_the_earlier_input(family: tuple[str, Any]) -> None:
    _, model = family
    inputs, ids = [], prompts(1, 7)
    layers = find_moe_layers(model)
    hooks = [la.router.register_forward_pre_hook(lambda m, args: inputs.append(args[0].clone())) for la in layers]
    with Recorder(model, lookahead=2) as recorder, torch.no_grad():
        model(ids)
        for hook in hooks:
            hook.remove()
        told = [la.router(inputs[max(place - 1, 0)]) for place, la in enumerate(layers)]
    trace = recorder.trace()
    assert (trace.lookahead[0, :, 0] == -1).all() and (trace.lookahead[1, :, :2] == -1).all()
    for place in range(1, len(layers)):
        chosen = np.sort(told[place][2].numpy(), axis=1)
        np.testing.assert_array_equal(np.sort(trace.lookahead[0, :, place], axis=1), chosen)
    assert trace.meta["lookahead_distances"] == [1, 2]


def test_meta_tells_the_shape_and_the_score(family: tuple[str, Any]) -> None:
    name, model = family
    trace = recorded(model, prompts(2, 8))
    validate(trace)
    dense = 1 if name in ("deepseek-v2", "deepseek-v3", "glm4-moe") else 0
    assert trace.meta["moe_layers"] == list(range(dense, 3)) and trace.n_layers == 3 and trace.real
    assert trace.meta["score_function"] == SCORES.get(name, "softmax")
    if name in NORMALISED:
        assert trace.meta["norm_topk"] is NORMALISED[name]
    assert ("norm_topk" in trace.meta) is (name != "phimoe")


def test_a_padded_batch_equals_each_prompt_alone(family: tuple[str, Any]) -> None:
    _, model = family
    ids = padded()
    whole = recorded(model, ids)
    for row, padding in enumerate((0, 3, 1)):
        single = of(recorded(model, ids[row : row + 1, padding:]), 0)
        assert single["prefill"].sum() == 8 - padding and len(single["prefill"]) == 8 - padding + 5
        same(of(whole, row), single)


def test_chunked_prefill_equals_the_whole(family: tuple[str, Any]) -> None:
    _, model = family
    whole, chunked = recorded(model, padded()), recorded(model, padded(), prefill_chunk_size=3)
    for row in range(3):
        same(of(whole, row), of(chunked, row))


def padded() -> Any:
    """Three prompts of 8, 5 and 7 tokens, padded on the left."""
    ids = prompts(3, 8)
    ids[1, :3] = 1
    ids[2, :1] = 1
    return ids


# --- how the model is run


def test_rows_follow_the_tokens_and_the_last_is_never_forwarded(qwen: Any) -> None:
    ids = prompts(2, 8)
    with Recorder(qwen) as recorder:
        out = recorder_generate(qwen, ids, 5)
    trace = recorder.trace()
    assert trace.n_tokens == 2 * (8 + 4)
    for row in range(2):
        np.testing.assert_array_equal(of(trace, row)["token_ids"], out[row, :-1])
        np.testing.assert_array_equal(of(trace, row)["position"], np.arange(12))
        np.testing.assert_array_equal(of(trace, row)["prefill"], np.arange(12) < 8)


def test_generation_equals_one_forward_pass(qwen: Any) -> None:
    trace = recorded(qwen, prompts(2, 8))
    for row in range(2):
        same(of(trace, row), alone(qwen, of(trace, row)["token_ids"], 8))


def test_right_padding_is_no_token(qwen: Any) -> None:
    ids = prompts(2, 8)
    with Recorder(qwen) as recorder, torch.no_grad():
        qwen(ids, attention_mask=torch.tensor([[1] * 8, [1] * 5 + [0] * 3]))
    trace = recorder.trace()
    assert trace.n_tokens == 13 and trace.prefill.all()
    same(of(trace, 1), alone(qwen, ids[1, :5].numpy(), 5))


@pytest.mark.parametrize("options", [{"cache_implementation": "static"}, {"use_cache": False}], ids=["static", "none"])
def test_other_caches_leave_the_same_rows(qwen: Any, options: dict[str, Any]) -> None:
    ids = prompts(2, 8)
    ids[1, :3] = 1
    plain, other = recorded(qwen, ids), recorded(qwen, ids, **options)
    assert plain.n_tokens == other.n_tokens
    for row in range(2):
        same(of(plain, row), of(other, row))


def test_a_four_dimensional_mask_is_read(qwen: Any) -> None:
    """A loop of one's own with masks as attention takes them: bool, and added to the scores."""
    ids = prompts(2, 6)
    real = torch.tensor([[True] * 6, [False] * 2 + [True] * 4])
    seen = torch.ones(6, 6).tril().bool() & real[:, None, None, :]
    places = (real.cumsum(1) - 1).clamp(min=0)
    wanted = alone(qwen, ids[1, 2:].numpy(), 4)
    for mask in (seen, torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)):
        with Recorder(qwen) as recorder, torch.no_grad():
            qwen(ids, attention_mask=mask, position_ids=places)
        same(of(recorder.trace(), 1), wanted)


def test_speculation_leaves_no_rejected_candidate(qwen: Any) -> None:
    ids = torch.tensor([[5, 6, 7, 8, 5, 6, 7, 8, 5, 6]])
    with Recorder(qwen) as recorder:
        out = recorder_generate(qwen, ids, 9, prompt_lookup_num_tokens=3)
    trace = recorder.trace()
    np.testing.assert_array_equal(trace.token_ids, out[0, :-1])
    same(of(trace, 0), of(recorded(qwen, ids, 9), 0))


def test_speculation_that_an_end_token_stops_leaves_none_either(qwen: Any) -> None:
    """Wherever the end falls: of the candidates that ran with it, those behind it were never part of the text."""
    ids = torch.arange(2, 128)[None]  # whatever comes is in the prompt, so there are always candidates
    made = recorder_generate(qwen, ids, 12)[0, 126:]
    shorter = 0
    for end in made[2:].unique().tolist():
        with Recorder(qwen) as recorder:
            out = recorder_generate(qwen, ids, 12, prompt_lookup_num_tokens=4, eos_token_id=end)
        np.testing.assert_array_equal(recorder.trace().token_ids, out[0, :-1])
        shorter += out.shape[1] < 126 + 12
    assert shorter > 2


def test_a_cache_that_is_cut_back_takes_its_rows_along(qwen: Any) -> None:
    """Tree search of one's own: three tokens on, three back, another way on."""
    ids, cache = prompts(1, 8), transformers.DynamicCache()
    with Recorder(qwen) as recorder, torch.no_grad():
        recorder.begin(prompt_lengths=5)
        qwen(ids[:, :5], past_key_values=cache)
        for token in (9, 10, 11):
            qwen(torch.tensor([[token]]), past_key_values=cache)
        cache.crop(-3)
        qwen(ids[:, 5:6], past_key_values=cache)
        qwen(ids[:, 6:], past_key_values=cache)
    same(of(recorder.trace(), 0), alone(qwen, ids[0].numpy(), 5))


def test_padding_that_generate_finds_itself(qwen: Any) -> None:
    """No mask is given: Hugging Face takes the padding token for padding, and the decoder's own mask says so."""
    told = recorded(qwen, padded())
    for options in ({}, {"prefill_chunk_size": 3}, {"cache_implementation": "static"}):
        found = recorded(qwen, padded(), attention_mask=None, **options)
        for row in range(3):
            same(of(found, row), of(told, row))


@pytest.mark.parametrize("options", [{}, {"use_cache": False}, {"cache_implementation": "static"}], ids=str)
def test_beams_are_followed_back_to_their_ancestors(qwen: Any, options: dict[str, Any]) -> None:
    ids = prompts(2, 8)
    ids[1, :2] = 1
    with Recorder(qwen) as recorder:
        out = recorder_generate(qwen, ids, 6, num_beams=3, **options)
    trace = recorder.trace()
    paths = [tuple(of(trace, request)["token_ids"]) for request in range(6)]
    assert len(trace.requests()[0]) == 6 and trace.n_tokens == 3 * (13 + 11)
    assert tuple(out[0, :-1].tolist()) in paths[:3] and tuple(out[1, 2:-1].tolist()) in paths[3:]
    for request, path in enumerate(paths):
        same(of(trace, request), alone(qwen, np.array(path), 8 if request < 3 else 6))


def test_several_samples_of_a_prompt_are_requests(qwen: Any) -> None:
    ids = prompts(2, 8)
    ids[1, :2] = 1
    torch.manual_seed(0)
    trace = recorded(qwen, ids, do_sample=True, num_return_sequences=2)
    assert [int(of(trace, r)["prefill"].sum()) for r in range(4)] == [8, 8, 6, 6]


def test_an_ended_row_ends(qwen: Any) -> None:
    """Whichever token one row makes third is the end token: that row stops there, the others as they do alone."""
    ids = prompts(3, 8)
    end = int(recorder_generate(qwen, ids, 8)[1, 8 + 2])
    batch = recorded(qwen, ids, 8, eos_token_id=end)
    for row in range(3):
        single = of(recorded(qwen, ids[row : row + 1], 8, eos_token_id=end), 0)
        same(of(batch, row), single)
    assert len(of(batch, 1)["position"]) <= 8 + 2


def test_end_tokens_of_the_generation_config_count(qwen: Any) -> None:
    ids = prompts(2, 8)
    end = int(recorder_generate(qwen, ids, 8)[1, 8 + 2])
    config = transformers.GenerationConfig(max_new_tokens=8, eos_token_id=[end], pad_token_id=1)
    with Recorder(qwen) as recorder:
        qwen.generate(ids, config, attention_mask=torch.ones_like(ids))
    named = recorded(qwen, ids, 8, eos_token_id=end)
    np.testing.assert_array_equal(recorder.trace().sequence, named.sequence)


def test_a_loop_of_ones_own(qwen: Any) -> None:
    ids = prompts(2, 8)
    with Recorder(qwen) as recorder, torch.no_grad():
        recorder.begin(prompt_lengths=8)
        tokens, cache = ids, transformers.DynamicCache()
        for _ in range(5):
            logits = qwen(tokens, past_key_values=cache).logits
            tokens = logits[:, -1:].argmax(-1)
    mine, theirs = recorder.trace(), recorded(qwen, ids, 6)
    rows = np.flatnonzero(theirs.position < 12)
    for name in ("experts", "token_ids", "prefill"):
        np.testing.assert_array_equal(getattr(mine, name), getattr(theirs, name)[rows])


def test_prompt_lengths_decide_over_the_forward_passes(qwen: Any) -> None:
    """Teacher-forced text with a prompt: one pass, two lengths."""
    with Recorder(qwen) as recorder, torch.no_grad():
        recorder.begin(prompt_lengths=[3, 5])
        qwen(prompts(2, 8))
        recorder.begin(prompt_lengths=[2, 6])
        qwen(prompts(4, 7))  # each twice
        qwen(prompts(1, 4))  # an unannounced batch of its own, all prompt
    trace = recorder.trace()
    assert trace.sequence.tolist() == [0] * 8 + [1] * 8 + [2] * 7 + [3] * 7 + [4] * 7 + [5] * 7 + [6] * 4
    assert np.bincount(trace.sequence, trace.prefill).tolist() == [3, 5, 2, 2, 6, 6, 4]


def test_a_filled_cache_goes_on_where_it_stands(qwen: Any) -> None:
    ids, cache = prompts(1, 10), transformers.DynamicCache()
    with torch.no_grad():
        qwen(ids[:, :6], past_key_values=cache)
    with Recorder(qwen) as recorder:
        recorder_generate(qwen, ids, 4, past_key_values=cache)
    trace, whole = recorder.trace(), recorded(qwen, ids, 4)
    assert trace.position.tolist() == list(range(6, 13)) and trace.prefill.sum() == 4
    np.testing.assert_array_equal(trace.experts, whole.experts[6:])


def test_calls_in_a_row_are_requests_in_a_row(qwen: Any) -> None:
    with Recorder(qwen, logits=False, lookahead=0) as recorder:
        recorder_generate(qwen, prompts(2, 8), 3)
        recorder_generate(qwen, prompts(1, 5), 3)
    trace = recorder.trace(licence="none", note="x")
    assert trace.sequence.tolist() == [0] * 10 + [1] * 10 + [2] * 7
    assert trace.logits is None and trace.lookahead is None and trace.meta["score_function"] == "softmax"
    assert trace.meta["licence"] == "none" and trace.meta["note"] == "x"


def test_embeddings_leave_no_token_ids(qwen: Any) -> None:
    ids = prompts(2, 8)
    with Recorder(qwen) as recorder:
        embeds = qwen.get_input_embeddings()(ids)
        qwen.generate(inputs_embeds=embeds, attention_mask=torch.ones_like(ids), max_new_tokens=4, **GREEDY)
    trace = recorder.trace()
    assert trace.token_ids is None
    np.testing.assert_array_equal(trace.experts, recorded(qwen, ids, 4).experts)


@pytest.mark.parametrize("name", ["deepseek-v3", "qwen3-moe"])
def test_half_precision_is_recorded_as_the_router_had_it(name: str) -> None:
    """Not as float32 would have it: the experts follow from the logits that the router rounded."""
    model, ids = build(name).to(torch.bfloat16), prompts(2, 8)
    with Recorder(model) as recorder, torch.no_grad():
        model(ids)
        model(ids)
    trace = recorder.trace()
    assert trace.meta["score_function"] == SCORES.get(name, "softmax") and trace.logits.dtype == np.float16
    for place, logits in enumerate(gate_outputs(model, ids)):
        wanted = logits.to(torch.float16).numpy()
        np.testing.assert_array_equal(trace.logits[:, place], np.concatenate([wanted, wanted]))


# --- what is left behind, and what is refused


def test_the_model_is_as_before_and_its_outputs_are_the_same(qwen: Any) -> None:
    ids = prompts(2, 8)
    before = recorder_generate(qwen, ids, 5)
    with Recorder(qwen) as recorder:
        during = recorder_generate(qwen, ids, 5)
    assert torch.equal(before, during) and "generate" not in qwen.__dict__
    hooks = [h for m in qwen.modules() for h in (*m._forward_hooks, *m._forward_pre_hooks)]
    assert not hooks
    n = recorder.trace().n_tokens
    recorder_generate(qwen, ids, 5)
    assert recorder.trace().n_tokens == n


def test_an_error_inside_leaves_the_model_clean(qwen: Any) -> None:
    with pytest.raises(ZeroDivisionError), Recorder(qwen):
        raise ZeroDivisionError
    assert "generate" not in qwen.__dict__ and not qwen.model._forward_pre_hooks


def test_refusals(qwen: Any) -> None:
    dense = transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**COMMON, num_key_value_heads=2, head_dim=16))
    with pytest.raises(UserError, match="Qwen3ForCausalLM has no MoE layer; a module with"):
        Recorder(dense)
    with pytest.raises(UserError, match="nothing was recorded"), Recorder(qwen) as recorder:
        recorder.trace()
    with Recorder(qwen), torch.no_grad(), pytest.raises(UserError, match="packed into one row"):
        qwen(prompts(1, 6), position_ids=torch.tensor([[0, 1, 2, 0, 1, 2]]))
    with Recorder(qwen) as recorder, torch.no_grad(), pytest.raises(UserError, match="mask has 3 rows, the batch 2"):
        recorder.begin(attention_mask=np.ones((3, 6), bool))
        qwen(prompts(2, 6))


def test_a_layer_that_was_gone_around_is_refused(qwen: Any) -> None:
    """As kernels do that replace the whole block."""
    model = build("qwen3-moe")
    model.model.layers[1].mlp.forward = lambda hidden: hidden
    with Recorder(model), torch.no_grad(), pytest.raises(UserError, match=r"routed \[6, 6\] in its 3 MoE layers"):
        model(prompts(1, 6))


# --- our own model


def test_our_own_model_equals_its_hugging_face_twin() -> None:
    pytest.importorskip("safetensors", reason="the runtime's safetensors is not installed")
    from dataclasses import asdict

    from runtime.small_model.model import ModelConfig, MoeDecoder

    config = ModelConfig(128, 64, 3, 4, 16, 4, 32, 32)
    ours = MoeDecoder(config).eval()
    for block in ours.moe_blocks:
        block.gate.weight.data.normal_(0, 0.3, generator=torch.Generator().manual_seed(5))
    given = asdict(config) | {"num_key_value_heads": 4, "head_dim": 16, "norm_topk_prob": True}
    twin = transformers.Qwen3MoeForCausalLM(transformers.Qwen3MoeConfig(**given, tie_word_embeddings=True)).eval()
    twin.model.load_state_dict(ours.state_dict())
    found = []
    for model in (ours, twin):
        with Recorder(model) as recorder, torch.no_grad():
            recorder.begin(prompt_lengths=5)
            model(prompts(2, 12))
        found.append(recorder.trace())
    for row in range(2):
        same(of(found[0], row), of(found[1], row))
    names = ("n_layers", "moe_layers", "n_experts", "top_k", "score_function", "norm_topk", "lookahead_distances")
    assert [found[0].meta[n] for n in names] == [found[1].meta[n] for n in names]
