"""A sweep as a table: a row for each configuration, and from it lines over a swept number, and who is best where.

Repeats (runs that differ in their seed alone) are one row, the mean of them. Runs of unlike conditions (another trace,
machine, model, batch: analysis.comparing.comparison) are never set against each other.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import PurePath
from typing import Any

import numpy as np
import pandas as pd

from analysis.reading.run import POLICY_FIELDS, Run, differing, settings
from sim.experiments.fastest import fastest
from sim.sweeps.answer import CHOICES

SEED, SLOTS = "seed", "slots in all"
OWN = {
    *CHOICES,
    "cache",
    "ram",
    SLOTS,
}  # of runs that are alternatives of each other; beside them parameters of policies
Row = Mapping[str, Any]  # of the table
NUMBERS = ["tokens_per_s", "tokens_per_s_low", "tokens_per_s_high", "lost_weight"]


@dataclass(frozen=True)
class Line:
    """Speeds over a swept number, of runs that differ in nothing else: rows of the table, rising by `x`. x None: these
    have no such number, and the speed holds for all of them. facet: their conditions, name: their policies and what
    else is their own, in words."""

    facet: str
    name: str
    x: list[float] | None
    rows: Sequence[Row]

    @property
    def label(self) -> str:
        """The name, and what must be said with it."""
        return labelled(self.name, self.oracle, any(row["lossy"] for row in self.rows))

    @cached_property
    def oracle(self) -> bool:
        """Whether it reads the future."""
        return any(row["oracle"] for row in self.rows)

    @cached_property
    def speeds(self) -> list[float]:
        """Tokens/s of each row."""
        return [float(row["tokens_per_s"]) for row in self.rows]

    @cached_property
    def choosable(self) -> list[bool]:
        """Of each row whether an engine could have it, and it fits."""
        return [row["fits"] and not row["oracle"] for row in self.rows]

    def at(self, x: float) -> int | None:
        """The place of the row that holds at `x`."""
        if self.x is None:
            return 0
        return self.x.index(x) if x in self.x else None


@dataclass(frozen=True)
class Facet:
    """The lines of one set of conditions; name: these, in words."""

    name: str
    lines: list[Line]

    @cached_property
    def points(self) -> list[float]:
        """Every value of the swept number, rising."""
        return sorted({x for line in self.lines for x in line.x or []})

    @cached_property
    def winners(self) -> list[tuple[Line, int]]:
        """At each point who is fastest, and how many more are within a hundredth of it: none that is an oracle or does
        not fit, where there is another."""
        return [self._winner(x) for x in self.points]

    def _winner(self, x: float) -> tuple[Line, int]:
        here = [(line, i) for line in self.lines if (i := line.at(x)) is not None]
        could = [one for one in here if one[0].choosable[one[1]]] or [one for one in here if not one[0].oracle] or here
        speeds = [line.speeds[i] for line, i in could]
        return could[speeds.index(max(speeds))][0], _ties(speeds)


def _ties(speeds: Sequence[float]) -> int:
    """How many more cannot be told from the fastest."""
    return len(fastest({str(i): speed for i, speed in enumerate(speeds)})) - 1


def labelled(name: str, oracle: bool, lossy: bool) -> str:
    """The name, and what must be said with it."""
    marks = ["oracle"] * oracle + ["lossy"] * lossy
    return name + f" ({', '.join(marks)})" * bool(marks)


def sweep_table(runs: Sequence[Run]) -> pd.DataFrame:
    """A row for each configuration that generated a token, index: the name of its (first) run. Columns: the settings
    that differ (attrs["settings"]), NUMBERS, `repeats` with the `least` and `most` tokens/s of them, oracle, lossy,
    fits, policy."""
    mine = [run for run in runs if run.summary["tokens_per_s"] is not None]
    fields = [name for name in differing(mine) if name != SEED]
    rows = [_row(run, fields) for run in mine]
    table = pd.DataFrame(rows, index=pd.Index([run.name for run in mine], name="run"), dtype=object)
    if "cache" in fields and len({type(value) for value in table["cache"]}) > 1:  # slots beside shares, or GB
        table["cache"], fields = [str(value) for value in table["cache"]], [*fields, SLOTS]
        table[SLOTS] = [run.summary["slots"]["total"] for run in mine]
    table = _repeats_joined(table, fields) if len(table) else table
    table.attrs = {"settings": fields}
    return table


def _row(run: Run, fields: Sequence[str]) -> dict[str, Any]:
    given, s = settings(run), run.summary
    given["trace"] = (
        PurePath(str(run.spec["trace"])).stem + f" ({run.trace['hash'][:6]}{', synthetic' * run.synthetic})"
    )
    sure = s.get("tokens_per_s_interval") or (None, None)
    numbers = dict(zip(NUMBERS, (s["tokens_per_s"], *sure, run.lost_weight), strict=True))
    fits = not any(mark.startswith("does not fit") for mark in run.marks)
    flags = {"oracle": run.oracle, "lossy": run.lossy, "fits": fits}
    return {field: given.get(field) for field in fields} | numbers | flags | {"policy": run.policy}


def _repeats_joined(table: pd.DataFrame, fields: Sequence[str]) -> pd.DataFrame:
    """Rows that differ in no field as one: means of numbers, and how far the speeds reach."""
    groups: dict[tuple[str, ...], list[int]] = {}
    for i, key in enumerate(keys(table, fields)):
        groups.setdefault(key, []).append(i)
    first = table.iloc[[rows[0] for rows in groups.values()]].copy()
    numbers = table[NUMBERS].to_numpy(np.float64)
    for at, name in enumerate(NUMBERS):
        first[name] = [numbers[rows, at].mean() for rows in groups.values()]
    speeds = [numbers[rows, 0] for rows in groups.values()]
    first["repeats"] = [len(each) for each in speeds]
    first["least"], first["most"] = [each.min() for each in speeds], [each.max() for each in speeds]
    for flag in ("oracle", "lossy", "fits"):
        first[flag] = first[flag].astype(bool)
    return first


def own_settings(table: pd.DataFrame) -> list[str]:
    """The settings in which alternatives differ: what an engine does, and with how many slots; no conditions."""
    return [name for name in table.attrs["settings"] if _own(name)]


def _own(name: str) -> bool:
    return name in OWN or "." in name


def axes(table: pd.DataFrame) -> dict[str, list[str]]:
    """The numbers that were swept, and with each those that went in step with it: some runs differ in it alone."""
    numeric = {name: _values(table, name) for name in table.attrs["settings"]}
    numeric = {name: values for name, values in numeric.items() if len(values) > 1}
    out: dict[str, list[str]] = {}
    for name in numeric:
        beside = [other for other in numeric if other != name and _in_step(table, name, other)]
        if name in {each for found in out.values() for each in found}:
            continue
        if any(line.x is not None and len(line.x) > 1 for line in lines(table, name, beside)):
            out[name] = beside
    return out


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.integer) and not isinstance(value, bool) and bool(np.isfinite(value))


def _values(table: pd.DataFrame, name: str) -> list[float]:
    """The different numbers of a setting, rising; few where other values are the rule."""
    return sorted({float(value) for value in table[name] if _is_number(value)})


def _in_step(table: pd.DataFrame, name: str, other: str) -> bool:
    """Whether each value of one comes with one value of the other."""
    pairs = {(repr(a), repr(b)) for a, b in zip(table[name], table[other], strict=True)}
    return len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs}) and _own(other)


def lines(table: pd.DataFrame, axis: str, beside: Sequence[str] = ()) -> list[Line]:
    """Every line over `axis` in the order of the table; beside: settings that go in step with it."""
    fields = [name for name in table.attrs["settings"] if name not in (axis, *beside)]
    apart = [name for name in fields if not _own(name)]
    own = [name for name in fields if _own(name) and not (name == "cache" and axis == SLOTS)]
    groups: dict[tuple[bool, tuple[str, ...]], list[Row]] = {}
    for row, key in zip(_records(table), keys(table, [*apart, *own]), strict=True):
        groups.setdefault((_is_number(row[axis]), key), []).append(row)
    out = []
    for (number, _), rows in groups.items():
        rows = sorted(rows, key=lambda row: float(row[axis])) if number else rows
        x = [float(row[axis]) for row in rows] if number else None
        out.append(Line(words(rows[0], apart), name_of(rows[0], own), x, rows))
    return out


def _records(table: pd.DataFrame) -> list[Row]:
    rows: list[Row] = table.to_dict("records")
    return rows


def by_facet(found: Sequence[Line]) -> list[Facet]:
    """The lines by their conditions; without conditions in which nothing is joined."""
    out: dict[str, list[Line]] = {}
    for line in found:
        out.setdefault(line.facet, []).append(line)
    return [Facet(name, mine) for name, mine in out.items() if any(line.x and len(line.x) > 1 for line in mine)]


def words(row: Row, fields: Sequence[str]) -> str:
    """`hardware rtx4090, batch 4`; what a row does not have is left out."""
    return ", ".join(f"{name} {row[name]}" for name in fields if row[name] is not None)


def name_of(row: Row, fields: Sequence[str]) -> str:
    """`lru + buddy, buddy.tau 0.5`: policies without their field's name; all of them where they do not differ."""
    policies = [str(row[name]) for name in POLICY_FIELDS if name in fields and row[name] not in (None, "none")]
    mine = " + ".join(policies) if any(name in fields for name in POLICY_FIELDS) else str(row["policy"])
    rest = words(row, [name for name in fields if name not in POLICY_FIELDS])
    return ", ".join(part for part in (mine or "none", rest) if part)


