"""Runs as analysis reads them: what was asked for, what it came to and, where there is one, the record.

A run is a folder with `summary.json` and perhaps `record.npz` (python -m sim.run --out, runtime.replay), a summary
file alone, or a row of a sweep's `results.parquet`, which is given itself or by its folder. Everything in them may have
been written by anybody: figures are checked before they are used, text is shown and never run.
"""

import json
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from analysis.reading.summary_schema import check_summary
from sim import __version__
from sim.machines.record import RunRecord
from traces.errors import UserError

MAX_JSON_BYTES = 64 << 20
SUMMARY, RECORD, SWEEP = "summary.json", "record.npz", "results.parquet"
MEASURED = "torch"  # the machine whose times are measured, not modelled
POLICY_FIELDS = ("eviction", "prefetch", "miss", "rerank")


class RunError(UserError):
    """A run that cannot be read: the line names the file, the field and what would be right."""


@dataclass(frozen=True)
class Run:
    """One run. name: unique among the runs loaded together; source: the file or folder it came from.

    summary: the JSON object of `python -m sim.run --json`. record: None without record.npz. full: whether the file has
    every visit, execution, transfer and answer; the record's groups may have been left behind all the same
    (`load(detail=)`), and then they are empty.
    """

    name: str
    source: str
    summary: dict[str, Any]
    record: RunRecord | None = None
    full: bool = False

    @property
    def spec(self) -> dict[str, Any]:
        spec: dict[str, Any] = self.summary["spec"]
        return spec

    @property
    def trace(self) -> dict[str, Any]:
        trace: dict[str, Any] = self.summary["trace"]
        return trace

    @property
    def policy(self) -> str:
        """The policies alone, `lru + gate-lookahead + buddy`: what runs of one colour have in common."""
        parts = [str(self.spec.get(name, "none")) for name in POLICY_FIELDS]
        return " + ".join(part for i, part in enumerate(parts) if i in (0, 2) or part != "none")

    @property
    def measured(self) -> bool:
        """Whether its times are a device's, not a model's."""
        return str(self.summary["machine"]) == MEASURED

    @property
    def synthetic(self) -> bool:
        return self.trace["real"] is not True

    @property
    def reranks(self) -> bool:
        return str(self.spec.get("rerank", "none")) != "none"

    @property
    def lossy(self) -> bool:
        """Whether wanted experts may have been left out: then the replay is open-loop."""
        replaced = int(self.summary["substituted"]) + int(self.summary["dropped"])
        return self._noted("OPEN LOOP") or self.reranks or replaced > 0

    @property
    def oracle(self) -> bool:
        """Whether a policy of the run reads the future."""
        return self._noted("ORACLE") or self.spec["eviction"] in ORACLES or self.spec["prefetch"] in ORACLES

    def _noted(self, word: str) -> bool:
        return any(note.startswith(word) for note in self.summary.get("notes", ()))

    @property
    def lost_weight(self) -> float | None:
        """Router weight that another expert answered for, or nobody, as a share of the wanted; None: not known."""
        quality = self.summary["quality"]
        parts = [quality.get(f"{name}_weight") for name in ("substituted", "dropped")]
        return None if None in parts else float(sum(parts))

    @property
    def partly_seen(self) -> bool:
        """Whether `lost_weight` leaves out a part of the loss: a re-ranking changes what is wanted before it is
        counted, and a low-precision copy computes something else with the same weight."""
        return self.reranks or int(self.summary["low"]) > 0

    @property
    def judged(self) -> tuple[Any, ...]:
        """What decides which requests were judged: equal for runs whose requests are the same ones."""
        calibration = self.spec.get("calibration")
        aside = (calibration, self.spec.get("seed")) if isinstance(calibration, float) else None
        return self.trace["hash"], aside, self.spec.get("as_decode", False)

    @property
    def marks(self) -> list[str]:
        """What must be said wherever a figure of this run stands."""
        fits = self.summary.get("memory", {}).get("fits", True)
        marks = {
            "synthetic": self.synthetic,
            "open-loop": self.lossy,
            "oracle": self.oracle,
            "loss partly unseen": self.partly_seen,
            "does not fit": fits is False,
        }
        return [mark for mark, holds in (marks | {"measured": self.measured}).items() if holds]


def _oracles() -> frozenset[str]:
    from sim.policies.registry import EVICTION, PREFETCH

    every = {**EVICTION, **PREFETCH}
    return frozenset(name for name, policy in every.items() if policy.oracle)


