"""python -m analysis.published CSV [--out FILE.svg]: predicted against published speeds, as an SVG.

CSV: the published.csv that `python -m sim.experiments published --out DIR` keeps in DIR. Without --out the SVG is
printed. Exit status 0 done, 2 bad input (one line on stderr), 1 a failure of ours.
"""

import sys
from collections.abc import Sequence

from analysis.comparing.published_svg import BY, published_svg
from analysis.reading.published import UNITS, published
from traces.command import Parser, guarded, write_bytes
from traces.errors import UserError


def parser() -> Parser:
    out = Parser(prog="python -m analysis.published", description="Predicted against published speeds, as an SVG.")
    out.add_argument("csv", metavar="CSV", help="published.csv of python -m sim.experiments published --out DIR")
    out.add_argument("--out", metavar="FILE.svg", help="write it there (default: print it)")
    out.add_argument("--by", choices=BY, default=BY[0], help=f"what colours tell apart (default: {BY[0]})")
    out.add_argument("--phase", choices=tuple(UNITS), help="this one alone (default: both)")
    return out


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    return guarded(_command, argv)


def _command(argv: list[str]) -> None:
    args = parser().parse_args(argv)
    speeds = published(args.csv)
    phases = [args.phase] if args.phase else list(UNITS)
    if not any(each.phase in phases for each in speeds):
        raise UserError(f"phase: {args.phase}: {args.csv} has no row of it")
    drawn = published_svg(speeds, args.by, phases) + "\n"
    if args.out:
        write_bytes(args.out, drawn.encode())
    else:
        sys.stdout.write(drawn)


if __name__ == "__main__":
    sys.exit(main())
