"""Live Hugging Face models on the expert cache: equal results, computed from slots alone."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest

from traces.errors import UserError

torch = pytest.importorskip("torch", reason="torch is not installed (extra: hf)")
pytest.importorskip("transformers", reason="Hugging Face transformers is not installed (extra: hf)")
pytest.importorskip("safetensors", reason="safetensors is not installed (extra: runtime)")

import numpy as np  # noqa: E402 - after the skips

from runtime import live  # noqa: E402
from runtime.closed_loop import slotted  # noqa: E402
from runtime.closed_loop.driver import Driver  # noqa: E402
from runtime.closed_loop.mean_outputs import MeanOutputs  # noqa: E402
from runtime.device.cpu import CpuPort, OneStreamPort  # noqa: E402
from runtime.device.port import DeviceError  # noqa: E402
from runtime.device.races import Race  # noqa: E402
from runtime.device.virtual import shuffled  # noqa: E402
from runtime.experts.store import ExpertStore  # noqa: E402
from runtime.live import OffloadedExperts  # noqa: E402
from sim.errors import SpecError  # noqa: E402
from sim.machines.compiled import run as compiled  # noqa: E402
from sim.prepare import prepare  # noqa: E402
from sim.spec import RunSpec  # noqa: E402
from tests.on_torch import fixed_hardware  # noqa: E402
from tests.tiny_models import FAMILIES, GREEDY, build, prompts  # noqa: E402


@pytest.fixture(scope="module")
def hardware(tmp_path_factory: pytest.TempPathFactory) -> str:
    return fixed_hardware(tmp_path_factory.mktemp("hardware"), cpu_expert_ns=1000)


def logits_of(model: Any, ids: Any, **kwargs: Any) -> Any:
    with torch.no_grad():
        return model(ids, **kwargs).logits


def generated(model: Any, ids: Any, n: int = 6, **kwargs: Any) -> Any:
    return model.generate(ids, max_new_tokens=n, **GREEDY, **kwargs)


# fewer slots than a prefill visit wants: groups run in waves, as slots free up
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("kind", "group"), [("eager", "one"), ("grouped_mm", "ready")])
def test_fetched_experts_give_the_unmodified_models_logits_to_the_last_bit(
    family: str, kind: str, group: str, hardware: str
) -> None:
    model, ids = build(family), prompts(3, 9)
    model.set_experts_implementation(kind)
    want, tokens = logits_of(model, ids), generated(model, ids)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with OffloadedExperts(model, hardware=hardware, cache=2, expert_group=group) as opened:
        assert torch.equal(logits_of(model, ids), want)
        assert torch.equal(generated(model, ids), tokens)
        assert len(opened.store.slot_bytes) == 2 * len(opened.shape.moe_layers)
        facts = opened.summary()
    assert facts["fetched"] + facts["slots_hit"] + facts["slots_late"] == facts["slots_wanted"] > 0
    assert facts["misses"] > facts["wanted"] / 3 and facts["tokens"] == 3 * 5
    after = model.state_dict()
    assert all(torch.equal(before[name], after[name]) and after[name].is_contiguous() for name in before)
    assert model.config._experts_implementation == kind and torch.equal(logits_of(model, ids), want)


def test_prefetched_experts_and_experts_on_the_cpu_do_too(hardware: str) -> None:
    model, ids = build("qwen3-moe"), prompts(2, 7)
    want = generated(model, ids)
    for fields in (
        {"prefetch": "gate-lookahead", "set": {"gate-lookahead.distance": 2}},
        {"prefetch": "previous-token", "cache_scope": "global", "cache": 9},
        {"miss": "cpu", "expert_group": "all"},
        {"miss": "fiddler", "eviction": "lfu"},
    ):
        with OffloadedExperts(model, **{"hardware": hardware, "cache": 3, **fields}) as opened:
            assert torch.equal(generated(model, ids), want), fields
            facts = opened.summary()
        if "prefetch" in fields:
            assert facts["prefetched"]["used"] + facts["prefetched"]["late"] > 0
        assert facts["cpu"] > 0 or fields.get("miss") != "cpu"


def test_experts_are_computed_from_slots_alone(hardware: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, ids = build("mixtral"), prompts(1, 8)
    want = generated(model, ids)
    fetch, copied = ExpertStore.fetch, []

    def poisoned(self: ExpertStore, g: int, slot: int, *rest: Any) -> Any:
        """What no slot holds is not a number, on the host too: only the copy itself sees the weights."""
        numbers(self.target(slot)).fill_(torch.nan)
        numbers(self.source(g)).copy_(kept[g])
        copied.append(g)
        found = fetch(self, g, slot, *rest)
        self.port.sync()
        numbers(self.source(g)).fill_(torch.nan)
        return found

    def numbers(data: Any) -> Any:
        return data.view(torch.float32)

    with OffloadedExperts(model, hardware=hardware, cache=2) as opened:
        store = opened.store
        kept = [numbers(data).clone() for data in store.host_bytes]
        for data in store.host_bytes:
            numbers(data).fill_(torch.nan)
        monkeypatch.setattr(ExpertStore, "fetch", poisoned)
        assert torch.equal(generated(model, ids), want) and len(copied) > 20
        monkeypatch.setattr(ExpertStore, "fetch", fetch)
        assert logits_of(model, ids).isnan().any()  # a copy of what is no number shows
        for data, whole in zip(store.host_bytes, kept, strict=True):
            numbers(data).copy_(whole)
    assert torch.equal(generated(model, ids), want)


def test_an_empty_slot_shows_and_a_decision_that_is_not_followed(hardware: str) -> None:
    model, ids = build("mixtral"), prompts(1, 4)
    with OffloadedExperts(model, hardware=hardware, cache=2, placement="empty") as opened:
        assert opened.store.slot_bytes.view(torch.float32).isnan().all()
        opened._slotted._copy = lambda *_: None  # type: ignore[method-assign]
        with pytest.raises(UserError, match=r"expert \d+ is to be computed and is in no slot"):
            logits_of(model, ids)


@pytest.mark.parametrize("seed", range(12))
def test_every_order_that_a_device_may_take_gives_the_same(seed: int, hardware: str) -> None:
    """On the virtual device, which also finds a copy into a slot that a kernel may still read."""
    model, ids = build("qwen3-moe"), prompts(2, 5)
    want = generated(model, ids, 4)
    fields: dict[str, Any] = {
        "cache": 3,
        "prefetch": "previous-token",
        "expert_group": ("one", "ready", "all")[seed % 3],
    }
    with shuffled(seed) as port:
        with OffloadedExperts(model, hardware=hardware, device=port, **fields):
            assert torch.equal(generated(model, ids, 4), want)
        assert port.steps > 100
    assert torch.equal(generated(model, ids, 4), want)


def test_a_missing_wait_is_found(hardware: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, ids = build("mixtral"), prompts(1, 6)
    monkeypatch.setattr(ExpertStore, "read", lambda *_: None)  # nobody says when a slot has been read
    with pytest.raises(Race), shuffled(0) as port, OffloadedExperts(model, hardware=hardware, cache=2, device=port):
        generated(model, ids, 2)


def test_a_paced_link_in_a_thread_of_its_own_gives_the_same(hardware: str) -> None:
    model, ids = build("olmoe"), prompts(1, 5)
    want = generated(model, ids)
    with CpuPort(0.5, 5.0) as port:
        with OffloadedExperts(model, hardware=hardware, cache=3, device=port):
            assert torch.equal(generated(model, ids), want)
        assert port.facts()["copies"] > 10


def test_low_precision_copies_are_computed_rounded(hardware: str) -> None:
    model, ids = build("mixtral"), prompts(1, 5)
    want = logits_of(model, ids)
    apart = []
    for precision in ("q8", "q4"):
        given = {"hobbit.precision": precision, "hobbit.full": -1.0, "hobbit.low": 1.0, "hobbit.slots": 3,
                 "hobbit.prefill": 1}  # fmt: skip
        with OffloadedExperts(model, hardware=hardware, cache=1, miss="hobbit", set=given) as opened:
            apart.append(float((logits_of(model, ids) - want).norm() / want.norm()))
            facts = opened.summary()
        assert facts["low"] > 0.5 * facts["slots_wanted"]
    assert 0 < apart[0] < 0.05 and 2 * apart[0] < apart[1] < 0.5


@pytest.mark.parametrize(
    "fields",
    [
        {"miss": "next-ranked"},
        {"miss": "random"},
        {"miss": "drop"},
        {"miss": "cpu"},
        {"rerank": "cache-prior"},
        {"rerank": "max-rank"},
        {"rerank": "cache-prior-mass"},
        {"rerank": "tolerance"},
    ],
)
def test_with_everything_resident_no_policy_changes_anything(fields: dict[str, str], hardware: str) -> None:
    for family in ("mixtral", "gpt-oss", "olmoe"):
        model, ids = build(family), prompts(2, 6)
        want = logits_of(model, ids)
        with OffloadedExperts(
            model, hardware=hardware, cache=1.0, set=PREFILL.get(fields.get("miss", ""), {}), **fields
        ) as opened:
            assert torch.equal(logits_of(model, ids), want), family
            assert opened.summary()["misses"] == 0


PREFILL = {name: {f"{name}.prefill": 1} for name in ("next-ranked", "random", "drop")}


def kept_in(seen: list[Any], visit: Any, *args: Any) -> Any:
    seen.append(visit(*args))
    return seen[-1]


def test_stand_ins_and_dropped_slots_are_what_the_model_computes(hardware: str) -> None:
    """Against the model's own eager experts, called with the ids and weights that the answers come to."""
    model, ids = build("mixtral"), prompts(1, 5)
    model.set_experts_implementation("eager")
    for name, changed in (("next-ranked", "substituted"), ("drop", "dropped")):
        seen: list[Any] = []
        with OffloadedExperts(model, hardware=hardware, cache=3, miss=name, set=PREFILL[name]) as opened:
            opened.loop.visit = partial(kept_in, seen, opened.loop.visit)  # type: ignore[method-assign]
            got = logits_of(model, ids)
            assert opened.summary()[changed] > 0
        hooks, none = [], model.config.num_local_experts  # this many is nobody's id to the eager experts
        for served, layer in zip(seen, Driver.layers_of(model), strict=True):
            answer = torch.from_numpy(np.where(served.ids < 0, none, served.ids))
            hooks.append(
                layer.experts.register_forward_pre_hook(lambda _m, args, answer=answer: (args[0], answer, args[2]))
            )
        want = logits_of(model, ids)
        for hook in hooks:
            hook.remove()
        assert torch.equal(got, want) and not torch.equal(got, logits_of(model, ids))


