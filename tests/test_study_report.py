"""The study's files: what its page says follows from the rows, whatever they are; what is bad is refused in a line."""

import csv
import json
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("scipy", reason="scipy is not installed (extra: runtime)")

from runtime.closed_loop import study_report, study_result
from runtime.closed_loop.study_answers import answers
from runtime.closed_loop.study_statistics import Study, at_equal_bytes, controls, decisions
from sim.search.measured_quality import measured
from sim.spec import RunSpec
from tests.study_by_hand import FILES, fetch, result, row
from traces.errors import UserError

NOISE = np.array([1.0, -1, 1, -1, 1, -1])
RESULTS = Path(__file__).parent.parent / "analysis" / "results"


def rows(buddy: float = 5.0, cache: float = 0.5) -> list[dict[str, Any]]:
    """fetch, a buddy, its random control of two seeds that costs a point more, a re-ranker that loses next to nothing,
    one that costs more than it may."""
    return [
        fetch(cache=cache),
        row("buddy, reading A", "buddy", buddy + 0.01 * NOISE, mb=10, ms=3, miss="buddy", cache=cache),
        *(row("matched", "matched", buddy + 1 + 0.01 * NOISE + 0.1 * i, mb=10, ms=3, miss="matched-random", seed=i,
              of="buddy, reading A", cache=cache) for i in range(2)),
        row("prior", "re-ranking", 0.05 + 0.01 * NOISE, mb=5, ms=2, rerank="prior", cache=cache),
        row("drop", "ungated", 40.0, mb=0, ms=1, miss="drop", cache=cache),
    ]  # fmt: skip


def said(*studies: Study) -> list[str]:
    return answers(studies, decisions(studies), controls(studies), at_equal_bytes(studies))


def kept(folder: Path, *results: dict[str, Any]) -> list[str]:
    """The lines of the page."""
    for each in results:
        study_result.keep(folder, each)
    return study_report.write(folder).splitlines()


# --- answers


def test_the_first_ten_lines_answer(tmp_path: Path) -> None:
    lines = kept(tmp_path, result(rows(), "small"), result(rows(0.1), "large"))
    assert lines == (tmp_path / "closed_loop.md").read_text().splitlines()
    first = lines[:10]
    assert first[2:4] == [f"    python -m runtime.study --model {name}" for name in ("large", "small")]
    for start in ("- **Does the paper's claim hold", "- where (0.3 %", "- **what to use: prior.**", "- is it the list?",
                  "- at equal bytes: buddy"):  # fmt: skip
        assert sum(line.startswith(start) for line in first) == 1
    assert "It is shown in 1 of 2 settings, refuted in 1, on large and small" in first[5]
    assert "below, from the gentlest on: large, buddy, reading A, c = 0.5: +0.10 %" in first[6]
    assert "above, from the gentlest on: small, buddy, reading A, c = 0.5: +5.00 %" in first[6]


@pytest.mark.parametrize(
    ("loss", "share", "verdict"),
    [
        (5.0, 0.1, "No, in no setting, on small"),
        (0.1, 0.1, "Yes, in every setting, on small"),
        (0.3, 0.1, "Not decided in any setting, on small"),
        (0.0, 0.0, "Nothing can be said: no buddy stood in for anything on small"),
    ],
)
def test_the_verdict_follows_from_the_intervals(loss: float, share: float, verdict: str) -> None:
    made = Study(result([fetch(), row("b", "buddy", loss, share=share)]))
    assert f"? {verdict}" in said(made)[0]


def test_what_to_use_is_counted_by_who_is_fastest() -> None:
    # at .1, .3, 1 and 3 % the re-ranker is fastest, 4 ms to 2 ms; the buddy loses 5 %
    line = said(Study(result(rows())))[2]
    assert "of 4 cells" in line and "prior in 4, a buddy in 0" in line
    assert "small, c = 0.5: prior (+100.0 % tokens/s; no buddy)" in line
    alone = said(Study(result([fetch(), row("b", "buddy", 0.2, ms=3.0)])))[2]
    assert alone.startswith("**what to use: a buddy.**") and "a buddy in 3, fetching what is missing in 1" in alone
    assert "b (+33.3 % tokens/s; best buddy +33.3 %)" in alone
    none = said(Study(result([fetch(), row("b", "buddy", 50.0)])))[2]
    assert none.startswith("**what to use: fetching what is missing.**")


