"""From a name or a file to a validated description. Imports pydantic; `sim.catalog` loads this on first
use."""

from typing import Any

from sim.catalog.engine_spec import Engine
from sim.catalog.files import Table, entry_or_file, find, over_sourced, precision_bits, shipped
from sim.catalog.hardware_spec import Hardware
from sim.catalog.model_spec import ModelSpec
from sim.catalog.parts import build
from sim.errors import CatalogError

PARTS = {"gpu": "gpu", "link": "link", "pageable_link": "link", "host": "host"}
WITHOUT_GPU = "/cpu"  # behind a name: that machine, its CPU computing everything
SSD = "ssd:"  # in front of the name of a link: an entry of ssds.toml
# one of these keys, given beside `like`, replaces all of them and what qualifies them: a link's rate, a GPU's memory
TOGETHER = (
    (("h2d_gb_per_s", "curve"), ("n_half_bytes",)),
    (("mem_gb", "mem_mib"), ("mem_cuda_mib",)),
)


def load_model(name: str) -> ModelSpec:
    label, canonical, table = entry_or_file("model", name)
    spec = build(ModelSpec, label, {"name": canonical, **table})
    _check_precision(label, "native_precision", spec.native_precision)
    return spec


def load_engine(name: str) -> Engine:
    label, canonical, table = entry_or_file("engine", name)
    like = table.get("like", "")
    if not isinstance(like, str):
        raise CatalogError(f"{label}: like = {like!r}: must be the name of an engine of the catalog")
    if like.lower().endswith(".toml"):
        raise CatalogError(f"{label}: like = {like!r}: must be an engine of the catalog, not a file")
    if like:
        entry = {key: value for key, value in table.items() if key != "like"}
        table = over_sourced(shipped("engine")[find("engine", like)], entry)
    engine = build(Engine, label, {"name": canonical, **table})
    for field in ("dense_precision", "head_precision"):
        if getattr(engine, field) != "experts":
            _check_precision(label, field, getattr(engine, field))
    return engine


def load_hardware(name: str) -> Hardware:
    base, host_alone = (name[: -len(WITHOUT_GPU)], True) if name.endswith(WITHOUT_GPU) else (name, False)
    label, canonical, table = _machine(base) or entry_or_file("hardware", base)
    table = {"name": canonical, **table} | ({"name": name, "compute": "host"} if host_alone else {})
    for key, kind in PARTS.items():
        if key in table:
            table[key] = _part(label, key, kind, table[key])
    return build(Hardware, label, table)


def _machine(name: str) -> tuple[str, str, Table] | None:
    """A machine of the evidence (`machines.toml`), if that is its exact name."""
    table = shipped("machine").get(name)
    return None if table is None else (f"machine {name}", name, dict(table))


def _part(label: str, key: str, kind: str, value: Any) -> Any:
    """A GPU, link or host: a name, a table, or a table that starts from a named entry with `like`."""
    try:
        if isinstance(value, str):
            return _named(kind, value)
        if isinstance(value, dict) and isinstance(value.get("like"), str):
            rest = {k: v for k, v in value.items() if k != "like"}
            gone = {key for keys, more in TOGETHER for key in (*keys, *more) if rest.keys() & set(keys)}
            return {k: v for k, v in _named(kind, value["like"]).items() if k not in gone} | rest
    except CatalogError as error:
        raise CatalogError(f"{label}: {key}: {error}") from None
    return value


def _named(kind: str, name: str) -> Table:
    if kind == "link" and name.startswith(SSD):
        kind, name = "ssd", name.removeprefix(SSD)
    canonical = find(kind, name)
    return {"name": canonical, **shipped(kind)[canonical]}


def _check_precision(label: str, field: str, precision: str) -> None:
    try:
        precision_bits(precision)
    except CatalogError as error:
        raise CatalogError(f"{label}: {field}: {error}") from None
