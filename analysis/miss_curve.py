"""python -m analysis.miss_curve TRACE: how large a cache must be: LRU's hits and tokens/s at every capacity at once.

What the curve says and how it is found: analysis.curves.curve. Exit status 0 done, 2 bad input, 1 a failure of ours.
"""

import sys
from collections.abc import Sequence

from analysis.curves.curve import FLAGS, Curve, curve, rows, setting_of, to_check
from analysis.curves.formats import FORMATS, findings, headlines, notes
from sim.flags import add_flags, given
from sim.simulation import announce_compiling
from traces.command import Parser, guarded, one_of, write_bytes
from traces.errors import UserError


def parser() -> Parser:
    """The command line: the flags of sim.run that a curve can depend on, and its own."""
    out = Parser(prog="python -m analysis.miss_curve", description="LRU's hits and tokens/s at every capacity.")
    out.add_argument("trace", metavar="TRACE", help="routing trace; a name that is no file is a shipped sample")
    add_flags(out, FLAGS)
    out.add_argument("--check", metavar="N,N", help="capacities at which the simulator runs too (default: four; none)")
    out.add_argument("--format", metavar="table|csv|json", default="table", help="how to print it (default: table)")
    out.add_argument("--out", metavar="FILE.html", help="also draw it, as one page that needs no network")
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
    show = FORMATS[one_of("format", args.format, tuple(FORMATS))]
    announce_compiling()
    setting = setting_of(given(args, ("trace", *FLAGS)))
    found = curve(setting)
    lines = rows(setting, found, _checked(args.check, found))
    if args.out:
        from analysis.pages.curve import page

        what, *rest = headlines(setting)
        said = [f"{' '.join(line.split())}." for line in (*rest, *findings(found))]
        write_bytes(args.out, page(what, said, notes(setting), lines).encode())
    print(show(setting, found, lines))
    if args.format == "csv":  # what a machine reads holds rows only
        for note in notes(setting):
            print(f"! {note}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
