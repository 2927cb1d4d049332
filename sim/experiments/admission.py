"""Where admission pays: the host computes a miss and brings some experts behind it, against computing and fetching."""

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sim.experiments.tables import Column, Report, Row, gain, parser
from sim.flags import add_hardware, hardware_fields
from sim.outcome.marks import machine_words, short_of_ram
from sim.policies.kinds import Value
from sim.simulation import simulate
from sim.spec import RunSpec, number
from traces.format import npz
from traces.progress import counted

INSERTS: tuple[Value, ...] = (1, 2, 8, "unlimited")
AT_ONCE: dict[str, Value] = {"cpu-admit.admit_after": 1, "cpu-admit.replace_after": 1}  # whatever is missed


def _admits(n: Value, at_once: bool) -> dict[str, Any]:
    """cpu-admit with so many inserts a visit; without a limit there is none of the queue either."""
    queue: dict[str, Value] = {"cpu-admit.queue": n} if n == "unlimited" else {}
    return {"miss": "cpu-admit", "set": {"cpu-admit.inserts": n, **queue, **(AT_ONCE if at_once else {})}}


ARMS: dict[str, dict[str, Any]] = {
    "fetch": {"miss": "fetch"},
    "cpu": {"miss": "cpu"},
    **{f"cpu-admit, inserts {n}": _admits(n, False) for n in INSERTS},
    **{f"cpu-admit at once, inserts {n}": _admits(n, True) for n in INSERTS},
}
COLUMNS = (
    Column("trace", "trace"),
    Column("cache", "c", 3),
    Column("arm", "miss policy"),
    Column("tokens_per_s", "tokens/s", 2),
    Column("over_fetch_percent", "vs fetch %", 1, signed=True),
    Column("over_cpu_percent", "vs cpu %", 1, signed=True),
    Column("hit_percent", "hits %", 1),
    Column("admitted", "admitted"),
    Column("h2d_gb", "H2D GB", 1),
    Column("link_percent", "link busy %", 1),
    Column("cpu_wait_percent", "cpu_wait %", 1),
)


def report(argv: Sequence[str]) -> tuple[Report, str | None]:
    """(the report, --out). Raises SpecError, TraceError or CatalogError for bad input."""
    flags = parser("admission", __doc__ or "")
    flags.add_argument("--trace", nargs="+", required=True, metavar="FILE", help="routing traces, or names of samples")
    flags.add_argument("--cache", nargs="+", default=["0.25", "0.5", "0.75"], metavar="C", help="as of sim.run")
    add_hardware(flags, "a100-pcie4")
    flags.add_argument("--engine", default="fused")
    flags.add_argument("--precision", default="q4")
    flags.add_argument("--link-share", type=float, default=0.7, help="of the link's rate while the host computes")
    args = flags.parse_args(argv)
    cells = [(path, cache) for path in args.trace for cache in args.cache]
    rows = [row for cell in counted(cells, "setting", " ".join) for row in _arms(args, *cell)]
    return Report("Admission behind the host's work", _head(args), COLUMNS, rows, _foot(rows)), args.out


def _head(args: Namespace) -> list[str]:
    share = f"the link moves at {args.link_share:g} of its rate while the host computes (an assumption, no measurement)"
    machine = machine_words(hardware_fields(args))
    settings = f"{machine}, engine {args.engine}, experts in {args.precision}; eviction lru, placement first"
    told = [f"{settings}; {share}", "cpu-admit with its defaults but for `inserts`; tokens/s of decode steps"]
    for path in args.trace:
        trace = npz.read(npz.find(path))
        kind = "captured" if trace.real else "SYNTHETIC"
        told.append(f"`{Path(path).stem}`: {kind}; {trace.meta.get('source', 'source not given')}")
    return told


def _arms(args: Namespace, path: str, cache: str) -> list[Row]:
    share = number(cache)
    shown = {"trace": Path(path).stem, "cache": cache if share is None else share}
    rows: list[dict[str, Any]] = [
        {**shown, "arm": arm, **_run(args, path, cache, fields)}
        for arm, fields in counted([*ARMS.items()], "arm", at_once=False)
    ]
    for row in rows:
        for base, other in (("fetch", rows[0]), ("cpu", rows[1])):
            row[f"over_{base}_percent"] = gain(row["tokens_per_s"], other["tokens_per_s"])
    return [*rows]


def _run(args: Namespace, path: str, cache: str, fields: dict[str, Any]) -> dict[str, Any]:
    """The figures of one arm."""
    common = {name: getattr(args, name) for name in ("engine", "precision", "link_share", "max_steps")}
    common |= {"trace": path, "cache": cache, "engine_as_costs": True, **hardware_fields(args)}
    out, _ = simulate(RunSpec.of({**common, **fields}))
    time = out["time_ns"] or 1
    return {
        "short_of_ram": "; ".join(short_of_ram(out["memory"])),
        "tokens_per_s": out["tokens_per_s"],
        "hit_percent": 100 * out["hits"] / (out["wanted"] or 1),
        "admitted": (out.get("admission") or {}).get("admitted"),
        "h2d_gb": sum(out["h2d_bytes"].values()) / 1e9,
        "link_percent": 100 * out["link_busy_ns"] / time,
        "cpu_wait_percent": 100 * out["breakdown_ns"]["cpu_wait"] / time,
    }


def _foot(rows: Sequence[Row]) -> list[str]:
    """Where admission pays, read off the rows."""
    settings = list(dict.fromkeys((row["trace"], row["cache"]) for row in rows))
    best, hesitant, least, most = 0, 0, 0.0, 0.0
    for setting in settings:
        speed = {str(row["arm"]): _speed(row) for row in rows if (row["trace"], row["cache"]) == setting}
        fastest = max(speed, key=lambda arm: speed[arm])
        best, hesitant = best + fastest.startswith("cpu-admit"), hesitant + fastest.startswith("cpu-admit,")
        for kind in ("cpu-admit", "cpu-admit at once"):
            limited = max(speed[f"{kind}, inserts {n}"] for n in INSERTS[:-1])
            lost = gain(speed[f"{kind}, inserts {INSERTS[-1]}"], limited) or 0.0
            least, most = (min(least, lost), most) if kind == "cpu-admit" else (least, min(most, lost))
    return [
        *sorted({f"`{row['trace']}`: {row['short_of_ram']}" for row in rows if row["short_of_ram"]}),
        f"admission is best in {best} of {len(settings)} settings: in {hesitant} of them after 2 misses where a slot "
        "is free and 8 where another must go (`cpu-admit`), in the others whatever is missed (`at once`)",
        f"without a limit against the best limit: {least:+.1f} % at worst with that hysteresis, {most:+.1f} % at once",
    ]


def _speed(row: Row) -> float:
    return float(row["tokens_per_s"] or 0)
