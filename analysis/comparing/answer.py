"""What a comparison comes to, in one sentence: who wins, by how much, and under which marks.

Oracles, and what does not fit its memory, never win: they are named beside the winner. A tie is called one.
Runs that are no alternatives of each other are never set against each other: the best of each kind is named.
"""

from collections.abc import Sequence
from typing import Any

from analysis.comparing.comparison import Comparison
from analysis.comparing.leading import NO_CHOICE
from analysis.comparing.pairing import FEW
from analysis.showing.words import listed, plain, rate, shortened
from sim.outcome.how_sure import NOT_CALIBRATED, TIE, how_sure

Row = dict[str, Any]
NAMED = 3  # runs, or kinds of runs, that a sentence names
NO_INTERVAL = "no intervals"
MANY = 2.0  # times the speed, from which on it is said in times and not in percent


def answer(found: Comparison, most: int = 80) -> str:
    """The sentence. most: characters that a run's name may have in it."""
    rows = [row for row in found.rows if row["tokens_per_s"]]
    if not rows:
        return "No run generated a token: there is no tokens/s to compare."
    heads = leaders(found)
    if len({row["conditions"] for row in found.rows}) > 1:
        return _of_each(found, heads, most)
    if not heads:
        return f"No run here can win: {_no_choice(rows, most)}."
    best = heads[0]
    others = [row for row in rows if row["against_best"] is not None and row is not best]
    said = _won(found, best, most) if others else _alone(best, most)
    tail = [_gives_up(rows, best, most), _no_choice(rows, most, best)]
    return f"{said}{''.join(f'; {each}' for each in tail if each)}."


def leaders(found: Comparison) -> list[Row]:
    """The best of each set of conditions, by first appearance; none of those in which nobody can win."""
    mine: dict[int, list[Row]] = {}
    for row in found.rows:
        if row["leads"]:
            mine.setdefault(row["conditions"], []).append(row)
    return [max(rows, key=lambda row: (row["against_best"], not _lossy(row))) for rows in mine.values()]


def held_back(found: Comparison, most: int = 80) -> str:
    """What holds the winner back, in a line; of several kinds of runs the word for each winner; "" without one."""
    heads = found.rows if len(found.rows) == 1 else leaders(found)
    if not heads:
        return ""
    if len(heads) == 1:
        return f"What holds {name_of(heads[0], most)} back: {plain(heads[0]['verdict'])}"
    kinds = [f"{name_of(row, most)} {_kind(row)}" for row in heads]
    return f"What holds them back: {listed(kinds, NAMED)}"


# --- the parts of the sentence ---


def _alone(row: Row, most: int) -> str:
    """One run, or the only one that can be had."""
    return f"{name_of(row, most)} generates {_speed(row)}{_marks([row])}: it is {_kind(row)}"


def _won(found: Comparison, best: Row, most: int) -> str:
    tied, behind = _tied(found, best), _behind(found, best)
    lead = _lead(behind, best, most)
    said = _marks(tied, [*_doubts(tied, behind, most), *_requests(tied, behind), *[NO_INTERVAL] * _unpaired(found)])
    if len(tied) == 1:
        return f"{name_of(best, most)} wins: {_speed(best)}{lead}{said}"
    named = [f"{name_of(row, most)} at {_speed(row) if row is best else rate(row['tokens_per_s'])}" for row in tied]
    tail = f"; {name_of(best, most)} is{lead.removeprefix(',')}" if lead else ""
    return f"No winner: {listed(named, 2)} {_alike(tied[1:])}{tail}{said}"


def _alike(tied: Sequence[Row]) -> str:
    """Why these are no worse than the best: too near, or, for all that is known, perhaps as fast."""
    near = [row["against_best_high"] is not None and row["against_best_high"] < 0 for row in tied]
    near = [each and (1 + row["against_best"]) * (1 + TIE) >= 1 for each, row in zip(near, tied, strict=True)]
    within = f"are within {100 * TIE:g} %"
    return within if all(near) else f"{within} or cannot be told apart" if any(near) else "cannot be told apart"


