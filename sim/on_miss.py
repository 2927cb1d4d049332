"""What an engine does on a miss beyond one rule for every visit: from what a spec asks for to the plan's `OnMiss`.

Nothing here is a choice of a run: which steps are of many rows, what a run of copies costs, and which flags contradict
each other. What is understood by each field stands at `sim.core.plan.OnMiss`.
"""

from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from sim.core import miss
from sim.core.plan import FIXED, KEEPS_OUT, MOST_CHUNKS, SPLIT_PARAMS, Choice, OnMiss, Plan
from sim.costs.roofline import chunk_ns, cpu_visit_ns, run_ns
from sim.errors import SpecError
from sim.policies.kinds import BULK, SPLIT, Value
from sim.policies.policy import Policy
from sim.policies.registry import find
from sim.spec import RunSpec, exact, memory_bytes

if TYPE_CHECKING:
    from sim.catalog.engine_spec import Engine
    from sim.catalog.hardware_spec import Hardware

Int = npt.NDArray[np.int64]
Given = tuple[tuple[str, Value], ...]

OWN = (miss.STREAM, miss.REMOTE, miss.ADMIT, miss.SPLIT)  # miss policies that a plan without an OnMiss cannot have
NEVER_FETCH = (miss.CPU, miss.ADMIT, miss.REMOTE)  # so a layer without slots streams nothing for them
STREAMING = ("stages", "serial", "merge", "whole_layer", "ahead")  # how copies into stages go
ROWS_AT_ONCE = 1 << 16  # of the trace, whose distinct experts are counted together
MOST = 2**62  # of a duration times the link's share, so that the core's integers hold it


@dataclass(frozen=True)
class Rules:
    """What a spec says of misses, and whom it chose; its repr tells two of them apart. bulk_given, miss_given:
    parameters of the two policies (those of a split are in common); rerank: whether what a visit wants may change."""

    bulk: str
    bulk_rows: str | None
    bulk_touch: bool
    stages: int
    serial: bool
    merge: str
    whole_layer: bool
    ahead: int
    beside: bool
    defer: int
    link_share: float | None
    cpu_visit_us: float | None
    transfer_chunk: str | None
    miss: str
    eviction: str
    rerank: bool
    bulk_given: Given
    miss_given: Given

    @staticmethod
    def of(spec: RunSpec) -> "Rules":
        """Raises SpecError for a parameter that nobody of the run has."""
        same = {name: getattr(spec, name) for name in Rules.__dataclass_fields__ if name in RunSpec.model_fields}
        given = {f"{kind}_given": tuple(sorted(spec.params(kind).items())) for kind in (BULK, "miss")}
        return Rules(**{**same, "rerank": spec.rerank != "none", **given})

    @property
    def many(self) -> Policy | None:
        """The rule of visits of many rows."""
        return None if self.bulk == "none" else find(BULK, self.bulk)

    @property
    def few(self) -> Policy:
        """The rule of the others."""
        return find("miss", self.miss)

    @property
    def on_host(self) -> bool:
        """Whether the host may compute an expert."""
        return self.few.may_answer_cpu(dict(self.miss_given)) or (self.many is not None and self.many.answers_cpu)

    def streaming(
        self, miss_: Choice, lacks: npt.NDArray[np.bool_]
    ) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
        """The layers that may stream in steps of few rows and in those of many, bool [L] each. miss_: the rule of few;
        lacks: as of `layers_lacking`."""
        many = None if self.many is None else self.many.choice(dict(self.bulk_given))
        return may_stream(miss_, lacks), may_stream(many, lacks)

    def stages_for(self, n_experts: int, top_k: int, most_rows: int) -> int:
        """Staging buffers of a run that streams: as many as it is given, else whole layers, or all that one visit of
        the largest step may want."""
        if self.stages or self.whole_layer or self.ahead:
            return self.stages or (self.ahead + 1) * n_experts
        return min(n_experts, most_rows * top_k)


