"""What a search starts from and ends with: a trace, part of it set aside, on a GPU; runs of it judged and compared."""

import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from sim import __version__
from sim.costs.roofline import needed
from sim.errors import SpecError
from sim.flags import flag_words
from sim.memo import Kept, Memo
from sim.outcome.bounds import bounds
from sim.outcome.engine_words import residents
from sim.outcome.how_sure import PHASES, key_of
from sim.outcome.marks import HOST_PARTS
from sim.outcome.per_request import PerRequest, drawn, interval, per_request
from sim.outcome.report import prompt_rate
from sim.prepare import Setting, prepare
from sim.search.halving import Search
from sim.simulation import simulate
from sim.spec import RunSpec, cache_bytes
from sim.sweeps.answer import lost_weight
from sim.sweeps.config import Configuration
from sim.sweeps.rows import Row, row_of
from sim.sweeps.worker import MEMO_BYTES

CALIBRATION = 0.25
ALIKE = 1e-9  # share of a figure by which no draw of requests moves it
Evaluate = Callable[[Sequence[Configuration]], Sequence[Row]]


class NoAnswer(SpecError):
    """A search that can recommend nothing; the message says why."""


@dataclass(frozen=True)
class Wish:
    """What is asked for. base: fields of RunSpec that hold for every candidate; fixed: fields that a search could
    choose, and shall not; vram None: all that the hardware has; candidates: different ones that are run at most;
    time_limit_s: what `evaluate` is given, None for no limit (it is only told here); windows: fields of speculative
    ones (accept, draft_ns) that are to be tried with the best, None: nobody asks; straight: everything runs over all
    steps at once, for they are few."""

    base: Mapping[str, Any]
    context: int
    vram: int | None = None
    max_lossy_weight: float = 0.0
    candidates: int = 640
    fixed: Mapping[str, Any] = field(default_factory=dict)
    time_limit_s: float | None = None
    windows: Mapping[str, Any] | None = None
    straight: bool = False

    def changed(self, changes: Mapping[str, Any]) -> "Wish":
        """The same with other fields of every candidate; `vram` among them is the wish's."""
        base = {name: value for name, value in changes.items() if name != "vram"}
        vram = cache_bytes(changes["vram"]) if "vram" in changes else self.vram
        return replace(self, base={**self.base, **base}, vram=vram)


@dataclass(frozen=True)
class Rated:
    """A run over the judged trace, and its requests one by one. words: what was chosen; residents: which experts are
    where; lossless_ns: what no run of the class lossless can take less than, with these slots and first residents
    (sim.outcome.bounds), whatever this one's class; ram_bytes: what the host holds, None where it is not known."""

    words: str
    spec: RunSpec
    summary: Mapping[str, Any]
    requests: PerRequest
    residents: str
    lossless_ns: int
    ram_bytes: int | None = None


class Case:
    """The trace of a wish on its GPU. base: the wish's fields and what is set aside; vram: bytes; notes: what is to be
    said of all that. first: fields of the run that the case is prepared with, its cache whole; memo: another case's, to
    share.

    Raises UserError, one line, where the trace, the model or the GPU lacks something."""

    def __init__(self, wish: Wish, first: Mapping[str, Any], memo: Memo | None = None) -> None:
        self.wish, self.memo = wish, memo or Kept(MEMO_BYTES)
        spec = RunSpec.of({**first, "cache": 1.0})
        calibration, why = self._calibration(spec)
        self.notes = [why] if why else []
        self.setting = prepare(spec.model_copy(update={"calibration": calibration}), self.memo)
        self.base: dict[str, Any] = {**wish.base, "calibration": calibration}
        if calibration is None:
            del self.base["calibration"]
        self.vram = self._vram(self.setting)

    @property
    def gpu(self) -> dict[str, Any]:
        """The GPU and its KV entries as fields of a run."""
        return {"vram": _bytes(self.vram), "context": self.wish.context}

    def _calibration(self, spec: RunSpec) -> tuple[Any, str]:
        """What is set aside: as asked for, else a quarter of the requests, or nothing of a single one, and why."""
        if spec.calibration is not None:
            return spec.calibration, ""
        whole = prepare(spec, self.memo).trace
        if len(whole.requests()[0]) > 1:
            return CALIBRATION, ""
        return None, "the trace has one request: nothing is set aside, so no fitted policy is tried"

    def _vram(self, setting: Setting) -> int:
        wish, spec = self.wish, setting.spec
        if setting.model is None:
            raise SpecError("model: none that the catalog knows; a memory split needs --model NAME|FILE")
        vram = setting.hardware.mem_bytes if wish.vram is None else wish.vram
        if vram is None:
            raise SpecError("vram: the hardware does not say how much it has; give --vram 24GB")
        longest = self.longest = int(setting.trace.position.max()) + 1 + spec.context_offset
        if wish.context < longest:
            raise SpecError(f"context: {wish.context}: the trace has requests of {longest} tokens; must be as many")
        return vram

    def rate(self, spec: RunSpec, words: str = "") -> Rated:
        """Run it here. words: what was chosen, where its engine does not say so."""
        setting = prepare(spec, self.memo)
        summary, record = simulate(spec, memo=self.memo)
        lossless_ns = summary["bounds"].get("lossless_ns")
        if lossless_ns is None:
            lossless_ns = bounds(setting.plan)["lossless_ns"]
        plan = setting.plan
        where = residents(plan.slots, plan.experts.shape[1], plan.n_experts, plan.pooled)
        words = words or summary["engine"]["words"]
        each = per_request(record).with_tokens()
        return Rated(words, spec, summary, each, where, lossless_ns, _on_host(setting))

    def answer(self, best: Rated, rivals: Mapping[str, Rated], notes: Iterable[str] = ()) -> dict[str, Any]:
        """The best, what it beats (rivals by name, less the best itself), and what both are of, as one JSON object."""
        n = len(best.requests.request)
        dependent = _dependent(n, best.spec.batch)
        draws = None if dependent else drawn(n, best.spec.seed)
        s, trace, spec = best.summary, self.setting.trace, best.spec
        others = {name: rival for name, rival in rivals.items() if rival.spec != best.spec}
        return {
            "best": told(best, draws),
            "beats": {name: told(rival, draws) | _faster(best, rival, draws) for name, rival in others.items()},
            "bounds": _bounds(best),
            "judged": {
                "requests": s["requests"], "tokens": s["tokens"], "steps": s["steps"],
                "calibration": spec.calibration, "no_interval": dependent,
                "set_aside_tokens": s["trace"]["calibration_tokens"], "model": trace.model, "hash": s["trace"]["hash"],
            },
            "max_lossy_weight": self.wish.max_lossy_weight,
            "verdict": s["verdict"],
            "notes": [*s["notes"], *self.notes, *notes],
            "command": command(spec),
            "spec": spec.saved(),
            "version": __version__,
        }  # fmt: skip


