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

from runtime import validate as command
from runtime.experts.layout import StoreError
from runtime.experts.store import Need
from runtime.measuring import flags as flags_of
from runtime.measuring import pacing, probe, validation
from runtime.measuring.agreement import REGIMES
from runtime.measuring.cases import BenchLink, Traces, enough_requests, grid, long_prompts
from runtime.measuring.durations import TimedRun, simulated
from runtime.measuring.judged import compared, statements, status
from runtime.measuring.microbenchmarks import gpu_busy_ns
from runtime.measuring.rounds import Deadline
from runtime.measuring.table import markdown
from runtime.replaying.decisions import Outcome
from runtime.replaying.lockstep import check
from runtime.validate import main
from sim import catalog
from sim.catalog.measured_spec import Knots, Measured
from sim.costs.measured import interpolated, measured_costs
from sim.errors import SpecError
from sim.machines.compiled import run as compiled
from sim.machines.record import RunRecord
from sim.prepare import Setting, prepare
from sim.spec import RunSpec
from tests.clocks import Clock
from traces.format import npz
from traces.format.check import validate
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
        judged = "calibration" not in Path(setting.spec.trace).name
        factor = (self.bias if judged else 1.0) * (1 + self.noise * self.rng.uniform(-1, 1))
        for group in (record.steps, *record.groups.values()):
            for name in group:
                if name.endswith("_ns"):
                    group[name] = np.rint(group[name] * factor).astype(np.int64)
        return record

    def lock_step(self, setting: Setting, record: RunRecord) -> tuple[RunRecord | None, Outcome]:
        outcome = check(setting.plan, record)
        return (None, replace(outcome, error="made to differ")) if self.unequal else (record, outcome)


class Timed(MadeUp):
    """A device on a clock: a replay takes what its record says, and `each_s`."""

    def __init__(self, clock: Clock, each_s: float) -> None:
        super().__init__(noise=0.01)
        self.clock, self.each_s, self.replays, self.lock_steps = clock, each_s, 0, 0

    def replay(self, setting: Setting) -> RunRecord:
        record = super().replay(setting)
        self.clock.tick(self.each_s + float(record.steps["end_ns"][-1]) / 1e9)
        self.replays += 1
        return record

    def lock_step(self, setting: Setting, record: RunRecord) -> tuple[RunRecord | None, Outcome]:
        self.clock.tick(self.each_s)
        self.lock_steps += 1
        return super().lock_step(setting, record)


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

    monkeypatch.setattr(flags_of, "open_bench", opened)


