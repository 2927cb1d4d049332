"""Time 0 again, in the middle of a run: what a request of others' counting begins with (--reset request).

Published hit rates are often those of one prompt after another, each on a cache that knows nothing of the last. So at a
reset everything is as it was when the first residents had landed, but for what `_kept` names (sim.core.state and
sim.core.rules): what the run is, what goes on counting (visits, touches, events, rows of the record) and figures. It is
put back as one piece of memory, so whatever a policy comes to remember is forgotten unless it is said here or there.
"""

from typing import Any

from sim.core.hooks import KINDS, STATES
from sim.core.jit import apart, choice
from sim.core.stages import stream_first
from sim.core.state import State


def remember_start(s: State) -> None:
    """Time 0, the first residents being there: what a run with resets comes back to."""
    s.arrays["at_start"][:] = s.arrays["forgotten"][: len(s.arrays["at_start"])]


@apart
def _put_back(now: Any, then: Any) -> None:
    for i in range(len(now)):  # one slice to another allocates, where they might overlap
        now[i] = then[i]


@choice
def as_at_start(s: State, log: Any, hooks: Any, rules: Any, steps: int) -> None:
    """Slots, queues, stages, uses and scores as at time 0, a user's own state zero, layers ahead joined again."""
    for g in range(len(s.expert)):  # the future is what it was
        s.first[g].next_use = s.expert[g].next_use
    _put_back(s.forgotten, s.at_start)
    s.run.fresh_step = s.run.routed // s.run.n_layers
    if hooks is not None:
        for kind in range(len(KINDS)):
            hooks.floats[STATES + kind, :] = 0.0
    if rules is not None:
        runs = rules.run.runs
        _put_back(rules.forgotten, rules.at_start)
        rules.run.runs = runs
        rules.count.stages_used = 0
        stream_first(s, log, rules, steps)
