"""`python -m traces`: what it prints and writes, and one line with exit status 2 for bad input."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests import foreign
from tests.gen import REUSING_FOLDER, random_trace, traces
from traces.__main__ import main
from traces.errors import TraceError
from traces.foreign.ask import Ask
from traces.foreign.formats import csv
from traces.foreign.models import Model
from traces.format import npz
from traces.format.trace import RoutingTrace, split
from traces.statistics.describe import LOUD

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def file(tmp_path: Path) -> str:
    npz.write(tmp_path / "t.npz", random_trace(np.random.default_rng(0), 60, requests=6))
    return str(tmp_path / "t.npz")


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The message of a refusal: exit status 2, one line on stderr, nothing on stdout."""
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1
    return err


def test_info_prints_text_and_one_json_object(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", file]) == 0
    assert LOUD in capsys.readouterr().out.splitlines()[0]
    assert main(["info", file, "--json"]) == 0
    out, err = capsys.readouterr()
    assert err == "" and out.count("\n") == 1
    assert json.loads(out)["content_hash"] == npz.content_hash(npz.read(file))


def test_as_a_module(file: str) -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "traces", *arguments]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)

    assert run("info", file).returncode == 0
    bad = run("info", "none")
    assert bad.returncode == 2 and bad.stderr.count("\n") == 1 and "Traceback" not in bad.stderr