def _doubts(tied: Sequence[Row], behind: Sequence[Row], most: int) -> list[str]:
    """What else a ratio to these rests on: costs that nobody has calibrated."""
    if NOT_CALIBRATED in _all_marks(tied):
        return []
    return [f"{name_of(row, most)} {NOT_CALIBRATED}" for row in behind if NOT_CALIBRATED in row["marks"]]


def _requests(tied: Sequence[Row], behind: Sequence[Row]) -> list[str]:
    """On how many requests the best is set against others, where those are few; tied: itself first."""
    n = min((row["against_best_requests"] or FEW for row in [*tied[1:], *behind]), default=FEW)
    return [f"on {n} request{'s' * (n > 1)}"] if n < FEW else []


def _unpaired(found: Comparison) -> bool:
    """Whether leads have no intervals that they should have: those of different engines stand beside the speeds."""
    others = [row for row in found.rows if row["against_best"]]
    return bool(others) and "engine" not in found.differs and all(row["against_best_low"] is None for row in others)


def _tied(found: Comparison, best: Row) -> list[Row]:
    """Who leads with it, itself first, then the fastest."""
    mine = [row for row in found.rows if row["leads"] and row["conditions"] == best["conditions"]]
    return sorted(mine, key=lambda row: (row is not best, -row["tokens_per_s"]))


def _behind(found: Comparison, best: Row) -> list[Row]:
    """The baseline, if that is another run that can be had and no part of a tie, and the next; of a lossy winner the
    fastest that loses nothing is named later, and the next says little."""
    base = next(row for row in found.rows if row["run"] == found.baseline)
    behind = [row for row in found.rows if row["against_best"] is not None and not row["leads"]]
    following = max(behind, key=lambda row: row["against_best"], default=None)
    out = [base] if base in behind else []
    if following is not None and following is not base and not (out and _lossy(best)):
        out.append(following)
    return out


def _lead(behind: Sequence[Row], best: Row, most: int) -> str:
    words = [f"{_over(row, best)}{'the next, ' * (i > 0)}{name_of(row, most)}" for i, row in enumerate(behind)]
    return "".join(f", {each}" for each in words)


def _over(row: Row, best: Row) -> str:
    """`+1.9% [+1.3%, +2.7%] over `, `3.10 x [3.05 x, 3.14 x] `: how much faster the best is. The interval over requests
    is nothing between engines, whose own costs are off by more: those intervals stand beside the speeds."""
    times, low, high = (
        None if behind is None else 1 / (1 + behind)
        for behind in (row["against_best"], row["against_best_high"], row["against_best_low"])
    )
    assert times is not None  # of a row that can be had
    show = _times if times >= MANY else _percent
    engines = row["settings"].get("engine") != best["settings"].get("engine")
    interval = "" if engines or low is None or high is None else f" [{show(low)}, {show(high)}]"
    return f"{show(times)}{interval}{' over' * (times < MANY)} "


def _times(ratio: float) -> str:
    return f"{ratio:,.2f} x"


def _percent(ratio: float) -> str:
    return f"{ratio - 1:+.1%}"


def _gives_up(rows: Sequence[Row], best: Row, most: int, who: str = "it") -> str:
    """What a lossy winner loses, and who is the fastest that loses nothing."""
    if not _lossy(best):
        return ""
    said = f"{who} loses {_loss(best)}"
    whole = [row for row in rows if row["against_best"] is not None and not _lossy(row)]
    if not whole:
        return said
    first = max(whole, key=lambda row: row["tokens_per_s"])
    return f"{said}, and {name_of(first, most)} is the fastest that loses nothing, {rate(first['tokens_per_s'])}"


def _loss(row: Row) -> str:
    if row["lost_weight"] is None:
        return "an unknown share of the router weight"
    return f"{'at least ' * ('loss partly unseen' in row['marks'])}{row['lost_weight']:.1%} of the router weight"


def _lossy(row: Row) -> bool:
    return "open-loop" in row["marks"] or "loss partly unseen" in row["marks"]


