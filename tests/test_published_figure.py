"""Predicted against published speeds as a figure: what is read, where it lies, what is said of it, what is refused."""

import math
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.comparing.published_svg import GAP, HEAD, LEFT, NAMED, SIDE, published_svg
from analysis.published import main
from analysis.reading.published import COLUMNS, Speed, published
from analysis.showing.drawing import mark
from analysis.showing.palette import SYMBOLS
from sim.experiments.published import COLUMNS as WRITTEN
from sim.experiments.tables import Report
from tests.digests import FILES

ROW: dict[str, Any] = {
    "engine": "llama.cpp", "machine": "m", "model": "mixtral-8x7b", "phase": "decode", "settings": "precision q4",
    "published": 10.0, "unit": "decode tok/s", "predicted": 12.0, "low": 8.0, "high": 16.0, "judged": "yes",
}  # fmt: skip
PREFILL = {"phase": "prefill", "unit": "prefill tok/s"}


def kept(folder: Path, *rows: dict[str, Any]) -> str:
    """A published.csv as the experiment writes it; rows: what differs from ROW."""
    report = Report("a title", [], WRITTEN, [ROW | row for row in rows])
    report.write(folder, "published", "python -m sim.experiments published")
    return str(folder / "published.csv")


def speed(**more: Any) -> Speed:
    return Speed(**{name: value for name, value in (ROW | more).items() if name != "unit"})


def said(node: ElementTree.Element) -> str:
    return "".join(node.itertext())


def nodes(drawn: str, kind: str) -> list[ElementTree.Element]:
    return list(ElementTree.fromstring(drawn).iter(f"{{http://www.w3.org/2000/svg}}{kind}"))


def marks(drawn: str) -> list[tuple[str, str, float, float]]:
    """(class of its group, own class, x, y) of each mark: the middle of a circle, else of its box."""
    return [
        (group.attrib["class"], each.attrib["class"], *middle(each.attrib["d"]))
        for group in nodes(drawn, "g")
        for each in group
        if each.attrib["class"] != "whiskers"
    ]


def middle(path: str) -> tuple[float, float]:
    numbers = [float(number) for number in re.findall(r"-?[\d.]+", path)]
    if "a" in path:  # begins at its left end, 4.5 from the middle
        return numbers[0] + 4.5, numbers[1]
    across, up = numbers[::2], numbers[1::2]
    return (min(across) + max(across)) / 2, (min(up) + max(up)) / 2


def legend(drawn: str) -> list[str]:
    """The lines of all legends: `name rows median`."""
    return [" ".join(map(said, row)) for row in legend_rows(drawn)]


def legend_rows(drawn: str) -> list[list[ElementTree.Element]]:
    texts = [each for each in nodes(drawn, "text") if each.get("class") is None]
    return [texts[i : i + 3] for i in range(0, len(texts), 3)]


# --- reading ---


def test_the_experiment_writes_what_is_read() -> None:
    assert set(COLUMNS) <= {column.key for column in WRITTEN}


def test_a_time_is_a_speed_and_its_interval_turns_round(tmp_path: Path) -> None:
    # 500 ms a token are 2 tokens/s; predicted 400 ms are 2.5, 25 % more; 250 to 1000 ms are 1 to 4 tokens/s
    row = {"unit": "ms/token", "published": 500.0, "predicted": 400.0, "low": 250.0, "high": 1000.0}
    (found,) = published(kept(tmp_path, row))
    assert (found.published, found.predicted, found.low, found.high) == (2, 2.5, 1, 4)
    assert found.error == 0.25 and found.is_judged


def test_a_comment_above_the_names_may_be_missing(tmp_path: Path) -> None:
    path = Path(kept(tmp_path, {}, PREFILL))
    found = published(str(path))
    comment, names, *rows = path.read_text().splitlines()
    path.write_text("\n".join([names, *rows]))
    assert comment.startswith("# python") and published(str(path)) == found and len(found) == 2


# --- where marks lie ---


