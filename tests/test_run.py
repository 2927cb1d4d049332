"""The command line: what it prints, what it refuses, what it writes."""

import io
import json
import subprocess
import sys
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sim import flags, profile, run
from tests.gen import random_trace
from traces.format import npz

ROOT = Path(__file__).parent.parent
CAPTURES = sorted((ROOT.parent / "shared" / "traces").glob("*.npz"))
KEYS = """
    time_ns decode_ns prefill_ns steps requests tokens prompt_tokens tokens_per_s total_tokens_per_s tpot_ms ttft_ms
    itl_ms breakdown_ns stall_ns_by_cause wanted hits late misses evictions slots_wanted slots_hit slots_late fetched
    substituted dropped cpu low transfers prefetched h2d_bytes link_busy_ns by_layer quality memory bounds verdict
    machine spec trace
"""
SLOT_KEYS = ("slots_hit", "slots_late", "fetched", "substituted", "dropped", "cpu", "low")
NO_BANDWIDTH = 'gpu = "rtx4090"\nhost = "ddr4"\n[link]\nh2d_gb_per_s = 0\nsetup_ns = 1\n'
FIXED = "[fixed]\ndense_ns = 10\nexpert_ns = 5\ntransfer_ns = 100\ndecide_ns = 0\ncpu_expert_ns = 7\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a small trace `t.npz` (with everything) and fixed hardware `h.toml`."""
    rng = np.random.default_rng(3)
    trace = random_trace(rng, tokens=40, layers=3, experts=8, k=2, requests=4, weights=True, logits=True, lookahead=3)
    npz.write(tmp_path / "t.npz", trace)
    (tmp_path / "h.toml").write_text(FIXED)
    return tmp_path


def call(capsys: pytest.CaptureFixture[str], *args: Any) -> dict[str, Any]:
    assert run.main([*map(str, args), "--json"]) == 0
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    return json.loads(out)


def small(folder: Path) -> list[Any]:
    return ["--trace", folder / "t.npz", "--hardware", folder / "h.toml", "--cache", 3]


def test_one_object_with_the_keys_that_other_tools_rely_on(capsys: pytest.CaptureFixture[str]) -> None:
    out = call(capsys, "--trace", "mixtral.npz", "--max-steps", 60)
    assert not set(KEYS.split()) - set(out)
    assert sum(out["breakdown_ns"].values()) == out["time_ns"]
    assert sum(out["stall_ns_by_cause"].values()) == out["breakdown_ns"]["stall"]
    assert out["hits"] + out["late"] + out["misses"] == out["wanted"]
    assert sum(out[key] for key in SLOT_KEYS) == out["slots_wanted"]
    assert any("SYNTHETIC" in note for note in out["notes"])
    assert "machine" not in out["spec"]


@pytest.mark.parametrize("prefetch", ["none", "previous-token", "gate-lookahead", "oracle", "transition", "popular"])
@pytest.mark.parametrize("miss", ["fetch", "drop", "cpu"])
def test_the_machines_give_the_same_object(
    folder: Path, capsys: pytest.CaptureFixture[str], prefetch: str, miss: str
) -> None:
    flags = [*small(folder), "--prefetch", prefetch, "--miss", miss, "--calibration", 0.3, "--batch", 2]
    fast, slow = call(capsys, *flags), call(capsys, *flags, "--machine", "simpy")
    assert (fast.pop("machine"), slow.pop("machine")) == ("compiled", "simpy")
    assert fast == slow


