"""What accelerate's hooks move of a Mixture-of-Experts layer that is offloaded; a simulated run moves the same, step by
step.

A hook brings the tensors of its own module before the module's forward pass, and drops them behind it. transformers 5
keeps all experts of a layer in two tensors of one module: all of them come, whatever the router wants. In transformers
4 each matrix of each expert was a module: those that are called come, one after another. That is the used experts, or,
where the model's loop went over every expert and called most with no rows, all of them.

No GPU is needed. What a device map gives to "cpu" beside one is here given to "disk" beside the CPU: `dispatch_model`
hangs the same hooks, which ask the same map of weights.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sim import catalog
from sim.simulation import simulate
from sim.spec import RunSpec
from tests.tiny_models import GREEDY, build, prompts, torch  # skips without them
from traces.capturing.recorder import Recorder
from traces.format import npz
from traces.format.trace import RoutingTrace

accelerate = pytest.importorskip("accelerate", reason="accelerate is not installed (extra: test)")

Ints = np.ndarray
LAYERS, RESIDENT, PROMPT, GENERATED = 3, 1, 5, 8

V5: dict[str, Any] = {"engine": "hf-v5"}
V4: dict[str, Any] = {"engine": "hf-v4"}
V4_EVERY = V4 | {"engine_as_costs": True, "miss": "stream", "serial": True, "whole_layer": True}


@dataclass(frozen=True)
class Form:
    """How a model holds its experts, and the fields of a run that stand for it.

    unfused: a module per matrix. every: its loop goes over all experts.
    """

    fields: dict[str, Any]
    unfused: bool = False
    every: bool = False

    @property
    def copies(self) -> int:
        """Of which a transfer is made."""
        return catalog.engine(self.fields["engine"]).copies_per_expert

    @property
    def whole(self) -> bool:
        """Whether all experts come, wanted or not."""
        return self.every or not self.unfused


FORMS = {
    "transformers 5": Form(V5),
    "transformers 4, used experts": Form(V4, unfused=True),  # Mixtral in 4.52 to 4.57
    "transformers 4, every expert": Form(V4_EVERY, unfused=True, every=True),  # it in 4.50; OLMoE in 4.57
}


class Expert(torch.nn.Module):
    """One expert of a fused layer as three matrices."""

    def __init__(self, fused: Any, expert: int) -> None:
        super().__init__()
        gate, up = fused.gate_up_proj[expert].chunk(2)
        self.w1, self.w3, self.w2 = _linear(gate), _linear(up), _linear(fused.down_proj[expert])

    def forward(self, hidden: Any) -> Any:
        return self.w2(torch.nn.functional.silu(self.w1(hidden)) * self.w3(hidden))


def _linear(weight: Any) -> Any:
    out = torch.nn.Linear(*reversed(weight.shape), bias=False)
    out.weight.data.copy_(weight)
    return out


class Experts(torch.nn.ModuleList):
    """The experts of a fused layer one by one, called as the fused ones are: (hidden, ids, weights)."""

    def __init__(self, fused: Any, every: bool) -> None:
        super().__init__(Expert(fused, expert) for expert in range(len(fused.down_proj)))
        self.every = every

    def forward(self, hidden: Any, ids: Any, weights: Any) -> Any:
        out = torch.zeros_like(hidden)
        for expert in range(len(self)) if self.every else ids.unique().tolist():
            row, slot = torch.where(ids == expert)
            out.index_add_(0, row, self[expert](hidden[row]) * weights[row, slot, None])
        return out


@dataclass
class Moves:
    """What hooks do to expert tensors, from `watch` on: bytes and copies brought by (step, layer), bytes that lie on
    the device now, the most that ever did, and how many lay there as each step began."""

    now: int = 0
    most: int = 0
    blocking: bool = True

    def __post_init__(self) -> None:
        self.brought: list[tuple[int, int, int]] = []  # (step, layer, bytes)
        self.at_begin: list[int] = []

    def watch(self, model: Any, patch: pytest.MonkeyPatch) -> None:
        layer_of = {id(m): int(name.split(".")[2]) for name, m in model.named_modules() if ".experts" in name}
        original = accelerate.hooks.set_module_tensor_to_device

        def moved(module: Any, name: str, device: Any, **options: Any) -> None:
            before = getattr(module, name)
            original(module, name, device, **options)
            if id(module) in layer_of:
                self._see(layer_of[id(module)], before, getattr(module, name), options)

        patch.setattr(accelerate.hooks, "set_module_tensor_to_device", moved)
        model.model.register_forward_pre_hook(lambda *_: self.at_begin.append(self.now))

    def _see(self, layer: int, before: Any, after: Any, options: dict[str, Any]) -> None:
        if before.is_meta and not after.is_meta:
            self.brought.append((len(self.at_begin) - 1, layer, after.nbytes))
            self.blocking &= not options.get("non_blocking", False)
        self.now += (int(before.is_meta) - int(after.is_meta)) * after.nbytes
        self.most = max(self.most, self.now)

    def by_step(self) -> tuple[Ints, Ints]:
        """(bytes, copies), both int64 [steps, layers]."""
        out = np.zeros((2, len(self.at_begin), LAYERS), np.int64)
        for step, layer, size in self.brought:
            out[:, step, layer] += (size, 1)
        return out[0], out[1]


@dataclass(frozen=True)
class Measured:
    """A model that ran dispatched, and the routing of the same run undispatched. layer_bytes: of a layer's experts."""

    form: Form
    trace: RoutingTrace
    moves: Moves
    layer_bytes: int

    @property
    def expert_bytes(self) -> int:
        return self.layer_bytes // self.trace.n_experts

    def used(self) -> Ints:
        """Distinct experts that each step wants of each layer, int64 [steps, layers]: the prompt is one step."""
        steps = [self.trace.experts[self.trace.prefill], *self.trace.experts[~self.trace.prefill, None]]
        return np.array([[len(np.unique(step[:, layer])) for layer in range(LAYERS)] for step in steps])

    def expected(self) -> Ints:
        """How many experts each step should bring of each layer, int64 [steps, layers]."""
        came = np.full_like(self.used(), self.trace.n_experts) if self.form.whole else self.used()
        return came * (np.arange(LAYERS) >= RESIDENT)


