"""Descriptions that no file of ours has: those of a Python session (`sim.catalog.hold`), by name, and engines that
other distributions bring. A name of the catalog is always the catalog's."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sim.errors import CatalogError
from traces.errors import UserError
from traces.plugins import Plugin, plugins

GROUP = "engines"
Described = Mapping[str, Any] | Path
_held: dict[tuple[str, str], Mapping[str, Any]] = {}  # of this process, by kind and name


def put(kind: str, name: str, table: Mapping[str, Any]) -> None:
    """Keep a table for `held`, in the place of an earlier one of that name."""
    _held[kind, name] = table


def normal(name: str) -> str:
    """`name` without case, hyphens, underscores and spaces: two names are the same when this is."""
    return name.lower().replace("-", "").replace("_", "").replace(" ", "")


def held(kind: str, name: str) -> tuple[str, Described] | None:
    """(label for messages, table or file of one) of what the catalog does not have: in memory, else a plug-in's; None:
    nobody's. Raises CatalogError, one line that names the distribution, for a plug-in that is wrong."""
    if (kind, name) in _held:
        return f"{kind} {name}", _held[kind, name]
    found = plugins(GROUP).get(_spelled(name)) if kind == "engine" else None
    return None if found is None else (f"plug-in {name} of {found.origin}", _of_plugin(found))


def _spelled(name: str) -> str:
    """The plug-in's spelling of a name, whatever its case, hyphens and underscores; any other as it is."""
    every = names("engine")
    return name if name in every else next((each for each in every if normal(each) == normal(name)), name)


def origin(name: str) -> str:
    """Of a plug-in: its distribution, and what it names there."""
    return plugins(GROUP)[name].origin


def _of_plugin(plugin: Plugin) -> Described:
    try:
        thing = plugin.load()
    except UserError as error:
        raise CatalogError(str(error)) from None
    if isinstance(thing, Mapping):
        return thing
    if isinstance(thing, (str, Path)):
        return Path(thing)
    return as_table("engine", thing, str(plugin.wrong("")))


def as_table(kind: str, described: Any, where: str = "") -> Mapping[str, Any]:
    """The table of a table, or of an object of the catalog. Raises CatalogError for anything else."""
    if isinstance(described, Mapping):
        return described
    if hasattr(described, "model_dump"):
        table: Mapping[str, Any] = described.model_dump(exclude_unset=True)
        return table
    wrong = f"{type(described).__name__}: must be a name, a file, a table, or what sim.catalog.{kind} gives"
    raise CatalogError(f"{where or f'{kind}: '}{wrong}")


def names(kind: str) -> list[str]:
    """Of the plug-ins of a kind, of use or not, which a listing shows beside the catalog's own."""
    return list(plugins(GROUP)) if kind == "engine" else []