def _on_host(setting: Setting) -> int | None:
    """Bytes of host memory; none of their own where there is one memory, or where sizes are not known."""
    if setting.hardware.unified or setting.model is None:
        return None
    return int(sum(setting.host_memory[part] for part in HOST_PARTS))


def _dependent(requests: int, batch: int) -> str | None:
    """Why drawing other requests says nothing: there is one, or all are decoded in the same steps. None: it does."""
    if requests < 2:
        return "one request"
    return "one batch" if batch >= requests else None


def _interval(rates: Any) -> tuple[float, float] | None:
    """Over the draws; None where they make no difference."""
    low, high = interval(rates)
    return None if high - low <= ALIKE * high else (low, high)


def told(judged: Rated, draws: Any) -> dict[str, Any]:
    """The figures of a run: tokens_per_s_over_requests, the interval that other requests of the kind span, beside that
    of the costs (sim.outcome.how_sure); deferred: the share of the entries."""
    s = judged.summary
    return {
        "policy": judged.words,
        "tokens_per_s": s["tokens_per_s"],
        "total_tokens_per_s": s["total_tokens_per_s"],
        "prompt_tokens_per_s": prompt_rate(s),
        **{key_of(speed): s.get(key_of(speed)) for speed in PHASES},
        "catalog_costs": s["marks"]["catalog_costs"],
        "tokens_per_s_over_requests": None if draws is None else _interval(judged.requests.rates(draws)),
        "time_ns": s["time_ns"],
        "lost_router_weight": lost_weight(row_of(Configuration("", judged.spec), s)),
        "deferred": s["deferred"] / s["slots_wanted"] if s.get("deferred") else 0.0,
        "slots": s["slots"]["total"],
        "vram_bytes": needed(s["memory"]),
        "ram_bytes": judged.ram_bytes,
        "open_loop": s["marks"]["open_loop"],
        "closed_loop": None,
    }


def _faster(best: Rated, other: Rated, draws: Any) -> dict[str, Any]:
    """How many times as fast, and its interval: request by request on the same draws."""
    a, b = best.summary["tokens_per_s"], other.summary["tokens_per_s"]
    return {
        "ratio": a / b if a and b else None,
        "ratio_interval": None
        if draws is None
        else _interval(best.requests.rates(draws) / other.requests.rates(draws)),
    }


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


def searched(search: Search, wish: Wish) -> dict[str, Any]:
    """What the search came to. most: candidates allowed; steps: of the whole judged trace; compared_steps: the
    first ones, over which `compared` candidates ran and the best was chosen among them."""
    return {
        **search.counts,
        "most": search.most,
        "steps": search.steps,
        "compared_steps": search.reached,
        "time_limit_s": wish.time_limit_s,
        "ended": search.ended,
    }


def nothing(search: Search, wish: Wish) -> str:
    """Why there is no answer, in one line."""
    if search.ended == "time-limit":
        done = f"{search.runs} runs were done over the first {search.lengths[0]:,} of {search.steps:,} steps"
        over = f"time-limit: {wish.time_limit_s:g} s: the time was over"
        return f"{over}: {done}, none with an answer; needs more, or --max-steps"
    errors = search.errors
    why = f": {min(errors)}" if errors else f" of at most {wish.max_lossy_weight:g} lost router weight"
    return f"no candidate could be run{why}"


def command(spec: RunSpec) -> str:
    """The command that runs this spec."""
    return shlex.join(["python", "-m", "sim.run", *flag_words(spec.asked())])


def _bytes(size: int) -> str:
    """As --vram takes it, in GB where that is exact."""
    text = f"{size / 1e9:g}GB"
    return text if cache_bytes(text) == size else f"{size}B"
