"""Runs in the formats of other tools, against figures worked by hand; the names are those of their documents."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analysis import compare
from sim import run
from sim.errors import SpecError
from sim.machines.record import RunRecord
from sim.outcome import aiperf, otel
from sim.outcome.interchange import text
from sim.outcome.requests import requests_of
from sim.simulation import simulate
from sim.spec import RunSpec
from tests.pages import DOCS

MS = 1_000_000


def ints(*values: int) -> Any:
    return np.array(values, np.int64)


def record(warmup_steps: int = 0) -> RunRecord:
    """Two requests, one after the other. ms at which steps end: 10 and 20 (a prompt of 2 + 1 rows), 30 and 45 (two
    decode steps); 60 (a prompt of 4), 80 (one decode step). Admitted at 0 and 45."""
    ends = ints(10, 20, 30, 45, 60, 80) * MS
    steps = {"prefill": ints(1, 1, 0, 0, 1, 0), "begin_ns": np.concatenate([[0], ends[:-1]]), "end_ns": ends,
             "rows": ints(2, 1, 1, 1, 4, 1)}  # fmt: skip
    requests = {"request": ints(7, 9), "admitted_ns": ints(0, 45) * MS, "first_ns": ints(20, 60) * MS,
                "last_ns": ints(45, 80) * MS, "tokens": ints(3, 2), "admitted_step": ints(0, 4),
                "last_prefill_step": ints(1, 4), "first_decode": ints(0, 2), "generated": ints(2, 1)}  # fmt: skip
    return RunRecord(steps, requests, {}, {}, {}, warmup_steps, 1)


SUMMARY: dict[str, Any] = {
    "version": "0", "machine": "compiled", "spec": {"trace": "t"}, "trace": {"model": "m"}, "notes": ["SYNTHETIC"],
    "marks": {"synthetic": True, "open_loop": False, "oracle": False, "fits": False, "calibrated": None},
}  # fmt: skip


def test_aiperf_by_hand() -> None:
    """TTFT 20 and 15; latencies 45 and 35; ITL (45 - 20) / 2 = 12.5 and (80 - 60) / 1 = 20; to the second token 10 and
    20; gaps 10, 15, 20; 3 + 2 tokens, 3 + 4 of prompts, in 80 ms. On a line the median of 12.5 and 20 is 16.25, p90
    12.5 + 0.9 x 7.5; the deviation of two is half of what is between. TTFT 16 and ITL 20 only the second meets."""
    slos = aiperf.parse_goodput("time_to_first_token:16 inter_token_latency:20")
    found = aiperf.export(SUMMARY, requests_of(record()), slos)
    assert {name: (found[name]["unit"], found[name]["avg"]) for name in ("time_to_first_token", "request_latency",
            "time_to_second_token", "inter_chunk_latency", "decode_duration")} == {
        "time_to_first_token": ("ms", 17.5), "request_latency": ("ms", 40.0), "time_to_second_token": ("ms", 15.0),
        "inter_chunk_latency": ("ms", 15.0), "decode_duration": ("ms", 22.5)}  # fmt: skip
    itl = found["inter_token_latency"]
    assert [itl[key] for key in ("min", "max", "p50", "std", "count", "sum")] == [12.5, 20, 16.25, 3.75, 2, 32.5]
    assert itl["p90"] == pytest.approx(19.25)
    assert found["output_sequence_length"]["avg"] == 2.5 and found["input_sequence_length"]["sum"] == 7
    assert found["output_token_throughput_per_user"]["max"] == 80  # of 12.5 ms
    assert found["prefill_throughput_per_user"]["min"] == 150  # 3 in 20 ms; 4 in 15 are 267
    blocks = {name: block for name, block in found.items() if isinstance(block, dict)}
    of_all = {name: block["avg"] for name, block in blocks.items() if set(block) == {"unit", "avg"}}
    assert of_all == {
        "request_count": 2, "total_isl": 7, "total_osl": 5, "total_output_tokens": 5, "benchmark_duration": 0.08,
        "request_throughput": 25, "output_token_throughput": 62.5, "total_token_throughput": pytest.approx(150),
        "good_request_count": 1, "goodput": 12.5,
    }  # fmt: skip
    assert found["goodput"]["unit"] == "requests/sec" and found["output_token_throughput"]["unit"] == "tokens/sec"
    assert found["moe_offload_sim"]["marks"]["synthetic"] and found["moe_offload_sim"]["simulated"]


def test_without_objectives_there_is_no_goodput() -> None:
    assert "goodput" not in aiperf.export(SUMMARY, requests_of(record()), {})


def test_what_a_request_has_not_is_not_good_and_not_counted() -> None:
    """A request of one token has no ITL: it counts for no distribution of it, and meets no objective on it."""
    r = requests_of(record())
    one = type(r)(**{**vars(r), "tokens": ints(3, 1), "second_ns": ints(30 * MS, -1)})
    found = aiperf.export(SUMMARY, one, {"inter_token_latency": 1000.0})
    assert found["inter_token_latency"]["count"] == 1 and found["good_request_count"]["avg"] == 1
    assert found["time_to_second_token"]["count"] == 1
    fast = aiperf.good_requests(aiperf.of_requests(r), {"output_token_throughput_per_user": 60.0})
    assert fast.tolist() == [True, False]  # 80 and 50 tokens/s: more is better


def test_what_began_in_the_warm_up_is_left_out() -> None:
    assert requests_of(record(warmup_steps=1)).request.tolist() == [9]
    empty = aiperf.export(SUMMARY, requests_of(record(warmup_steps=6)), {})
    assert empty["request_count"]["avg"] == 0 and "time_to_first_token" not in empty


def test_otel_by_hand() -> None:
    """45 and 35 ms lie in (40, 80] and (20, 40]; both times to a first token, 20 and 15, in (10, 20]; 12.5 and 20 ms a
    token in (10, 25]."""
    made = otel.resource("r", SUMMARY, requests_of(record()))
    metrics = {m["name"]: m for m in made["scopeMetrics"][0]["metrics"]}
    points = {name: m["histogram"]["dataPoints"][0] for name, m in metrics.items()}
    where = {
        name: {point["explicitBounds"][i]: int(n) for i, n in enumerate(point["bucketCounts"]) if n != "0"}
        for name, point in points.items()
    }
    assert where == {
        "gen_ai.server.request.duration": {0.04: 1, 0.08: 1},
        "gen_ai.server.time_to_first_token": {0.02: 2},
        "gen_ai.server.time_per_output_token": {0.025: 2},
    }
    duration = points["gen_ai.server.request.duration"]
    assert (duration["count"], duration["sum"], duration["min"], duration["max"]) == ("2", 0.08, 0.035, 0.045)
    assert duration["timeUnixNano"] == str(80 * MS) and {m["unit"] for m in metrics.values()} == {"s"}
    assert {a["key"] for a in duration["attributes"]} == {f"gen_ai.{k}" for k in
            ("operation.name", "provider.name", "request.model")}  # fmt: skip
    marks = made["resource"]["attributes"][-1]["value"]["arrayValue"]["values"]
    assert [mark["stringValue"] for mark in marks] == ["synthetic", "does_not_fit", "simulated"]
    unsure = {**SUMMARY, "marks": {**SUMMARY["marks"], "catalog_costs": True}}
    for summary, said in ((unsure, True), ({**unsure, "tokens_per_s_interval": [1.0, 2.0]}, False)):
        found = str(otel.resource("r", summary, requests_of(record()))["resource"])
        assert ("'not calibrated'" in found) == said and "catalog_costs" not in found
    for name, point in points.items():  # one bucket more than boundaries, together as many as there are
        assert len(point["bucketCounts"]) == len(otel.BOUNDS[name]) + 1
        assert sum(map(int, point["bucketCounts"])) == int(point["count"])


def test_they_say_what_the_summary_says() -> None:
    """Of a whole run: TTFT and TPOT are the summary's, tokens add up to it, and prompts to all prompt tokens."""
    summary, made = simulate(RunSpec.of({"trace": "mixtral.npz", "batch": 2, "max_steps": 300}))
    found = json.loads(text([("r", summary, made)], "aiperf", None))
    assert found["time_to_first_token"]["avg"] == pytest.approx(summary["ttft_ms"]["mean"])
    assert found["inter_token_latency"]["avg"] == pytest.approx(summary["tpot_ms"]["mean"])
    assert found["inter_chunk_latency"]["avg"] == pytest.approx(summary["itl_ms"]["mean"])
    assert found["total_osl"]["avg"] == summary["tokens"] + found["request_count"]["avg"]  # a prompt gives one
    prompts = made.steps["rows"][made.steps["prefill"] == 1].sum()
    assert found["total_isl"]["avg"] == prompts == summary["prompt_tokens"]


