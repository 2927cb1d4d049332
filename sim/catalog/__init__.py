"""Models, GPUs, links, hosts, engines and precisions as data, each figure with its source.

The data lie in the TOML files beside this one. Names ignore case, `-`, `_` and spaces, and have aliases; a
TOML file with the keys of an entry can stand in place of the name of a model, a piece of hardware or an
engine. What is wrong raises CatalogError, one line. pydantic is imported when the first description is asked
for, not with this module.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sim.catalog.files import FACTS, KINDS, find, shipped, written
from sim.errors import CatalogError

if TYPE_CHECKING:
    from sim.catalog.engine_spec import Engine
    from sim.catalog.hardware_spec import Hardware, Host
    from sim.catalog.model_spec import ModelSpec

__all__ = [
    "KINDS",
    "CatalogError",
    "captured",
    "engine",
    "entries",
    "find",
    "hardware",
    "hold",
    "host",
    "model",
    "names",
    "precision",
    "written",
]


def model(name: str) -> "ModelSpec":
    """The model of that name or file; CatalogError if unknown or wrong."""
    from sim.catalog.load import load_model

    return load_model(name)


def captured(meta: Mapping[str, Any], where: str) -> "ModelSpec | None":
    """The model that a trace's meta describes, None where it describes none; CatalogError, which begins with `where`,
    where that is wrong or something is missing."""
    from sim.catalog.load import load_facts

    return load_facts(meta[FACTS], str(meta["model"]), where) if FACTS in meta else None


def hardware(
    name: str, *, host: str | None = None, host_gbps: float | None = None, link_gbps: float | None = None
) -> "Hardware":
    """The hardware of that name or file, with these in the place of its own: a host by name or file, the rates in GB/s
    that it reads and its links send; CatalogError if unknown or wrong."""
    from sim.catalog.load import load_hardware

    return load_hardware(name, host, host_gbps, link_gbps)


def host(name: str) -> "Host":
    """The host of that name or file; CatalogError if unknown or wrong."""
    from sim.catalog.load import load_host

    return load_host(name)


def engine(name: str) -> "Engine":
    """The engine of that name or file; CatalogError if unknown or wrong."""
    from sim.catalog.load import load_engine

    return load_engine(name)


def hold(kind: str, described: Any) -> str:
    """The name under which this process finds a model, hardware or an engine that is a table, or an object that these
    functions gave; CatalogError where the catalog has another of its name."""
    from sim.catalog.load import hold

    return hold(kind, described)


def precision(name: str) -> str:
    """The catalog's spelling of a precision; CatalogError if unknown."""
    return find("precision", name)


def names(kind: str) -> list[str]:
    """Names of all entries of a kind (see KINDS), in the order of the file."""
    return list(shipped(kind))


def entries(kind: str) -> dict[str, dict[str, Any]]:
    """All entries of a kind as plain tables, for listings."""
    return {name: dict(table) for name, table in shipped(kind).items()}