def test_controls_and_equal_bytes_are_counted() -> None:
    lines = said(Study(result(rows())))
    assert "a buddy beside its controls, 1 comparisons: it loses less in 1, more in 0, and 0 are open" in lines[3]
    assert "matched-random 1, 0, 0" in lines[3]
    # matched-random costs a point more, the re-ranker less (at 10 MB: .03 % to 5 %), dropping half of the text 20 %
    assert "buddy, 3 comparisons with other policies: it loses less in 2, more in 1, and 0 are open" in lines[4]
    assert "lose most often prior (1 of 1)" in lines[4]
    assert len(said(Study(result([fetch(), row("b", "buddy", 1.0)])))) == 3  # nobody to be compared with


def test_a_replay_that_is_off_with_fetch_is_told() -> None:
    wrong = fetch(open_loop={"time_ns_per_token": 4.1e6, "h2d_bytes_per_token": 20e6})
    facts = [study_report.facts(Study(result([first, *rows()[1:]]))) for first in (fetch(), wrong)]
    assert "is exact with fetch; over the lossy arms its time per token is off by 2.0 % (median)" in facts[0][1]
    assert "something is wrong" in facts[1][1]
    # (14,000 tokens)^2 / (16 + 9 + 6.25 + 4 + 2.25 + 1) million = 5.1 files
    assert f"{FILES} files, which weigh as many as 5.1 of equal size" in facts[0][0]


# --- files


def test_the_files_of_two_models(tmp_path: Path) -> None:
    lines = kept(tmp_path, result([*rows(), *rows(cache=0.75)], "small"), result(rows(), "a/folder/large"))
    assert {path.name for path in tmp_path.iterdir()} == {"closed_loop.md"} | {
        f"closed_loop_{model}.{end}" for model in ("small", "large") for end in ("json", "csv", "svg")
    }
    table = list(csv.DictReader((tmp_path / "closed_loop_small.csv").read_text().splitlines()[1:]))
    assert len(table) == 10 and table[2]["between_seeds"] == "+6.00 .. +6.10 (0.07, 2)"
    assert float(table[2]["delta_percent"]) == pytest.approx(6.05, abs=0.01) and table[2]["seeds"] == "2"
    assert table[1]["copying, points"] == "-2" and table[1]["accuracy_delta"] == "-1"
    assert float(table[4]["low"]) == 40 == float(table[4]["high"])
    picture = ET.parse(tmp_path / "closed_loop_small.svg").getroot()
    titles = [title.text or "" for title in picture.iter("{http://www.w3.org/2000/svg}title")]
    assert len(titles) == 10 and titles[0].startswith("fetch: +0.00 %")
    headings = [line.split(":")[0] for line in lines if line.startswith("## ")]
    assert headings == ["## What the choice of the stand-in is worth", "## At equal bytes", "## Speed at a loss",
                        "## Open loop", "## Tasks", "## a/folder/large, every arm", "## small, every arm"]  # fmt: skip
    assert "| small | 0.750 | unmodified | 80.0 % of 600 |" in lines
    assert "| small | 0.750 | buddy, reading A | -2.00 (-2.00 .. -2.00) |" in lines


def test_models_stand_in_the_order_of_their_names(tmp_path: Path) -> None:
    lines = kept(tmp_path, result(rows(), "tiny-moe-8"), result(rows(), "tiny-moe"))
    assert [line.split()[-1] for line in lines[2:4]] == ["tiny-moe", "tiny-moe-8"]


