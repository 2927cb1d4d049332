"""How sure a speed from catalog costs is: how far published speeds of an engine lie from simulated ones, whose costs
nothing of the judged machine has entered (intervals.toml)."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sim import catalog
from sim.catalog.files import lineage, read_toml, shipped
from sim.errors import CatalogError

if TYPE_CHECKING:
    from sim.catalog.hardware_spec import Hardware

DECODE, PREFILL = "decode", "prefill"
MEASURED, NOMINAL = "measured", "nominal"  # where a host's read rate comes from
LEVEL = 0.8  # share of what an engine really does that an interval holds


@dataclass(frozen=True)
class Interval:
    """Factors on simulated tokens/s, 0 < low <= high: LEVEL of the speeds of `rows` published figures of `machines`
    machines lie between. engine, a name of the catalog; host: of machines alone whose read rate was measured, or
    follows from its nominal peak (None: of all); family: of engines that are `like` this one, too."""

    engine: str
    phase: str
    low: float
    high: float
    rows: int
    machines: int
    source: str
    host: str | None = None
    family: bool = False

    def of(self, tokens_per_s: float | None) -> list[float] | None:
        """[low, high] tokens/s around a simulated speed; None around none."""
        return None if tokens_per_s is None else [self.low * tokens_per_s, self.high * tokens_per_s]


def interval(engine: str, hardware: "Hardware", phase: str) -> Interval | None:
    """Of an engine (a name or a file) that does what it is known for, in a phase (`decode`, `prefill`): what its file
    or the machine's states, else the nearest row of the table; None where neither says anything, and of durations that
    are given outright. Raises CatalogError for an engine that is unknown."""
    own = stated(engine, hardware, phase)
    if own is not None or hardware.durations is not None:
        return own
    names, host = lineage("engine", engine), NOMINAL if _nominal(hardware) else MEASURED
    known = [row for row in table() if row.phase == phase and row.host in (None, host)]
    mine = [row for row in known if row.engine == names[0] or (row.family and row.engine in names)]
    return min(mine, key=lambda row: (names.index(row.engine), row.host is None), default=None)


def stated(engine: str, hardware: "Hardware", phase: str) -> Interval | None:
    """What an engine's file or a machine's says of itself; the machine's alone where all durations are measured ones,
    none where they are [fixed]."""
    described = catalog.engine(engine)
    here = described.interval_on in ("", hardware.name) and phase in described.interval_phases
    own = described.interval if here and hardware.durations is None else None
    own = own or hardware.interval
    return None if own is None else Interval(engine, phase, *own, rows=0, machines=0, source="as its file states")


def _nominal(hardware: "Hardware") -> bool:
    return hardware.host is not None and hardware.host.read_gb_per_s is None


@cache
def table() -> tuple[Interval, ...]:
    """All rows of intervals.toml. Raises CatalogError for one that is wrong."""
    path = Path(__file__).parent / "intervals.toml"
    return tuple(_row(f"{path.name}: interval {i}", row) for i, row in enumerate(read_toml(path)["interval"]))


def _row(where: str, row: dict[str, Any]) -> Interval:
    try:
        found = Interval(**row)
    except TypeError as error:  # a key that is missing or unknown
        raise CatalogError(f"{where}: {str(error).removeprefix('Interval.__init__() ')}") from None
    rules = {
        "engine": (found.engine in shipped("engine"), "must be an engine of the catalog"),
        "phase": (found.phase in (DECODE, PREFILL), f"must be {DECODE} or {PREFILL}"),
        "host": (found.host in (None, MEASURED, NOMINAL), f"must be {MEASURED} or {NOMINAL}"),
        "low": (0 < found.low <= found.high, f"must lie above 0 and not above high = {found.high}"),
    }
    for key, (right, rule) in rules.items():
        if not right:
            raise CatalogError(f"{where}: {key} = {getattr(found, key)!r}: {rule}")
    return found
