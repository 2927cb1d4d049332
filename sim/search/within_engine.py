"""The search for the best setting of one engine: all that its users may choose, each at what fits the card."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

from sim.capacity import Fits
from sim.costs.memory_split import Split
from sim.engines import FREE
from sim.memo import Memo
from sim.prepare import prepare
from sim.search.engine_space import OTHER, EngineSpace, may_lose, moved_by_number
from sim.search.first_screen import differing_words, first_screen, setting_words
from sim.search.halving import Search, lengths_of
from sim.search.judging import Case, Evaluate, NoAnswer, Rated, Wish, nothing, searched
from sim.search.side_by_side import TIES, of_engine, on_the_gpu, on_the_host, why_not
from sim.search.smaller_kv import smaller_kv
from sim.search.space import Candidate, name_of
from sim.search.ties import ENGINE, UNRELEASED
from sim.search.windows import windows
from sim.spec import RunSpec
from sim.sweeps.config import Configuration
from sim.sweeps.rows import PAIRS, Row, pair_of, row_of
from traces.errors import UserError

FEW = 32  # settings that all run all steps
BEST = 5  # of the ranked ones that are told
NEXT = "next best"


class WithinEngine:
    """One search among the settings of an engine that has a behaviour; from a wish. Raises UserError, one line, where
    the trace lacks something."""

    def __init__(self, wish: Wish, tell: Callable[[str], None] = lambda line: None, memo: Memo | None = None) -> None:
        self.wish, self.tell = wish, tell
        given = {**wish.base, **wish.fixed}
        engine = RunSpec.of(given).behaves
        assert engine is not None
        self.engine = engine
        work = {name: value for name, value in given.items() if name in FREE}
        chunk = {name: value for name, value in engine.sets.items() if name == "prefill_chunk"}
        self.case = Case(wish, {**chunk, **work, "engine_as_costs": True}, memo)
        self.base = {**self.case.base, **wish.fixed, **self.case.gpu}
        self.space = EngineSpace.within(engine, self.case.setting, given, wish.max_lossy_weight > 0)
        self._rooms: dict[str, dict[str, Any]] = {}

    def search(self, evaluate: Evaluate) -> dict[str, Any]:
        """The answer as one JSON object. evaluate: see sim.search.halving."""
        every, steps = self.space.every(self.wish.candidates), self.case.setting.steps
        whole = len(every) <= FEW
        lengths = [len(steps)] if whole else lengths_of(len(steps), len(steps.row), self.case.setting.spec.warmup_steps)
        search = Search(
            self.space, self.base, self._fitting(evaluate), lengths, self.wish.candidates,
            self.wish.max_lossy_weight, self.tell, self._room, TIES,
        )  # fmt: skip
        ranked = search.run(every)
        if not ranked:
            raise NoAnswer(f"{nothing(search, self.wish)}{self._smaller_kv(search)}")
        ranked = distinct(ranked)
        if search.reached < search.steps:
            self.base["max_steps"] = search.reached
        best = self._judge(ranked[0][0])
        rivals, floor_error = self._rivals(ranked)
        rows = [row for _, row in ranked[:BEST]]
        asked, ways = self.wish.windows, {}
        for candidate, _ in ranked[:BEST]:
            spec = self._spec(candidate)
            ways[name_of(candidate)] = spec, partial(self._again, candidate)
        table = [self._row(candidate, row, ways[name_of(candidate)][0]) for candidate, row in ranked[:BEST]]
        return {
            "search": searched(search, self.wish),
            **self.case.answer(best, rivals, self._nothing_lossy()),
            "engine": best.summary["engine"],
            "floor": self._floor,
            "floor_error": floor_error,
            "memory": self._memory(best),
            "ranked": [_told(row) for row in rows],
            "refused": dict(Counter(self.space.left_out) + Counter(search.errors)),
            **({} if asked is None else {"speculation": windows(self.case, best, asked)}),
            **first_screen(self.case, table, lambda name: ways[name]),
        }

    def _smaller_kv(self, search: Search) -> str:
        """What of KV entries would make room, where the card is too small for every setting."""
        if search.ended == "time-limit":
            return ""
        return smaller_kv([RunSpec.of(self.base)], self.case.longest, self.case.memo)

    def _row(self, candidate: Candidate, row: Row, spec: RunSpec) -> dict[str, Any]:
        """A setting as a line of the first screen's table."""
        kind = ENGINE if self.engine.released else UNRELEASED
        told = of_engine(self.engine.name, kind, spec, row, self.case)
        return (
            told
            | {"key": name_of(candidate), "setting": setting_words(told["words"])}
            | {"differs": differing_words(told["words"])}
        )

    def _again(self, candidate: Candidate, changes: Mapping[str, Any]) -> RunSpec:
        """A setting with other memory, rates or precision, at what then fits."""
        other = WithinEngine(self.wish.changed(changes), memo=self.case.memo)
        other.base |= {"max_steps": self.base["max_steps"]} if "max_steps" in self.base else {}
        return other._spec(candidate)

    def _fitting(self, evaluate: Evaluate) -> Evaluate:
        """What a run cannot be an answer for is its error."""
        lossy = self.wish.max_lossy_weight > 0

        def fitting(runs: Sequence[Configuration]) -> Sequence[Row]:
            return [row | {"error": why_not(row, lossy)} for row in evaluate(runs)]

        return fitting

    @property
    def _floor(self) -> str:
        return f"{self.engine.name} as it comes"

    def _nothing_lossy(self) -> list[str]:
        """That leave to lose something is of no use, where it is not."""
        limit, given = self.wish.max_lossy_weight, {**self.engine.sets, **self.wish.base, **self.wish.fixed}
        if not limit or may_lose(self.engine, given):
            return []
        return [f"{self.engine.name} has nothing lossy to choose: --max-lossy-weight {limit:g} changes nothing"]

    def _rivals(self, ranked: Sequence[tuple[Candidate, Row]]) -> tuple[dict[str, Rated], str | None]:
        """The engine's default setting, the next best other one; and why there is no default, where it is no answer."""
        time_ns = ranked[0][1]["time_ns"]
        others = [candidate for candidate, row in ranked if row["time_ns"] != time_ns]
        rivals = {NEXT: self._judge(others[0])} if others else {}
        try:
            floor = self.case.rate(RunSpec.of(self.base))
        except UserError as error:
            return rivals, str(error)
        row = row_of(Configuration("", floor.spec), floor.summary)
        wrong = why_not(row, self.wish.max_lossy_weight > 0)
        return ({self._floor: floor} if wrong is None else {}) | rivals, wrong

    def _spec(self, candidate: Candidate) -> RunSpec:
        return RunSpec.of({**self.base, **self.space.fields(candidate), **self._room(candidate)})

    def _judge(self, candidate: Candidate) -> Rated:
        return self.case.rate(self._spec(candidate))

    def _room(self, candidate: Candidate) -> dict[str, Any]:
        """Layers of the other end of the model, as many as fit beside the setting's other choices."""
        if candidate.get("layers", self.engine.knob) == self.engine.knob:
            return {}
        name = name_of(candidate)
        if name not in self._rooms:
            self._rooms[name] = self._other_end(candidate)
        return self._rooms[name]

    def _other_end(self, candidate: Candidate) -> dict[str, Any]:
        try:
            s = prepare(RunSpec.of({**self.base, **self.space.fields(candidate)}), self.case.memo)
            end = OTHER[self.engine.knob]
            turned = self.engine.model_copy(update={"knob": end})
            rules = (s.rules, s.plan.miss, s.plan.eviction)
            slots = Fits(s.spec, s.trace, s.steps, s.model, s.hardware, turned, *rules).slots()
        except UserError:
            return {}  # its run says the same
        held = int((slots > 0).sum())
        if moved_by_number(self.engine):
            return {"n_cpu_moe": len(slots) - held}
        return {"cache": f"layers:{held}" if end == "last" else f"layers:first:{held}"}

    def _memory(self, best: Rated) -> dict[str, Any]:
        """The memory line of the best, as a split of what the engine takes of the card."""
        line, setting = best.summary["memory"], self.case.setting
        assert setting.model is not None
        size, slots = setting.model.expert_bytes(best.spec.precision), best.summary["slots"]["total"]
        room = int(self.case.vram * self.engine.memory_share)
        held = (size, slots, setting.model.n_routed, line.get("reserve", 0))
        split = Split(room, line["dense"], line["kv"], line["staging"], *held)
        return asdict(split) | {"context": best.spec.context, "batch": best.spec.batch, "fits": line["fits"]}


def distinct(ranked: Sequence[tuple[Candidate, Row]]) -> list[tuple[Candidate, Row]]:
    """Of settings that come to the same figures the first, which is the nearest to the default."""
    found: dict[Any, tuple[Candidate, Row]] = {}
    for candidate, row in ranked:
        figures = (row["time_ns"], row["tokens_per_s"], row["prompt_tokens_per_s"], row["slots.total"])
        found.setdefault((*figures, on_the_gpu(row), on_the_host(row)), (candidate, row))
    return list(found.values())


def _told(row: Row) -> dict[str, Any]:
    names = (
        "tokens_per_s",
        "total_tokens_per_s",
        "prompt_tokens_per_s",
        "engine.residents",
        "engine.words",
        "deferred",
    )
    figures = {name.removeprefix("engine."): row[name] for name in names}
    return figures | {key: pair_of(row, key) for key in PAIRS}
