"""python -m analysis.miss_curve TRACE: how large a cache must be: hits and tokens/s at every capacity at once.

LRU alone: what its curve says and how it is found is in analysis.curves.curve. With --eviction NAME,NAME or all, or
with --slots, policies beside each other and the floor below which nobody gets: analysis.curves.policies. Exit status 0
done, 2 bad input, 1 a failure of ours.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from analysis.curves.curve import FLAGS, Curve, curve, rows, setting_of, to_check
from analysis.curves.formats import FORMATS, findings, headlines, notes
from sim.flags import add_flags, given
from traces.command import Parser, add_force, guarded, one_of, out_file, write_bytes
from traces.errors import UserError
from traces.extras import needed
from traces.progress import doing

LRU = "lru"


def parser() -> Parser:
    """The command line: the flags of sim.run that a curve can depend on, and its own."""
    prog, example = "python -m analysis.miss_curve", "mixtral.npz"
    out = Parser(prog=prog, description="Hits and tokens/s at every capacity.", example=example)
    out.add_argument("trace", metavar="TRACE", help="routing trace; a name that is no file is a shipped sample")
    add_flags(out, FLAGS)
    out.add_argument("--check", metavar="N,N", help="capacities at which the simulator runs too (default: four; none)")
    out.add_argument("--format", metavar="table|csv|json", default="table", help="how to print it (default: table)")
    out.add_argument(
        "--out", metavar="FILE.html", nargs="?", const="",
        help="also draw it, as one page that needs no network (--out alone: TRACE-miss-curve.html)",
    )  # fmt: skip
    add_force(out)
    many = out.add_argument_group("many policies", "each beside the floor, the fewest misses that any choice has")
    many.add_argument(
        "--eviction",
        metavar="NAME,NAME|all",
        default=LRU,
        help="evictions side by side; lru and static take one pass, each other one a run of the simulator for each of "
        "--slots (default: lru, alone)",
    )
    many.add_argument(
        "--slots", metavar="N,N", help="capacities (default: what a step wants, an eighth to three quarters of all)"
    )
    add_flags(many, ("calibration",))
    return out


def _checked(text: str | None, found: Curve) -> list[int]:
    if text is None:
        return to_check(found)
    try:
        chosen = [] if text == "none" else sorted({int(part) for part in text.split(",")})
    except ValueError:
        raise UserError(f"check: {text}: must be slots such as 4,8, or none") from None
    if chosen and not 1 <= chosen[0] <= chosen[-1] <= len(found.slots):
        raise UserError(f"check: {text}: slots must lie in 1 .. {len(found.slots)}")
    return chosen


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    return guarded(_command, argv)


def _command(argv: list[str]) -> None:
    args = parser().parse_args(argv)
    one_of("format", args.format, tuple(FORMATS))
    if args.out == "":
        args.out = f"{Path(args.trace).stem}-miss-curve.html"
        print(f"page: {args.out}", file=sys.stderr)
    if args.out is not None:
        needed("plotly", "--out")  # said before the work, not after it
        out_file(args.out, args.force)
    if args.eviction == LRU and args.slots is None:
        _lru(args)
    else:
        _many(args)


def _lru(args: argparse.Namespace) -> None:
    """LRU alone, at every capacity."""
    if args.calibration is not None:
        raise UserError(f"calibration: {args.calibration}: lru alone has no use for it; name further --eviction")
    setting = setting_of(given(args, ("trace", *FLAGS)))
    doing("one pass over all visits", at_once=False)
    found = curve(setting)
    doing("checking some sizes against the simulator", at_once=False)
    lines = rows(setting, found, _checked(args.check, found))

    def page() -> str:
        from analysis.pages.curve import page

        what, *rest = headlines(setting)
        return page(what, _sentences([*rest, *findings(found)]), notes(setting), lines)

    _show(args, FORMATS[args.format](setting, found, lines), notes(setting), page)


def _many(args: argparse.Namespace) -> None:
    """Policies side by side."""
    from analysis.curves import policies, policy_formats

    if args.check is not None:
        raise UserError(f"check: {args.check}: is for lru alone; the simulator runs at all --slots")
    fields, slots = given(args, ("trace", "calibration", *FLAGS)), policies.slots_of(args.slots)
    found = policies.policies(fields, args.eviction, slots)
    lines, said = policies.rows(found), policy_formats.all_notes(found)

    def page() -> str:
        from analysis.pages.policy_curve import page

        what, *rest = policy_formats.what(found)
        return page(what, _sentences([*rest, *policy_formats.findings(found)]), said, found, lines)

    _show(args, policy_formats.FORMATS[args.format](found, lines), said, page)


def _sentences(lines: Sequence[str]) -> list[str]:
    return [f"{' '.join(line.split())}." for line in lines]


def _show(args: argparse.Namespace, text: str, said: Sequence[str], page: Callable[[], str]) -> None:
    if args.out is not None:
        write_bytes(args.out, page().encode())
    print(text)
    if args.format == "csv":  # what a machine reads holds rows only
        for note in said:
            print(f"! {note}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
