"""Transfers in chunks (plan.OnMiss.chunk_bytes): between two chunks of what a demand may pass, a demand passes it.

ProMoE (arXiv 2410.22134) cuts what it fetches ahead, so that a demand waits for a chunk and not for an expert. Cut is
what comes from a queue behind the demand queue: prefetch, background, admission, and the copies of layers ahead unless
runs of them are merged. A demand goes whole, for nothing passes it. The slot, or the stage, is claimed with the first
chunk; the expert lands with the last, and is committed in between: late for a visit that wants it, and never taken
back. What is not committed of it yet is its *rest*: it goes before a demand where the visit being served waits for it,
else behind, and before anything else; so no more than one expert has a rest. A chunk is an entry of State.flight like
any transfer.
"""

from typing import Any

from sim.core import log as lg
from sim.core.jit import apart, inlined
from sim.core.rules import NOBODY
from sim.core.state import State

WHOLE = -1  # Part.number of what goes in one piece


@inlined
def is_cut(s: State, rules: Any, g: int) -> bool:
    """Whether expert g, which comes from another queue than the demand queue, goes in chunks."""
    return rules.run.chunks > 1 and (g < s.run.stage_base or rules.run.merge_runs == 0)


@inlined
def awaited_rest(s: State, rules: Any) -> int:
    """The expert that has a rest, if the visit being served waits for it; else NOBODY."""
    g = rules.run.rest
    if g < 0:
        return NOBODY
    copy = g - s.run.stage_base
    awaited = s.expert[g].waited == 1 or (copy >= 0 and rules.expert[copy].owed == 1)
    return g if awaited else NOBODY


@apart
def put(s: State, log: Any, rules: Any, place: int, g: Any, cut: bool) -> None:
    """What is committed at a place of State.flight: expert g as a whole (with what its transfer brings beside it), or
    its next chunk."""
    part, run = rules.part[place], rules.run
    part.number, part.last, part.row = WHOLE, 1, NOBODY
    if not cut:
        run.runs += 1
        return
    if run.rest != g:
        run.rest, run.sent = g, 0
        run.runs += 1
    else:
        s.link.n_behind -= 1
    part.number = run.sent
    run.sent += 1
    part.last = 1 if run.sent == run.chunks else 0
    if part.last == 1:
        run.rest = NOBODY
    lg.chunk_committed(s, log, part, g)


@apart
def land_part(s: State, log: Any, rules: Any, place: int) -> bool:
    """A chunk has landed behind which more of its expert comes; False of any other."""
    part = rules.part[place]
    if part.number != WHOLE:
        rules.count.chunks += 1
    if part.last == 1:
        return False
    s.link.n_behind += 1
    lg.chunk_landed(s, log, part)
    return True


@inlined
def landed_with(s: State, log: Any, rules: Any, place: int) -> None:
    """The transfer has landed, and with it its last chunk."""
    if rules.part[place].number != WHOLE:
        lg.chunk_landed(s, log, rules.part[place])