def test_mean_outputs_stand_in_for_dropped_slots(hardware: str) -> None:
    """Against the eager experts without the dropped slots, the weighted means added by hand."""
    model, ids = build("mixtral"), prompts(1, 5)
    model.set_experts_implementation("eager")
    layers, none = Driver.layers_of(model), model.config.num_local_experts
    torch.manual_seed(0)
    means = MeanOutputs([torch.randn(none, model.config.hidden_size) for _ in layers])
    seen: list[Any] = []
    given = {"mean-output.threshold": 2, "mean-output.prefill": 1}
    with OffloadedExperts(model, hardware=hardware, cache=3, miss="mean-output", means=means, set=given) as opened:
        opened.loop.visit = partial(kept_in, seen, opened.loop.visit)  # type: ignore[method-assign]
        got = logits_of(model, ids)
        assert opened.summary()["dropped"] > 0
    hooks = []
    for served, layer, mean in zip(seen, layers, means.layers, strict=True):
        gone, wanted = torch.from_numpy(served.ids < 0), {}

        def drop(_m: Any, args: Any, gone: Any = gone, wanted: Any = wanted) -> Any:
            wanted["ids"] = args[1]
            return args[0], torch.where(gone, none, args[1]), args[2]

        def add(_m: Any, args: Any, out: Any, gone: Any = gone, wanted: Any = wanted, mean: Any = mean) -> Any:
            return out + torch.einsum("nk,nkh->nh", args[2] * gone, mean[wanted["ids"]]).to(out)

        hooks += [layer.experts.register_forward_pre_hook(drop), layer.experts.register_forward_hook(add)]
    want = logits_of(model, ids)
    for hook in hooks:
        hook.remove()
    assert torch.equal(got, want) and not torch.equal(got, logits_of(model, ids))


