"""Validation on a made-up device of known error: the exit statuses, the record, the table; and once on the real CPU,
where decisions must be equal and no time is judged."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime import calibrate, pacing
from runtime import validate as command
from runtime.agreement import REGIMES, Tolerance
from runtime.arms import enough_requests
from runtime.compare import statements, status
from runtime.decisions import Outcome
from runtime.lockstep import check
from runtime.observe import simulated
from runtime.validate import main
from runtime.validate_table import markdown
from sim.catalog.measured_spec import Knots, Measured
from sim.errors import SpecError
from sim.machines.compiled import run as compiled
from sim.measured_costs import interpolated, measured_costs
from sim.plan import Setting
from sim.record import RunRecord
from traces import npz
from traces.check import validate
from traces.synthetic import Preset, generate

MODEL = """
name = "tiny"
n_layers = 4
n_experts = 8
top_k = 2
hidden = 64
expert_intermediate = 96
attn_params_per_layer = 12288
kv_bytes_per_token_per_layer = 128
n_heads = 4
qk_dim = 16
v_dim = 16
vocab = 256
"""
TRUE: dict[str, Any] = {
    "device": "made up",
    "torch": "none",
    "model": "tiny",
    "precision": "fp32",
    "expert_bytes": 2_000_000,
    "decide_ns": 40_000,
    "transfer_idle_ns": 1,
    "transfer_following_ns": 1,
    "commit_gap_ns": 30_000,
    "expert": {"tokens": [1, 4], "ns": [300_000, 450_000]},
    "head": {"tokens": [1, 4], "ns": [100_000, 130_000]},
    "cpu_expert": {"tokens": [1], "ns": [700_000], "busy_ns": [800_000]},
    "dense": [
        {"tokens": [1, 4], "ns": [200_000, 260_000], "entry_ns": 50.0},
        {"tokens": [1], "ns": [900_000], "entry_ns": 2.0, "phase": "prefill"},
    ],
}


class MadeUp:
    """A device that takes exactly what TRUE says, times `level`, give or take `noise` from one replay to the next.

    bias: how much longer judged replays take than calibrating ones. unequal: its lock-steps find a difference.
    """

    expert_bytes = TRUE["expert_bytes"]

    def __init__(self, noise: float = 0.0, bias: float = 1.0, unequal: bool = False) -> None:
        self.rng, self.noise, self.bias, self.unequal = np.random.default_rng(0), noise, bias, unequal
        self.transfer_ns = round(self.expert_bytes / 1.0)

    def pace(self, gbps: float, latency_us: float) -> None:
        self.transfer_ns = round(self.expert_bytes / gbps + latency_us * 1e3)

    def bare_copy_ns(self) -> tuple[int, int]:
        return (round(self.transfer_ns * (1 - self.noise)),) * 2

    def kernels(self, tokens: Sequence[int]) -> list[dict[str, Any]]:
        """As long as TRUE says, of which the device is busy for a tenth."""
        expert = Knots(**TRUE["expert"])
        seen = interpolated(expert, tokens).tolist()
        times = [{"device_ns": ns / 10, "host_ns": ns / 2, "seen_ns": ns, "ahead": True} for ns in seen]
        return [{"tokens": n, **ns} for n, ns in zip(tokens, times, strict=True)]

    def facts(self) -> dict[str, Any]:
        return {"what": "made up", "torch": "none"}

    def replay(self, setting: Setting) -> RunRecord:
        both = {"transfer_idle_ns": self.transfer_ns, "transfer_following_ns": self.transfer_ns}
        assert setting.model is not None
        shapes = simulated(setting).shapes
        costs = measured_costs(setting.model, Measured(**{**TRUE, **both}), setting.spec.precision, shapes)
        record = compiled(replace(setting.plan, costs=costs), True)
        visits = record.groups["visits"]
        visits["dense_end_ns"] = visits["routed_ns"] - costs.decide_ns
        factor = (self.bias if setting.spec.calibration else 1.0) * (1 + self.noise * self.rng.uniform(-1, 1))
        for group in (record.steps, *record.groups.values()):
            for name in group:
                if name.endswith("_ns"):
                    group[name] = np.rint(group[name] * factor).astype(np.int64)
        return record

    def lock_step(self, setting: Setting, record: RunRecord) -> tuple[RunRecord | None, Outcome]:
        outcome = check(setting.plan, record)
        return (None, replace(outcome, error="made to differ")) if self.unequal else (record, outcome)


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A folder with the model `tiny.toml` and its trace `t.npz`."""
    (tmp_path / "tiny.toml").write_text(MODEL)
    preset = Preset("tiny", 8, 2, 4, tuple(range(4)), memory=((0, 0.3, 0.0),), noise=(0.24,), requests=8)
    npz.write(tmp_path / "t.npz", generate(preset, 0))
    return tmp_path