def test_a_device_that_is_what_was_calibrated_is_within(
    files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    on(MadeUp(noise=0.01), monkeypatch)
    assert main(flags(files, "--repeats", "3")) == 0
    said = capsys.readouterr().out
    out = json.loads((files / "out/validation.json").read_text())
    assert (out["exit"], out["rounds"], len(out["drift"])) == (0, 3, 3)
    assert {name: s["verdict"] for name, s in out["statements"].items()} == dict.fromkeys(
        ("median", "without_link", "worst", "tau", "equal", "regimes", "capacities"), "within"
    )
    assert len(out["arms"]) == 3 + 6 + 6 and {case["regime"] for case in out["arms"]} == set(REGIMES)
    for case in out["arms"]:
        assert abs(case["error"]) < 0.04 and case["spread"] < 0.02 and len(case["repeats_ns"]) == 3
        assert case["hits"]["measured"] == [case["hits"]["simulated"]] * 3
        assert case["lock_step"]["equal"] and case["lock_step"]["decisions"] > 100 and case["core_check"]["equal"]
        assert sum(case["measured_ns"][n] for n in ("dense", "decide", "experts", "stall", "head")) == pytest.approx(
            case["measured_ns"]["total"], rel=0.02
        )
    assert [link["calibrated_at"] for link in out["links"]] == [[5, 7], [4, 6], [2, 5]]
    # a token's two experts in each of four layers, 30 us of the device each: TRUE, and a tenth of it
    assert {case["gpu_busy_ns"] for case in out["arms"] if case["batch"] == 1} == {2 * 4 * 30_000}
    assert [kernel["tokens"] for kernel in out["kernels"]] == [1, 4]  # four requests together
    assert "* one expert, 4 tokens: GPU busy 45.0 us of the 450.0 us that the host takes to launch it and see" in said
    assert ": HOST-BOUND\n" in said and "experts keep the device busy for " in said
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
    assert main(flags(files, "--repeats", "9", "--policies", "lru,belady", "--json")) == status
    stated = json.loads((files / "out/validation.json").read_text())["statements"]
    assert wrong.items() <= {name: s["verdict"] for name, s in stated.items()}.items()


def record(files: Path) -> dict[str, Any]:
    """What the last command wrote."""
    out: dict[str, Any] = json.loads((files / "out/validation.json").read_text())
    return out


def test_an_own_link_is_judged_up_to_all_experts_and_over_long_prompts(
    files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on(MadeUp(noise=0.01), monkeypatch)
    assert main(flags(files, "--repeats", "3", "--link-gbps", "0.7")) == 0
    out = record(files)
    assert {s["verdict"] for s in out["statements"].values()} == {"within"} and out["kind"] == "full"
    # three policies at 2 and 7 of 8 slots, at 8 one, for nothing is decided there; two batches; two long prompts
    assert len(out["arms"]) == (2 * 3 + 1) * 2 + 2
    assert {case["capacity"] for case in out["arms"]} == {2, 7, 8} and out["links"][0]["calibrated_at"] == [4, 6]
    assert out["statements"]["capacities"]["value"] == {"link": [2, 7, 8]}
    assert out["statements"]["regimes"] | {"value": 0} == {"value": 0, "asked": 2, "regimes": 2, "verdict": "within"}
    for case in out["arms"]:
        assert (case["stall_share"] == 0) == (case["capacity"] == 8)
        assert case["longest_prompt"] == (1280 if case["chained"] else 0)
        assert (case["longest_context"] == 1288) == case["chained"]
        assert abs(case["error_without_link"]) < 0.04 and case["spread_without_link"] < 0.02
    assert [(case["capacity"], case["arm"]) for case in out["arms"] if case["chained"]] == [
        (7, "link: lru, cache 0.9, batch 1, chained prompt"), (8, "link: lru, cache 1.0, batch 1, chained prompt"),
    ]  # fmt: skip
    by_phase = {table["phase"]: table for table in out["calibration"]["link"]["dense"]}
    assert by_phase["prefill"]["entry_ns"] == pytest.approx(2.0, rel=0.05)
    assert by_phase["decode"]["ns"][0] == pytest.approx(200_000, rel=0.05)
    page = (files / "out/validation.md").read_text()
    assert page.startswith("# Simulated") and "Left out" not in page
    assert "Longest prompt in prefill steps: 1,280 tokens; longest context: 1,288." in page


@pytest.mark.parametrize(
    ("gbps", "caches", "kind", "said"),
    [
        ("0.02", "2,4", "link-only", "over 80 % of the time: as good as compute-free, an error of kernels"),
        ("4000", "6,7", "compute-only", "under 20 % of the time: as good as link-free, an error of transfers"),
    ],
)
def test_a_record_of_one_regime_is_called_what_it_is_and_is_inconclusive(
    files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    gbps: str, caches: str, kind: str, said: str,
) -> None:  # fmt: skip
    on(MadeUp(), monkeypatch)
    few = ("--link-latency-us", "1", "--link-gbps", gbps, "--caches", caches, "--policies", "lru,belady")
    assert main(flags(files, "--repeats", "2", "--batches", "1,2", *few)) == 3
    out = record(files)
    verdicts = {name: s["verdict"] for name, s in out["statements"].items()}
    assert out["kind"] == kind and verdicts.pop("regimes") == "inconclusive" and set(verdicts.values()) == {"within"}
    first = capsys.readouterr().out.splitlines()[0]
    assert first == f"*** {kind.upper()}: all 10 arms wait for the link {said} would not show ***"
    assert (files / "out/validation.md").read_text().splitlines()[0] == first


def test_an_arm_twice_is_one_arm(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 8 experts 0.5 and 4 slots are the same, and 1.0 and 8; six requests are judged, and no more run together."""
    on(MadeUp(), monkeypatch)
    twice = ("--policies", "lru,belady,lru+none,lru", "--caches", "4,0.5,1.0,8,2", "--batches", "6,1,9")
    main(flags(files, "--repeats", "2", "--link-gbps", "1", *twice))
    cases = [(case["policy"], case["capacity"], case["batch"]) for case in record(files)["arms"] if not case["chained"]]
    some = [(policy, slots, batch) for batch in (6, 1) for slots in (4, 2) for policy in ("lru", "belady")]
    assert sorted(cases) == sorted([*some, ("lru", 8, 6), ("lru", 8, 1)])


def test_a_second_regime_of_one_arm_is_not_shown(
    files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nor is what the others are in all that there is."""
    on(MadeUp(), monkeypatch)
    monkeypatch.setattr(validation, "long_prompts", lambda *_: [])
    few = ("--link-gbps", "0.1", "--caches", "2,3,8", "--batches", "1", "--policies", "lru", "--repeats", "2")
    assert main(flags(files, *few)) == 3
    assert record(files)["kind"] == "thin"
    first = capsys.readouterr().out.splitlines()[0]
    assert first.startswith("*** THIN: 1 compute, 0 mixed, 2 stall arms; less than 2 in a second regime")


def test_a_record_takes_the_place_of_an_earlier_one(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    on(MadeUp(), monkeypatch)
    main(flags(files, "--repeats", "1"))
    assert {p.name for p in (files / "out").glob("*.toml")} == {"compute.toml", "mixed.toml", "stall.toml"}
    (files / "out/link.toml").write_text("of somebody else\n")
    (files / "out/my.toml").write_text("of somebody else\n")
    main(flags(files, *FEW, "--repeats", "1"))
    assert {p.name for p in (files / "out").glob("*.toml")} == {"link.toml", "my.toml"}


@pytest.mark.parametrize(("slots", "kept"), [(31, [2, 7]), (27, [2]), (1, [2])])
def test_default_capacities_without_room_are_left_out_by_name(
    files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], slots: int, kept: list[int]
) -> None:
    # widths x 1/16 and none below 32: an expert is 3 x 32 x 32 x 4 = 12,288 B; 7 of 8 in 4 layers are 28 slots
    def fits(needs: Need, *_: Any) -> None:
        if needs.device["slots"] > slots * 12_288:
            raise StoreError(f"no room for {needs.device['slots'] // 12_288} slots")

    monkeypatch.setattr("runtime.replaying.opened.fits", fits)
    on(MadeUp(), monkeypatch)
    few = ("--repeats", "2", "--link-gbps", "0.7", "--batches", "1", "--policies", "lru")
    assert main(flags(files, *few)) in (0, 3)
    out, left = record(files), [(1.0, 32), (0.9, 28)][: 3 - len(kept)]
    assert sorted({case["capacity"] for case in out["arms"]}) == kept
    assert out["left_out"] == [{"cache": cache, "why": f"no room for {n} slots"} for cache, n in left]
    assert f"Left out, cache 1.0: {out['left_out'][0]['why']}" in capsys.readouterr().out


def test_capacities_that_were_asked_for_are_refused_without_room(
    files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("runtime.device.cpu.CpuPort.free_bytes", lambda port: 10**6)
    assert main(flags(files, "--link-gbps", "3", "--caches", "3,8")) == 2
    assert "memory: needs" in capsys.readouterr().err and not (files / "out").exists()


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


# --- the deadline -----------------------------------------------------------------------------------------------------

FEW = (
    "--link-gbps",
    "3",
    "--caches",
    "3,5",
    "--batches",
    "2",
    "--policies",
    "lru",
)  # of 7 cases 3 calibrate and 3 are long


def timed(
    files: Path, monkeypatch: pytest.MonkeyPatch, each_s: float, *more: str
) -> tuple[int, Timed, dict[str, Any] | None]:
    """A run on a made-up device with a clock: exit status, the device, and the record if there is one."""
    bench = Timed(Clock().install(monkeypatch), each_s)
    on(bench, monkeypatch)
    status, record = main(flags(files, *FEW, *more)), files / "out/validation.json"
    return status, bench, json.loads(record.read_text()) if record.exists() else None


@pytest.mark.parametrize(("seconds", "each_s"), [(40, 0.5), (60, 0.5), (270, 0.5), (270, 4.0), (270, 0.0)])
def test_a_run_ends_by_its_deadline_whatever_is_asked_for(
    files: Path, monkeypatch: pytest.MonkeyPatch, seconds: int, each_s: float
) -> None:
    for asked in ((), ("--repeats", "1000")):
        _, bench, out = timed(files, monkeypatch, each_s, "--seconds", str(seconds), *asked)
        assert out is not None and bench.clock.now <= seconds
        assert out["deadline_s"] == seconds and out["seconds"] == pytest.approx(bench.clock.now, abs=0.1)
        assert out["rounds_asked"] == (1000 if asked else None)
        assert out["rounds"] >= 3 and out["statements"]["equal"]["verdict"] == "within"  # the steps are chosen for that
        if not asked and out["rounds"] < 25:  # and little of the time is left
            assert bench.clock.now > 0.5 * seconds
        page = (files / "out/validation.md").read_text()
        assert f"{out['rounds']} rounds" in page and f" s of {seconds} s" in page


def test_a_device_that_takes_longer_to_open_than_there_is_time_is_one_line(
    files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bench = Timed(Clock().install(monkeypatch), 1.0)

    @contextmanager
    def opened(*_: Any) -> Iterator[MadeUp]:
        bench.clock.tick(41.0)
        yield bench

    monkeypatch.setattr(flags_of, "open_bench", opened)
    assert main(flags(files, *FEW, "--seconds", "40")) == 1
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(said) == 1 and "over after 0 of the" in said[0] and not (files / "out").exists()


def test_fewer_rounds_than_three_are_judged_as_what_they_are(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # 2 s a replay and a little: 13 s warm up; of 37 s left a round of seven takes 15, lock-steps 8
    status, bench, out = timed(files, monkeypatch, 2.0, "--seconds", "50")
    assert out is not None and bench.clock.now <= 50 and out["rounds"] == 1
    assert status == 3 and {row["spread"] for row in out["arms"]} == {None}
    assert out["statements"]["median"]["verdict"] == out["statements"]["tau"]["verdict"] == "inconclusive"
    assert "Infinity" not in (files / "out/validation.json").read_text()


def test_lock_steps_for_which_no_time_is_left_are_not_replayed(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(self: Timed, setting: Setting, record: RunRecord) -> tuple[RunRecord | None, Outcome]:
        self.clock.tick(30.0)
        return MadeUp.lock_step(self, setting, record)

    monkeypatch.setattr(Timed, "lock_step", slow)
    status, bench, out = timed(files, monkeypatch, 0.5, "--seconds", "60")
    assert out is not None and bench.clock.now < 60 + 30  # one may have begun before the deadline
    done = [row["lock_step"]["equal"] for row in out["arms"]]
    assert done[0] is True and done[1:] == [None] * (len(done) - 1)
    assert out["arms"][-1]["lock_step"]["error"] == "not replayed: no time was left"
    assert status == 3 and out["statements"]["equal"]["verdict"] == "inconclusive"
    assert "| all that were replayed | all | inconclusive |" in (files / "out/validation.md").read_text()


@pytest.mark.parametrize(
    ("each_s", "seconds", "said", "most"),
    [
        (35.0, "60", "60: over after 1 of the 2 replays of the warm-up", 73),  # the long prompt, and one more
        (
            9.0,
            "85",
            "85: over after 0 of the 7 replays of the first round, which would take about 6",
            35,
        ),  # 27 s warm up
    ],
)
def test_without_a_complete_round_one_line_says_how_far_it_was(
    files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    each_s: float, seconds: str, said: str, most: float,
) -> None:  # fmt: skip
    status, bench, out = timed(files, monkeypatch, each_s, "--seconds", seconds)
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert status == 1 and out is None and not (files / "out").exists() and bench.clock.now <= most
    assert len(errors) == 1 and errors[0].startswith("error: seconds: ") and said in errors[0]
    assert "--steps take less, --seconds N gives more" in errors[0]


def test_the_time_left_is_said_though_nobody_looks(
    files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    timed(files, monkeypatch, 0.5, "--seconds", "60", "--repeats", "2")
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "the device is open: 0 s gone, 60 s left of 60 s"
    assert said[1].startswith("the plans alone, at ") and " with 2 rounds: " in said[1]
    assert [line.split(",")[0] for line in said[2:4]] == ["round 1 of 2", "round 2 of 2"]
    assert said[-1].startswith("4 of 4 lock-steps done: ") and all(" s left of 60 s" in line for line in said)


def test_steps_are_as_long_as_three_rounds_and_what_follows_leave_time_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two short cases and a chained one. With 2 s beside each replay, 3 s of the chained one, 0.5 s for each setting,
    half a second of the core for each second of steps: a round of S seconds of steps takes 2 (2 + S) + 3; afterwards
    lock-steps and checks about 2 (2 + 0.75 S) + 3 and each setting twice more."""
    Clock().install(monkeypatch)
    cases = [*grid(BenchLink("link"), ["lru"], [3, 5], [1]), *long_prompts(BenchLink("link"), [5])]
    found = probe.Probe([], step_s=0.1, each_s=2.0, long_s=3.0, prepared_s=0.5, check_s=0.05)
    budget = found.budget(cases, {"link": probe.ReplaySteps(10, 0.1)}, 1, Deadline(100.0))
    # of ten steps of 0.1 s three are locked and all are checked: 2 (2 + 0.3) + 3 + 2 x 10 x 0.05, and a tenth more
    assert (budget.round_s, budget.share, budget.fixed_s) == (9, pytest.approx(1.1 * 8.6 / 9), 3.0)
    # 90 of 100 s = 3 (7 + 2 S) + 7 + 1.5 S + 3 x 3 x 0.5: 57.5 = 7.5 S
    assert found.replay_s(100.0, cases, Deadline(100.0)) == pytest.approx(57.5 / 7.5)
    assert found.replay_s(4.0, cases, Deadline(100.0)) == 4 and found.replay_s(4.0, cases, Deadline(20.0)) == 1e-3


def test_seconds_of_a_replay_are_its_first_residents_and_its_steps(files: Path) -> None:
    fields = {"trace": str(files / "t.npz"), "model": str(files / "tiny.toml"), "precision": "fp32", "max_steps": 3}
    setting = prepare(RunSpec.of({**fields, "as_decode": True, "warmup_steps": 1, "cache": 3}))
    placed, steps = pacing.seconds_of([setting], 2.0, 4_000_000)
    assert placed == pytest.approx(4 * 3 * 0.002)  # three slots in each of four layers, 2 ms each
    record = compiled(setting.plan, False)
    other = compiled(_with_transfers(setting, 2_000_000).plan, False)
    assert steps == other.steps["end_ns"][-1] / 1e9 > record.steps["end_ns"][-1] / 1e9  # the step that warms up, too
    both = pacing.seconds_of([setting, setting], 2.0, 4_000_000)
    assert both == (pytest.approx(2 * placed), pytest.approx(2 * steps))
    once = pacing.predicted_s([setting], [], [], 2.0, 4_000_000, 3)
    assert once == pytest.approx(2 * (placed + steps))  # what warms up runs twice
    assert pacing.predicted_s([], [setting], [setting], 2.0, 4_000_000, 3) == pytest.approx(2 * once)


def _with_transfers(setting: Setting, ns: int) -> Setting:
    costs = replace(setting.plan.costs, transfer_ns=np.array([ns, ns], np.int64))
    return replace(setting, plan=replace(setting.plan, costs=costs))


def test_the_device_is_not_busy_with_what_the_host_computes(files: Path) -> None:
    fields = {"trace": str(files / "t.npz"), "model": str(files / "tiny.toml"), "precision": "fp32", "max_steps": 9}
    kernels = MadeUp().kernels([1, 4])
    for miss, share in (("fetch", 1.0), ("cpu", 0.99)):
        setting = prepare(RunSpec.of({**fields, "as_decode": True, "warmup_steps": 1, "cache": 3, "miss": miss}))
        found = gpu_busy_ns(simulated(setting), kernels)
        assert 0 < found <= share * 2 * 4 * 30_000 and (found == 2 * 4 * 30_000) == (miss == "fetch")


def test_the_plans_alone_say_that_the_default_quick_grid_keeps_its_promise(tmp_path: Path) -> None:
    """Mixtral on a link of its own at 55 GB/s, with the kernels of an H200: three rounds of whole replays."""
    args = command.parser().parse_args(["--trace", "mixtral.npz", "--device", "cuda", "--alias-host", "2", "--quick"])
    asked = validation.Validation(args, tmp_path)
    assert asked.policies == ["lru", "belady", "lru+gate-lookahead"]
    cases, size = asked.cases(), catalog.model(asked.trace.model).expert_bytes("bf16")
    seconds = [asked.expected_s(cases, "h200", gbps, size) for gbps in (55.0, 5.5)]
    # and 0.1 for Python, memory, fits
    assert 60 < seconds[0] < 0.9 * validation.QUICK_S < validation.QUICK_S < seconds[1]


# --- a fit that cannot be ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bare", "term", "said"),
    [
        ((4_000_000, 1), "transfer_idle_ns", "but a bare copy of an expert takes 4,000,000 ns"),
        ((1, 4_000_000), "transfer_following_ns", "but a bare copy of an expert takes 4,000,000 ns"),
    ],
)
def test_a_transfer_faster_than_the_bare_copy_is_refused_by_name(
    files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    bare: tuple[int, int], term: str, said: str,
) -> None:  # fmt: skip
    monkeypatch.setattr(MadeUp, "bare_copy_ns", lambda self: bare)
    on(MadeUp(), monkeypatch)
    assert main(flags(files, *FEW, "--repeats", "1")) == 1  # the link takes 0.68 ms
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and errors[0].startswith(f"error: {term}: ") and said in errors[0]
    assert not (files / "out").exists()


LINKS = [{"name": "a", "regime": "mixed", "calibrated_at": [4, 7]}]
ROWS: list[dict[str, Any]] = [
    {
        "arm": f"a: {i}", "link": "a", "batch": 1, "chained": False, "capacity": (2, 3, 5)[i % 3], "regime": name,
        "error": 0.0, "spread": 0.0, "error_without_link": 0.0, "spread_without_link": 0.0,
        "measured_ns": {"total": i + 1.0}, "simulated_ns": {"total": i + 1.0}, "core_check": {"equal": True},
        "lock_step": {"equal": True, "hits": 3, "simulated_hits": 3},
    }
    for i, name in enumerate(REGIMES * 2)
]  # fmt: skip


def verdicts(rows: list[dict[str, Any]], links: list[dict[str, Any]]) -> dict[str, str]:
    """Each statement's verdict."""
    return {name: stated["verdict"] for name, stated in statements(rows, links).items()}


def test_a_regime_without_two_arms_is_inconclusive() -> None:
    chosen, own = LINKS[0], {**LINKS[0], "regime": None}  # of a chosen pace all three are asked for, of others two
    found = lambda rows, link: verdicts(rows, [link])["regimes"]  # noqa: E731 - the one that this is about
    assert found(ROWS, chosen) == found(ROWS, own) == "within"
    assert found(ROWS[:-1], chosen) == "inconclusive" and found(ROWS[:-1], own) == "within"
    assert found(ROWS[:-2], own) == "inconclusive"  # two, one and one


def test_chained_requests_are_ranked_by_themselves() -> None:
    pairs = lambda rows: statements(rows, LINKS)["tau"]["pairs"]  # noqa: E731 - a number
    assert pairs(ROWS) == 6 * 5 / 2 and pairs([{**ROWS[0], "chained": True}, *ROWS[1:]]) == 5 * 4 / 2


def test_hits_and_decisions_must_be_equal_in_every_arm() -> None:
    assert verdicts(ROWS, LINKS)["equal"] == "within"
    wrong = [{**ROWS[0], "lock_step": {"equal": True, "hits": 3, "simulated_hits": 4}}, *ROWS[1:]]
    assert verdicts(wrong, LINKS)["equal"] == "outside"
    assert verdicts([{**ROWS[0], "core_check": {"equal": False}}, *ROWS[1:]], LINKS)["equal"] == "outside"


def test_the_time_without_link_is_judged_beside_the_whole_and_its_worst_arm_named() -> None:
    # a case that waits 95 % of the time and has kernels twice as slow as simulated: 2.5 % of the whole, 50 % without
    hidden = [{**row, "error": -0.025, "error_without_link": -0.5} for row in ROWS]
    found = statements(hidden, LINKS)
    assert (found["median"]["verdict"], found["without_link"]["verdict"]) == ("within", "outside")
    one = [{**ROWS[0], "arm": "that", "error_without_link": -0.5}, {**ROWS[1], "error_without_link": None}, *ROWS[2:]]
    assert statements(one, LINKS)["without_link"] == {
        "value": 0.0, "worst": 0.5, "arm": "that", "asked": 0.1, "verdict": "within",
    }  # fmt: skip
    wide = [{**row, "spread_without_link": 0.2} for row in ROWS]  # its own spread counts, not that of the whole
    assert verdicts(wide, LINKS)["without_link"] == "inconclusive" and verdicts(wide, LINKS)["median"] == "within"
    none = [{**row, "error_without_link": None} for row in ROWS]
    assert statements(none, LINKS)["without_link"]["value"] is None
    assert verdicts(none, LINKS)["without_link"] == "inconclusive"


def test_the_spread_without_link_is_that_of_the_time_that_is_not_stall(files: Path) -> None:
    case = grid(BenchLink("link"), ["lru"], [3], [1])[0]
    traces = Traces.of(str(files / "t.npz"), 0.25, 0, files, 1)
    common = {"model": str(files / "tiny.toml"), "precision": "fp32", "max_steps": 8, "warmup_steps": 1}
    setting, bench, runs = traces.setting(case, common, validation.PLACEHOLDER), MadeUp(), []
    for gbps in (0.5, 1.0, 2.0):  # what the link takes differs from run to run, all else is the same
        bench.pace(gbps, 0.0)
        runs.append(TimedRun(setting, bench.replay(setting)))
    row = compared(case, runs, runs[1])
    assert row["error"] == 0 and row["error_without_link"] == pytest.approx(0, abs=1e-12)
    assert row["spread_without_link"] < 1e-12 and row["spread"] > 0.1


@pytest.mark.parametrize(
    ("calibrated", "unseen", "verdict"),
    [
        ([4, 7], [2, 3, 5], "within"),
        ([2, 7], [3, 5], "within"),
        ([2, 3], [5], "inconclusive"),
        ([2, 5], [3], "inconclusive"),
    ],
)
def test_two_capacities_must_be_judged_that_were_not_calibrated(
    calibrated: list[int], unseen: list[int], verdict: str
) -> None:
    links = [{**LINKS[0], "calibrated_at": calibrated}]
    found = statements(ROWS, links)["capacities"]
    assert found == {"value": {"a": unseen}, "asked": 2, "verdict": verdict}
    same = [{**row, "capacity": 2} for row in ROWS]  # one is all that there is
    assert verdicts(same, links)["capacities"] == ("within" if 2 not in calibrated else "inconclusive")
    both = [*links, {**LINKS[0], "name": "b"}]  # every link for itself
    more = [*ROWS, *({**row, "link": "b", "capacity": 6} for row in ROWS)]
    assert verdicts(more, both)["capacities"] == verdict


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
    assert out["statements"]["equal"]["value"] is True and len(out["arms"]) == 4 + 2
    for case in out["arms"]:
        assert case["lock_step"]["equal"] and case["lock_step"]["hits"] == case["lock_step"]["simulated_hits"]
        assert case["core_check"]["equal"] and case["lock_step"]["decisions"] > 100
        parts = [case["measured_ns"][name] for name in ("dense", "experts", "head", "copies")]
        assert min(parts) > 0 and min(case["hits"]["measured"]) > 0
    hardware = files / "out/link.toml"
    from sim.run import main as simulate

    named = ["--trace", str(files / "t.npz"), "--model", str(files / "tiny.toml"), "--hardware", str(hardware)]
    capsys.readouterr()
    assert simulate([*named, "--precision", "fp32", "--as-decode", "--cache", "3"]) == 0
    assert "MEASURED: durations from a calibration on torch on the CPU" in capsys.readouterr().out


def test_without_a_lookahead_the_prefetcher_is_one_that_is_fitted(files: Path) -> None:
    preset = Preset("tiny", 8, 2, 4, tuple(range(4)), requests=4)
    npz.write(files / "t.npz", generate(preset, 1))
    args = command.parser().parse_args(flags(files, "--link-gbps", "1"))
    assert "lru+transition" in {case.policy for case in validation.Validation(args, files).cases()}


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
    stated = statements(out["arms"], out["links"])
    assert stated == out["statements"] and out["exit"] == status(stated)
    page = (kept.parent.parent.parent / "VALIDATION.md").read_text()
    for name in ("median", "worst"):
        assert f"{stated[name]['value']:.1%}".replace("%", " %") in page
    assert f"{stated['tau']['value']:.2f} over {stated['tau']['pairs']} pairs" in page
    assert "It was made by the command" in page and out["command"] in page.replace(
        "--trace mixtral.npz --device cpu --quick", "--device cpu --quick --trace mixtral.npz"
    )