ORACLES = _oracles()


def load(paths: Iterable[str | os.PathLike[str]], detail: int = 0) -> list[Run]:
    """The runs at `paths` in order, names made unique.

    detail: how many full records to keep in memory, the first ones; of the others the steps and requests stay.
    Raises RunError for the first path that is no run.
    """
    found: list[tuple[list[str], Run]] = []
    for path in map(Path, paths):
        if (path / SWEEP).is_file() and not (path / SUMMARY).exists():
            path = path / SWEEP
        if path.suffix == ".parquet":
            from analysis.reading.sweep_rows import read_rows

            found += [([run.name], run) for run in read_rows(path)]
            continue
        run = _read(path)
        if run.full and detail > 0:
            detail -= 1
        elif run.record is not None:
            run = replace(run, record=replace(run.record, groups={}))
        found.append((_names(path), run))
    if not found:
        raise RunError("no run; at least one folder with summary.json is required")
    return _named(found)


def _names(path: Path) -> list[str]:
    """What a run may be called: its folder, then with its parents in front."""
    folder = path if path.is_dir() else path.parent if path.name == SUMMARY else path.with_suffix("")
    parts = folder.resolve().parts[1:] or ("run",)
    return ["/".join(parts[-n:]) for n in range(1, len(parts) + 1)]


def _named(found: Sequence[tuple[list[str], Run]]) -> list[Run]:
    """The runs with the shortest names that tell them apart; the same folder twice is numbered."""
    places = {tuple(choices): choices[0] for choices, _ in found}
    for depth in range(1, max(map(len, places))):
        taken = list(places.values())
        for place, name in places.items():
            if taken.count(name) > 1:
                places[place] = place[min(depth, len(place) - 1)]
    out, seen = [], set[str]()
    for choices, run in found:
        name = unique = places[tuple(choices)]
        n = 2
        while unique in seen:
            unique, n = f"{name} ({n})", n + 1
        seen.add(unique)
        out.append(replace(run, name=unique))
    return out


def _read(path: Path) -> Run:
    """A folder, or a summary file alone."""
    file = path / SUMMARY if path.is_dir() else path
    if not path.exists():
        raise RunError(f"{path}: no such file or folder; a folder with {SUMMARY} is required")
    if not file.is_file():
        raise RunError(f"{path}: has no {SUMMARY}; write one with python -m sim.run --out {path}")
    summary = read_json(file)
    check_summary(summary, str(file), __version__)
    record = None
    if path.is_dir() and (path / RECORD).exists():
        from analysis.reading.record_check import read_record

        record = read_record(path / RECORD, summary)
    return Run(path.name, str(path), summary, record, bool(record and record.groups))


def read_json(file: Path) -> dict[str, Any]:
    """The JSON object in a file of bounded size. Raises RunError."""
    if file.stat().st_size > MAX_JSON_BYTES:
        raise RunError(f"{file}: has {file.stat().st_size} bytes; a summary has at most {MAX_JSON_BYTES}")
    try:
        value = json.loads(file.read_bytes(), parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise RunError(f"{file}: is no JSON: {error}") from None
    if not isinstance(value, dict):
        raise RunError(f"{file}: is no summary of a run: a JSON object is required, not a {type(value).__name__}")
    return value


def _no_constant(word: str) -> None:
    raise ValueError(f"{word} is not a JSON number")


def settings(run: Run) -> dict[str, Any]:
    """What was asked for, flat: the spec's fields, parameters of policies by `policy.param`, the machine last."""
    fields = {name: value for name, value in run.spec.items() if name not in ("set", "trace")}
    given = run.spec.get("set")
    fields |= {"trace": run.trace["hash"][:12]} | (given if isinstance(given, dict) else {})
    return fields | {"machine": run.summary["machine"]}


def differing(runs: Sequence[Run]) -> list[str]:
    """Settings that are not the same in all runs, in the order of the spec."""
    every = [settings(run) for run in runs]
    fields = dict.fromkeys(field for fields in every for field in fields)
    return [field for field in fields if len({repr(fields.get(field)) for fields in every}) > 1]


def share(part: float, whole: float) -> float:
    """part / whole; 0 where there is nothing to share."""
    return part / whole if whole else 0.0


def finite(value: Any) -> bool:
    """Whether it is a number that can be drawn."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
