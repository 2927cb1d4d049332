"""Published figures, from sim/catalog/published.toml, and how one of them becomes a run."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from sim import catalog
from sim.catalog.files import Table, read_toml
from sim.spec import RunSpec

Metric = Literal["tokens/s", "tokens/s end to end", "s/token", "hit %"]
MERGED = ("spec", "model", "engine", "hardware")  # tables of a case that a figure's own keys are merged over


class TraceShape(BaseModel):
    """Routing of a figure: a synthetic `preset`, or a `pattern` (uniform, cyclic) of the model's shape. `prompt`,
    `generated`: tokens of each request; None: the preset's spread."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    preset: str | None = None
    pattern: Literal["uniform", "cyclic"] | None = None
    requests: int = 8
    prompt: int | None = None
    generated: int | None = None


class Figure(BaseModel):
    """One published figure with its settings; keys as in published.toml. `group`: left out together of a fit."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str
    name: str
    source: str
    metric: Metric
    published: float
    assumed: tuple[str, ...] = ()
    trace: TraceShape
    spec: dict[str, Any]
    model: dict[str, Any] = {}
    engine: dict[str, Any] = {}
    hardware: dict[str, Any] = {}
    fit: str | None = None
    anchor: bool = False
    group: str
    fitted: str = ""

    def without(self, field: str) -> "Figure":
        """The same figure, its engine without a yes-or-no cost such as `write_back`."""
        return self.model_copy(update={"engine": {**self.engine, field: False}})

    def seconds_per_token(self, value: float) -> float:
        """A figure in the case's metric as time; a hit rate has none."""
        assert self.metric != "hit %"
        return value if self.metric == "s/token" else 1 / value


class Fit(BaseModel):
    """Terms that are fitted together, and where their figures come from."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    terms: tuple[Literal["layer_ns", "host_read_share"], ...]
    source: str


class Published(BaseModel):
    """The whole file."""

    model_config = ConfigDict(frozen=True)

    figures: tuple[Figure, ...]
    fits: dict[str, Fit]
    skipped: dict[str, str]
    buddymoe: dict[str, Any]


def published(path: Path | None = None) -> Published:
    """The shipped figures, or those of another file of the same keys. Raises ValueError if malformed."""
    table = read_toml(path or Path(catalog.__file__).parent / "published.toml")
    figures = [_figure(case, figure) for case in table["case"] for figure in case["figure"]]
    fits = {name: Fit(**fit) for name, fit in table.get("fit", {}).items()}
    more = {name: table.get(name, {}) for name in ("skipped", "buddymoe")}
    return Published(figures=tuple(figures), fits=fits, **more)


def _figure(case: Table, figure: Table) -> Figure:
    both = {key: value for key, value in case.items() if key != "figure"} | figure
    for key in MERGED:
        both[key] = case.get(key, {}) | figure.get(key, {})
    both.setdefault("group", f"{case['id']}: {figure['name']}")
    return Figure(**both)


# --- from a figure to a run ---


def run_spec(figure: Figure, terms: Mapping[str, float], folder: Path, max_steps: int | None = None) -> RunSpec:
    """The spec of a figure with these values of the fitted terms; the files that it needs are written into `folder`."""
    engine, hardware, fields = dict(figure.engine), dict(figure.hardware), dict(figure.spec)
    if "layer_ns" in terms:
        engine["layer_ns"] = round(terms["layer_ns"])
    if "host_read_share" in terms:
        hardware["host"] = _host(figure, terms["host_read_share"])
    model = str(fields.get("model") or _preset_model(figure))
    fields["model"] = _changed(folder, "model", model, figure.model)
    fields["engine"] = _changed(folder, "engine", str(fields["engine"]), engine)
    fields["hardware"] = _changed(folder, "hardware", str(fields["hardware"]), hardware)
    fields["trace"] = str(_trace_file(figure, fields["model"], folder))
    return RunSpec.of(
        {**fields, "engine_as_costs": True, "max_steps": max_steps}
    )  # the figure's own spec says the rest


def _preset_model(figure: Figure) -> str:
    from traces.synthetic import PRESETS

    assert figure.trace.preset is not None, f"{figure.id}: needs a model or a preset"
    return PRESETS[figure.trace.preset].model


def _host(figure: Figure, inverse_share: float) -> Table:
    """The preset's host, reading 1 / `inverse_share` of its peak: time is linear in the inverse."""
    name = catalog.entries("hardware")[catalog.find("hardware", figure.spec["hardware"])]["host"]
    peak = catalog.entries("host")[catalog.find("host", name)]["peak_gb_per_s"]
    return {"like": name, "read_gb_per_s": peak / inverse_share}


def _changed(folder: Path, kind: str, name: str, changes: Table) -> str:
    """`name`, or a file of that entry with `changes`."""
    if not changes:
        return name
    entry = catalog.entries(kind)[catalog.find(kind, name)] | changes
    text = "".join(f"{key} = {toml(value)}\n" for key, value in entry.items() if key != "aliases")
    path = folder / f"{kind}.toml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def toml(value: Any) -> str:
    """A value as TOML: JSON's spelling, but for tables."""
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{json.dumps(str(key))} = {toml(part)}" for key, part in value.items()) + " }"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(toml(part) for part in value) + "]"
    return json.dumps(value)


def _trace_file(figure: Figure, model: str, folder: Path) -> Path:
    """The figure's routing, written once per folder."""
    from traces.format import npz
    from traces.synthetic import PRESETS, Preset, generate

    shape = figure.trace
    if shape.preset is not None:
        preset = PRESETS[shape.preset]
    else:
        of, name = catalog.model(model), catalog.find("model", figure.spec["model"])
        sizes = (of.n_experts, of.top_k, of.n_layers, of.moe_layers)
        preset = Preset(name, *sizes, pattern=shape.pattern or "uniform")
    lengths = {"prompt": shape.prompt, "generation": shape.generated}
    fixed: dict[str, Any] = {name: (n, n) for name, n in lengths.items() if n is not None}
    preset = replace(preset, requests=shape.requests, **fixed)
    asked = (shape.preset, shape.pattern, shape.requests, shape.prompt, shape.generated)
    key = (*asked, preset.n_experts, preset.top_k, preset.n_layers)
    path = folder / f"{'-'.join(map(str, key))}.npz"
    if not path.exists():
        npz.write(path, generate(preset, 0))
    return path
