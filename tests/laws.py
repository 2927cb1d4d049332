"""The laws as checks of one run: a plan and its full record in the reference's form (see tests.groups).

Each check rebuilds what it needs from the record's events alone and asserts; none asks a machine.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from sim.core.plan import ANSWERS, CAUSES, OUTCOMES, SUBSTITUTE_PARAMS, SUBSTITUTION, Plan
from tests.groups import global_id, lines, rising, rows, scope_of
from tests.reference import merged_list, step_rows

Result = dict[str, Any]
FETCH, SUBSTITUTE, DROP, CPU, LOW, STREAM, REMOTE = range(len(ANSWERS))
LANDED = OUTCOMES.index("landed")
PREFETCH = CAUSES.index("prefetch")


@dataclass
class Moment:
    """One event; `expert` is a global id or -1, `row` its record line. `what`: visit (decided), answer,
    queued, committed, an outcome of a transfer, executed (on the GPU), computed (on the CPU), or step."""

    event: int
    what: str
    expert: int
    row: dict[str, int]


@dataclass
class Cache:
    """Who is where just before a moment; `on_link` in the order of the commits."""

    resident: set[int]
    on_link: list[int] = field(default_factory=list)
    landed_ns: dict[int, int] = field(default_factory=dict)
    visit: int = -1  # the one being served

    def in_scope(self, plan: Plan, scope: int) -> list[int]:
        """Those that take up a slot."""
        taken = [*self.resident, *self.on_link]
        return [expert for expert in taken if scope_of(plan, expert) == scope]


def moments(plan: Plan, result: Result) -> list[Moment]:
    """Everything in the record, in the order of its event numbers."""
    layers = plan.experts.shape[1]
    out = [Moment(row["event"], "step", -1, row) for row in rows(result, "steps")]
    out += [Moment(row["event"], "visit", -1, row) for row in rows(result, "visits")]
    for group, what in (("answers", "answer"), ("executions", "executed")):
        for row in rows(result, group):
            of = {"low": 0, "expert": row["wanted"]} if what == "answer" else row
            expert = global_id(plan, row["visit"] % layers, of)
            out.append(Moment(row["event"], "computed" if row.get("cpu") else what, expert, row))
    for row in rows(result, "transfers"):
        expert = global_id(plan, row["layer"], row)
        out.append(Moment(row["event_queued"], "queued", expert, row))
        if row["event_committed"] >= 0:
            out.append(Moment(row["event_committed"], "committed", expert, row))
        out.append(Moment(row["event"], OUTCOMES[row["outcome"]], expert, row))
    return sorted(out, key=lambda moment: moment.event)


def walk(plan: Plan, result: Result) -> Iterator[tuple[Moment, Cache]]:
    """Each moment with the cache as it was just before it."""
    cache = Cache(set(map(int, plan.residents)))
    for moment in moments(plan, result):
        yield moment, cache
        if moment.what == "visit":
            cache.visit += 1
        elif moment.what == "committed":
            cache.resident.discard(moment.row["victim"])
            cache.on_link.append(moment.expert)
        elif moment.what == "landed":
            cache.on_link.remove(moment.expert)
            cache.resident.add(moment.expert)
            cache.landed_ns[moment.expert] = moment.row["landed_ns"]


def entries(plan: Plan, visit: int) -> list[tuple[int, int, int]]:
    """(trace token, slot, global id) of everything a visit wants."""
    step, layer = divmod(visit, plan.experts.shape[1])
    return [
        (row, slot, layer * plan.n_experts + int(expert))
        for row in step_rows(plan, step)
        for slot, expert in enumerate(plan.experts[row, layer])
        if expert >= 0
    ]


def classes(cache: Cache, wanted: list[tuple[int, int, int]]) -> dict[int, str]:
    """Expert -> hits, late or misses, at the routed instant."""
    return {
        expert: "hits" if expert in cache.resident else "late" if expert in cache.on_link else "misses"
        for _, _, expert in wanted
    }


def check_conservation(plan: Plan, result: Result) -> None:
    """Law 1: every wanted (token, slot) is executed by its expert or a substitute, dropped, or on the CPU."""
    answered = {(row["visit"], row["row"], row["slot"]): row for row in rows(result, "answers")}
    assert len(answered) == len(result["answers"]["event"])
    work: Counter[tuple[int, int, int]] = Counter()  # (visit, global id, on the CPU) -> tokens
    stand_in: Counter[tuple[int, int, int]] = Counter()
    layers = plan.experts.shape[1]
    for moment, cache in walk(plan, result):
        if moment.what != "visit":
            continue
        visit = cache.visit + 1
        wanted = entries(plan, visit)
        kinds = classes(cache, wanted)
        counts = Counter(kinds.values())
        assert all(moment.row[kind] == counts[kind] for kind in ("hits", "late", "misses"))
        lossless = bool(plan.step_prefill[visit // layers]) and not plan.lossy_prefill
        for row, slot, expert in wanted:
            asked = kinds[expert] == "misses" or (kinds[expert] == "late" and plan.late_counts_as_missing)
            answer = answered.pop((visit, row, slot), None)
            assert (answer is not None) == asked
            assert answer is None or not lossless or answer["answer"] in (FETCH, CPU)
            if answer is None or answer["answer"] == FETCH:
                work[visit, expert, 0] += 1
            elif answer["answer"] == LOW:
                work[visit, layers * plan.n_experts + expert, 0] += 1
            elif answer["answer"] == CPU:
                work[visit, expert, 1] += 1
            elif answer["answer"] == SUBSTITUTE:
                other = expert // plan.n_experts * plan.n_experts + answer["stand_in"]
                assert other in cache.resident
                work[visit, other, 0] += 1
                stand_in[visit, other, 0] += 1
            assert answer is None or answer["wanted"] == expert % plan.n_experts
    assert not answered
    done = rows(result, "executions")
    who = [(row["visit"], global_id(plan, row["visit"] % layers, row), int(row["cpu"])) for row in done]
    assert len(set(who)) == len(done), "an expert runs once in a visit, and once more on the CPU"
    assert {name: row["tokens"] for name, row in zip(who, done, strict=True)} == work
    given = {name: row["stand_in_tokens"] for name, row in zip(who, done, strict=True)}
    assert {name: tokens for name, tokens in given.items() if tokens} == stand_in


def check_residency(plan: Plan, result: Result) -> None:
    """Law 2: slots suffice, victims are there, not held, not spared; nothing is loaded twice."""
    layers = plan.experts.shape[1]
    done = [row for row in rows(result, "executions") if not row["cpu"]]
    ends = {(row["visit"], global_id(plan, row["visit"] % layers, row)): row["event"] for row in done}
    slots = [*plan.slots, *(plan.low.slots if plan.low else ())]
    for moment, cache in walk(plan, result):
        if moment.what == "executed":
            assert moment.expert in cache.resident
        if moment.what == "landed":
            assert cache.on_link[0] == moment.expert
        if moment.what != "committed":
            continue
        victim, scope = moment.row["victim"], scope_of(plan, moment.expert)
        assert moment.expert not in cache.resident and moment.expert not in cache.on_link
        assert len(cache.on_link) < plan.costs.commit_depth
        taken = cache.in_scope(plan, scope)
        assert (victim >= 0) == (len(taken) == slots[scope]), "a free slot is taken before anyone goes"
        if victim < 0:
            continue
        assert victim in cache.resident and victim in taken
        assert ends.get((cache.visit, victim), -1) < moment.event, "held until it has run"
        if moment.row["cause"] == PREFETCH:
            assert victim not in spared(plan, moment.row)
    assert cache.resident == set(result["totals"]["residents"])


def spared(plan: Plan, row: dict[str, int]) -> set[int]:
    """The ranked list that a prefetch joined from, as global ids."""
    assert plan.prefetch is not None
    layers = plan.experts.shape[1]
    distance = (row["layer"] - row["visit"] - 1) % layers + 1
    rows_of_target = step_rows(plan, (row["visit"] + distance) // layers)
    listed = merged_list(plan.prefetch, distance, rows_of_target, row["layer"])
    return {row["layer"] * plan.n_experts + expert for expert in listed}


def check_causality(plan: Plan, result: Result) -> None:
    """Law 3: routed <= committed <= started <= landed <= executed, and the GPU does one thing at a time."""
    visits = rows(result, "visits")
    for row in rows(result, "transfers"):
        assert row["queued_ns"] == visits[row["visit"]]["routed_ns"]
        if row["committed_ns"] >= 0:
            assert (
                row["queued_ns"] <= row["committed_ns"] and row["event_queued"] < row["event_committed"] < row["event"]
            )
        if row["landed_ns"] >= 0:
            assert row["committed_ns"] <= row["started_ns"] <= row["landed_ns"]
    for moment, cache in walk(plan, result):
        if moment.what == "executed":
            assert cache.landed_ns.get(moment.expert, 0) <= moment.row["begin_ns"] <= moment.row["end_ns"]
        if moment.what in ("executed", "computed"):
            visit = visits[moment.row["visit"]]
            assert moment.row["visit"] == cache.visit
            assert visit["routed_ns"] <= moment.row["begin_ns"] <= moment.row["end_ns"] <= visit["end_ns"]
    check_clock(plan, result)


def check_clock(plan: Plan, result: Result) -> None:
    """Law 3: the GPU does one thing at a time; steps and visits follow each other, visits within their steps."""
    layers, visits, steps = plan.experts.shape[1], rows(result, "visits"), rows(result, "steps")
    gpu = [span for *span, cpu in lines(result, "executions", "begin_ns", "end_ns", "cpu") if not cpu]
    assert all(end <= begin for (_, end), (begin, _) in pairwise(gpu))
    assert rising([at for row in steps for at in (row["begin_ns"], row["end_ns"])])
    assert rising([at for row in visits for at in (row["routed_ns"], row["end_ns"])])
    for number, row in enumerate(visits):
        step = steps[number // layers]
        assert step["begin_ns"] <= row["routed_ns"] <= row["end_ns"] <= step["end_ns"]


def may_follow(plan: Plan) -> bool:
    """Whether a promoted transfer may come from elsewhere too: substituted experts are fetched in the background, or
    there are admissions and copies ahead."""
    in_background = plan.miss.kind == SUBSTITUTION and bool(plan.miss.params[SUBSTITUTE_PARAMS.index("background")])
    return in_background or plan.on_miss is not None


def check_sums(plan: Plan, result: Result) -> None:
    """Law 4: the breakdown is the time, answers are what was wanted, no visit exceeds the budget."""
    totals, visits = result["totals"], result["visits"]
    parts = ("dense_ns", "decide_ns", "experts_ns", "stall_ns", "cpu_wait_ns", "head_ns")
    assert totals["time_ns"] == sum(totals[part] for part in parts) == result["steps"]["end_ns"][-1]
    causes = ("stall_demand_ns", "stall_late_ns", "stall_held_ns")
    assert totals["stall_ns"] == sum(sum(visits[cause]) for cause in causes)
    answers = ["slots_hit", "slots_late", "fetched", "substituted", "dropped", "cpu", "low"]
    answers += ["streamed", "remote"] if plan.on_miss is not None else []
    assert totals["slots_wanted"] == sum(totals[name] for name in answers)
    assert totals["slots_wanted"] == int((plan.experts[plan.step_row] >= 0).sum())
    assert totals["slots_wanted"] == sum(result["executions"]["tokens"]) + totals["dropped"]
    kinds = zip(visits["wanted"], visits["hits"], visits["late"], visits["misses"], strict=True)
    assert all(wanted == hits + late + misses for wanted, hits, late, misses in kinds)
    fates = sum(totals[f"prefetched_{fate}"] for fate in ("used", "late", "wasted"))
    assert fates == lines(result, "transfers", "cause", "outcome").count((PREFETCH, LANDED))
    joined = Counter(
        row["visit"]
        for row in rows(result, "transfers")
        if row["cause"] == PREFETCH or (row["promoted"] and not may_follow(plan))
    )
    budget = -1 if plan.prefetch is None else plan.prefetch.budget
    assert budget < 0 or all(n <= budget for n in joined.values())
    assert set(result["transfers"]["outcome"]) <= set(range(len(OUTCOMES)))
    for landed_ns, outcome, size, low in lines(result, "transfers", "landed_ns", "outcome", "bytes", "low"):
        assert (landed_ns >= 0) == (outcome == LANDED)
        assert size == (plan.low.bytes if plan.low and low else plan.expert_bytes)


def check_events(result: Result) -> None:
    """Law 3: events are numbered 0, 1, 2 ..., the clock never falls."""
    at = lines(result, "steps", "event", "end_ns") + lines(result, "visits", "event", "routed_ns")
    group_end: dict[tuple[int, ...], int] = {}
    for visit, group, end in lines(result, "executions", "visit", "group", "end_ns"):
        group_end[visit, group] = max(end, group_end.get((visit, group), 0))
    numbers = list(result["answers"]["event"])
    for event, visit, group in lines(result, "executions", "event", "visit", "group"):
        at += [(event, group_end[visit, group])] * (group >= 0)
        numbers += [event] * (group < 0)
    columns = ("event_queued", "queued_ns", "event_committed", "committed_ns", "event", "landed_ns")
    for queued, queued_ns, committed, committed_ns, event, landed_ns in lines(result, "transfers", *columns):
        at += [(queued, queued_ns)] + [(committed, committed_ns)] * (committed >= 0)
        at += [(event, landed_ns)] * (landed_ns >= 0)
        numbers += [event] * (landed_ns < 0)
    ends = set(result["transfers"]["event"])
    for row in rows(result, "chunks") if "chunks" in result else []:
        at += [(row["event_committed"], row["committed_ns"])] * (row["number"] > 0)
        at += [(row["event"], row["landed_ns"])] * (row["landed_ns"] >= 0 and row["event"] not in ends)
    assert sorted(numbers + [event for event, _ in at]) == list(range(len(numbers) + len(at)))
    assert rising([time for _, time in sorted(at)])


def check_link(result: Result) -> None:
    """Law 3: the link carries one at a time."""
    landed = sorted(
        (started, end) for started, end in lines(result, "transfers", "started_ns", "landed_ns") if end >= 0
    )
    assert all(end <= begin for (_, end), (begin, _) in pairwise(landed))


def check_all(plan: Plan, result: Result) -> None:
    check_conservation(plan, result)
    check_residency(plan, result)
    check_causality(plan, result)
    check_sums(plan, result)
    check_events(result)
    check_link(result)
