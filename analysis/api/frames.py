"""Runs as pandas frames: a row each. And back: the runs of a frame, of a list, of folders."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.api.given import Failed
from analysis.comparing.comparison import MARKS, row_of
from analysis.reading.load import load
from analysis.reading.run import Run, differing, settings
from analysis.showing.words import listed
from sim.spec import defaults
from traces.errors import UserError

FIRST = ("tokens_per_s", "tokens_per_s_low", "tokens_per_s_high", "tpot_ms", "hit_rate", "lost_weight", "h2d_gb")
OF_A_PAIR = ("paired_requests", "not_paired")
_RUNS = "results, a frame of simulate_many, or folders of python -m sim.run --out are required"


def frame_of(found: Sequence[Run | Failed], errors: bool = False) -> pd.DataFrame:
    """A row per run, index its name; columns: the settings that differ, FIRST, more figures, marks, result; errors:
    and `error`, None of a run that is done. attrs: notes."""
    runs = [each for each in found if isinstance(each, Run)]
    fields = _differing(found)
    rows = [_row(each, fields) if isinstance(each, Run) else _failed(each, fields) for each in found]
    kept = {"error": [each.error if isinstance(each, Failed) else None for each in found]} if errors else {}
    index = pd.Index([each.name for each in found], name="run")
    out = pd.DataFrame(rows, index=index).assign(**kept)
    last = [name for name in ("marks", "result") if name in out]
    out = out[[name for name in out if name not in last] + last]
    out.attrs["notes"] = notes_of(runs)
    return out


def one_row(run: Run) -> pd.DataFrame:
    """The row of one run, with every setting that is not the default."""
    mine = {name: value for name, value in settings(run).items() if value != defaults().get(name)}
    out = pd.DataFrame([_row(run, list(mine))], index=pd.Index([run.name], name="run"))
    out.attrs["notes"] = notes_of([run])
    return out


def _row(run: Run, fields: Iterable[str]) -> dict[str, Any]:
    mine, figures = settings(run), figures_of(run)
    first = {field: mine.get(field) for field in fields} | {name: figures[name] for name in FIRST}
    return first | {k: v for k, v in figures.items() if k not in first} | {"marks": ", ".join(run.marks), "result": run}


def figures_of(run: Run) -> dict[str, Any]:
    """What `analysis.compare` says of a run alone: shares of 1, GB of 1e9 bytes, ms, s; NaN where it is not known."""
    found = row_of(run, run, None)
    alone = {name: value for name, value in found.items() if "_change" not in name and name not in OF_A_PAIR}
    return {name: np.nan if value is None else value for name, value in alone.items()}


def _failed(run: Failed, fields: Iterable[str]) -> dict[str, Any]:
    mine = _asked(run)
    return {field: mine.get(field) for field in fields} | {"marks": "", "result": None}


def _asked(found: Run | Failed) -> dict[str, Any]:
    """The settings of a run; of one that failed what was asked for, as far as it can stand beside these."""
    if isinstance(found, Run):
        return settings(found)
    return {
        name: v for name, v in {**found.fields, **found.fields.get("set", {})}.items() if name not in ("set", "trace")
    }


def _differing(found: Sequence[Run | Failed]) -> list[str]:
    """Settings that are not the same in all runs; what one that failed does not say does not differ."""
    if all(isinstance(each, Run) for each in found):
        return differing([each for each in found if isinstance(each, Run)])
    every = [_asked(each) for each in found]
    fields = dict.fromkeys(field for asked in every for field in asked)
    return [field for field in fields if len({repr(asked[field]) for asked in every if field in asked}) > 1]


def notes_of(runs: Sequence[Run]) -> list[str]:
    """What must be said of these runs wherever a figure of them stands: a line for each mark, with who has it."""
    having = {mark: [run.name for run in runs if mark in run.marks] for mark in MARKS}
    return [f"{MARKS[m]}: {'all runs' if len(n) == len(runs) else listed(n)}" for m, n in having.items() if n]


def runs_of(given: Any) -> list[Run]:
    """The runs of a frame of `simulate_many` or `compare`, of one result or several, of folders of `--out`; their names
    made unique. Raises UserError for anything else, and for none."""
    found = [run for each in _each(given) for run in (load([each], 1) if isinstance(each, (str, Path)) else [each])]
    wrong = [run for run in found if not isinstance(run, Run)]
    if wrong:
        raise _no_run(type(wrong[0]).__name__)
    if not found:
        raise UserError(f"no run that is done; {_RUNS}")
    return _told_apart(found)


def _no_run(what: str) -> UserError:
    return UserError(f"{what} is no run; {_RUNS}")


def _each(given: Any) -> list[Any]:
    if isinstance(given, (Run, str, Path)):
        return [given]
    if isinstance(given, pd.DataFrame):
        if "result" not in given:
            raise UserError("frame: has no column result; one of simulate_many or compare is required")
        given = {name: run for name, run in given["result"].items() if isinstance(run, Run)}
    if isinstance(given, Mapping):
        return [replace(run, name=str(name)) if isinstance(run, Run) else run for name, run in given.items()]
    if not isinstance(given, Iterable):
        raise _no_run(type(given).__name__)
    return list(given)


def _told_apart(runs: Sequence[Run]) -> list[Run]:
    """Runs of one name get the settings in which they differ behind it, then a number."""
    names = [run.name for run in runs]
    fields = [field for field in differing(runs) if field != "machine"]
    out: dict[str, Run] = {}
    for run in runs:
        more = [f"{field} {settings(run).get(field)}" for field in fields] if names.count(run.name) > 1 else []
        name = base = ", ".join([run.name, *more])
        for n in range(2, len(runs) + 2):
            if name not in out:
                break
            name = f"{base} ({n})"
        out[name] = run if name == run.name else replace(run, name=name)
    return list(out.values())
