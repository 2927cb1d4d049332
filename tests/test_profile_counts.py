"""Frequency profiles: from every source that counts, refused as traces, used for placement and synthetic traces."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim import run
from sim.fit.placement import first_residents
from tests.foreign import COUNTED, counts_of
from tests.gen import REUSING_FOLDER, random_trace, traces
from tests.test_readers import FIXED, refused, without
from traces.__main__ import main
from traces.errors import TraceError
from traces.format import npz, profile
from traces.format.check import validate
from traces.format.profile import Profile
from traces.format.trace import RoutingTrace
from traces.statistics.describe import LOUD
from traces.statistics.stats import profile_of
from traces.synthetic import from_profile

few = settings(REUSING_FOLDER, max_examples=12)


def used(trace: RoutingTrace) -> bool:
    """Whether every MoE layer was used: a profile with a layer of zeros is refused."""
    return bool((counts_of(trace).sum(axis=1) > 0).all())


def some_trace(seed: int = 0, **options: object) -> RoutingTrace:
    return random_trace(np.random.default_rng(seed), 30, dense_layers=1, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", COUNTED)
@few
@given(trace=traces(logits=False, lookahead=0, max_experts=7).filter(used).filter(lambda t: t.n_experts > 1))
def test_round_trip(name: str, trace: RoutingTrace, tmp_path_factory: pytest.TempPathFactory) -> None:
    """The counts of any trace, written in the tool's layout, come back as the profile of the trace."""
    _, file, build = COUNTED[name]
    folder = tmp_path_factory.mktemp("counts")
    flags = build(folder / file, trace)
    assert main(["convert", "--force", str(folder / file), str(folder / "p.npz"), *flags]) == 0
    found = profile.read(folder / "p.npz")
    assert np.array_equal(found.counts, counts_of(trace)) and np.array_equal(found.counts, profile_of(trace).counts)
    for key in ("n_experts", "top_k", "n_layers", "moe_layers"):
        assert found.meta[key] == trace.meta[key], key
    assert (found.model, found.meta["real"], found.meta["id_space"]) == ("test-model", True, "logical")


