"""What every policy of the registry costs: time of a run with it over the bare lru loop's, just before it."""

import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from sim.errors import SpecError
from sim.machines import compiled
from tests.bench.arms import BASE, Arms, asked
from tests.bench.figures import Ask, Figure, beside
from tests.bench.plans import requests_of
from traces.errors import TraceError


def policies(ask: Ask) -> Iterator[Figure]:
    """Times the bare loop, of each policy alone and of lookahead with buddies; oracles have no figure to reach."""
    for name, trace in ask.traces.items():
        with tempfile.TemporaryDirectory() as folder:
            arms = Arms(trace, ask.each, Path(folder))
            base, jobs = partial(compiled.run, arms.plan(BASE)), {}
            for arm in arms.every():
                try:
                    jobs[arm] = partial(compiled.run, arms.plan(arm))
                except (SpecError, TraceError) as why:
                    print(f"  {arm}: not run: {why}")
            found = beside(base, jobs, ask.runs)
        made = [what for what in ("weights", "logits", "lookahead") if not trace.has(what)]
        about = f"{requests_of(arms.base):,} requests; SYNTHETIC here: {', '.join(made) or 'nothing'}"
        for arm, values in found.items():
            yield Figure(f"policies/{name}/{arm}", "x the bare loop", values, asked(arm), about if arm == BASE else "")
