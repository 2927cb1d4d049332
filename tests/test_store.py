"""The expert store, the kernels and the sizes: what is packed, what is computed, what does not fit."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from runtime.device import virtual
from runtime.device.cpu import CpuPort
from runtime.device.host_memory import host_bytes
from runtime.experts import store
from runtime.experts.checkpoint import Checkpoint
from runtime.experts.layout import Layout, StoreError, Weights
from runtime.experts.quantised import LowLayout
from runtime.experts.store import ExpertStore, Synthetic
from runtime.replaying import layers, shapes
from runtime.replaying.work import Job
from sim import catalog
from sim.steps import schedule
from traces.errors import UserError
from traces.synthetic import PRESETS, generate

MODELS = catalog.names("model")
FEW = replace(PRESETS["cyclic"], requests=6, prompt=(12, 30), generation=(3, 9))
SMALL = Layout(32, 64, 3, False, torch.float32)


def work_of(model: Any, port: Any, batch: int = 3, steps: int = 12, **options: Any) -> layers.CatalogWork:
    """The kernels of a model at the batches of a synthetic trace."""
    trace = generate(FEW, 0)
    laid = schedule(trace, batch, 16)
    offset = laid.offset[: steps + 1]
    batches = shapes.Batches(trace, offset, laid.row[: offset[-1]], laid.prefill[:steps], 5)
    layout = Layout.of(model, "fp32")
    experts = ExpertStore(
        port, layout, len(model.moe_layers), model.n_experts, [2] * len(model.moe_layers), Synthetic(layout)
    )
    n_layers = model.n_layers
    return layers.CatalogWork(
        port, model, experts, batches, model.moe_layers, n_layers, options.pop("to_host", False), **options
    )


# --- sizes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_a_packed_expert_has_the_bytes_that_the_simulator_charges(name: str) -> None:
    for factor in (1, 0.25, 0.0625):
        model = shapes.scaled(catalog.model(name), factor)
        for precision in ("bf16", "fp32"):
            assert Layout.of(model, precision).nbytes == model.expert_bytes(precision)
        low = LowLayout.of(Layout.of(model, "bf16").elements, "q4")
        assert low.nbytes == model.expert_bytes("q4")


@pytest.mark.parametrize("name", MODELS)
def test_the_dense_part_has_the_bytes_that_the_simulator_charges(name: str) -> None:
    """Within two per cent: rounded columns, one norm more, a shared expert's gate left out."""
    for factor in (1, 0.25):
        model = shapes.scaled(catalog.model(name), factor)
        elements = shapes.dense_elements(model, model.n_layers, model.moe_layers)
        assert elements == pytest.approx(model.read_dense_params, rel=0.02)


@pytest.mark.parametrize("name", MODELS)
def test_kv_entries_have_the_bytes_that_the_simulator_charges(name: str) -> None:
    model = catalog.model(name)
    for kind in {model.attention_kind(layer) for layer in range(model.n_layers)} - {"linear", "none"}:
        assert 2 * sum(shapes.Attention.of(model, kind).cached) == model.kv_entry_bytes(kind)


def test_a_model_at_scale_one_is_itself() -> None:
    model = catalog.model("mixtral-8x7b")
    assert shapes.scaled(model, 1) is model
    small = shapes.scaled(model, 0.25)
    assert (small.hidden, small.expert_intermediate, small.n_heads, small.vocab) == (1024, 3584, 8, 8000)
    assert small.n_experts == model.n_experts and small.n_layers == model.n_layers


# --- the store --------------------------------------------------------------------------------------------------------


