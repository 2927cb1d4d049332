"""What holds a run back: a decision over a few shares, and where these come from.

The GPU either works or waits: for experts on their way (stall), for experts on the CPU (cpu_wait), or for the host to
read the routing back and decide (decide). The largest part of the waiting names what holds the run back. A wait for
transfers is the working set's where slots are fewer than what one visit wants, the link's where the link is busy, and
else a matter of which transfers there are and when they begin, which is the policy's.
"""

from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from sim.core.plan import Plan
from sim.costs.roofline import cpu_terms_ns
from sim.memo import Memo, afresh
from sim.outcome.span import BLOCK, blocks
from sim.prepare import Setting

GPU_WAITS = 0.1  # waiting less than this share of the time, the GPU is what takes it
HOST_WORKS = (
    0.5  # computing at least this share of the time, the host holds up a run that waits for a link not busy, too
)
REMOTE_READS = 0.5  # reading experts where they lie at least this share of the time is what takes it
LINK_BUSY = 0.9  # busy at least this share of the time, the link has no room for earlier transfers
SMALL = 0.5  # with at least this share of the layers too small for their visits, the working set is
PROMPTS = 0.5  # taking at least this share of the time, prompts are what the verdict rests on

GPU, LINK, POLICY, REMOTE = "GPU-bound", "link-bound", "policy-bound", "remote-bound"
DECISION, WORKING_SET, STREAMING = "decision-bound", "working-set-bound", "stream-bound"
HOST, HOST_MEMORY, HOST_COMPUTE = "host-bound", "host-memory-bound", "host-compute-bound"

# The evidence of each verdict, and what would help.
SAID = {
    GPU: ("the GPU works {works:.1%} of the time", "a larger cache or a faster link does not help"),
    DECISION: (
        "the GPU works {works:.1%} of the time, reading the routing back and deciding takes {decide:.1%}",
        "a cheaper policy or a faster readback helps",
    ),
    WORKING_SET: (
        "{where} fewer slots ({slots:.2f}) than {who} wants experts ({wanted:.2f})",
        "no policy keeps them all; more slots, a smaller precision or a smaller batch help",
    ),
    REMOTE: (
        "the GPU computes {remote:.1%} of the time from experts that it reads over the link meanwhile",
        "more residents, a smaller precision or more rows in a step (--prefill-chunk, --batch) help",
    ),
    STREAMING: (
        "the GPU waits {stall:.1%} of the time for transfers, {streamed:.1%} of them copies that nobody keeps",
        "more rows in a step (--prefill-chunk, --batch), more residents, or layers ahead help",
    ),
    HOST_MEMORY: (
        "the GPU waits {cpu_wait:.1%} of the time for the CPU's experts, which mostly read weights",
        "fewer misses, more slots, a smaller precision or faster DRAM help",
    ),
    HOST_COMPUTE: (
        "the GPU waits {cpu_wait:.1%} of the time for the CPU's experts, which mostly compute",
        "fewer tokens per CPU expert (fetch for prompts, a smaller batch) or a CPU of more operations/s help",
    ),
    HOST: (
        "the GPU waits {cpu_wait:.1%} of the time for the CPU's experts",
        "fewer misses, more slots or a faster host help",
    ),
    LINK: (
        "the link is busy {link:.1%} of the time, the GPU waits {waits:.1%}",
        "fewer or smaller transfers help: more slots, a smaller precision, a better policy",
    ),
    POLICY: (
        "the GPU waits {waits:.1%} of the time, though the link is busy only {link:.1%}",
        "fewer or earlier transfers help: another eviction, a prefetcher; oracles (belady, oracle) say how much",
    ),
}  # fmt: skip


class Facts(NamedTuple):
    """What a verdict rests on. time_ns of the run; shares of it (0 where it is 0): stall, cpu_wait, decide, the busy
    link, prompts. Of the slot scopes (layers, or the one pool): how many, how many of them are small, that is have
    fewer slots than the trace wants experts in a visit of the layer (in a step, of the pool), and of these small ones
    the mean slots and the mean experts wanted. host: which of the host's verdicts its experts would get. streamed: the
    share of copies for stages in what landed. remote: the share of the time in which the GPU reads experts over the
    link; host_works: in which the host computes, of runs that count it."""

    time_ns: int = 1
    stall: float = 0.0
    cpu_wait: float = 0.0
    decide: float = 0.0
    link: float = 0.0
    prompts: float = 0.0
    scopes: int = 1
    small: int = 0
    slots: float = 0.0
    wanted: float = 0.0
    pooled: bool = False
    host: str = HOST
    streamed: float = 0.0
    host_works: float = 0.0
    remote: float = 0.0

    @property
    def waits(self) -> float:
        return self.stall + self.cpu_wait + self.decide