def test_the_decisions_are_the_simulators(hardware: str) -> None:
    """The routing that went by, replayed with the same policies, gives the same record."""
    model, ids = build("deepseek-v3"), prompts(1, 6)
    with OffloadedExperts(model, hardware=hardware, cache=5, miss="next-ranked", expert_group="ready") as opened:
        generated(model, ids, 8)
        record, trace = opened.record(), opened.trace()
    assert trace.prefill.sum() == 6 and trace.n_tokens == 6 + 7
    spec = RunSpec.of({"trace": "x", "hardware": hardware, "cache": 5, "miss": "next-ranked", "expert_group": "ready"})
    want = compiled(prepare(spec, trace=trace).plan, full=True)
    assert record.counters == want.counters and record.counters["substituted"] > 0
    for group, columns in want.groups.items():
        for name, column in columns.items():
            assert np.array_equal(record.groups[group][name], column), f"{group}.{name}"


def test_a_padded_batch_generates_as_it_did(hardware: str) -> None:
    model, ids = build("olmoe"), prompts(2, 6)
    ids[0, :2] = 1
    mask = (ids != 1).long()
    want = generated(model, ids, attention_mask=mask)
    with OffloadedExperts(model, hardware=hardware, cache=2):
        assert torch.equal(generated(model, ids, attention_mask=mask), want)


