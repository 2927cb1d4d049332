"""What may be asked of an engine on a miss: what each flag makes of the plan, worked by hand, and what is refused."""

import shlex
from dataclasses import fields, replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import sim.on_miss
from analysis.comparing.comparison import compare
from sim import catalog, run
from sim.capacity import largest_step
from sim.catalog.engine_spec import Engine
from sim.catalog.hardware_spec import Hardware, Host, Link
from sim.core.plan import ADMIT_PARAMS, OnMiss
from sim.costs.memory_split import Card, split
from sim.costs.roofline import costs, cpu_visit_ns, run_ns, transfer_ns
from sim.errors import SpecError
from sim.flags import GROUPS, OF_THE_HARDWARE, spec_of
from sim.on_miss import distinct, staged
from sim.prepare import Setting, prepare
from sim.search.judging import command
from sim.spec import VERSION, RunSpec, came_later
from sim.steps import schedule
from sim.sweeps.config import expand
from sim.sweeps.rows import COLUMNS, error_row, summary_of
from tests.gen import trace_of, traces
from tests.plans import plan
from tests.runs_by_hand import made
from tests.test_costs import decode
from traces.format import npz, profile
from traces.statistics.stats import profile_of

HARDWARE = "[fixed]\ndense_ns = 10\nexpert_ns = 5\ntransfer_ns = 100\ndecide_ns = 1\n"
HOST = "cpu_expert_ns = 7\n"
IDEAL = catalog.engine("ideal")
RTX4090 = catalog.hardware("rtx4090")
MIXTRAL = catalog.model("mixtral-8x7b")

