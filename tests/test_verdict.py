"""Verdicts: the decision by hand at every threshold, the facts of small runs by arithmetic."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sim.outcome import verdict as module
from sim.outcome.verdict import (
    DECISION,
    GPU,
    HOST,
    HOST_COMPUTE,
    HOST_MEMORY,
    LINK,
    POLICY,
    REMOTE,
    SAID,
    STREAMING,
    WORKING_SET,
    Facts,
    cpu_experts,
    kind,
    verdict,
    wants_per_visit,
)
from sim.simulation import simulate
from sim.spec import RunSpec
from tests.gen import random_trace
from tests.plans import plan
from traces.format import npz

# --- the decision ---

BUSY = Facts(stall=0.5, link=0.95)
DECIDED: list[tuple[Facts, str]] = [
    # the GPU waits less than a tenth of the time, for whatever
    (Facts(stall=0.0999, link=0.95), GPU),
    (Facts(stall=0.1, link=0.95), LINK),
    (Facts(cpu_wait=0.0999), GPU),
    (Facts(cpu_wait=0.1), HOST),
    (Facts(decide=0.0999), GPU),
    (Facts(decide=0.1), DECISION),
    (Facts(stall=0.04, cpu_wait=0.03, decide=0.02, link=1.0, scopes=2, small=2), GPU),
    (Facts(stall=0.04, cpu_wait=0.03, decide=0.04, link=1.0), LINK),
    # the link has room below nine tenths
    (Facts(stall=0.5, link=0.8999), POLICY),
    (Facts(stall=0.5, link=0.9), LINK),
    # deciding names it where it is more than either other wait
    (Facts(stall=0.2, cpu_wait=0.2, decide=0.2, link=1.0), LINK),
    (Facts(stall=0.2, cpu_wait=0.2, decide=0.2001, link=1.0), DECISION),
    (Facts(stall=0.2001, decide=0.2, link=0.3), POLICY),
    (Facts(cpu_wait=0.2001, decide=0.2), HOST),
    # half of the layers are too small for what is waited for on the link
    (BUSY._replace(scopes=32, small=15), LINK),
    (BUSY._replace(scopes=32, small=16), WORKING_SET),
    (BUSY._replace(scopes=1, small=1, pooled=True), WORKING_SET),
    (Facts(cpu_wait=0.9, scopes=2, small=1, host=HOST_MEMORY), HOST_MEMORY),
    (Facts(decide=0.9, scopes=2, small=2), DECISION),
    # the CPU's experts, where more is waited for them than for transfers: also beside a busy link
    (Facts(stall=0.3, cpu_wait=0.3, link=0.95, host=HOST_MEMORY), LINK),
    (Facts(stall=0.3, cpu_wait=0.3001, link=0.95, host=HOST_MEMORY), HOST_MEMORY),
    (Facts(cpu_wait=0.88, host=HOST_COMPUTE), HOST_COMPUTE),
    (Facts(), GPU),
    (Facts(remote=0.5), REMOTE),
    (Facts(remote=0.4999), GPU),
    (Facts(remote=0.5, stall=0.5001, link=0.95), LINK),
    (Facts(stall=0.5, link=0.95, streamed=0.5), STREAMING),
    (Facts(stall=0.45, cpu_wait=0.4, link=0.43, host_works=0.5, host=HOST_MEMORY), HOST_MEMORY),
    (Facts(stall=0.45, cpu_wait=0.4, link=0.43, host_works=0.4999, host=HOST_MEMORY), POLICY),
    (Facts(stall=0.5, link=0.95, streamed=0.4999), LINK),
]


@pytest.mark.parametrize("facts, right", DECIDED)
def test_each_verdict_on_both_sides_of_its_thresholds(facts: Facts, right: str) -> None:
    assert kind(facts) == right
    assert verdict(facts).startswith(f"{right}: ")


def test_every_verdict_is_decided_above() -> None:
    assert {right for _, right in DECIDED} == set(SAID)


def test_prompts_are_named_from_half_of_the_time_on() -> None:
    assert "prompts" not in verdict(BUSY._replace(prompts=0.4999))
    assert "(prompts take 50.0% of the time)" in verdict(BUSY._replace(prompts=0.5))


LINES = [
    (
        Facts(stall=0.02, decide=0.01),
        "GPU-bound: the GPU works 97.0% of the time; a larger cache or a faster link does not help",
    ),
    (
        Facts(stall=0.5, link=0.95),
        "link-bound: the link is busy 95.0% of the time, the GPU waits 50.0%; fewer or smaller transfers help: "
        "more slots, a smaller precision, a better policy",
    ),
    (
        Facts(stall=0.5, decide=0.1, link=0.4),
        "policy-bound: the GPU waits 60.0% of the time, though the link is busy only 40.0%; fewer or earlier transfers "
        "help: another eviction, a prefetcher; oracles (belady, oracle) say how much",
    ),
    (
        Facts(stall=0.9, scopes=4, small=3, slots=1.5, wanted=2),
        "working-set-bound: 3 of 4 layers have fewer slots (1.50) than a visit wants experts (2.00); no policy keeps "
        "them all; more slots, a smaller precision or a smaller batch help",
    ),
    (
        Facts(stall=0.9, small=1, slots=60, wanted=64.5, pooled=True),
        "working-set-bound: the pool has fewer slots (60.00) than a step wants experts (64.50); no policy keeps "
        "them all; more slots, a smaller precision or a smaller batch help",
    ),
    (
        Facts(cpu_wait=0.877, host=HOST_MEMORY),
        "host-memory-bound: the GPU waits 87.7% of the time for the CPU's experts, which mostly read weights; "
        "fewer misses, more slots, a smaller precision or faster DRAM help",
    ),
    (
        Facts(cpu_wait=0.877, host=HOST_COMPUTE),
        "host-compute-bound: the GPU waits 87.7% of the time for the CPU's experts, which mostly compute; "
        "fewer tokens per CPU expert (fetch for prompts, a smaller batch) or a CPU of more operations/s help",
    ),
    (
        Facts(cpu_wait=0.877),
        "host-bound: the GPU waits 87.7% of the time for the CPU's experts; fewer misses, more slots or a faster host "
        "help",
    ),
    (
        Facts(decide=0.4),
        "decision-bound: the GPU works 60.0% of the time, reading the routing back and deciding takes 40.0%; a cheaper "
        "policy or a faster readback helps",
    ),
    (Facts(time_ns=0), "none: nothing takes any time"),
]


@pytest.mark.parametrize("facts, right", LINES)
def test_a_verdict_says_its_evidence_and_what_helps(facts: Facts, right: str) -> None:
    assert verdict(facts) == right


# --- what a visit wants ---


def brute_force(experts: Any, steps: list[list[int]], prefill: list[bool], phase: bool, warmup: int) -> list[float]:
    mine = [rows for i, (rows, kind) in enumerate(zip(steps, prefill, strict=True)) if kind == phase and i >= warmup]
    return [
        sum(len(set(experts[rows, layer].ravel().tolist()) - {-1}) for rows in mine) / max(len(mine), 1)
        for layer in range(experts.shape[1])
    ]


def test_wants_by_hand() -> None:
    # steps: a prompt of tokens 0 and 1, then tokens 2 and 3 one by one. Layer 0: {0, 1} and {0, 2} are 3 experts; then
    # 1 (the other slot is nobody) and 2 experts, 1.5 on average. Layer 1: {3}, then nobody and {0, 1}: 1
    wanted = [[[0, 1], [3, -1]], [[2, 0], [-1, 3]], [[1, -1], [-1, -1]], [[3, 2], [1, 0]]]
    p = plan(wanted, 4, [2, 2], steps=[[0, 1], [2], [3]], prefill=[True, False, False])
    assert wants_per_visit(p, True).tolist() == [3, 1]
    assert wants_per_visit(p, False).tolist() == [1.5, 1]
    late = plan(wanted, 4, [2, 2], steps=[[0, 1], [2], [3]], prefill=[True, False, False], warmup_steps=2)
    assert wants_per_visit(late, False).tolist() == [2, 2] and wants_per_visit(late, True).tolist() == [0, 0]


@pytest.mark.parametrize("block", [1, 40, module.BLOCK])
def test_wants_are_counted_the_same_in_any_blocks(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK", block)
    rng = np.random.default_rng(7)
    for _ in range(20):
        steps, first = [], 0
        for size in rng.integers(1, 5, rng.integers(1, 9)):
            steps.append(list(range(first, first + size)))
            first += size
        experts = np.argsort(rng.random((first, 3, 6)), axis=-1)[..., :2]
        experts[rng.random(experts.shape) < 0.2] = -1
        prefill, warmup = (rng.random(len(steps)) < 0.5).tolist(), int(rng.integers(0, len(steps)))
        p = plan(experts, 6, [2, 2, 2], steps=steps, prefill=prefill, warmup_steps=warmup)
        for phase in (True, False):
            right = brute_force(experts, steps, prefill, phase, warmup)
            assert wants_per_visit(p, phase).tolist() == pytest.approx(right)


# --- small runs ---


def ran(folder: Path, wanted: Any, n_experts: int, prompt: int = 0, fixed: str = "", **fields: Any) -> dict[str, Any]:
    """A run of one request, wanted [T][L][K], of which the first `prompt` tokens are its prompt. Durations: dense 10,
    expert 5, transfer 100, on the CPU 7, unless `fixed` says otherwise (the later line counts)."""
    experts = np.asarray(wanted, np.int16)
    tokens, layers, k = experts.shape
    trace = random_trace(
        np.random.default_rng(0), tokens=tokens, layers=layers, experts=n_experts, k=k, requests=1, prompt=0
    )
    object.__setattr__(trace, "experts", experts)
    object.__setattr__(trace, "prefill", np.arange(tokens) < prompt)
    npz.write(folder / "t.npz", trace)
    values = {"dense_ns": 10, "expert_ns": 5, "transfer_ns": 100, "decide_ns": 0, "cpu_expert_ns": 7}
    values |= {name: int(value) for name, value in (line.split("=") for line in fixed.split())}
    (folder / "h.toml").write_text("[fixed]\n" + "".join(f"{name} = {value}\n" for name, value in values.items()))
    spec = {"trace": str(folder / "t.npz"), "hardware": str(folder / "h.toml"), **fields}
    return simulate(RunSpec.of(spec))[0]


WORKED = [[[0]], [[2]], [[1]]]  # the design's worked check: two slots hold 0 and 1


def test_policy_bound_where_the_link_has_room(tmp_path: Path) -> None:
    # 245 = dense 30 + experts 15 + stall 200, of which the link is busy 200: 81.6 %
    out = ran(tmp_path, WORKED, 3, cache=2)
    assert out["time_ns"] == 245
    assert out["verdict"].startswith(
        "policy-bound: the GPU waits 81.6% of the time, though the link is busy only 81.6%"
    )


def test_link_bound_where_it_has_none(tmp_path: Path) -> None:
    # with dense 1: 3 + 15 + 200 = 218, and 200 / 218 = 91.7 %
    out = ran(tmp_path, WORKED, 3, cache=2, fixed="dense_ns=1")
    assert out["verdict"].startswith("link-bound: the link is busy 91.7% of the time, the GPU waits 91.7%")


def test_gpu_bound_where_all_is_there(tmp_path: Path) -> None:
    assert ran(tmp_path, WORKED, 3, cache=3)["verdict"].startswith("GPU-bound: the GPU works 100.0% of the time")


def test_decision_bound(tmp_path: Path) -> None:
    # all is there: dense 30 + experts 15 + decide 3 x 5 = 60: a quarter
    out = ran(tmp_path, WORKED, 3, cache=3, fixed="decide_ns=5")
    assert out["verdict"].startswith(
        "decision-bound: the GPU works 75.0% of the time, reading the routing back and deciding takes 25.0%"
    )


def test_host_bound_with_durations_given_outright(tmp_path: Path) -> None:
    # 2 is computed on the CPU in 28; 0 and 1 stay: dense 30 + experts 10 + cpu_wait 28 = 68: 41.2 %
    out = ran(tmp_path, WORKED, 3, cache=2, miss="cpu", fixed="cpu_expert_ns=28")
    assert out["verdict"].startswith("host-bound: the GPU waits 41.2% of the time for the CPU's experts;")


def test_working_set_bound_by_layers_and_in_a_pool(tmp_path: Path) -> None:
    # two layers of 3 experts, each token wants two of each layer: a step wants 4
    wanted = [[[0, 1], [0, 1]], [[1, 2], [1, 2]], [[2, 0], [2, 0]]]
    small, large = (ran(tmp_path, wanted, 3, cache=cache)["verdict"] for cache in (1, 2))
    assert small.startswith(
        "working-set-bound: 2 of 2 layers have fewer slots (1.00) than a visit wants experts (2.00)"
    )
    assert "working-set" not in large
    small, large = (ran(tmp_path, wanted, 3, cache=n, cache_scope="global")["verdict"] for n in (3, 4))
    assert small.startswith("working-set-bound: the pool has fewer slots (3.00) than a step wants experts (4.00)")
    assert "working-set" not in large


def test_layers_of_different_sizes_count_each_by_itself(tmp_path: Path) -> None:
    # of 5 slots the first two layers get 2, the last 1
    wanted = [[[0, 1]] * 3, [[1, 2]] * 3, [[2, 0]] * 3]
    out = ran(tmp_path, wanted, 3, cache="5B")
    assert (out["slots"]["least"], out["slots"]["most"]) == (1, 2) and "working-set" not in out["verdict"]
    out = ran(tmp_path, wanted, 3, cache="4B")  # 2, 1, 1: two of three are too small
    assert out["verdict"].startswith("working-set-bound: 2 of 3 layers have fewer slots (1.00) than")


def test_the_phase_that_takes_the_time_decides_what_a_visit_wants(tmp_path: Path) -> None:
    # prompt of 3 tokens in one step: dense to 10, 0 runs to 15, 1 to 20; 2 takes 0's slot at 15, lands at 115, runs to
    # 120; it then stays, and every generated token wants it: 15 each. The stall is 95
    def after(generated: int) -> str:
        return str(ran(tmp_path, [[[0]], [[1]], [[2]], *[[[2]]] * generated], 3, prompt=3, cache=2)["verdict"])

    # 4 generated: 180, prompts 66.7 %, which want 3 experts of 2 slots
    right = (
        "working-set-bound: 1 of 1 layers have fewer slots (2.00) than a visit wants experts (3.00) (prompts take 66.7%"
    )
    assert after(4).startswith(right)
    # 10 generated: 270, prompts 44.4 %; a decode visit wants 1, stall 95 / 270 and link 100 / 270
    assert after(10).startswith("policy-bound: the GPU waits 35.2% of the time, though the link is busy only 37.0%;")


def test_a_run_that_wants_nothing_and_one_that_takes_no_time(tmp_path: Path) -> None:
    assert ran(tmp_path, [[[-1]], [[-1]]], 3, cache=1)["verdict"].startswith("GPU-bound: ")
    none = "dense_ns=0 expert_ns=0 transfer_ns=0"
    out = ran(tmp_path, WORKED, 3, cache=2, fixed=none)
    assert out["time_ns"] == 0 and out["verdict"] == "none: nothing takes any time"


# --- what the host's time goes into ---


def on_host(folder: Path, read_gb_per_s: float, launch_ns: int, **fields: Any) -> dict[str, Any]:
    """Mixtral's misses in q4 on a CPU of 1 TFLOP/s: 2 operations per weight, and 4.5 bits of each to read."""
    (folder / "h.toml").write_text(
        'gpu = "rtx4090"\n[link]\nh2d_gb_per_s = 25\nsetup_ns = 10000\n'
        f"[host]\nread_gb_per_s = {read_gb_per_s}\ntotal_gb_per_s = {read_gb_per_s}\n"
        "tflops = 1\n"
    )
    (folder / "e.toml").write_text(f'like = "ideal"\ncpu_expert_ns = {launch_ns}\n')
    named = {"hardware": str(folder / "h.toml"), "engine": str(folder / "e.toml")}
    base = {"trace": "mixtral.npz", **named, "precision": "q4", "miss": "cpu"}
    return simulate(RunSpec.of({**base, **fields}))[0]


