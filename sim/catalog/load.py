"""From a name or a file to a validated description. Imports pydantic; `sim.catalog` loads this on first
use."""

from collections.abc import Callable
from typing import Any

from sim.catalog.changed import at_rates, refuse_changes
from sim.catalog.engine_spec import Engine
from sim.catalog.files import FACTS, FROM_META, Table, entry, entry_or_file, find, over_sourced, precision_bits
from sim.catalog.hardware_spec import Hardware, Host
from sim.catalog.held import as_table, put
from sim.catalog.link_spec import Link
from sim.catalog.model_spec import ModelSpec
from sim.catalog.parts import E, Entry, build
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


def load_facts(facts: Any, name: str, where: str) -> ModelSpec:
    """A model that is in no catalog from what a trace's meta says of it (traces/capturing/facts.py); where: names the
    trace. They are as little to be trusted as a file."""
    label = f"{where}: meta.{FACTS}"
    if not isinstance(facts, dict):
        raise CatalogError(f"{label}: must be a table with the keys of a model file, not {type(facts).__name__}")
    spec = build(ModelSpec, label, {**facts, "name": name, "source": FROM_META})
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
        mine = {key: value for key, value in table.items() if key != "like"}
        table = over_sourced(entry("engine", find("engine", like)), mine)
    engine = build(Engine, label, {"name": canonical, **table})
    for field in ("dense_precision", "head_precision"):
        if getattr(engine, field) != "experts":
            _check_precision(label, field, getattr(engine, field))
    return engine


def hold(kind: str, described: Any) -> str:
    """Make a table, or an object of the catalog, findable by its name in this process; returns that. Raises
    CatalogError where the catalog has another of this name."""
    table = as_table(kind, described)
    name = str(table.get("name") or f"my-{kind}")
    try:
        find(kind, name)
    except CatalogError:
        put(kind, name, {**table, "name": name})
        return name
    if described == LOADS[kind](name):
        return name
    raise CatalogError(f"{kind}: {name}: the catalog has one of this name; give yours another `name`")


def load_host(name: str) -> Host:
    return _load_part(Host, "host", name)


def load_link(name: str) -> Link:
    return _load_part(Link, "link", name)


def _load_part(kind: type[E], word: str, name: str) -> E:
    label, canonical, table = entry_or_file(word, name)
    return build(kind, label, {**_over_like(label, word, table), "name": table.get("name", canonical)})


def load_hardware(
    name: str, host: str | None = None, host_gbps: float | None = None, link_gbps: float | None = None
) -> Hardware:
    """host: in the place of the hardware's; host_gbps, link_gbps: GB/s in the place of their rates (`changed`)."""
    base, host_alone = (name[: -len(WITHOUT_GPU)], True) if name.endswith(WITHOUT_GPU) else (name, False)
    label, canonical, table = entry_or_file("hardware", base)
    refuse_changes(label, table, {"host": host, "host_gbps": host_gbps, "link_gbps": link_gbps})
    table = {"name": canonical, **table, **({} if host is None else {"host": load_host(host)})}
    table |= {"name": name, "compute": "host"} if host_alone else {}
    for key, kind in PARTS.items():
        if key in table:
            table[key] = _part(label, key, kind, table[key])
    return at_rates(build(Hardware, label, table), host_gbps, link_gbps)


LOADS: dict[str, Callable[[str], Entry]] = {"model": load_model, "hardware": load_hardware, "engine": load_engine}


def _part(label: str, key: str, kind: str, value: Any) -> Any:
    """A GPU, link or host: a name, a table, or a table that starts from a named entry with `like`."""
    if isinstance(value, dict):
        return _over_like(f"{label}: {key}", kind, value)
    try:
        return _named(kind, value) if isinstance(value, str) else value
    except CatalogError as error:
        raise CatalogError(f"{label}: {key}: {error}") from None


def _over_like(label: str, kind: str, table: Table) -> Table:
    """A GPU, link or host whose table may start from a named entry with `like`."""
    if not isinstance(table.get("like"), str):
        return table
    rest = {key: value for key, value in table.items() if key != "like"}
    gone = {key for keys, more in TOGETHER for key in (*keys, *more) if rest.keys() & set(keys)} | rest.keys()
    try:
        base = _named(kind, table["like"])
    except CatalogError as error:
        raise CatalogError(f"{label}: {error}") from None
    kept = {key: value for key, value in base.items() if key not in gone}
    return kept | {"source": label, **rest, "sources": _sources(base, kept, rest.get("sources", {}))}


def _sources(base: Table, kept: Table, mine: Any) -> Any:
    """Of what is `like` an entry: what is kept of that keeps its source."""
    if not isinstance(mine, dict):  # who checks the table says so
        return mine
    told, other = base.get("sources", {}), base.get("source", "")
    return {key: told.get(key, other) for key in kept if key not in Entry.model_fields} | mine


def _named(kind: str, name: str) -> Table:
    if kind == "link" and name.startswith(SSD):
        kind, name = "ssd", name.removeprefix(SSD)
    canonical = find(kind, name)
    return {"name": canonical, **entry(kind, canonical)}


def _check_precision(label: str, field: str, precision: str) -> None:
    try:
        precision_bits(precision)
    except CatalogError as error:
        raise CatalogError(f"{label}: {field}: {error}") from None
