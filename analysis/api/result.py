"""A run in Python: its figures as attributes, as text, as a table, as figures, in a notebook, in a folder."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.reading.load import load
from analysis.reading.run import Run, by_cause, share
from analysis.showing.words import markup, plain
from sim.outcome.how_sure import how_sure
from sim.outcome.report import table
from sim.simulation import FILES, write
from traces.command import out_folder
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

    def figure(self, kind: str = "speed") -> "go.Figure":
        """A figure of this run: one of `sim.figure`'s kinds. Needs pandas and plotly."""
        needed("pandas", "figure")
        needed("plotly", "figure")
        from analysis.api.drawn import figure

        return figure([self], kind)

    def save(self, folder: str | Path, force: bool = False) -> Path:
        """Write `summary.json` and `record.npz` into a folder, as `python -m sim.run --out` does; force: in the place
        of a run that is there. `Result.open` reads it. Raises UserError."""
        place = out_folder(folder, () if force else FILES)
        if self.record is None:
            write(place, self.summary, self.record, "none")  # type: ignore[arg-type]
        else:
            write(place, self.summary, self.record, "full" if self.full else "summary")
        return place

    @classmethod
    def open(cls, path: str | Path) -> "Result":
        """The run in a folder of `--out` or `save`, with all of its record. Raises UserError."""
        found = load([path], detail=1)[0]
        return cls.of(found)

    @classmethod
    def of(cls, run: Run) -> "Result":
        """The same run with all that a Result can do."""
        return run if isinstance(run, cls) else cls(run.name, run.source, run.summary, run.record, run.full)

    def named(self, name: str) -> "Result":
        """The same under another name, which tables and legends show."""
        return replace(self, name=name)

    def __repr__(self) -> str:
        said = "no tokens" if self.tokens_per_s is None else f"{self.tokens_per_s:,.2f} tokens/s{self._sure}"
        return plain(f"<Result {self.name}: {said}{'; ' * bool(self.marks)}{', '.join(self.marks)}>")

    @property
    def _sure(self) -> str:
        return how_sure(self.interval, self.summary["marks"].get("catalog_costs"))

    def _repr_html_(self) -> str:
        notes = "".join(f"<div><strong>! {markup(note)}</strong></div>" for note in self.notes)
        return f"{notes}<pre>{markup(self.name)}\n\n{_escaped(self.table())}</pre>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Run) and (self.name, self.summary) == (other.name, other.summary)

    def __hash__(self) -> int:
        return hash((self.name, self.summary["time_ns"], self.summary["trace"]["hash"]))

    def __dir__(self) -> list[str]:
        leaves = (name for name, parts in self._leaves.items() if len(parts) == 1)
        return sorted({*super().__dir__(), *self.summary, *leaves})


def _escaped(text: str) -> str:
    return "\n".join(map(markup, text.splitlines()))


def open_run(path: str | Path) -> Result:
    """The run in a folder that `python -m sim.run --out DIR` or `Result.save` wrote, with its record. Raises UserError
    where there is none."""
    return Result.open(path)
