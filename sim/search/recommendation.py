"""The answer of `python -m sim.recommend`, as an object: a memory split, a search, and how the best compares."""

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from sim import __version__
from sim.costs.memory_split import Card, Split, split
from sim.errors import SpecError
from sim.memo import Kept
from sim.on_miss import NEVER_FETCH, staged, visit_stages
from sim.outcome.bounds import bounds
from sim.outcome.per_request import PerRequest, drawn, interval, per_request
from sim.policies.registry import find
from sim.prepare import Setting, prepare
from sim.search.halving import Search, begin_with, lengths_of
from sim.search.measured_quality import measured
from sim.search.space import BASELINE, POLICIES, Candidate, Space, fields_of
from sim.simulation import simulate
from sim.spec import RunSpec
from sim.sweeps.answer import lost_weight
from sim.sweeps.config import Configuration
from sim.sweeps.rows import Row, row_of
from sim.sweeps.worker import MEMO_BYTES

CALIBRATION = 0.25
STREAMS = {"eviction": "static", "miss": "stream"}  # who copies into stages
CPU = "the best computes experts on the CPU beside the GPU, which not every engine can; --miss fetch asks for another"


@dataclass(frozen=True)
class Wish:
    """What is asked for. base: fields of RunSpec that hold for every candidate; fixed: fields that a search could
    choose, and shall not; vram None: all that the hardware has; candidates: different ones that are run at most;
    time_limit_s: what `evaluate` is given, None for no limit (it is only told here)."""

    base: Mapping[str, Any]
    context: int
    vram: int | None = None
    max_lossy_weight: float = 0.0
    candidates: int = 640
    fixed: Mapping[str, Any] = field(default_factory=dict)
    time_limit_s: float | None = None


@dataclass(frozen=True)
class Rated:
    """A candidate over the judged trace, and its requests one by one. lossless_ns: what no run of the class lossless
    can take less than, with these slots and first residents (sim.outcome.bounds), whatever this one's class."""

    candidate: Candidate
    spec: RunSpec
    summary: Mapping[str, Any]
    requests: PerRequest
    lossless_ns: int


