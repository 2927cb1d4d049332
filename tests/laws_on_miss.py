"""The laws of tests.laws for plans with `on_miss`: checks of one run, from its record in the reference's form.

Nothing is re-ranked in these plans: what is wanted is read from the trace. When a copy leaves its stage unexecuted is
in no record; where that matters a check takes the reading that is kinder to the run.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import groupby, pairwise
from math import inf
from typing import Any

from sim.core.plan import ADMIT_PARAMS, ANSWERS, CAUSES, OUTCOMES, PLACES, SPLIT_PARAMS, Plan
from tests import laws
from tests.groups import global_id, rows, scope_of
from tests.laws import CPU, DROP, FETCH, LANDED, LOW, PREFETCH, REMOTE, STREAM, SUBSTITUTE, Moment, entries, moments
from tests.reference_eviction import bypasses
from tests.reference_on_miss import is_bulk, may_take_a_slot, rule_of, slowed, streams, takes_no_slot
from tests.variants import compute_ns, everything_resident, without_transfer_time

Result = dict[str, Any]
Row = dict[str, int]
Run = Callable[[Plan], Result]
SLOT, STAGE, AFAR, HOST, DEFERRED = range(len(PLACES))
DEMAND, ADMISSION, STREAMED = (CAUSES.index(name) for name in ("demand", "admission", "stream"))
RANK = [CAUSES.index(name) for name in ("demand", "stream", "prefetch", "admission", "background")]  # commit order
LOSSLESS = {FETCH, CPU, STREAM, REMOTE}
MAY_ANSWER = {
    "fetch": {FETCH}, "cpu": {CPU}, "stream": {STREAM}, "remote": {REMOTE}, "cpu-admit": {CPU}, "drop": {DROP},
    "drop-by-weight": {DROP, FETCH}, "mean-output": {DROP, FETCH}, "hobbit": {FETCH, LOW, DROP},
    "speculate": {SUBSTITUTE, FETCH},
}  # fmt: skip


@dataclass
class World:
    """Who is where just before a moment. Of transfers their rows."""

    resident: set[int]
    waiting: list[Row] = field(default_factory=list)  # queued
    link: list[Row] = field(default_factory=list)  # committed, not landed
    staged: dict[int, Row] = field(default_factory=dict)  # landed in a stage, not executed since
    misses: Counter[int] = field(default_factory=Counter)  # as cpu-admit counts them
    decided: Counter[int] = field(default_factory=Counter)  # visits of each layer
    executed_at: dict[int, int] = field(default_factory=dict)  # from a slot: the layer's visits decided by then
    visit: int = -1


class Story:
    """A run, told from its record."""

    def __init__(self, plan: Plan, result: Result) -> None:
        assert plan.on_miss is not None
        self.plan, self.on, self.result = plan, plan.on_miss, result
        self.layers = plan.experts.shape[1]
        self.answers = {(row["visit"], row["row"], row["slot"]): row for row in rows(result, "answers")}
        self.asked = {(row["visit"], row["wanted"]) for row in rows(result, "answers")}
        self.visits, self.executions = rows(result, "visits"), rows(result, "executions")
        self.crossings = crossings(plan, result)
        self.from_stage = {(row["visit"], row["expert"]) for row in self.executions if row["place"] == STAGE}
        self.moments = moments(plan, result)

    def walk(self) -> Iterator[tuple[Moment, World]]:
        """Each moment with the world just before it."""
        world = World(set(map(int, self.plan.residents)))
        for moment in self.moments:
            yield moment, world
            self.pass_by(moment, world)

    def pass_by(self, moment: Moment, world: World) -> None:
        row, expert = moment.row, moment.expert
        if moment.what == "visit":
            world.visit += 1
            world.decided[row["layer"]] += 1
            if self.counts_misses(world.visit):
                kinds = self.classes(world, world.visit)
                world.misses.update(e for e, (kind, _) in kinds.items() if kind == "misses")
        elif moment.what == "executed" and row["place"] == STAGE:
            del world.staged[expert]
        elif moment.what == "executed" and row["place"] == SLOT and (self.on.bulk_touch or not self.bulk(world.visit)):
            world.executed_at[expert] = world.decided[world.visit % self.layers]
        elif moment.what == "queued":
            world.waiting.append(row)
            if row["place"] == STAGE:
                world.staged.pop(expert, None)
        elif moment.what == "committed":
            world.waiting.remove(row)
            world.link.append(row)
            world.resident.discard(row["victim"])
        elif moment.what in OUTCOMES:
            (world.link if row in world.link else world.waiting).remove(row)
            self.land(row, expert, world)

    def land(self, row: Row, expert: int, world: World) -> None:
        if row["outcome"] == LANDED and row["place"] == SLOT:
            world.resident.add(expert)
            world.misses[expert] = 0
        if row["outcome"] == LANDED and row["place"] == STAGE:
            world.staged[expert] = row

    # The plan's words

    def rule(self, visit: int) -> str:
        return rule_of(self.plan, visit // self.layers).name

    def bulk(self, visit: int) -> bool:
        return is_bulk(self.plan, visit // self.layers)

    def counts_misses(self, visit: int) -> bool:
        return self.plan.miss.name == "cpu-admit" and (not self.bulk(visit) or bool(self.admit("warm")))

    def in_flight(self, event: int) -> int:
        """Transfers and chunks committed and not landed just before an event."""
        first = [(own[0]["event_committed"], own[0]["landed_ns"], own[0]["event"]) for own in self.crossings]
        return sum(committed < event and (landed_ns < 0 or landed >= event) for committed, landed_ns, landed in first)

    def admit(self, name: str) -> float:
        return float(self.plan.miss.params[ADMIT_PARAMS.index(name)])

    def limit(self, name: str) -> float:
        return inf if self.admit(name) < 0 else self.admit(name)

    def gid(self, row: Row) -> int:
        """Of a line of transfers."""
        return global_id(self.plan, row["layer"], row)

    def classes(self, world: World, visit: int) -> dict[int, tuple[str, int]]:
        """Expert -> its class and where from, of those that a visit wants, in order of first appearance. The world is
        that just before the visit's decisions."""
        wanted = dict.fromkeys(expert for _, _, expert in entries(self.plan, visit))
        return {expert: self.class_of(world, visit, expert) for expert in wanted}

    def class_of(self, world: World, visit: int, expert: int) -> tuple[str, int]:
        within = expert % self.plan.n_experts
        coming = {row["place"]: row["cause"] for row in world.link if self.gid(row) == expert}
        if expert in world.resident:
            return "hits", SLOT
        lossy_late = self.plan.late_counts_as_missing and not self.bulk(visit)
        untouched = (visit, within) not in self.asked or (lossy_late and bool(coming))
        if expert in world.staged and untouched and (visit, within) in self.from_stage:
            return "hits", STAGE
        if SLOT in coming:
            admission = self.rule(visit) == "cpu-admit" and coming[SLOT] == ADMISSION
            return ("misses", -1) if admission else ("late", SLOT)
        return ("late", STAGE) if STAGE in coming else ("misses", -1)


