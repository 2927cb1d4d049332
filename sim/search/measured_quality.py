"""What the closed-loop study measured of a lossy policy on a model, where it did: a replay cannot know quality.

`python -m runtime.study` keeps a model's rows in analysis/results/closed_loop_<model>.json of the checkout. Only the
very policy with the very parameters counts, at the study's largest capacity that is not above the run's: less room
loses more.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sim.policies.registry import MISS, RERANK
from sim.spec import RunSpec

RESULTS = Path(__file__).parents[2] / "analysis" / "results"


def measured(model: str, spec: RunSpec, share: float, results: Path = RESULTS) -> dict[str, Any] | None:
    """{arm, cache, model, bits_per_byte_percent [value, low, high]} of the run's policies, with `share` of the experts
    in slots; None where there is no study of the model, or no such row in it."""
    study = results / f"closed_loop_{Path(model).name}.json"
    if not study.is_file():
        return None
    found = json.loads(study.read_text())
    if found["model"] != model:
        return None
    changed = (_changed(getattr(spec, kind), spec.params(kind)) for kind in ("miss", "rerank"))
    wanted = (spec.miss, spec.rerank, *changed)
    rows = [row for row in found["rows"] if row["cache"] <= share and _of(row) == wanted]
    if not rows:
        return None
    row = max(rows, key=lambda row: float(row["cache"]))
    return {"arm": row["arm"], "cache": row["cache"], "model": model, **row["quality"]}


def _of(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """What a row of the study is of: its parameters are the miss policy's, or the re-ranker's where there is one."""
    reranked = row["rerank"] != "none"
    given = row["params"]
    return (
        row["miss"],
        row["rerank"],
        _changed(row["miss"], {} if reranked else given),
        _changed(row["rerank"], given if reranked else {}),
    )


def _changed(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters that differ from the policy's defaults."""
    policy = MISS.get(name) or RERANK.get(name)
    known = {} if policy is None else {**policy.params, **policy.prepared}
    return {key: value for key, value in given.items() if known.get(key) != value}