def _no_choice(rows: Sequence[Row], most: int, best: Row | None = None) -> str:
    """The fastest oracle, and the fastest that does not fit its memory if it is faster than the winner. No oracle is
    called a limit: that one is the best of its kind is nowhere shown, and others may do better."""
    said = []
    least = best["tokens_per_s"] if best else 0.0
    out = sorted((row for row in rows if set(row["marks"]) & set(NO_CHOICE)), key=lambda row: -row["tokens_per_s"])
    oracles = [row for row in out if _oracle(row)]
    for first in oracles[:1]:
        several = f" the best of {len(oracles)} oracles here," * (len(oracles) > 1)
        name = f"{name_of(first, most)},{several} which no engine can be,"
        said.append(f"{name} reaches {rate(first['tokens_per_s'])} tokens/s")
    for first in [row for row in out if not _oracle(row) and row["tokens_per_s"] > least][:1]:
        said.append(f"{name_of(first, most)}, {rate(first['tokens_per_s'])} tokens/s, does not fit into its memory")
    return "; ".join(said)


def _oracle(row: Row) -> bool:
    return "oracle" in row["marks"]


def _of_each(found: Comparison, heads: Sequence[Row], most: int) -> str:
    """The best of each kind of runs, side by side and never against each other; marks of all once, at the end. A kind
    in which nobody can win is named, too."""
    kinds = [[row for row in found.rows if row["conditions"] == kind] for kind in _kinds(found)]
    best = {row["conditions"]: row for row in heads}
    tied = [_tied(found, best[rows[0]["conditions"]]) if rows[0]["conditions"] in best else [] for rows in kinds]
    told = [first or [row for row in rows if row["tokens_per_s"]] for first, rows in zip(tied, kinds, strict=True)]
    every = [row for rows in told for row in rows]
    common = [mark for mark in every[0]["marks"] if all(mark in row["marks"] for row in every)]
    shared = [mark for mark in common if mark not in NO_CHOICE]
    both = list(zip(tied, kinds, strict=True))[: NAMED if len(kinds) <= NAMED else NAMED - 1]
    said = [_best_of_kind(first, rows, most, shared) for first, rows in both]
    said += [f"and {len(kinds) - len(both)} more kinds"] if len(kinds) > len(both) else []
    said += [f"all {', '.join(shared)}"] if shared else []
    return f"No alternatives of each other, so the fastest of each kind: {'; '.join(said)}."


def _kinds(found: Comparison) -> list[int]:
    return list(dict.fromkeys(row["conditions"] for row in found.rows))


def _best_of_kind(tied: Sequence[Row], rows: Sequence[Row], most: int, shared: Sequence[str]) -> str:
    """tied: who leads, the best first; rows: all of the kind."""
    where = shortened(plain(rows[0]["work"]), most + most // 2)
    if not tied:
        silent = "no run generated a token"
        return f"{where}: none can win: {_no_choice([row for row in rows if row['tokens_per_s']], most) or silent}"
    row, several = tied[0], len(tied) > 1
    names = listed([name_of(each, most) for each in tied], 1 + (len(tied) == 2))
    own = [mark for mark in _all_marks(tied) if mark not in shared]
    said = f"{where}: {names}{' tie at' if several else ','} {_speed(row)}{_in_brackets(own)}"
    loss = _gives_up(rows, row, most, "the first" if several else "it")
    return f"{said}, {loss}" if loss else said


# --- words ---


def name_of(row: Row, most: int = 80) -> str:
    """A run's name where it is no row of a table: an oracle says so."""
    return shortened(plain(row["run"]), most) + " (oracle)" * _oracle(row)


def _speed(row: Row) -> str:
    pair = (row["tokens_per_s_low"], row["tokens_per_s_high"])
    return f"{rate(row['tokens_per_s'])} tokens/s{how_sure(None if None in pair else pair, False)}"


def _marks(rows: Sequence[Row], more: Sequence[str] = ()) -> str:
    """Under which marks that holds, ` (synthetic, not calibrated)`."""
    return _in_brackets([*_all_marks(rows), *more])


def _all_marks(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(mark for row in rows for mark in row["marks"]))


def _in_brackets(marks: Sequence[str]) -> str:
    return f" ({', '.join(marks)})" if marks else ""


def _kind(row: Row) -> str:
    """The verdict's word."""
    return plain(row["verdict"]).split(":")[0]
