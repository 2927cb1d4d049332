"""The search behind a recommendation: successive halving over the length of the trace, then the neighbours of the best.

Successive halving (Jamieson and Talwalkar 2016, arXiv 1502.07943): all candidates run the first steps of the judged
trace; the better half goes on with twice as many, until the rest runs all of it. Every length costs about the same, so
n candidates cost about 5 x n / 16 whole runs. Then, on the whole trace, one knob of the best at a time is turned, as
long as that helps: a sample cannot hold every combination. Not a model-based optimiser: the space is discrete and
conditional, a run takes a tenth of a second, and this needs no dependency and repeats exactly.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sim.spec import RunSpec
from sim.sweeps.answer import lost_weight, speed
from sim.sweeps.config import Run, identity
from sim.sweeps.rows import Row
from sim.sweeps.space import Candidate, Space, fields_of

LENGTHS = (16, 8, 4, 2, 1)  # the trace's steps are divided by these
LEAST_STEPS = 64
FINALISTS = 3
ROUNDS = 4  # of turning knobs


@dataclass
class Search:
    """A search for the fastest candidate. base: the fields that all share; evaluate: rows of runs, in any order; steps:
    of the judged trace; max_lossy_weight: more lost router weight than this is not admitted.

    whole: by id, the rows of runs over the whole trace; runs: how many there were, of any length.
    """

    space: Space
    base: Mapping[str, Any]
    evaluate: Callable[[Sequence[Run]], Sequence[Row]]
    steps: int
    max_lossy_weight: float = 0.0
    tell: Callable[[str], None] = lambda line: None
    runs: int = 0
    failed: int = 0
    whole: dict[str, tuple[Candidate, Row]] = field(default_factory=dict)

    @property
    def counts(self) -> dict[str, int]:
        """runs of any length, those that failed, different candidates that ran the whole trace."""
        return {"runs": self.runs, "failed": self.failed, "whole": len(self.whole)}

    def run(self, candidates: Sequence[Candidate]) -> list[tuple[Candidate, Row]]:
        """Those admitted that ran the whole trace, the fastest first."""
        lengths = sorted({max(min(LEAST_STEPS, self.steps), self.steps // part) for part in LENGTHS})
        keep = list(candidates)
        for i, steps in enumerate(lengths):
            self.tell(f"{len(keep)} candidates over {steps:,} of {self.steps:,} steps")
            ranked = self._ranked(keep, steps)
            keep = [candidate for candidate, _ in ranked[: max(2 * FINALISTS, len(candidates) >> (i + 1))]]
        for _ in range(ROUNDS):
            best = self._order(self.whole.values())[:FINALISTS]
            near = [candidate for each, _ in best for candidate in self.space.neighbours(each)]
            new = [candidate for candidate in near if self._run_of(candidate, None).id not in self.whole]
            if not new:
                break
            self.tell(f"{len(new)} neighbours of the best over all {self.steps:,} steps")
            self._ranked(new, self.steps)
        return self._order(self.whole.values())

    def _run_of(self, candidate: Candidate, steps: int | None) -> Run:
        fields = {**self.base, **fields_of(candidate), **({"max_steps": steps} if steps else {})}
        spec = RunSpec.of(fields)
        return Run(identity(spec.model_dump()), spec)

    def _ranked(self, candidates: Sequence[Candidate], steps: int) -> list[tuple[Candidate, Row]]:
        """Run them over the first steps; those admitted, the fastest first."""
        ends = steps >= self.steps
        runs = [self._run_of(candidate, None if ends else steps) for candidate in candidates]
        by_id = {run.id: (run, candidate) for run, candidate in zip(runs, candidates, strict=True)}
        rows = self.evaluate([run for run, _ in by_id.values()])
        self.runs += len(rows)
        self.failed += sum(row["error"] is not None for row in rows)
        found = {row["id"]: (by_id[row["id"]][1], row) for row in rows}
        if ends:
            self.whole |= found
        return self._order(found.values())

    def _order(self, found: Any) -> list[tuple[Candidate, Row]]:
        """Admitted ones, fastest first; of equals the one with fewer knobs off their plainest setting."""
        admitted = [pair for pair in found if lost_weight(pair[1]) <= self.max_lossy_weight]
        return sorted(admitted, key=lambda pair: (-speed(pair[1]), self._turned(pair[0]), pair[1]["id"]))

    def _turned(self, candidate: Candidate) -> int:
        return sum(candidate[knob] != values[0] for knob, values in self.space.mattering(candidate).items())
