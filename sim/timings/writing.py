"""Engines and hardware with changed constants, as the TOML files that stand in the place of their names."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sim import catalog
from sim.catalog.files import entry_or_file
from sim.catalog.writing import toml
from sim.timings.terms import TERMS

if TYPE_CHECKING:
    from sim.catalog.engine_spec import Engine
    from sim.catalog.hardware_spec import Hardware


def engine_toml(
    name: str, engine: "Engine", source: str, interval: tuple[float, float], hardware: str, phases: Sequence[str]
) -> str:
    """What an engine of the catalog, or a file, comes to: `like` it where it has a name there. interval: of its speeds
    in these phases on that hardware."""
    _, canonical, table = entry_or_file("engine", name)
    own = catalog.engine(name)
    fields = [field for term in TERMS.values() for field in term.fields]
    changed = {field: getattr(engine, field) for field in fields if getattr(engine, field) != getattr(own, field)}
    changed = {field: round(value, 4) if isinstance(value, float) else value for field, value in changed.items()}
    base: dict[str, Any] = table if name.lower().endswith(".toml") else {"like": canonical}
    sources = {**base.get("sources", {}), **dict.fromkeys(changed, source)}
    found = {"interval": [round(end, 4) for end in interval], "interval_on": hardware, "interval_phases": list(phases)}
    entry = {**base, **changed, **found, "source": source, "sources": sources}
    return _text(entry)


def hardware_toml(name: str, hardware: "Hardware", source: str) -> str:
    """The hardware, its parts as they came out."""
    _, canonical, table = entry_or_file("hardware", name)
    parts = {key: _part(getattr(hardware, key)) for key in ("link", "pageable_link", "gpu", "host")}
    kept = {key: value for key, value in table.items() if key not in ("aliases", "sources", "note")}
    changed = {key: part for key, part in parts.items() if part is not None}
    return _text({**kept, **changed, "name": canonical, "source": source})


def _part(part: Any) -> dict[str, Any] | None:
    if part is None:
        return None
    table: dict[str, Any] = part.model_dump(exclude_unset=True, exclude={"aliases", "facts", "sources", "note"})
    return table


def _text(entry: dict[str, Any]) -> str:
    return "".join(f"{key if key.isidentifier() else toml(key)} = {toml(value)}\n" for key, value in entry.items())
