"""Where the time of decode steps went, and that of prompts, and why one engine is faster there than another."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sim.core.plan import OUTCOMES, PLACES
from sim.machines.record import RunRecord
from sim.outcome.summary import STALLS

LANDED, REMOTE = OUTCOMES.index("landed"), PLACES.index("remote")
# the parts of a phase's time, as they are said of who spends less on it
PARTS = {
    "stall": "waits less for the link",
    "cpu_wait": "waits less for the host",
    "experts": "the GPU spends less on experts",
    "rest": "spends less on dense parts and on the engine's own work",
}
WHERE = {
    "stall": "waiting for the link",
    "cpu_wait": "waiting for the host",
    "experts": "the GPU's time for experts",
    "rest": "dense parts and the engine's own work",
}
ALIKE = 1e-3  # two speeds that differ by less are said to be the same
AS_MUCH = 0.01  # and two amounts of work
PAID = 0.1  # of what is gained: what the faster one pays for it is said from there on


@dataclass(frozen=True)
class Phase:
    """The decode steps of a run, or its prefill steps. tokens: their rows; time_ns: how long they took, and of that
    parts_ns by PARTS (`experts` has what the GPU reads over the link while it computes; `rest` is dense parts, the
    engine's time, decisions and the head); wanted, hits: experts of visits; on_host: experts that the host computed;
    remote: that the GPU read where they lie; h2d_bytes: over the link, landed, by the step that asked for them."""

    tokens: int
    time_ns: int
    parts_ns: Mapping[str, int]
    wanted: int
    hits: int
    on_host: int
    remote: int
    h2d_bytes: int

    @property
    def tokens_per_s(self) -> float | None:
        return self.tokens * 1e9 / self.time_ns if self.tokens and self.time_ns else None

    @property
    def hit_share(self) -> float:
        return self.hits / self.wanted if self.wanted else 0.0

    def ms(self, part: str | None = None) -> float:
        """Of a token, or of a part of it."""
        return (self.time_ns if part is None else self.parts_ns[part]) / 1e6 / self.tokens

    def share(self, part: str) -> float | None:
        """Of the phase's time; None where there is none."""
        return self.parts_ns[part] / self.time_ns if self.time_ns else None


def phase(record: RunRecord, prefill: bool) -> Phase:
    """One of the two, of a full record without warm-up. The parts of both add up to the run's."""
    steps, visits, executions = record.steps, *(record.groups[name] for name in ("visits", "executions"))
    mine = steps["prefill"].astype(bool) == prefill
    seen = mine[visits["step"]]
    ran = executions["end_ns"] - executions["begin_ns"]
    at, on_host = seen[executions["visit"]], executions["cpu"] > 0
    time_ns = int((steps["end_ns"] - steps["begin_ns"])[mine].sum())
    parts = {
        "stall": int(sum(visits[f"stall_{cause}_ns"][seen].sum() for cause in STALLS)),
        "cpu_wait": int(visits["cpu_wait_ns"][seen].sum()),
        "experts": int(ran[at & ~on_host].sum()),
    }
    return Phase(
        tokens=int(steps["rows"][mine].sum()),
        time_ns=time_ns,
        parts_ns=parts | {"rest": time_ns - sum(parts.values())},
        wanted=int(visits["wanted"][seen].sum()),
        hits=int(visits["hits"][seen].sum()),
        on_host=int((at & on_host).sum()),
        remote=int((at & (executions["place"] == REMOTE)).sum()) if "place" in executions else 0,
        h2d_bytes=_landed(record, seen, bool(mine[0])),
    )


def _landed(record: RunRecord, seen: npt.NDArray[np.bool_], first: bool) -> int:
    """Bytes; first: whether what was asked for at time 0, by no visit, is of this phase."""
    transfers = record.groups["transfers"]
    visit = transfers["visit"]
    asked = np.where(visit >= 0, seen[visit], first)
    return int(transfers["bytes"][(transfers["outcome"] == LANDED) & asked].sum())


# --- in words ---


def why_fastest(phases: Mapping[str, Phase], what: str) -> str | None:
    """A sentence: who is fastest, and which part of the time it does not have against the next and against the rest.
    None where nobody had anything to do. what: of the phase (`decode`, `prompts`)."""
    ran = sorted((each for each in phases if phases[each].tokens_per_s), key=lambda name: phases[name].ms())
    if not ran:
        return None
    best = phases[ran[0]]
    winners = [name for name in ran if phases[name].ms() <= best.ms() * (1 + ALIKE)]
    said = (
        f"{_and(winners)} {'is' if len(winners) == 1 else 'are'} fastest in {what}, {best.tokens_per_s:,.2f} tokens/s"
    )
    others = ran[len(winners) :]
    if not others:
        return f"{said}; nobody else ran"
    against = phases[others[0]]
    gain = f", {against.ms() / best.ms():.2f} x {others[0]}: it {_reason(best, against)}"
    return said + gain + _rest(best, {name: phases[name] for name in others[1:]})


def _saved(best: Phase, other: Phase) -> dict[str, float]:
    """ms of a token that `other` spends and `best` does not, by part."""
    return {part: other.ms(part) - best.ms(part) for part in PARTS}


def _reason(best: Phase, other: Phase) -> str:
    """`waits less for the host (27.1 ms a token instead of 39.4), because ...`."""
    saved = _saved(best, other)
    part = max(saved, key=saved.__getitem__)
    text = (
        f"{PARTS[part]} ({best.ms(part):,.2f} ms a token instead of {other.ms(part):,.2f}){_because(best, other, part)}"
    )
    dearest = min(saved, key=saved.__getitem__)
    if -saved[dearest] > PAID * (other.ms() - best.ms()):
        text += f"; it pays for that with {-saved[dearest]:,.2f} ms more in {WHERE[dearest]}"
    return text


def _because(best: Phase, other: Phase, part: str) -> str:
    """What there was less of, or that it was not less; nothing of what is the engine's own."""
    if part == "rest" or (part == "experts" and not other.remote):
        return ""
    what, form = {
        "stall": ("h2d_bytes", "{:,.1f} MB a token cross the link instead of {:,.1f}"),
        "cpu_wait": ("on_host", "the host computes {:,.2f} experts a token instead of {:,.2f}"),
        "experts": ("remote", "{:,.2f} experts a token are read over the link meanwhile instead of {:,.2f}"),
    }[part]
    unit = 1e6 if part == "stall" else 1.0
    mine, theirs = (getattr(each, what) / each.tokens / unit for each in (best, other))
    less, more = mine < theirs * (1 - AS_MUCH), mine > theirs * (1 + AS_MUCH)
    said = f", {'because' if less else 'although' if more else 'with as much to do:'} {form.format(mine, theirs)}"
    if best.hits * other.wanted == other.hits * best.wanted:
        return said
    joined = "and" if less == (best.hit_share > other.hit_share) else "though"
    return f"{said}, {joined} {best.hit_share:.1%} of what is wanted is resident instead of {other.hit_share:.1%}"


def _rest(best: Phase, others: Mapping[str, Phase]) -> str:
    """By which part the others are slower most."""
    by_part: dict[str, list[str]] = {}
    for name, other in others.items():
        saved = _saved(best, other)
        by_part.setdefault(max(saved, key=saved.__getitem__), []).append(name)
    told = [f"{words} ({', '.join(by_part[part])})" for part, words in WHERE.items() if part in by_part]
    return f". What the others lose against it they lose most of all in {'; in '.join(told)}" if told else ""


def _and(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
