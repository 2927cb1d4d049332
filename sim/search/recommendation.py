"""The answer of `python -m sim.recommend`, as an object: a memory split, a search, and how the best compares."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import cached_property, partial
from typing import Any

from sim.capacity import largest_run, largest_step
from sim.costs.memory_split import Card, Split, TooSmall, split
from sim.errors import SpecError
from sim.memo import Memo
from sim.on_miss import NEVER_FETCH, staged, visit_stages
from sim.outcome.marks import short_of_host
from sim.policies.registry import find
from sim.prepare import Setting
from sim.search.first_screen import Way, first_screen
from sim.search.halving import Search, begin_with, lengths_of
from sim.search.judging import Case, Evaluate, NoAnswer, Rated, Wish, nothing, searched
from sim.search.measured_quality import measured
from sim.search.side_by_side import SideBySide, fastest_engine, of_policy
from sim.search.space import BASELINE, POLICIES, Candidate, Space, fields_of
from sim.search.windows import windows
from sim.spec import RunSpec
from sim.sweeps.answer import speed
from traces.format.layout import ARRAYS

STREAMS = {"eviction": "static", "miss": "stream"}  # who copies into stages
CPU = "the best computes experts on the CPU beside the GPU, which not every engine can; --miss fetch asks for another"
WHOLE = "all experts fit the GPU: every policy is the same, none was searched"
FIRST = " (the engines ran first, within it)"
FLOOR, NEXT = "lru + fetch", "next best"


class Recommendation:
    """One search among policies, with the costs of one engine; from a wish. Raises UserError, one line, where the trace
    lacks something."""

    def __init__(self, wish: Wish, tell: Callable[[str], None] = lambda line: None, memo: Memo | None = None) -> None:
        self.wish, self.tell = wish, tell
        streams = {kind: name for kind, name in STREAMS.items() if wish.fixed.get(kind) == name}
        self.case = Case(wish, {**wish.base, **streams}, memo)
        self.setting = self.case.setting
        self.base = dict(self.case.base)
        self.space = self._space(self.setting)
        self._found: dict[str, Way] = {}  # of the policies that are told, by name
        steps = self.setting.steps
        parts = lengths_of(len(steps), len(steps.row), self.setting.spec.warmup_steps)
        self.lengths = parts[-1:] if wish.straight else parts

    @cached_property
    def split(self) -> Split:
        """Raises TooSmall where not one expert of every layer fits."""
        setting = self.setting
        assert setting.model is not None  # the case has seen to it
        rows, spec = largest_step(setting.spec, setting.steps), setting.spec
        sizes = (spec.precision, self.case.vram, self.wish.context, spec.batch, rows, largest_run(setting.steps))
        card = Card(setting.model, setting.hardware, setting.engine, *sizes)
        return split(card, staged(setting.rules, setting.plan, card.rows))

    def _room(self, candidate: Candidate) -> dict[str, Any]:
        """The cache of a candidate that streams, beside stages for all that a visit may want."""
        static, dealt = candidate["eviction"] == STREAMS["eviction"], find("placement", candidate["placement"]).spreads
        lacks = (static or dealt) and find("miss", candidate["miss"]).kind not in NEVER_FETCH
        if candidate["miss"] != STREAMS["miss"] and not lacks:
            return {}
        return {"cache": self.split.beside(visit_stages(self.setting.plan)).cache}

    def _space(self, setting: Setting) -> Space:
        trace, limit = setting.trace, self.wish.max_lossy_weight
        if limit > 0 and not trace.has("weights"):
            raise SpecError(f"max-lossy-weight: {limit}: needs `weights`, which {setting.spec.trace} does not have")
        other = setting.calibration
        decodes = other is not None and (setting.spec.as_decode or not other.prefill.all())
        lacking = () if other is None else [name for name in ARRAYS if not other.has(name)]
        what = (trace, other is not None, setting.hardware.answers_cpu, limit > 0, self.wish.fixed)
        return Space.of(*what, decodes=bool(decodes), lacking=lacking)

    def search(self, evaluate: Evaluate) -> dict[str, Any]:
        """The answer as one JSON object. evaluate: see sim.search.halving. Where no engine is asked for, every one that
        has a behaviour runs beside the candidates, `engines` ranks them and the best policies, and where no policy can
        be recommended they are the answer. Raises UserError, one line, where nothing fits."""
        if "engine" in self.wish.base:
            out, policies = self._policies(evaluate)
            rows = sorted((of_policy(*each) for each in policies.items()), key=speed, reverse=True)
            return out | self._answer(out, rows)
        beside = SideBySide(self.case, evaluate)
        try:
            out, policies = self._policies(beside)
        except (TooSmall, NoAnswer) as refusal:
            out, policies = beside.alone(self.lengths, refusal), {}
            out["refusal"] += FIRST if out["refusal"].startswith("time-limit") else ""
            if isinstance(refusal, TooSmall):
                out["refusal"] += f" ({self._dense_words}){beside.smaller_kv()}"
        else:
            out |= fastest_engine(beside.rows(policies))
        return out | self._answer(out, out["engines"], beside)

    def _answer(
        self, out: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], beside: SideBySide | None = None
    ) -> dict[str, Any]:
        """The first screen. beside: of the engines among the rows."""
        steps = out["spec"]["max_steps"]
        engines = {} if beside is None else beside.at(steps)
        told = first_screen(self.case, rows, lambda name: engines[name] if name in engines else self._found[name])
        if told["answer"]["whole"] and out["search"] is not None and WHOLE not in out["notes"]:
            told["notes"] = [*out["notes"], f"policies were searched all the same: {self._dense_words}"]
        return told

    @property
    def _dense_words(self) -> str:
        """What policies lack room for where an engine has it."""
        dense = self.setting.engine.precision_of("dense", self.setting.spec.precision)
        return f"policies count dense weights in {dense}; engines that store them smaller have more room"

    def _again(self, candidate: Candidate, changes: Mapping[str, Any]) -> RunSpec:
        """The spec of a candidate with other memory, rates or precision, its cache filled anew."""
        other = Recommendation(self.wish.changed(changes), memo=self.case.memo)
        other.base |= {"cache": other.split.cache}
        other.base |= {"max_steps": self.base["max_steps"]} if "max_steps" in self.base else {}
        return other._spec(candidate)

    def _policies(self, evaluate: Evaluate) -> tuple[dict[str, Any], dict[str, Rated]]:
        """The answer of the search among policies, and the best of them by name."""
        limit, most = self.wish.max_lossy_weight, self.wish.candidates
        self.base["cache"] = self.split.cache
        self._refuse_the_host()
        if whole := self.split.slots == self.split.experts:
            most = 1  # nothing is ever missing: every policy is the same
        search = Search(self.space, self.base, evaluate, self.lengths, most, limit, self.tell, self._room)
        ranked = search.run(begin_with(self.space, most, self.setting.spec.seed))
        if not ranked:
            raise NoAnswer(nothing(search, self.wish))
        if search.reached < search.steps:
            self.base["max_steps"] = search.reached
        best, row = ranked[0]
        others = [
            c for c, r in ranked if any(c[kind] != best[kind] for kind in POLICIES) and r["time_ns"] != row["time_ns"]
        ]
        judged = self._judge(best)
        if judged.summary["time_ns"] != row["time_ns"]:
            raise RuntimeError(f"{judged.spec}: {judged.summary['time_ns']} ns here, {row['time_ns']} ns in a worker")
        rivals, chosen = {FLOOR: self._judge(BASELINE)}, {"best": best, FLOOR: BASELINE}
        if others:
            rivals[NEXT], chosen[NEXT] = self._judge(others[0]), others[0]
        self._found = {name: (self._spec(each), partial(self._again, each)) for name, each in chosen.items()}
        out = {"search": searched(search, self.wish), **self._object(judged, rivals)}
        out["notes"] += [WHOLE] if whole else []
        return out, {"best": judged} | _others(judged, rivals)

    def _refuse_the_host(self) -> None:
        """Where the host does not hold the experts, no policy keeps them there."""
        setting = self.setting
        if not setting.hardware.unified and setting.host_memory["fits"] is False:
            raise NoAnswer(f"ram: a policy {short_of_host(setting.host_memory)}")

    def _spec(self, candidate: Candidate) -> RunSpec:
        return RunSpec.of({**self.base, **fields_of(candidate), **self._room(candidate), **self.case.gpu})

    def _judge(self, candidate: Candidate) -> Rated:
        return self.case.rate(self._spec(candidate), words(candidate))

    def _object(self, best: Rated, rivals: dict[str, Rated]) -> dict[str, Any]:
        spec = best.spec
        on_the_host = find("miss", spec.miss).may_answer_cpu(spec.params("miss"))
        out = self.case.answer(best, rivals, [CPU] if on_the_host else [])
        for judged, said in ((best, out["best"]), *((rivals[name], said) for name, said in out["beats"].items())):
            if said["open_loop"]:
                said["closed_loop"] = self._closed_loop(judged)
        if self.wish.windows is not None:
            out["speculation"] = windows(self.case, best, self.wish.windows)
        return out | {"floor": FLOOR, "memory": asdict(self.split) | {"context": spec.context, "batch": spec.batch}}

    def _closed_loop(self, judged: Rated) -> dict[str, Any] | None:
        """What the study measured of this policy on this model, where it did."""
        return measured(self.setting.trace.model, judged.spec, self.split.slots / self.split.experts)


def _others(best: Rated, rivals: dict[str, Rated]) -> dict[str, Rated]:
    return {name: rival for name, rival in rivals.items() if rival.spec != best.spec}


def words(candidate: Candidate) -> str:
    """A candidate for people: eviction, prefetch, miss with their parameters, then what else is not plain."""
    parts = []
    for kind in POLICIES:
        name = candidate[kind]
        given = {knob.rpartition(".")[2]: v for knob, v in candidate.items() if knob.rpartition(".")[0] == name}
        if kind == "prefetch":
            given |= {knob: candidate[knob] for knob in ("prefetch_budget", "transfer_order") if candidate.get(knob)}
        inside = ", ".join(f"{key} {value}" for key, value in given.items())
        parts.append(f"{kind} {name}" + (f" ({inside})" if inside else ""))
    marginal = ", spread by marginal hits" if candidate.get("cache_spread") == "marginal" else ""
    own = f"slots of each layer's own{marginal}"
    parts.append("one pool for all layers" if candidate["cache_scope"] == "global" else own)
    return ", ".join([*parts, f"placement {candidate['placement']}"])