def may_stream(rule: Choice | None, lacks: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """bool [L]: layers in whose visits of that rule copies may go into stages. lacks: layers whose slots, if they have
    any, a newcomer never takes."""
    if rule is None:
        return np.zeros_like(lacks)
    if rule.kind == miss.SPLIT:
        return lacks | bool(rule.params[SPLIT_PARAMS.index("keep")] == 0)
    return np.ones_like(lacks) if rule.kind == miss.STREAM else lacks & (rule.kind not in NEVER_FETCH)


def layers_lacking(plan: Plan) -> npt.NDArray[np.bool_]:
    """bool [L]: the layers whose slots, if they have any, a newcomer never takes, or not every one."""
    keeps_out = bool(plan.eviction.marks & KEEPS_OUT)
    return np.full(plan.experts.shape[1], keeps_out) | (False if plan.pooled else plan.slots == 0)


def on_miss(rules: Rules, plan: Plan, hardware: "Hardware", engine: "Engine") -> OnMiss | None:
    """Of a plan that has everything else; None where the run uses none of it. Raises SpecError for flags that
    contradict each other, one line."""
    _refuse_half_a_rule(rules)
    share, visit_ns = _share(rules, hardware), cpu_visit_ns(hardware, engine, rules.cpu_visit_us)
    bulk = _bulk(rules, plan)
    chunk = _chunk(rules, plan, hardware)
    _refuse_streaming(rules, plan, bulk)
    own = rules.many is not None or plan.miss.kind in OWN or layers_lacking(plan).any()
    if not (own or slowed(rules, hardware, engine) or not rules.beside or rules.defer or chunk):
        return None
    found = OnMiss(
        run_ns=run_ns(hardware, engine, plan.expert_bytes, plan.n_experts, plan.costs.transfer_ns),
        step_bulk=bulk,
        bulk=None if rules.many is None else rules.many.choice(dict(rules.bulk_given)),
        bulk_touch=rules.bulk_touch,
        table=_table(rules),
        stages=rules.stages,
        serial=rules.serial,
        merge_runs=rules.merge == "runs",
        whole_layer=rules.whole_layer or rules.ahead > 0,
        ahead=rules.ahead,
        cpu_visit_ns=visit_ns,
        beside=rules.beside,
        defer=rules.defer,
        link_share=share.as_integer_ratio(),
        chunk_bytes=chunk,
        chunk_ns=chunk_ns(hardware, engine, plan.expert_bytes, chunk, plan.costs.transfer_ns),
    )
    _refuse_beyond_integers(rules, found, plan)
    return found


def slowed(rules: Rules, hardware: "Hardware", engine: "Engine") -> bool:
    """Whether a visit that computes on the host pays more than the times of its experts there."""
    visit_ns = cpu_visit_ns(hardware, engine, rules.cpu_visit_us)
    return rules.on_host and (visit_ns > 0 or _share(rules, hardware) < 1)


def _refuse_half_a_rule(rules: Rules) -> None:
    if rules.bulk == "none" and rules.bulk_rows is not None:
        raise SpecError(
            f"bulk_rows: {rules.bulk_rows}: says when a rule holds that is not given; give --bulk stream, ..."
        )
    if rules.bulk != "none" and rules.bulk_rows is None:
        raise SpecError(f"bulk: {rules.bulk}: needs --bulk-rows 32 (rows of a step), or 32E")
    if rules.bulk == "none" and not rules.bulk_touch:
        raise SpecError("bulk_touch: no: needs --bulk and --bulk-rows, whose steps it is about")
    if rules.defer and not rules.on_host:
        raise SpecError(f"defer: {rules.defer}: nothing is computed on the host; needs --miss cpu, cpu-admit or split")
    margin = dict(rules.miss_given).get("margin")
    if margin and rules.few.kind == miss.ADMIT and not find("eviction", rules.eviction).weighs:
        wrong = f"eviction {rules.eviction} gives no score to a newcomer; must be 0, or --eviction lfu, decayed, ..."
        raise SpecError(f"set: cpu-admit.margin={margin}: {wrong}")


def _share(rules: Rules, hardware: "Hardware") -> Fraction:
    """What is left of the link's rate while the host computes."""
    if rules.link_share is not None:
        return exact(rules.link_share)
    return Fraction(1) if hardware.host is None else exact(hardware.host.link_share)


def _chunk(rules: Rules, plan: Plan, hardware: "Hardware") -> int:
    """Bytes of a chunk; 0 where transfers go whole, for no expert is larger."""
    if rules.transfer_chunk is None:
        return 0
    size, what = memory_bytes(rules.transfer_chunk), f"transfer_chunk: {rules.transfer_chunk}"
    if hardware.fixed is not None and hardware.fixed.transfer_setup_ns is None:
        raise SpecError(f"{what}: [fixed] does not say what a part of a transfer takes; needs transfer_setup_ns there")
    if hardware.measured is not None and hardware.measured.link is None:
        raise SpecError(f"{what}: [measured] does not say what a part of a transfer takes; needs a link there")
    if size * MOST_CHUNKS < plan.expert_bytes:
        least = -(-plan.expert_bytes // MOST_CHUNKS)
        wrong = f"cuts an expert of {plan.expert_bytes} bytes into more than {MOST_CHUNKS} chunks"
        raise SpecError(f"{what}: {wrong}; must be at least {least}B")
    return size if size < plan.expert_bytes else 0


def _bulk(rules: Rules, plan: Plan) -> npt.NDArray[np.bool_]:
    """bool [S]: the steps of many rows."""
    text, rows = rules.bulk_rows, np.diff(plan.step_offset)
    if text is None:
        return np.zeros(len(rows), np.bool_)
    entries, least = (plan.experts.shape[2], int(text[:-1]) * plan.n_experts) if text[-1] == "E" else (1, int(text))
    return np.asarray(rows * entries >= least, np.bool_)


def _table(rules: Rules) -> Int:
    """Of the run's split, where it goes by one; the miss policy and the bulk rule have its parameters in common."""
    given = dict(rules.bulk_given if rules.bulk == SPLIT else rules.miss_given)
    if SPLIT not in (rules.bulk, rules.miss):
        return np.zeros(1, np.int64)
    values = find(BULK, SPLIT).values(given)
    words = [word.strip() for word in str(values["table"]).split(",")]
    if not all(word.isascii() and word.isdigit() and len(word) < 10 for word in words):
        wrong = "must be whole numbers with commas between: how many of 0, 1, 2, ... misses go over the link"
        raise SpecError(f"set: split.table={values['table']}: {wrong}")
    return np.array([int(word) for word in words], np.int64)


def _refuse_streaming(rules: Rules, plan: Plan, bulk: npt.NDArray[np.bool_]) -> None:
    """How copies into stages go, where there are none, or too few stages for them."""
    if plan.low is not None and (rules.serial or plan.eviction.marks & FIXED):
        what = "serial: true" if rules.serial else f"eviction: {rules.eviction}"
        raise SpecError(f"{what}: the copies of low precision of miss {rules.miss} want slots meanwhile; leave one out")
    few, many = rules.streaming(plan.miss, layers_lacking(plan))
    asked = [name for name in STREAMING if getattr(rules, name) not in (0, "none")]
    if asked and not (few | many).any():
        wrong = "nothing of the run streams; needs --miss or --bulk stream, --eviction static, or layers without slots"
        raise SpecError(f"{asked[0]}: {getattr(rules, asked[0])}: {wrong}")
    needed = (rules.ahead + 1) * plan.n_experts
    if rules.stages and (rules.whole_layer or rules.ahead) and rules.stages < needed:
        what = f"{rules.ahead + 1} layers" if rules.ahead else "a whole layer"
        raise SpecError(f"stages: {rules.stages}: {what} of {plan.n_experts} experts; must be 0, or at least {needed}")
    if rules.serial and rules.stages:
        _refuse_too_few(rules, plan, np.where(bulk[:, None], many, few) & ~whole_there(plan))


def whole_there(plan: Plan) -> npt.NDArray[np.bool_]:
    """bool [L]: layers all of whose experts are resident, and stay."""
    layers, n = plan.experts.shape[1], plan.n_experts
    there = np.bincount(plan.residents // n, minlength=layers) == n
    return np.asarray(there & (plan.slots >= (n * layers if plan.pooled else n)), np.bool_)


def _refuse_too_few(rules: Rules, plan: Plan, where: npt.NDArray[np.bool_]) -> None:
    """Stages for all that a visit may copy at once, of the visits [S, L]; what is resident then only the run knows."""
    most = np.minimum(np.diff(plan.step_offset) * plan.experts.shape[2], plan.n_experts)[:, None]
    copies = where * (most if rules.rerank else distinct(plan))
    visit = int(copies.argmax())
    if copies.flat[visit] > rules.stages:
        step, layer = divmod(visit, where.shape[1])
        at = f"visit {visit} (step {step}, MoE layer {layer}) may copy {copies.flat[visit]} experts before it runs"
        raise SpecError(f"stages: {rules.stages}: serial: {at}; must be 0, or at least as many")


def distinct(plan: Plan) -> Int:
    """int64 [S, L]: distinct experts that the trace wants in each visit."""
    offset, (_, layers, _), n = plan.step_offset, plan.experts.shape, plan.n_experts
    out, lo, steps = np.zeros((len(offset) - 1, layers), np.int64), 0, len(offset) - 1
    while lo < steps:
        hi = max(lo + 1, int(np.searchsorted(offset, offset[lo] + ROWS_AT_ONCE, "right")) - 1)
        ids = plan.experts[plan.step_row[offset[lo] : offset[hi]]].astype(np.int64)
        step = np.repeat(np.arange(hi - lo), np.diff(offset[lo : hi + 1]))
        visit = step[:, None, None] * layers + np.arange(layers)[:, None]
        seen = np.unique((visit * n + ids)[ids >= 0])
        out[lo:hi] = np.bincount(seen // n, minlength=(hi - lo) * layers).reshape(-1, layers)
        lo = hi
    return out


def _refuse_beyond_integers(rules: Rules, found: OnMiss, plan: Plan) -> None:
    """Of durations times the share's numbers."""
    host = found.cpu_visit_ns + int(plan.costs.cpu_expert_ns.max(initial=0)) * plan.n_experts
    longest = max(int(found.run_ns.max()), int(found.chunk_ns.max()))
    if (longest + plan.costs.commit_gap_ns + host) * found.link_share[1] > MOST:
        raise SpecError(f"link_share: {rules.link_share}: has too many digits beside such durations; give fewer")


def staged(rules: Rules, plan: Plan, rows: int) -> int:
    """Staging buffers that the run may fill at once, in steps of at most so many rows; 0 where nothing streams."""
    few, many = rules.streaming(plan.miss, layers_lacking(plan))
    streams = plan.on_miss is not None and bool(((few | many) & ~whole_there(plan)).any())
    return rules.stages_for(plan.n_experts, int(plan.experts.shape[2]), rows) if streams else 0


def visit_stages(plan: Plan) -> int:
    """All experts that one visit may want."""
    return min(plan.n_experts, int(np.diff(plan.step_offset).max()) * int(plan.experts.shape[2]))
