"""A machine with its link made faster or slower, as a file of hardware."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sim.catalog.files import entry_or_file
from sim.catalog.writing import toml

if TYPE_CHECKING:
    from sim.catalog.hardware_spec import Hardware
    from sim.catalog.link_spec import Link


def is_scaled(hardware: str) -> bool:
    """Whether this names a file that `scaled` has written: a machine that nobody has."""
    return re.search(r"(^|[/\\])hardware[/\\][^/\\]+-link-[\d.e+-]+\.toml$", hardware) is not None


def scaled(name: str, hardware: "Hardware", by: float, folder: Path, stem: str, ratio: float) -> Path:
    """The machine with the rates of its links times `by`, as a file in `folder`, which is called `hardware`."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{stem}-link-{ratio:g}.toml"
    path.write_text(_scaled(name, hardware, by), encoding="utf-8")
    return path


def _scaled(name: str, hardware: "Hardware", by: float) -> str:
    """As TOML."""
    _, canonical, table = entry_or_file("hardware", name)
    links = {key: getattr(hardware, key) for key in ("link", "pageable_link")}
    changed = {key: _faster(link, by) for key, link in links.items() if link is not None}
    told = {"name": canonical, "source": f"{canonical}, the rates of its links x {by:.6g}"}
    kept = {key: value for key, value in table.items() if key not in ("aliases", "sources")}
    return "".join(f"{key} = {toml(value)}\n" for key, value in {**kept, **changed, **told}.items())


def _faster(link: "Link", by: float) -> dict[str, Any]:
    table = link.model_dump(exclude_unset=True, exclude={"aliases", "facts", "sources"})
    if link.curve is not None:
        return table | {"curve": [[size, rate * by] for size, rate in link.curve]}
    assert link.h2d_gb_per_s is not None
    return table | {"h2d_gb_per_s": link.h2d_gb_per_s * by}