@pytest.fixture(scope="module", params=FORMS)
def measured(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Measured:
    form, model = FORMS[request.param], build("mixtral")
    with Recorder(model) as recorder:
        said = generated(model)
    layer_bytes = sum(tensor.nbytes for tensor in model.model.layers[0].mlp.experts.parameters())
    if form.unfused:
        for layer in model.model.layers:
            layer.mlp.experts = Experts(layer.mlp.experts, form.every)
    dispatch(model, tmp_path_factory.mktemp("weights"))
    moves = Moves()
    with pytest.MonkeyPatch.context() as patch:
        moves.watch(model, patch)
        assert generated(model) == said  # so the routing is the recorded one
    return Measured(form, recorder.trace(), moves, layer_bytes)


def generated(model: Any) -> list[int]:
    ids = prompts(1, PROMPT)
    return model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=GENERATED, **GREEDY)[0].tolist()


def dispatch(model: Any, folder: Path) -> None:
    """As `device_map="auto"` would where memory is what three layers take: one stays, room for another is kept free."""
    layer = sum(tensor.nbytes for tensor in model.model.layers[0].parameters())
    memory = {"cpu": 3 * layer, "disk": 2**40}
    whole = list(model._no_split_modules)
    device_map = accelerate.infer_auto_device_map(model, max_memory=memory, no_split_module_classes=whole)
    assert [device_map[f"model.layers.{n}"] for n in range(LAYERS)] == ["cpu", "disk", "disk"]  # RESIDENT
    accelerate.dispatch_model(model, device_map, offload_dir=folder, skip_keys=model._skip_keys_device_placement)


def test_a_step_moves_what_the_form_of_the_experts_says(measured: Measured) -> None:
    """The prompt's step and 7 of decoding, which want 2 of 8 experts of a layer and move a quarter of them, or all."""
    form, (size, copies) = measured.form, measured.moves.by_step()
    assert len(size) == GENERATED and set(measured.used()[1:].flat) == {2}
    assert set((size[1:, RESIDENT:] / measured.layer_bytes).flat) == {1.0 if form.whole else 0.25}
    np.testing.assert_array_equal(size, measured.expected() * measured.expert_bytes)
    fused = 1 if form.unfused else measured.trace.n_experts  # experts of which a copy holds a part
    np.testing.assert_array_equal(copies, measured.expected() // fused * form.copies)


def test_what_came_is_dropped_at_once(measured: Measured) -> None:
    """Two fused tensors lie there together, of experts one by one a single matrix."""
    moves = measured.moves
    assert moves.blocking and moves.now == 0 and not any(moves.at_begin)
    assert moves.most == (measured.expert_bytes // 3 if measured.form.unfused else measured.layer_bytes)


def test_a_simulated_run_moves_the_same_in_each_step(measured: Measured, tmp_path: Path) -> None:
    size, copies = measured.moves.by_step()
    npz.write(tmp_path / "tiny.npz", measured.trace)
    durations = "dense_ns = 6\ndecide_ns = 1\nexpert_ns = 5\ntransfer_ns = 12\n"
    (tmp_path / "h.toml").write_text(f"[fixed]\n{durations}expert_bytes = {measured.expert_bytes}\n")
    fields = {"trace": str(tmp_path / "tiny.npz"), "hardware": str(tmp_path / "h.toml")}
    spec = RunSpec.of({**fields, "cache": f"layers:first:{RESIDENT}", **measured.form.fields})
    summary, record = simulate(spec, full=True)

    transfers = record.groups["transfers"]
    step, layer = transfers["visit"] // LAYERS, transfers["layer"]
    simulated = np.zeros_like(size)
    np.add.at(simulated, (step, layer), transfers["bytes"])
    np.testing.assert_array_equal(simulated, size)
    assert (transfers["landed_ns"] >= 0).all() and summary["h2d_bytes"]["demand"] == size.sum()

    runs = np.zeros_like(copies)  # transfers over the link, of one expert or of several
    np.add.at(runs, tuple(np.unique([step, layer, transfers["run"]], axis=1)[:2]), 1)
    np.testing.assert_array_equal(runs * measured.form.copies, copies)