class Recommendation:
    """One search, from a wish. Raises UserError, one line, where nothing fits or the trace lacks something."""

    def __init__(self, wish: Wish, tell: Callable[[str], None] = lambda line: None) -> None:
        self.wish, self.tell = wish, tell
        self.memo = Kept(MEMO_BYTES)
        streams = {kind: name for kind, name in STREAMS.items() if wish.fixed.get(kind) == name}
        first = RunSpec.of({**wish.base, **streams, "cache": 1.0})
        calibration, why = self._calibration(first)
        self.notes = [why] if why else []
        self.setting = prepare(first.model_copy(update={"calibration": calibration}), self.memo)
        self.split = self._split(self.setting)
        self.base = {**wish.base, "calibration": calibration, "cache": self.split.cache}
        if calibration is None:
            del self.base["calibration"]
        self.space = self._space(self.setting)

    def _calibration(self, spec: RunSpec) -> tuple[Any, str]:
        """What is set aside: as asked for, else a quarter of the requests, or nothing of a single one, and why."""
        if spec.calibration is not None:
            return spec.calibration, ""
        whole = prepare(spec, self.memo).trace
        if len(whole.requests()[0]) > 1:
            return CALIBRATION, ""
        return None, "the trace has one request: nothing is set aside, so no fitted policy is tried"

    def _split(self, setting: Setting) -> Split:
        spec = setting.spec
        if setting.model is None:
            raise SpecError("model: none that the catalog knows; a memory split needs --model NAME|FILE")
        vram = setting.hardware.mem_bytes if self.wish.vram is None else self.wish.vram
        if vram is None:
            raise SpecError("vram: the hardware does not say how much it has; give --vram 24GB")
        longest = int(setting.trace.position.max()) + 1 + spec.context_offset
        if self.wish.context < longest:
            raise SpecError(
                f"context: {self.wish.context}: the trace has requests of {longest} tokens; must be as many"
            )
        if setting.hardware.mem_bytes is not None and vram > setting.hardware.mem_bytes:
            have = setting.hardware.mem_bytes / 1e9
            self.notes.append(f"{vram / 1e9:.2f} GB is more than the {have:.2f} GB that {spec.hardware} has")
        sizes = (spec.precision, vram, self.wish.context, spec.batch, int(np.diff(setting.steps.offset).max()))
        card = Card(setting.model, setting.hardware, setting.engine, *sizes)
        return split(card, staged(setting.rules, setting.plan))

    def _room(self, candidate: Candidate) -> dict[str, Any]:
        """The cache of a candidate that streams, beside stages for all that a visit may want."""
        static = (
            candidate["eviction"] == STREAMS["eviction"] and find("miss", candidate["miss"]).kind not in NEVER_FETCH
        )
        if candidate["miss"] != STREAMS["miss"] and not static:
            return {}
        return {"cache": self.split.beside(visit_stages(self.setting.plan)).cache}

    def _space(self, setting: Setting) -> Space:
        trace, limit = setting.trace, self.wish.max_lossy_weight
        if limit > 0 and not trace.has("weights"):
            raise SpecError(f"max-lossy-weight: {limit}: needs `weights`, which {setting.spec.trace} does not have")
        other = setting.calibration
        decodes = other is not None and (setting.spec.as_decode or not other.prefill.all())
        return Space.of(
            trace, other is not None, setting.hardware.answers_cpu, limit > 0, self.wish.fixed, decodes=bool(decodes)
        )

    def search(self, evaluate: Callable[[Sequence[Configuration]], Sequence[Row]]) -> dict[str, Any]:
        """The answer as one JSON object. evaluate: see sim.search.halving."""
        steps, limit = self.setting.steps, self.wish.max_lossy_weight
        lengths = lengths_of(len(steps), len(steps.row), self.setting.spec.warmup_steps)
        search = Search(self.space, self.base, evaluate, lengths, self.wish.candidates, limit, self.tell, self._room)
        ranked = search.run(begin_with(self.space, self.wish.candidates, self.setting.spec.seed))
        if not ranked:
            raise SpecError(self._nothing(search))
        if search.reached < search.steps:
            self.base["max_steps"] = search.reached
        best, row = ranked[0]
        others = [
            c for c, r in ranked if any(c[kind] != best[kind] for kind in POLICIES) and r["time_ns"] != row["time_ns"]
        ]
        judged = self._judge(best)
        if judged.summary["time_ns"] != row["time_ns"]:
            raise RuntimeError(f"{judged.spec}: {judged.summary['time_ns']} ns here, {row['time_ns']} ns in a worker")
        rivals = {"lru + fetch": self._judge(BASELINE)}
        if others:
            rivals["next best"] = self._judge(others[0])
        return {"search": self._searched(search), **self._object(judged, rivals)}

    def _nothing(self, search: Search) -> str:
        """Why there is no answer, in one line."""
        limit = self.wish.max_lossy_weight
        if search.ended == "time-limit":
            done = f"{search.runs} runs were done over the first {search.lengths[0]:,} of {search.steps:,} steps"
            return f"time-limit: {self.wish.time_limit_s:g} s: {done}, none with an answer; needs more, or --max-steps"
        rows = [row for found in search.found.values() for _, row in found.values()]
        errors = sorted({str(row["error"]) for row in rows if row["error"]})
        why = f": {errors[0]}" if errors else f" of at most {limit:g} lost router weight"
        return f"no candidate could be run{why}"

    def _searched(self, search: Search) -> dict[str, Any]:
        """What the search came to. most: candidates allowed; steps: of the whole judged trace; compared_steps: the
        first ones, over which `compared` candidates ran and the best was chosen among them."""
        return {
            **search.counts,
            "most": search.most,
            "steps": search.steps,
            "compared_steps": search.reached,
            "time_limit_s": self.wish.time_limit_s,
            "ended": search.ended,
        }

    def _judge(self, candidate: Candidate) -> Rated:
        spec = RunSpec.of({**self.base, **fields_of(candidate), **self._room(candidate)})
        summary, record = simulate(spec, memo=self.memo)
        lossless_ns = summary["bounds"].get("lossless_ns")
        if lossless_ns is None:
            lossless_ns = bounds(prepare(spec, self.memo).plan)["lossless_ns"]
        return Rated(candidate, spec, summary, per_request(record).with_tokens(), lossless_ns)

    def _object(self, best: Rated, rivals: Mapping[str, Rated]) -> dict[str, Any]:
        n = len(best.requests.request)
        draws = drawn(n, best.spec.seed) if n > 1 else None
        s, trace, spec = best.summary, self.setting.trace, best.spec
        on_the_host = find("miss", spec.miss).may_answer_cpu(spec.params("miss"))
        return {
            "best": self._told(best, draws),
            "beats": {
                name: {
                    **self._told(rival, draws),
                    **_faster(best, rival, draws),
                }
                for name, rival in rivals.items()
                if rival.spec != best.spec
            },
            "bounds": _bounds(best),
            "memory": asdict(self.split) | {"context": self.wish.context, "batch": best.spec.batch},
            "judged": {
                "requests": s["requests"], "tokens": s["tokens"], "steps": s["steps"],
                "calibration": best.spec.calibration,
                "set_aside_tokens": s["trace"]["calibration_tokens"], "model": trace.model, "hash": s["trace"]["hash"],
            },
            "max_lossy_weight": self.wish.max_lossy_weight,
            "verdict": s["verdict"],
            "notes": [*s["notes"], *self.notes, *([CPU] if on_the_host else [])],
            "command": command(spec),
            "spec": spec.saved(),
            "version": __version__,
        }  # fmt: skip

    def _told(self, judged: Rated, draws: Any) -> dict[str, Any]:
        s = judged.summary
        return {
            "policy": words(judged.candidate),
            "tokens_per_s": s["tokens_per_s"],
            "total_tokens_per_s": s["total_tokens_per_s"],
            "tokens_per_s_interval": None if draws is None else interval(judged.requests.rates(draws)),
            "time_ns": s["time_ns"],
            "lost_router_weight": lost_weight(row_of(Configuration("", judged.spec), s)),
            "open_loop": s["marks"]["open_loop"],
            "closed_loop": self._closed_loop(judged) if s["marks"]["open_loop"] else None,
        }

    def _closed_loop(self, judged: Rated) -> dict[str, Any] | None:
        """What the study measured of this policy on this model, where it did."""
        return measured(self.setting.trace.model, judged.spec, self.split.slots / self.split.experts)


