"""Published speeds beside their predictions, as `python -m sim.experiments published --out DIR` keeps them:
DIR/published.csv. It may have been written by anybody: what is used is checked, text is shown and never run.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from analysis.reading.csv_rows import number_in, rows_of, text_in
from sim.timings.rows import DECODE, MS, PREFILL
from traces.command import one_of
from traces.errors import UserError

UNITS = {"decode": (DECODE, MS), "prefill": (PREFILL,)}  # of each phase
SPEEDS = ("published", "predicted", "low", "high")
TEXTS = ("engine", "machine", "model", "judged")  # never empty
COLUMNS = (*TEXTS, "phase", "settings", "unit", *SPEEDS)
LEAST, MOST = 1e-9, 1e12  # of a figure


@dataclass(frozen=True)
class Speed:
    """A published speed and what is predicted for it; published, predicted, low, high (its interval): tokens/s.
    judged: `yes`, or why not."""

    engine: str
    machine: str
    model: str
    phase: str
    settings: str
    judged: str
    published: float
    predicted: float
    low: float
    high: float

    @property
    def error(self) -> float:
        """As a share of what is published."""
        return self.predicted / self.published - 1

    @property
    def is_judged(self) -> bool:
        """Whether it counts in what is claimed."""
        return self.judged == "yes"


def published(path: str) -> list[Speed]:
    """The rows of a CSV file with at least COLUMNS; a first line that begins with # is a comment.

    Raises UserError, one line that names file, line, column and value.
    """
    rows = rows_of(path)
    missing = [name for name in COLUMNS if rows and name not in rows[0][1]]
    if missing:
        made = "python -m sim.experiments published --out DIR writes a published.csv that has it"
        raise UserError(f"{path}: column {missing[0]!r}: missing; {made}")
    if not rows:
        raise UserError(f"{path}: no rows; needs a line of column names and a line per published speed")
    return [_speed(f"{path}: line {line}", row) for line, row in rows]


def _speed(where: str, row: dict[str, str]) -> Speed:
    if None in row or None in row.values():
        raise UserError(f"{where}: has not as many columns as the line of names")
    phase = one_of(f"{where}: phase", row["phase"], tuple(UNITS))
    unit = one_of(f"{where}: unit of {phase}", row["unit"], UNITS[phase])
    values = [number_in(f"{where}: {name}", row[name], LEAST, MOST) for name in SPEEDS]
    speeds = dict(zip(SPEEDS, _tokens_per_s(values) if unit == MS else values, strict=True))
    if speeds["low"] > speeds["high"]:
        raise UserError(f"{where}: low = {row['low']}: must not exceed high, which is {row['high']}")
    engine, machine, model, judged = (text_in(f"{where}: {name}", row[name]) for name in TEXTS)
    return Speed(engine, machine, model, phase, row["settings"], judged, **speeds)


def _tokens_per_s(ms: Sequence[float]) -> list[float]:
    """SPEEDS of ms a token: the ends of the interval change places."""
    measured, predicted, low, high = (1e3 / each for each in ms)
    return [measured, predicted, high, low]