def test_places_by_hand() -> None:
    # from 1 to 100, so ln runs from -0.25 to 4.605 + 0.25, 5.105 in all, over 400 px from 52 on. Published at 100:
    # 52 + 400 x 4.855 / 5.105 = 432.4; predicted at 10: 2.303 from 4.855 down are 148 + 400 x 2.553 / 5.105 = 348.0
    one = speed(published=1.0, predicted=1.0, low=1.0, high=1.0)
    other = speed(published=100.0, predicted=10.0, low=1.0, high=100.0, judged="no: grade C")
    drawn = published_svg([one, other], phases=["decode"])
    (_, first, x, y), (_, second, right, down) = marks(drawn)
    assert (first, second) == ("solid", "hollow")
    assert (right, down) == pytest.approx((432.4, 348.0), abs=0.1)
    assert x - LEFT == pytest.approx(HEAD + SIDE - y, abs=0.1)  # as predicted: on the diagonal
    (whiskers,) = [each.attrib["d"] for each in nodes(drawn, "path") if each.get("class") == "whiskers"]
    assert whiskers.split("M")[2] == f"432.4 {y:.1f}V{HEAD + SIDE - 432.4 + LEFT:.1f}"  # from 1 to 100
    (diagonal,) = [each.attrib["d"] for each in nodes(drawn, "path") if each.get("class") == "line"]
    assert diagonal == f"M{LEFT}.0 {HEAD + SIDE}.0L{LEFT + SIDE}.0 {HEAD}.0"
    near = [each.attrib["d"] for each in nodes(drawn, "path") if each.get("class") == "near"]
    # of an axis of ln 5.105, 0.75 is 400 x 0.288 / 5.105 = 22.5 px and 1.25 is 17.5 px from the diagonal
    assert near == ["M74.5 548.0L452.0 170.5", "M52.0 530.5L434.5 148.0"]


SPEEDS = st.floats(1e-9, 1e12)


@given(st.lists(st.tuples(st.sampled_from(["decode", "prefill"]), SPEEDS, SPEEDS, SPEEDS, SPEEDS), min_size=1))
def test_every_mark_lies_in_its_panel_and_every_axis_has_a_tick(
    rows: list[tuple[str, float, float, float, float]],
) -> None:
    speeds = [
        speed(phase=phase, published=one, predicted=two, low=min(ends), high=max(ends))
        for phase, one, two, *ends in rows
    ]
    drawn = published_svg(speeds)
    assert drawn == published_svg(speeds) and len(marks(drawn)) == len(rows)
    begin = {"decode": LEFT, "prefill": 2 * LEFT + SIDE + GAP}
    for _, _, x, y in marks(drawn):
        assert any(at <= x <= at + SIDE for at in begin.values()) and HEAD <= y <= HEAD + SIDE
    ticks = [middle(each.attrib["d"].split("v")[0])[0] for each in nodes(drawn, "path") if each.get("class") == "tick"]
    for phase in {each.phase for each in speeds}:
        assert any(begin[phase] <= x <= begin[phase] + SIDE for x in ticks)


def test_a_lone_speed_has_a_tick() -> None:
    # none of 1, 2, 5 lies within a factor of 1.28 of 3.2; within 1.65, half of 2.72 in logarithms, 2 and 5 do
    lone = speed(published=3.2, predicted=3.2, low=3.2, high=3.2)
    drawn = published_svg([lone], phases=["decode"])
    assert [said(each) for each in nodes(drawn, "text") if said(each) in ("2", "5")] == ["2", "2", "5", "5"]


def test_marks_differ_and_keep_to_their_places() -> None:
    drawn = {symbol: mark(symbol, 100, 50) for symbol in SYMBOLS}
    assert len(set(drawn.values())) == len(SYMBOLS)
    for symbol, path in drawn.items():
        assert middle(path) == pytest.approx((100, 50), abs=1.6), symbol
    assert drawn["square"] == "M104.0 46.0L104.0 54.0L96.0 54.0L96.0 46.0z"  # 5.6 / sqrt 2 = 4.0


# --- what is said ---


