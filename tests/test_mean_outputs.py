"""Mean outputs: measured as by hand, added where nobody answers, refused where nobody has them."""

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed (extra: runtime)")
pytest.importorskip("tokenizers", reason="tokenizers is not installed (extra: train)")
pytest.importorskip("safetensors", reason="safetensors is not installed (extra: runtime)")

from runtime.closed_loop.evaluation import means_of, means_on  # noqa: E402
from runtime.closed_loop.judged_model import TINY, Own, judged_model  # noqa: E402
from runtime.closed_loop.loop import ClosedLoop  # noqa: E402
from runtime.closed_loop.mean_outputs import MeanOutputs  # noqa: E402
from runtime.closed_loop.text_windows import TextWindows, text_windows  # noqa: E402
from runtime.closed_loop.visit_by_visit import DROP, FETCH, HIT  # noqa: E402
from sim.errors import SpecError  # noqa: E402
from sim.simulation import simulate  # noqa: E402
from sim.spec import RunSpec  # noqa: E402


@pytest.fixture(scope="module")
def tiny() -> Own:
    found = judged_model(TINY)
    assert isinstance(found, Own)
    return found


@pytest.fixture(scope="module")
def text(tiny: Own) -> TextWindows:
    return text_windows(tiny.tokens, 2, 24, 0, judged=False, lead=tiny.lead)


def test_it_is_the_mean_of_what_an_expert_says_to_its_own_tokens(tiny: Own, text: TextWindows) -> None:
    """Of layer 0, one expert at a time, from the inputs that a hook on the router saw."""
    found = means_on(tiny, text).layers[0]
    block, seen = tiny.model.moe_blocks[0], []
    hook = block.gate.register_forward_hook(lambda _m, args, out: seen.append((args[0], out[2])))
    for tokens in map(torch.from_numpy, text.tokens):
        tiny.forward(tokens, tiny.fresh())
    hook.remove()
    hidden, ids = (torch.cat(parts) for parts in zip(*seen, strict=True))
    for e in range(tiny.shape.n_experts):
        mine = hidden[(ids == e).any(-1)]
        if not len(mine):
            assert (found[e] == 0).all()
            continue
        one = torch.ones(len(mine), 1)
        with torch.inference_mode():
            said = block.experts(mine, one.long() * e, one).double().mean(0)
        assert torch.allclose(found[e].double(), said, atol=1e-6)
    assert (found.abs().sum(-1) > 0).sum() > 16, "hardly an expert was routed to: nothing is tested"


def test_its_term_is_of_slots_that_nobody_answers() -> None:
    """Weights .5 and .25 left out of means (1, 0) and (0, 2): .5 (1, 0) + .25 (0, 2) = (.5, .5); the other row has a
    miss that is fetched and a hit, so nothing."""
    means = MeanOutputs([torch.tensor([[1.0, 0.0], [0.0, 2.0], [7.0, 7.0]])])
    ids, weights = torch.tensor([[0, 1], [1, 2]]), torch.tensor([[0.5, 0.25], [0.5, 0.5]])
    answers = np.array([[DROP, DROP], [FETCH, HIT]], np.int8)
    found = means.term(0, ids, weights, answers)
    assert found is not None and torch.equal(found, torch.tensor([[0.5, 0.5], [0.0, 0.0]]))
    assert means.term(0, ids, weights, np.full((2, 2), FETCH, np.int8)) is None


def test_nothing_is_measured_for_who_does_not_ask(tiny: Own) -> None:
    assert means_of(tiny, RunSpec.of({"trace": TINY, "miss": "drop-by-weight"}), 256, None) is None


def test_a_loop_without_them_is_refused(tiny: Own) -> None:
    for miss in ("mean-output", "matched-mean"):
        with pytest.raises(SpecError, match=f"miss: {miss}: needs the mean outputs of the model's experts"):
            ClosedLoop(RunSpec.of({"trace": TINY, "miss": miss}), tiny.shape)


@pytest.mark.parametrize("threshold", [0.0, 0.1, 0.3, 2.0])
def test_to_a_replay_it_is_drop_by_weight(threshold: float) -> None:
    def ran(miss: str) -> dict[str, Any]:
        given = {"trace": "tiny-moe.npz", "miss": miss, "max_steps": 80, "set": {f"{miss}.threshold": threshold}}
        return simulate(RunSpec.of(given))[0]

    mine, other = ran("mean-output"), ran("drop-by-weight")
    for name in ("time_ns", "h2d_bytes", "dropped", "misses", "hits", "lost_router_weight"):
        assert mine.get(name) == other.get(name), name
    assert (mine["dropped"] > 0) == (threshold > 0)