def kind(f: Facts) -> str:
    """Which of the verdicts of SAID."""
    if f.remote >= max(REMOTE_READS, f.waits):
        return REMOTE
    if f.waits < GPU_WAITS:
        return GPU
    if f.decide > max(f.stall, f.cpu_wait):
        return DECISION
    if f.cpu_wait > f.stall:
        return f.host
    if f.streamed >= SMALL:
        return STREAMING
    if f.small >= SMALL * f.scopes:
        return WORKING_SET
    if f.link < LINK_BUSY and f.host_works >= HOST_WORKS:
        return f.host
    return LINK if f.link >= LINK_BUSY else POLICY


def verdict(f: Facts) -> str:
    """One line: the verdict, its evidence, what would help."""
    if f.time_ns == 0:
        return "none: nothing takes any time"
    chosen = kind(f)
    evidence, helps = SAID[chosen]
    where = "the pool has" if f.pooled else f"{f.small} of {f.scopes} layers have"
    who = "a step" if f.pooled else "a visit"
    told = evidence.format(**f._asdict(), waits=f.waits, works=1 - f.waits, where=where, who=who)
    prompts = f" (prompts take {f.prompts:.1%} of the time)" if f.prompts >= PROMPTS else ""
    return f"{chosen}: {told}{prompts}; {helps}"


def facts_of(setting: Setting, out: dict[str, Any], memo: Memo = afresh) -> Facts:
    """The facts of a run, from its summary's figures (`sim.outcome.summary.summarise`)."""
    time, parts = out["time_ns"] or 1, out["breakdown_ns"]
    prompts, link = out["prefill_ns"] / time, out["link_busy_ns"] / time
    return Facts(
        time_ns=out["time_ns"],
        **{name: parts[name] / time for name in ("stall", "cpu_wait", "decide")},
        link=link,
        prompts=prompts,
        host=_host(setting, out),
        streamed=_streamed(out),
        host_works=(out.get("host") or {"ns": 0})["ns"] / time,
        remote=(out.get("remote_reads") or {"ns": 0})["ns"] / time,
        **_rooms(setting, prompts >= PROMPTS, memo),
    )


def _streamed(out: dict[str, Any]) -> float:
    if out.get("stages") is None:
        return 0.0
    landed = sum(out["transfers"][cause] for cause in out["h2d_bytes"])
    return out["stages"]["copies"] / landed if landed else 0.0


def _rooms(setting: Setting, prefill: bool, memo: Memo) -> dict[str, Any]:
    """The scopes, and which of them are small for the visits of one phase."""
    plan = setting.plan
    key = ("wants", setting.costed.steps, plan.warmup_steps, prefill)
    wanted = memo(key, lambda: wants_per_visit(plan, prefill))
    wanted = wanted.sum(keepdims=True) if plan.pooled else wanted
    small = plan.slots < wanted
    out: dict[str, Any] = {"scopes": len(plan.slots), "small": int(small.sum()), "pooled": plan.pooled}
    if small.any():
        out |= {"slots": float(plan.slots[small].mean()), "wanted": float(wanted[small].mean())}
    return out


def wants_per_visit(plan: Plan, prefill: bool) -> npt.NDArray[np.float64]:
    """float64 [L]: distinct experts that the trace wants in a visit of each layer, mean over the counted steps of one
    phase; 0 where it has none."""
    from sim.outcome.packing import Wants  # numba: only once a run is over

    plan = replace(plan, experts=np.ascontiguousarray(plan.experts))
    layers, steps = plan.experts.shape[1], 0
    total = np.zeros(layers)
    for first, last in blocks(plan, BLOCK):
        counted = plan.step_prefill[first:last] == prefill
        wanted = np.diff(Wants.of(plan, first, last).offset).reshape(-1, layers)
        total += wanted[counted].sum(axis=0)
        steps += int(counted.sum())
    return total / max(steps, 1)


def _host(setting: Setting, out: dict[str, Any]) -> str:
    """What takes the time of an expert on the CPU, at the mean tokens of those that ran: reading its weights (beside an
    idle link) or its arithmetic. Neither where starting it takes longer, or where durations are given outright."""
    host, model = setting.hardware.host, setting.model
    if host is None or model is None or out["cpu"] == 0:
        return HOST
    tokens = np.array(out["cpu"] / cpu_experts(out))
    read, operations = cpu_terms_ns(model, setting.hardware, setting.engine, setting.spec.precision, tokens)
    longest = {HOST: float(setting.engine.cpu_expert_ns), HOST_MEMORY: float(read[0]), HOST_COMPUTE: float(operations)}
    return max(longest, key=lambda name: longest[name])


def cpu_experts(out: dict[str, Any]) -> int:
    """How often an expert ran on the CPU, where a run has a cpu answer: counted (plan.on_miss), or the misses that
    nothing was sent for (exact where each missing expert is either fetched or computed on the CPU)."""
    if out.get("host") is not None:
        return int(out["host"]["experts"])
    entries, unsent = int(out["cpu"]), int(out["misses"] - out["transfers"]["demand"])
    return min(entries, max(1, unsent))
