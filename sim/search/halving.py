"""The search behind a recommendation: successive halving over the length of the trace, then the neighbours of the best.

Successive halving (Jamieson and Talwalkar 2016, arXiv 1502.07943): all candidates run the first steps of the judged
trace; the better half goes on with twice as many, until the rest runs all of it. Every length costs about the same, so
n candidates cost about 5 x n / 16 whole runs. Then, on the whole trace, one knob of the best at a time is turned, as
long as that helps: a sample cannot hold every combination. Not a model-based optimiser: the space is discrete and
conditional, a run takes a tenth of a second, and this needs no dependency and repeats exactly.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sim.search.space import Candidate, Space, name_of
from sim.spec import RunSpec
from sim.sweeps.answer import by_prompts, lost_weight, speed, speeds
from sim.sweeps.config import Configuration, identity
from sim.sweeps.rows import Row

LENGTHS = (16, 8, 4, 2, 1)  # the trace's steps are divided by these
LEAST_STEPS, LEAST_ROWS, FEWEST_STEPS = 64, 1024, 4  # of the shortest length: see lengths_of
FINALISTS = 3
ROUNDS = 4  # of turning knobs
BEGUN = 0.4  # of the candidates; the others may be neighbours

Found = dict[str, tuple[Candidate, Row]]


def lengths_of(steps: int, rows: int, warmup: int = 0) -> list[int]:
    """How many first steps of the judged trace the candidates run, ascending; the last is all of it.

    steps, rows: of the whole judged trace, `warmup` steps of it not counted. The shortest length has LEAST_STEPS
    counted steps, or LEAST_ROWS rows where steps are large (prompts), but no fewer than FEWEST_STEPS steps."""
    counted = steps - warmup
    least = min(LEAST_STEPS, max(FEWEST_STEPS, LEAST_ROWS * steps // rows))
    return sorted({warmup + max(min(least, counted), counted // part) for part in LENGTHS})


def begin_with(space: Space, most: int, seed: int) -> list[Candidate]:
    """The candidates to begin with, of at most `most` in all: the plain ones, as many as there is room for, and others
    drawn at random until they are the share BEGUN."""
    return space.sample(max(min(most, len(space.plain())), int(most * BEGUN)), seed)


@dataclass
class Search:
    """A search for the fastest candidate. base: the fields that all share; lengths: see lengths_of; most: different
    candidates that are ever run; max_lossy_weight: more lost router weight than this is not admitted; room: fields of a
    candidate that follow from its others, in place of those that all share; ties: speeds within this share of the
    fastest are equal, and the prompts' decide.

    evaluate: rows of runs, in any order; fewer rows than runs where its time is over, which ends the search.

    found: by length in steps and by id, the rows so far; runs: how many there were, of any length; ended: what ended
    the search: "settled" (every neighbour of the best has run), "rounds" (ROUNDS of turning knobs), "candidates"
    (`most` of them) or "time-limit".
    """

    space: Space
    base: Mapping[str, Any]
    evaluate: Callable[[Sequence[Configuration]], Sequence[Row]]
    lengths: Sequence[int]
    most: int
    max_lossy_weight: float = 0.0
    tell: Callable[[str], None] = lambda line: None
    room: Callable[[Candidate], Mapping[str, Any]] = lambda candidate: {}
    ties: float = 0.0
    runs: int = 0
    failed: int = 0
    ended: str = "settled"
    found: dict[int, Found] = field(default_factory=dict)
    _names: set[str] = field(default_factory=set)  # of the candidates that were ever run

    @property
    def steps(self) -> int:
        """Of the whole judged trace."""
        return self.lengths[-1]

    @property
    def whole(self) -> Found:
        """By id, what ran the whole judged trace."""
        return self.found.get(self.steps, {})

    @property
    def reached(self) -> int:
        """The longest length over which an admitted candidate has run, in steps; the shortest while none has."""
        return max((n for n, found in self.found.items() if self._order(found.values())), default=self.lengths[0])

    @property
    def counts(self) -> dict[str, int]:
        """Different candidates, runs of any length, those that failed, runs over the whole judged trace and over the
        longest length that was reached."""
        reached = len(self.found.get(self.reached, {}))
        counts = {"runs": self.runs, "failed": self.failed, "whole": len(self.whole), "compared": reached}
        return {"candidates": len(self._names), **counts}

    @property
    def errors(self) -> dict[str, int]:
        """Why candidates failed, and how many of them."""
        whys = {name: row["error"] for found in self.found.values() for name, (_, row) in found.items() if row["error"]}
        return dict(Counter(whys.values()))

    def run(self, candidates: Sequence[Candidate]) -> list[tuple[Candidate, Row]]:
        """Begin with these, at most `most`. Gives those admitted that ran the longest length reached (the whole trace,
        unless the time was over before), the fastest first."""
        self._halve(candidates[: self.most])
        self._turn()
        return self._order(self.found.get(self.reached, {}).values())

    def _halve(self, candidates: Sequence[Candidate]) -> None:
        keep = list(candidates)
        for i, steps in enumerate(self.lengths):
            left = max(2 * FINALISTS, len(candidates) >> (i + 1))
            if 0 < i < len(self.lengths) - 1 and len(keep) <= left:
                continue  # nobody would stop here
            self.tell(f"{len(keep)} candidates over {steps:,} of {self.steps:,} steps")
            ranked = self._ranked(keep, steps)
            if self.ended == "time-limit":
                return
            keep = [candidate for candidate, _ in ranked[:left]]

    def _turn(self) -> None:
        """Turn knobs of the best as long as that helps, and candidates and time are left."""
        for _ in range(ROUNDS):
            new = [] if self.ended == "time-limit" else self._neighbours()
            if not new:
                return
            self.tell(f"{len(new)} neighbours of the best over all {self.steps:,} steps")
            self._ranked(new, self.steps)
        if self.ended == "settled":
            self.ended = "rounds"

    def _neighbours(self) -> list[Candidate]:
        """Of the best, those that have not run the whole trace, as long as there are candidates left."""
        best = self._order(self.whole.values())[:FINALISTS]
        near = {name_of(each): each for candidate, _ in best for each in self.space.neighbours(candidate)}
        for candidate, _ in self.whole.values():
            near.pop(name_of(candidate), None)
        fresh = [name for name in near if name not in self._names]
        beyond = set(fresh[self.most - len(self._names) :])
        self.ended = "candidates" if beyond else "settled"
        return [candidate for name, candidate in near.items() if name not in beyond]

    def _run_of(self, candidate: Candidate, steps: int) -> Configuration:
        length = {} if steps >= self.steps else {"max_steps": steps}
        spec = RunSpec.of({**self.base, **self.space.fields(candidate), **self.room(candidate), **length})
        return Configuration(identity(spec), spec)

    def _ranked(self, candidates: Sequence[Candidate], steps: int) -> list[tuple[Candidate, Row]]:
        """Run them over the first steps; those admitted, the fastest first."""
        runs = [self._run_of(candidate, steps) for candidate in candidates]
        by_id = {run.id: (run, candidate) for run, candidate in zip(runs, candidates, strict=True)}
        rows = self.evaluate([run for run, _ in by_id.values()])
        self.runs += len(rows)
        self.failed += sum(row["error"] is not None for row in rows)
        found = {row["id"]: (by_id[row["id"]][1], row) for row in rows}
        self._names |= {name_of(candidate) for candidate, _ in found.values()}
        self.found[steps] = self.found.get(steps, {}) | found
        if len(rows) < len(by_id):
            self.ended = "time-limit"
        return self._order(found.values())

    def _order(self, found: Any) -> list[tuple[Candidate, Row]]:
        """Admitted ones, fastest first; of equals the one with fewer knobs off their plainest setting."""
        admitted = [pair for pair in found if lost_weight(pair[1]) <= self.max_lossy_weight]
        ordered = sorted(admitted, key=lambda pair: (-speed(pair[1]), self._turned(pair[0]), pair[1]["id"]))
        return by_prompts(ordered, lambda pair: speeds(pair[1]), self.ties) if self.ties else ordered

    def _turned(self, candidate: Candidate) -> int:
        return sum(candidate[knob] != values[0] for knob, values in self.space.mattering(candidate).items())
