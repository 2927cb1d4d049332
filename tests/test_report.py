"""The report: figures that add up to the summary, a page that asks nobody, text that stays text; what is refused."""

import json
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analysis.comparing.comparison import compare
from analysis.pages import compare_figures, figures, tables, trace_tables
from analysis.pages.report import DETAILED, DRAWN, report
from analysis.pages.trace_figures import pairs, q_mass, skew
from analysis.pages.trace_sections import averaged
from analysis.reading.load import load
from analysis.reading.run import Run
from analysis.report import MAX_PAGE_BYTES, main
from analysis.showing.palette import ANSWER, CAUSE, SLOT
from analysis.timelines import series
from sim import profile
from sim.core.plan import ANSWERS, CAUSES
from sim.machines import compiled
from sim.machines.record import RunRecord
from tests.plans import plan
from tests.runs_by_hand import ARGUMENTS, made, record, simulated, written
from traces.format import npz
from traces.format.trace import RoutingTrace

HOSTILE = "</script><script>window.pwned = 1</script><img src=x onerror='window.pwned=1'>\"'&<b>"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("report")


@pytest.fixture(scope="module")
def runs(folder: Path) -> dict[str, Path]:
    ahead = ["--miss", "stream", "--ahead", "1", "--merge", "runs", "--record", "full"]
    return simulated(folder, *ARGUMENTS, ahead=ahead)


@pytest.fixture(scope="module")
def page(runs: dict[str, Path]) -> str:
    return report(load(runs.values(), DETAILED))