def test_the_legend_counts_and_its_medians_by_hand() -> None:
    # +10, -20 and +30 %: median size 20; judged are the first two: (10 + 20) / 2 = 15, both within 25 %, and one
    # interval of the two holds 10
    speeds = [
        speed(predicted=11.0),
        speed(predicted=8.0, low=7.0, high=9.0),
        speed(predicted=13.0, judged="few"),
        speed(engine="vllm", predicted=5.0, **{"phase": "prefill"}),
    ]
    drawn = published_svg(speeds)
    assert legend(drawn) == ["llama.cpp 3 20.0 %", "vllm 1 50.0 %"]
    texts = [said(each) for each in nodes(drawn, "text")]
    assert "2 judged: median error 15.0 %" in texts and "1 judged: median error 50.0 %" in texts
    assert "100 % are within 25 %, 50 % in their 80 % interval" in texts
    spoken = said(nodes(drawn, "desc")[0])
    assert "llama.cpp 3 with median error 20.0 %" in spoken and "SYNTHETIC" in "".join(texts)


def test_who_has_most_has_a_colour_and_the_others_are_grey() -> None:
    # e0 has one speed, e1 two and so on; e0 and e1 are the others
    speeds = [speed(engine=f"e{n}") for n in range(NAMED + 2) for _ in range(n + 1)]
    drawn = published_svg(speeds, phases=["decode"])
    ranked = [f"e{n} {n + 1} 20.0 %" for n in range(NAMED + 1, 1, -1)]
    assert legend(drawn) == [*ranked, "2 others 3 20.0 %"]
    groups = [each.attrib["class"] for each in nodes(drawn, "g")]
    assert groups == ["others", *(f"k{i}" for i in range(NAMED))]  # who has few is drawn over who has many
    _, light, _ = said(nodes(drawn, "style")[0]).split("@media")
    colours = dict(re.findall(r"\.(k\d|others) { fill: (#\w+)", light))
    assert set(colours) == set(groups) and len(set(colours.values())) == NAMED + 1
    alone = published_svg([each for each in speeds if each.engine != "e0"], phases=["decode"])
    assert legend(alone)[-1] == "e1 2 20.0 %"


def test_a_mark_says_what_it_is() -> None:
    odd = speed(engine='<b> & "x"', predicted=12.5, judged="no: grade C")
    drawn = published_svg([odd, speed(settings="")])
    titles = [said(each) for each in nodes(drawn, "title")][1:]
    assert titles == [
        '<b> & "x", m, mixtral-8x7b, precision q4; decode tokens/s published 10, predicted 12.5 (8 to 16), +25.0%; '
        "not judged: grade C",
        "llama.cpp, m, mixtral-8x7b; decode tokens/s published 10, predicted 12 (8 to 16), +20.0%; judged",
    ]


@pytest.mark.parametrize("phases", [["decode", "prefill"], ["prefill"]])
def test_nothing_is_clipped_and_both_themes_have_their_colours(phases: list[str]) -> None:
    speeds = [speed(engine=f"an engine of a name that is far too long {n}", phase=p) for n in range(9) for p in phases]
    drawn = published_svg(speeds, phases=phases)
    left, top, wide, high = map(float, nodes(drawn, "svg")[0].attrib["viewBox"].split())
    for each in nodes(drawn, "text"):  # 6.5 px a letter
        x, length = float(each.attrib["x"]), 6.5 * len(said(each))
        begin = x - length * {"end": 1, "middle": 0.5}.get(each.get("text-anchor", ""), 0)
        assert left <= begin and begin + length <= left + wide, said(each)
        assert top < float(each.attrib["y"]) < top + high
    for name, count, _ in legend_rows(drawn):
        assert float(name.attrib["x"]) + 6.5 * len(said(name)) < float(count.attrib["x"]) - 6.5 * len(said(count))
    light, dark = (said(nodes(drawn, "style")[0]).split("@media")[i] for i in (1, 2))
    assert ".hollow { fill: #ffffff" in light and ".hollow { fill: #161e27" in dark


# --- the command ---


