"""Copies of experts in staging buffers: queued, claimed at the commit, freed when they have run (engines.md's stream).

A copy is an id of its own behind those of the slots (core.rules), with the life that state.LEGAL allows: absent, queued
(in the stream queue), demanded, committed, resident (in a stage), absent. Residents in slots are never touched.
"""

from typing import Any

from sim.core import log as lg
from sim.core.jit import apart, choice, inlined, whole
from sim.core.plan import ANSWERS
from sim.core.residency import arrived, move
from sim.core.rules import DEMAND, NOBODY, STREAM, anywhere, stage_of, streams
from sim.core.state import ABSENT, COMMITTED, DEMANDED, MISS, QUEUED, RESIDENT, State

ANSWER_STREAM = ANSWERS.index("stream")


@inlined
def _whose(s: State, copy: int) -> int:
    """The expert that it is a copy of."""
    return copy - s.run.stage_base


@apart
def demand_copy(s: State, log: Any, rules: Any, g: int, visit: int) -> None:
    """Expert g was answered `stream`, or its whole layer is: a copy joins the demand queue, from the stream queue if it
    stood there; one that an earlier visit left in the demand queue keeps its place."""
    copy = stage_of(s, g)
    if s.expert[copy].state == DEMANDED:
        return
    if s.expert[copy].state == QUEUED:
        _leave(s, rules, copy)
        s.count.promoted += 1
        lg.promoted(s, log, copy)
    else:
        lg.queued(s, log, copy, visit, DEMAND)
    move(s, copy, DEMANDED)
    s.expert[copy].origin = DEMAND
    rules.expert[g].joined = visit
    s.demand[s.link.demand_tail] = copy
    s.link.demand_tail += 1


@apart
def _leave(s: State, rules: Any, copy: int) -> None:
    """A copy leaves the stream queue."""
    i = 0
    while rules.streams[i] != copy:
        i += 1
    _take(rules, i, 1)


@apart
def _take(rules: Any, i: int, n: int) -> None:
    """n entries from place i on leave the stream queue."""
    rules.run.n_streams -= n
    for j in range(i, rules.run.n_streams):
        rules.streams[j] = rules.streams[j + n]


@apart
def demand_in_order(s: State, log: Any, rules: Any, visit: int, layer: int) -> None:
    """The copies of a visit that gathers them join the demand queue in ascending id: those answered `stream`, and of a
    whole layer what else is neither there nor on its way."""
    whole = rules.run.whole_layer == 1 and rules.visit.streams == 1
    for g in range(layer * s.run.n_experts, (layer + 1) * s.run.n_experts):
        if s.expert[g].seen == visit + 1:
            if s.expert[g].kind == MISS and rules.expert[g].answer == ANSWER_STREAM:
                demand_copy(s, log, rules, g, visit)
        elif whole and s.expert[stage_of(s, g)].state == ABSENT and s.expert[g].state not in (RESIDENT, COMMITTED):
            demand_copy(s, log, rules, g, visit)


@apart
def owe(s: State, rules: Any, visit: int, layer: int) -> None:
    """A serial visit waits for every copy of its layer that is under way or queued, but for a later visit."""
    for g in range(layer * s.run.n_experts, (layer + 1) * s.run.n_experts):
        state = s.expert[stage_of(s, g)].state
        later = state == QUEUED and rules.expert[g].joined > visit
        if state not in (ABSENT, RESIDENT) and not later:
            rules.expert[g].owed = 1
            rules.visit.copies_left += 1


@apart
def stream_ahead(s: State, log: Any, rules: Any, visit: int, target: int, steps: int) -> None:
    """What the layer of visit `target` lacks joins the stream queue, if that visit streams; visit: the last one that
    was routed (-1: none)."""
    step, layer = target // s.run.n_layers, target % s.run.n_layers
    if step >= steps or not streams(s, rules, step, layer):
        return
    rules.layer[layer].joined = target
    for g in range(layer * s.run.n_experts, (layer + 1) * s.run.n_experts):
        if anywhere(s, g):
            continue
        copy = stage_of(s, g)
        lg.queued(s, log, copy, visit, STREAM)
        move(s, copy, QUEUED)
        s.expert[copy].origin = STREAM
        rules.expert[g].joined = target
        rules.streams[rules.run.n_streams] = copy
        rules.run.n_streams += 1


@whole
def begin_streams(s: State, log: Any, rules: Any, steps: int) -> None:
    """Time 0, as Python calls it."""
    stream_first(s, log, rules, steps)


