"""python -m analysis.engines RUN... > FILE.svg: engines over link/host ratios, decode and prompts, as an SVG.

RUN: what `python -m sim.experiments engines --ratios ... --out DIR` keeps in DIR/runs. Exit status 0 done, 2 bad input
(one line on stderr), 1 a failure of ours.
"""

import sys
from collections.abc import Sequence

from analysis.comparing.by_ratio import by_ratio
from analysis.comparing.ratio_svg import ratio_svg
from analysis.reading.load import load
from traces.command import Parser, guarded
from traces.errors import UserError


def parser() -> Parser:
    out = Parser(prog="python -m analysis.engines", description="Engines over link/host ratios, as an SVG.")
    out.add_argument("runs", metavar="RUN", nargs="+", help="folder of a run, or a summary")
    return out


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    return guarded(_command, argv)


def _command(argv: list[str]) -> None:
    found = by_ratio(load(parser().parse_args(argv).runs))
    if not found:
        raise UserError("no runs of engines at several link/host ratios; python -m sim.experiments engines --ratios")
    print(ratio_svg(found))


if __name__ == "__main__":
    sys.exit(main())