def test_a_file_and_what_is_printed_are_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = kept(tmp_path, {}, {"engine": "vllm"} | PREFILL, {"machine": "n"})
    assert main([path]) == 0
    drawn = capsys.readouterr().out
    assert main([path, "--out", str(tmp_path / "f.svg")]) == 0
    assert (tmp_path / "f.svg").read_text() == drawn and capsys.readouterr().out == ""
    assert main([path, "--by", "machine", "--phase", "decode"]) == 0
    drawn = capsys.readouterr().out
    assert legend(drawn) == ["m 1 20.0 %", "n 1 20.0 %"] and "prefill" not in drawn
    assert "by machine" in said(nodes(drawn, "title")[0])


BAD = {
    "phase": ({"phase": "decoding"}, "line 3: phase 'decoding' is unknown; did you mean decode?"),
    "unit": ({"unit": "tokens/s"}, "line 3: unit of decode 'tokens/s' is unknown"),
    "unit of another phase": ({"unit": "prefill tok/s"}, "one of decode tok/s, ms/token is required"),
    "speed of 0": ({"published": 0.0}, "line 3: published = '0': must be a number in [1e-09, 1e+12]"),
    "no number": ({"predicted": "fast"}, "line 3: predicted = 'fast': must be a number"),
    "nan": ({"low": "nan"}, "low = 'nan'"),
    "infinite": ({"high": "inf"}, "high = 'inf'"),
    "nothing": ({"high": None}, "high = ''"),
    "an interval turned round": ({"low": 17.0}, "line 3: low = 17: must not exceed high, which is 16"),
    "nobody": ({"engine": " "}, "line 3: engine = ' ': must not be empty"),
}


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main([*words, "--out", str(Path(words[0]).parent / "f.svg")]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1 and captured.err.startswith("error: ")
    assert not (Path(words[0]).parent / "f.svg").exists()
    return captured.err


@pytest.mark.parametrize("name", BAD)
def test_a_bad_value_is_one_line(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row, hint = BAD[name]
    path = kept(tmp_path, row)
    err = refused(capsys, path)
    assert hint in err and f"{path}: line 3: " in err


FILES_REFUSED = {
    "a column is missing": (lambda text: text.replace("predicted", "guessed"), "column 'predicted': missing"),
    "no rows": (lambda text: "\n".join(text.splitlines()[:2]), "no rows"),
    "nothing": (lambda _: "", "no rows"),
    "a row is short": (lambda text: text + "llama.cpp,m\n", "line 4: has not as many columns"),
    "a row is long": (lambda text: text[:-1] + ",more\n", "line 3: has not as many columns"),
    "a quote that never ends": (lambda text: text + '"', "cannot be read as CSV: unexpected end of data"),
    "no text": (lambda _: "\udcff", "cannot be read as CSV: 'utf-8' codec"),
}


@pytest.mark.parametrize("name", FILES_REFUSED)
def test_a_bad_file_is_one_line(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change, hint = FILES_REFUSED[name]
    path = Path(kept(tmp_path, {}))
    path.write_text(change(path.read_text()), errors="surrogateescape")
    assert f"error: {path}: " in (err := refused(capsys, str(path))) and hint in err


def test_no_file_no_such_phase_and_unknown_words_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = kept(tmp_path, {})
    assert "cannot be read as CSV: No such file or directory" in refused(capsys, f"{path}x")
    assert "cannot be read as CSV: Is a directory" in refused(capsys, str(tmp_path))
    assert f"phase: prefill: {path} has no row of it" in refused(capsys, path, "--phase", "prefill")
    assert "--by: 'card' is unknown" in refused(capsys, path, "--by", "card")


def test_the_file_of_the_command_lines_is_as_the_experiment_writes_it() -> None:
    path = FILES / "published.csv"
    assert path.read_text().splitlines()[1].split(",") == [column.key for column in WRITTEN]
    assert {each.phase for each in published(str(path))} == {"decode", "prefill"}
    assert math.isfinite(sum(each.error for each in published(str(path))))