def _bounds(best: Rated) -> dict[str, Any]:
    """time_ns: of the best. own_class: bounds of classes that it belongs to, so none of them is above time_ns.
    lossless_gpu_ns: of runs that execute every wanted expert on the GPU, with its slots and first residents; where
    is_lossless_gpu is false the best is none of them and may well take less."""
    return {
        "time_ns": best.summary["time_ns"],
        "own_class": best.summary["bounds"],
        "lossless_gpu_ns": best.lossless_ns,
        "is_lossless_gpu": "lossless_ns" in best.summary["bounds"],
    }


def _faster(best: Rated, other: Rated, draws: Any) -> dict[str, Any]:
    """How many times as fast, and its interval: request by request on the same draws."""
    a, b = best.summary["tokens_per_s"], other.summary["tokens_per_s"]
    return {
        "ratio": a / b if a and b else None,
        "ratio_interval": None if draws is None else interval(best.requests.rates(draws) / other.requests.rates(draws)),
    }


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


def command(spec: RunSpec) -> str:
    """The command that runs this spec."""
    words = ["python", "-m", "sim.run"]
    for name, value in spec.asked().items():
        flag = "--" + name.replace("_", "-")
        if name == "set":
            words += [word for key, given in value.items() for word in ("--set", f"{key}={given}")]
        elif isinstance(value, bool):
            words += [flag] if value else [flag, "no"]
        else:
            words += [flag, str(value)]
    return shlex.join(words)