@pytest.mark.parametrize(
    "read_gb_per_s, launch_ns, right",
    [
        # one token: 176,160,768 weights x 2 / 1000 a ns = 352,322 ns; x 4.5 / 8 bytes / 281 = 352,635, / 282 = 351,385
        (281, 21_000, HOST_MEMORY),
        (282, 21_000, HOST_COMPUTE),
        (281, 352_634, HOST_MEMORY),
        (281, 352_636, HOST),
    ],
)
def test_reading_or_arithmetic_at_one_token(tmp_path: Path, read_gb_per_s: float, launch_ns: int, right: str) -> None:
    out = on_host(tmp_path, read_gb_per_s, launch_ns, warmup_steps=1, max_steps=9)
    assert out["prompt_tokens"] == 0 and out["cpu"] == cpu_experts(out) == out["misses"] > 0
    assert out["verdict"].startswith(f"{right}: ")


def test_prompts_make_it_arithmetic(tmp_path: Path) -> None:
    # at 60 GB/s reading takes 1.65 ms, as long as the arithmetic of 4.7 tokens; a prompt of 84 tokens, top-2 of 8
    # experts, gives each expert 21 on average
    out = on_host(tmp_path, 60, 21_000, max_steps=1)
    assert 10 < out["cpu"] / cpu_experts(out) < 40
    assert out["verdict"].startswith("host-compute-bound: ") and "(prompts take 100.0% of the time)" in out["verdict"]


def test_experts_on_the_cpu_are_the_misses_that_nothing_was_sent_for(tmp_path: Path) -> None:
    # fiddler fetches what a prompt wants of many tokens and computes the rest on the CPU
    (tmp_path / "h.toml").write_text(
        'gpu = "rtx4090"\n[link]\nh2d_gb_per_s = 25\nsetup_ns = 10000\n[host]\nread_gb_per_s = 60\n'
    )
    fields = {"trace": "mixtral.npz", "hardware": str(tmp_path / "h.toml"), "precision": "q4", "max_steps": 40}
    out, record = simulate(RunSpec.of({**fields, "miss": "fiddler"}), full=True)
    assert out["transfers"]["demand"] > 0
    assert cpu_experts(out) == int(record.groups["executions"]["cpu"].sum()) > 0
