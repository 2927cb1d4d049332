"""Transfers in chunks (sim.core.chunks): what a demand may pass goes in parts, on every machine and on a device."""

from collections import Counter
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime.device.cpu import CpuPort
from runtime.device.virtual import shuffled, timed
from runtime.experts.store import piece
from runtime.replaying.lockstep import LockStep, check, in_lock_step
from runtime.replaying.machine import Machine, refuse
from sim import catalog
from sim.core import log
from sim.core.plan import CAUSES, OnMiss, Plan
from sim.costs.roofline import chunk_ns
from sim.errors import SpecError
from sim.machines import compiled, discrete
from sim.machines.record import RunRecord
from sim.outcome.bounds import applicable, bounds, executed_bounds
from sim.prepare import prepare
from sim.simulation import simulate as simulated
from sim.spec import RunSpec
from tests import laws_on_miss
from tests.devices import Checked, difference, machine_on, store_for
from tests.groups import MACHINES, as_groups, fingerprint, lines, rows, run_groups
from tests.on_miss_plans import plan_in_chunks_of, rule
from tests.plans import plan
from tests.reference import simulate
from tests.test_agreement import check as differs
from tests.test_bounds import law_plan, span_ns
from tests.test_reference import Run, make, predicted

RUNS: dict[str, Run] = {"reference": simulate, **{name: partial(run_groups, name) for name in MACHINES}}
SEEDS = 2000
CHUNKS = 10
TIMES = ("committed_ns", "started_ns", "landed_ns")
UNCUT = np.zeros((2, 2), np.int64)


@pytest.fixture(params=sorted(RUNS))
def run(request: pytest.FixtureRequest) -> Run:
    return RUNS[request.param]