def crossings(plan: Plan, result: Result) -> list[list[Row]]:
    """What crosses the link as one, in order: transfers with the rows of all that they bring, and chunks, each a row of
    its transfer with its own times and events, its `number` and whether it is the `last`."""
    transfers = rows(result, "transfers")
    chunks = rows(result, "chunks") if "chunks" in result else []
    cut = {row["transfer"] for row in chunks}
    out = [[transfers[row["transfer"]] | row | {"last": row["number"] == plan.chunks - 1}] for row in chunks]
    whole = [row for number, row in enumerate(transfers) if row["run"] >= 0 and number not in cut]
    by_run = sorted(whole, key=lambda row: row["event_committed"])
    out += [list(own) for _, own in groupby(by_run, key=lambda row: row["run"])]
    return sorted(out, key=lambda own: own[0]["event_committed"])


# Law 1


def check_conservation(story: Story) -> None:
    """Every wanted (token, slot) is executed by its expert (from a slot, a stage, from afar, on the host) or by a
    substitute, or dropped, as its visit's rule may answer."""
    plan, work, answered = story.plan, Counter[tuple[int, int, int]](), dict(story.answers)
    on_host = {HOST: HOST, DEFERRED: HOST}
    for moment, world in story.walk():
        if moment.what != "visit":
            continue
        visit = world.visit + 1
        kinds = story.classes(world, visit)
        counts = Counter(kind for kind, _ in kinds.values())
        assert all(moment.row[kind] == counts[kind] for kind in ("hits", "late", "misses"))
        may, asks_late = may_answer(story, visit), plan.late_counts_as_missing and not story.bulk(visit)
        for token, slot, expert in entries(plan, visit):
            kind, place = kinds[expert]
            row = answered.pop((visit, token, slot), None)
            assert (row is not None) == (kind == "misses" or (kind == "late" and asks_late))
            if row is not None:
                assert row["answer"] in may and row["wanted"] == expert % plan.n_experts
                place = place if place >= 0 and row["answer"] in (FETCH, STREAM) else -1
            who, where = runs(story, world, expert, place, row)
            work[visit, who, where] += where >= 0
        check_order_of_split(story, visit, [expert for expert, (kind, _) in kinds.items() if kind == "misses"])
    assert not answered
    done = Counter[tuple[int, int, int]]()
    for row in story.executions:
        who = global_id(plan, row["visit"] % story.layers, row), on_host.get(row["place"], row["place"])
        assert (row["visit"], *who) not in done, "an expert runs once from one place in a visit"
        done[row["visit"], *who] = row["tokens"]
        assert bool(row["cpu"]) == (row["place"] in on_host)
    assert done == +work


