"""Speeds that somebody measured, one row each: what was measured, with which settings, on which machine."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sim import catalog
from sim.errors import SpecError
from sim.flags import TYPES, flag_words, metavar, settings
from sim.spec import RunSpec

DECODE, PREFILL, MS, HITS = "decode tok/s", "prefill tok/s", "ms/token", "hit %"
METRICS = (DECODE, PREFILL, MS, HITS)
EVIDENCE = Path(catalog.__file__).parent / "evidence.csv"
NUMBERS = ("value", "uncertainty", "hit_percent", "prompt", "top_k")
TEXTS = (
    "id", "measured_on", "grade", "published_engine", "version", "metric", "host_rate", "copies_from", "assumed",
    "not_set_up", "source", "notes",
)  # fmt: skip


@dataclass(frozen=True)
class Timing:
    """A measured figure. fields: of the run (`RunSpec`) that it is; value in `metric`; hit_percent: as the engine
    counted it; prompt: tokens; top_k: experts of a token where not the model's. host_rate: whether the
    host's read rate was measured, follows from its nominal peak, or is assumed; copies_from: pinned, pageable or, where
    nobody says it, unknown memory. not_set_up: why there is no such
    run."""

    value: float
    metric: str = DECODE
    fields: dict[str, Any] = field(default_factory=dict)
    id: str = ""
    measured_on: str = ""
    grade: str = "A"
    published_engine: str = ""
    version: str = ""
    uncertainty: float | None = None
    hit_percent: float | None = None
    prompt: int | None = None
    top_k: int | None = None
    host_rate: str = "measured"
    copies_from: str = "known"
    assumed: str = ""
    not_set_up: str = ""
    source: str = ""
    notes: str = ""

    @property
    def prefill(self) -> bool:
        """Whether the prompt's speed is meant."""
        return self.metric == PREFILL

    @property
    def seconds(self) -> float:
        """Per token."""
        return self.value / 1e3 if self.metric == MS else 1 / self.value

    def in_metric(self, seconds: float) -> float:
        """A time per token in the row's own unit."""
        return seconds * 1e3 if self.metric == MS else 1 / seconds

    @property
    def series(self) -> tuple[str, ...]:
        """What is timed alike: the same software on the same parts of the same machine, other settings."""
        of = (self.fields.get("hardware", ""), self.fields.get("precision", ""))
        return (*self.group, self.version, *map(str, of), self.metric)

    @property
    def group(self) -> tuple[str, str, str]:
        """Machine, engine, model: what is judged together."""
        return self.measured_on, self.published_engine, str(self.fields.get("model", ""))


def read(path: Path = EVIDENCE) -> list[Timing]:
    """The rows of a CSV file, whose columns are fields of a run, `metric`, `value` and those of Timing.

    Raises SpecError, one line naming file, row, column and value.
    """
    try:
        with open(path, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except OSError as error:
        raise SpecError(f"{path}: {(error.strerror or 'cannot be read').lower()}") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise SpecError(f"{path}: cannot be read as CSV: {error}") from None
    if not rows:
        raise SpecError(f"{path}: no rows; needs a line of column names and one line per timing")
    known = (None, *NUMBERS, *TEXTS, *RunSpec.model_fields)  # None: of a row with more columns than the first line
    unknown = [name for name in rows[0] if name not in known]
    if unknown:
        raise SpecError(
            f"{path}: column {unknown[0]!r}: is no field of a run (python -m sim.run --help), nor metric, value"
        )
    if "value" not in rows[0]:
        raise SpecError(f"{path}: column 'value': missing; the measured figure of each row")
    return [_timing(f"{path}: row {line}", row) for line, row in enumerate(rows, 2)]


def _timing(where: str, row: dict[str, Any]) -> Timing:
    if None in row or None in row.values():
        raise SpecError(f"{where}: has not as many columns as the first line")
    texts = {name: row[name].strip() for name in TEXTS if row.get(name)}
    if texts.get("metric", DECODE) not in METRICS:
        raise SpecError(f"{where}: metric = {texts['metric']!r}: must be one of {', '.join(METRICS)}")
    numbers = {name: _number(where, name, row[name]) for name in NUMBERS if row.get(name)}
    for name in ("prompt", "top_k"):
        numbers |= {name: int(numbers[name])} if name in numbers else {}
    if numbers.get("value", 0) <= 0:
        raise SpecError(f"{where}: value = {row['value']!r}: must be a measured speed or time, more than 0")
    given = {name: run_field(where, name, row[name].strip()) for name in RunSpec.model_fields if row.get(name)}
    return Timing(fields=given, **texts, **numbers)  # type: ignore[arg-type]


def _number(where: str, name: str, text: str) -> float:
    try:
        found = float(text)
    except ValueError:
        found = float("nan")
    if not 0 <= found < float("inf"):
        raise SpecError(f"{where}: {name} = {text!r}: must be a number")
    return found


def run_field(where: str, name: str, text: str) -> Any:
    """As the flag of that name would give it."""
    word = metavar(name)
    if name == "set":
        return settings(text.split(";"))
    if word is None:
        return text == "yes"
    try:
        return TYPES[word](text) if word in TYPES else text
    except ValueError:
        raise SpecError(f"{where}: {name} = {text!r}: must be a number") from None


def command(timing: Timing) -> str:
    """The settings as flags of `python -m sim.run`, the trace left out."""
    return " ".join(flag_words(timing.fields))


def usable(rows: Sequence[Timing]) -> list[Timing]:
    """Those that are speeds and have a run."""
    return [row for row in rows if not row.not_set_up and row.metric != HITS]