def test_an_expert_goes_into_its_slot_and_back_out() -> None:
    with CpuPort(50, 0) as port:
        experts = ExpertStore(port, SMALL, 2, 3, [2, 1], Synthetic(SMALL, 1))
        experts.place({0: 0, 1: 1, 5: 2})
        assert experts.wrong_slots({0: 0, 1: 1, 5: 2}) == []
        experts.fetch(2, 1).wait()
        assert experts.wrong_slots({0: 0, 2: 1, 5: 2}) == [] and experts.wrong_slots({1: 1}) == [1]
        assert torch.equal(experts.in_slot(1).up, experts.on_host(2).up)
        assert experts.in_slot(1).up.shape == (128, 32) and experts.in_slot(1).down.shape == (32, 64)
        assert not torch.equal(experts.on_host(0).up, experts.on_host(1).up)
        buffers = list(port.buffers)
        experts.close()
        assert len(buffers) == 3 and all(buffer.freed for buffer in buffers)


def test_synthetic_weights_are_seeded() -> None:
    one, same, other = (torch.empty(SMALL.elements) for _ in range(3))
    Synthetic(SMALL, 1).fill(1, 2, one)
    Synthetic(SMALL, 1).fill(1, 2, same)
    Synthetic(SMALL, 2).fill(1, 2, other)
    assert torch.equal(one, same) and not torch.equal(one, other)


def test_aliased_experts_share_the_bytes_of_the_host() -> None:
    with CpuPort(50, 0) as port:
        experts = ExpertStore(port, SMALL, 2, 8, [4], Synthetic(SMALL), alias=3)
        assert len(experts.host_bytes) == 6
        assert experts.where(8 + 7) == 3 + 1 and experts.where(4) == 1
        experts.fetch(15, 0).wait()
        assert experts.wrong_slots({15: 0, 9: 0}) == []


def test_low_precision_copies_are_near_the_weights() -> None:
    weights = torch.randn(320)
    for precision, off in (("q8", 0.01), ("q4", 0.2)):
        low = LowLayout.of(320, precision)
        packed = torch.empty(low.nbytes, dtype=torch.uint8)
        low.pack(weights, packed)
        found = low.expand(packed, torch.float32)
        scale = weights.view(-1, 32).abs().amax(dim=1).repeat_interleave(32)
        assert bool(((found - weights).abs() <= off * scale).all())
    zeros = torch.empty(LowLayout.of(32, "q4").nbytes, dtype=torch.uint8)
    LowLayout.of(32, "q4").pack(torch.zeros(32), zeros)
    assert bool((LowLayout.of(32, "q4").expand(zeros, torch.bfloat16) == 0).all())
    with pytest.raises(UserError, match="precision: q3: has no low-precision kernel here; one of q8, q4"):
        LowLayout.of(320, "q3")


# --- what does not fit ------------------------------------------------------------------------------------------------


def test_what_does_not_fit_is_refused_with_the_numbers_and_nothing_is_allocated() -> None:
    layout = Layout(4096, 14336)
    dense = {"dense": 3_000_000_000, "kv": 500_000_000}
    needs = store.need(layout, 32, 8, 128, None, dense)
    with virtual.timed() as port:
        port.memory_bytes = 50_000_000_000
        with pytest.raises(
            StoreError, match=r"memory: needs 138\.79 GB \(slots 45\.10 GB, dense 3\.00 GB, kv 0\.50 GB, "
        ):
            store.fits(needs, port)
        assert port.buffers == []
    aliased = store.need(layout, 32, 8, 128, 1, dense)
    assert sum(aliased.host.values()) * 8 == sum(needs.host.values())


def test_on_an_accelerator_host_and_device_are_looked_at_apart(monkeypatch: Any) -> None:
    needs = store.need(SMALL, 2, 4, 4, None, {})
    with virtual.timed() as port:
        monkeypatch.setattr(port, "device", torch.device("meta"))
        port.memory_bytes = store.SPARE_BYTES + 10
        with pytest.raises(StoreError, match="device memory: needs"):
            store.fits(needs, port)
        port.memory_bytes = store.SPARE_BYTES + (1 << 20)
        store.fits(needs, port)
        monkeypatch.setattr(store, "host_bytes", lambda: store.SPARE_BYTES + 10)
        with pytest.raises(StoreError, match=r"page-locked host memory: needs .* has 0\.00 GB"):
            store.fits(needs, port)