def test_calibration_decides_what_is_judged_and_the_policy_does_not(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [*small(folder), "--calibration", 0.5]
    a, b = call(capsys, *flags), call(capsys, *flags, "--prefetch", "transition")
    assert a["tokens"] == b["tokens"] and a["slots_wanted"] == b["slots_wanted"]
    assert a["slots_wanted"] < call(capsys, *small(folder))["slots_wanted"]


def test_the_worked_check_of_the_design(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # one layer, slots 2 holding {0, 1}; tokens want 0, 2, 1: 245 = dense 30 + experts 15 + stall 200
    rng = np.random.default_rng(0)
    trace = random_trace(rng, tokens=3, layers=1, experts=3, k=1, requests=1, prompt=0)
    object.__setattr__(trace, "experts", np.array([[[0]], [[2]], [[1]]], np.int16))
    npz.write(tmp_path / "t.npz", trace)
    (tmp_path / "h.toml").write_text(FIXED)
    out = call(capsys, "--trace", tmp_path / "t.npz", "--hardware", tmp_path / "h.toml", "--cache", 2)
    assert (out["time_ns"], out["wanted"], out["hits"], out["misses"], out["evictions"]) == (245, 3, 1, 2, 2)
    assert out["breakdown_ns"] == {"dense": 30, "decide": 0, "experts": 15, "stall": 200, "cpu_wait": 0, "head": 0}


def test_latencies_by_hand(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # everything resident, one layer, top-1: a step lasts 10 + 5. One request, 2 prompt tokens (one step), 3 generated.
    # first token at 15, then 30, 45, 60: ttft 15 ns, three gaps of 15, tpot 15.
    rng = np.random.default_rng(0)
    trace = random_trace(rng, tokens=5, layers=1, experts=2, k=1, requests=1, prompt=0)
    object.__setattr__(trace, "experts", np.zeros((5, 1, 1), np.int16))
    object.__setattr__(trace, "prefill", np.array([1, 1, 0, 0, 0], bool))
    npz.write(tmp_path / "t.npz", trace)
    (tmp_path / "h.toml").write_text(FIXED)
    out = call(capsys, "--trace", tmp_path / "t.npz", "--hardware", tmp_path / "h.toml", "--cache", 2)
    assert (out["time_ns"], out["prefill_ns"], out["tokens"], out["prompt_tokens"]) == (60, 15, 3, 2)
    same = {"mean": 15e-6, "p50": 15e-6, "p95": 15e-6, "p99": 15e-6}
    assert out["ttft_ms"] == same | {"n": 1}
    assert out["itl_ms"] == same | {"n": 3}
    assert out["tpot_ms"] == same | {"n": 1}
    assert out["tokens_per_s"] == pytest.approx(3 / 45e-9)
    warm = call(
        capsys, "--trace", tmp_path / "t.npz", "--hardware", tmp_path / "h.toml", "--cache", 2, "--warmup-steps", 2
    )
    assert (warm["time_ns"], warm["tokens"], warm["itl_ms"]["n"], warm["ttft_ms"]["n"]) == (30, 2, 2, 0)


def test_a_summary_takes_less_than_three_numbers_a_step(tmp_path: Path) -> None:
    """One int64 column of the ends, one of the gaps, and what is small: 24 bytes a step are never there at once."""
    from sim.machines import compiled
    from sim.outcome.summary import summarise
    from sim.prepare import prepare
    from sim.spec import RunSpec

    steps = 200_000
    npz.write(tmp_path / "t.npz", random_trace(np.random.default_rng(0), steps, 1, 2, 1, requests=3, prompt=0))
    (tmp_path / "h.toml").write_text(FIXED)
    record = compiled.run(prepare(RunSpec(trace=str(tmp_path / "t.npz"), hardware=str(tmp_path / "h.toml"))).plan)
    summarise(record)  # numpy loads what it needs
    tracemalloc.start()
    summarise(record)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 24 * steps


def test_output_files_are_whole_and_repeat(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from sim.machines.record import load

    flags = [*small(folder), "--record", "full"]
    printed = call(capsys, *flags, "--out", folder / "a")
    call(capsys, *flags, "--out", folder / "b")
    assert json.loads((folder / "a/summary.json").read_text()) == printed
    for name in ("summary.json", "record.npz"):
        assert (folder / "a" / name).read_bytes() == (folder / "b" / name).read_bytes()
    record, meta = load(folder / "a/record.npz")
    assert len(record.groups["visits"]["event"]) == printed["steps"] * 3
    assert sorted(p.name for p in (folder / "a").iterdir()) == ["record.npz", "summary.json"]
    assert meta["trace"]["hash"] == printed["trace"]["hash"]


def test_a_config_file_and_flags_that_win(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "run.toml").write_text(
        f'trace = "{folder}/t.npz"\nhardware = "{folder}/h.toml"\ncache = 2\neviction = "fifo"\n'
    )
    out = call(capsys, "--config", folder / "run.toml", "--eviction", "decayed", "--set", "decayed.decay=0.5")
    assert out["spec"]["eviction"] == "decayed" and out["spec"]["cache"] == 2
    assert out["spec"]["set"] == {"decayed.decay": 0.5}


def _archive(folder: Path, change: Callable[[dict[str, Any]], None], name: str = "bad.npz") -> Path:
    with np.load(folder / "t.npz") as archive:
        members = {key: archive[key] for key in archive.files}
    change(members)
    np.savez(folder / name, **members)
    return folder / name


def _lying(folder: Path) -> Path:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<i2", "fortran_order": False, "shape": (10**9, 3, 2)})
    with zipfile.ZipFile(folder / "t.npz") as source, zipfile.ZipFile(folder / "lie.npz", "w") as out:
        for name in source.namelist():
            out.writestr(name, header.getvalue() if name == "experts.npy" else source.read(name))
    return folder / "lie.npz"


def _set(key: str, index: Any, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(members: dict[str, Any]) -> None:
        members[key] = members[key].copy()
        members[key][index] = value

    return change


def _file(path: Path, data: bytes) -> Path:
    """The path, once the bytes are there."""
    path.write_bytes(data)
    return path


def _on(folder: Path, hardware: str) -> list[Any]:
    """Flags that run the small trace on this hardware file."""
    return ["--trace", folder / "t.npz", "--hardware", _file(folder / "bad.toml", hardware.encode())]


BAD: dict[str, tuple[Callable[[Path], list[Any]], str]] = {
    "pickled array": (
        lambda f: ["--trace", _archive(f, lambda m: m.update(experts=np.array([{}], object)))], "experts"),
    "truncated zip": (lambda f: ["--trace", _file(f / "cut.npz", (f / "t.npz").read_bytes()[:900])], "cut.npz"),
    "not a zip": (lambda f: ["--trace", f / "h.toml"], "h.toml"),
    "ids out of range": (lambda f: ["--trace", _archive(f, _set("experts", (0, 0, 0), 99))], "99"),
    "duplicate slots": (lambda f: ["--trace", _archive(f, _set("experts", (1, 1), 2))], "experts"),
    "NaN weight": (lambda f: ["--trace", _archive(f, _set("weights", (0, 0, 0), np.nan))], "weights"),
    "lying header": (lambda f: ["--trace", _lying(f)], "experts"),
    "missing trace": (lambda f: ["--trace", "mixtrall.npz"], "mixtral"),
    "no trace": (lambda f: ["--cache", 2], "trace"),
    "unknown eviction": (lambda f: [*small(f), "--eviction", "lruu"], "did you mean lru"),
    "unknown prefetch": (lambda f: [*small(f), "--prefetch", "oracel"], "did you mean oracle"),
    "unknown miss": (lambda f: [*small(f), "--miss", "dropp"], "did you mean drop"),
    "unknown placement": (lambda f: [*small(f), "--placement", "frist"], "did you mean first"),
    "unknown flag": (lambda f: [*small(f), "--polcy", "lru"], "--polcy"),
    "unknown hardware": (lambda f: ["--trace", f / "t.npz", "--hardware", "rtx409"], "rtx4090"),
    "zero slots": (lambda f: [*small(f), "--cache", 0], "cache"),
    "negative fraction": (lambda f: [*small(f), "--cache", "-0.5"], "cache"),
    "too few bytes": (lambda f: [*small(f), "--cache", "2B"], "cache"),
    "zero batch": (lambda f: [*small(f), "--batch", 0], "batch"),
    "text for a number": (lambda f: [*small(f), "--batch", "two"], "batch"),
    "stray parameter": (lambda f: [*small(f), "--set", "decayed.decay=.5"], "decayed.decay"),
    "unknown parameter": (lambda f: [*small(f), "--eviction", "decayed", "--set", "decayed.rate=.5"], "rate"),
    "calibration missing": (lambda f: [*small(f), "--prefetch", "transition"], "--calibration"),
    "calibration of one": (lambda f: [*small(f), "--calibration", "1.0"], "calibration"),
    "too much warm-up": (lambda f: [*small(f), "--warmup-steps", 10**6], "warmup_steps"),
    "unknown config field": (
        lambda f: [*small(f), "--config", _file(f / "c.toml", b"evction = 'lru'")], "eviction"),
    "config is no toml": (lambda f: [*small(f), "--config", _file(f / "c.toml", b"= 3")], "c.toml"),
    "zero bandwidth": (lambda f: _on(f, NO_BANDWIDTH), "bad.toml"),
    "negative fixed": (lambda f: _on(f, FIXED.replace("100", "-1")), "transfer_ns"),
    "model that does not match": (lambda f: [*small(f), "--model", "olmoe-1b-7b"], "olmoe"),
    "model not in the catalog": (lambda f: ["--trace", f / "t.npz"], "--model"),
    "no cpu time": (lambda f: [*_on(f, FIXED.replace("cpu_expert_ns = 7\n", "")), "--miss", "cpu"], "cpu_expert_ns"),
    "out is a file": (lambda f: [*small(f), "--out", f / "h.toml"], "h.toml"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line_and_nothing_is_written(
    folder: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    flags, hint = BAD[name][0](folder), BAD[name][1]
    before = sorted(folder.rglob("*"))
    if "--out" not in flags:
        flags = [*flags, "--out", folder / "out"]
    assert run.main([*map(str, flags), "--json"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1 and captured.err.startswith("error: ") and hint in captured.err
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize("needs", ["lookahead"])
def test_a_trace_that_lacks_what_a_policy_needs(folder: Path, capsys: pytest.CaptureFixture[str], needs: str) -> None:
    path = _archive(folder, lambda members: members.pop(needs))
    flags = ["--trace", str(path), *map(str, small(folder)[2:]), "--prefetch", "gate-lookahead"]
    assert run.main(flags) == 2
    assert f"gate-lookahead: needs `{needs}`, which bad.npz does not have" in capsys.readouterr().err


@pytest.mark.parametrize("what", run.LISTS)
def test_lists(capsys: pytest.CaptureFixture[str], what: str) -> None:
    assert run.main([f"--list-{what}"]) == 0
    assert len(capsys.readouterr().out.splitlines()) > 5


def test_help_names_every_group(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        run.main(["--help"])
    out = capsys.readouterr().out
    assert stop.value.code == 0 and all(title in out for title in flags.GROUPS)


def test_runs_without_torch_pandas_or_plotly() -> None:
    code = (
        "import sys\n"
        "for name in ('torch', 'pandas', 'plotly', 'simpy', 'scipy'): sys.modules[name] = None\n"
        "from sim.run import main\n"
        "sys.exit(main(['--trace', 'mixtral.npz', '--max-steps', '5', '--json']))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["steps"] == 5


@pytest.mark.skipif(not CAPTURES, reason="the real captures are not beside this checkout")
@pytest.mark.parametrize("path", CAPTURES, ids=lambda path: path.stem)
@pytest.mark.parametrize("eviction", ["lru", "lfu", "fifo", "random", "decayed", "belady"])
def test_every_capture_runs_the_same_on_both_machines(
    path: Path, eviction: str, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--trace", path, "--cache", 4, "--eviction", eviction, "--max-steps", 25]
    fast, slow = call(capsys, *flags), call(capsys, *flags, "--machine", "simpy")
    assert fast | {"machine": 0} == slow | {"machine": 0}


@pytest.mark.skipif(not CAPTURES, reason="the real captures are not beside this checkout")
@pytest.mark.parametrize("path", CAPTURES, ids=lambda path: path.stem)
def test_every_capture_says_what_it_lacks(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run.main(["--trace", str(path), "--cache", "4", "--prefetch", "gate-lookahead"]) == 2
    assert "lookahead" in capsys.readouterr().err


# --- parameters go to whichever chosen policy has them ---


def test_a_parameter_goes_to_the_policy_that_has_it(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two policies called random; only the miss policy has `late`. Both called activation-matrix: only one has any."""
    flags = [*small(folder), "--batch", 2, "--prefetch", "previous-token", "--eviction", "random", "--miss", "random"]
    plain = call(capsys, *flags)
    late = call(capsys, *flags, "--set", "random.late=1")
    assert late["spec"]["set"] == {"random.late": 1} and late["slots_late"] < plain["slots_late"]
    named = call(capsys, *flags, "--set", "miss.random.late=1")
    assert {**named, "spec": 0} == {**late, "spec": 0}
    twice = [*small(folder), "--eviction", "activation-matrix", "--prefetch", "activation-matrix", "--calibration", 0.3]
    wider = call(capsys, *twice, "--set", "activation-matrix.width=1")
    assert wider["transfers"]["prefetch"] < call(capsys, *twice)["transfers"]["prefetch"]


TWO_OF_ONE_NAME = '''
def choose(view, state, params):
    """The first candidate, or wait."""
    return 0 if len(view.candidates) else -1


choose.params = {"reach": 1.0}
'''


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (
            ["--eviction", "random", "--set", "random.late=1"],
            "set: parameter of random: 'late' is unknown; known: atomic",
        ),
        (
            ["--eviction", "random", "--miss", "random", "--set", "random.lte=1"],
            "set: parameter of random: 'lte' is unknown; did you mean late?",
        ),
        (
            ["--eviction", "MINE", "--miss", "MINE", "--set", "choose.reach=2"],
            "set: choose.reach: eviction and miss are both choose and have it; "
            "say --set eviction.choose.reach=... or --set miss.choose.reach=...",
        ),
        (
            ["--miss", "drop", "--set", "drop.late=1", "--set", "miss.drop.late=0"],
            "set: miss.drop.late: given twice, with and without miss in front",
        ),
        (["--set", "eviction.drop.late=1"], "set: eviction.drop.late: must be POLICY.PARAM with a policy of this run"),
        (["--placement", "popular", "--calibration", 0.3, "--set", "popular.file=x"], "popular has no parameters"),
    ],
)
def test_a_parameter_that_nobody_or_everybody_has(
    folder: Path, capsys: pytest.CaptureFixture[str], flags: list[Any], said: str
) -> None:
    (folder / "mine.py").write_text(TWO_OF_ONE_NAME)
    given = [f"{folder / 'mine.py'}:choose" if flag == "MINE" else str(flag) for flag in flags]
    assert run.main([*map(str, small(folder)), *given]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and said in err


# --- slots, and where a run goes ---


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--cache", 9], "cache: 9: a layer has 8 experts; must be at most 8 slots"),
        (["--cache", 25, "--cache-scope", "global"], "cache: 25: the pool is of 24 experts; must be at most 24 slots"),
        (["--miss", "hobbit", "--set", "hobbit.slots=9"], "set: hobbit.slots: 9: a layer has 8 experts"),
        (["--record", "full"], "record: full: nothing keeps it; give --out DIR too"),
    ],
)
def test_what_cannot_be_is_refused(
    folder: Path, capsys: pytest.CaptureFixture[str], flags: list[Any], said: str
) -> None:
    (folder / "h.toml").write_text(FIXED + "low_transfer_ns = 9\nlow_expert_ns = 4\nlow_bytes = 1\n")
    assert run.main([*map(str, small(folder)), *map(str, flags)]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and said in err


def test_every_slot_there_is_may_be_asked_for(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(capsys, *small(folder), "--cache", 8)["misses"] == 0
    assert call(capsys, *small(folder), "--cache", 24, "--cache-scope", "global")["misses"] == 0
    assert call(capsys, *small(folder), "--cache", "999GB")["misses"] == 0  # bytes are cut to what there is


def test_a_run_takes_nobodys_place_unless_told(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = [*map(str, small(folder)), "--out", str(folder / "out")]
    assert run.main([*flags, "--record", "full"]) == 0
    kept = (folder / "out" / "summary.json").read_bytes()
    capsys.readouterr()
    assert run.main([*flags, "--eviction", "lfu"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and "out: " in err and "holds results already (summary.json, record.npz)" in err
    assert (folder / "out" / "summary.json").read_bytes() == kept
    assert run.main([*flags, "--eviction", "lfu", "--force", "--record", "none"]) == 0
    assert (folder / "out" / "summary.json").read_bytes() != kept
    assert not (folder / "out" / "record.npz").exists()  # of the run whose place it took


# --- numbers that are none, or that no run can have ---


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--eviction", "decayed", "--set", "decayed.decay=NaN"], "decayed.decay: must be a number of at most 1e+18"),
        (["--miss", "random", "--set", "random.late=Infinity"], "random.late: must be a number of at most 1e+18"),
        (["--eviction", "window-score", "--set", "window-score.window=1e17"], "must be a whole number from 1"),
        (
            ["--eviction", "decayed", "--set", "decayed.decay=1" + "0" * 400],
            "decayed.decay: must be a number of at most",
        ),
        (["--eviction", "decayed", "--set", "decayed.decay=" + "1" * 5000], "decayed.decay="),
        (["--eviction", "decayed", "--set", "decayed.decay=" + "[" * 100_000], "decayed.decay="),
        (["--miss", "random", "--set", "random.temperature=0"], "random.temperature=0: must be a number above 0"),
        (["--prefill-chunk", "9" * 23], "prefill_chunk: "),
        (["--context-offset", "9000000000000000000"], "context_offset: "),
        (["--prefetch", "previous-token", "--prefetch-budget", "9" * 23], "prefetch_budget: "),
        (["--out", ""], "out: '': must name a folder"),
        (["--out", "", "--record", "full"], "out: '': must name a folder"),
    ],
)
def test_a_number_that_is_none_or_too_large(
    folder: Path, capsys: pytest.CaptureFixture[str], flags: list[Any], said: str
) -> None:
    assert run.main([*map(str, small(folder)), *flags]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and said in err


def test_more_bytes_than_there_are_experts_are_all_of_them(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(capsys, *small(folder), "--cache", "9" * 23 + "GB")["slots"]["total"] == 24


def test_a_link_to_nowhere_is_no_folder(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "gone").symlink_to(folder / "nowhere")
    assert run.main([*map(str, small(folder)), "--out", str(folder / "gone")]) == 2
    assert "is a dangling link; must be a folder" in capsys.readouterr().err


def test_who_reads_nothing_is_told_nothing(folder: Path) -> None:
    command = [sys.executable, "-m", "sim.run", *map(str, small(folder)), "--json"]
    done = subprocess.run(["sh", "-c", 'exec "$@" >&-', "sh", *command], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("value", ["1" * 5000, "[" * 20_000])
def test_a_config_that_python_does_not_read(folder: Path, capsys: pytest.CaptureFixture[str], value: str) -> None:
    (folder / "run.toml").write_text(f"cache = {value}\n")
    assert run.main([*map(str, small(folder)), "--config", str(folder / "run.toml")]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and "run.toml: is no TOML" in err


def test_flags_win_over_the_config_whatever_they_call_a_parameter(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "run.toml").write_text('miss = "random"\neviction = "random"\n[set]\nrandom.late = 1\n')
    flags = [*small(folder), "--config", folder / "run.toml"]
    assert call(capsys, *flags)["spec"]["set"] == {"random.late": 1}
    assert call(capsys, *flags, "--set", "miss.random.late=0")["spec"]["set"] == {"miss.random.late": 0}


def test_lists_of_the_judged_trace_are_said_to_be(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = random_trace(np.random.default_rng(8), tokens=40, layers=3, experts=8, k=2, requests=4)
    npz.write(folder / "other.npz", other)
    for name in ("t", "other"):
        made = ["--trace", str(folder / f"{name}.npz"), "--out", str(folder / f"{name}.lists.npz")]
        assert profile.main(made) == 0
        capsys.readouterr()
        lists = f"buddy.lists={folder / f'{name}.lists.npz'}"
        notes = call(capsys, *small(folder), "--miss", "buddy", "--set", lists)["notes"]
        assert any(note.startswith("FITTED ON WHAT IS JUDGED") for note in notes) == (name == "t")


def test_what_a_parameter_makes_lossy_is_called_so(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """fiddler is lossless as it comes; with another selector, or where it falls back to nobody, it is not."""
    flags = [*small(folder), "--as-decode", "--miss", "fiddler"]
    lossless = call(capsys, *flags)
    assert lossless["substituted"] == lossless["dropped"] == 0 and not any("OPEN LOOP" in n for n in lossless["notes"])
    for more, answer in (
        (["--set", "fiddler.selector=1"], "substituted"),
        (["--set", "fiddler.fallback=drop"], "dropped"),
    ):
        for fallback in ([], ["--set", "fiddler.fallback=fetch"]) if answer == "substituted" else ([],):
            out = call(capsys, *flags, *more, *fallback)
            assert out[answer] > 0 and any("OPEN LOOP" in note for note in out["notes"])
            assert "lossless_ns" not in out["bounds"]
