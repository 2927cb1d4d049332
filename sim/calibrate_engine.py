"""An engine's constants from your own timings of it.

    python -m sim.calibrate_engine timings.csv --engine llama.cpp --hardware base.toml --out mine.toml

TIMINGS is a CSV file: a line per timing, whose columns are fields of a run (`python -m sim.run --help`, `_` for `-`),
`value` and `metric` (decode tok/s, the default; prefill tok/s; ms/token), and if you like `prompt` (tokens of a
prefill), `uncertainty` (as `value`) and `id`. From two rows on it says which constants they tell, and which they
cannot, and writes the engine with those: `python -m sim.run --engine mine.toml --hardware mine.hardware.toml`.
"""

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sim.errors import SpecError
from sim.flags import add_hardware, hardware_fields
from traces.command import Parser, guarded, write_bytes
from traces.progress import doing

if TYPE_CHECKING:
    from sim.timings.own import Calibrated, Told
    from sim.timings.rows import Timing

UNITS = {"_ns": ("us", 1e-3)}


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    return guarded(_command, argv)


def _parser() -> Parser:
    head, _, rest = (__doc__ or "").partition("\n\n")
    out = Parser(
        prog="python -m sim.calibrate_engine",
        description=head,
        epilog=rest,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    out.add_argument("timings", metavar="TIMINGS.csv")
    out.add_argument("--engine", required=True, metavar="NAME|FILE", help="whose constants")
    add_hardware(out, "")
    out.add_argument("--model", metavar="NAME|FILE", help="of rows that name none")
    out.add_argument("--precision", metavar="NAME", help="of rows that name none")
    out.add_argument("--out", metavar="FILE.toml", help="write the engine there, and FILE.hardware.toml beside it")
    out.add_argument("--force", action="store_true", help="replace what is there")
    return out


def _command(args: list[str]) -> int:
    from sim.timings.own import UNEXPLAINED, calibrate, with_defaults
    from sim.timings.rows import HITS, read

    flags = _parser().parse_args(args)
    targets = _targets(flags)
    if not flags.hardware:
        raise SpecError("hardware: missing; give --hardware NAME|FILE, the machine that was timed")
    given = {name: getattr(flags, name) for name in ("engine", "model", "precision")} | hardware_fields(flags)
    rows = with_defaults(read(Path(flags.timings)), {name: value for name, value in given.items() if value is not None})
    rows = [row for row in rows if row.metric != HITS]
    _refuse(flags.timings, rows)
    doing(f"fitting {flags.engine} to {len(rows)} timings")
    found = calibrate(rows)
    if found.off > UNEXPLAINED:
        wrong = f"off by {100 * (math.exp(found.off) - 1):.0f} % whatever the constants of {flags.engine}"
        raise SpecError(f"{flags.timings}: {wrong}; must be of that engine, model, precision and hardware")
    print(_told(found), end="")
    if targets:
        for path, text in zip(targets, _files(flags, found), strict=True):
            write_bytes(path, text.encode())
        print(f"wrote {targets[0]} and {targets[1]}")
    return 0


def _targets(flags: argparse.Namespace) -> list[Path]:
    if flags.out is None:
        return []
    path = Path(flags.out)
    if path.suffix != ".toml":
        raise SpecError(f"out: {flags.out}: must end in .toml, the file of an engine")
    targets = [path, path.with_suffix(".hardware.toml")]
    for each in targets:
        if each.exists() and not flags.force:
            raise SpecError(f"out: {each}: is there already; give --force to replace it")
    return targets


def _refuse(name: str, rows: Sequence["Timing"]) -> None:
    """What no fit can be made of."""
    for number, row in enumerate(rows, 2):
        for field in ("model", "precision"):
            if field not in row.fields:
                raise SpecError(f"{name}: row {number}: {field}: missing; give a column or --{field} NAME")
        for field in ("engine", "hardware"):
            if row.fields[field] != rows[0].fields[field]:
                raise SpecError(f"{name}: row {number}: {field} = {row.fields[field]!r}: must be one in all rows")
    if len({repr((sorted(row.fields.items(), key=str), row.metric, row.prompt)) for row in rows}) < 2:
        raise SpecError(f"{name}: {len(rows)} timings; needs at least two, of settings that differ")


def _told(found: "Calibrated") -> str:
    """What was found, as text."""
    from sim.timings.terms import TERMS

    lines = ["timing            measured   fitted   error    left out"]
    for i, row in enumerate(found.timings):
        off = row.seconds / found.seconds[i] - 1
        out = "" if found.without is None else f"{100 * (row.seconds / found.without[i] - 1):+8.1f} %"
        name = row.id or f"row {i + 2}"
        lines.append(
            f"{name[:16]:<16} {row.value:9.4g} {row.in_metric(found.seconds[i]):9.4g} {100 * off:+6.1f} % {out}"
        )
    lines += ["", "constant       times the engine's own   80 %            told by these timings"]
    for term in found.terms:
        told = f"{_verdict(term)}: {TERMS[term.name].what}"
        lines.append(f"{term.name:<14} {math.exp(term.log):18.3f}   {_interval(term):<15} {told}")
    lines += [f"{a} and {b}: told together only; their sum is known better than either" for a, b in found.together]
    low, high = found.interval
    how = "by what is left of the constants" if found.without is None else "by timings left out one at a time"
    return "\n".join([*lines, f"80 % interval of a prediction on this machine: x {low:.3f}-{high:.3f} ({how})", ""])


def _interval(term: "Told") -> str:
    from sim.timings.judging import EIGHTY

    return f"{math.exp(term.log - EIGHTY * term.after):.2f}-{math.exp(term.log + EIGHTY * term.after):.2f}"


def _verdict(term: "Told") -> str:
    return "yes   " if term.told else "no    " if term.untold else "partly"


def _files(flags: argparse.Namespace, found: "Calibrated") -> tuple[str, str]:
    """The engine and the hardware as TOML."""
    from sim.timings.own import changed
    from sim.timings.writing import engine_toml, hardware_toml

    hardware, engine = changed(found)
    source = f"fitted to {len(found.timings)} timings of {Path(flags.timings).name}"
    phases = sorted({"prefill" if row.prefill else "decode" for row in found.timings})
    told = (source, found.interval, hardware.name, phases)
    return engine_toml(flags.engine, engine, *told), hardware_toml(flags.hardware, hardware, source)


if __name__ == "__main__":
    sys.exit(main())