# Three MoE layers of four experts, top-2, of a model of five layers of which the first and the third are dense; a
# prompt of three rows and two tokens. Distinct experts of the five rows, by layer: the prompt 3, 4, 2; then 2 each.
EXPERTS = [
    [[0, 1], [0, 1], [2, 3]],
    [[1, 2], [2, 3], [3, 2]],
    [[2, 0], [1, 0], [2, 3]],
    [[3, 2], [0, 3], [0, 1]],
    [[3, 1], [0, 2], [0, 1]],
]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with `t.npz` as above, `c.npz` to fit on, hardware with and without a host."""
    monkeypatch.chdir(tmp_path)
    weights = np.broadcast_to(np.array([0.75, 0.25]), (5, 3, 2))
    trace = trace_of(EXPERTS, 4, weights, prefill=[True] * 3 + [False] * 2)
    trace = replace(trace, meta={**trace.meta, "n_layers": 5, "moe_layers": [1, 3, 4]})
    npz.write("t.npz", trace)
    npz.write("no-weights.npz", replace(trace, weights=None))
    other = trace_of(np.array(EXPERTS)[::-1, ::-1], 4)
    npz.write("c.npz", replace(other, meta=trace.meta))
    Path("h.toml").write_text(HARDWARE + HOST)
    Path("no-host.toml").write_text(HARDWARE)
    Path("low.toml").write_text(f"{HARDWARE}low_transfer_ns = 5\nlow_expert_ns = 2\n")
    return tmp_path


def prepared(**given: Any) -> Setting:
    return prepare(RunSpec.of({"trace": "t.npz", "hardware": "h.toml", **given}))


def beyond(**given: Any) -> OnMiss:
    found = prepared(**given).plan.on_miss
    assert found is not None
    return found


STREAM = {"bulk": "stream", "bulk_rows": "3"}


# ---- what is used


USES_NONE: list[dict[str, Any]] = [
    {},
    {"miss": "cpu"},
    {"miss": "fiddler"},
    {"cache": "layers:3"},
    {"n_cpu_moe": 0},
    {"cpu_visit_us": 5.0},
    {"link_share": 0.5},
    {"link_share": 1.0, "miss": "cpu"},
    {"cpu_visit_us": 0, "miss": "cpu"},
    {"placement": "global-popular", "calibration": "c.npz", "cache": 3},
]
USES_IT: list[dict[str, Any]] = [
    STREAM,
    {"bulk": "fetch", "bulk_rows": "1000000"},
    {"miss": "stream"},
    {"miss": "remote"},
    {"miss": "cpu-admit"},
    {"miss": "split"},
    {"eviction": "static"},
    {"eviction": "static", "cache_scope": "global"},
    {"cache": "layers:2"},
    {"n_cpu_moe": 1},
    {"override_tensor": "blk.1.*exps=CPU"},
    {"beside": "no"},
    {"miss": "cpu", "cpu_visit_us": 0.5},
    {"miss": "cpu", "link_share": 0.35},
    {"bulk": "cpu", "bulk_rows": "3", "link_share": 0.35},
    {"miss": "cpu", "defer": 1},
]


@pytest.mark.parametrize("given", USES_NONE, ids=str)
def test_a_run_that_uses_none_of_it_has_a_plan_as_before(folder: Path, given: dict[str, Any]) -> None:
    assert prepared(**given).plan.on_miss is None


@pytest.mark.parametrize("given", USES_IT, ids=str)
def test_a_run_that_uses_any_of_it_has_all_of_it(folder: Path, given: dict[str, Any]) -> None:
    assert beyond(**given).run_ns.shape == (2, 5)


def test_each_flag_is_its_field(folder: Path) -> None:
    given = {"stages": 9, "serial": True, "merge": "runs", "bulk_touch": "no", "beside": "no", "cpu_visit_us": 0.5}
    found = beyond(**STREAM, **given, miss="cpu", defer=2, link_share=0.35, ahead=1)
    told = {each.name: getattr(found, each.name) for each in fields(OnMiss) if each.name not in ("run_ns", "table")}
    assert told.pop("chunk_ns").tolist() == [[0, 0], [0, 0]] and told.pop("chunk_bytes") == 0
    assert told.pop("bulk").name == "stream" and told.pop("step_bulk").tolist() == [True, False, False]
    assert told == {
        "bulk_touch": False, "stages": 9, "serial": True, "merge_runs": True, "whole_layer": True, "ahead": 1,
        "cpu_visit_ns": 500, "beside": False, "defer": 2, "link_share": (7, 20),
    }  # fmt: skip
    plain = {"bulk_touch": True, "stages": 0, "serial": False, "merge_runs": False, "whole_layer": False, "ahead": 0}
    assert {name: getattr(beyond(**STREAM), name) for name in plain} == plain


@pytest.mark.parametrize(
    ("rows", "bulk"),
    [
        ("1", [True, True, True]),
        ("3", [True, False, False]),  # the prompt's three rows
        ("4", [False, False, False]),
        ("1E", [True, False, False]),  # rows x 2 >= 4: the prompt's 6, and 2
        ("2E", [False, False, False]),  # 6 < 8
    ],
)
def test_which_steps_are_of_many_rows(folder: Path, rows: str, bulk: list[bool]) -> None:
    assert beyond(bulk="stream", bulk_rows=rows).step_bulk.tolist() == bulk


def test_a_chunk_counts_its_own_rows(folder: Path) -> None:
    assert beyond(**STREAM | {"bulk_rows": "2"}, prefill_chunk=2).step_bulk.tolist() == [True, False, False, False]


def test_parameters_in_words_and_numbers(folder: Path) -> None:
    def params(**given: Any) -> list[float]:
        return prepared(
            miss="cpu-admit", set={f"cpu-admit.{key}": value for key, value in given.items()}
        ).plan.miss.params.tolist()

    assert dict(zip(ADMIT_PARAMS, params(), strict=True)) == {
        "inserts": 2, "queue": 8, "admit_after": 2, "replace_after": 8, "max_rows": 8,
        "warm": 0, "spare": 0, "margin": 0,
    }  # fmt: skip
    assert params(inserts="unlimited", queue="unlimited", max_rows="unlimited", warm="yes") == [
        -1,
        -1,
        2,
        8,
        -1,
        1,
        0,
        0,
    ]
    assert params(warm=True, spare=3) == [2, 8, 2, 8, 8, 1, 3, 0]


def test_a_split_is_one_wherever_it_is_the_rule(folder: Path) -> None:
    table = {"split.by": "table", "split.table": "0, 1,2", "split.keep": "no"}
    bulk = {"bulk": "split", "bulk_rows": "3"}
    for asked in ({"miss": "split"}, bulk, {"miss": "split", **bulk}):
        plan = prepared(**asked, set=table).plan
        assert plan.on_miss is not None and plan.on_miss.table.tolist() == [0, 1, 2]
        choices = [each for each in (plan.miss, plan.on_miss.bulk) if each is not None and each.name == "split"]
        assert [choice.params.tolist() for choice in choices] == [[2, 0, 0]] * len(choices) and choices
    assert beyond(miss="split").table.tolist() == [0, 0, 1, 1, 2]


def test_defer_reads_the_weights(folder: Path) -> None:
    assert prepared().plan.weights is None
    assert prepared(bulk="cpu", bulk_rows="1", defer=1).plan.weights is not None


# ---- slots of each layer


@pytest.mark.parametrize(
    ("given", "slots"),
    [
        ({"cache": "layers:1"}, [0, 0, 4]),
        ({"cache": "layers:first:2"}, [4, 4, 0]),
        ({"cache": "layers:0"}, [0, 0, 0]),
        ({"cache": "slots.txt"}, [0, 3, 4]),
        ({"cache": "slots.json"}, [1, 0, 2]),
        ({"n_cpu_moe": 1}, [0, 4, 4]),
        ({"n_cpu_moe": 3}, [0, 0, 0]),
        ({"override_tensor": "exps=CPU"}, [0, 0, 0]),
        ({"override_tensor": r"blk\.(3|4)\.ffn_(up|down|gate)_exps\.weight=CPU"}, [4, 0, 0]),  # the model's layers
        ({"override_tensor": r"\.4\.ffn_(up|down|gate)_exps=CPU,\.1\..*exps=CPU"}, [0, 4, 0]),
        ({"override_tensor": r"blk\.[13]\..*=CUDA0,exps=CPU"}, [4, 4, 0]),  # the first that finds a tensor decides
        ({"override_tensor": r"blk\.[13]\..*up_exps=CPU,blk\.[13]\..*_exps=CPU"}, [0, 0, 4]),
    ],
)
def test_slots_of_each_layer(folder: Path, given: dict[str, Any], slots: list[int]) -> None:
    Path("slots.txt").write_text("0\n3, 4\n")
    Path("slots.json").write_text("[1, 0, 2]")
    plan = prepared(**given).plan
    assert plan.slots.tolist() == slots
    assert plan.residents.tolist() == [layer * 4 + e for layer in range(3) for e in range(slots[layer])]
    assert (plan.on_miss is None) == (min(slots) > 0)


def test_global_popularity_by_hand(folder: Path) -> None:
    # c.npz has the layers the other way round
    counts = np.zeros((3, 4), np.int64)
    for token in np.array(EXPERTS)[::-1, ::-1]:
        for layer, ids in enumerate(token):
            counts[layer, ids] += 1
    assert counts.tolist() == [[2, 2, 3, 3], [4, 2, 2, 2], [2, 3, 3, 2]]
    # six slots: 4 once; of the 3s all four; of the 2s the first layer's lowest: expert 0
    plan = prepared(placement="global-popular", calibration="c.npz", cache=2).plan
    assert plan.slots.tolist() == [3, 1, 2]
    assert plan.residents.tolist() == [0, 3, 2, 4, 10, 9]  # of each layer the most popular last
    # two slots in all: the 4, and the first 3: the last layer has none
    few = prepared(placement="global-popular", calibration="c.npz", cache="3B").plan
    assert few.slots.tolist() == [2, 1, 0] and few.on_miss is not None


def test_global_popularity_of_a_profile_needs_no_calibration(folder: Path) -> None:
    profile.write(Path("p.npz"), profile_of(npz.read(Path("c.npz"))))
    named = prepared(placement="global-popular", cache=2, set={"global-popular.file": "p.npz"}).plan
    fitted = prepared(placement="global-popular", cache=2, calibration="c.npz").plan
    assert named.slots.tolist() == fitted.slots.tolist() and named.residents.tolist() == fitted.residents.tolist()


# ---- what it costs


def test_a_run_of_experts_is_one_transfer_of_their_bytes() -> None:
    # one, two and three experts of 352,321,536 bytes at 25.5 GB/s; set-up 7 us once, each transfer's one copy 1 us
    size = 352_321_536
    found = run_ns(RTX4090, IDEAL, size, 3, transfer_ns(RTX4090, IDEAL, size))
    moved = [round(n * size / 25.5) for n in (1, 2, 3)]
    assert found.tolist() == [[0, *(8_000 + ns for ns in moved)], [0, *(1_000 + ns for ns in moved)]]
    assert found[:, 1].tolist() == transfer_ns(RTX4090, IDEAL, size).tolist()


def test_a_run_of_three_matrices_is_three_copies_of_so_many_experts() -> None:
    # 3000 bytes in copies of 1000: 2 experts are 3 copies of 2000 bytes. A copy of n_half = 1000 moves at half of 10:
    # 2000 bytes at 20 / 3, so 6000 x 3 / 20 = 900 ns, and 21 of copies, and a set-up of 5
    link = Link(h2d_gb_per_s=10.0, n_half_bytes=1000, setup_ns=5, per_copy_ns=7)
    hardware, engine = Hardware(gpu=RTX4090.gpu, link=link, host=RTX4090.host), Engine(copies_per_expert=3)
    found = run_ns(hardware, engine, 3000, 2, transfer_ns(hardware, engine, 3000))
    assert found.tolist() == [[0, 626, 926], [0, 621, 921]]


def test_given_durations_run_one_behind_the_other(folder: Path) -> None:
    assert beyond(miss="stream").run_ns.tolist() == [[0, 100, 200, 300, 400]] * 2


def test_the_host_s_time_per_visit_is_the_flag_s_the_file_s_or_the_engine_s(folder: Path) -> None:
    engine = Engine(cpu_visit_ns=90_000)
    assert cpu_visit_ns(RTX4090, engine) == 90_000 and cpu_visit_ns(RTX4090, engine, 43.0005) == 43_000
    fixed = catalog.hardware("h.toml")
    assert cpu_visit_ns(fixed, engine) == 0  # given durations replace the engine's
    Path("own.toml").write_text(HARDWARE + HOST + "cpu_visit_ns = 12\n")
    assert beyond(miss="cpu", hardware="own.toml").cpu_visit_ns == 12
    assert beyond(miss="cpu", hardware="own.toml", cpu_visit_us=0, beside="no").cpu_visit_ns == 0


def test_the_link_s_share_is_the_host_s_unless_it_is_given(tmp_path: Path) -> None:
    own = tmp_path / "own.toml"
    own.write_text('gpu = "rtx-4090"\nlink = "pcie4x16-pinned"\n[host]\nlike = "desktop-ddr5"\nlink_share = 0.45\n')
    given = {"trace": "mixtral.npz", "hardware": str(own), "miss": "cpu", "max_steps": 2}
    plans = [prepare(RunSpec.of({**given, **more})).plan for more in ({}, {"link_share": 0.3}, {"link_share": 1.0})]
    assert [plan.on_miss and plan.on_miss.link_share for plan in plans] == [(9, 20), (3, 10), None]


def test_a_dense_part_on_the_host_is_priced_as_its_experts() -> None:
    # 41,984,000 weights of 2 bytes and 100 KV entries of 4,096 at 62.3 GB/s; its operations are fewer
    host = round((2 * 41_984_000 + 100 * 4096) / 62.3)
    gpu = costs(MIXTRAL, RTX4090, IDEAL, "bf16", decode(99)).dense_ns[0].tolist()
    found = costs(MIXTRAL, RTX4090, IDEAL, "bf16", decode(99), (0, 31)).dense_ns[0].tolist()
    assert found == [host, *gpu[1:31], host, 0] and host > gpu[0]
    # a host of few operations: 2 x 41,984,000 + 2 x 32 heads x 256 x 100 entries, at 1 GFLOP/s; the engine's own stays
    slow = Hardware(gpu=RTX4090.gpu, link=RTX4090.link, host=Host(read_gb_per_s=62.3, tflops=1e-3))
    engine = Engine(layer_ns=5, launches_per_layer=9)
    assert costs(MIXTRAL, slow, engine, "bf16", decode(99), (0,)).dense_ns[0, 0] == 5 + 2 * 41_984_000 + 1_638_400


def test_which_layers_have_their_dense_part_on_the_host() -> None:
    given = {"trace": "mixtral.npz", "hardware": "rtx4090", "max_steps": 2}
    plain, first, last = (
        prepare(RunSpec.of({**given, **({"dense_on_host": text} if text else {})})).plan.costs.dense_ns[0]
        for text in ("", "layers:first:2", "layers:1")
    )
    assert (np.flatnonzero(first != plain).tolist(), np.flatnonzero(last != plain).tolist()) == ([0, 1], [31])


# ---- what is kept of it


def test_a_saved_spec_says_its_version_and_of_what_came_later_only_what_is_asked() -> None:
    old = RunSpec.of({"trace": "t.npz"}).saved()
    assert old["version"] == VERSION == 3 and not any(came_later(name) for name in old if name != "version")
    asked = RunSpec.of({"trace": "t.npz", "n_cpu_moe": 0, "beside": "no", "stages": 0}).saved(("machine",))
    assert {name: asked[name] for name in asked if name not in old} == {"n_cpu_moe": 0, "beside": False}
    assert "machine" not in asked
    later = {name for name in RunSpec.model_fields if came_later(name)}
    windows = {"speculate", "accept", "draft_ns"}
    counting = {"reset", "requests", "warmup_share", "skip_prompts"}
    beside = {*OF_THE_HARDWARE, "vram", "context", "engine_as_costs", "kv_precision", "transfer_chunk"}
    price = {"price_per_hour", "watts", "idle_watts"}
    assert later == {*GROUPS["on a miss"]} | beside | windows | counting | price


VALUES: dict[str, Any] = {
    "bulk": "stream", "bulk_rows": "32E", "bulk_touch": False, "stages": 3, "serial": True, "merge": "runs",
    "whole_layer": True, "ahead": 2, "beside": False, "defer": 1, "link_share": 0.35, "cpu_visit_us": 43.5,
    "n_cpu_moe": 8, "override_tensor": "a=CPU,b=CUDA0", "dense_on_host": "layers:first:2", "ram": "64GB",
    "vram": "24GB", "context": 8192, "engine_as_costs": True, "kv_precision": "q8", "host": "epyc-9355",
    "host_gbps": 300.0, "link_gbps": 12.5, "speculate": 3, "accept": 0.7, "draft_ns": 900, "transfer_chunk": "4MB",
    "reset": "request", "requests": "0:2", "warmup_share": 0.1, "skip_prompts": True,
    "price_per_hour": 0.79, "watts": 350.0, "idle_watts": 60.0,
}  # fmt: skip


@given(st.sets(st.sampled_from(sorted(VALUES))))
def test_the_command_of_a_spec_gives_the_spec(names: set[str]) -> None:
    names |= {"watts"} if "idle_watts" in names else set()  # which goes with it
    spec = RunSpec.of({"trace": "t.npz", **{name: VALUES[name] for name in names}})
    words = shlex.split(command(spec))
    assert spec_of(run.parser().parse_args(words[3:])) == spec


def test_every_field_has_such_a_value() -> None:
    assert {*VALUES} == {name for name in RunSpec.model_fields if came_later(name)}


def test_a_comma_of_a_regular_expression_is_no_other_one(folder: Path) -> None:
    assert prepared(override_tensor=r"blk\.[1]{1,2}\.ffn_.*_exps=CPU,exps=CUDA0").plan.slots.tolist() == [0, 4, 4]


def test_dense_parts_on_the_host_stand_in_its_memory() -> None:
    given = {"trace": "mixtral.npz", "hardware": "a10", "max_steps": 2}  # whose host's memory the catalog does not say
    without, there = (prepare(RunSpec.of({**given, **more})).memory for more in ({}, {"dense_on_host": "layers:2"}))
    assert "host" not in without
    moved = sum(without[part] - there[part] for part in ("dense", "kv"))
    assert moved == there["host"]["rest"] - 2_000_000_000  # beside what the host itself takes


def test_llama_cpp_s_short_flag_may_be_repeated() -> None:
    args = run.parser().parse_args(["--trace", "t", "-ot", "a=CPU", "-ot", "b=CPU", "--n-cpu-moe", "3"])
    assert spec_of(args).override_tensor == "a=CPU,b=CPU" and spec_of(args).n_cpu_moe == 3


def test_toml_takes_the_same_names(folder: Path) -> None:
    Path("run.toml").write_text(
        'trace = "t.npz"\nbulk = "stream"\nbulk-rows = 32\nbeside = false\nbulk_touch = "no"\nlink-share = 1\n'
    )
    spec = spec_of(run.parser().parse_args(["--config", "run.toml"]))
    assert (spec.bulk_rows, spec.beside, spec.bulk_touch, spec.link_share) == ("32", False, False, 1.0)


def test_axes_of_a_sweep() -> None:
    tables = {
        "trace": "t.npz", "n-cpu-moe": [0, 2], "bulk": ["default", "split"], "bulk_rows": "32E",
        "set": {"split": {"by": ["share", "makespan"]}}, "link_share": {"from": 0.5, "to": 1, "step": 0.25},
    }  # fmt: skip
    runs = expand(tables)
    assert len(runs) == 2 * 3 * (1 + 2) and not any(
        each.error for each in runs
    )  # split.by only where split is the rule
    rows = [error_row(each, "not run") for each in runs]
    assert set(rows[0]) == set(COLUMNS) and {row["spec.version"] for row in rows} == {3}
    assert {row["spec.n_cpu_moe"] for row in rows} == {0, 2}
    assert {row["spec.link_share"] for row in rows} == {0.5, 0.75, 1.0}
    assert {row["spec.beside"] for row in rows} == {None}
    assert summary_of(rows[0], "t")["spec"]["version"] == 3


def test_results_of_two_versions_are_not_compared_without_saying_it() -> None:
    old, new = made("old"), made("new", spec={"version": 2})
    notes = compare([old, new]).notes
    assert "MIXED spec version: 1 and 2: these are no alternatives of each other" in notes
    assert not any("spec version" in note for note in compare([new, made("other", spec={"version": 2})]).notes)


# ---- distinct experts, stages


@given(traces(max_tokens=24), st.integers(1, 9), st.integers(1, 30))
def test_distinct_experts_of_each_visit(trace: Any, batch: int, chunk: int) -> None:
    steps = schedule(trace, batch, chunk, False)
    rows = [steps.row[a:b].tolist() for a, b in zip(steps.offset[:-1], steps.offset[1:], strict=True)]
    made_plan = plan(trace.experts, trace.n_experts, [1] * trace.n_moe_layers, rows)
    right = [
        [len(set(trace.experts[r, layer].ravel().tolist()) - {-1}) for layer in range(trace.n_moe_layers)] for r in rows
    ]
    for at_once in (1, 3, 1 << 16):
        with mock.patch.object(sim.on_miss, "ROWS_AT_ONCE", at_once):
            assert distinct(made_plan).tolist() == right


def test_stages_for_what_a_visit_may_copy(folder: Path) -> None:
    # the prompt wants 3, 4 and 2 experts of the layers; whole layers, which never stream, do not count
    assert beyond(**STREAM, serial=True, stages=4).stages == 4
    with pytest.raises(SpecError, match=r"^stages: 3: serial: visit 1 \(step 0, MoE layer 1\) may copy 4 experts"):
        prepared(**STREAM, serial=True, stages=3)
    assert beyond(n_cpu_moe=1, serial=True, stages=3).stages == 3
    with pytest.raises(SpecError, match=r"visit 0 \(step 0, MoE layer 0\) may copy 3 experts"):
        prepared(n_cpu_moe=1, serial=True, stages=2)
    # decode steps want 2; a re-ranker may change which, not how many at most: 1 row x 2
    assert beyond(miss="stream", serial=True, stages=2, as_decode=True).stages == 2


@pytest.mark.parametrize(
    ("given", "stages"),
    [
        ({"miss": "cpu-admit"}, 0),
        (STREAM, 4),  # of the prompt's 6 entries at most 4 experts
        ({"miss": "stream", "as_decode": True}, 2),
        ({"miss": "stream", "stages": 3}, 3),
        ({"miss": "stream", "whole_layer": True}, 4),
        ({"miss": "stream", "ahead": 2}, 12),
        ({"n_cpu_moe": 1, "miss": "cpu"}, 0),
        ({"n_cpu_moe": 1, "miss": "cpu", **STREAM}, 4),
    ],
    ids=str,
)
def test_stages_take_memory(folder: Path, given: dict[str, Any], stages: int) -> None:
    setting = prepared(**given)
    assert (
        staged(setting.rules, setting.plan, largest_step(setting.spec, setting.steps))
        == setting.memory["staging"]
        == stages
    )  # experts of one byte


# ---- what is refused


ADMIT = "--miss cpu-admit"
BAD: dict[str, tuple[str, str]] = {
    "a bulk rule without rows": ("--bulk stream", "bulk: stream: needs --bulk-rows"),
    "rows without a bulk rule": ("--bulk-rows 32", "bulk_rows: 32:"),
    "no rows": ("--bulk stream --bulk-rows 0", "must be rows (32), or 32E"),
    "rows of what": ("--bulk stream --bulk-rows 32F", "bulk_rows: '32F'"),
    "an unknown bulk rule": ("--bulk drop --bulk-rows 3", "bulk: 'drop'"),
    "no touch without a bulk rule": ("--bulk-touch no", "bulk_touch: no: needs --bulk"),
    "yes or no": ("--beside maybe", "beside: 'maybe': must be yes or no"),
    "share 0": ("--miss cpu --link-share 0", "link_share: 0.0: must be above 0"),
    "share above 1": ("--miss cpu --link-share 1.01", "link_share: 1.01"),
    "share nan": ("--miss cpu --link-share nan", "link_share: nan"),
    "share of many digits": ("--miss cpu --link-share 0.1234567", "at most six digits"),
    "time below 0": ("--cpu-visit-us -1", "cpu_visit_us: -1.0"),
    "copies of two kinds, serial": ("--hardware low.toml --miss hobbit --serial --cache layers:1",
        "serial: true: the copies of low"),
    "copies of two kinds, static": ("--hardware low.toml --miss hobbit --eviction static",
        "eviction: static: the copies of low"),
    "too few stages for serial": ("--miss stream --serial --stages 1", "stages: 1: serial: visit 1"),
    "too few stages for a layer": ("--miss stream --whole-layer --stages 3", "must be 0, or at least 4"),
    "too few stages ahead": ("--miss stream --ahead 1 --stages 7", "must be 0, or at least 8"),
    "stages for nothing": ("--stages 3", "stages: 3: nothing of the run streams"),
    "serial for nothing": ("--serial --miss cpu-admit --n-cpu-moe 2", "serial: True: nothing"),
    "runs of nothing": ("--merge runs --miss split", "merge: runs: nothing of the run streams"),
    "a layer of nothing": ("--whole-layer", "whole_layer: True: nothing of the run streams"),
    "ahead of nothing": ("--ahead 2 --miss remote --eviction static", "ahead: 2: nothing"),
    "stages below 0": ("--miss stream --stages -1", "stages: -1"),
    "more layers than there are": ("--cache layers:4", "cache: layers:4: the trace has 3 MoE layers"),
    "layers of what": ("--cache layers:last", "must be layers:N"),
    "a list that is too short": ("--cache short.txt", "cache: short.txt: 2 numbers; the trace has 3 MoE layers"),
    "a slot too few": ("--cache below.txt", "cache: below.txt: -1 for MoE layer 1; must be whole, from 0 to 4"),
    "a slot too many": ("--cache above.json", "cache: above.json: 5 for MoE layer 2"),
    "half a slot": ("--cache half.json", "cache: half.json: 0.5 for MoE layer 0"),
    "no list": ("--cache object.json", "cache: object.json: must be a list"),
    "a list that is not there": ("--cache nowhere.txt", "cache: nowhere.txt: no such file or directory"),
    "a pool of layers": ("--cache layers:1 --cache-scope global", "cache: layers:1: is of slots of each"),
    "a spread of layers": ("--cache layers:1 --cache-spread marginal --calibration c.npz",
        "of which cache says the slots, too"),
    "a cache beside n-cpu-moe": ("--n-cpu-moe 1 --cache 0.5", "n_cpu_moe: 1: says the slots of each layer"),
    "two ways to say it": ("--n-cpu-moe 1 -ot exps=CPU", "as override_tensor does; give one"),
    "n-cpu-moe of a pool": ("--n-cpu-moe 1 --cache-scope global", "n_cpu_moe: 1: is of slots of each"),
    "no regular expression": ("-ot ex(ps=CPU", "ex(ps is no regular expression"),
    "a pattern that finds nothing": (r"-ot blk\.0\..*exps=CPU", "finds no tensor"),  # layer 0 is dense
    "a pattern of one matrix": ("-ot ffn_up_exps=CPU", "puts some of blk.1's experts on the CPU"),
    "other tensors": (r"-ot blk\.1\.=CPU", "puts blk.1.attn_norm.weight on the CPU; only a layer's"),
    "another memory": ("-ot exps=CUDA1", "override_tensor: exps=CUDA1: must be REGEX=CPU"),
    "no memory": ("-ot exps", "override_tensor: exps: must be REGEX=CPU"),
    "no table": ("--miss split --set split.table=1,x", "set: split.table=1,x: must be whole numbers"),
    "an empty table": ("--miss split --set split.table=", "set: split.table=: must be whole numbers"),
    "a split by what": ("--miss split --set split.by=luck", "set: split.by: 'luck' is unknown"),
    "keep what": ("--miss split --set split.keep=2", "set: split.keep: '2' is unknown; known: no, yes"),
    "least below 0": ("--miss split --set split.least=-1", "split.least=-1: must be a whole number from 0"),
    "split's parameter without split": ("--bulk cpu --bulk-rows 3 --set split.by=share", "set: split.by: must be"),
    "admitted before it is missed": (f"{ADMIT} --set cpu-admit.admit_after=0", "must be a whole number from 1"),
    "replaced before it is missed": (f"{ADMIT} --set cpu-admit.replace_after=0", "must be a whole number from 1"),
    "no inserts": (f"{ADMIT} --set cpu-admit.inserts=0", "must be a whole number from 1 or unlimited"),
    "half an insert": (f"{ADMIT} --set cpu-admit.inserts=1.5", "cpu-admit.inserts=1.5: must be a whole number"),
    "a queue of none": (f"{ADMIT} --set cpu-admit.queue=none", "cpu-admit.queue=none: must be a whole number"),
    "warm or not": (f"{ADMIT} --set cpu-admit.warm=2", "set: cpu-admit.warm: '2' is unknown; known: no, yes"),
    "a margin below 0": (f"{ADMIT} --eviction lfu --set cpu-admit.margin=-1", "margin=-1: must be a number"),
    **{f"a margin of {name}": (f"{ADMIT} --eviction {name} --set cpu-admit.margin=2",
        f"set: cpu-admit.margin=2: eviction {name} gives no score")
        for name in ("lru", "fifo", "random", "belady", "layer-distance", "static")},
    "a margin of a user's own": (f"{ADMIT} --eviction own.py:first --set cpu-admit.margin=2", "gives no score"),
    "defer without a host": ("--defer 1", "defer: 1: nothing is computed on the host"),
    "defer without weights": ("--trace no-weights.npz --miss cpu --defer 1", "defer: 1: needs `weights`"),
    "global popularity of nothing": ("--placement global-popular", "is fitted and needs --calibration"),
    "global popularity of a pool": ("--placement global-popular --calibration c.npz --cache-scope global",
        "placement: global-popular: spreads slots over layers; --cache-scope layer is required"),
    "global popularity of layers": ("--placement global-popular --calibration c.npz --cache layers:1",
        "of which cache says the slots, too"),
    "global popularity and n-cpu-moe": ("--placement global-popular --calibration c.npz --n-cpu-moe 1",
        "of which n_cpu_moe says the slots, too"),
    "two spreads": ("--placement global-popular --calibration c.npz --cache-spread marginal",
        "of which cache_spread: marginal says the slots, too"),
    **{f"{flag} {rule} without a host": (f"--hardware no-host.toml --{flag} {rule}{more}",
        f"which {flag} {rule} needs")
        for flag, rule, more in (("bulk", "cpu", " --bulk-rows 3"), ("bulk", "split", " --bulk-rows 3"),
        ("miss", "split", ""), ("miss", "cpu-admit", ""))},
    "a dense part on no host": ("--dense-on-host layers:1", "h.toml gives durations outright"),
    "dense parts of what": ("--dense-on-host 3", "dense_on_host: '3': must be without-slots, layers:N"),
    "memory of 0": ("--ram 0GB", "ram: '0GB': must be above 0"),
    "memory of what": ("--ram 64", "ram: '64': must be bytes with a unit"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line_and_nothing_is_written(
    folder: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    for file, text in (("short.txt", "1 2"), ("below.txt", "1 -1 3"), ("above.json", "[4, 4, 5]"),
                       ("half.json", "[0.5, 1, 1]"), ("object.json", "{}"),
                       ("own.py", "def first(view, state, params):\n    return view.candidates[0]\n")):  # fmt: skip
        Path(file).write_text(text)
    flags, wrong = BAD[name]
    before = sorted(folder.rglob("*"))
    trace = [] if "--trace" in flags else ["--trace", "t.npz"]
    assert run.main([*trace, "--hardware", "h.toml", *flags.split(), "--out", "out", "--json"]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1 and captured.err.startswith("error: ")
    assert wrong in captured.err
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize("rule", ["stream", "remote", "fetch"])
def test_what_the_host_has_no_part_in_needs_no_times_of_it(folder: Path, rule: str) -> None:
    assert beyond(hardware="no-host.toml", bulk=rule, bulk_rows="3").step_bulk.any()


def test_ahead_of_the_last_visit_there_is_nothing_to_refuse(folder: Path) -> None:
    assert beyond(miss="stream", ahead=1000).ahead == 1000


@pytest.mark.parametrize("text", ["", "1 2 x", "[1, 2", "\x00", "9" * 30, "[true, 1, 1]", "[[1], 1, 1]", "1e2 1 1"])
@pytest.mark.parametrize("suffix", ["txt", "json"])
def test_any_file_of_slots_is_read_or_refused(folder: Path, text: str, suffix: str) -> None:
    Path(f"s.{suffix}").write_text(text)
    with pytest.raises(SpecError, match=rf"^cache: s\.{suffix}: "):
        prepared(cache=f"s.{suffix}")
    Path("s.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SpecError, match=r"^cache: s\.txt: is no text"):
        prepared(cache="s.txt")


def test_durations_and_digits_that_no_integer_holds(folder: Path) -> None:
    Path("long.toml").write_text(HARDWARE.replace("= 100", f"= {10**14}") + HOST)
    assert beyond(hardware="long.toml", miss="cpu", link_share=0.5).link_share == (1, 2)
    with pytest.raises(SpecError, match=r"^link_share: 0.123457: has too many digits"):
        prepared(hardware="long.toml", miss="cpu", link_share=0.123457)


# ---- memory of the host


def test_host_memory_by_hand() -> None:
    # 32 layers x 8 experts of 352,321,536 bytes: 90.19 GB, page-locked by the ideal engine; 2 GB of the rest, and on
    # request two layers' 41,984,000 weights of 2 bytes, with their KV entries
    given = {"trace": "mixtral.npz", "hardware": "a10", "max_steps": 2}  # whose host's memory the catalog does not say
    every = 32 * 8 * 352_321_536
    assert "host" not in prepare(RunSpec.of(given)).memory  # nobody says how much there is
    line = prepare(RunSpec.of({**given, "ram": "96GB"})).memory["host"]
    assert line == {"experts": 0, "page_locked": every, "rest": 2 * 10**9, "ram": 96 * 10**9, "fits": True}
    tight = prepare(RunSpec.of({**given, "ram": f"{every + 2 * 10**9}B", "dense_on_host": "layers:2"})).memory["host"]
    # a KV entry is of 4,096 bytes; the GPU has neither
    whole, less = (prepare(RunSpec.of({**given, **more})) for more in ({}, {"dense_on_host": "layers:2"}))
    kv = 2 * whole.context * 4096
    assert (tight["rest"], tight["fits"]) == (2 * 10**9 + 2 * 2 * 41_984_000 + kv, False)
    assert whole.memory["dense"] - less.memory["dense"] == 2 * 2 * 41_984_000
    assert whole.memory["kv"] - less.memory["kv"] == kv
    pageable = prepare(
        RunSpec.of({**given, "ram": f"{every + 2 * 10**9}B", "engine": "fiddler", "engine_as_costs": True})
    ).memory["host"]
    assert (pageable["experts"], pageable["page_locked"], pageable["fits"]) == (every, 0, True)
    low = {"miss": "hobbit", "set": {"hobbit.precision": "q4"}, "ram": "1TB"}
    assert prepare(RunSpec.of({**given, **low})).memory["host"]["rest"] == 2 * 10**9 + 32 * 8 * 99_090_432
    unknown = prepare(RunSpec.of({**given, "n_cpu_moe": 8})).memory["host"]
    assert (unknown["page_locked"], unknown["ram"], unknown["fits"]) == (every, None, None)  # all of them, said or not


def test_a_machine_of_one_memory_says_nothing_of_the_host_s() -> None:
    # its experts lie on the SSD; those in the GPU's memory are counted there
    given = {"trace": "mixtral.npz", "hardware": "gb10", "max_steps": 2}
    for more in ({}, {"n_cpu_moe": 8}, {"engine": "llama.cpp"}):
        line = prepare(RunSpec.of({**given, **more})).memory
        assert "host" not in line and line["gpu"] == 122_502 << 20
    with pytest.raises(SpecError, match=r"^ram: 64GB: gb10 has one memory, the GPU's; give --vram$"):
        prepare(RunSpec.of({**given, "ram": "64GB"}))


def test_a_host_that_says_its_memory(tmp_path: Path) -> None:
    own = tmp_path / "own.toml"
    own.write_text('gpu = "rtx-4090"\nlink = "pcie4x16-pinned"\n[host]\nlike = "desktop-ddr5"\nram_gb = 64.0\n')
    given = {"trace": "mixtral.npz", "hardware": str(own), "max_steps": 2}
    assert prepare(RunSpec.of(given)).memory["host"]["fits"] is False
    assert prepare(RunSpec.of({**given, "ram": "128 GiB"})).memory["host"]["ram"] == 128 << 30


def test_what_does_not_fit_the_host_is_said_as_loudly(capsys: pytest.CaptureFixture[str]) -> None:
    flags = "--trace mixtral.npz --hardware a100-pcie4 --max-steps 3 --cache 1 --ram 64GB"
    assert run.main(flags.split()) == 0
    out = capsys.readouterr().out
    assert "! DOES NOT FIT: needs 92.2 GB of the host's memory, has 64.0 GB; times as if it did" in out
    assert "page-locked 90.19 GB" in out and out.count("DOES NOT FIT") == 2
    fits = {"memory": {"slots": 12, "fits": True, "host": {"fits": False}}}
    assert "does not fit the host" in made("a", **fits).marks and "does not fit the host" not in made("b").marks


def test_stages_leave_fewer_slots_to_recommend() -> None:
    model, engine = catalog.model("olmoe"), IDEAL
    card = Card(model, RTX4090, engine, "bf16", 10 * 10**9, 4096, 1)
    plain, staged_ = (split(card, n) for n in (0, 64))
    size = model.expert_bytes("bf16")
    assert staged_.staging == 64 * size and plain.slots - staged_.slots == 64
    assert plain.beside(64) == staged_ and staged_.beside(3) == staged_