def test_host_memory_as_stated_replaces_what_the_system_says(monkeypatch: Any) -> None:
    needs = store.need(SMALL, 2, 4, 4, None, {})
    size = sum(needs.host.values())
    enough = size + store.SPARE_BYTES
    monkeypatch.setattr(store, "host_bytes", lambda: 0)
    with virtual.timed() as port:
        monkeypatch.setattr(port, "device", torch.device("meta"))
        store.fits(needs, port, enough)
        with pytest.raises(StoreError, match=r"page-locked host memory: .* --host-memory says what the host has"):
            store.fits(needs, port, enough - 1)
        port.memory_bytes = 0  # the device's own is no host memory
        with pytest.raises(StoreError, match="device memory: needs"):
            store.fits(needs, port, enough)
        monkeypatch.setattr(port, "device", torch.device("cpu"))  # one memory for both
        both = enough + sum(needs.device.values())
        store.fits(needs, port, both)
        with pytest.raises(StoreError, match=r"^memory: needs"):
            store.fits(needs, port, both - 1)


def test_memory_of_the_host_is_known() -> None:
    assert 1 << 20 < host_bytes() < 1 << 50


# --- kernels ----------------------------------------------------------------------------------------------------------


def test_an_expert_is_swiglu_or_relu() -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 32)
    gate, up, down = torch.randn(64, 32), torch.randn(64, 32), torch.randn(32, 64)
    found = layers.expert(x, Weights(torch.cat([gate, up]), down))
    torch.testing.assert_close(found, (F.silu(x @ gate.T) * (x @ up.T)) @ down.T)
    two = layers.expert(x, Weights(up, down, torch.ones(64), torch.ones(32)))
    torch.testing.assert_close(two, F.relu(x @ up.T + 1) @ down.T + 1)


@pytest.mark.skipif(not layers.has_grouped(), reason="this torch has no grouped_mm")
@pytest.mark.parametrize("pooled", [False, True])
def test_experts_in_one_kernel_equal_experts_one_by_one(pooled: bool) -> None:
    model = shapes.scaled(catalog.model("mixtral-8x7b"), 1 / 128)
    with CpuPort(50, 0) as port:
        work = work_of(model, port)
        slots = [8] if pooled else [3] * 32
        work.store = ExpertStore(port, work.store.layout, 32, 8, slots, Synthetic(work.store.layout))
        base = 0 if pooled else 6
        work.store.place({17: base + 2, 20: base, 22: base + 1})
        work.begin_step(0)
        work.dense(0)
        n = len(work.rows.tokens)
        jobs = [
            Job(g, np.array(rows), np.full(len(rows), 0.3, np.float32))
            for g, rows in ((17, [0, 2]), (22, [1]), (20, list(range(n))))
        ]
        where = [base + 2, base + 1, base]
        before = work.x
        work.routed({job.expert: job for job in jobs}, {})
        work.experts(2, jobs, where)
        together, work.x = work.x, before
        for job, slot in zip(jobs, where, strict=True):
            work.expert(job.expert, slot)
        torch.testing.assert_close(together, work.x)
        assert not torch.equal(before, work.x)


