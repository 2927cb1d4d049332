"""What a comparison comes to, in one sentence: who wins, by how much, and under which marks.

Oracles, and what does not fit its memory, never win: they are named as limits. A tie is called one. Runs that are no
alternatives of each other are never set against each other: the best of each kind is named.
"""

from collections.abc import Sequence
from typing import Any

from analysis.comparing.comparison import Comparison
from analysis.comparing.leading import NO_CHOICE
from analysis.showing.words import listed, plain, rate, shortened
from sim.outcome.how_sure import how_sure

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
    if not heads:
        return f"No run here can win: {_limits(rows, most)}."
    if len({row["conditions"] for row in found.rows}) > 1:
        return _of_each(found, heads, most)
    best = heads[0]
    others = [row for row in rows if row["against_best"] is not None and row is not best]
    said = _won(found, best, most) if others else _alone(best, most)
    tail = [_gives_up(rows, best, most), _limits(rows, most, best)]
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
    tied, lead = _tied(found, best), _lead(found, best, most)
    said = _marks(tied, [NO_INTERVAL] if _unpaired(found) else [])
    if len(tied) == 1:
        return f"{name_of(best, most)} wins: {_speed(best)}{lead}{said}"
    named = [f"{name_of(row, most)} at {_speed(row) if row is best else rate(row['tokens_per_s'])}" for row in tied]
    tail = f"; {name_of(best, most)} is{lead.removeprefix(',')}" if lead else ""
    return f"No winner: {listed(named, 2)} cannot be told apart{tail}{said}"


def _unpaired(found: Comparison) -> bool:
    """Whether leads have no intervals that they should have: those of different engines stand beside the speeds."""
    others = [row for row in found.rows if row["against_best"]]
    return bool(others) and "engine" not in found.differs and all(row["against_best_low"] is None for row in others)


def _tied(found: Comparison, best: Row) -> list[Row]:
    """Who leads with it, itself first, then the fastest."""
    mine = [row for row in found.rows if row["leads"] and row["conditions"] == best["conditions"]]
    return sorted(mine, key=lambda row: (row is not best, -row["tokens_per_s"]))


def _lead(found: Comparison, best: Row, most: int) -> str:
    """Over the baseline, if that is another run that can be had and no part of a tie, and over the next; of a lossy
    winner the fastest that loses nothing is named later, and the next says little."""
    base = next(row for row in found.rows if row["run"] == found.baseline)
    behind = [row for row in found.rows if row["against_best"] is not None and not row["leads"]]
    following = max(behind, key=lambda row: row["against_best"], default=None)
    said = []
    if base in behind:
        said.append(f"{_over(base, best)}{name_of(base, most)}")
    if following is not None and following is not base and not (said and _lossy(best)):
        said.append(f"{_over(following, best)}{'the next, ' * bool(said)}{name_of(following, most)}")
    return "".join(f", {each}" for each in said)


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


def _gives_up(rows: Sequence[Row], best: Row, most: int) -> str:
    """What a lossy winner loses, and who is the fastest that loses nothing."""
    if not _lossy(best):
        return ""
    said = f"it loses {_loss(best)}"
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


def _limits(rows: Sequence[Row], most: int, best: Row | None = None) -> str:
    """The fastest oracle, and the fastest that does not fit its memory if it is faster than the winner."""
    said = []
    least = best["tokens_per_s"] if best else 0.0
    out = sorted((row for row in rows if set(row["marks"]) & set(NO_CHOICE)), key=lambda row: -row["tokens_per_s"])
    for first in [row for row in out if _oracle(row)][:1]:
        beyond = "the limit is {}, {}" if first["tokens_per_s"] >= least else "{} reaches {}"
        said.append(beyond.format(name_of(first, most), f"{rate(first['tokens_per_s'])} tokens/s"))
    for first in [row for row in out if not _oracle(row) and row["tokens_per_s"] > least][:1]:
        said.append(f"{name_of(first, most)}, {rate(first['tokens_per_s'])} tokens/s, does not fit into its memory")
    return "; ".join(said)


def _oracle(row: Row) -> bool:
    return "oracle" in row["marks"]


def _of_each(found: Comparison, heads: Sequence[Row], most: int) -> str:
    """The best of each kind of runs, side by side and never against each other; marks of all once, at the end."""
    tied = [_tied(found, row) for row in heads]
    named = tied if len(tied) <= NAMED else tied[: NAMED - 1]
    shared = [mark for mark in heads[0]["marks"] if all(mark in row["marks"] for rows in tied for row in rows)]
    said = [_best_of_kind(rows, most, shared) for rows in named]
    said += [f"and {len(tied) - len(named)} more kinds"] if len(tied) > len(named) else []
    said += [f"all {', '.join(shared)}"] if shared else []
    return f"No alternatives of each other, so the fastest of each kind: {'; '.join(said)}."


def _best_of_kind(tied: Sequence[Row], most: int, shared: Sequence[str]) -> str:
    row, several = tied[0], len(tied) > 1
    names = listed([name_of(each, most) for each in tied], 1 + (len(tied) == 2))
    loss = f", losing {_loss(row)}" * _lossy(row)
    own = [mark for mark in _all_marks(tied) if mark not in shared]
    where = shortened(plain(row["work"]), most + most // 2)
    return f"{where}: {names}{' tie at' if several else ','} {_speed(row)}{loss}{_in_brackets(own)}"


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
