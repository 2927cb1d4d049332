"""Synthetic traces of any model of the catalog, and the uniform control: what they say, are, and miss."""

import hashlib
import json
import math
import tomllib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from analysis.fit_generic import CAPTURES, LEFT_OUT, errors, figures, left_out, shape_of
from traces.__main__ import main
from traces.foreign.models import CATALOG, model, names
from traces.format import npz
from traces.format.check import validate
from traces.format.trace import RoutingTrace
from traces.generic import (
    FITTED,
    OWN,
    ROWS,
    _of_lengths,
    aim,
    apart,
    control,
    find,
    generic,
    interpolated,
    octaves,
    synthesise,
)
from traces.statistics.describe import LOUD, MARKS
from traces.statistics.stats import overlap
from traces.synthetic import PRESETS, Preset, generate
from traces.synthetic import synthesise as fitted

ROOT = Path(__file__).resolve().parents[1]
ENTRIES = tomllib.loads(CATALOG.read_text(encoding="utf-8"))
GENERIC = [name for name in ENTRIES if name not in PRESETS]
SHAPES = sorted({(ENTRIES[name]["top_k"], ENTRIES[name]["n_experts"]) for name in GENERIC if name not in OWN})
DIGESTS = {"kimi-k2": "3ef25a868bbb888e", "switch-base-128": "b329332b9735b17d"}


def short(preset: Preset, layers: int = 2) -> Preset:
    """The preset with some of its layers and few tokens."""
    return replace(preset, moe_layers=preset.moe_layers[:layers], requests=2, generation=(16, 16))