@pytest.mark.parametrize("name", MODELS)
def test_every_model_of_the_catalog_runs_small(name: str) -> None:
    """Prompt and decode steps of every architecture, with numbers that are numbers."""
    model = shapes.scaled(catalog.model(name), 1 / 64)
    step = max(1, len(model.moe_layers) // 3)
    keep = model.moe_layers[::step][:2]
    n_layers = keep[-1] + 1 if model.encoder_layers == 0 else model.n_layers
    if model.encoder_layers == 0:
        model = model.model_copy(update={"n_layers": n_layers})
    with CpuPort(50, 0) as port:
        work = work_of(model, port, steps=9, to_host=True)
        kinds = set()
        for step in range(9):
            work.begin_step(step)
            kinds.add(work.rows.prefill)
            for column in range(len(model.moe_layers)):
                work.dense(column)
                work.read_back()
                n = len(work.rows.tokens)
                assert bool(((work.ids_host[:n] >= 0) & (work.ids_host[:n] < model.n_experts)).all())
                job = Job(column * model.n_experts, np.array([n - 1]), np.ones(1, np.float32))
                work.store.place({job.expert: 2 * column})
                work.routed({job.expert: job}, {job.expert: job})
                work.expert(job.expert, 2 * column)
                work.on_host(job)
                work.join_host()
            work.dense(len(model.moe_layers))
            work.end()
            work.check()
            assert work.x.shape == (n, model.hidden)
        assert kinds == {True, False}


def test_the_cpu_computes_what_the_gpu_would() -> None:
    model = shapes.scaled(catalog.model("mixtral-8x7b"), 1 / 64)
    with CpuPort(50, 0) as port:
        work = work_of(model, port, to_host=True)
        work.begin_step(0)
        work.dense(0)
        work.read_back()
        job = Job(3, np.array([1, 4]), np.array([0.25, 0.5], np.float32))
        work.store.place({3: 1})
        before = work.x
        work.routed({3: job}, {})
        work.expert(3, 1)
        on_gpu, work.x = work.x, before
        work.routed({}, {3: job})
        work.on_host(job)
        work.join_host()
        torch.testing.assert_close(on_gpu, work.x)


def test_attention_reads_its_own_requests_entries_up_to_its_position() -> None:
    """A decode row over the cache equals attention written out; a prompt row sees no later one."""
    model = shapes.scaled(catalog.model("mixtral-8x7b"), 1 / 64)
    with CpuPort(50, 0) as port:
        work = work_of(model, port, batch=2)
        a = work.shapes[0]
        work.begin_step(0)
        rows = work.rows
        assert rows.prefill
        torch.manual_seed(1)
        q = torch.randn(len(rows.tokens), a.heads * a.qk)
        cache = tuple(torch.randn_like(part) for part in work.caches[0])
        together = work._attend_prompt(a, cache, q, None)
        for i, position in enumerate(rows.positions.tolist()):
            k, v = (part[int(rows.places[i]), :, : position + 1] for part in cache)
            k, v = (part.repeat_interleave(a.heads // a.kv_heads, dim=0) for part in (k, v))
            scores = torch.einsum("hd,hnd->hn", q[i].view(a.heads, a.qk), k) / a.qk**0.5
            torch.testing.assert_close(
                together[i].view(a.heads, a.v), torch.einsum("hn,hnd->hd", scores.softmax(-1), v)
            )
        work.rows = replace(rows, prefill=False)
        torch.testing.assert_close(work._attend_each(a, cache, q, None), together)
        window = work._attend_each(a, cache, q, 4)
        torch.testing.assert_close(work._attend_prompt(a, cache, q, 4), window)
        assert not torch.allclose(window, together)


def test_requests_have_places_in_the_cache_of_their_own() -> None:
    trace = generate(FEW, 3)
    laid = schedule(trace, 3, 8)
    batches = shapes.Batches(trace, laid.offset, laid.row, laid.prefill, 100)
    assert batches.places <= 4
    owner: dict[int, int] = {}
    of: dict[int, int] = {}
    for rows in batches.rows:
        for token, place in zip(rows.tokens.tolist(), rows.places.tolist(), strict=True):
            request = int(trace.sequence[token])
            assert of.setdefault(request, place) == place
            owner[place] = request
        assert len({owner[place] for place in rows.places.tolist()}) == len(set(rows.places.tolist()))
    assert batches.longest == int(trace.position[laid.row].max()) + 101


# --- checkpoints ------------------------------------------------------------------------------------------------------

H, INNER, E = 32, 64, 4


def matrices(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731 - a def would say no more
    return {"gate": draw(E, INNER, H), "up": draw(E, INNER, H), "down": draw(E, H, INNER)}


def per_expert(there: int, found: dict[str, torch.Tensor], path: str, names: dict[str, str]) -> dict[str, torch.Tensor]:
    return {
        f"model.layers.{there}.{path}.experts.{e}.{names[part]}.weight": values[e].contiguous()
        for part, values in found.items()
        for e in range(E)
    }


MIXTRAL = {"gate": "w1", "up": "w3", "down": "w2"}
OTHERS = {"gate": "gate_proj", "up": "up_proj", "down": "down_proj"}
STYLES: dict[str, Any] = {
    "mixtral": lambda i, m: per_expert(i, m, "block_sparse_moe", MIXTRAL),
    "qwen": lambda i, m: (
        per_expert(i, m, "mlp", OTHERS)
        | {f"model.layers.{i}.mlp.shared_expert.{n}.weight": torch.zeros(3, 3) for n in OTHERS.values()}
    ),
    "fused": lambda i, m: {
        f"model.layers.{i}.mlp.experts.gate_up_proj": torch.cat([m["gate"], m["up"]], 1),
        f"model.layers.{i}.mlp.experts.down_proj": m["down"],
    },
    "granite": lambda i, m: {
        f"model.layers.{i}.block_sparse_moe.input_linear.weight": torch.cat([m["gate"], m["up"]], 1),
        f"model.layers.{i}.block_sparse_moe.output_linear.weight": m["down"],
    },
}


@pytest.mark.parametrize("style", STYLES)
def test_a_checkpoint_is_read(style: str, tmp_path: Path) -> None:
    found = {0: matrices(0), 2: matrices(2)}
    for there, m in found.items():
        extra = {"model.embed_tokens.weight": torch.zeros(2), "model.layers.1.mlp.gate_proj.weight": torch.zeros(2, 2)}
        save_file(STYLES[style](there, m) | ({} if there else extra), tmp_path / f"model-{there}.safetensors")
    layout = Layout(H, INNER, 3, False, torch.float32)
    source = Checkpoint(tmp_path, layout, [0, 2])
    out = torch.empty(layout.elements)
    for layer, there in enumerate((0, 2)):
        for e in range(E):
            source.fill(layer, e, out)
            weights = layout.weights(out)
            assert torch.equal(weights.up, torch.cat([found[there]["gate"][e], found[there]["up"][e]]))
            assert torch.equal(weights.down, found[there]["down"][e])
    wide = Checkpoint(tmp_path, Layout(H, 2 * INNER, 3, False, torch.float32), [0, 2])
    with pytest.raises(StoreError, match=r"has shape .*; the model wants \[32, 128\] an expert|wants \[256, 32\]"):
        wide.fill(0, 0, torch.empty(wide.layout.elements))
    with pytest.raises(StoreError, match=r"layer 1, expert 0: has no (gate|down) matrix"):
        Checkpoint(tmp_path, layout, [1]).fill(0, 0, out)


def test_what_is_no_checkpoint_is_one_line(tmp_path: Path) -> None:
    layout = Layout(H, INNER)
    with pytest.raises(StoreError, match=r"has no \.safetensors files"):
        Checkpoint(tmp_path, layout, [0])
    save_file({"model.norm.weight": torch.zeros(2)}, tmp_path / "model.safetensors")
    with pytest.raises(StoreError, match="holds no experts under the names"):
        Checkpoint(tmp_path, layout, [0])
    (tmp_path / "broken.safetensors").write_bytes(b"no")
    with pytest.raises(StoreError, match=r"broken\.safetensors: "):
        Checkpoint(tmp_path, layout, [0])
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": 3}')
    with pytest.raises(StoreError, match="is no index of safetensors files"):
        Checkpoint(tmp_path, layout, [0])
    with pytest.raises(StoreError, match="only experts of three matrices without biases"):
        Checkpoint(tmp_path, Layout(H, INNER, 2), [0])