def test_both_doors_write_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--trace", "mixtral.npz", "--max-steps", "60", "--out"]
    asked = ["--format", "aiperf", "--goodput", "time_to_first_token:1e6"]
    assert run.main([*flags, str(tmp_path / "a"), *asked]) == 0
    first = json.loads(capsys.readouterr().out)
    assert run.main([*flags, str(tmp_path / "b"), "--cache", "6"]) == 0
    capsys.readouterr()
    assert compare.main([str(tmp_path / "a"), *asked]) == 0
    assert json.loads(capsys.readouterr().out) == first and first["goodput"]["avg"] > 0
    both = [str(tmp_path / name) for name in "ab"]
    assert compare.main([*both, "--format", "aiperf"]) == 0
    assert list(json.loads(capsys.readouterr().out)) == ["a", "b"]
    assert compare.main([*both, "--format", "otel"]) == 0
    assert len(json.loads(capsys.readouterr().out)["resourceMetrics"]) == 2
    (tmp_path / "b" / "record.npz").unlink()
    assert compare.main([*both, "--format", "otel"]) == 2
    assert "has no record of its requests" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("goodput", "wrong"),
    [
        ("ttft:20", "goodput: ttft: no such metric"),
        ("time_to_first_tokens:20", "did you mean time_to_first_token?"),
        ("time_to_first_token", "must be METRIC:LIMIT"),
        ("time_to_first_token:fast", "must be METRIC:LIMIT"),
        ("time_to_first_token:-1", "must be METRIC:LIMIT"),
        ("", "names no metric"),
    ],
)
def test_objectives_that_are_none_are_one_line(goodput: str, wrong: str) -> None:
    with pytest.raises(SpecError) as error:
        aiperf.parse_goodput(goodput)
    assert wrong in str(error.value)


@pytest.mark.parametrize(
    ("flags", "wrong"),
    [
        (["--goodput", "time_to_first_token:20"], "goes with --format aiperf"),
        (["--format", "otel", "--goodput", "time_to_first_token:20"], "goes with --format aiperf"),
        (["--format", "otel", "--json"], "give one of the two"),
    ],
)
def test_flags_that_do_not_go_together(flags: list[str], wrong: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run.main(["--trace", "mixtral.npz", *flags]) == 2
    assert wrong in capsys.readouterr().err


def test_the_page_names_every_metric() -> None:
    page = (DOCS / "interchange.md").read_text()
    found = aiperf.export(SUMMARY, requests_of(record()), {"time_to_first_token": 16.0})
    named = [name for name, block in found.items() if isinstance(block, dict) and "unit" in block]
    assert [name for name in [*named, *otel.BOUNDS] if f"`{name}`" not in page] == []
