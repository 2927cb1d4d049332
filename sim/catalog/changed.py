"""A machine with its host or its links at other rates than its own: what --host-gbps and --link-gbps mean."""

from collections.abc import Mapping
from typing import Any

from sim.catalog.hardware_spec import Hardware, Host
from sim.catalog.link_spec import Link
from sim.catalog.parts import build
from sim.errors import CatalogError

OUTRIGHT = ("fixed", "measured")  # sections that give durations and have neither a host nor a link


def refuse_changes(label: str, table: Mapping[str, Any], changes: Mapping[str, Any]) -> None:
    """Raises CatalogError for a change (None: there is none) of hardware that gives its durations outright."""
    section = next((name for name in OUTRIGHT if name in table), None)
    for name, value in changes.items() if section else ():
        if value is not None:
            wrong = f"gives durations outright in [{section}]: there is nothing to change; leave it out"
            raise CatalogError(f"{name}: {value}: {label} {wrong}")


def at_rates(hardware: Hardware, host_gbps: float | None, link_gbps: float | None) -> Hardware:
    """The machine with these rates, GB/s of 1e9 bytes, in the place of its own; None: its own."""
    out: dict[str, Any] = {}
    if host_gbps is not None and hardware.host is not None:
        out["host"] = _reading(hardware.host, host_gbps)
    if link_gbps is not None:
        links = {name: getattr(hardware, name) for name in ("link", "pageable_link")}
        out |= {name: _flat(link, link_gbps) for name, link in links.items() if link is not None}
    return hardware.model_copy(update=out)


def _reading(host: Host, gbps: float) -> Host:
    """The host reading so much alone; what it reads of one socket, and together with a link, in proportion."""
    by = gbps / host.read_rate()
    beside = {name: getattr(host, name) for name in ("one_socket_gb_per_s", "total_gb_per_s")}
    scaled = {name: rate * by for name, rate in beside.items() if rate is not None}
    rates = {"read_gb_per_s": gbps, **scaled}
    return build(Host, "host_gbps", {**host.model_dump(exclude_unset=True), **rates, **_sources(host, rates)})


def _flat(link: Link, gbps: float) -> Link:
    """The link at one rate for copies of every size, its set-up as it was."""
    kept = link.model_dump(exclude_unset=True, exclude={"curve", "n_half_bytes"})
    return build(Link, "link_gbps", {**kept, "h2d_gb_per_s": gbps, **_sources(link, {"h2d_gb_per_s": gbps})})


def _sources(part: Host | Link, rates: Mapping[str, float]) -> dict[str, Any]:
    return {"sources": {**part.sources, **dict.fromkeys(rates, "as asked for")}}