@pytest.mark.parametrize("name", COUNTED)
def test_told_by_content_and_refused_as_a_trace(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    format_name, file, build = COUNTED[name]
    trace = some_trace()
    flags = build(tmp_path / file, trace)
    out = tmp_path / "p.npz"
    assert main(["convert", "--force", str(tmp_path / file), str(out), *flags]) == 0
    said = capsys.readouterr().out
    assert "counts, no trace" in said and f"read as {format_name}:" in said
    assert main(["info", str(out)]) == 0
    assert "it cannot be replayed" in capsys.readouterr().out
    assert main(["info", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["by_layer"]["uses"] == counts_of(trace).sum(axis=1).tolist()
    assert run.main(["--trace", str(out)]) == 2
    refusal = capsys.readouterr().err
    assert "frequency profile" in refusal and refusal.count("\n") == 1


SAY_THEIR_LAYERS = ("trtllm", "imatrix", "counts-csv", "counts-wide", "counts-json", "counts-json-lists")


@pytest.mark.parametrize("name", [name for name in COUNTED if name not in SAY_THEIR_LAYERS])
def test_which_layers_are_moe_layers_is_asked_for(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, file, build = COUNTED[name]
    flags = without(build(tmp_path / file, some_trace()), "--moe-layers")
    command = ["convert", "--force", str(tmp_path / file), str(tmp_path / "p.npz"), *flags]
    assert "required: --moe-layers LIST" in refused(command, capsys)
    assert "--phase: " in refused([*command, "--phase", "decode"], capsys)


def test_what_counts_cannot_be() -> None:
    good = profile_of(some_trace())
    for change, message in (
        ({"counts": -good.counts}, "a finite number >= 0"),
        ({"counts": good.counts * np.nan}, "a finite number >= 0"),
        ({"counts": np.where(np.arange(3)[:, None] == 1, 0, good.counts)}, r"counts\[1\] are all 0"),
        ({"counts": good.counts[:2]}, "2 ascending layer indices"),
        ({"counts": good.counts[:, :5]}, "meta.n_experts is 8; counts has 5"),
        ({"counts": good.counts[0]}, r"\[MoE layers, experts\] is required"),
        ({"meta": good.meta | {"top_k": 9}}, "meta.top_k is 9; an integer from 1 to 8"),
        ({"meta": good.meta | {"n_layers": 2}}, "meta.n_layers is 2; an integer from 4"),
        ({"meta": good.meta | {"format_version": 2}}, "knows version 1"),
        ({"meta": good.meta | {"real": 1}}, "true or false"),
        ({"meta": good.meta | {"model": ""}}, "a name is required"),
    ):
        with pytest.raises(TraceError, match=message):
            profile.validate(Profile(**({"counts": good.counts, "meta": good.meta} | change)), "p")


def test_damaged_profiles(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "p.npz"
    profile.write(path, profile_of(some_trace()))
    whole = path.read_bytes()
    for seed in range(25):
        rng = np.random.default_rng(seed)
        damaged = bytearray(whole)
        damaged[int(rng.integers(0, len(whole)))] ^= int(rng.integers(1, 256))
        path.write_bytes(damaged)
        assert main(["info", str(path)]) in (0, 2)
    path.write_bytes(whole[: len(whole) // 2])
    assert "not a complete .npz" in refused(["info", str(path)], capsys)
    np.savez(path, counts=np.ones((1, 2)), meta=np.array('{"kind": "other"}'))
    assert "meta.kind is 'other'" in refused(["info", str(path)], capsys)
    np.savez(path, counts=np.ones((1, 2), np.float32), meta=np.array('{"kind": "frequency-profile"}'))
    assert "float64 [MoE layers, experts] is required" in refused(["info", str(path)], capsys)


# --- placement ---


def test_a_profile_places_as_its_trace_does(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`--placement profile` with the counts of the calibration is `--placement popular` on the calibration."""
    calibration, judged = some_trace(1, requests=2), some_trace(2)
    npz.write(tmp_path / "c.npz", calibration)
    npz.write(tmp_path / "t.npz", judged)
    profile.write(tmp_path / "p.npz", profile_of(calibration))
    (tmp_path / "h.toml").write_text(FIXED)
    common = ["--trace", str(tmp_path / "t.npz"), "--hardware", str(tmp_path / "h.toml"), "--cache", "3", "--json"]

    def result(*flags: str) -> dict[str, object]:
        assert run.main([*common, *flags]) == 0
        return json.loads(capsys.readouterr().out)

    mine = result("--placement", "profile", "--set", f"profile.file={tmp_path / 'p.npz'}")
    theirs = result("--placement", "popular", "--calibration", str(tmp_path / "c.npz"))
    first = result()
    keys = ("time_ns", "hits", "misses", "transfers", "by_layer")
    assert [mine[key] for key in keys] == [theirs[key] for key in keys] != [first[key] for key in keys]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--placement", "profile"], "needs --set profile.file=P.npz"),
        (["--placement", "profile", "--set", "profile.fiel=x"], "did you mean"),
        (["--placement", "profile", "--set", "profile.file=none.npz"], "none.npz"),
        (["--placement", "profile", "--set", "profile.file=OTHER"], "counts [3, 5]; the trace has"),
        (["--placement", "profile", "--set", "profile.file=TRACE"], "meta.kind is None"),
        (["--set", "profile.file=OTHER"], "set: profile.file: must be POLICY.PARAM with a policy of this run"),
    ],
)
def test_bad_placements(flags: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    npz.write(tmp_path / "t.npz", some_trace())
    profile.write(tmp_path / "o.npz", profile_of(some_trace(experts=5)))
    (tmp_path / "h.toml").write_text(FIXED)
    words = [w.replace("OTHER", str(tmp_path / "o.npz")).replace("TRACE", str(tmp_path / "t.npz")) for w in flags]
    common = ["--trace", str(tmp_path / "t.npz"), "--hardware", str(tmp_path / "h.toml")]
    assert run.main([*common, *words]) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1


def test_counts_before_calibration() -> None:
    counts = np.array([[1, 5, 5, 0]])
    assert first_residents("popular", 1, 4, np.array([3]), False, counts=counts).tolist() == [0, 2, 1]
    with pytest.raises(ValueError, match="counts has shape"):
        first_residents("popular", 1, 3, np.array([3]), False, counts=counts)


# --- synthetic traces ---


def of_counts(counts: np.ndarray, k: int) -> Profile:
    meta = {"kind": profile.KIND, "format_version": 1, "model": "m", "n_experts": counts.shape[1], "top_k": k}
    meta |= {"moe_layers": list(range(len(counts))), "real": True, "tool": "t"}
    return Profile(counts.astype(np.float64), meta)


@few
@given(
    counts=st.lists(st.lists(st.integers(0, 50), min_size=5, max_size=5), min_size=1, max_size=3),
    k=st.integers(1, 3),
    seed=st.integers(0, 2**64 - 1),
)
def test_a_synthetic_trace_has_the_profile_s_popularity(counts: list[list[int]], k: int, seed: int) -> None:
    """Valid, top-k distinct experts a token, and each expert's uses within one's standard deviations of k x share."""
    table = np.array(counts) + 1
    share = table / table.sum(axis=1, keepdims=True)
    if (share * k > 1).any():
        with pytest.raises(TraceError, match="a router gives at most"):
            from_profile(of_counts(table, k), 9, seed)
        return
    tokens = 4000
    trace = from_profile(of_counts(table, k), tokens, seed)
    validate(trace)
    assert not trace.real and (trace.experts >= 0).all()
    p = share * k
    spread = np.sqrt(tokens * p * (1 - p))
    assert (np.abs(counts_of_fast(trace) - tokens * p) <= 5 * spread + 1e-6).all()


def counts_of_fast(trace: RoutingTrace) -> np.ndarray:
    from traces.statistics.counts import expert_counts

    return expert_counts(trace)


def test_an_expert_that_every_token_uses(tmp_path: Path) -> None:
    """Share 1 / k: chosen always; share 0: never; the same bytes twice, and others with another seed."""
    counts = np.array([[30, 10, 20, 0]])
    trace = from_profile(of_counts(counts, 2), 500, 1)
    assert (trace.experts == 0).any(axis=2).all() and not (trace.experts == 3).any()
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        npz.write(tmp_path / name, from_profile(of_counts(counts, 2), 500, seed))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes() != (tmp_path / "c").read_bytes()


def test_blocks_of_tokens_are_not_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = np.array([[3, 1, 2, 4], [1, 1, 1, 1]])
    whole = from_profile(of_counts(counts, 2), 100, 5).experts
    monkeypatch.setattr("traces.synthetic.PROFILE_TOKENS", 7)
    assert np.array_equal(from_profile(of_counts(counts, 2), 100, 5).experts, whole)


def test_synth_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    profile.write(tmp_path / "p.npz", profile_of(some_trace()))
    out, base = tmp_path / "t.npz", ["synth", "--like-profile", str(tmp_path / "p.npz")]
    assert main([*base, "--tokens", "50", "--seed", "3", "--out", str(out)]) == 0
    assert LOUD in capsys.readouterr().out
    trace = npz.read(out)
    assert (trace.n_tokens, trace.n_layers, trace.meta["moe_layers"], trace.real) == (50, 4, [1, 2, 3], False)
    no_k = profile_of(some_trace())
    no_k.meta.pop("top_k")
    profile.write(tmp_path / "q.npz", no_k)
    assert "meta.top_k is missing" in refused(
        ["synth", "--like-profile", str(tmp_path / "q.npz"), "--out", "x"], capsys
    )
    assert "goes with --like-profile" in refused(["synth", "--like", "uniform", "--tokens", "5", "--out", "x"], capsys)
    assert "at least 1 is required" in refused([*base, "--tokens", "0", "--out", "x"], capsys)
    assert "meta.kind" in refused(["synth", "--like-profile", str(out), "--out", "x"], capsys)
