"""What the study answers, in sentences made of its figures: true whatever the figures are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from runtime.closed_loop.clusters import effective_number
from runtime.closed_loop.study_statistics import (
    CLAIM_PERCENT,
    LIMITS,
    Arm,
    Comparison,
    Decision,
    Study,
    fastest,
)
from sim.outcome.marks import machine_words

MOST_NAMED = 3  # of a list of settings
CLAIM = f"{CLAIM_PERCENT:g} %"


def interval(pair: tuple[float, float], digits: int = 2) -> str:
    return f"{pair[0]:+.{digits}f} .. {pair[1]:+.{digits}f}"


def answers(
    studies: Sequence[Study], decided: Sequence[Decision], controls: Sequence[Comparison], equal: Sequence[Comparison]
) -> list[str]:
    """Does the claim hold, where, what should one use instead, and why: one sentence or two each."""
    out = [_verdict(studies, decided), _where(decided), _instead(studies), _lists(controls), _at_equal_bytes(equal)]
    return [line for line in out if line]


def _verdict(studies: Sequence[Study], decided: Sequence[Decision]) -> str:
    n = Counter(d.verdict for d in decided)
    of, models = len(decided) - n["idle"], " and ".join(study.model for study in studies)
    asked = f"Does the paper's claim hold (BuddyMoE: negligible loss; a web summary: < {CLAIM})?"
    if not of:
        return f"**{asked} Nothing can be said: no buddy stood in for anything on {models}.**"
    said = (
        "Yes, in every setting" if n["below"] == of
        else "No, in no setting" if n["above"] == of
        else f"It is shown in {n['below']} of {of} settings, refuted in {n['above']}" if n["below"] or n["above"]
        else "Not decided in any setting"
    )  # fmt: skip
    return (
        f"**{asked} {said}, on {models}.** Of {of} buddy settings (policy x capacity x model) the rise of bits per "
        f"byte lies above {CLAIM} in {n['above']}, below it in {n['below']}, and is open in {n['open']} (5 % for all "
        f"together, Holm)" + (f"; {n['idle']} more substitute nothing" if n["idle"] else "")
    )


def _named(found: Sequence[Decision]) -> str:
    """The first few, gentlest first."""
    ordered = sorted(found, key=lambda d: d.rise.value)
    parts = [
        f"{d.study.model}, {d.arm.name}, c = {d.arm.cache:g}: {d.rise.value:+.2f} % ({interval(d.rise.wider())}), "
        f"accuracy {100 * d.arm.figure('accuracy_delta'):+.2f} points, {d.study.gain(d.arm):+.1f} % tokens/s"
        for d in ordered[:MOST_NAMED]
    ]
    more = len(ordered) - len(parts)
    return "; ".join(parts) + (f"; and {more} more" if more else "")


def _where(decided: Sequence[Decision]) -> str:
    """Below, open and above the claim: which settings, the gentlest first."""
    parts = []
    for verdict in ("below", "open", "above"):
        found = [d for d in decided if d.verdict == verdict]
        if found:
            parts.append(f"{verdict}, from the gentlest on: {_named(found)}")
    return f"where ({CLAIM} of bits per byte): " + ". ".join(parts) if parts else ""


def _label(arm: Arm) -> str:
    """Whose victory it is."""
    return {"fetch": "fetching what is missing", "buddy": "a buddy"}.get(arm.group, arm.policy)


def _instead(studies: Sequence[Study]) -> str:
    """Who is fastest within a loss, over all capacities, models and limits; and the cells of the claimed loss."""
    cells = [(s, cache, limit) for s in studies for cache in s.caches for limit in LIMITS]
    best = [arm for cell in cells if (arm := fastest(*cell)) is not None]
    ranks = Counter(map(_label, best)).most_common()
    least = ", ".join(f"{limit:g}" for limit in LIMITS)
    counted = ", ".join(f"{name} in {n}" for name, n in ranks)
    return (
        f"**what to use: {ranks[0][0]}.** Fastest arm for a loss of at most {least} %, upper ends that hold for all "
        f"arms of a capacity together, of {len(best)} cells (model x capacity x loss): {counted}"
        f"{'' if 'a buddy' in dict(ranks) else ', a buddy in 0'}. Within {CLAIM}: "
        + "; ".join(_cell(s, cache) for s in studies for cache in s.caches)
    )  # fmt: skip


def _cell(study: Study, cache: float) -> str:
    best, buddy = fastest(study, cache, CLAIM_PERCENT), fastest(study, cache, CLAIM_PERCENT, "buddy")
    assert best is not None  # fetch loses nothing
    beside = "no buddy" if buddy is None else f"best buddy {study.gain(buddy):+.1f} %"
    return f"{study.model}, c = {cache:g}: {best.name} ({study.gain(best):+.1f} % tokens/s; {beside})"


def _counted(found: Sequence[Comparison]) -> str:
    n = Counter(each.verdict for each in found)
    return f"it loses less in {n['better']}, more in {n['worse']}, and {n['open']} are open"


def _lists(controls: Sequence[Comparison]) -> str:
    """What the choice of the stand-in is worth, the same slots being substituted."""
    parts = []
    for group, name in (("buddy", "a buddy"), ("similarity", "a stand-in chosen by similar outputs")):
        of_group = [each for each in controls if each.arm.group == group]
        if of_group:
            each = "; ".join(_beside(of_group, policy) for policy in dict.fromkeys(map(_policy, of_group)))
            parts.append(f"{name} beside its controls, {len(of_group)} comparisons: {_counted(of_group)} ({each})")
    return "is it the list? " + ". ".join(parts) if parts else ""


def _policy(each: Comparison) -> str:
    return each.mixed[0][1].policy


def _beside(found: Sequence[Comparison], policy: str) -> str:
    """How it stands with the controls of one policy: won, lost, open."""
    n = Counter(each.verdict for each in found if _policy(each) == policy)
    return f"{policy} {n['better']}, {n['worse']}, {n['open']}"


def _at_equal_bytes(equal: Sequence[Comparison]) -> str:
    """Each group beside all other policies, and which of these lose less, and more, most often."""
    parts = []
    for group in dict.fromkeys(each.arm.group for each in equal):
        found = [each for each in equal if each.arm.group == group]
        said = "".join(_most_often(found, verdict, word) for verdict, word in (("worse", "less"), ("better", "more")))
        rivals = "".join(map(_beside_rival, _rivals(found))) if group == "ours" else ""
        parts.append(f"{group}, {len(found)} comparisons with other policies: {_counted(found)}{said}{rivals}")
    return "at equal bytes: " + ". ".join(parts) if parts else ""


RIVALS = ("by weight", "re-ranking")


def _rivals(found: Sequence[Comparison]) -> list[list[Comparison]]:
    """The comparisons with each policy that goes by the router, not by lists."""
    groups = {each.other: {part.group for _, part in each.mixed} for each in found}
    names = [name for name, of in groups.items() if of & set(RIVALS)]
    return [[each for each in found if each.other == name] for name in names]


def _beside_rival(found: Sequence[Comparison]) -> str:
    n = Counter(each.verdict for each in found)
    return f"; beside {found[0].other} less in {n['better']}, more in {n['worse']}, {n['open']} open"


def _most_often(found: Sequence[Comparison], verdict: str, word: str) -> str:
    """`; less than it lose most often drop (6 of 7)`; empty where nobody does."""
    of = Counter(each.other for each in found)
    wins = Counter(each.other for each in found if each.verdict == verdict)
    ordered = sorted(wins, key=lambda name: (-wins[name] / of[name], -wins[name], name))[:MOST_NAMED]
    by = ", ".join(f"{name} ({wins[name]} of {of[name]})" for name in ordered)
    return f"; {word} than it lose most often {by}" if by else ""


def facts(study: Study) -> list[str]:
    """What was judged, by what, and how sure its intervals are."""
    text, settings = study.result["text"], study.result["settings"]
    fetch = study.arms[study.caches[0], "fetch"]
    bits, right = (fetch.figure(name) for name in ("base_bits_per_byte", "base_accuracy"))
    seeds = max(len(arm.percents) for arm in study.arms.values())
    runs = len(study.result["rows"])
    return [
        f"{study.model}: {text['windows']} windows x {text['length']} tokens of {text['source']}, "
        f"{text['predicted_bytes']:,} bytes predicted; {study.files.n} files, which weigh as many as "
        f"{effective_number(fetch.sums['tokens']):.1f} of equal size; unmodified {bits:.4f} bits per byte, next-token "
        f"accuracy {100 * right:.2f} %; fitted on {study.result['calibration_tokens']:,} tokens of other files",
        f"{study.model}: {runs} runs, arms that draw over {seeds} seeds; charged "
        f"as {settings['charge']} in {settings['precision']} on {machine_words(settings)}, engine "
        f"{settings['engine']}, eviction {settings['eviction']}; {_replayed(study)}",
    ]


def _replayed(study: Study) -> str:
    """How far a replay of the unmodified model's routing would have been off."""

    def off(arm: Arm, name: str) -> float:
        return 100 * (arm.open_loop[name] / arm.speed[name] - 1) if arm.speed[name] else 0.0

    arms = list(study.arms.values())
    if any(abs(off(arm, name)) > 1e-7 for arm in arms if arm.group == "fetch" for name in REPLAYED):
        return "open and closed loop differ even with fetch: something is wrong"
    lossy = [arm for arm in arms if arm.group != "fetch"] or arms
    middle = [sorted(abs(off(arm, name)) for arm in lossy)[len(lossy) // 2] for name in REPLAYED]
    worst = max(lossy, key=lambda arm: abs(off(arm, REPLAYED[0])))
    return (
        f"an open-loop replay is exact with fetch; over the lossy arms its time per token is off by {middle[0]:.1f} % "
        f"(median), its bytes by {middle[1]:.1f} %, its time at worst by {off(worst, REPLAYED[0]):+.1f} % "
        f"({worst.name}, c = {worst.cache:g})"
    )


REPLAYED = ("time_ns_per_token", "h2d_bytes_per_token")


def precision(decided: Sequence[Decision]) -> str:
    """How narrow the interval of the gentlest setting is; empty where there is none."""
    busy = [d for d in decided if d.verdict != "idle"]
    if not busy:
        return ""
    d = min(busy, key=lambda d: abs(d.rise.value))
    low, high = d.rise.wider()
    return (f"the gentlest buddy setting ({d.study.model}, {d.arm.name}, c = {d.arm.cache:g}) is known to "
            f"+-{(high - low) / 2:.3f} % of bits per byte (aim: 0.1)")  # fmt: skip
