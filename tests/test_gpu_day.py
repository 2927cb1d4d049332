"""The GPU day: made-up parts in their boxes, killed, resumed and packed; the real one as a dry run."""

import ast
import errno
import importlib
import json
import os
import shlex
import signal
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest

from runtime.gpu import __main__ as command
from runtime.gpu import archive, day
from runtime.gpu.day import Day, Result
from runtime.gpu.page import page
from runtime.gpu.project import project
from runtime.gpu.table import PARTS, SECOND, WORDS, Part, parts
from tests.processes import PATIENCE_S, eventually, gone

pytestmark = pytest.mark.machine  # the dry run and its tests come to it
ROOT = Path(__file__).parent.parent

# What the parts of these tests run: one word a deed, one after the other.
MADE_UP = """
import subprocess, sys, time
from pathlib import Path
for deed in sys.argv[1:]:
    name, _, value = deed.partition("=")
    if name == "write":
        file, _, text = value.partition(":")
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        Path(file).write_text(text)
    elif name == "copy":
        Path(Path(value).name).write_bytes(Path(value).read_bytes())
    elif name == "note":  # a line more in a file outside the day: how often this ran
        with open(value, "a") as file:
            file.write("ran\\n")
    elif name == "child":  # a grandchild of the day that never ends
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3600)"])
        Path(value).write_text(str(child.pid))
    elif name == "say":
        print(value, flush=True)
    elif name == "sleep":
        time.sleep(float(value))
    elif name == "needs":
        sys.exit(0 if Path(value).exists() else 4)
    elif name == "exit":
        sys.exit(int(value))
"""


@pytest.fixture
def there(tmp_path: Path) -> Path:
    (tmp_path / "made_up.py").write_text(MADE_UP)
    return tmp_path


def part(name: str, *deeds: str, box_s: float = 100, **more: Any) -> Part:
    """A part of one made-up command for each text."""
    return Part(name, f"what {name} shows", box_s, tuple(f"made_up {deed}" for deed in deeds), **more)


def made_up_day(there: Path, *table: Part, seconds: float = 500, device: str = "cpu", **more: Any) -> Day:
    environment = {**os.environ, "PYTHONPATH": str(there)}
    (there / "day").mkdir(exist_ok=True)
    return Day(there / "day", table, {"device": device}, seconds, environment, **more)


def run(found: Day, again: bool = False) -> dict[str, Result]:
    """Every part of a day's table."""
    return {result.part: result for result in found.run([p.name for p in found.parts], again)}


def packed(there: Path) -> set[str]:
    with tarfile.open(there / "day" / archive.NAME) as tar:
        return {name.removeprefix("gpu/") for name in tar.getnames()}


# --- parts and their boxes ---


def test_a_part_is_kept_as_it_ends_and_a_later_failure_leaves_it(there: Path) -> None:
    good = part("good", "write=figures.json:1", "write=scratch/weights.json:2 say=fine")
    results = run(made_up_day(there, good, part("bad", "say=why exit=3", "write=after.json:1")))
    assert results["good"].status == "done" and [c["exit"] for c in results["good"].commands] == [0, 0]
    assert results["bad"].status == "failed" and [c["exit"] for c in results["bad"].commands] == [3, 0]
    place = there / "day" / "parts" / "good"
    assert sorted(path.name for path in place.iterdir()) == ["figures.json", "good.log", "result.json"]
    log = (place / "good.log").read_text()
    assert (
        log
        == "$ python -m made_up write=figures.json:1\n$ python -m made_up write=scratch/weights.json:2 say=fine\nfine\n"
    )
    assert json.loads((place / "result.json").read_text())["made_with"] == {"device": "cpu"}
    assert day.status(list(results.values())) == 1


def test_started_again_it_runs_what_is_not_done(there: Path, capsys: pytest.CaptureFixture[str]) -> None:
    count, cure = there / "count", there / "cure"
    table = (part("one", f"note={count}"), part("two", f"needs={cure}"))
    assert run(made_up_day(there, *table))["two"].status == "failed"
    cure.touch()
    assert run(made_up_day(there, *table))["two"].status == "done"
    assert "kept: one\n" in capsys.readouterr().out and count.read_text() == "ran\n"
    run(made_up_day(there, *table), again=True)
    assert count.read_text() == "ran\n" * 2
    assert "kept: one, two\n" in (run(made_up_day(there, *table)), capsys.readouterr().out)[1]


def test_results_of_another_device_or_version_do_not_count(there: Path) -> None:
    count = there / "count"
    table = (part("one", f"note={count}"), part("two", "write=old.json:1"))
    run(made_up_day(there, *table))
    other = made_up_day(there, *table, device="cuda")
    assert other.run(["one"])[0].made_with == {"device": "cuda"} and count.read_text() == "ran\n" * 2
    assert "parts/one/result.json" in packed(there) and "parts/two/old.json" not in packed(there)