def test_a_prompt_in_chunks_is_prefill_to_its_last_column(hardware: str) -> None:
    model, ids = build("qwen3-moe"), prompts(1, 7)
    want = generated(model, ids)
    with OffloadedExperts(model, hardware=hardware, cache=3, miss="drop") as opened:
        generated(model, ids, 1, prefill_chunk_size=3)
        facts = opened.summary()
    assert facts["prompt_tokens"] == 7 and facts["dropped"] == 0 and facts["steps"] == 3
    assert torch.equal(generated(model, ids), want)


def test_half_precision_is_served(hardware: str) -> None:
    model, ids = build("gpt-oss").to(torch.bfloat16), prompts(2, 6)
    model.set_experts_implementation("eager")
    want = logits_of(model, ids)
    with OffloadedExperts(model, hardware=hardware, cache=2):
        assert torch.equal(logits_of(model, ids), want)


def test_what_cannot_be_is_refused_in_one_line(hardware: str) -> None:
    model, ids = build("deepseek-v3"), prompts(1, 4)
    with pytest.raises(SpecError, match=r"rerank: max-rank: .*deepseek_v3's chooses or weighs otherwise"):  # noqa: SIM117
        with OffloadedExperts(model, hardware=hardware, rerank="max-rank"):
            logits_of(model, ids)
    want = logits_of(model, ids)  # closed properly all the same
    assert want.isfinite().all()
    with pytest.raises(UserError, match=r"no model of transformers >= 5.0"):
        OffloadedExperts(torch.nn.Linear(2, 2), hardware=hardware)
    with pytest.raises(SpecError, match=r"eviction: belady: reads the future"):
        OffloadedExperts(model, hardware=hardware, eviction="belady")
    model.set_experts_implementation("moe_offload")
    with pytest.raises(UserError, match="not open in OffloadedExperts"):
        logits_of(model, ids)