def cut(made: Plan, chunks: int, chunk: Any, **on: Any) -> Plan:
    """The plan with experts of 8 bytes in so many chunks; chunk: ns of (a full one, the last), or [idle, following]."""
    ns = np.asarray(chunk, np.int64)
    run_ns = np.outer(made.costs.transfer_ns, np.arange(made.n_experts + 1))
    found = OnMiss(run_ns, np.zeros(len(made.step_prefill), bool), chunk_bytes=-(-8 // chunks), **on)
    return replace(made, expert_bytes=8, on_miss=replace(found, chunk_ns=np.broadcast_to(ns, (2, 2)).copy()))


# --- by hand ----------------------------------------------------------------------------------------------------------


def passing(chunks: int = 4, tail: int = 0) -> Plan:
    """Two layers of three experts, two slots each, a dense part of 20, an expert of 5, a transfer of 100, a chunk of a
    quarter of 30. While token 0 is in layer 0, expert 2 of layer 1 is fetched ahead for it, in vain; token 1 misses
    expert 2 of layer 0 and then wants that of layer 1. tail: ns at the end of each step."""
    wanted = [[[0], [1]], [[2], [2]]]
    ahead = predicted((2, 2), {(1, 0, 1): [2]})
    made = make(wanted, 3, [2, 2], [0, 1, 3, 4], costs={"dense": 20, "dense_after": tail}, prefetch=ahead)
    return cut(made, chunks, (30, 30))


def test_a_demand_passes_a_prefetch_behind_its_second_chunk(run: Run) -> None:
    """Token 0: routed at 20, the first chunk goes from 20 to 50, with it expert 0 of layer 1, the older; 0 runs to 25,
    and 1 in layer 1 from 45 to 50. Second chunk 50 to 80. Token 1 is routed at 70 and misses 2: no chunk is stopped, so
    its demand goes at 80, before the two chunks that are left, and lands at 180 (whole: the prefetch would land at 120,
    the demand at 220); it runs to 185. Chunks from 180 to 210 and 240; layer 1 is routed at 205, late for 35 ns."""
    result = run(passing())
    prefetch, demand = rows(result, "transfers")
    assert [prefetch[name] for name in (*TIMES, "victim")] == [20, 20, 240, 3]
    assert [demand[name] for name in (*TIMES, "victim")] == [80, 80, 180, 1]
    chunks = lines(result, "chunks", "transfer", "number", *TIMES)
    assert chunks == [(0, 0, 20, 20, 50), (0, 1, 50, 50, 80), (0, 2, 180, 180, 210), (0, 3, 210, 210, 240)]
    stalls = lines(result, "visits", "routed_ns", "end_ns", "late", "stall_demand_ns", "stall_late_ns")
    assert stalls == [(20, 25, 0, 0, 0), (45, 50, 0, 0, 0), (70, 185, 0, 110, 0), (205, 245, 1, 0, 35)]
    totals = result["totals"]
    assert (totals["time_ns"], totals["link_busy_ns"], totals["chunks"], totals["link_transfers"]) == (245, 220, 4, 2)
    events = [prefetch["event_committed"], *result["chunks"]["event_committed"][1:], *result["chunks"]["event"][:-1]]
    assert len({*events, prefetch["event"], demand["event_committed"], demand["event"]}) == 3 + 3 + 1 + 3
    assert result["chunks"]["event"][-1] == prefetch["event"] and prefetch["promoted"] == 0


def test_whole_it_does_not(run: Run) -> None:
    """The same: the prefetch from 20 to 120, the demand from 120 to 220; then 2 of layer 1 is a hit."""
    result = run(replace(passing(), on_miss=None))
    assert lines(result, "transfers", *TIMES) == [(20, 20, 120), (120, 120, 220)]
    assert result["totals"]["time_ns"] == 250 and "chunks" not in result


def test_what_the_layer_waits_for_goes_before_its_demand(run: Run) -> None:
    """As above, but token 0 wants 2 of layer 1 itself, and 0, which went for it: late, and a demand. Routed at 45: the
    chunks to 80, 110, 140, then the demand to 240; late 45 to 140, expert 2 to 145, demand 145 to 240."""
    made = cut(replace(passing(), experts=np.array([[[0, -1], [2, 0]]], np.int16), on_miss=None), 4, (30, 30))
    made = replace(made, step_offset=np.array([0, 1]), step_row=made.step_row[:1], step_prefill=made.step_prefill[:1])
    made = replace(made, costs=replace(made.costs, cost_class=np.zeros(1, np.int32)))
    assert made.on_miss is not None and made.prefetch is not None
    made = replace(made, on_miss=replace(made.on_miss, step_bulk=np.zeros(1, bool)))
    made = replace(
        made, prefetch=replace(made.prefetch, lists=made.prefetch.lists[:, :1], row=made.prefetch.row[:, :1])
    )
    result = run(made)
    assert lines(result, "transfers", "cause", *TIMES) == [(1, 20, 20, 140), (0, 140, 140, 240)]
    visit = rows(result, "visits")[1]
    assert [visit[name] for name in ("stall_late_ns", "stall_demand_ns", "end_ns")] == [95, 95, 245]


def test_a_demand_without_a_slot_lets_the_rest_go_on(run: Run) -> None:
    """Layer 1 has one slot. It is on its way to 2 when 1 is wanted: 1 cannot go before 2 has landed and gone again.
    Routed at 45; chunks to 140; 1 from 140 to 240, in 2's slot."""
    made = cut(
        make(
            [[[0], [1]]],
            3,
            [2, 1],
            [0, 1, 3],
            costs={"dense": 20},
            prefetch=predicted((1, 2), {(1, 0, 1): [2]}),
        ),
        4,
        (30, 30),
    )
    result = run(made)
    assert lines(result, "transfers", "cause", "victim", *TIMES) == [(1, 3, 20, 20, 140), (0, 5, 140, 140, 240)]
    assert rows(result, "visits")[1]["stall_demand_ns"] == 195


def test_deeper_links_take_the_next_chunk_behind_the_last(run: Run) -> None:
    """Depth 2: a chunk takes 30 on an idle link, behind another 25, the last one 10. From 20: 50, 75, 100, 110."""
    made = passing(tail=100)
    made = cut(replace(made, costs=replace(made.costs, commit_depth=2)), 4, [[30, 15], [25, 10]])
    made = replace(made, experts=np.array([[[0], [1]], [[1], [1]]], np.int16))
    result = run(made)
    assert lines(result, "chunks", *TIMES) == [(20, 20, 50), (20, 50, 75), (50, 75, 100), (75, 100, 110)]
    assert result["totals"]["link_busy_ns"] == 90


def test_a_remote_read_passes_too(run: Run) -> None:
    """Layer 1 is read where it lies: routed at 45, the chunk under way lands at 50; then the link is the GPU's for 100,
    and the three chunks that are left follow from 150 on."""
    made = passing(tail=100)
    made = replace(made, experts=np.array([[[0], [0]], [[1], [1]]], np.int16), miss=rule("remote"))
    result = run(made)
    assert lines(result, "transfers", "place", *TIMES)[1] == (2, 50, 50, 150)
    assert result["chunks"]["landed_ns"] == [50, 180, 210, 240]


def test_the_end_of_the_run_leaves_it_unfinished(run: Run) -> None:
    """Token 0 alone, over at 50: the first chunk has landed, the second is not begun at that instant."""
    made = passing()
    one = replace(
        make([[[0], [1]]], 3, [2, 2], [0, 1, 3, 4], costs={"dense": 20, "dense_after": 10}), prefetch=made.prefetch
    )
    assert one.prefetch is not None
    ahead = replace(one.prefetch, lists=one.prefetch.lists[:, :1], row=one.prefetch.row[:, :1])
    result = run(cut(replace(one, prefetch=ahead), 4, (30, 30)))
    assert lines(result, "transfers", *TIMES, "outcome") == [(20, 20, -1, 3)]
    assert lines(result, "chunks", *TIMES) == [(20, 20, 50), (50, 50, -1)]
    assert (result["totals"]["time_ns"], result["totals"]["link_busy_ns"], result["totals"]["chunks"]) == (60, 40, 1)


# --- every machine ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_the_machines_agree_with_the_reference(chunk: int) -> None:
    for seed in range(chunk * SEEDS // CHUNKS, (chunk + 1) * SEEDS // CHUNKS):
        assert differs(plan_in_chunks_of(seed)) is None, seed


@pytest.mark.parametrize("first", range(0, 300, 60))
def test_the_laws_hold(run: Run, first: int) -> None:
    for seed in range(first, first + 60):
        made = replace(plan_in_chunks_of(seed), rerank=None)
        laws_on_miss.check_all(made, run(made))


def test_the_plans_reach_all_that_chunks_can_do() -> None:
    found: Counter[str] = Counter()
    for seed in range(400):
        made = plan_in_chunks_of(seed)
        result = simulate(made)
        transfers = rows(result, "transfers")
        story = laws_on_miss.crossings(made, result)
        for (a, *_), (b, *_) in pairwise(story):
            if "number" in a and not a["last"]:
                found["passed by a remote"] += b["place"] == 2
                found["passed by a demand"] += "number" not in b
                found["goes on"] += b.get("transfer") == a["transfer"]
                found["behind itself"] += b.get("transfer") == a["transfer"] and b["started_ns"] > b["committed_ns"]
        for row in result["chunks"]["transfer"]:
            found[f"{CAUSES[transfers[row]['cause']]} to {transfers[row]['place']}"] += 1
        found["unfinished"] += -1 in result["chunks"]["landed_ns"]
    wanted = {"prefetch to 0", "background to 0", "admission to 0", "stream to 1", "unfinished", "behind itself"}
    wanted |= {"passed by a remote", "passed by a demand", "goes on"}
    assert {name for name, times in found.items() if times >= 20} == wanted


def test_with_chunks_as_large_as_an_expert_nothing_changes() -> None:
    """Of plans: a chunk that no expert exceeds, and none; but for the words of the plan the same bytes."""
    for seed in range(100):
        made = plan_in_chunks_of(seed)
        assert made.on_miss is not None
        whole = replace(made, on_miss=replace(made.on_miss, chunk_bytes=made.expert_bytes))
        never = replace(made, on_miss=replace(made.on_miss, chunk_bytes=0, chunk_ns=UNCUT))
        assert whole.chunks == never.chunks == 1 < made.chunks
        one, other = (compiled.run(each, True) for each in (whole, never))
        assert fingerprint(one) == fingerprint(other) and "chunks" not in {*one.groups, *one.counters}


def test_what_is_never_ahead_is_never_cut() -> None:
    """Without prefetcher, admission, background and layers ahead a run with chunks is one without."""
    seen = 0
    for seed in range(400):
        made = replace(plan_in_chunks_of(seed), prefetch=None)
        assert made.on_miss is not None
        if made.miss.name == "cpu-admit" or made.on_miss.ahead or "background" in made.miss.name or made.miss.kind == 4:
            continue
        never = replace(made, on_miss=replace(made.on_miss, chunk_bytes=0))
        one, other = compiled.run(made, True), compiled.run(never, True)
        assert one.counters.pop("chunks") == 0 and len(one.groups.pop("chunks")["event"]) == 0
        assert fingerprint(one) == fingerprint(other)
        seen += 1
    assert seen > 50


class Counted(discrete.Machine):
    """The simpy machine, which counts after each commit and landing what is under way."""

    behind: Counter[int]

    def commit(self, event: Any) -> None:
        super().commit(event)
        self.look()

    def landed(self, event: Any = None) -> None:
        super().landed(event)
        self.look()

    def look(self) -> None:
        s, rules = self.s, self.rules
        assert rules is not None
        on_link = {int(s.flight[(s.link.flight_head + i) % len(s.flight)]) for i in range(s.link.n_flight)}
        assert s.link.n_flight + s.link.n_behind == len(on_link | ({rules.run.rest} - {-1}))
        self.behind[s.link.n_behind] += 1


def test_what_a_user_sees_as_under_way_is_each_expert_once() -> None:
    """Whatever of it is on the link, and whatever is not yet."""
    behind: Counter[int] = Counter()
    for seed in range(80):
        machine = Counted(plan_in_chunks_of(seed), False)
        machine.behind = behind
        machine.env.run(until=machine.env.process(machine.run()))
    assert min(behind[-1], behind[0], behind[1]) > 100


# --- bounds -----------------------------------------------------------------------------------------------------------


def lossless_in_chunks(seed: int) -> Plan:
    """Of the plans of the bounds' own law, cut."""
    made, rng = law_plan(seed), np.random.default_rng([seed, 19])
    full = rng.integers(0, 40, (2, 1))
    ns = np.concatenate([full, rng.integers(0, full + 1)], axis=1)
    run_ns = np.outer(made.costs.transfer_ns, np.arange(made.n_experts + 1))
    on = OnMiss(run_ns, np.zeros(len(made.step_prefill), bool), chunk_bytes=4, chunk_ns=ns)
    return replace(made, expert_bytes=int(rng.integers(5, 21)), on_miss=on)


def test_no_bound_exceeds_what_a_run_took() -> None:
    """Of lossless plans, and of all that an engine does on a miss."""
    reached: Counter[str] = Counter()
    for made in (drawn(seed) for drawn in (lossless_in_chunks, plan_in_chunks_of) for seed in range(1500)):
        record = compiled.run(made)
        least = bounds(made) | executed_bounds(made, record)
        for name in applicable(made):
            landed = sum(record.counters[f"landed_{cause}"] for cause in CAUSES)
            took = landed if name == "loads" else span_ns(made, record)
            assert 0 <= least[name] <= took, name
            reached[name] += least[name] == took
    assert min(reached[name] for name in ("loads", "compute_ns", "lossless_ns", "executed_ns")) > 0


def test_a_chunk_that_costs_less_than_its_share_lowers_the_bound() -> None:
    """One expert missing, of one layer: dense 10, then 100 whole or 2 + 2 chunks of 20, and 5: 55, not 115."""
    made = plan([[[1]]], 2, [1], dense=10, expert=5, transfer=100)
    assert bounds(made)["link_ns"] == 115
    assert bounds(cut(made, 2, (20, 20)))["link_ns"] == 10 + 40 + 5
    assert bounds(cut(made, 2, (60, 60)))["link_ns"] == 115


def test_after_a_warm_up_one_may_be_sent_in_part() -> None:
    """Of three experts one may be there; of the two to come, 100 each, one may be about to land when the counted step
    begins, and one sent but for its last chunk."""
    steps = [[0], [1, 2, 3]]
    made = plan([[[0]], [[1]], [[2]], [[3]]], 4, [1], steps, dense=10, expert=5, transfer=100, warmup_steps=1)
    assert bounds(made)["link_ns"] == 100 + 5
    assert bounds(cut(made, 2, (60, 60)))["link_ns"] == 5


# --- on a device ------------------------------------------------------------------------------------------------------


def replayed(first: int, last: int) -> list[tuple[int, Plan]]:
    """Plans that the torch machine does not refuse."""
    out = []
    for seed in range(first, last):
        made = plan_in_chunks_of(seed)
        try:
            refuse(made)
        except SpecError:
            continue
        out.append((seed, made))
    return out


@pytest.mark.parametrize("first", range(0, 600, 150))
def test_in_simulated_time_the_torch_machine_equals_the_compiled_one(first: int) -> None:
    """To the nanosecond, event by event, with a warm-up too; at the end every slot holds its expert."""
    for seed, made in replayed(first, first + 150):
        made = replace(made, warmup_steps=1) if seed % 4 == 0 and len(made.step_prefill) > 2 else made
        machine = machine_on(made, timed())
        assert difference(compiled.run(made, True), machine.run()) is None, seed
        assert machine.store.wrong_slots(machine.residents()) == [], seed


@pytest.mark.parametrize("first", range(0, 300, 100))
def test_in_any_order_and_in_lock_step(first: int) -> None:
    """A run in any legal order is right, and decides as the core alone does; a simulated run can be followed."""
    for seed, made in replayed(first, first + 100):
        record = compiled.run(made, True)
        assert check(made, record).equal, seed
        assert check(made, machine_on(made, shuffled(seed)).run()).equal, seed
        followed, outcome = in_lock_step(machine_on(made, shuffled(seed + 1), order=LockStep.of(record)))
        assert outcome.equal and followed is not None, (seed, outcome)
        assert outcome.compared["chunks"] == 4 * len(record.groups["chunks"]["event"])


@pytest.mark.parametrize("column", ["event", "event_committed", "number"])
def test_a_record_with_another_order_of_chunks_is_noticed(column: str) -> None:
    made = replace(passing(), on_miss=passing().on_miss)
    record = compiled.run(made, True)
    values = record.groups["chunks"][column].copy()
    values[1], values[2] = values[2], values[1]
    changed = replace(record, groups=record.groups | {"chunks": record.groups["chunks"] | {column: values}})
    assert check(made, record).equal and not check(made, changed).equal


def test_a_record_without_its_chunks_is_refused() -> None:
    made = passing()
    record = compiled.run(made, True)
    whole = replace(record, groups={name: group for name, group in record.groups.items() if name != "chunks"})
    with pytest.raises(SpecError, match="a run of the plan has visits, answers, transfers, executions, chunks"):
        check(made, whole)


def test_bytes_go_where_they_belong() -> None:
    """On a real clock, with real bytes: every kernel finds all of its expert, and so does the end."""
    made = passing(3)
    with CpuPort(link_gbps=1.0, link_latency_us=0.0) as port:
        store = store_for(made, port)
        machine = Machine(made, port, store, Checked(store))
        record = machine.run()
        assert record.counters["landed_prefetch"] + record.counters["unfinished"] >= 1
        assert store.wrong_slots(machine.residents()) == []
    for seed in range(20):
        machine = machine_on(made, shuffled(seed))
        machine.run()
        assert machine.store.wrong_slots(machine.residents()) == []


def test_pieces_leave_nothing_out() -> None:
    import torch

    for size in (1, 7, 8, 1000):
        for chunks in (2, 3, 7):
            data, share = torch.arange(size), 1 / chunks
            parts = [piece(data, i * share, 1.0 if i == chunks - 1 else (i + 1) * share) for i in range(chunks)]
            assert torch.equal(torch.cat(parts), data)


def test_a_slot_filled_in_part_is_not_taken_for_its_expert() -> None:
    """A run that ends meanwhile leaves parts of two experts in the slot; the next one copies it anew."""
    with CpuPort(link_gbps=1.0) as port:
        store = store_for(passing(), port)
        store.fetch_together([5], [2], part=(0.0, 0.25)).wait()
        assert store.holds[2] is None
        store.place({3: 2})
        assert store.wrong_slots({3: 2}) == []


# --- what may be asked, and what it costs -----------------------------------------------------------------------------


def test_a_chunk_is_a_transfer_of_one_copy() -> None:
    """4 MB over PCIe 3 x16 as the catalog has it, in chunks of 1.5 MB: two of them, and 1 MB."""
    hardware, engine = catalog.hardware("rtx4090"), catalog.engine("mixtral-offloading")
    link, size, chunk = hardware.link_for(engine.page_locked), 4_000_000, 1_500_000
    found = chunk_ns(hardware, engine, size, chunk, np.zeros(2, np.int64))
    own = (2 if engine.write_back else 1), engine.transfer_ns / hardware.host.single_thread  # type: ignore[union-attr]
    for row, set_up in enumerate((link.setup_ns, link.follow_setup_ns)):
        for column, part in enumerate((chunk, 1_000_000)):
            moving = set_up + link.per_copy_ns + part / link.rate(part)
            assert found[row, column] in (round(own[0] * moving + own[1]), round(own[0] * moving + engine.transfer_ns))
    assert chunk_ns(hardware, engine, size, 0, np.zeros(2, np.int64)).tolist() == [[0, 0], [0, 0]]


FIXED = "[fixed]\ndense_ns = 10\nexpert_ns = 5\ntransfer_ns = 100\ndecide_ns = 1\nexpert_bytes = 10\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "h.toml").write_text(FIXED)
    (tmp_path / "set-up.toml").write_text(FIXED + "transfer_setup_ns = 20\n")
    return tmp_path


def asked(**fields: Any) -> RunSpec:
    return RunSpec.of({"trace": "mixtral.npz", "max_steps": 12, "prefetch": "gate-lookahead", **fields})


@pytest.mark.usefixtures("folder")
def test_fixed_durations_say_what_is_set_up() -> None:
    """20 + 80 x 4/10 = 52, and of the remaining 2 bytes 36; without a set-up they are refused."""
    plan_ = prepare(asked(hardware="set-up.toml", transfer_chunk="4B")).plan
    assert plan_.on_miss is not None and plan_.chunks == 3
    assert plan_.on_miss.chunk_ns.tolist() == [[52, 36], [52, 36]]
    with pytest.raises(
        SpecError, match=r"^transfer_chunk: 4B: \[fixed\] does not say .* needs transfer_setup_ns there$"
    ):
        prepare(asked(hardware="h.toml", transfer_chunk="4B"))
    Path("more.toml").write_text(FIXED + "transfer_setup_ns = 101\n")
    with pytest.raises(Exception, match="transfer_setup_ns = 101: is a part of transfer_ns; must not exceed it"):
        prepare(asked(hardware="more.toml"))


def test_measured_transfers_keep_what_is_not_the_copy(tmp_path: Path) -> None:
    """A transfer of 1000 bytes took 210 and 130 where bare copies take 100 + 10 and 20 + 10 (100 bytes a ns): 100 more
    each; so a chunk of 600 takes 100 + 6 + 100, and 400 bytes 100 + 4 + 100."""
    from sim.catalog.hardware_spec import Hardware
    from sim.catalog.measured_spec import Measured

    knots = {"tokens": [1], "ns": [1]}
    told = {"device": "d", "torch": "2", "model": "m", "precision": "bf16", "expert_bytes": 1000, "decide_ns": 0}
    told |= {"transfer_idle_ns": 210, "transfer_following_ns": 130, "expert": knots, "head": knots, "dense": [knots]}
    link = {"h2d_gb_per_s": 100.0, "setup_ns": 100, "follow_setup_ns": 20}
    hardware = Hardware(measured=Measured(**told, link=link), source="a test")  # type: ignore[arg-type]
    found = chunk_ns(hardware, catalog.engine("ideal"), 1000, 600, np.array([210, 130]))
    assert found.tolist() == [[206, 204], [126, 124]]


@pytest.mark.parametrize(
    ("given", "wrong"),
    [
        ("1B", "cuts an expert of 352321536 bytes into more than 65536 chunks; must be at least 5376B"),
        ("256", r"must be bytes with a unit, such as 24GB; did you mean 256GB\?"),
        ("0MB", "must be above 0"),
        ("some", "must be bytes with a unit, such as 24GB"),
    ],
)
def test_what_is_no_chunk_is_one_line(given: str, wrong: str) -> None:
    with pytest.raises(SpecError, match=f"^transfer_chunk: .*{given}.*: {wrong}$"):
        prepare(asked(transfer_chunk=given))


def test_a_size_that_no_expert_exceeds_is_a_run_without() -> None:
    """The same record, and the same summary but for the words of the spec; saved only where it was asked for."""
    (one, first), (other, second) = (simulated(asked(**more)) for more in ({}, {"transfer_chunk": "100GB"}))
    assert fingerprint(first) == fingerprint(second)
    assert {key for key in one if one[key] != other.get(key)} == {"spec"} and one.keys() == other.keys()
    assert other["spec"] == one["spec"] | {"transfer_chunk": "100GB"} and "transfer_chunk" not in one["spec"]


def test_the_summary_counts_chunks() -> None:
    summary, record = simulated(asked(transfer_chunk="64MB", cache=2, max_steps=60))
    assert summary["chunks"] == record.counters["chunks"] > 6 * summary["prefetched"]["used"] > 0


def test_a_full_record_too_large_for_memory_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    found = log.np.empty

    def empty(rows: Any, kind: Any = float) -> Any:
        if kind is log.ChunkRow:
            raise MemoryError
        return found(rows, kind)

    monkeypatch.setattr(log.np, "empty", empty)
    with pytest.raises(
        SpecError, match=r"^record: full: experts in 4 chunks have no room in memory; give a larger --transfer"
    ):
        compiled.run(passing(), True)


# --- signs ------------------------------------------------------------------------------------------------------------


def test_chunks_shorten_stalls_behind_a_prefetcher_that_errs_and_tiny_ones_cost() -> None:
    """ProMoE's reason for them, on an RTX 4090 with Mixtral in bf16 and a prefetcher of recall .7 and precision .5:
    less demand stall, and less time. In chunks of 64 KB the set-ups take some of it back, in such of 16 KB more."""
    noisy = {"noisy-oracle.recall": 0.7, "noisy-oracle.precision": 0.5}
    given = {"prefetch": "noisy-oracle", "set": noisy, "cache": 4, "hardware": "rtx4090", "max_steps": 60}
    time, stall = {}, {}
    for size in (None, "64MB", "4MB", "64KB", "16KB"):
        summary = simulated(asked(**given, transfer_chunk=size))[0]
        time[size], stall[size] = summary["time_ns"], summary["stall_ns_by_cause"]["demand"]
    assert stall["4MB"] < stall["64MB"] < 0.9 * stall[None]
    assert time["4MB"] < time["64MB"] < 0.85 * time[None]
    assert time["4MB"] < time["64KB"] < time["16KB"]


def test_a_record_is_read_back_with_its_chunks(tmp_path: Path) -> None:
    from sim.machines.record import load, save

    record = compiled.run(passing(), True)
    save(record, tmp_path / "r.npz", {})
    read: RunRecord = load(tmp_path / "r.npz")[0]
    assert all((read.groups["chunks"][name] == column).all() for name, column in record.groups["chunks"].items())
    assert read.groups["chunks"]["bytes"].tolist() == [2, 2, 2, 2]
    assert sorted(read.on_link()["number"].tolist()) == [-1, 0, 1, 2, 3]
    assert as_groups(passing(), record)["totals"]["chunks"] == 4