def wide(name: str) -> RoutingTrace:
    """The generic trace at full length, in so many layers that their popularity is that of many."""
    preset = generic(name)
    layers = max(8, 1024 // preset.n_experts)
    return generate(replace(preset, n_layers=layers, moe_layers=tuple(range(layers)), noise=(), logits=False), 1)


# --- every model of the catalog


@pytest.mark.parametrize("name", ENTRIES)
def test_every_model_has_a_preset_of_its_own_shape(name: str) -> None:
    entry, preset = ENTRIES[name], PRESETS.get(name) or generic(name)
    assert (preset.model, preset.n_layers) == (name, entry["n_layers"])
    assert (preset.n_experts, preset.top_k) == (entry["n_experts"], entry["top_k"])
    by_step = range(entry.get("moe_first", 0), entry["n_layers"], entry.get("moe_step", 1))
    assert list(preset.moe_layers) == entry.get("moe_layer_list", list(by_step))


@pytest.mark.parametrize("name", GENERIC)
def test_a_generic_trace_is_valid_and_says_what_it_is(name: str) -> None:
    trace = generate(short(generic(name)), 3)
    validate(trace, name)
    assert trace.real is False and trace.meta["generic"] is True and "uniform" not in trace.meta
    assert trace.meta["source"].startswith("synthetic, made by traces.synthetic: generic")
    assert trace.meta["assumptions"][0].startswith("GENERIC") and any("recall" in a for a in trace.meta["assumptions"])
    assert len(trace.meta["facts"]) == len(ROWS) and all(row.source for row in ROWS)
    assert trace.has("weights") and trace.has("logits") and trace.lookahead_distances == (1, 2)
    assert trace.weights is not None and np.isfinite(trace.weights).all() and (trace.weights > 0).any()


@pytest.mark.parametrize("name", ["nemotron-3-nano-30b-a3b", "switch-base-128", "nllb-moe-54b", "kimi-k2"])
def test_layers_that_are_listed_begin_late_or_come_in_steps(name: str) -> None:
    expected = {
        "nemotron-3-nano-30b-a3b": [1, 3, 6, 8],
        "switch-base-128": [1, 3, 5, 7],
        "nllb-moe-54b": [3, 7, 11, 15],
        "kimi-k2": [1, 2, 3, 4],
    }
    assert generate(short(generic(name), 4), 0).meta["moe_layers"] == expected[name]


def test_top_1_of_a_layer_and_weights_that_are_not_normalised() -> None:
    """A top-1 router that normalised would give 1.0 each; the catalog does not say that these do."""
    trace = generate(short(generic("switch-base-128")), 0)
    assert trace.top_k == 1 and trace.weights is not None and 0 < float(trace.weights.astype(float).mean()) < 0.9
    assert trace.meta["norm_topk"] is False


@pytest.mark.parametrize("name", ["kimi-k2", "glm-5", "qwen3-next-80b-a3b", "hy3-preview", "glm-4.6"])
def test_the_largest_fit_into_300_mb(name: str) -> None:
    preset = generic(name)
    tokens = preset.requests * (preset.prompt[1] + preset.generation[1])
    assert 2 * tokens * len(preset.moe_layers) * preset.n_experts < 200e6 and preset.logits


def test_logits_are_left_out_where_they_were_too_many() -> None:
    long = _of_lengths(generic("kimi-k2"), 32, None, None)
    assert not long.logits and any(text.startswith("no logits: ") for text in long.assumptions)
    trace = generate(short(long), 0)
    assert trace.logits is None and trace.weights is not None
    whole = generate(replace(short(long), logits=True), 0)
    assert np.array_equal(trace.experts, whole.experts) and np.array_equal(trace.weights, whole.weights)
    assert _of_lengths(generic("granite-3.0-1b-a400m"), 64, None, None).logits


@pytest.mark.parametrize("like", ["mixtral-8x7b", "uniform", "cyclic"])
def test_fitted_presets_come_first_and_are_unchanged(like: str) -> None:
    assert npz.content_hash(synthesise(like, 1)) == npz.content_hash(fitted(like, 1))
    assert not {"generic", "uniform"} & set(synthesise(like, 1).meta)


def test_names_and_aliases() -> None:
    assert [find(name) for name in ("deepseek-r1", "Mixtral", "qwen3-next", "moonshotai/Kimi-K2")] == [
        "deepseek-v3", "mixtral-8x7b", "qwen3-next-80b-a3b", "kimi-k2"
    ]  # fmt: skip
    assert find("kimi-k3-nano") is None and names() == list(ENTRIES)
    assert model("nemotron-3-nano-30b-a3b").moe_layers == tuple(ENTRIES["nemotron-3-nano-30b-a3b"]["moe_layer_list"])


@pytest.mark.parametrize(("name", "digest"), DIGESTS.items())
def test_two_layers_are_the_same_everywhere(name: str, digest: str) -> None:
    trace = generate(short(generic(name)), 0)
    arrays = (trace.experts, trace.weights, trace.logits, trace.lookahead)
    made = b"".join(np.asarray(each).tobytes() for each in arrays)
    assert hashlib.sha256(made).hexdigest()[:16] == digest


# --- what they aim at


@pytest.mark.parametrize(("k", "n"), FITTED)
def test_overlap_and_popularity_are_the_interpolated(k: int, n: int) -> None:
    """Within 0.02; another seed, other layers than those of the fit. Popularity of top-1 has a floor: in four requests
    that remember, some experts are wanted more whatever is liked."""
    name = next(name for name in GENERIC if (ENTRIES[name]["top_k"], ENTRIES[name]["n_experts"]) == (k, n))
    for got, wanted in zip(figures(wide(name)), aim(name, k, n), strict=True):
        assert abs(got - wanted) < 0.02


@pytest.mark.parametrize("name", OWN)
def test_a_model_with_figures_of_its_own_has_them(name: str) -> None:
    row = next(row for row in ROWS if row.model == name)
    assert aim(name, row.top_k, row.n_experts) == (row.overlap, row.popularity)
    for got, wanted in zip(figures(wide(name)), (row.overlap, row.popularity), strict=True):
        assert abs(got - wanted) < 0.02


def test_the_constants_are_of_shapes_in_the_catalog() -> None:
    """Not of all: a new model may have a new shape, which gets the nearest's."""
    assert set(FITTED) <= set(SHAPES) and set(OWN) == {row.model for row in ROWS} & set(GENERIC)


def test_a_shape_that_was_not_fitted_gets_the_nearest_s(monkeypatch: pytest.MonkeyPatch) -> None:
    preset = generic("kimi-k2")
    monkeypatch.delitem(FITTED, (8, 384))
    other = generic("kimi-k2")
    assert (other.memory[0][1], other.offset_sd) == FITTED[min(FITTED, key=lambda shape: apart(shape, (8, 384)))]
    assert any("the nearest shape" in text for text in other.assumptions)
    assert not any("the nearest shape" in text for text in preset.assumptions)


def test_the_interpolation_by_hand() -> None:
    """Two rows, 2 of 8 and 4 of 32, seen from 4 of 8: one octave (weight 1/4), two octaves (1/9). Shares of what chance
    leaves over 0.5 and 0.2; spreads 0.5 and 1."""
    rows = (
        ROWS[0]._replace(top_k=2, n_experts=8, overlap=0.25 + 0.5 * 0.75, popularity=0.25 * 1.25),
        ROWS[0]._replace(top_k=4, n_experts=32, overlap=0.125 + 0.2 * 0.875, popularity=0.125 * 2),
    )
    share = (0.5 / 4 + 0.2 / 9) / (1 / 4 + 1 / 9)
    spread = (0.5 / 4 + 1.0 / 9) / (1 / 4 + 1 / 9)
    assert interpolated(4, 8, rows) == pytest.approx((0.5 + 0.5 * share, 0.5 * (1 + spread**2)))
    assert interpolated(2, 8, rows[:1]) == pytest.approx((0.625, 0.3125))


@pytest.mark.parametrize("n", [1, 2, 3, 6, 60, 72, 128, 288, 512])
def test_octaves_are_log2_nearly_and_rise(n: int) -> None:
    assert 0 <= math.log2(n) - octaves(n) < 0.09 and octaves(n) < octaves(n + 1)


def test_no_shape_is_beyond_what_was_seen() -> None:
    """Between the least and the most of the rows, whatever the shape."""
    for k, n in [(1, 8), (1, 1024), (22, 512), (4, 6), (32, 32)]:
        over, alone = interpolated(k, n)
        assert k / n <= alone <= 1.0 + 1.8 * k / n and k / n <= over <= 1


# --- the control


@pytest.mark.parametrize(
    "name", ["mixtral-8x7b", "kimi-k2", "switch-base-128", "granite-3.0-1b-a400m", "llama-4-scout"]
)
def test_uniform_draws_anew_whatever_went_before(name: str) -> None:
    """Overlap within 3 sigma of K / E: of two independent sets it is hypergeometric, of variance
    K (K/E) (1 - K/E) (E - K) / (E - 1) experts, and pairs of rows and layers are independent of each other."""
    name = find(name) or find(name + "-17b-16e") or ""
    preset = control(PRESETS[name] if name in PRESETS else generic(name))
    trace = generate(replace(preset, moe_layers=preset.moe_layers[:6]), 4)
    validate(trace, name)
    k, n, found = trace.top_k, trace.n_experts, overlap(trace)
    variance = k * (k / n) * (1 - k / n) * (n - k) / (n - 1) / k**2
    assert abs(found["mean"] - k / n) < 3 * math.sqrt(variance / (found["pairs"] * trace.n_moe_layers))
    assert trace.real is False and trace.meta["uniform"] is True and "generic" not in trace.meta
    assert trace.meta["assumptions"][0].startswith("UNIFORM") and trace.logits is None and trace.lookahead is None


def test_uniform_has_the_lengths_of_what_it_is_the_control_of() -> None:
    for like in ("mixtral-8x7b", "lfm2-8b-a1b"):
        trace, even = synthesise(like, 2), synthesise(like, 2, uniform=True)
        assert trace.experts.shape == even.experts.shape
        assert all(np.array_equal(getattr(trace, a), getattr(even, a)) for a in ("sequence", "position", "prefill"))


# --- the command


def test_it_is_said_loudly(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "t.npz")
    for flags, mark in (([], "generic"), (["--uniform"], "uniform")):
        assert main(["synth", "--like", "lfm2-8b", "--requests", "2", *flags, "--out", out]) == 2
        assert main(["synth", "--like", "lfm2-8b-a1b", "--requests", "2", *flags, "--out", out, "--force"]) == 0
        said = capsys.readouterr().out
        assert LOUD in said and MARKS[mark] in said and "2 requests, 560 tokens" in said
        assert main(["info", out]) == 0
        assert f"{LOUD} ({MARKS[mark]})" in capsys.readouterr().out.splitlines()[0]
        assert main(["info", out, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)[mark] is True


def test_the_list_has_every_model_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["synth", "--list"]) == 0
    kinds = {line.split()[0]: line.split(None, 1)[1].split(", ") for line in capsys.readouterr().out.splitlines()}
    assert kinds["generic"] == GENERIC and kinds["patterns"] == ["uniform", "cyclic"]
    assert sorted(kinds["generic"] + kinds["fitted"]) == sorted(ENTRIES)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--like", "kimi-k3"], "did you mean kimi-k2?"),
        (["--like", "x" * 500], "no preset, and no model of the catalog; --list shows both"),
        (["--like", "kimi-k2", "--requests", "0"], "--requests: 0; from 1 to 39 of kimi-k2"),
        (["--like", "kimi-k2", "--requests", "40"], "--requests: 40; from 1 to 39 of kimi-k2"),
        (["--like", "kimi-k2", "--tokens", "3"], "--tokens: goes with --like-profile"),
        (["--like", "kimi-k2", "--seed", "-1"], "seed: -1"),
        (["--like-profile", "p.npz", "--uniform"], "--uniform: goes with --like"),
        (["--like-profile", "p.npz", "--requests", "3"], "--requests: goes with --like"),
        (["--uniform"], "one of the arguments --like --like-profile --list is required"),
    ],
)
def test_bad_requests_are_one_line(
    flags: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["synth", *flags, "--out", "t.npz"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1 and len(err) < 300 and said in err
    assert list(tmp_path.iterdir()) == []


def test_it_has_a_name_by_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["synth", "--like", "lfm2-8b-a1b", "--requests", "2"]) == 0
    assert main(["synth", "--like", "lfm2-8b-a1b", "--requests", "2", "--uniform"]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "lfm2-8b-a1b-synthetic.npz",
        "lfm2-8b-a1b-uniform.npz",
    ]


def test_a_run_says_it_too(tmp_path: Path) -> None:
    """`generic` that is not true marks nothing: meta is the file's author's."""
    from sim.outcome.marks import SYNTHETIC
    from sim.simulation import simulate
    from sim.spec import RunSpec

    trace = generate(short(generic("lfm2-8b-a1b"), 22), 0)
    for meta, words in (({}, f"{SYNTHETIC} ({MARKS['generic']})"), ({"generic": "yes"}, SYNTHETIC)):
        npz.write(tmp_path / "t.npz", replace(trace, meta=trace.meta | meta))
        summary, _ = simulate(RunSpec.of({"trace": str(tmp_path / "t.npz"), "cache": 0.5}))
        assert words in summary["notes"]


# --- how far off


@pytest.mark.parametrize("name", LEFT_OUT)
def test_the_page_says_how_far_a_capture_is_missed(name: str) -> None:
    if not (CAPTURES / f"{LEFT_OUT[name][0]}.npz").is_file():
        pytest.skip(f"no capture of {name} in ../shared/traces")
    text = (ROOT / "analysis" / "results" / "generic.md").read_text()
    for row in errors(name):
        line = next(line for line in text.splitlines() if line.startswith(f"| {name} | {row.figure} |"))
        kept = [float(line.split("|")[column]) for column in (3, 4, 6)]
        assert kept == pytest.approx([row.capture, row.interpolated, row.own], abs=0.002)


def test_what_is_said_of_the_error_is_the_page_s() -> None:
    """Overlap, interpolated without a capture's own row: a tenth in the mean."""
    off = []
    for name in LEFT_OUT:
        row, others = left_out(name)
        off.append(abs(interpolated(*shape_of(row), others)[0] - row.overlap))
    assert 0.08 < np.mean(off) < 0.12 and max(off) < 0.18