def test_a_broken_step_ends_the_run(hardware: str) -> None:
    model, ids = build("mixtral"), prompts(1, 4)
    with OffloadedExperts(model, hardware=hardware) as opened:
        logits_of(model, ids)
        with pytest.raises(IndexError):
            logits_of(model, torch.full((1, 2), 500))
        with pytest.raises(RuntimeError, match="no step can follow"):
            logits_of(model, ids)
        assert opened.loop.tokens > 0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Mixtral with a tokenizer, as `save_pretrained` leaves them."""
    tokenizers = pytest.importorskip("tokenizers", reason="tokenizers is not installed (extra: train)")
    from transformers import PreTrainedTokenizerFast

    where = tmp_path_factory.mktemp("model")
    words = tokenizers.Tokenizer(tokenizers.models.BPE())
    words.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=128, special_tokens=["<s>"], show_progress=False)
    words.train_from_iterator(["def f(x):\n    return x + 1\n" * 40], trainer)
    PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<s>", eos_token="<s>").save_pretrained(where)
    build("mixtral").save_pretrained(where)
    return where


def test_the_command_generates(folder: Path, hardware: str, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["--model", str(folder), "--prompt", "def f(", "--max-new-tokens", "4", "--cache", "2"]
    assert live.main([*command, "--hardware", hardware]) == 0
    out = capsys.readouterr().out
    assert out.startswith("def f(") and "misses" in out and "simulated" in out
    assert live.main(["--model", "/nowhere", "--prompt", "x"]) == 2
    assert capsys.readouterr().err.startswith("error: model: /nowhere")
    assert live.main([*command, "--cache", "0"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_hugging_face_model_is_judged(
    folder: Path, hardware: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    import json

    from runtime import evaluate

    text = tmp_path / "text.py"
    text.write_text("def f(x):\n    return x + 1\n" * 60)
    command = ["--model", str(folder), "--text", str(text), "--sequences", "2", "--length", "8", "--hardware", hardware]
    assert evaluate.main([*command, "--cache", "2", "--json"]) == 0
    same = json.loads(capsys.readouterr().out)
    assert same["quality"]["kl_nats"]["value"] == 0 and same["quality"]["agreement"]["value"] == 1
    assert evaluate.main([*command, "--cache", "2", "--miss", "buddy-first-fit", "--free-running", "--json"]) == 0
    lossy = json.loads(capsys.readouterr().out)
    assert lossy["quality"]["kl_nats"]["value"] > 0 and lossy["shares"]["substituted_slots"] > 0
    assert lossy["free_running"]["prompt_tokens"] == 4
    command += ["--calibration-tokens", "16", "--cache", "2"]
    mean = ["--miss", "mean-output", "--set", "mean-output.threshold=2", "--json"]
    assert evaluate.main([*command, *mean]) == 0
    other = json.loads(capsys.readouterr().out)
    assert evaluate.main([*command, "--miss", "drop", "--json"]) == 0
    left_out = json.loads(capsys.readouterr().out)
    assert other["shares"] != lossy["shares"] and other["quality"]["kl_nats"] != left_out["quality"]["kl_nats"]


@pytest.mark.parametrize("own", [False, True])
def test_a_device_that_failed_says_why_once_and_the_model_is_whole_again(
    own: bool, hardware: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Giving memory back asks the device again, which says something else."""
    model = build("mixtral")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    port = OneStreamPort(torch.device("cpu"))

    def gone(self: Any) -> None:
        raise DeviceError("what it says later")

    with pytest.raises(DeviceError, match=r"^what it said first$"):  # noqa: SIM117 - the port is asked within
        with OffloadedExperts(model, hardware=hardware, cache=2, device=port if own else None) as opened:
            used = opened._slotted.port
            monkeypatch.setattr(OneStreamPort, "sync", gone)
            raise DeviceError("what it said first")
    monkeypatch.undo()
    assert own or not used.buffers
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    port.close()


@pytest.mark.parametrize("step", ["ModelExperts", "_store", "_move", "set_experts_implementation", "Driver"])
def test_an_opening_that_fails_leaves_the_model_as_it_was(
    step: str, hardware: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, closed = build("mixtral"), []
    before, kind = {name: t.clone() for name, t in model.state_dict().items()}, model.config._experts_implementation

    def fails(*_: Any, **__: Any) -> None:
        raise UserError("no")

    where: dict[str, tuple[Any, str]] = {
        "ModelExperts": (slotted, "ModelExperts"),
        "_store": (slotted.SlottedModel, "_store"),
        "_move": (slotted, "_move"),
        "set_experts_implementation": (type(model), "set_experts_implementation"),
        "Driver": (Driver, "__enter__"),
    }
    close = OneStreamPort.close
    monkeypatch.setattr(OneStreamPort, "close", lambda self: (closed.append(self), close(self)))
    monkeypatch.setattr(*where[step], fails)
    with pytest.raises(UserError, match=r"^no$"), OffloadedExperts(model, hardware=hardware, cache=2):
        raise AssertionError("opened")
    assert len(closed) == 1 and model.config._experts_implementation == kind
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    attached = [module for module in model.modules() if slotted.ATTACHED in module.__dict__]
    assert not attached


@pytest.mark.gpu
def test_on_an_accelerator_generations_are_equal(hardware: str) -> None:
    if not torch.accelerator.is_available():
        pytest.skip("no accelerator")
    for family in FAMILIES:
        device = torch.accelerator.current_accelerator()
        model, ids = build(family).to(device), prompts(2, 9).to(device)
        want = generated(model, ids, 12)
        with OffloadedExperts(model, hardware=hardware, cache=2, prefetch="previous-token") as opened:
            assert opened.store.slot_bytes.device.type == device.type
            assert torch.equal(generated(model, ids, 12), want), family