def flags(files: Path, *more: str) -> list[str]:
    named = ["--trace", str(files / "t.npz"), "--model", str(files / "tiny.toml"), "--out", str(files / "out")]
    return [*named, "--device", "cpu", "--quick", *more]


def on(bench: MadeUp, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every command from here on runs on that device."""

    @contextmanager
    def opened(*_: Any) -> Iterator[MadeUp]:
        yield bench

    monkeypatch.setattr(calibrate, "open_bench", opened)


def test_a_device_that_is_what_was_calibrated_is_within(
    files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    on(MadeUp(noise=0.01), monkeypatch)
    assert main(flags(files, "--repeats", "3")) == 0
    said = capsys.readouterr().out
    out = json.loads((files / "out/validation.json").read_text())
    assert (out["exit"], out["rounds"], len(out["drift"])) == (0, 3, 3)
    assert {name: s["verdict"] for name, s in out["statements"].items()} == dict.fromkeys(
        ("median", "worst", "tau", "equal", "regimes"), "within"
    )
    assert len(out["arms"]) == 18 and {arm["regime"] for arm in out["arms"]} == set(REGIMES)
    for arm in out["arms"]:
        assert abs(arm["error"]) < 0.04 and arm["spread"] < 0.02 and len(arm["repeats_ns"]) == 3
        assert arm["hits"]["measured"] == [arm["hits"]["simulated"]] * 3
        assert arm["lock_step"]["equal"] and arm["lock_step"]["decisions"] > 100 and arm["core_check"]["equal"]
        assert sum(arm["measured_ns"][n] for n in ("dense", "decide", "experts", "stall", "head")) == pytest.approx(
            arm["measured_ns"]["total"], rel=0.02
        )
    assert out["calibration"]["mixed"]["expert"]["ns"][0] == pytest.approx(300_000, rel=0.03)
    assert out["calibration"]["mixed"]["decide_ns"] == pytest.approx(40_000, rel=0.03)
    assert out["calibration"]["stall"]["transfer_idle_ns"] > out["calibration"]["compute"]["transfer_idle_ns"]
    assert "SYNTHETIC" in said and "| within |" in said and said == (files / "out/validation.md").read_text()
    assert {p.name for p in (files / "out").iterdir()} == {
        "validation.json", "validation.md", "compute.toml", "mixed.toml", "stall.toml",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("bench", "status", "wrong"),
    [
        (MadeUp(noise=0.01, bias=1.5), 1, {"median": "outside", "worst": "outside"}),  # a third too low
        (MadeUp(noise=0.4), 3, {"median": "inconclusive"}),  # nobody knows
        (MadeUp(noise=0.01, unequal=True), 1, {"equal": "outside"}),
    ],
)
def test_exit_statuses(
    files: Path, monkeypatch: pytest.MonkeyPatch, bench: MadeUp, status: int, wrong: dict[str, str]
) -> None:
    on(bench, monkeypatch)
    assert main(flags(files, "--repeats", "6", "--policies", "lru,belady", "--json")) == status
    stated = json.loads((files / "out/validation.json").read_text())["statements"]
    assert wrong.items() <= {name: s["verdict"] for name, s in stated.items()}.items()


def test_a_link_that_is_not_chosen_has_no_regimes_to_cover(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    on(MadeUp(), monkeypatch)
    few = ("--repeats", "2", "--link-gbps", "3", "--caches", "3,5", "--batches", "2", "--policies", "lru,lfu+cpu")
    assert main(flags(files, *few)) in (0, 1, 3)
    out = json.loads((files / "out/validation.json").read_text())
    assert "regimes" not in out["statements"] and [link["gbps"] for link in out["links"]] == [3.0]
    assert "cpu_expert" in out["calibration"]["link"]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--trace", "no-such.npz"), "no-such.npz"),
        (("--policies", "lur"), "did you mean lru?"),
        (("--policies", "lru+gate-lokahead"), "did you mean gate-lookahead?"),
        (("--caches", "0"), "--caches: 0: must be at least one slot"),
        (("--caches", "3,20GB"), "--caches: 3,20GB: must be slots (24) or a fraction of the experts (0.5)"),
        (("--batches", "4,0"), "--batches: 4,0: must be whole numbers above 0"),
        (("--calibration", "1.5"), "calibration: 1.5: must be a fraction between 0 and 1"),
        (("--scale", "2"), "scale: 2: must be at most 1"),
        (("--steps", "1"), "steps: 1: must be above 1, which warm up"),
        (("--repeats", "0"), "repeats: 0: must be above 0"),
        (("--precision", "q4"), "q4"),
        (("--host-memory", "100"), "--host-memory: 100: must be bytes with a unit, such as 24GB"),
        (("--host-memory", "0GB"), "--host-memory: 0GB: must be above 0"),
        (("--host-memory", "1MB"), "memory: needs"),
        (("--device", "abacus"), "abacus"),
        (("--colour", "red"), "--colour: unknown argument"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(
    files: Path, capsys: pytest.CaptureFixture[str], more: tuple[str, ...], said: str
) -> None:
    assert main(flags(files, *more)) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1 and said in err
    assert not (files / "out").exists()


def test_a_regime_without_two_arms_is_inconclusive() -> None:
    row = {
        "link": "a", "batch": 1, "error": 0.0, "spread": 0.0, "regime": "mixed",
        "measured_ns": {"total": 1.0}, "simulated_ns": {"total": 1.0}, "core_check": {"equal": True},
        "lock_step": {"equal": True, "hits": 3, "simulated_hits": 3},
    }  # fmt: skip
    rows = [{**row, "regime": name, "measured_ns": {"total": float(i)}} for i, name in enumerate(REGIMES * 2)]
    assert statements(rows, Tolerance(), True)["regimes"]["verdict"] == "within"
    assert statements(rows[:-1], Tolerance(), True)["regimes"]["verdict"] == "inconclusive"
    wrong = [{**rows[0], "lock_step": {"equal": True, "hits": 3, "simulated_hits": 4}}, *rows[1:]]
    assert statements(wrong, Tolerance(), True)["equal"]["verdict"] == "outside"
    wrong = [{**rows[0], "core_check": {"equal": False}}, *rows[1:]]
    assert statements(wrong, Tolerance(), True)["equal"]["verdict"] == "outside"


def test_the_pace_meets_the_regime() -> None:
    # stall of a link that takes 1 ms per GB/s beside 1 ms of work: share = 1 / (1 + gbps)
    shares = lambda gbps: [1 / (1 + gbps), 0.9 / (1 + gbps)]  # noqa: E731 - two numbers
    assert pacing.gbps_for("stall", shares) == pytest.approx(0.9 / 0.87 - 1, abs=0.002)
    assert pacing.gbps_for("mixed", shares) == pytest.approx(0.95 / 0.5 - 1, abs=0.002)
    with pytest.raises(SpecError, match=r"an arm stalls 20% of the time even at 4 GB/s"):
        pacing.gbps_for("compute", lambda gbps: [0.2001, 0.1])
    assert pacing.gbps_for("compute", lambda gbps: [0.3 / gbps]) == pytest.approx(3, abs=0.01)


def test_on_this_cpu_hits_and_decisions_are_equal(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever its times are, which a test must not judge."""
    small = ("--repeats", "2", "--steps", "6", "--scale", "1", "--policies", "lru,lru+gate-lookahead")
    status = main(flags(files, *small, "--link-gbps", "2", "--caches", "3,6", "--batches", "2"))
    assert status in (0, 1, 3)
    out = json.loads((files / "out/validation.json").read_text())
    assert out["statements"]["equal"]["value"] is True and len(out["arms"]) == 4
    for arm in out["arms"]:
        assert arm["lock_step"]["equal"] and arm["lock_step"]["hits"] == arm["lock_step"]["simulated_hits"]
        assert arm["core_check"]["equal"] and arm["lock_step"]["decisions"] > 100
        parts = [arm["measured_ns"][name] for name in ("dense", "experts", "head", "copies")]
        assert min(parts) > 0 and min(arm["hits"]["measured"]) > 0
    hardware = files / "out/link.toml"
    from sim.run import main as simulate

    named = ["--trace", str(files / "t.npz"), "--model", str(files / "tiny.toml"), "--hardware", str(hardware)]
    capsys.readouterr()
    assert simulate([*named, "--precision", "fp32", "--as-decode", "--cache", "3"]) == 0
    assert "MEASURED: durations from a calibration on torch on the CPU" in capsys.readouterr().out


def test_without_a_lookahead_the_prefetcher_is_one_that_is_fitted(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    preset = Preset("tiny", 8, 2, 4, tuple(range(4)), requests=4)
    npz.write(files / "t.npz", generate(preset, 1))
    seen: list[str] = []
    on(MadeUp(), monkeypatch)
    monkeypatch.setattr(command, "validated", lambda *a: seen.extend(arm.policy for arm in a[2]) or {})
    args = command.parser().parse_args(flags(files, "--link-gbps", "1"))
    command.run(args, files)
    assert "lru+transition" in seen


def test_too_few_requests_to_calibrate_on_come_again_begun_elsewhere() -> None:
    preset = Preset("tiny", 8, 2, 4, tuple(range(4)), requests=2, noise=(0.24,), prompt=(5, 9), generation=(10, 20))
    trace = generate(preset, 0)
    assert enough_requests(trace, 2) is trace
    more = enough_requests(trace, 5)
    validate(more)
    (first, end), n = trace.requests(), trace.n_tokens
    assert len(more.requests()[0]) == 6 and more.n_tokens == 3 * n
    length = int(end[0] - first[0])
    shift = length // 3  # the second time a request begins a third further on
    assert (more.experts[n : n + length] == np.roll(trace.experts[:length], -shift, axis=0)).all()
    assert more.lookahead is not None and trace.lookahead is not None
    assert (more.lookahead[:, n : n + length] == np.roll(trace.lookahead[:, :length], -shift, axis=1)).all()
    assert (more.position[n : 2 * n] == trace.position).all() and (more.prefill[n : 2 * n] == trace.prefill).all()


def test_the_kept_record_says_what_its_page_says() -> None:
    kept = Path(__file__).parent.parent / "analysis/results/validation_cpu"
    out = json.loads(kept.with_suffix(".json").read_text())
    assert kept.with_suffix(".md").read_text() == markdown(out) + "\n"
    stated = statements(out["arms"], Tolerance(), True)
    assert stated == out["statements"] and out["exit"] == status(stated)
    page = (kept.parent.parent.parent / "VALIDATION.md").read_text()
    for name in ("median", "worst"):
        assert f"{stated[name]['value']:.1%}".replace("%", " %") in page
    assert f"{stated['tau']['value']:.2f} over {stated['tau']['pairs']} pairs" in page
    assert "It was made by the command" in page and out["command"] in page.replace(
        "--trace mixtral.npz --device cpu --quick", "--device cpu --quick --trace mixtral.npz"
    )
