"""A fitted [measured] section as a hardware file: provenance around it, checked by the catalog, written as TOML."""

import datetime
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from runtime.measuring.terms import Fitted, refuse_impossible
from sim.catalog.hardware_spec import Hardware
from sim.catalog.parts import build
from sim.prepare import Setting
from traces.command import write_bytes

SOURCE = "measured in place by runtime.calibrate: medians over rounds of replays"


def section_of(found: Fitted, bench: Any, setting: Setting, scale: float, bare: Any = None) -> dict[str, Any]:
    """The hardware file's table: provenance, the fitted terms, and the link's `bare` copies where they were measured.
    Raises DeviceError for a term that no device can have, CatalogError should the table not be valid."""
    assert setting.model is not None
    refuse_impossible(found.section, bench.bare_copy_ns())
    facts = bench.facts()
    about = {
        "device": plain(facts.get("what", "unknown")),
        "torch": plain(facts.get("torch", "")),
        "date": datetime.date.today().isoformat(),
        "model": setting.model.name,
        "precision": setting.spec.precision,
        "scale": scale,
        "expert_bytes": bench.expert_bytes,
    }
    if facts.get("mem_gb"):
        about["mem_gb"] = facts["mem_gb"]
    table = {"source": SOURCE, "measured": {**about, **found.section, **({"link": bare} if bare else {})}}
    build(Hardware, "calibration", table)
    return table


def write_hardware(path: str | Path, table: dict[str, Any], about: Sequence[str] = ()) -> None:
    """The table as TOML, behind comment lines."""
    comments = "".join(f"# {plain(line)}\n" for line in about)
    write_bytes(path, (comments + toml(table) + "\n").encode())


def plain(value: object) -> str:
    """At most 200 printable ASCII characters."""
    return "".join(c if " " <= c <= "~" else "?" for c in str(value))[:200]


def toml(table: dict[str, Any], path: str = "") -> str:
    """A table of scalars, lists, tables and lists of tables as TOML; keys are plain words. Values are spelled as in
    JSON."""
    lines, below = [], []
    for key, value in table.items():
        name = f"{path}.{key}" if path else key
        if isinstance(value, dict):
            below.append(f"[{name}]\n{toml(value, name)}")
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            below += [f"[[{name}]]\n{toml(item, name)}" for item in value]
        else:
            lines.append(f"{key} = {json.dumps(value)}")
    return "\n".join([*lines, *(f"\n{part}" for part in below)])
