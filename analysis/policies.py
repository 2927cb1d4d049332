"""python -m analysis.policies CSV [--out FILE.svg]: policies ranked over captures, as an SVG.

CSV: the policies.csv that `python -m sim.experiments policies --policies KIND --out DIR` keeps in DIR. Without --out
the SVG is printed. Exit status 0 done, 2 bad input (one line on stderr), 1 a failure of ours.
"""

import sys
from collections.abc import Sequence

from analysis.comparing.ranks_svg import ranks_svg
from analysis.reading.policies import policies
from traces.command import Parser, guarded, write_bytes


def parser() -> Parser:
    out = Parser(prog="python -m analysis.policies", description="Policies ranked over captures, as an SVG.")
    out.add_argument("csv", metavar="CSV", help="policies.csv of python -m sim.experiments policies --policies KIND")
    out.add_argument("--out", metavar="FILE.svg", help="write it there (default: print it)")
    return out


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    return guarded(_command, argv)


def _command(argv: list[str]) -> None:
    args = parser().parse_args(argv)
    drawn = ranks_svg(policies(args.csv)) + "\n"
    if args.out:
        write_bytes(args.out, drawn.encode())
    else:
        sys.stdout.write(drawn)


if __name__ == "__main__":
    sys.exit(main())