def test_made_again_the_files_are_the_same(tmp_path: Path) -> None:
    kept(tmp_path, result(rows()))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    study_report.write(tmp_path)
    assert before == {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    made = study_report.made(study_result.read(tmp_path))
    assert {name: text.encode() for name, text in made.items()}.items() <= before.items()


def test_how_many_windows_would_decide_is_told_beside_what_there_is(tmp_path: Path) -> None:
    lines = kept(tmp_path, result([fetch(), row("b", "buddy", 0.35 + 0.2 * NOISE)]))
    (open_,) = [line for line in lines if "| open |" in line]
    need = int(open_.split("|")[-2].split("(")[0].replace(",", ""))
    assert need > 60 and "(the held-out text has 60)" in open_
    text = result([])["text"] | {"available": 10**9}
    more = study_report.made([Study(result([fetch(), row("b", "buddy", 0.35 + 0.2 * NOISE)], text=text))])
    assert f"| open | {need:,} |" in more["closed_loop.md"]


def test_each_row_has_what_a_recommendation_reads(tmp_path: Path) -> None:
    study_result.keep(tmp_path, result(rows()))
    kept_rows = json.loads((tmp_path / "closed_loop_small.json").read_text())["rows"]
    values = [each["quality"]["bits_per_byte_percent"] for each in kept_rows]
    assert values[2] == values[3] and values[2][0] == pytest.approx(6.05, abs=0.01)  # of both seeds together
    assert all(low <= value <= high for value, low, high in values)
    found = measured("small", RunSpec.of({"trace": "t.npz", "miss": "buddy"}), 0.6, tmp_path)
    assert found is not None and found["bits_per_byte_percent"] == values[1]


def test_a_single_file_decides_nothing_but_is_drawn() -> None:
    one = result([fetch(), row("b", "buddy", 5.0)])
    for each in one["rows"]:
        for part in (each["sums"], each["tasks"]["copying"]):
            part |= {name: [sum(found)] for name, found in part.items()}
    one["text"]["files"] = ["a.py"]
    made = study_report.made([Study(one)])
    assert "Not decided in any setting" in made["closed_loop.md"] and "none would" in made["closed_loop.md"]
    assert "inf" not in made["closed_loop_small.svg"].replace("-inf .. +inf", "")  # but in words


# --- what is refused


def sums(r: Any) -> Any:
    return r["rows"][1]["sums"]


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda r: r.pop("text"), "text: is not there"),
        (lambda r: r["text"].pop("files"), "text.files: is not there"),
        (lambda r: r["rows"][1].pop("of"), "rows[1].of: is not there"),
        (lambda r: r["rows"][2]["speed"].clear(), "rows[2].speed.time_ns_per_token: is not there"),
        (lambda r: sums(r)["nats"].pop(), "rows[1].sums.nats: 6 numbers are required"),
        (lambda r: sums(r).update(kl=["x"] * 6), "rows[1].sums.kl: 6 numbers are required"),
        (lambda r: r["rows"][1]["tasks"]["copying"].pop("right"), "tasks.copying.right: 6 numbers are required"),
        (lambda r: r["rows"][3].update(seed=0), "'matched' at 0.5 with seed 0 is there 2 times"),
        (lambda r: r["rows"].pop(0), "no arm 'fetch' at 0.5"),
        (lambda r: r["rows"].clear(), "no arm 'fetch' at any capacity"),
        (lambda r: r["rows"][2].update(of="nobody"), "rows[2].of: no arm 'nobody' at 0.5"),
    ],
)
def test_a_bad_result_is_told_with_its_file_and_field(spoil: Callable[[Any], Any], said: str, tmp_path: Path) -> None:
    path, bad = tmp_path / "closed_loop_small.json", result(rows())
    spoil(bad)
    path.write_text(json.dumps(bad))
    with pytest.raises(UserError) as error:
        study_report.write(tmp_path)
    assert str(error.value).startswith(f"{path}: ") and said in str(error.value)
    assert [*tmp_path.iterdir()] == [path]  # nothing half written
    with pytest.raises(UserError):
        study_result.keep(tmp_path, bad)


def test_no_result_and_no_json(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no closed_loop_\*\.json"):
        study_report.write(tmp_path)
    (tmp_path / "closed_loop_x.json").write_text("{")
    with pytest.raises(UserError, match=r"closed_loop_x\.json: is no JSON"):
        study_report.write(tmp_path)


# --- the kept study


def test_the_kept_study_is_the_programs_own() -> None:
    """Page, tables and figures in the repository are what its JSON files give."""
    for name, text in study_report.made(study_result.read(RESULTS)).items():
        assert (RESULTS / name).read_text() == text