class Page(HTMLParser):
    """What a page is made of: tags with their attributes, the text of each element kind, the figures."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "link", "img", "input", "br"):
            self.open.append(tag)
            self.texts.setdefault(tag, []).append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"{tag} ends what it did not begin"

    def handle_data(self, data: str) -> None:
        for tag in set(self.open):
            self.texts[tag][-1] += data

    def with_tag(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.tags if tag == name]

    @property
    def figures(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.texts["script"][1])
        return found


# --- figures add up ---


def test_where_the_time_went_is_all_of_the_time(runs: dict[str, Path]) -> None:
    found = load(runs.values())
    fig = figures.time_parts(tables.time_parts(found))
    for i, run in enumerate(found):
        assert sum(bar.x[i] for bar in fig.data) == pytest.approx(run.summary["time_ns"] / 1e9, rel=1e-12)
        stalls = [bar.x[i] for bar in fig.data if bar.name.startswith("stall")]
        assert sum(stalls) == pytest.approx(run.summary["breakdown_ns"]["stall"] / 1e9, rel=1e-12)


def test_bytes_by_cause_are_the_summarys(runs: dict[str, Path]) -> None:
    found = load(runs.values())
    fig = figures.gigabytes(tables.gigabytes(found))
    for i, run in enumerate(found):
        assert sum(bar.x[i] for bar in fig.data) == pytest.approx(sum(run.summary["h2d_bytes"].values()) / 1e9)


def test_hits_by_layer_are_the_summarys(runs: dict[str, Path]) -> None:
    found = load([runs["lru"], runs["drop"]])
    names, rates = tables.hit_rates(found)
    by = found[0].summary["by_layer"]
    assert names == ["lru", "drop"] and rates.shape == (2, 4)
    assert rates[0, 2] == by["hits"][2] / (by["hits"][2] + by["late"][2] + by["misses"][2])
    assert figures.by_layer(names, rates, "hits").data[0].z[0][2] == pytest.approx(100 * rates[0, 2])


def test_prefetch_rates_by_hand() -> None:
    # 6 of 10 that landed were in time, 2 late, 2 for nothing; 2 late and 4 missed experts are left
    run = made(
        "p", spec={"prefetch": "popular"}, prefetched={"used": 6, "late": 2, "wasted": 2}, late=2, misses=4, wanted=6
    )
    row = tables.prefetching([run, made("none")]).loc["p"]
    assert row["accuracy"] == 8 / 10 and row["timeliness"] == 6 / 8 and row["coverage"] == 6 / 12
    assert len(tables.prefetching([made("none")])) == 0


def test_bounds_by_hand() -> None:
    run = made("r", record([[100, 100]]), bounds={"lossless_ns": 50, "executed_ns": 150})
    row = tables.bounds([run]).loc["r"]
    assert row["lossless_ns"] == 0.25 and row["executed_ns"] == 0.75 and np.isnan(row["demand_ns"])


def test_errors_of_a_simulation_by_hand() -> None:
    # measured 200 ns, simulated 150 ns of stall: a quarter of the measured time is missing
    real, other = made("real", record([[100, 100]]), machine="torch"), made("sim", record([[75, 75]]))
    elsewhere = made("x", record([[1, 1]]), spec={"cache": 0.75})
    found = tables.pairs([elsewhere, real, other])
    assert [(a.name, b.name) for a, b in found] == [("real", "sim")]
    row = tables.errors(found).loc["real"]
    assert row["demand"] == pytest.approx(-0.25) and row["total"] == pytest.approx(-0.25)
    assert row["tokens/s"] == pytest.approx(200 / 150 - 1)
    assert [bar.x[-1] for bar in figures.errors(tables.errors(found)).data] == pytest.approx([-25.0])


def test_a_simulation_on_calibrated_hardware_is_a_pair_too() -> None:
    real, other = made("real", machine="torch"), made("sim", spec={"hardware": "my-gpu.toml"})
    assert [(a.name, b.name) for a, b in tables.pairs([real, other])] == [("real", "sim")]


def test_the_front_joins_the_best_from_the_least_loss_on() -> None:
    runs = [
        made(name, None, tokens_per_s=speed, quality={"substituted_weight": lost}, substituted=1)
        for name, speed, lost in (("c", 3.0, 0.2), ("a", 1.0, 0.0), ("b", 2.0, 0.1), ("worse", 1.5, 0.15))
    ]
    line = compare_figures.pareto(compare(runs)).data[0]
    assert list(line.y) == [1.0, 2.0, 3.0] and list(line.x) == pytest.approx([0, 10, 20])


# --- over time ---


def worked() -> RunRecord:
    """The worked check of the design: two slots holding {0, 1}, tokens want 0, 2, 1; 245 ns in all."""
    spec = plan([[[0]], [[2]], [[1]]], 3, [2], dense=10, expert=5, transfer=100)
    return compiled.run(spec, True)


def test_occupancy_and_link_by_hand() -> None:
    # 2 is committed at 25 (1 goes) and lands at 125; 1 is committed at 140 (0 goes) and lands at 240; end at 245
    run, at = worked(), np.array([0.0, 25.0, 125.0, 140.0, 240.0, 245.0])
    slots = series.occupancy(run, 3, 2, at)
    assert slots["first residents"].tolist() == [2, 1, 1, 0, 0]
    assert slots["fetched on demand"].tolist() == [0, 0, 1, 1, 2]
    assert slots["on its way"].tolist() == [0, 1, 0, 1, 0]
    assert series.link_use(run, at)["demand"].tolist() == [0, 1, 0, 1, 0]
    # one bin holds the means: the link moved 200 of 245 ns
    assert series.link_use(run, np.array([0.0, 245.0]))["demand"].tolist() == pytest.approx([200 / 245])


def test_bins_add_up_to_the_record(runs: dict[str, Path]) -> None:
    for run in load([runs["lru"], runs["fifo"], runs["ahead"]], 3):
        assert run.record is not None
        at = series.edges(run.record)
        busy = sum(float((share * np.diff(at)).sum()) for share in series.link_use(run.record, at).values())
        assert busy == pytest.approx(run.summary["link_busy_ns"], rel=1e-9)
        whole, low = tables.slots(run)
        total = sum(series.occupancy(run.record, run.trace["n_experts"], whole, at).values())
        assert (whole, low) == (16, 0) and np.allclose(total, 16)


def test_everything_has_a_colour_of_its_own() -> None:
    for meant, words in ((CAUSE, CAUSES), (ANSWER, ANSWERS), (SLOT, SLOT)):
        assert set(meant) == set(words) and len(set(meant.values())) == len(meant)


def test_answers_by_layer_by_hand() -> None:
    of = record([[100, 100]], warmup=1)
    visits = {"step": np.array([0, 1, 1]), "layer": np.array([0, 0, 1])}
    answers = {"visit": np.array([0, 1, 2, 2]), "answer": np.array([0, 0, 1, 2])}
    full = RunRecord(**{**vars(of), "groups": {"visits": visits, "answers": answers}})
    counts = series.answers_by_layer(full)  # step 0 is warm-up
    assert {name: values.tolist() for name, values in counts.items()} == {
        "fetch": [1, 0], "substitute": [0, 1], "drop": [0, 1], "cpu": [0, 0], "low": [0, 0], "stream": [0, 0],
        "remote": [0, 0],
    }  # fmt: skip
    assert series.decode_step_ms(full).tolist() == [100e-6]


# --- the trace ---


@pytest.fixture
def tiny() -> RoutingTrace:
    """One layer of 4 experts, top-2; the pairs (0, 1), (0, 1), (0, 2), and 3 never."""
    experts = np.array([[[0, 1]], [[0, 1]], [[2, 0]]], np.int16)
    meta = {
        "format_version": 1,
        "model": "m",
        "n_experts": 4,
        "top_k": 2,
        "n_layers": 1,
        "moe_layers": [0],
        "real": True,
    }
    rows = np.arange(3, dtype=np.int32)
    return RoutingTrace(experts, np.zeros(3, np.int32), rows, np.zeros(3, bool), meta)


def test_the_papers_figures_by_hand(tiny: RoutingTrace) -> None:
    # uses 3, 2, 1, 0 of 6
    assert trace_tables.skew(tiny).middle.tolist() == pytest.approx([1 / 2, 1 / 3, 1 / 6, 0])
    found = trace_tables.counted(tiny)
    assert found is not None
    share = trace_tables.together(found)[0]
    # of the 3 uses of expert 0, two are with 1 and one with 2; 1 and 2 always come with 0; 3 never comes
    assert share[0, 1:].tolist() == pytest.approx([2 / 3, 1 / 3, 0]) and share[1, 0] == share[2, 0] == 1
    assert np.isnan(share[3]).all() and np.isnan(np.diag(share)).all()
    # q mass by rank: expert 0 covers 2/3, 1, 1; experts 1 and 2 all at once: the median is 1
    assert trace_tables.q_mass(found).middle.tolist() == pytest.approx([1, 1, 1])
    assert trace_tables.q_mass(found).low[0] == pytest.approx(2 / 3 + 0.2 * (1 - 2 / 3))
    assert pairs(share, "").data[0].z[0][1] == pytest.approx(2 / 3)
    assert skew(trace_tables.skew(tiny)).data[2].y[0] == pytest.approx(50)
    assert q_mass(trace_tables.q_mass(found)).data[2].y[0] == pytest.approx(100)


def test_large_squares_are_averaged_in_blocks() -> None:
    square = np.arange(25.0).reshape(5, 5)
    square[0, 0] = np.nan
    small = averaged(square, 3)  # blocks of two; the last row and column stand alone
    assert small.shape == (3, 3)
    assert small[0, 0] == (1 + 5 + 6) / 3 and small[1, 1] == (12 + 13 + 17 + 18) / 4 and small[2, 2] == 24


# --- the page ---


def test_the_page_asks_nobody(page: str) -> None:
    assert len(page.encode()) < MAX_PAGE_BYTES
    found = Page(page)
    assert not found.with_tag("link") and not found.with_tag("img") and not found.with_tag("iframe")
    assert all("src" not in attributes for _, attributes in found.tags)
    assert all((a["href"] or "").startswith("#") for a in found.with_tag("a"))
    policy = [m for m in found.with_tag("meta") if m.get("http-equiv") == "Content-Security-Policy"]
    assert (policy[0]["content"] or "").startswith("default-src 'none'")
    assert page.count("plotly.js v") == 1
    style = "".join(found.texts["style"])
    assert "@import" not in style and "url(" not in style


def test_the_page_can_be_read_without_eyes_or_mouse(page: str) -> None:
    found = Page(page)
    assert found.with_tag("html")[0]["lang"] == "en"
    ids = [a["id"] for _, a in found.tags if "id" in a]
    assert len(ids) == len(set(ids))
    for _, attributes in found.tags:
        for name in ("aria-labelledby", "aria-describedby"):
            assert set((attributes.get(name) or "").split()) <= set(ids)
    assert {(a["href"] or "")[1:] for a in found.with_tag("a")} <= set(ids)
    assert len(found.with_tag("h1")) == 1 and len(found.with_tag("h2")) == len(found.with_tag("section")) > 5
    plots = [a for a in found.with_tag("div") if a.get("class") == "plot"]
    assert {a["id"] for a in plots} == set(found.figures) and all(a["role"] == "img" for a in plots)
    assert len(found.with_tag("caption")) == len(found.with_tag("table")) > 5
    assert all(a.get("tabindex") == "0" for a in found.with_tag("div") if a.get("class") == "frame")


def test_what_was_run_is_said(page: str) -> None:
    text = " ".join("".join(Page(page).texts["main"]).split())
    for words in ("synthetic, made by a generator", "test-model", "h.toml", "belady", "open-loop", "4 slots per layer"):
        assert words in text, words
    notes = "".join(Page(page).texts["header"])
    assert "SYNTHETIC" in notes and "OPEN LOOP" in notes and "ORACLE" in notes


def test_every_figure_has_units_and_few_points(page: str) -> None:
    for key, figure in Page(page).figures.items():
        axes = [axis for name, axis in figure["layout"].items() if name.startswith(("xaxis", "yaxis"))]
        titled = [axis["title"]["text"] for axis in axes if axis.get("title", {}).get("text")]
        assert titled, key
        assert figure["data"], key
        assert len(json.dumps(figure)) < 300_000, key
        assert figure["layout"]["showlegend"] is False


def test_equal_runs_give_equal_pages(runs: dict[str, Path]) -> None:
    first, again = (report(load([runs["lru"], runs["drop"]], DETAILED)) for _ in range(2))
    assert first == again


def test_summaries_alone_make_a_report_that_says_what_it_lacks(tmp_path: Path, runs: dict[str, Path]) -> None:
    for name in ("lru", "drop"):
        (tmp_path / name).mkdir()
        shutil.copy(runs[name] / "summary.json", tmp_path / name)
    found = Page(report(load([tmp_path / "lru", tmp_path / "drop"])))
    text = "".join(found.texts["main"])
    assert "needs record.npz" in text and "Cache occupancy and link use over time is not shown" in text
    assert "What the miss policy answered by layer is not shown for drop" in text
    # the drop run's record has no groups, so these panels, and the steps of lru's, are all that is missing
    whole = Page(report(load([runs["lru"], runs["drop"]], DETAILED)))
    steps = sum("data-among" in attributes for _, attributes in whole.tags)
    assert steps and len(found.figures) == len(whole.figures) - 2 - steps


def test_records_left_behind_are_named(runs: dict[str, Path]) -> None:
    text = "".join(Page(report(load([runs["lru"], runs["fifo"]], 1))).texts["main"])
    assert "Time courses are shown for the first 6 full records: not for fifo" in text


def test_many_runs_keep_the_baseline_and_the_best(runs: dict[str, Path]) -> None:
    base = load([runs["lru"]])[0]
    many = [
        Run(f"r{i}", "", {**base.summary, "tokens_per_s": float(i), "spec": {**base.spec, "seed": i}})
        for i in range(90)
    ]
    found = Page(report(many, "r3"))
    both = [figure for figure in found.figures.values() if "generated tokens/s" in str(figure["layout"]["xaxis"])]
    first, every = (figure["data"][0]["y"] for figure in both)
    assert len(every) == DRAWN and every[0] == "r3" and every[-1] == "r89"
    assert first == ["r89", "r88", "r87", "r86", "r85", "r84", "r83", "r82", "r3"]
    assert "90 runs" in "".join(found.texts["header"])


def test_text_stays_text(runs: dict[str, Path], tmp_path: Path) -> None:
    value = json.loads((runs["drop"] / "summary.json").read_text())
    value["trace"] |= {"model": HOSTILE, "source": HOSTILE}
    value["spec"] |= {"hardware": HOSTILE, "eviction": HOSTILE, "set": {HOSTILE: HOSTILE}}
    value |= {"verdict": HOSTILE, "notes": [f"OPEN LOOP {HOSTILE}"]}
    place = written(tmp_path / HOSTILE.replace("/", "_"), value)
    found = Page(report(load([runs["lru"], place])))
    assert len(found.with_tag("script")) == 3 and not found.with_tag("img") and not found.with_tag("b")
    assert all(not name.startswith("on") for _, attributes in found.tags for name in attributes)
    assert HOSTILE in "".join(found.texts["main"])
    texts = json.dumps(found.figures)
    assert "<script" not in texts and "<img" not in texts and "<b>" not in texts


def test_similarity_and_buddies_are_drawn(folder: Path, runs: dict[str, Path]) -> None:
    rng = np.random.default_rng(0)
    matrix = rng.uniform(0, 0.9, (4, 8, 8))
    matrix = (matrix + matrix.transpose(0, 2, 1)) / 2
    np.einsum("lii->li", matrix)[...] = 1
    npz.write_arrays(folder / "s.npz", {}, {"similarity": matrix.astype(np.float32)})
    assert profile.main(["--trace", str(folder / "t.npz"), "--out", str(folder / "b.npz")]) == 0
    found = Page(report(load([runs["lru"]]), 0, None, str(folder / "b.npz"), str(folder / "s.npz")))
    text = "".join(found.texts["h3"])
    assert "similar peer" in text and "Buddy lists hold" in text
    assert len(found.with_tag("select")) == 2 and len(found.with_tag("option")) == 8
    drawn = [figure for figure in found.figures.values() if "choices" in figure]
    assert [len(figure["choices"]) for figure in drawn] == [4, 4]


def test_the_measured_run_is_set_beside_the_simulated(runs: dict[str, Path], tmp_path: Path) -> None:
    place = tmp_path / "device"
    shutil.copytree(runs["lru"], place)
    value = json.loads((place / "summary.json").read_text()) | {"machine": "torch"}
    (place / "summary.json").write_text(json.dumps(value))
    text = "".join(Page(report(load([runs["lru"], place]))).texts["main"])
    assert (
        "The simulation is off by at most 0 % of the measured time" in text and "device measured, lru simulated" in text
    )
    alone = "".join(Page(report(load([place]))).texts["main"])
    assert "No simulated run of the same spec and trace beside device" in alone


def test_another_trace_is_not_shown_as_the_runs_own(runs: dict[str, Path], folder: Path, tmp_path: Path) -> None:
    value = json.loads((runs["lru"] / "summary.json").read_text())
    moved = written(tmp_path / "moved", value | {"spec": value["spec"] | {"trace": "nowhere.npz"}})
    assert "--trace FILE gives it" in "".join(Page(report(load([moved]))).texts["main"])
    assert "busiest fifth" in "".join(Page(report(load([moved]), trace=str(folder / "t.npz"))).texts["h3"])
    other = written(tmp_path / "other", value | {"spec": value["spec"] | {"trace": "mixtral.npz"}})
    assert "is another trace by now" in "".join(Page(report(load([other]))).texts["main"])


# --- the command line ---


def test_the_command_writes_one_page(runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(runs["lru"]), "--out", str(tmp_path / "r.html")]) == 0
    told = capsys.readouterr()
    size = (tmp_path / "r.html").stat().st_size
    assert told.out == "" and told.err == f"{tmp_path / 'r.html'}: {size / 1e6:.1f} MB\n"
    assert [p.name for p in tmp_path.iterdir()] == ["r.html"]


def bad(runs: dict[str, Path], folder: Path, place: Path) -> Iterator[tuple[list[Any], str]]:
    lru, out = runs["lru"], ["--out", place / "r.html"]
    yield [place, *out], "no summary.json"
    yield [place / "no", *out], "no such file"
    yield [folder / "t.npz", *out], "is no JSON"
    yield [lru, "--out", place / "no" / "r.html"], "its folder is not there"
    yield [lru, "--out", place], "must name a file"
    yield [lru, *out, "--baseline", "x"], "baseline"
    yield [lru, *out, "--trace", "mixtral.npz"], "is not the trace of run"
    yield [lru, *out, "--trace", place / "no.npz"], "no such file"
    yield [lru, *out, "--buddies", folder / "t.npz"], "t.npz"
    yield [lru, *out, "--similarity", folder / "t.npz"], "similarity is missing"
    yield [lru, *out, "--seed", "-1"], "seed"


def test_bad_input_writes_nothing(
    runs: dict[str, Path], folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments, words in bad(runs, folder, tmp_path):
        capsys.readouterr()
        assert main([str(a) for a in arguments]) == 2, arguments
        told = capsys.readouterr()
        assert told.out == "" and told.err.count("\n") == 1 and words in told.err, told.err
        assert not list(tmp_path.iterdir())