# --- who is best ---


@dataclass(frozen=True)
class Best:
    """Of runs that may be compared, rows of the table: the fastest that an engine could have, those within a hundredth
    of it (ties, no winner), the next best, the fastest that loses nothing, and an oracle that is faster still; None
    where there is no such. facet: their conditions, in words."""

    facet: str
    setting: str | None
    value: Any
    best: Row
    ties: int
    following: Row | None
    lossless: Row | None
    oracle: Row | None


def best_by(table: pd.DataFrame, setting: str | None = None) -> list[Best]:
    """Of each set of conditions, and in it of each value of a setting (None: of them all)."""
    fields = [name for name in table.attrs["settings"] if not _own(name) and name != setting]
    names = [*fields, *([setting] if setting is not None else [])]
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row, key in zip(_records(table), keys(table, names), strict=True):
        groups.setdefault(key, []).append(row)
    out = []
    for rows in groups.values():
        value = rows[0][setting] if setting is not None else None
        out.append(_best_of(rows, words(rows[0], fields), setting, value))
    return out


def keys(table: pd.DataFrame, names: Sequence[str]) -> list[tuple[str, ...]]:
    """The values of these columns, of each row, as a key."""
    return list(zip(*(table[name].map(repr) for name in names), strict=True)) if names else [()] * len(table)


def _best_of(rows: Sequence[Row], facet: str, setting: str | None, value: Any) -> Best:
    """What does not fit and oracles are chosen only where there is nothing else."""
    rows = sorted(rows, key=lambda row: -row["tokens_per_s"])
    real = [row for row in rows if not row["oracle"]] or rows
    could = [row for row in real if row["fits"]] or real
    lossless = [row for row in could if not row["lossy"]]
    oracles = [row for row in rows if row["oracle"] and row["tokens_per_s"] > could[0]["tokens_per_s"]]
    first = [next(iter(found), None) for found in (could[1:], lossless, oracles)]
    return Best(facet, setting, value, could[0], _ties([row["tokens_per_s"] for row in could]), *first)
