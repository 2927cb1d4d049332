"""Many policies over cache size as text: a table for people, CSV, one JSON object."""

import csv
import io
import json
from collections.abc import Sequence

from analysis.curves.curve import Row
from analysis.curves.formats import SAID, headlines, notes
from analysis.curves.policies import FLOOR, ONE_PASS, SIMULATED, Line, Policies, tied
from analysis.showing.words import listed
from sim.outcome.how_sure import between

NAME = 18  # characters of a policy's name, at least
MANY = 3  # policies that miss alike: said in words
ORACLE = "ORACLE: {} {} the future, which no engine can; no policy to choose"
FLOORED = (
    f"{FLOOR}: the fewest misses of decode steps that any choice of residents has, with bypass (Belady's MIN): a "
    "bound, not a policy; its tokens/s are predicted, those of a perfect policy that copies nothing ahead"
)
EXACT = "no eviction changes what the model computes, so its routing, and every miss, is exact"


def all_notes(found: Policies) -> list[str]:
    """What must be said wherever these figures are shown."""
    oracles = [line.policy for line in found.lines if line.oracle and line.policy != FLOOR]
    reads = "reads" if len(oracles) == 1 else "read"
    oracle = [ORACLE.format(listed(oracles), reads)] if oracles else []
    return [*notes(found.setting), *oracle, FLOORED, EXACT]


def what(found: Policies) -> list[str]:
    """What was looked at."""
    first, second = headlines(found.setting)
    return [first, second.replace("; LRU, slots", f"; {len(found.lines) - 1} evictions, slots")]


def findings(found: Policies) -> list[str]:
    """What the lines say, in words."""
    once = [line.policy for line in found.lines if line.how == ONE_PASS]
    ran = sum(line.how == SIMULATED for line in found.lines)
    out = [_tie(found, slots, names) for slots in found.slots for names in _groups(found, slots)]
    out += [_best(found, slots) for slots in found.slots if found.real]
    out += [f"left out: {reason}" for reason in found.left_out.values()]
    passes = f"{listed(once)} in one pass at every capacity" if once else "none in one pass"
    return [*out, f"{passes}, {ran} others by simulation: {found.runs} runs"]


def _groups(found: Policies, slots: int) -> list[list[str]]:
    """Policies that miss alike there, where they are many."""
    groups = {tuple(sorted([name, *others])) for name, others in tied(found, slots).items()}
    order = [line.policy for line in found.lines]
    return [sorted(group, key=order.index) for group in sorted(groups) if len(group) >= MANY]


def _tie(found: Policies, slots: int, names: Sequence[str]) -> str:
    why = ": one step fills them, so nothing is left to choose" if slots == found.cliff else ""
    return f"{slots} slots: {listed(names, 20)} miss alike{why}"


def _best(found: Policies, slots: int) -> str:
    """Who of those that know no future misses least."""
    at = {line.policy: misses for line in found.real if (misses := line.at(slots)) is not None}
    least, best = found.lines[-1].at(slots), min(at.values())
    names = [name for name, misses in at.items() if misses == best]
    over = f", {best / least:.2f} times the floor" if least else ""
    lru = f"; lru {at['lru'] / least:.2f}" if least and "lru" in at and "lru" not in names else ""
    return f"{slots} slots: fewest misses without a look ahead: {listed(names)}{over}{lru}"


def table(found: Policies, lines: Sequence[Row]) -> str:
    """The chosen capacities, one after another, each with every policy, the fewest misses first."""
    heads = ("slots", "share", "GB", "hit rate", "misses/token", "x floor", "tokens/s")
    loud = [f"! {note}" for note in all_notes(found)]
    width = max(NAME, *(len(line.policy) + 1 for line in found.lines))  # a user's own is a path
    head = f"{'policy':<{width}}" + " ".join(f"{each:>12}" for each in heads)
    text = [*what(found), *loud, "", *findings(found), "", head]
    shown = sorted((row for row in lines if row["slots"] in found.slots), key=lambda row: (row["slots"], row["misses"]))
    for i, row in enumerate(shown):
        if i and row["slots"] != shown[i - 1]["slots"]:
            text.append("")
        text.append(_shown(row, width))
    return "\n".join(text)


def _shown(row: Row, width: int) -> str:
    cells = (
        f"{row['slots']}", f"{row['share']:.1%}", f"{row['gb']:,.2f}", f"{row['hit_rate']:.2%}",
        f"{row['misses_per_token']:.2f}", "" if row["over_floor"] is None else f"{row['over_floor']:.2f}",
        f"{row['tokens_per_s']:,.2f}",
    )  # fmt: skip
    said = [*(["oracle"] if row["oracle"] else []), *(["predicted"] if row["tokens_by"] == "predicted" else [])]
    said += [f"= {listed(row['tied_with'], 2)}"] if row["tied_with"] else []
    sure = [] if row["tokens_per_s_low"] is None else [between((row["tokens_per_s_low"], row["tokens_per_s_high"]))]
    numbers = " ".join(f"{cell:>12}" for cell in cells)
    return f"{row['policy']:<{width}}{numbers}  {'; '.join([*sure, *said])}".rstrip()


def as_csv(found: Policies, lines: Sequence[Row]) -> str:
    """A line per policy and capacity; those that tie joined by a blank."""
    out = io.StringIO()
    writer = csv.DictWriter(out, list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({**row, "tied_with": " ".join(row["tied_with"])} for row in lines)
    return out.getvalue().rstrip("\n")


def as_json(found: Policies, lines: Sequence[Row]) -> str:
    """One object: the rows and what they depend on."""
    setting, trace = found.setting, found.setting.trace
    saved = setting.spec.saved()
    out = {
        "trace": {"name": setting.spec.trace, "hash": setting.trace_hash, "model": trace.model, "real": trace.real},
        "spec": {name: saved[name] for name in (*SAID, "calibration") if name in saved and name != "eviction"},
        "notes": all_notes(found),
        "tokens": found.visits.tokens,
        "wanted": found.visits.wanted,
        "cliff": found.cliff,
        "fits": found.fits,
        "slots": found.slots,
        "policies": {line.policy: _about(line) for line in found.lines},
        "left_out": found.left_out,
        "rows": list(lines),
    }
    return json.dumps(out)


def _about(line: Line) -> Row:
    return {"how": line.how, "oracle": line.oracle}


FORMATS = {"table": table, "csv": as_csv, "json": as_json}