def runs(story: Story, world: World, expert: int, place: int, row: Row | None) -> tuple[int, int]:
    """Who executes an entry, and where (-1 nobody): `place` is where an expert is that is here or coming."""
    if place >= 0:
        return expert, place
    assert row is not None
    if row["answer"] == SUBSTITUTE:
        other = expert // story.plan.n_experts * story.plan.n_experts + row["stand_in"]
        assert other in world.resident
        return other, SLOT
    if row["answer"] == LOW:
        return story.layers * story.plan.n_experts + expert, SLOT
    return expert, {FETCH: SLOT, STREAM: STAGE, REMOTE: AFAR, CPU: HOST, DROP: -1}[row["answer"]]


def may_answer(story: Story, visit: int) -> set[int]:
    plan, rule = story.plan, rule_of(story.plan, visit // story.layers)
    copied = {FETCH if rule.name == "split" and rule.params[SPLIT_PARAMS.index("keep")] else STREAM}
    family = {"split": copied | {CPU}} | MAY_ANSWER
    may = family.get(rule.name, {FETCH, SUBSTITUTE, DROP, CPU})
    if plan.step_prefill[visit // story.layers] and not plan.lossy_prefill:
        may = (may | {FETCH}) & LOSSLESS
    if takes_no_slot(plan, visit % story.layers):
        return {STREAM if answer == FETCH else answer for answer in may}
    return may | ({STREAM} if bypasses(plan.eviction) and FETCH in may else set())


def check_order_of_split(story: Story, visit: int, misses: list[int]) -> None:
    """What goes over the link has the most tokens, of equal ones those that appear first."""
    if story.rule(visit) != "split":
        return
    tokens = Counter(expert for _, _, expert in entries(story.plan, visit))
    answer = {row["wanted"]: row["answer"] for key, row in story.answers.items() if key[0] == visit}
    on_cpu = [
        answer[e % story.plan.n_experts] == CPU
        for e in sorted(misses, key=lambda expert: (-tokens[expert], misses.index(expert)))
    ]
    assert on_cpu == sorted(on_cpu)


# Law 2


def check_residency(story: Story) -> None:
    """Slots and stages suffice; victims are there, not held, not spared; nothing is loaded twice; whoever takes no slot
    evicts nobody, and no newcomer takes one under static or where there is none, or by more than swaps."""
    plan = story.plan
    done = [row for row in story.executions if row["place"] == SLOT]
    ends = {(row["visit"], global_id(plan, row["visit"] % story.layers, row)): row["event"] for row in done}
    slots = [*plan.slots, *(plan.low.slots if plan.low else ())]
    for moment, world in story.walk():
        if moment.what != "committed":
            continue
        row, expert, victim = moment.row, moment.expert, moment.row["victim"]
        first = not world.link or world.link[-1]["run"] != row["run"]
        assert not first or story.in_flight(moment.event) < plan.costs.commit_depth
        assert all((other["place"], story.gid(other)) != (row["place"], expert) for other in world.link)
        assert row["place"] != SLOT or expert not in world.resident
        if row["place"] == STAGE:
            check_stage(story, world, moment)
        if row["place"] == AFAR:
            assert not story.in_flight(moment.event)
        if row["place"] != SLOT:
            assert victim == -1
            continue
        scope = scope_of(plan, expert)
        assert row["cause"] != DEMAND or not takes_no_slot(plan, row["layer"])
        assert may_take_a_slot(plan, row["layer"], CAUSES[row["cause"]])
        coming = [story.gid(other) for other in world.link if other["place"] == SLOT]
        taken = [other for other in [*world.resident, *coming] if scope_of(plan, other) == scope]
        assert (victim >= 0) == (len(taken) == slots[scope]), "a free slot is taken before anyone goes"
        if victim >= 0:
            assert victim in world.resident and victim in taken
            assert ends.get((world.visit, victim), -1) < moment.event, "held until it has run"
            assert row["cause"] != PREFETCH or victim not in laws.spared(plan, row)
            assert row["cause"] != ADMISSION or may_replace(story, world, expert, victim)
    assert world.resident == set(story.result["totals"]["residents"])


def check_stage(story: Story, world: World, moment: Moment) -> None:
    """There is a stage for the copy: those that are certainly taken leave one. It is no copy of a copy."""
    n, on = story.plan.n_experts, story.on
    limit = on.stages or ((on.ahead + 1) * n if on.ahead else inf)
    here = {e for e, row in world.staged.items() if e != moment.expert and stays(story, world, e, row, moment)}
    assert len(here) + sum(row["place"] == STAGE for row in world.link) < limit
    assert moment.expert not in world.staged


def stays(story: Story, world: World, expert: int, row: Row, moment: Moment) -> bool:
    """Whether a landed copy is surely still in its stage: it landed for the visit being served, which goes on."""
    visit, now = story.visits[world.visit], moment.row["committed_ns"]
    return world.visit % story.layers == row["layer"] and visit["event"] < row["event"] and now < visit["end_ns"]


def may_replace(story: Story, world: World, newcomer: int, victim: int) -> bool:
    """cpu-admit: the newcomer has missed often enough, the victim has not run lately."""
    decided, ran = world.decided[victim // story.plan.n_experts], world.executed_at.get(victim, -inf)
    return world.misses[newcomer] >= story.admit("replace_after") and decided - ran >= story.admit("spare")


# Law 3


def check_commit_order(story: Story) -> None:
    """Demand, stream queue, prefetch, admission, background: what joined before and goes first has gone. (Of what was
    promoted later nobody knows its place; remote experts wait by rules of their own.)"""
    for moment, world in story.walk():
        if moment.what != "committed" or moment.row["place"] == AFAR:
            continue
        rank = RANK.index(moment.row["cause"])
        waiting = [row for row in world.waiting if not row["promoted"] and row["place"] != AFAR]
        assert all(RANK.index(row["cause"]) >= rank for row in waiting if row is not moment.row)


def check_admissions(story: Story) -> None:
    """Who joins: a miss, often enough, within the limits."""
    joined: Counter[int] = Counter()
    for moment, world in story.walk():
        row = moment.row
        if moment.what != "queued" or row["cause"] != ADMISSION:
            continue
        step, visit = world.visit // story.layers, world.visit
        joined[visit] += 1
        assert story.counts_misses(visit) and row["layer"] == visit % story.layers
        assert joined[visit] <= story.limit("inserts")
        assert sum(other["cause"] == ADMISSION for other in world.waiting) < story.limit("queue")
        n_rows = int(story.plan.step_offset[step + 1] - story.plan.step_offset[step])
        assert story.bulk(visit) or n_rows <= story.limit("max_rows")
        assert world.misses[moment.expert] >= min(story.admit("admit_after"), story.admit("replace_after"))
        assert moment.expert not in world.resident and not takes_no_slot(story.plan, row["layer"])
        assert moment.expert not in [story.gid(other) for other in world.link if other["place"] == SLOT]


def check_whole_layers(story: Story) -> None:
    """When a visit that streams whole layers has been decided, each expert is there or comes. What is streamed ahead is
    for a visit that streams, so many layers on."""
    decided = False
    for moment, world in story.walk():
        if moment.what == "queued" and moment.row["cause"] == STREAMED:
            target = moment.row["visit"] + story.on.ahead
            first = moment.row["visit"] < 0 and moment.row["layer"] < story.on.ahead
            assert first or streams(story.plan, *divmod(target, story.layers))
            assert first or target % story.layers == moment.row["layer"]
        elif decided and moment.what not in ("answer", "queued", "withdrawn"):
            decided = False
            layer, n = world.visit % story.layers, story.plan.n_experts
            coming = {story.gid(row) for row in world.link}
            coming |= {story.gid(row) for row in world.waiting if row["place"] == STAGE}
            assert set(range(layer * n, (layer + 1) * n)) <= world.resident | set(world.staged) | coming
        decided = decided or (moment.what == "visit" and whole_layer(story, world.visit + 1))


def whole_layer(story: Story, visit: int) -> bool:
    return (story.on.whole_layer or story.on.ahead > 0) and streams(story.plan, *divmod(visit, story.layers))


def check_causality(story: Story) -> None:
    """routed <= committed <= started <= landed <= executed, whatever the place; the GPU does one thing at a time."""
    for row in rows(story.result, "transfers"):
        routed = story.visits[row["visit"]]["routed_ns"] if row["visit"] >= 0 else 0
        assert row["queued_ns"] == routed
        if row["committed_ns"] >= 0:
            assert (
                row["queued_ns"] <= row["committed_ns"] and row["event_queued"] < row["event_committed"] < row["event"]
            )
        assert row["outcome"] != LANDED or row["committed_ns"] <= row["started_ns"] <= row["landed_ns"]
        assert (row["run"] >= 0) == (row["committed_ns"] >= 0)
    landed_ns: dict[int, int] = {}
    for moment, world in story.walk():
        row, expert = moment.row, moment.expert
        if moment.what == "landed" and row["place"] == SLOT:
            landed_ns[expert] = row["landed_ns"]
        if moment.what != "executed":
            continue
        assert row["visit"] == world.visit and row["begin_ns"] <= row["end_ns"]
        if row["place"] == SLOT:
            assert expert in world.resident and landed_ns.get(expert, 0) <= row["begin_ns"]
        if row["place"] == STAGE:
            check_staged(story, world.staged[expert], row)
    check_visits(story)
    laws.check_clock(story.plan, story.result)


def check_staged(story: Story, copy: Row, row: Row) -> None:
    """A copy runs after it has landed, and in no later visit than one of its layer that it landed in."""
    assert copy["landed_ns"] <= row["begin_ns"]
    before = [number for number, visit in enumerate(story.visits) if visit["event"] < copy["event"]]
    last = before[-1] if before else -1
    if last >= 0 and last % story.layers == copy["layer"] and copy["landed_ns"] < story.visits[last]["end_ns"]:
        assert last == row["visit"]


def check_visits(story: Story) -> None:
    """What runs on the GPU runs within its visit, behind what holds the visit back; remote experts as they are read."""
    read = {(row["visit"], row["expert"]): row for row in rows(story.result, "transfers") if row["place"] == AFAR}
    copies: dict[int, int] = Counter()
    for row in rows(story.result, "transfers"):
        if row["place"] == STAGE and row["cause"] == DEMAND and not row["promoted"]:
            copies[row["visit"]] = max(copies[row["visit"]], row["landed_ns"])
    hosts: dict[int, int] = Counter()
    for row in story.executions:
        if row["place"] == HOST:
            hosts[row["visit"]] = max(hosts[row["visit"]], row["end_ns"])
    for row in story.executions:
        if row["place"] in (HOST, DEFERRED):
            continue
        visit = story.visits[row["visit"]]
        assert visit["routed_ns"] <= row["begin_ns"] and row["end_ns"] <= visit["end_ns"]
        assert not story.on.serial or row["begin_ns"] >= copies[row["visit"]]
        assert story.on.beside or row["begin_ns"] >= hosts[row["visit"]]
        if row["place"] == AFAR:
            transfer = read.pop((row["visit"], row["expert"]))
            assert row["begin_ns"] == transfer["started_ns"] == transfer["committed_ns"]
            assert row["end_ns"] == transfer["landed_ns"]
    assert not read


def check_host(story: Story) -> None:
    """The host computes one expert after another, first what is not deferred, behind what the last visit deferred; a
    layer ends behind both."""
    costs, deferred_until, in_flight, total = story.plan.costs, 0, busy_when_routed(story), 0
    of_visit = {v: list(own) for v, own in groupby(filter(is_cpu, story.executions), key=lambda row: row["visit"])}
    for number, visit in enumerate(story.visits):
        own, until = of_visit.get(number, []), deferred_until
        places = [row["place"] for row in own]
        assert places == sorted(places)
        may_defer = not story.plan.step_prefill[visit["step"]] and visit["layer"] < story.layers - 1
        assert DEFERRED not in places or (may_defer and story.on.defer > 0)
        at = begin = max(visit["routed_ns"], deferred_until)
        at += story.on.cpu_visit_ns if own else 0
        for row in own:
            lasts = int(costs.cpu_expert_ns[in_flight[number], row["tokens"]])
            assert (row["begin_ns"], row["end_ns"]) == (at, at + lasts)
            at += lasts
            if row["place"] == HOST:
                until = at
            else:
                deferred_until = at
        total += at - begin if own else 0
        assert visit["end_ns"] >= until
    assert story.result["totals"]["host_ns"] == total


def is_cpu(row: Row) -> bool:
    return bool(row["cpu"])


def busy_when_routed(story: Story) -> list[int]:
    """Of each visit, whether the host's work counts as beside the link's: something is under way, or a split sends
    something over it."""
    busy = [int(story.in_flight(visit["event"]) > 0) for visit in story.visits]
    for (visit, _, _), row in story.answers.items():
        if story.rule(visit) == "split" and row["answer"] != CPU:
            busy[visit] = 1
    return busy


@dataclass
class Phase:
    """The host works from a visit's routed instant on."""

    event: int
    routed_ns: int
    until_ns: int


def phases_of(story: Story) -> list[Phase]:
    found: list[Phase] = []
    for number, own in groupby(filter(is_cpu, story.executions), key=lambda row: row["visit"]):
        visit, last = story.visits[number], max(row["end_ns"] for row in own)
        found.append(Phase(visit["event"], visit["routed_ns"], max(last, found[-1].until_ns if found else 0)))
    return found


def check_link(story: Story) -> None:
    """The link carries one transfer (or chunk) at a time, first in, first out; each lasts as long as its size, what it
    follows and the host's work make it. The copies of a run are consecutive ids, committed and landed together."""
    phases, before = phases_of(story), None
    busy = [0] * len(CAUSES)
    end = story.result["totals"]["time_ns"]
    starts = [group for group in story.crossings if group[0].get("number", 0) == 0]
    for number, group in enumerate(starts):
        check_run(story, number, group)
    for group in story.crossings:
        head, last = group[0], group[-1]
        follows = before is not None and (before["landed_ns"] < 0 or before["event"] > head["event_committed"])
        if before is None or not follows:
            started, gap = (head["committed_ns"], head["event_committed"]), story.plan.costs.commit_gap_ns
        else:
            started, gap = (before["landed_ns"], before["event"]), 0
        if head["landed_ns"] >= 0:
            gap = 0 if head["place"] == AFAR else gap
            assert head["started_ns"] == started[0] + gap
            assert head["landed_ns"] == landing(story, group, started, gap, follows, phases)
        if head["started_ns"] >= 0:
            busy[head["cause"]] += (head["landed_ns"] if head["landed_ns"] >= 0 else end) - head["started_ns"]
        before = last
    assert busy == story.result["totals"]["busy_ns_by_cause"]
    assert sum(busy) == story.result["totals"]["link_busy_ns"]


def check_run(story: Story, number: int, group: list[Row]) -> None:
    assert all(row["run"] == number for row in group)
    for one, two in pairwise(group):
        assert story.on.merge_runs and one["place"] == two["place"] == STAGE
        assert (two["layer"], two["expert"]) == (one["layer"], one["expert"] + 1)
        assert all(one[name] == two[name] for name in ("committed_ns", "started_ns", "landed_ns", "outcome"))
        assert one["event_committed"] + 1 == two["event_committed"] and one["event"] + 1 == two["event"]


def landing(
    story: Story, group: list[Row], started: tuple[int, int], gap: int, follows: bool, phases: list[Phase]
) -> int:
    """When a transfer lands that starts at `started` (ns, event)."""
    at, event = started
    plan, head = story.plan, group[0]
    lasts = plan.low.transfer_ns if plan.low and head["low"] else story.on.run_ns[:, len(group)]
    lasts = story.on.chunk_ns[:, int(head["last"])] if "number" in head else lasts
    until = max((phase.until_ns for phase in phases if phase.event < event), default=0)
    land = at + slowed(plan, gap + int(lasts[1 if follows else 0]), until - at)
    for phase in phases:
        if event < phase.event < head["event"]:
            land = phase.routed_ns + slowed(plan, land - phase.routed_ns, phase.until_ns - phase.routed_ns)
    if head["place"] == AFAR:
        tokens = [row["tokens"] for row in story.executions if row["place"] == AFAR and reads(row, head)]
        land = max(land, at + int(plan.costs.expert_ns[tokens[0]]))
    return land


def check_chunks(story: Story) -> None:
    """Cut is what a demand may pass, but for copies that may share a transfer. Chunks go in order, the slot is claimed
    with the first, the expert lands with the last; and from the first commit to the last only demands go between."""
    plan, transfers = story.plan, rows(story.result, "transfers")
    parts: dict[int, list[Row]] = {number: [] for number in range(len(transfers))}
    for chunk in rows(story.result, "chunks") if plan.chunks > 1 else []:
        parts[chunk["transfer"]].append(chunk)
    for number, row in enumerate(transfers):
        own, in_runs = parts[number], row["place"] == STAGE and story.on.merge_runs
        assert bool(own) == (plan.chunks > 1 and row["run"] >= 0 and row["cause"] != DEMAND and not in_runs)
        if not own:
            continue
        assert [chunk["number"] for chunk in own] == list(range(len(own))) and len(own) <= plan.chunks
        times = ("event_committed", "committed_ns", "started_ns")
        assert all(own[0][name] == row[name] for name in times)
        assert (row["outcome"] == LANDED) == (len(own) == plan.chunks and own[-1]["landed_ns"] >= 0)
        if row["outcome"] == LANDED:
            assert all(own[-1][name] == row[name] for name in ("event", "landed_ns"))
        first, last = own[0]["event_committed"], own[-1]["event_committed"]
        last = last if len(own) == plan.chunks else inf
        between = [group[0] for group in story.crossings if first < group[0]["event_committed"] < last]
        assert all(other["cause"] == DEMAND or other.get("transfer") == number for other in between)


def reads(row: Row, transfer: Row) -> bool:
    return (row["visit"], row["expert"]) == (transfer["visit"], transfer["expert"])


# Law 4


def check_sums(story: Story) -> None:
    """Parts add up to the whole, and the totals are what the record says."""
    laws.check_sums(story.plan, story.result)
    totals, transfers = story.result["totals"], rows(story.result, "transfers")
    chunks = story.result.get("chunks", {"landed_ns": []})["landed_ns"]
    assert totals.get("chunks", 0) == sum(ns >= 0 for ns in chunks)
    landed = [row for row in transfers if row["outcome"] == LANDED]
    assert all(row["landed_ns"] >= 0 for row in landed)
    by_cause = Counter(CAUSES[row["cause"]] for row in landed)
    assert {f"landed_{cause}": by_cause[cause] for cause in CAUSES}.items() <= totals.items()
    assert totals["link_transfers"] == len({row["run"] for row in landed})
    assert totals["staged"] == sum(row["place"] == STAGE for row in landed)
    admissions = [row for row in transfers if row["cause"] == ADMISSION]
    assert totals["admitted"] == by_cause["admission"]
    assert totals["admission_replaced"] == sum(row["victim"] >= 0 for row in admissions)
    assert totals["admission_rejected"] == sum(OUTCOMES[row["outcome"]] == "rejected" for row in admissions)
    assert totals["evictions"] == sum(row["victim"] >= 0 for row in transfers)
    assert totals["experts_ns"] == story.plan.costs.group_ns * groups(story) + sum(
        row["end_ns"] - row["begin_ns"] for row in story.executions if not row["cpu"]
    )
    for row in rows(story.result, "answers"):
        assert ANSWERS[row["answer"]] == "substitute" or row["stand_in"] == -1


def groups(story: Story) -> int:
    """Groups that pay for being one: all but the remote ones."""
    return len({(row["visit"], row["group"]) for row in story.executions if row["place"] in (SLOT, STAGE)})


# Laws 5 and 6


def check_determinism(run: Run, plan: Plan, other: Plan) -> None:
    """The same plan gives the same result, whatever ran before."""
    first = run(plan)
    run(other)
    assert run(plan) == first


def check_limits(run: Run, plan: Plan) -> None:
    """Everything resident: time is compute. A link that takes no time: nothing stalls; it is busy while the GPU
    reads."""
    full = everything_resident(plan)
    result = run(full)
    assert sum(result["visits"]["late"]) == sum(result["visits"]["misses"]) == 0
    assert result["transfers"]["event"] == result["answers"]["event"] == []
    assert result["totals"]["time_ns"] == compute_ns(full)
    result = run(without_transfer_time(plan))
    read = sum(row["end_ns"] - row["begin_ns"] for row in rows(result, "executions") if row["place"] == AFAR)
    assert result["totals"]["stall_ns"] == 0 and result["totals"]["link_busy_ns"] == read


def check_all(plan: Plan, result: Result) -> None:
    """Laws 1 to 4 of one run."""
    story = Story(plan, result)
    check_conservation(story)
    check_residency(story)
    check_commit_order(story)
    check_admissions(story)
    check_whole_layers(story)
    check_causality(story)
    check_host(story)
    check_link(story)
    check_chunks(story)
    check_sums(story)
    laws.check_events(result)