def test_importing_traces_needs_numpy_alone() -> None:
    code = (
        "import sys, traces.__main__\n"
        "heavy = {'numba', 'pandas', 'torch', 'scipy', 'simpy', 'pydantic', 'sim', 'hypothesis'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(npz, "SAMPLES", tmp_path / "samples")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "samples").mkdir()
    npz.write(tmp_path / "samples" / "mixtral.npz", random_trace(np.random.default_rng(0)))
    assert npz.find("mixtral") == npz.find("mixtral.npz") == tmp_path / "samples" / "mixtral.npz"
    assert main(["info", "mixtral.npz"]) == 0
    capsys.readouterr()
    assert "did you mean mixtral?" in refused(["info", "mixtrl.npz"], capsys)
    npz.write("mixtral.npz", random_trace(np.random.default_rng(1)))
    assert npz.find("mixtral.npz") == Path("mixtral.npz")  # a file goes before a sample


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no command; one of info"),
        (["inof", "x"], "did you mean info?"),
        (["info"], "file: missing"),
        (["info", ""], "no such file"),
        (["info", "."], "not a regular file"),
        (["info", "FILE", "--jsno"], "--jsno: unknown argument; did you mean --json?"),
        (["split", "FILE", "a", "b"], "one of the arguments --fraction --by is required"),
        (["split", "FILE", "--fraction", "x", "a", "b"], "must be a number"),
        (["split", "FILE", "--fraction", "1.0", "a", "b"], "fraction 1.0 is outside"),
        (["split", "FILE", "--fraction", "nan", "a", "b"], "fraction nan is outside"),
        (["split", "FILE", "--fraction", "0.5", "a", "./a"], "the same file"),
        (["split", "FILE", "--fraction", "0.5", "a", "none/b"], "none/b: cannot write: No such file"),
        (["split", "FILE", "--fraction", "0.5", "a", ""], "not a regular file"),
        (["convert", "--from", "cvs", "FILE", "a", "--model", "m", "--n-experts", "8"], "did you mean csv?"),
        (["convert", "--from", "csv", "FILE", "a", "--model", "m"], "required: --n-experts"),
        (["convert", "--from", "csv", "FILE", "a", "--n-experts", "8"], "required: --model"),
        (["convert", "--from", "csv", "FILE", "a", "--model", "m", "--n-experts", "8"], "CSV"),
        (["convert", "--from", "csv", "none", "a", "--model", "m", "--n-experts", "8"], "No such file"),
    ],
)
def test_bad_arguments(
    arguments: list[str],
    message: str,
    file: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert message in refused([file if a == "FILE" else a for a in arguments], capsys)
    assert [p.name for p in tmp_path.iterdir()] == ["t.npz"]


def test_split_writes_both_parts(file: str, tmp_path: Path) -> None:
    a, b = tmp_path / "a.npz", tmp_path / "b.npz"
    assert main(["split", file, "--fraction", "0.34", "--seed", "5", str(a), str(b)]) == 0
    expected = split(npz.read(file), 0.34, 5)
    assert [npz.content_hash(npz.read(p)) for p in (a, b)] == [npz.content_hash(t) for t in expected]
    assert len(npz.read(a).requests()[0]) == 2


def test_synth_writes_a_synthetic_trace(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    synthetic = pytest.importorskip("traces.synthetic")
    name = sorted(synthetic.PRESETS)[0]
    out = tmp_path / "s.npz"
    assert main(["synth", "--like", name, "--seed", "3", "--out", str(out)]) == 0
    assert LOUD in capsys.readouterr().out
    assert not npz.read(out).real
    assert f"did you mean {name}?" in refused(["synth", "--like", name + "x", "--out", str(out)], capsys)


# --- long CSV ---


def read_csv(path: Path, **facts: Any) -> RoutingTrace:
    return csv.read(path, Ask(Model("m", **facts)))


@REUSING_FOLDER
@given(trace=traces(missing=0.0, weights=True, logits=False, lookahead=0, token_ids=False), seed=st.integers(0, 99))
def test_csv_lines_in_whatever_order(trace: RoutingTrace, seed: int, tmp_path: Path) -> None:
    """Every line counts; rows of a request are sorted by token, requests by the first line that they have."""
    path = tmp_path / "t.csv"
    foreign.csv(path, trace)
    header, *lines = path.read_text().splitlines()
    order = np.random.default_rng(seed).permutation(len(lines))
    path.write_text("\n".join([header, *(lines[i] for i in order)]))
    shuffled = read_csv(path, n_experts=trace.n_experts, n_layers=trace.n_layers)
    assert shuffled.meta["slots_ordered_by_weight"] is True
    for request in np.unique(trace.sequence):
        for name in ("experts", "position", "prefill", "weights"):
            mine, theirs = getattr(shuffled, name), getattr(trace, name)
            assert np.array_equal(mine[shuffled.sequence == request], theirs[trace.sequence == request]), name


def test_csv_gaps_become_absent_slots(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text(
        "\ufeffphase, token, layer, rank, expert, weight, note\r\n"
        "prefill,0,1,0,3,0.25,x\r\nprefill,0,1,1,2,0.75,x\r\n\r\ndecode,2,4,1,-1,0,x\r\ndecode,3,4,0,7,1,x\r\n"
    )
    trace = read_csv(path, n_experts=8)
    assert trace.experts.tolist() == [[[3, 2], [-1, -1]], [[-1, -1]] * 2, [[-1, -1]] * 2, [[-1, -1], [7, -1]]]
    assert trace.prefill.tolist() == [True, False, False, False]
    assert (trace.meta["moe_layers"], trace.n_layers, trace.real) == ([1, 4], 5, True)
    assert trace.meta["slots_ordered_by_weight"] is False


HEAD = "phase,token,layer,rank,expert,weight\n"
GOOD = "decode,0,0,0,1,0.5\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "line 1 has no column layer; its columns are none"),
        ("phase,token,layer,rank\n", "line 1 has no column expert"),
        (HEAD, "no rows"),
        (HEAD + "decode,0,0,0\n", "line 2 has 4 fields; line 1 has 6"),
        (HEAD + GOOD + "think,1,0,0,1,0.5\n", "line 3: phase = 'think'"),
        (HEAD + GOOD + "decode,x,0,0,1,0.5\n", "line 3: token = 'x'"),
        (HEAD + GOOD + "decode,-1,0,0,1,0.5\n", "line 3: token = '-1'; an integer from 0"),
        (HEAD + GOOD + "decode,1,0,0,8,0.5\n", "line 3: expert = '8'; an integer from -1 to 7"),
        (HEAD + GOOD + "decode,1,0,0,1e0,0.5\n", "line 3: expert = '1e0'"),
        (HEAD + GOOD + "decode,1,0,0,1,nan\n", "line 3: weight = 'nan'"),
        (HEAD + GOOD + "decode,1,0,0,1,\n", "line 3: weight = ''"),
        (HEAD + GOOD + "decode,1,0,0,1,1e99\n", "line 3: weight = '1e99'"),
        (HEAD + GOOD + GOOD, "line 3: token 0, layer 0, rank 0 is there already"),
        (HEAD + GOOD + "prefill,1,0,0,1,0.5\n", "line 2: token 0 is in phase decode before or in its prompt"),
        (HEAD + GOOD + "prefill,0,0,1,2,0.5\n", "line 2: token 0 is in phase decode"),
        (HEAD + GOOD + "decode,0,0,1,1,0.5\n", "experts[0, 0, 1] = 1 is already in slot 0"),
        (HEAD + "decode,0,0,1,1,0.5\n", "ranks are counted from 0"),
        (HEAD + GOOD + "decode,999999999,0,0,1,0.5\n", "tokens are numbered without gaps"),
        (HEAD + GOOD + 'decode,1,0,0,"1,0.5\n', "line 3: unexpected end of data"),
        (HEAD + GOOD + "decode,1,0,0,1,\x00\n", "line 3"),
    ],
)
def test_bad_csv(content: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "t.csv"
    path.write_text(content)
    out = tmp_path / "out.npz"
    command = ["convert", "--from", "csv", str(path), str(out), "--model", "m", "--n-experts", "8"]
    assert message in refused(command, capsys)
    assert [p.name for p in tmp_path.iterdir()] == ["t.csv"]


def test_csv_words_of_a_phase(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    words = ("prefill", "Prompt", "decode", "GENERATE")
    path.write_text("\n".join(["phase,token,layer,rank,expert", *(f"{w},{t},0,0,1" for t, w in enumerate(words))]))
    assert read_csv(path, n_experts=8).prefill.tolist() == [True, True, False, False]
    path.write_text("phase,token,layer,rank,expert\nwarmup,0,0,0,1")
    with pytest.raises(TraceError, match=r"phase = 'warmup'; one of prefill, prompt, decode, generate is required"):
        read_csv(path, n_experts=8)


def test_csv_limits_by_flags(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text(HEAD + GOOD + "decode,0,3,1,2,0.25\n")
    assert read_csv(path, n_experts=8, top_k=4, n_layers=6).experts.shape == (1, 2, 4)
    for flags, message in (
        ({"top_k": 1}, "line 3: rank = 1; with --top-k 1 it is at most 0"),
        ({"n_layers": 3}, "n_layers|line 3: layer = 3"),
        ({"top_k": 10**9}, "meta.top_k is 1000000000"),
    ):
        with pytest.raises(TraceError, match=message):
            read_csv(path, n_experts=8, **flags)
    with pytest.raises(TraceError, match="n_experts = 0"):
        read_csv(path, n_experts=0)


def test_convert_writes_a_trace(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = tmp_path / "t.csv", tmp_path / "out.npz"
    path.write_text(HEAD + GOOD)
    command = ["convert", "--from", "csv", str(path), str(out), "--model", "m", "--n-experts", "8"]
    assert main([*command, "--synthetic", "--source", "a log", "--top-k", "2"]) == 0
    trace = npz.read(out)
    assert (trace.real, trace.meta["source"], trace.top_k, trace.n_tokens) == (False, "a log", 2, 1)
    assert LOUD in capsys.readouterr().out
