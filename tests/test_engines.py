"""What the name of an engine sets, what may be said beside it, what it refuses, and what of it a card holds.

docs/engines.md is the second source of what each engine sets: the flags that stand there for its name."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from analysis.comparing.comparison import compare
from sim import catalog, run
from sim.catalog import intervals
from sim.costs.roofline import needed
from sim.engines import FREE, behaving
from sim.errors import CatalogError, SpecError
from sim.flags import flag_words, spec_of
from sim.outcome.table import table
from sim.policies.registry import TABLES
from sim.prepare import Setting, prepare
from sim.simulation import simulate
from sim.spec import RunSpec, defaults
from sim.sweeps.config import expand
from tests.captures import FOLDER, capture_names
from tests.forked import Forks
from tests.pages import DocPage
from tests.second_sources import SECTIONS, as_written
from traces.errors import UserError

pytestmark = pytest.mark.machine
BEHAVING = [name for name in catalog.names("engine") if behaving(name) is not None]
SAMPLE = {"trace": "mixtral.npz", "hardware": "rtx4090", "precision": "q4-k-m"}
CALIBRATED = {"calibration": 0.5}


def prepared(**fields: Any) -> Setting:
    return prepare(RunSpec.of({**SAMPLE, **fields}))


# --- the page ---


@pytest.mark.parametrize("name", BEHAVING)
def test_the_flags_on_the_page_say_what_the_name_says(name: str) -> None:
    said, engine = RunSpec.of({"trace": "t.npz", "engine": name}), behaving(name)
    assert engine is not None and f"\n\n    {engine.command}\n    python -m sim.run" in SECTIONS[name]
    assert as_written(name) == said.model_copy(update={"engine_as_costs": True})


@pytest.mark.parametrize("name", BEHAVING)
def test_our_command_line_runs(name: str, commands: Forks, tmp_path: Path) -> None:
    found = re.search(r"\n    python -m (sim\.run .*)\n", SECTIONS[name])
    assert found is not None
    words = found[1].replace("TRACE", "mixtral.npz").split()
    done = commands.call(*words, "--max-steps", "2", "--precision", "q4", "--hardware", "rtx4090", cwd=tmp_path)
    assert done.returncode == 0 and f"\n{name} " in done.stdout, done.stderr


def test_every_engine_has_its_section_and_nobody_else() -> None:
    assert list(SECTIONS)[:-2] == BEHAVING
    parts = ("Ask", "Modelled", "Not")
    assert all(f"- **{part}**: " in SECTIONS[name] for name in BEHAVING for part in parts)


def test_the_page_s_commands_print_what_stands_there(tmp_path: Path, commands: Forks) -> None:
    page = DocPage("engines.md")
    assert len(page.blocks) == 4
    page.check(page.write(tmp_path), commands)


def test_the_list_says_in_a_line_each_what_is_done_on_a_miss(capsys: pytest.CaptureFixture[str]) -> None:
    assert run.main(["--list-engines"]) == 0
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert list(lines) == catalog.names("engine")
    for name in BEHAVING:
        engine = behaving(name)
        assert engine is not None and lines[name] == engine.does


# --- what a name sets ---


@pytest.mark.parametrize("name", BEHAVING)
def test_what_an_engine_sets_has_a_source_and_is_what_runs_have(name: str) -> None:
    engine, spec = behaving(name), RunSpec.of({"trace": "t.npz", "engine": name})
    assert engine is not None and engine.sets.keys() <= engine.sources.keys()
    for kind, policies in TABLES.items():
        chosen = [getattr(spec, kind)] if kind in spec.policies else []
        chosen += engine.options.get(kind, []) if isinstance(engine.options.get(kind), list) else []
        assert all(each == "none" or each in policies for each in chosen)


@pytest.mark.parametrize("name", catalog.names("engine"))
@pytest.mark.parametrize("trace", ["mixtral.npz", "tiny-moe.npz", *capture_names()])
def test_every_engine_runs_as_it_is_on_every_trace_or_says_what_is_lacking(name: str, trace: str) -> None:
    file = trace if trace.endswith(".npz") else str(FOLDER / f"{trace}.npz")
    fields: dict[str, Any] = {"trace": file, "engine": name, "max_steps": 3}
    fitted = {"moe-infinity-paper": "activation-matrix", "fiddler": "placement global-popular"}
    if name in fitted and trace != "tiny-moe.npz":  # which brings requests of its own to fit on
        with pytest.raises(SpecError, match=f"^{fitted[name]}: is fitted .*; engine {name} has it$"):
            simulate(RunSpec.of(fields))
        fields |= CALIBRATED
    summary, _ = simulate(RunSpec.of(fields))
    assert summary["tokens"] + summary["prompt_tokens"] > 0
    if name in BEHAVING:
        assert summary["engine"]["name"] == name and summary["memory"]["fits"]
        assert summary["engine"]["words"] in table(summary).splitlines()
    else:
        assert "engine" not in summary and "prompt_tokens_per_s" not in summary


def test_llama_cpp_computes_on_the_cpu_in_decode_and_streams_in_prefill() -> None:
    fields = {**SAMPLE, "engine": "llama.cpp", "n_cpu_moe": 16, "max_steps": 12}
    summary, record = simulate(RunSpec.of(fields), full=True)
    assert summary["evictions"] == 0 and summary["admission"]["admitted"] == 0
    where = record.groups["executions"]
    step, layer = np.divmod(where["visit"], 32)
    on_cpu = where["cpu"] == 1
    decode = step > 0  # one prompt of 112 rows, at least 32, and eleven steps of one row
    assert on_cpu[decode & (layer < 16)].all() and not on_cpu[~decode].any() and not on_cpu[layer >= 16].any()
    assert set(record.groups["transfers"]["visit"] // 32) == {0}
    assert summary["streamed"] > 0 and summary["cpu"] == 2 * 16 * 11  # top-2 of 16 layers in eleven decode steps
    assert summary["prompt_tokens_per_s"] == summary["prompt_tokens"] * 1e9 / summary["prefill_ns"]


def test_the_header_says_who_set_what() -> None:
    def words(**fields: Any) -> str:
        summary, _ = simulate(RunSpec.of({**SAMPLE, "max_steps": 2, **fields}))
        return str(summary["engine"]["words"])

    rest = "miss cpu, bulk stream at 32 rows, beside no, serial, merge runs"
    assert words(engine="llama.cpp", n_cpu_moe=16) == (
        f"llama.cpp b9000: first 16 of 32 MoE layers on the CPU, {rest}; you set --n-cpu-moe 16"
    )
    fits = "last 7 of 32 MoE layers on the CPU (as fits 25.25 GB)"
    assert words(engine="llama.cpp") == f"llama.cpp b9000: {fits}, {rest}"
    share = "a pool of 107 of 256 experts (as fits 0.75 of 20.00 GB)"
    assert words(engine="moe-infinity", vram="20GB").startswith(f"moe-infinity as released, 2025: {share}, miss fetch")
    assert words(engine="llama.cpp", bulk="none", n_cpu_moe=32) == (
        "llama.cpp b9000: no experts on the GPU, miss cpu, beside no; you set --bulk none --n-cpu-moe 32"
    )
    assert words(engine="llama.cpp", cache="layers:first:30", bulk_rows=64).endswith(
        "last 2 of 32 MoE layers on the CPU, miss cpu, bulk stream at 64 rows, beside no, serial, merge runs; "
        "you set --cache layers:first:30 --bulk-rows 64"
    )
    assert words(engine="moe-infinity", cache=40) == (
        "moe-infinity as released, 2025: a pool of 40 of 256 experts, miss fetch, eviction lfu, prompts in one step; "
        "you set --cache 40"
    )
    assert words(engine="freetoken", cache=256, miss="fetch").startswith(
        "freetoken arXiv 2608.16157: all experts on the GPU, bulk stream at 32 rows, eviction lru, whole layer, "
        "ahead 1, prompts in steps of 8,192 rows; "
        "you set --cache 256 --miss fetch"
    )
    assert words(engine="mixtral-offloading", prefetch="gate-lookahead", set={"gate-lookahead.width": 2}) == (
        "mixtral-offloading 0d3c605: 4 of 8 experts of each MoE layer on the GPU, miss fetch, eviction lru, "
        "prompts in one step; "
        "you set --prefetch gate-lookahead --set gate-lookahead.width=2"
    )


def test_a_speed_from_costs_that_no_published_speed_tells_says_that_it_is_not_calibrated(tmp_path: Path) -> None:
    assert "vllm-uva" not in {row.engine for row in intervals.table()}
    engine, plain = (
        table(simulate(RunSpec.of({**SAMPLE, "max_steps": 2, **more}))[0]) for more in ({"engine": "vllm-uva"}, {})
    )
    assert "with prompts; not calibrated\n" in engine and "with prompts; not calibrated\n" in plain
    (tmp_path / "h.toml").write_text("[fixed]\ndense_ns = 6\ndecide_ns = 0\nexpert_ns = 5\ntransfer_ns = 12\n")
    fields = {"trace": "mixtral.npz", "hardware": str(tmp_path / "h.toml"), "engine": "hf-v5", "cache": "layers:9"}
    assert "calibrated" not in table(simulate(RunSpec.of(fields | {"max_steps": 2}))[0])


def test_which_layers_an_engine_puts_on_the_cpu() -> None:
    first, last = (prepared(engine=name, n_cpu_moe=5).plan.slots for name in ("llama.cpp", "ik_llama.cpp"))
    assert first.tolist() == [0] * 5 + [8] * 27 and last.tolist() == [8] * 27 + [0] * 5
    costs = prepared(engine="ik_llama.cpp", engine_as_costs=True, n_cpu_moe=5, miss="cpu").plan.slots
    assert costs.tolist() == first.tolist()
    whole = prepared(engine="ollama", n_cpu_moe=5)
    assert whole.costed.on_host == (0, 1, 2, 3, 4)


# --- what is refused ---

REFUSED = {
    "another miss": ({"engine": "llama.cpp", "miss": "fetch"}, "miss: fetch: llama.cpp has miss cpu, and nothing else"),
    "slots in place of layers": ({"engine": "llama.cpp", "cache": 4}, "cache: 4: llama.cpp holds whole layers: cache"),
    "a share of slots": ({"engine": "hf-v5", "cache": 0.5}, "cache: 0.5: hf-v5 holds whole layers"),
    "layers in place of slots": ({"engine": "moe-infinity", "n_cpu_moe": 4}, "n_cpu_moe: 4: moe-infinity has no --n-c"),
    "a prefetcher": ({"engine": "hf-v5", "prefetch": "oracle"}, "prefetch: oracle: hf-v5 has prefetch none, and"),
    "another eviction": (
        {"engine": "ktransformers", "eviction": "lru"},
        "eviction: lru: ktransformers has eviction st",
    ),
    "not one of its options": (
        {"engine": "mixtral-offloading", "eviction": "fifo"},
        "eviction: fifo: mixtral-offloading has eviction lru, or lfu, or random, and nothing else",
    ),
    "at once": ({"engine": "llama.cpp", "beside": "yes"}, "beside: yes: llama.cpp has beside no, and nothing else"),
    "a parameter": (
        {"engine": "hybrimoe", "set": {"split.by": "share"}},
        "set: split.by=share: hybrimoe has makespan, and nothing else; leave it out, or give --engine-as-costs",
    ),
    "a group": ({"engine": "llama.cpp", "expert_group": "one"}, "expert_group: one: llama.cpp has expert-group all,"),
    "in prompts": ({"engine": "vllm-uva", "bulk": "stream"}, "bulk: stream: vllm-uva has bulk none, and nothing else"),
    "layers of slots": (
        {"engine": "freetoken", "cache": "layers:4"},
        "cache: layers:4: freetoken holds slots: cache must",
    ),
    "two knobs": ({"engine": "llama.cpp", "n_cpu_moe": 2, "cache": 3}, "cache: 3: llama.cpp holds whole layers"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_an_engine_cannot_do_is_refused_by_name(case: str, capsys: pytest.CaptureFixture[str]) -> None:
    fields, begin = REFUSED[case]
    with pytest.raises(SpecError) as refused:
        RunSpec.of({"trace": "t.npz", **fields})
    assert str(refused.value).startswith(begin) and "--engine-as-costs" in str(refused.value)
    assert run.main(flag_words({"trace": "mixtral.npz", **fields})) == 2
    assert capsys.readouterr().err == f"error: {refused.value}\n"
    if "n_cpu_moe" not in fields or "cache" not in fields:
        assert RunSpec.of({"trace": "t.npz", "engine_as_costs": True, **fields}).who_set == {"engine": {}, "you": {}}


def test_what_an_engine_sets_may_be_said() -> None:
    for name in BEHAVING:
        spec = RunSpec.of({"trace": "t.npz", "engine": name})
        assert RunSpec.of(spec.model_dump()) == spec
        assert RunSpec.of({"trace": "t.npz", "engine": name, "miss": spec.miss, "beside": spec.beside}) == spec


VALUES: dict[str, Any] = {
    "vram": "16GB", "context": 4096, "cache": "layers:3", "n_cpu_moe": 3, "override_tensor": "exps=CPU", "bulk": "none",
    "bulk_rows": "64", "miss": "fetch", "eviction": "lfu", "prefetch": "gate-lookahead", "prefill_chunk": 64,
    "beside": True, "defer": 2, "ahead": 2, "placement": "popular", "batch": 4, "calibration": 0.3,
    "set": {"cpu-admit.inserts": 3},
}  # fmt: skip


@given(st.sampled_from(catalog.names("engine")), st.sets(st.sampled_from(sorted(VALUES)), max_size=4))
def test_a_spec_is_what_was_asked_for_and_can_be_asked_for_again(name: str, names: set[str]) -> None:
    """What is given stands in the spec, what is not is the engine's or the default; and the spec comes back from what
    is saved of it, from the least that gives it, and from these as a command line."""
    fields = {"trace": "t.npz", "engine": name, **{each: VALUES[each] for each in names}}
    try:
        spec = RunSpec.of(fields)
    except SpecError as error:
        assert "--engine-as-costs" in str(error)
        assume(False)
    engine = behaving(name)
    sets = {} if engine is None else engine.sets
    for field, value in spec.model_dump().items():
        if field in fields and field != "set":
            assert value == fields[field]
        elif field not in ("cache", "set"):
            assert value in (sets.get(field, defaults()[field]), defaults()[field])
    assert RunSpec.of(spec.saved(("version",))) == spec and RunSpec.of(spec.asked()) == spec
    assert spec_of(run.parser().parse_args(flag_words(spec.asked()))) == spec
    assert json.loads(json.dumps(spec.saved()))["version"] == 3


def test_a_cache_that_the_engine_has_anyway_is_the_user_s_beside_a_card() -> None:
    spec = RunSpec.of({"trace": "t.npz", "engine": "vllm-uva", "vram": "16GB", "cache": "layers:0"})
    assert spec.who_set["you"] == {"cache": "layers:0"} and RunSpec.of(spec.asked()) == spec
    assert RunSpec.of({"trace": "t.npz", "engine": "vllm-uva", "vram": "16GB"}).cache == "fit"
    assert RunSpec.of({"trace": "t.npz", "engine": "vllm-uva"}).cache == "layers:0"


def test_what_no_engine_sets_is_free() -> None:
    assert set(FREE) <= {*defaults()}
    fields = {"batch": 2, "seed": 5, "machine": "simpy", "link_share": 0.5, "ram": "64GB"}
    for name in BEHAVING:
        spec = RunSpec.of({"trace": "t.npz", "engine": name, **fields})
        assert spec.who_set["you"] == {} and {each: getattr(spec, each) for each in fields} == fields


def test_whole_layers_in_a_file(tmp_path: Path) -> None:
    for name, slots in {"whole": [0, 8] * 16, "parts": [8] * 3 + [4] * 29}.items():
        (tmp_path / f"{name}.txt").write_text(" ".join(map(str, slots)))
    found, _ = simulate(
        RunSpec.of({**SAMPLE, "engine": "llama.cpp", "cache": str(tmp_path / "whole.txt"), "max_steps": 2})
    )
    assert (
        found["engine"]["residents"].startswith("16 of 32 MoE layers (0, 2, 4, 6")
        and "6, 28, 30) on the CPU" in (found["engine"]["residents"])
    )
    for name in ("llama.cpp", "hf-v5"):  # parts of a layer are nobody's who holds whole ones
        with pytest.raises(SpecError, match=rf"parts.txt: 4 slots in MoE layer 3; {name} holds whole layers, 0 or 8$"):
            prepared(engine=name, cache=str(tmp_path / "parts.txt"))
    assert prepared(engine="llama.cpp+cache", cache=str(tmp_path / "parts.txt")).plan.slots.tolist()[:4] == [8, 8, 8, 4]


def test_where_dense_parts_are_is_said_as_it_is() -> None:
    def where(**fields: Any) -> str:
        summary, _ = simulate(RunSpec.of({**SAMPLE, "engine": "llama.cpp", "max_steps": 2, **fields}))
        return str(summary["engine"]["words"]).partition(", miss")[0].removeprefix("llama.cpp b9000: ")

    on_cpu = "first 4 of 32 MoE layers on the CPU"
    assert where(n_cpu_moe=4, dense_on_host="layers:first:4") == f"{on_cpu}, dense parts too"
    assert (
        where(n_cpu_moe=4, dense_on_host="layers:4")
        == f"{on_cpu}, dense parts of the last 4 of 32 MoE layers on the CPU"
    )
    assert where(n_cpu_moe=0, dense_on_host="layers:first:8") == (
        "all experts on the GPU, dense parts of the first 8 of 32 MoE layers on the CPU"
    )
    assert where(override_tensor=r"blk\.1[0-9]\.ffn_.*_exps=CPU") == "10 of 32 MoE layers (10-19) on the CPU"
    assert where(n_cpu_moe=99) == "no experts on the GPU"  # llama.cpp's users say 99 for all


def test_engines_copy_whole_layers_however_far_ahead_and_run_prompts_at_once() -> None:
    for ahead in (0, 1, 2):
        assert prepared(engine="vllm-prefetch", ahead=ahead).rules.whole_layer
    for name in ("hf-v5", "hf-v4", "moe-infinity", "mixtral-offloading"):
        assert prepared(engine=name).spec.prefill_chunk >= 1_000_000


def test_what_never_leaves_the_gpu_is_not_kept_in_host_memory() -> None:
    """Of engines of whole layers; a cache engine keeps all experts there."""
    size = catalog.model("mixtral-8x7b").expert_bytes("q4-k-m")
    for name, layers in {"llama.cpp-no-mmap": 8, "llama.cpp": 8, "hf-v5": 8}.items():
        host = prepared(engine=name, cache="layers:first:24", ram="16GB").memory["host"]
        assert host["experts"] + host["page_locked"] == layers * 8 * size and host["fits"]
    assert prepared(engine="freetoken", ram="16GB").memory["host"]["page_locked"] == 256 * size


def test_mxfp4_files_keep_dense_weights_in_q8() -> None:
    engine = catalog.engine("llama.cpp")
    assert [engine.precision_of("dense", each) for each in ("mxfp4", "q4-k-m")] == ["q8", "q4-k-m"]
    assert (
        engine.precision_of("head", "mxfp4") == "q8"
        and catalog.engine("fused").precision_of("dense", "mxfp4") == "mxfp4"
    )


def test_what_fits_is_no_matter_of_the_prompts() -> None:
    chosen = {
        str(prepared(engine="llama.cpp", vram="16GB", context=400, as_decode=each).plan.slots) for each in (True, False)
    }
    assert len(chosen) == 1
    small, large = (
        prepared(engine="llama.cpp", vram="16GB", prefill_chunk=each).memory["reserve"] for each in (512, 2048)
    )
    assert large - small == 1536 * 4 * 32_000


def test_what_deals_slots_out_leaves_room_for_the_stages_of_layers_without() -> None:
    for more in ({}, {"miss": "split"}, {"engine": "llama.cpp", "engine_as_costs": True}):
        found = prepared(vram="8GB", placement="global-popular", calibration=0.5, **more)
        assert found.plan.slots.min() == 0 and found.memory["staging"] > 0 and found.memory["fits"]
    few = prepared(engine="fiddler", cache="3.2GB", calibration=0.5)  # fewer than layers: the most popular ones
    assert few.plan.slots.sum() == 3_200_000_000 // few.plan.expert_bytes < 32
    assert prepared(engine="fiddler", vram="8GB", calibration=0.5).memory["fits"]


def test_flags_win_over_a_saved_spec(tmp_path: Path) -> None:
    def config(*flags: str, **fields: Any) -> RunSpec:
        saved = RunSpec.of({**SAMPLE, **fields}).saved()
        lines = [f"{key} = {json.dumps(value)}" for key, value in saved.items() if value not in (None, {})]
        (tmp_path / "c.toml").write_text("\n".join(lines))
        return spec_of(run.parser().parse_args(["--config", str(tmp_path / "c.toml"), *flags]))

    fit = {"engine": "llama.cpp", "vram": "16GB"}
    assert config("--n-cpu-moe", "4", **fit) == RunSpec.of({**SAMPLE, **fit, "n_cpu_moe": 4})
    assert config("--bulk", "none", **fit) == RunSpec.of({**SAMPLE, **fit, "bulk": "none"})
    for name in ("ollama", "ik_llama.cpp", "ideal"):
        assert config("--engine", name, **fit) == RunSpec.of({**SAMPLE, **fit, "engine": name})
    layers = {"engine": "llama.cpp", "n_cpu_moe": 16}
    assert config("--cache", "layers:20", **layers) == RunSpec.of(
        {**SAMPLE, "engine": "llama.cpp", "cache": "layers:20"}
    )


def test_an_engine_s_own_layers_are_nobody_s_where_a_card_says_it(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('like = "llama.cpp"\n[sets]\nn_cpu_moe = 10\n[sources]\nn_cpu_moe = "x"\n')
    theirs = RunSpec.of({"trace": "t.npz", "engine": "llama.cpp"}).who_set["engine"]
    mine = RunSpec.of({"trace": "t.npz", "engine": str(path)}).who_set
    assert mine == {"engine": theirs | {"n_cpu_moe": 10}, "you": {}}
    for more in ({"vram": "16GB"}, {"cache": "layers:20"}, {"n_cpu_moe": 3}):
        assert RunSpec.of({"trace": "t.npz", "engine": str(path), **more}).who_set["you"] == {
            name: value for name, value in more.items() if name != "vram"
        }


def test_a_saved_spec_is_a_config(tmp_path: Path) -> None:
    spec = RunSpec.of({**SAMPLE, "engine": "ktransformers", "vram": "16GB", "defer": 1})
    lines = [f"{key} = {json.dumps(value)}" for key, value in spec.saved().items() if value not in (None, {})]
    (tmp_path / "c.toml").write_text("\n".join(lines))
    assert spec_of(run.parser().parse_args(["--config", str(tmp_path / "c.toml")])) == spec
    (tmp_path / "c.toml").write_text('trace = "t.npz"\nversion = 2')
    with pytest.raises(SpecError, match=r"c.toml: version: must be 3; what the fields of another mean may differ$"):
        spec_of(run.parser().parse_args(["--config", str(tmp_path / "c.toml")]))


# --- an engine of one's own ---

OWN = {
    "a field that no run has": (
        '[sets]\nmis = "cpu"\n[sources]\nmis = "x"',
        "engine mine: sets: 'mis' is unknown; did",
    ),
    "a value that no run has": ('[sets]\nbulk = "x"\n[sources]\nbulk = "x"', "engine mine.toml: sets.bulk: 'x': "),
    "no source": ('[sets]\nmiss = "cpu"', "mine.toml: sources.miss: missing; must say where sets.miss comes from"),
    "a source for what is like another": (
        'like = "llama.cpp"\n[sets]\nbeside = true',
        "mine.toml: sources.beside: missi",
    ),
    "no source in an empty one": ('[sets]\nmiss = "cpu"\n[sources]\nmiss = ""', "mine.toml: sources.miss: missing"),
    "the work": (
        "[sets]\nseed = 3\n[sources]\nseed = 'x'",
        "engine mine: sets.seed: is no behaviour of an engine; leave",
    ),
    "another spelling": (
        '[sets]\nmiss = "cpu"\nbulk = "cpu"\nbulk_rows = 64\n[sources]\nmiss = "x"\nbulk = "x"\nbulk_rows = "x"',
        "engine mine.toml: sets.bulk_rows: 64: must be written as '64'",
    ),
    "an option that is a word": (
        '[options]\nmiss = "cpu-admit"',
        "mine.toml: options.miss = 'cpu-admit': must be a list",
    ),
    "a name of two lines": ('name = "a\\nb"\n[options]\ncache = "any"', "mine.toml: name = 'a\\nb': "),
    "like a file": (
        'like = "other.toml"',
        "mine.toml: like = 'other.toml': must be an engine of the catalog, not a file",
    ),
    "parameters that are none": (
        "[sets]\nset = 3\n[sources]\nset = 'x'",
        "mine.toml: sets.set = 3: must be a table of",
    ),
    "a parameter of nobody": (
        "[sets]\nset = { decay = 3 }\n[sources]\nset = 'x'",
        "mine.toml: sets.set.decay = 3: must",
    ),
    "a table of parameters": (
        "[sets]\nset = { cpu-admit = { inserts = 3 } }\n[sources]\nset = 'x'",
        "mine.toml: sets.set.cpu-admit = {'inserts': 3}: must be \"POLICY.PARAM\" = VALUE, the name in quotes",
    ),
    "like a number": ("like = 3", "mine.toml: like = 3: must be the name of an engine of the catalog"),
    "like nobody": ('like = "nobody"', "engine 'nobody': not in the catalog"),
    "an option of what": ("[options]\nbesides = [true]", "engine mine: options: 'besides' is unknown; did you mean be"),
    "a knob of what": ('knob = "middle"', "mine.toml: knob = 'middle': should be 'slots', 'per-layer',"),
}


@pytest.mark.parametrize("case", OWN)
def test_a_wrong_engine_of_one_s_own_is_one_line(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text, begin = OWN[case]
    Path("mine.toml").write_text(text + "\n")
    with pytest.raises(UserError) as error:
        prepare(RunSpec.of({"trace": "mixtral.npz", "engine": "mine.toml"}))
    assert str(error.value).startswith(begin) and "\n" not in str(error.value)


def test_an_engine_like_another(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(
        'like = "llama.cpp"\n[sets]\nbulk_rows = "8"\n[options]\nbeside = [true]\n[sources]\nbulk_rows = "x"'
    )
    mine, theirs = behaving(str(path)), behaving("llama.cpp")
    assert mine is not None and theirs is not None
    assert mine.sets == theirs.sets | {"bulk_rows": "8"} and mine.options == theirs.options | {"beside": [True]}
    assert mine.layer_ns == theirs.layer_ns
    assert RunSpec.of({"trace": "t.npz", "engine": str(path), "beside": "yes"}).beside
    with pytest.raises(CatalogError, match="not in the catalog"):
        catalog.engine("mine")


# --- what fits a card ---


def test_layers_that_fit_by_hand() -> None:
    """Mixtral at q4-k-m in 16 GB: what stays (dense weights, KV entries, 8 experts of staging, 1,324 MiB and the logits
    of the largest step's rows) and whole layers of 8 experts in what is left."""
    fits = prepared(engine="llama.cpp", vram="16GB", max_steps=5)
    model, line = catalog.model("mixtral-8x7b"), fits.memory
    size, rows = model.expert_bytes("q4-k-m"), 512  # those of an ubatch, whatever the trace's prompts
    assert line["kv"] == 32 * 4096 * (112 + 4) and line["staging"] == 8 * size
    assert line["reserve"] == 1324 * 2**20 + rows * 4 * 32_000
    left = 16 * 10**9 - sum(line[part] for part in ("dense", "kv", "staging", "reserve"))
    n = left // (8 * size)
    assert fits.plan.slots.tolist() == [8] * n + [0] * (32 - n) and n == 14 and line["slots"] == n * 8 * size
    assert line["gpu"] == 16 * 10**9 and line["fits"]
    longer = prepared(engine="llama.cpp", vram="16GB", max_steps=5, context=32_768).memory
    assert longer["kv"] == 32 * 4096 * 32_768 and longer["slots"] == (n - 5) * 8 * size and longer["fits"]


def test_kv_entries_at_another_precision_by_hand() -> None:
    """Mixtral keeps 4,096 bytes a token and layer in bf16; in q8, 34 bytes for 32 numbers, 2,176: less memory, and less
    to read at each step."""
    plain, small = (prepared(kv_precision=name, context_offset=30_000, max_steps=4) for name in ("bf16", "q8"))
    assert plain.memory["kv"] == 32 * 4096 * plain.context and small.memory["kv"] == 32 * 2176 * plain.context
    reads = (each.plan.costs.dense_ns[each.plan.costs.cost_class[-1], 0] for each in (plain, small))
    less = 1920 * plain.context / catalog.hardware("rtx4090").gpu.memory_rate()  # a decode step reads all of them
    assert next(reads) - next(reads) == pytest.approx(less, abs=1)
    with pytest.raises(CatalogError, match="precision 'q0': not in the catalog"):
        prepared(kv_precision="q0")


def test_slots_that_fit_by_hand() -> None:
    """MoE-Infinity takes 0.75 of 16 GB and keeps 300 MiB free; what is left is slots of one pool."""
    fits = prepared(engine="moe-infinity", vram="16GB", max_steps=5)
    line, size = fits.memory, catalog.model("mixtral-8x7b").expert_bytes("q4-k-m")
    left = 12 * 10**9 - line["dense"] - line["kv"] - 300 * 2**20
    assert fits.plan.slots.tolist() == [left // size] and line["staging"] == 0 and line["fits"]


def test_where_all_fits_nothing_is_staged() -> None:
    for name in BEHAVING:
        found = prepared(
            engine=name, vram="100GB", max_steps=2, **(CALIBRATED if name in ("fiddler", "moe-infinity-paper") else {})
        )
        assert found.plan.slots.sum() == 256, name
        staging = found.engine.staging_experts * found.plan.expert_bytes
        assert found.memory["staging"] == staging and found.memory["fits"]
        assert any(note.startswith("100.00 GB is more than the 25.25 GB") for note in simulate(found.spec)[0]["notes"])


@given(st.sampled_from(BEHAVING), st.integers(4, 30), st.sampled_from([None, 1000, 20_000]), st.sampled_from([1, 3]))
def test_what_is_chosen_fits_and_no_more_does(name: str, gigabytes: int, context: int | None, batch: int) -> None:
    """The law of every knob: the memory of what is chosen is at most what the engine takes of the card; with one more
    layer, or slot, it is more."""
    more = {"context": context} if context else {}
    fields = {"engine": name, "vram": f"{gigabytes}GB", "batch": batch, "max_steps": 6, "calibration": 0.5, **more}
    try:
        found = prepared(**fields)
    except SpecError as error:
        assert re.match(r"vram: .* needs --vram [\d.]+GB at least", str(error))
        least = re.search(r"needs --vram ([\d.]+)GB", str(error))
        assert least is not None and float(least[1]) > gigabytes
        assert prepared(**fields | {"vram": f"{least[1]}GB"}).memory["fits"]
        return
    room, line = gigabytes * 1e9 * found.engine.memory_share, found.memory
    assert needed(line) <= room and line["gpu"] == gigabytes * 10**9
    if line["slots"] < 256 * found.plan.expert_bytes:
        units = {"slots": 1, "per-layer": 32, "first": 8, "last": 8}
        step = units[found.engine.knob] * found.plan.expert_bytes
        dense = 0
        if found.spec.dense_on_host:
            whole = prepared(**fields | {"vram": "1TB"}).memory
            dense = sum(whole[part] - line[part] for part in ("dense", "kv")) // len(found.costed.on_host)
        assert needed(line) + step + dense > room


def test_the_card_alone_says_what_fits_where_nobody_says_more() -> None:
    assert prepared(vram="16GB").plan.slots.sum() == prepared(cache="fit", vram="16GB").plan.slots.sum()
    plain = prepared(vram="16GB")
    line = plain.memory
    left = 16 * 10**9 - line["dense"] - line["kv"]
    assert plain.plan.slots.sum() == (left - line["reserve"]) // plain.plan.expert_bytes
    assert prepared(vram="16GB", cache=2).plan.slots.tolist() == [2] * 32  # as asked; --vram is what it is held against
    assert not prepared(vram="3GB", cache=2).memory["fits"]


NOT_FITTED = {
    "no size": (
        {"hardware": "h.toml"},
        "vram: missing: h.toml does not say how much it has; give --vram 24GB, or --cache",
    ),
    "no model": (
        {"hardware": "h.toml", "trace": "t.npz", "vram": "4GB"},
        "cache: fit: the sizes of m are not known",
    ),
    "a short context": ({"context": 100}, "context: 100: the run has requests of 388 tokens; must be as many"),
    "a unit": ({"vram": "24"}, "vram: '24': must be bytes with a unit, such as 24GB"),
    "nothing": ({"vram": "0GB"}, "vram: '0GB': must be above 0"),
    "too small": ({"vram": "2GB"}, "vram: 2.00 GB: mixtral-8x7b at q4-k-m takes 3.39 GB (dense weights 1.03"),
}


@pytest.mark.parametrize("case", NOT_FITTED)
def test_what_cannot_be_fitted_is_said(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.gen import trace_of
    from traces.format import npz

    monkeypatch.chdir(tmp_path)
    Path("h.toml").write_text(
        "[fixed]\ndense_ns = 6\ndecide_ns = 0\nexpert_ns = 5\ntransfer_ns = 12\ncpu_expert_ns = 9\n"
    )
    npz.write(Path("t.npz"), trace_of([[[0, 1]]], 4))
    fields, begin = NOT_FITTED[case]
    with pytest.raises(SpecError) as error:
        prepared(engine="llama.cpp", **fields)
    assert str(error.value).startswith(begin)


# --- sweeps and old results ---


def test_a_sweep_over_engines_gives_each_the_parameters_of_its_own_policies() -> None:
    tables = {
        "trace": "t.npz", "engine": ["llama.cpp", "llama.cpp+cache", "freetoken"], "vram": "16GB",
        "set": {"cpu-admit": {"inserts": [1, 2]}},
    }  # fmt: skip
    runs = expand(tables)
    assert [(each.spec.engine, each.spec.set.get("cpu-admit.inserts")) for each in runs if each.spec is not None] == [
        ("llama.cpp", None), ("llama.cpp+cache", 1), ("llama.cpp+cache", 2), ("freetoken", None),
    ]  # fmt: skip
    (wrong,) = expand({"trace": "t.npz", "engine": "hf-v5", "miss": "cpu"})
    assert wrong.error.startswith("miss: cpu: hf-v5 has miss stream")


def test_results_of_before_are_not_set_beside_new_ones_without_saying_it() -> None:
    from tests.runs_by_hand import made

    spec = {"engine": "llama.cpp"}
    notes = compare([made("old", spec=spec | {"version": 2}), made("new", spec=spec | {"version": 3})]).notes
    assert "MIXED spec version: 2 and 3: these are no alternatives of each other" in notes
    with pytest.raises(SpecError, match=r"^miss: fetch: llama\.cpp has miss cpu"):
        RunSpec.of({"trace": "t.npz", "engine": "llama.cpp", "eviction": "lru", "miss": "fetch"})