def test_parts_kept_from_other_sources_are_not_run_again_and_the_page_names_them(
    there: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = (part("one", "say=1"), part("two", f"needs={there / 'cure'}"), part("three", "exit=77"))
    now = {"version": "1.0", "sources": "aaa"}
    monkeypatch.setattr(day, "project", lambda: now)
    first = run(made_up_day(there, *table))
    assert first["one"].made_by == first["two"].made_by == {"version": "1.0", "sources": "aaa"}
    assert "Made by version 1.0, sources aaa.\n\n|" in (there / "day" / "page.md").read_text()
    (there / "cure").touch()
    now = {"version": "1.0", "sources": "bbb"}
    second = run(made_up_day(there, *table))
    assert [second[name].made_by["sources"] for name in second] == ["aaa", "bbb", "bbb"]
    said = (there / "day" / "page.md").read_text()
    assert "Made by version 1.0, sources bbb.\n**Kept from version 1.0, sources aaa**: one.\n" in said


def test_the_hash_of_the_sources_changes_with_a_name_and_with_a_byte(tmp_path: Path) -> None:
    file = tmp_path / "sim" / "core" / "a.py"
    file.parent.mkdir(parents=True)
    (tmp_path / "traces").mkdir()
    seen = []
    for text in ("x = 1\n", "x = 2\n"):
        file.write_text(text)
        seen.append(project(tmp_path))
    (tmp_path / "notes.py").touch()  # none of what parts run
    (tmp_path / "traces" / "sample.csv").touch()
    assert project(tmp_path) == seen[1]
    file.rename(file.with_name("b.py"))
    seen.append(project(tmp_path))
    assert len({found["sources"] for found in seen}) == 3 and all(len(found["sources"]) == 12 for found in seen)
    assert project() == project() and project()["version"] == seen[0]["version"]


def test_what_is_made_for_this_machine_is_made_again_only_for_a_part_that_needs_it(there: Path) -> None:
    count, cure = there / "count", there / "cure"
    cache = part("cache", f"note={count}", early=True, fresh=True)
    table = (cache, part("early", f"needs={there / 'never'}", early=True), part("late", f"needs={cure}"))
    run(made_up_day(there, *table))
    run(made_up_day(there, *table))
    assert count.read_text() == "ran\n" * 2
    cure.touch()
    run(made_up_day(there, *table))
    run(made_up_day(there, *table))  # the early part alone
    assert count.read_text() == "ran\n" * 3


def test_a_box_ends_and_with_it_everything_that_was_started(there: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(day, "LEAST_S", 0.0)
    pid = there / "pid"
    stuck = part("stuck", f"child={pid} write=half.json:1 say=last sleep=3600", "write=never.json:1", box_s=2)
    results = run(made_up_day(there, stuck, part("next", "say=here")))
    found = results["stuck"]
    assert (found.status, found.why, found.commands[0]["exit"], len(found.commands)) == ("timed out", "last", None, 1)
    eventually(lambda: gone(int(pid.read_text())))
    assert results["next"].status == "done" and "parts/stuck/half.json" in packed(there)


def test_what_a_command_leaves_running_ends_with_it(there: Path) -> None:
    pid = there / "pid"
    assert run(made_up_day(there, part("one", f"child={pid}")))["one"].status == "done"
    eventually(lambda: gone(int(pid.read_text())))


def test_a_part_that_no_time_is_left_for_is_skipped_and_what_is_known_of_it_stays(there: Path) -> None:
    table = (part("one", "say=1"), part("two", "say=2"))
    made_up_day(there, *table).run(["one"])
    cut = there / "day" / "work" / "two" / "half.json"  # of a day that was killed
    cut.parent.mkdir(parents=True)
    cut.touch()
    results = run(made_up_day(there, *table, seconds=5), again=True)
    assert [results[name].status for name in ("one", "two")] == ["done", "skipped"]
    assert [path.name for path in (there / "day" / "parts" / "two").iterdir()] == ["result.json"]
    assert results["two"].why == "5 s left" and day.status(list(results.values())) == 3


def test_a_part_gets_at_most_what_is_left_and_commands_a_deadline_before_it(there: Path) -> None:
    found = made_up_day(there, part("one", "say={seconds} {memory}", box_s=100), seconds=60)
    result = run(found)["one"]
    assert 50 < result.box_s <= 60
    told = int((there / "day" / "parts" / "one" / "one.log").read_text().splitlines()[1])
    assert told == round(result.box_s - day.MARGIN_S)  # the box has begun a few ms before


def test_the_background_runs_beside_early_parts_and_is_waited_for(there: Path) -> None:
    flag = there / "flag"
    beside = part("beside", f"write={there}/begun:1 sleep=1 write={flag}:1", early=True, beside=True)
    early = part("early", f"needs={there / 'day' / 'work' / 'beside'}", early=True)
    assert {r.status for r in run(made_up_day(there, beside, early, part("late", f"needs={flag}"))).values()} == {
        "done"
    }


def test_a_part_that_cannot_be_here_says_so(there: Path) -> None:
    results = run(made_up_day(there, part("one", "say=pytest:-not-installed exit=77", "exit=0")))
    assert (results["one"].status, results["one"].why, len(results["one"].commands)) == (
        "skipped", "pytest:-not-installed", 1,
    )  # fmt: skip
    assert day.status(list(results.values())) == 3


@pytest.mark.parametrize(
    ("exits", "written", "status", "verdict", "whole"),
    [
        (0, 0, "done", "within", 0),
        (1, 1, "done", "outside", 1),
        (3, 3, "done", "inconclusive", 3),
        (1, None, "failed", None, 1),  # the device failed before there was a record
        (1, 0, "failed", None, 1),  # it failed after the record had been written
        (2, None, "failed", None, 1),
    ],
)
def test_a_verdict_is_a_result_and_a_crash_is_none(
    there: Path, exits: int, written: int | None, status: str, verdict: str | None, whole: int
) -> None:
    deeds = "" if written is None else f"""'write=v/record.json:{{"exit":{written}}}' """
    table = (part("one", f"{deeds}exit={exits}", record="v/record.json"),)
    found = run(made_up_day(there, *table, device="cuda"))["one"]
    assert (found.status, found.verdict, day.status([found])) == (status, verdict, whole)
    dry = run(made_up_day(there, *table, device="cpu"))["one"]  # no figure of it counts
    assert (dry.status, dry.verdict, day.status([dry])) == (status, verdict, int(status == "failed"))


@pytest.mark.parametrize("record", ["null", "[]", '{"exit":"1"}', "{"])
def test_a_record_without_an_exit_status_is_no_verdict(there: Path, record: str) -> None:
    (there / "record.json").write_text(record)
    table = (part("one", f"copy={there / 'record.json'} exit=1", record="record.json"),)
    found = run(made_up_day(there, *table))["one"]
    assert (found.status, found.verdict) == ("failed", None)


# --- killed and stopped ---

SCRIPT = """
import sys
from pathlib import Path
from tests.test_gpu_day import made_up_day, part
from runtime.gpu.__main__ import run
there = Path(sys.argv[1])
table = (part("one", f"note={there}/one"), part("two", f"child={there}/pid note={there}/two sleep=" + sys.argv[2]),
         part("three", "say=3"))
sys.exit(run(made_up_day(there, *table), ["one", "two", "three"], False))
"""


def started(there: Path, sleep: str) -> "subprocess.Popen[str]":
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    call = [sys.executable, "-c", SCRIPT, str(there), sleep]
    pipe = subprocess.PIPE
    return subprocess.Popen(call, cwd=ROOT, env=environment, stdout=pipe, stderr=pipe, text=True)


def test_killed_in_the_middle_of_a_part_it_does_what_is_missing(there: Path) -> None:
    first = started(there, "3600")
    eventually(lambda: (there / "two").exists())
    orphan = int((there / "pid").read_text())
    first.kill()
    first.communicate()
    assert not gone(orphan) and not (there / "day" / "parts" / "two").exists()
    second = started(there, "0")
    said = second.communicate(timeout=PATIENCE_S)[0]
    assert second.returncode == 0, said
    assert "ended what an earlier run left" in said and gone(orphan) and "kept: one\n" in said
    assert (there / "one").read_text() == "ran\n" and (there / "two").read_text() == "ran\n" * 2
    assert {f"parts/{name}/result.json" for name in ("one", "two", "three")} <= packed(there)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_asked_to_stop_it_ends_what_runs_and_packs_what_is_there(there: Path, how: signal.Signals) -> None:
    process = started(there, "3600")
    eventually(lambda: (there / "two").exists())
    process.send_signal(how)
    said = process.communicate(timeout=PATIENCE_S)[0]
    assert process.returncode == 130, said
    assert gone(int((there / "pid").read_text()))
    results = {
        name: json.loads((there / "day/parts" / name / "result.json").read_text()) for name in ("one", "two", "three")
    }
    assert [results[name]["status"] for name in results] == ["done", "interrupted", "skipped"]
    assert {"page.md", "parts/one/one.log", "parts/two/two.log"} <= packed(there)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk_is_one_line_that_names_the_folder(there: Path) -> None:
    (there / "day").mkdir()
    (there / "day" / day.LOG).symlink_to("/dev/full")
    process = started(there, "0")
    said = process.communicate(timeout=PATIENCE_S)[1]
    why = "No space left on device; make room there and start again: what is kept is not run again"
    assert (process.returncode, said) == (1, f"error: out: {there / 'day'}: {why}\n")


def test_where_the_day_cannot_go_on_the_background_ends(there: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Day, "_ended", full)
    beside = part("beside", "sleep=3600", early=True, beside=True, box_s=15)
    early = part("early", f"needs={there / 'day' / 'work' / 'beside'}", early=True)
    with pytest.raises(OSError, match="No space left"):
        run(made_up_day(there, beside, early))
    result = json.loads((there / "day" / "parts" / "beside" / "result.json").read_text())
    assert result["status"] == "interrupted"  # and not at the end of its box


def test_whoever_looked_on_may_be_gone(there: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def closed(*_: Any, **__: Any) -> None:
        raise BrokenPipeError

    monkeypatch.setattr("builtins.print", closed)
    assert run(made_up_day(there, part("one", "say=1")))["one"].status == "done"
    assert "=== one: done" in (there / "day" / "day.log").read_text()


# --- what is sent back ---


def test_the_archive_holds_figures_alone_and_records_under_plain_names(there: Path) -> None:
    deeds = "write=record.json:1 write=model.safetensors:2 write=trace.npz:3 write=scratch/t.json:4 write=weights.pt:5"
    found = made_up_day(there, part("one", deeds, keeps={"record.json": "plain.json", "not-there.md": "x.md"}))
    run(found)
    inside = {"parts/one/one.log", "parts/one/record.json", "parts/one/result.json"}
    assert packed(there) == inside | {"page.md", "day.log", "plain.json"}
    assert found.pack() == []


def test_the_archive_stays_small_by_leaving_out_the_largest(tmp_path: Path) -> None:
    folder = tmp_path / "parts" / "one"
    folder.mkdir(parents=True)
    for name, size in (("a.json", 100), ("b.gz", 5000), ("c.gz", 900), ("d.log", 50)):
        (folder / name).write_bytes(os.urandom(size))
    assert archive.pack(tmp_path, [folder], {}, 1100) == ["parts/one/b.gz"]  # 50 + 100 + 900 = 1050
    with tarfile.open(tmp_path / archive.NAME) as tar:
        assert tar.getnames() == [f"gpu/parts/one/{name}" for name in ("a.json", "c.gz", "d.log")]


def test_host_memory_is_stated_where_the_system_says_less_than_could_be_touched(tmp_path: Path) -> None:
    place = tmp_path / "parts" / "versions" / "versions.json"
    place.parent.mkdir(parents=True)
    place.write_text('{"touched_bytes": 1000000000000000}')
    assert day.touched(tmp_path) == "1000000GB"
    place.write_text('{"touched_bytes": 1}')
    assert day.touched(tmp_path) is None
    for text in ("{}", "null", "[]", '{"touched_bytes": null}', '{"touched_bytes": Infinity}', "[" * 10**5, "{"):
        place.write_text(text)
        assert day.touched(tmp_path) is None, text


def test_stated_memory_is_passed_on(there: Path) -> None:
    run(made_up_day(there, part("one", "say=1 {memory}"), memory="100GB"))
    assert "made_up say=1 --host-memory 100GB\n" in (there / "day" / "parts" / "one" / "one.log").read_text()


# --- the page ---

MADE_BY = {"version": "1.0", "sources": "aaa"}
ROW = {"regime": "stall", "longest_context": 1300, "gpu_busy_ns": 20.0, "measured_ns": {"experts": 100.0}}
RECORD = {
    "trace": {"model": "mixtral-8x7b", "real": False},
    "arms": [ROW, {**ROW, "gpu_busy_ns": 10.0}, {**ROW, "gpu_busy_ns": 40.0}],
    "kernels": [
        {"tokens": 1, "device_ns": 4100.0, "host_ns": 30000.0, "seen_ns": 58000.0, "ahead": True},
        {"tokens": 256, "device_ns": 900000.0, "host_ns": 30000.0, "seen_ns": 950000.0, "ahead": True},
    ],
    "kind": "link-only",
    "rounds": 5,
    "seconds": 99.7,
    "exit": 3,
    "statements": {
        "median": {"value": 0.0312, "asked": 0.1, "verdict": "within"},
        "regimes": {"value": {"compute": 0, "stall": 3}, "asked": 2, "verdict": "inconclusive"},
    },
}
COPIES = {
    "copies": [
        {"bytes": 2**20, "host_memory": "registered", "h2d_ns": 2**20 / 50, "d2h_ns": 2**20 / 40},
        {"bytes": 4096, "host_memory": "registered", "h2d_ns": 4096.0, "d2h_ns": 4096.0},
    ],
    "kernels_ns_alone": 100.0,
    "kernels_ns_beside_copies": 104.0,
}


def planted(folder: Path, name: str, status: str = "done", **files: Any) -> tuple[Part, dict[str, Any]]:
    """A part with its result and its records, by path with _ for /."""
    for path, content in files.items():
        place = folder / name / path.replace("__", "/").replace("_json", ".json").replace("_toml", ".toml")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(content if isinstance(content, str) else json.dumps(content))
    found = next(p for p in PARTS if p.name == name)
    why = "" if status == "done" else "error: a | b"
    return found, {
        "status": status,
        "seconds": 12.0,
        "verdict": None,
        "why": why,
        "commands": [],
        "made_with": {"device": "cuda"},
        "made_by": MADE_BY,
    }


def test_the_page_says_what_the_records_say(tmp_path: Path) -> None:
    calibrated = '[measured]\nmodel = "m"\nprecision = "bf16"\ntransfer_idle_ns = 320500\ndecide_ns = 41000\n'
    text = page(
        [
            planted(tmp_path, "copies", copies_json=COPIES),
            planted(tmp_path, "calibrate", calibrated_toml=calibrated),
            planted(tmp_path, "mixtral", validation__validation_json=RECORD),
            planted(tmp_path, "second", "failed"),
        ],
        tmp_path,
        MADE_BY,
    )
    assert text.startswith("## What a GPU showed\n")
    assert "| 1.0 MB | 50.0 / 40.0 |" in text and "+4.0% beside copies" in text and "0.0 MB" not in text
    assert "transfer_idle 320.5 us, decide 41.0 us" in text
    assert (
        "3 arms, 5 rounds, 100 s, exit 3; **LINK-ONLY** (0 compute, 0 mixed, 3 stall), contexts of up to 1,300" in text
    )
    assert (
        "| median | 0.0312 | 0.1 | within |" in text and "| regimes | compute 0, stall 3 | 2 | inconclusive |" in text
    )
    assert "| 1 | 4.1 | 30.0 | 58.0: HOST-BOUND |" in text and "| 256 | 900.0 | 30.0 | 950.0 |" in text
    assert "busy 20% of the time (10% .. 40% by arm)" in text
    assert "| second | simulated against measured: many small experts | failed, error: a / b | 12 |" in text


IDLE = {**RECORD, "arms": [{**ROW, "measured_ns": {"experts": 0}}]}


@pytest.mark.parametrize(
    ("record", "why"),
    [
        ({"trace": {}}, "KeyError"),
        ({**RECORD, "statements": []}, "AttributeError"),
        (IDLE, "ZeroDivisionError"),
        (None, "TypeError"),
        ("[" * 10**5, "RecursionError"),
    ],
)
def test_a_record_that_cannot_be_read_does_not_end_the_day(tmp_path: Path, record: Any, why: str) -> None:
    text = page([planted(tmp_path, "mixtral", validation__validation_json=record)], tmp_path, MADE_BY)
    assert f"**mixtral**: its record cannot be read: {why}" in text
    assert "its record cannot be read: FileNotFoundError" in page([planted(tmp_path, "copies")], tmp_path, MADE_BY)


@pytest.mark.parametrize(
    "wrong",
    [
        {"seconds": "x"}, {"seconds": None}, {"box_s": None}, {"made_by": None}, {"made_by": [1]}, {"why": 5},
        {"verdict": 3}, {"verdict": ["within"]}, {"status": "flying"}, {"status": None}, {"commands": None}, {"new": 1},
    ],
)  # fmt: skip
def test_a_result_that_is_none_of_ours_is_run_again(there: Path, wrong: dict[str, Any]) -> None:
    count = there / "count"
    table = (part("one", f"note={count}"),)
    run(made_up_day(there, *table))
    place = there / "day" / "parts" / "one" / "result.json"
    good = json.loads(place.read_text())
    place.write_text(json.dumps({**good, **wrong}))
    assert run(made_up_day(there, *table))["one"].status == "done" and count.read_text() == "ran\n" * 2
    place.write_text("[" * 10**5)
    assert run(made_up_day(there, *table))["one"].status == "done" and count.read_text() == "ran\n" * 3


def test_half_a_character_in_a_record_does_not_end_the_day(there: Path) -> None:
    copies = json.dumps({"copies": [{"bytes": 2**20, "host_memory": "\ud800", "h2d_ns": 1, "d2h_ns": 1}]})
    (there / "copies.json").write_text(copies)
    run(made_up_day(there, part("copies", f"copy={there / 'copies.json'}")))
    assert "GB/s to the device / back | ? |" in (there / "day" / "page.md").read_text(encoding="utf-8")


def test_a_dry_run_is_called_one(tmp_path: Path) -> None:
    found, result = planted(tmp_path, "copies", copies_json=COPIES)
    text = page([(found, {**result, "made_with": {"device": "cpu"}})], tmp_path, MADE_BY)
    assert text.startswith("## A dry run without a GPU: no figure counts\n")


def test_nothing_is_said_of_a_gpu_where_no_kernel_ran_ahead_of_the_host(tmp_path: Path) -> None:
    kernels = [{**kernel, "ahead": False} for kernel in RECORD["kernels"]]
    found = planted(tmp_path, "mixtral", validation__validation_json={**RECORD, "kernels": kernels})
    text = page([found], tmp_path, MADE_BY)
    assert "| 1 | 4.1 | 30.0 | 58.0 |" in text and "the GPU is busy" not in text


# --- what runs inside the parts, on a GPU that is not there ---


def test_every_probe_of_a_gpu_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from runtime.gpu.parts import probe
    from tests.stand_in import StandIn

    monkeypatch.setattr(probe, "EXPERTS", {"small": (64, 32)})
    monkeypatch.setattr(probe, "EXPERT_BYTES", 1 << 22)
    with StandIn(noise=0.0):
        found = probe.found(torch.device("cuda", 0))
    assert {name: result for name, result in found.items() if "failed" in result} == {}
    assert set(found) == {*probe.ANYWHERE, *probe.ON_A_GPU}
    # 4 MiB at 55 GB/s after 8 us are 84 us, and up to 7 us of the host's calls lie between the events
    copied = found["a copy of an expert is asynchronous"]["found"]
    assert 2**22 / 91_000 < copied["gb_per_s"] < 2**22 / 84_000 and copied["returned_us"] < 20


def test_a_probe_that_fails_has_a_name_and_the_others_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from runtime.gpu.parts import probe

    def broken(device: Any) -> None:
        raise RuntimeError("no such\nthing")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(probe, "ANYWHERE", {"broken": broken, "torch accelerator": probe.torch_accelerator})
    assert probe.main("cpu") == 1 and torch
    found = json.loads((tmp_path / "probe.json").read_text())
    assert found["broken"] == {"failed": "RuntimeError: no such thing"} and "found" in found["torch accelerator"]


def test_what_this_machine_is_says_which_project_asked() -> None:
    pytest.importorskip("torch")
    from runtime.gpu.parts import here, versions

    assert versions.facts()["project"] == project() and "project" not in here.here()  # results are kept by what is here


def test_a_profile_takes_host_memory_as_stated() -> None:
    pytest.importorskip("torch")
    from runtime.experts.layout import StoreError
    from runtime.gpu.parts.profiled import profiled

    small = "--trace mixtral.npz --device cpu --precision fp32 --scale 0.0078125 --max-steps 2 --cache 2"
    with pytest.raises(StoreError, match=r"has 0.00 GB"):
        profiled([*small.split(), "--host-memory", "1KB"])


def test_tests_that_are_not_here_are_said_to_be(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    from runtime.gpu.parts import NOT_HERE, marked

    assert {Path(file).name for file in marked.files()} == {"test_accelerator.py", "test_live.py", "test_replay.py"}
    assert marked.lacking() == ""
    monkeypatch.setattr(marked, "ROOT", tmp_path)
    assert (marked.main("cuda"), capsys.readouterr().out) == (NOT_HERE, "tests/: not here\n")
    monkeypatch.setattr(marked, "NEEDED", ("pytest", "nowhere"))
    assert (marked.main("cuda"), capsys.readouterr().out) == (NOT_HERE, "nowhere: not installed\n")


MARK = "pytest.mark" + ".gpu"  # in two, or this file were one with tests of a GPU
ONE_OF_BOTH = f"""
import pytest
@pytest.fixture(params=["stand-in", pytest.param("real", marks={MARK})])
def accelerator(request):
    if request.param == "real":
        pytest.skip("no accelerator")
def test_it(accelerator): pass
"""
PASSES, FAILS = (f"{ONE_OF_BOTH}@{MARK}\ndef test_more(): assert {holds}\n" for holds in (1, 0))


@pytest.mark.parametrize(
    ("text", "device", "status", "last"),
    [
        (ONE_OF_BOTH, "cuda", 77, "no test passed: no accelerator"),
        (ONE_OF_BOTH, "cpu", 0, "1 passed, 1 deselected"),
        (PASSES, "cuda", 0, "1 passed, 1 skipped, 1 deselected"),
        (FAILS, "cuda", 1, "1 failed, 1 skipped, 1 deselected"),
        (f"# {MARK}\n", "cuda", 77, "no test passed: none was found"),
    ],
)
def test_tests_none_of_which_passed_are_no_result(
    text: str,
    device: str,
    status: int,
    last: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    from runtime.gpu.parts import marked

    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_it.py").write_text(text)
    monkeypatch.setattr(marked, "ROOT", tmp_path)
    assert [Path(file).name for file in marked.files()] == ["test_it.py"] and marked.main(device) == status
    assert capfd.readouterr().out.splitlines()[-1].startswith(last)


def test_bare_copies_are_timed_by_the_device() -> None:
    pytest.importorskip("torch")
    from runtime.gpu.parts import copies
    from tests.stand_in import StandIn

    with StandIn(noise=0.0, link_gbps=50.0, copy_ns=8_000) as machine:
        rows = copies.copies("cuda", (4096, 1 << 20))
        beside = copies.beside_a_copy(1 << 12, 1 << 20)
        assert machine.strided == []
    kinds = {(row["bytes"], row["host_memory"]): row for row in rows}
    assert {kind for _, kind in kinds} == {"registered", "pinned", "pageable"}
    for kind in ("registered", "pinned"):  # 8 us + 2^20 bytes / 50 GB/s = 28.97 us, and 2 us between the host's calls
        row = kinds[1 << 20, kind]
        assert 28_971 <= row["h2d_ns"] <= 36_000 and 28_971 <= row["d2h_ns"] <= 36_000
    assert beside["kernels_ns_beside_copies"] == pytest.approx(beside["kernels_ns_alone"], rel=0.1)


# --- the table ---


def test_the_table_fits_a_lent_machine() -> None:
    boxes = {found.name: found.box_s for found in PARTS if not found.beside}
    assert len({found.name for found in PARTS}) == len(PARTS) and sum(boxes.values()) <= 500 < command.BUDGET_S


@pytest.mark.parametrize("name", ["mixtral", "second"])
def test_the_validations_are_predicted_to_end_within_their_boxes(name: str, tmp_path: Path) -> None:
    """From their plans alone, with copies at 55 GB/s and an H200's kernels."""
    from runtime import validate
    from runtime.measuring.cases import synthetic
    from runtime.measuring.validation import Validation
    from traces.format import npz

    found = next(part for part in parts("cuda") if part.name == name)
    npz.write(tmp_path / "second.npz", synthetic(SECOND, 1))
    deadline_s = found.box_s - day.MARGIN_S
    text = day.filled(found.commands[-1], {"seconds": f"{deadline_s:.0f}", "memory": ""})
    args = validate.parser().parse_args(shlex.split(text.replace("scratch", str(tmp_path)))[1:])
    asked = Validation(args, tmp_path)
    cases = asked.cases()
    model = asked.setting(cases[0], hardware="h200").model
    assert model is not None
    assert 5 < asked.expected_s(cases, "h200", 55.0, model.expert_bytes("bf16")) < deadline_s == args.seconds


@pytest.mark.parametrize("device", WORDS)
def test_every_command_of_the_table_is_one_that_its_module_takes(device: str) -> None:
    asked = 0
    for found in parts(device):
        for text in found.commands:
            module, *words = shlex.split(day.filled(text, {"seconds": "20", "memory": "--host-memory 100GB"}))
            room = importlib.import_module(module)
            assert "{" not in text.replace("{seconds}", "").replace("{memory}", ""), text
            flags = getattr(room, "arguments", None) or getattr(room, "parser", None)
            if flags is not None:
                flags().parse_args(words)
                asked += 1
    assert asked >= 10


def test_the_rooms_of_the_driver_need_the_standard_library_alone() -> None:
    known = {*sys.stdlib_module_names, "runtime", "sim", "traces"}
    device = ("runtime/device/__init__.py", "runtime/device/host_memory.py")
    others = [
        ROOT / name
        for name in (
            "runtime/__init__.py",
            *device,
            "sim/__init__.py",
            "traces/command.py",
            "traces/progress.py",
            "traces/extras.py",
            "traces/slips.py",
        )
    ]
    for path in [*(ROOT / "runtime" / "gpu").glob("*.py"), *others]:
        for node in ast.parse(path.read_text()).body:  # late imports come after what is missing has been said
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            assert {name.split(".")[0] for name in names} <= known, path
            ours = [name for name in names if name.split(".")[0] in ("runtime", "sim", "traces")]
            may = (
                "sim",
                "traces.command",
                "traces.errors",
                "traces.progress",
                "traces.extras",
                "traces.slips",
                "traces",
                "runtime.device.host_memory",
            )
            assert all(name.startswith("runtime.gpu") or name in may for name in ours)


# --- bad input, and what the machine lacks ---


@pytest.mark.parametrize(
    ("flags", "why"),
    [
        ("--parts probe,copis", "error: parts: part 'copis' is unknown; did you mean copies?"),
        ("--seconds 0", "error: seconds: 0: must be above 0"),
        ("--seconds nan", "error: seconds: nan: must be above 0"),
        ("--out {file}", "error: out: {file}: is a file; must be a folder"),
        ("--device gpu", "error: --device: 'gpu' is unknown"),
        ("--host-memory 100", "error: host-memory: 100: must be bytes with a unit, such as 24GB"),
        ("--host-memory 0GB", "error: host-memory: 0GB: must be above 0"),
        ("--host-memory 0.1B", "error: host-memory: 0.1B: must be above 0"),
        ("--part probe", "error: --part: unknown argument; did you mean --parts?"),
    ],
)
def test_bad_input_is_one_line(flags: str, why: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "file"
    file.touch()
    words = [word.format(file=file) for word in flags.split()]
    assert command.main(["--device", "cpu", "--out", str(tmp_path / "out"), *words]) == 2
    said = capsys.readouterr().err
    assert said.startswith(why.format(file=file)) and said.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_gpu_that_is_not_here_is_one_line() -> None:
    with pytest.raises(command.UserError, match=r"device: cuda: torch finds no GPU here; --device cpu is the dry run"):
        command.choose("cuda", {"gpu": ""})
    assert (command.choose("auto", {"gpu": ""}), command.choose("auto", {"gpu": "H200"})) == ("cpu", "cuda")


def test_a_day_that_is_at_work_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import fcntl

    with (tmp_path / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert command.main(["--device", "cpu", "--out", str(tmp_path)]) == 2
    assert "another run is at work there" in capsys.readouterr().err


def test_it_starts_without_any_package_and_says_which_are_missing() -> None:
    script = "import sys; from runtime.gpu.__main__ import main; sys.exit(main(['--device', 'cpu']))"
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "WHEELS")}
    call = [sys.executable, "-S", "-c", script]
    done = subprocess.run(call, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"error: packages: {', '.join(command.NEEDED)}: not installed; pip install")


def test_wheels_bring_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    with zipfile.ZipFile(wheels / "brought-1.0-py3-none-any.whl", "w") as wheel:
        about = "brought-1.0.dist-info"
        wheel.writestr("brought.py", "HERE = 1\n")
        wheel.writestr(f"{about}/METADATA", "Metadata-Version: 2.1\nName: brought\nVersion: 1.0\n")
        wheel.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{about}/RECORD", "")
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(command, "missing", lambda: ["brought"])
    site = command.bring(str(wheels), tmp_path / "day")
    assert site is not None and (site / "brought.py").is_file() and sys.path[0] == str(site)
    assert str(site) in command.environment_of(site)["PYTHONPATH"].split(os.pathsep)
    monkeypatch.setattr(command, "missing", lambda: ["nowhere"])
    with pytest.raises(command.UserError, match=r"wheels: .*: nowhere not installed from there"):
        command.bring(str(wheels), tmp_path / "day")
    with pytest.raises(command.UserError, match=r"wheels: /nowhere: no such folder"):
        command.bring("/nowhere", tmp_path / "day")


# --- the real one ---


@pytest.mark.slow
def test_the_dry_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every part, on the CPU; of the tests marked gpu those of one file, for this suite runs all of them itself."""
    out = tmp_path / "day"
    call = [sys.executable, "-m", "tests.forked_day", "--device", "cpu", "--out", str(out)]
    monkeypatch.setenv("PYTEST_ADDOPTS", "--deselect tests/test_replay.py")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # as the day sets it for its parts, which here come too late
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    done = subprocess.run(call, cwd=ROOT, capture_output=True, text=True, timeout=600)
    results = {name: json.loads((out / "parts" / name / "result.json").read_text()) for name in command.NAMES}
    absent = {name for name, result in results.items() if result["status"] == "skipped"}
    assert all(result["status"] in ("done", "skipped") for result in results.values()), done.stdout
    assert absent <= {"live"}  # without transformers
    assert done.returncode == (3 if absent else 0), done.stderr
    assert results["mixtral"]["verdict"] and results["second"]["verdict"]
    with tarfile.open(out / archive.NAME) as tar:
        names = {name.removeprefix("gpu/") for name in tar.getnames()}
    plain = {to for found in PARTS for to in found.keeps.values()}
    assert plain | {"page.md", "parts/timeline/step.json.gz", "parts/profile/profile.json.gz"} <= names
    assert (out / archive.NAME).stat().st_size < 10e6
    assert "cannot be read" not in (said := (out / "page.md").read_text()) and "the GPU is busy" not in said
    assert " passed" in (out / "parts" / "tests" / "tests.log").read_text().splitlines()[-1]
