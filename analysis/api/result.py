"""A run in Python: its figures as attributes, as text, as a table, as figures, in a notebook, in a folder."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.api.told import Told
from analysis.comparing.comparison import MARKS, NOTED
from analysis.reading.load import load
from analysis.reading.run import Run, by_cause, share
from analysis.showing.words import markup, plain
from sim.outcome.how_sure import how_sure
from sim.outcome.table import table
from sim.simulation import FILES, write
from traces.command import out_folder
from traces.errors import UserError
from traces.extras import needed

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go


@dataclass(frozen=True, eq=False, repr=False)
class Result(Run):
    """What a run came to: a `Run` (summary, record, spec, marks, policy) that can be shown, drawn and kept.

    Every key of the summary is an attribute (`run.hits`, `run.time_ns`), and a key within it that only one of its
    parts has (`run.substituted_weight`). It does not change, and it can be pickled. Two are equal whose name and
    summary are.
    """

    def __post_init__(self) -> None:
        object.__setattr__(self, "summary", Told(self.summary))

    @property
    def tokens_per_s(self) -> float | None:
        """Generated tokens by second of decode time; None where none was generated."""
        speed: float | None = self.summary["tokens_per_s"]
        return speed

    @property
    def interval(self) -> tuple[float, float] | None:
        """(low, high) tokens/s between which 80 % of what the real engine does lies; None where nobody knows."""
        pair = self.summary.get("tokens_per_s_interval")
        return None if pair is None else (float(pair[0]), float(pair[1]))

    @property
    def notes(self) -> list[str]:
        """What must be said wherever these figures stand, in words; `marks` says it in keywords."""
        return list(self.summary["notes"])

    @property
    def hit_rate(self) -> float:
        """Hits, of the experts wanted."""
        return share(self.summary["hits"], self.summary["wanted"])

    @property
    def h2d_gb(self) -> float:
        """Sent to the GPU, GB (1e9 bytes), whatever the cause."""
        return sum(by_cause(self.summary["h2d_bytes"]).values()) / 1e9

    @cached_property
    def _leaves(self) -> dict[str, list[str]]:
        """Keys of the parts of the summary, each with the parts that have it."""
        out: dict[str, list[str]] = {}
        for part, inner in self.summary.items():
            for key in inner if isinstance(inner, Mapping) and part not in ("spec", "by_layer") else ():
                out.setdefault(key, []).append(part)
        return out

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "summary" not in self.__dict__:
            raise AttributeError(name)
        if name in self.summary:
            return self.summary[name]
        parts = self._leaves.get(name, [])
        if len(parts) == 1:
            return self.summary[parts[0]][name]
        several = f"; it is in {' and '.join(f'summary[{part!r}]' for part in parts)}" if parts else ""
        raise AttributeError(f"a run has no {name!r}{several}")

    def table(self) -> str:
        """The text that `python -m sim.run` prints."""
        return table(self.summary)

    def to_frame(self) -> "pd.DataFrame":
        """One row, as `simulate_many` has it, with every setting that is not the default. Needs pandas."""
        needed("pandas", "to_frame")
        from analysis.api.frames import one_row

        return one_row(self)

    def figure(self, kind: str = "speed", **options: Any) -> "go.Figure":
        """A figure of this run, of one of the kinds of `sim.figure` (an unknown one lists them). Needs pandas and
        plotly. Raises UserError."""
        needed("pandas", "figure")
        needed("plotly", "figure")
        from analysis.api.drawn import drawn

        return drawn([self], kind, options)

    def save(self, folder: str | Path, force: bool = False) -> Path:
        """Write `summary.json` and `record.npz` into a folder, as `python -m sim.run --out` does; force: in the place
        of a run that is there. `Result.open` reads it. Raises UserError."""
        place = out_folder(a_path("save", folder), () if force else FILES)
        keep: Any = "none" if self.record is None else "full" if self.full else "summary"
        try:
            write(place, self.summary, self.record, keep)  # type: ignore[arg-type]  # none of no record
        except OSError as error:
            raise UserError(f"save: {place}: {error.strerror}") from None
        return place

    @classmethod
    def open(cls, path: str | Path) -> "Result":
        """The run in a folder of `--out` or `save`, with all of its record. Raises UserError."""
        found = load([a_path("open_run", path)], detail=1)[0]
        return cls.of(found)

    @classmethod
    def of(cls, run: Run) -> "Result":
        """The same run with all that a Result can do."""
        return run if isinstance(run, cls) else cls(run.name, run.source, run.summary, run.record, run.full)

    def named(self, name: str) -> "Result":
        """The same under another name, which tables and legends show."""
        return replace(self, name=name)

    def _repr_html_(self) -> str:
        """In a notebook: what must be said of it first, then the speed, then the table. Whatever came from files is
        escaped."""
        said = [MARKS[mark] for mark in self.marks] + [note for note in self.notes if not note.startswith(NOTED)]
        notes = "".join(f"<div><strong>! {markup(note)}</strong></div>" for note in said)
        text = "\n".join(map(markup, self.table().splitlines()))
        return f"{notes}<div>{markup(self.name)}: <strong>{markup(self._speed)}</strong></div><pre>{text}</pre>"

    @property
    def _speed(self) -> str:
        sure = how_sure(self.interval, self.summary["marks"].get("catalog_costs"))
        return "no token was generated" if self.tokens_per_s is None else f"{self.tokens_per_s:,.2f} tokens/s{sure}"

    def __repr__(self) -> str:
        marks = [mark for mark in self.marks if mark != "not calibrated"]  # the speed says that
        return plain(f"<Result {self.name}: {'; '.join([self._speed, *marks])}>")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Run) and (self.name, self.summary) == (other.name, other.summary)

    def __hash__(self) -> int:
        return hash((self.name, self.summary["time_ns"], self.summary["trace"]["hash"]))

    def __dir__(self) -> list[str]:
        leaves = (name for name, parts in self._leaves.items() if len(parts) == 1)
        return sorted({*super().__dir__(), *self.summary, *leaves})


def a_path(what: str, path: Any) -> str | Path:
    """Raises UserError for what names no folder or file."""
    if not isinstance(path, str | Path) or "\0" in str(path):
        raise UserError(f"{what}: {path!r}: must be a folder")
    return path


def open_run(path: str | Path) -> Result:
    """The run in a folder that `python -m sim.run --out DIR` or `Result.save` wrote, with its record. Raises UserError
    where there is none."""
    return Result.open(path)