@apart
def stream_first(s: State, log: Any, rules: Any, steps: int) -> None:
    """Time 0, or a reset: the coming visits have their copies queued."""
    for target in range(s.run.routed, s.run.routed + rules.run.ahead):
        stream_ahead(s, log, rules, s.run.routed - 1, target, steps)


# --- over the link ---


@inlined
def _follows(s: State, rules: Any, copy: int, last: int) -> bool:
    """Whether a queued copy may go in the transfer that ends with copy `last`."""
    if rules.run.merge_runs == 0 or copy != last + 1 or rules.run.stages_free == 0:
        return False
    same_visit = rules.expert[_whose(s, copy)].joined == rules.expert[_whose(s, last)].joined
    return same_visit and s.expert[copy].layer == s.expert[last].layer


@apart
def _claim(s: State, log: Any, rules: Any, copy: int) -> None:
    rules.run.stages_free -= 1
    rules.count.stages_used += 1
    rules.count.stage_peak = max(rules.count.stage_peak, rules.count.stages_used)
    rules.expert[_whose(s, copy)].next = NOBODY
    move(s, copy, COMMITTED)
    lg.committed(s, log, copy, NOBODY, rules.run.runs)


@apart
def commit_demanded(s: State, log: Any, rules: Any) -> bool:
    """The copy at the head of the demand queue goes on the link, with those behind it that may share its transfer;
    False where no stage is free."""
    if rules.run.stages_free == 0:
        return False
    last = s.demand[s.link.demand_head]
    _claim(s, log, rules, last)
    s.link.demand_head += 1
    rules.visit.run = 1
    while s.link.demand_head < s.link.demand_tail and _follows(s, rules, s.demand[s.link.demand_head], last):
        copy = s.demand[s.link.demand_head]
        _claim(s, log, rules, copy)
        rules.expert[_whose(s, last)].next = copy
        last = copy
        s.link.demand_head += 1
        rules.visit.run += 1
    return True


@apart
def commit_streamed(s: State, log: Any, rules: Any) -> bool:
    """The same for the head of the stream queue."""
    if rules.run.stages_free == 0:
        return False
    last, n = rules.streams[0], 1
    _claim(s, log, rules, last)
    while n < rules.run.n_streams and _follows(s, rules, rules.streams[n], last):
        copy = rules.streams[n]
        _claim(s, log, rules, copy)
        rules.expert[_whose(s, last)].next = copy
        last = copy
        n += 1
    _take(rules, 0, n)
    rules.visit.run = n
    return True


@apart
def land_copies(s: State, log: Any, rules: Any, first: int) -> None:
    """A transfer into stages has landed: its copies are there, and ready if this visit wants them. What was left over
    by a visit that has ended is freed at once, unless the layer's next visit has begun or has been prepared for."""
    copy = first
    while copy != NOBODY:
        expert = rules.expert[_whose(s, copy)]
        move(s, copy, RESIDENT)
        rules.count.staged += 1
        rules.count.landed_stream += s.expert[copy].origin == STREAM
        s.count.landed_demand += s.expert[copy].origin == DEMAND
        rules.visit.copies_left -= expert.owed
        expert.owed = 0
        arrived(s, copy)
        lg.ended(s, log, copy, 0)
        of = rules.layer[s.expert[copy].layer]
        if of.joined <= of.ended:
            _free(s, rules, copy)
            rules.count.unwanted += 1
        copy = expert.next


@apart
def _free(s: State, rules: Any, copy: int) -> None:
    move(s, copy, ABSENT)
    rules.run.stages_free += 1
    rules.count.stages_used -= 1


@apart
def executed_copy(s: State, rules: Any, copy: int) -> None:
    """A copy has run from its stage, which is free again: no touch, no use."""
    s.expert[copy].work = 0
    _free(s, rules, copy)


@choice
def end_visit(s: State, rules: Any) -> None:
    """The layer has ended: what nobody ran is freed where it is in a stage."""
    visit = s.run.routed - 1
    layer = visit % s.run.n_layers
    rules.layer[layer].ended = visit
    if rules.run.whole_layer == 0:
        return
    for g in range(layer * s.run.n_experts, (layer + 1) * s.run.n_experts):
        copy = stage_of(s, g)
        if s.expert[copy].state == RESIDENT:
            _free(s, rules, copy)
            rules.count.unwanted += 1
